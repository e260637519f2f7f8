"""Ranges of IDs, one for each sandbox of root's, that no other sandbox on this machine has."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator

from sandboxlib.errors import UnsupportedError
from sandboxlib.host import IDRanges
from sandboxlib.kernel import folders
from sandboxlib.kernel.descriptor import Fd, openat, private
from sandboxlib.kernel.syscall import failed

COUNT = 65536
_FLOCK = struct.Struct("hhqqi4x")


class IdRanges:
    """
    Hands out ranges by locking bytes of a file in *folder*: each byte stands for the ID with its number.

    The locks belong to the process: the kernel drops them when it ends, however it ends, and when it
    executes another program, so a range is never lost and never given twice. A forked child has none
    of them. So this is the only one who opens the file in a process: closing it drops them all.

    Kernel: fcntl(2), record locks.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        # Closed in a forked child before that has a lock of its own, and never later.
        self._fd = private(Fd())
        # Whose each range is, by its first ID.
        self._used: dict[int, object] = {}

    def take(self, host: IDRanges, holder: object) -> int:
        """
        The first ID of a free range, which is *holder*'s until `release`.

        Raises:
            UnsupportedError: All are in use, or this machine has none.
            ViolationError: The folder is not this user's alone.
            KernelError: The locks cannot be had.
        """
        if not host.free:
            raise UnsupportedError("a sandbox of root's with users of its own", "a range of IDs", host.fault)
        with self._lock:
            if not self._fd:
                self._open()
            for first in _firsts(host):
                if first not in self._used:
                    # First: what is locked is known.
                    self._used[first] = holder
                    if self._try(first):
                        return first
                    del self._used[first]
        number = sum(count // COUNT for _, count in host.free)
        raise UnsupportedError(f"another sandbox beside {number} of them", "a free range of IDs", host.source)

    def release(self, holder: object) -> None:
        """Give back what *holder* has. Idempotent."""
        with self._lock:
            for first in [first for first, other in self._used.items() if other is holder]:
                self._set(fcntl.F_UNLCK, first)
                del self._used[first]
            if not self._used:
                self._fd.close()

    def _open(self) -> None:
        folders.own(self._folder).close()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        openat(os.path.join(self._folder, "ids"), flags, 0o600, why="ranges of IDs", into=self._fd)

    def _try(self, first: int) -> bool:
        try:
            self._set(fcntl.F_WRLCK, first)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _set(self, kind: int, first: int) -> None:
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLK, _FLOCK.pack(kind, os.SEEK_SET, first, COUNT, 0))
        except OSError as error:
            raise failed(error, f"fcntl(<ids>, F_SETLK, {first})", "ranges of IDs") from None


def _firsts(host: IDRanges) -> Iterator[int]:
    for start, count in host.free:
        yield from range(start, start + count - COUNT + 1, COUNT)


# One for each folder in each process, whatever user it becomes meanwhile.
_every: dict[tuple[int, str], IdRanges] = {}


def ranges(folder: str) -> IdRanges:
    """Those whose locks are in *folder*."""
    return _every.setdefault((os.getpid(), folder), IdRanges(folder))


__all__ = ["COUNT", "IdRanges", "ranges"]
