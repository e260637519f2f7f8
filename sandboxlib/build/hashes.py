"""
What files of a context hold, remembered from one build to the next.

A file that has the same number, size and times as before is not read again. The time of its last
change cannot be set by anybody, but two changes within one tick of the kernel's clock have the same:
so a file is remembered only if it was read later than that.

Kernel: stat(2), st_ctime; Documentation/filesystems/multigrain-ts.rst.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from typing import final

import msgspec

#: Nanoseconds that a change must be past when a file is read: a tick of the slowest clock, many times.
_TICK = 100_000_000
#: The same where another machine's clock decides, or a file system counts in seconds.
_SLOW = 3_000_000_000
_PIECE = 1 << 20
#: Files that one context's memory holds, and its age in seconds after which `forget` takes it.
MOST = 2_000_000
OLDEST = 30 * 86400
#: Files that were not asked for this time: some are of another build, the most are gone or have changed.
_UNUSED = 50_000

#: A file: (device, inode, size, time of its content, time of its last change).
Stamp = tuple[int, int, int, int, int]


class _Memory(msgspec.Struct, array_like=True):
    version: int
    known: dict[str, str]


_VERSION = 1


@final
class Hashes:
    """
    The digests of files.

    Args:
        path: Where they are remembered; None for not at all.
        local: The files are on a disk of this machine.
        cancelled: Called while a file is read; raises to give up.

    Attributes:
        read: Bytes that had to be read.
    """

    def __init__(self, path: str | None, *, local: bool, cancelled: Callable[[], None]) -> None:
        self._path = path
        self._wait = _TICK if local else _SLOW
        self._cancelled = cancelled
        self._known: dict[str, str] = {}
        self._used: dict[str, str] = {}
        self.read = 0
        if path is not None:
            with contextlib.suppress(FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
                with open(path, "rb") as file:
                    memory = msgspec.msgpack.decode(file.read(), type=_Memory)
                if memory.version == _VERSION:
                    self._known = memory.known

    def get(self, stamp: Stamp) -> str | None:
        """The digest of a file that has been read before."""
        key = _key(stamp)
        found = self._known.get(key)
        if found is not None:
            self._used[key] = found
        return found

    def take(self, fd: int, extra: bytes) -> str:
        """
        Read an open file to its end, and return its digest.

        Args:
            fd: Borrowed.
            extra: What else belongs to it, such as its attributes.
        """
        found = hashlib.sha256(extra)
        while piece := os.read(fd, _PIECE):
            self._cancelled()
            self.read += len(piece)
            found.update(piece)
        return found.hexdigest()

    def put(self, stamp: Stamp, digest: str) -> None:
        """Remember a digest, if a later change of the file could not be overlooked."""
        if time.time_ns() - max(stamp[3], stamp[4]) > self._wait and len(self._used) < MOST:
            self._used[_key(stamp)] = digest

    def save(self) -> None:
        """Write down what is known now."""
        known = self._known | self._used
        if len(known) - len(self._used) > max(_UNUSED, len(self._used)):
            known = self._used
        if self._path is None or known == self._known:
            return
        made = f"{self._path}.{os.getpid()}-{os.urandom(4).hex()}"
        try:
            with open(made, "xb") as file:
                file.write(msgspec.msgpack.encode(_Memory(_VERSION, known)))
            os.replace(made, self._path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)
            raise


def _key(stamp: Stamp) -> str:
    return " ".join(map(str, stamp))


def forget(folder: str, *, older: float = OLDEST) -> int:
    """Remove memories that nobody has used for *older* seconds; returns how many bytes that gives."""
    size = 0
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat()
                if time.time() - found.st_mtime >= older:
                    os.unlink(entry.path)
                    size += found.st_size
    return size


__all__ = ["Hashes", "Stamp", "forget"]
