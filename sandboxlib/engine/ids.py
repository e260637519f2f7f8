"""Ranges of IDs, one for each sandbox of root's, that no other sandbox on this machine has."""

from __future__ import annotations

import fcntl
import os
import struct
import threading

from sandboxlib.errors import KernelError, UnsupportedError

#: Above what distributions give to users and below what systemd reserves at the top (UIDS-GIDS.md).
FIRST = 0x50000000
COUNT = 65536
SLOTS = 4096
_FLOCK = struct.Struct("hhqqi4x")


class IdRanges:
    """
    Hands out ranges by locking one byte each of a file in *folder*.

    The locks belong to the open file: the kernel drops them when this program
    ends, however it ends, so a range is never lost and never given twice.

    Kernel: fcntl(2), open file description locks, Linux 3.15.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, "ids")
        self._lock = threading.Lock()
        self._fd = -1
        self._used: set[int] = set()
        self._owner = 0

    def take(self) -> int:
        """The first ID of a free range; give it back with `release`."""
        with self._lock:
            if self._owner != os.getpid():
                self._open()
            slot = 0
            while slot in self._used or not self._try(slot):
                slot += 1
                if slot == SLOTS:
                    raise UnsupportedError(f"another sandbox beside {SLOTS} of them", "a free range of IDs")
            self._used.add(slot)
            return FIRST + slot * COUNT

    def release(self, first: int) -> None:
        """Give a range back."""
        slot = (first - FIRST) // COUNT
        with self._lock:
            if self._owner == os.getpid() and slot in self._used:
                self._used.discard(slot)
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, slot, 1, 0))
                if not self._used:
                    os.close(self._fd)
                    self._owner = 0

    def _open(self) -> None:
        # A forked child's descriptor would share the parent's locks: it opens its own.
        folder = os.path.dirname(self._path)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KernelError(error.errno or 0, f'openat("{self._path}")', "ranges of IDs") from error
        self._owner = os.getpid()
        self._used = set()

    def _try(self, slot: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, slot, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True
