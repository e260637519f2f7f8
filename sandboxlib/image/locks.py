"""
Locks between programs, and between threads of one.

Kernel: flock(2). A lock belongs to an open file description, so the kernel drops it with the program
that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable

from sandboxlib.kernel.descriptor import Fd, openat, private
from sandboxlib.kernel.syscall import failed

Cancelled = Callable[[], None]
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW


def never() -> None:
    """Nothing cancels it."""


def take(path: str, *, shared: bool = False, cancelled: Cancelled = never, into: Fd | None = None) -> Fd:
    """
    Wait for the lock that the file *path* stands for; it is made where it is missing.

    Args:
        path: A file; somebody who has it locked for itself alone may remove it.
        shared: With others that share it.
        cancelled: Called while it waits; what it raises ends the waiting.
        into: What is to have the lock, where somebody knows that already.

    Returns:
        With which the lock ends; a forked child does not have it.

    Raises:
        KernelError: The file cannot be made, or the file system has no locks.
    """
    pause, fd = 0.005, private(Fd()) if into is None else into
    while True:
        openat(path, _FLAGS, 0o600, why="wait for other programs", into=fd)
        # There is no waiting for a lock that something else can end.
        while not try_(fd.fileno(), shared=shared):
            cancelled()
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        if is_(path, fd.fileno()):
            return fd


def try_(fd: int, *, shared: bool = False) -> bool:
    """Lock what is open as *fd*, if nobody else has it. Raises: KernelError."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise failed(error, f"flock({fd})", "a lock") from None
    return True


def is_(path: str, fd: int) -> bool:
    """Is *path* what *fd* is open on, still?"""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def holder(fd: int) -> str:
    """A phrase that says who has locked the file of *fd*, where the kernel tells. Kernel: proc_locks(5)."""
    with contextlib.suppress(OSError):
        inode = os.fstat(fd).st_ino
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            for line in file:
                words = line.split()
                if words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
                    return f" (pid {words[4]})"
    return ""


__all__ = ["Cancelled", "holder", "is_", "never", "take", "try_"]
