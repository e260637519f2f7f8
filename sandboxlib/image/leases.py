"""Who uses what of a store: a file with a lock for each user, which the kernel drops with the program."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from sandboxlib.image import locks


class Lease:
    """
    Keeps some digests in a store for as long as it is open.

    A fork of the program has it too, until either closes it or both have ended.
    """

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    def close(self) -> None:
        """Let go of them. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lease(folder: str, digests: Iterable[str]) -> Lease:
    """Make one below *folder*. Whoever prunes must not do so meanwhile."""
    path = os.path.join(folder, f"{os.getpid()}-{os.urandom(8).hex()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    made = Lease(path, fd)
    try:
        locks.try_(fd)
        with open(fd, "wb", closefd=False) as file:
            # All of it, or an error: half of a list would keep half of an image.
            file.write("".join(f"{digest}\n" for digest in digests).encode())
    except BaseException:
        made.close()
        raise
    return made


def leased(folder: str) -> set[str]:
    """
    All digests that somebody uses; what the dead have left is removed.

    Nobody may make a lease meanwhile.
    """
    found: set[str] = set()
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if locks.try_(fd):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            else:
                with open(fd, encoding="ascii", closefd=False) as file:
                    found.update(file.read().split())
        finally:
            os.close(fd)
    return found


__all__ = ["Lease", "lease", "leased"]
