"""
Locks between programs, and between threads of one.

Kernel: flock(2). A lock belongs to an open file description, so the kernel drops it with the program
that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Cancelled = Callable[[], None]
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def never() -> None:
    """Nothing cancels it."""


def take(path: str, *, shared: bool = False, cancelled: Cancelled = never) -> int:
    """
    Wait for the lock that the file *path* stands for; it is made where it is missing.

    Args:
        path: A file; somebody who has it locked for itself alone may remove it.
        shared: With others that share it.
        cancelled: Called while it waits; what it raises ends the waiting.

    Returns:
        A descriptor, owned by the caller, with which the lock ends.
    """
    pause = 0.005
    while True:
        fd = os.open(path, _FLAGS, 0o600)
        try:
            # There is no waiting for a lock that something else can end.
            while not try_(fd, shared=shared):
                cancelled()
                time.sleep(pause)
                pause = min(2 * pause, 0.1)
            if is_(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def try_(fd: int, *, shared: bool = False) -> bool:
    """Lock what is open as *fd*, if nobody else has it."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_(path: str, fd: int) -> bool:
    """Is *path* what *fd* is open on, still?"""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


@contextmanager
def held(path: str, *, shared: bool = False, cancelled: Cancelled = never) -> Iterator[None]:
    """Hold it while the block runs."""
    fd = take(path, shared=shared, cancelled=cancelled)
    try:
        yield
    finally:
        os.close(fd)


__all__ = ["Cancelled", "held", "is_", "never", "take", "try_"]
