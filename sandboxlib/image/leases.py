"""Who uses what of a store: a file with a lock for each user, which the kernel drops with the program."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from sandboxlib.image import locks
from sandboxlib.kernel.descriptor import Fd, openat, private
from sandboxlib.kernel.syscall import failed

_WHY = "keep an image in the store"


class Lease:
    """
    Keeps some digests in a store for as long as it is open.

    It is there before it keeps anything, so that whoever has it can let go of it whatever comes.
    """

    def __init__(self) -> None:
        self._path = ""
        # A forked child is not to keep what its parent has let go of.
        self._fd = private(Fd())

    def begin(self, folder: str, digests: Iterable[str]) -> None:
        """Make it below *folder*. Whoever prunes must not do so meanwhile. Raises: KernelError."""
        self._path = os.path.join(folder, f"{os.getpid()}-{os.urandom(8).hex()}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        fd = openat(self._path, flags, 0o600, why=_WHY, into=self._fd).fileno()
        locks.try_(fd)
        try:
            with open(fd, "wb", closefd=False) as file:
                # All of it, or an error: half of a list would keep half of an image.
                file.write("".join(f"{digest}\n" for digest in digests).encode())
        except OSError as error:
            raise failed(error, f'write("{self._path}")', _WHY) from None

    def begin_blob(self, path: str) -> None:
        """
        Keep an image by a lock on its manifest, the file *path*, which takes no room on the disk.

        Whoever prunes must not do so meanwhile. Raises: KernelError.
        """
        self._path = ""
        fd = openat(path, os.O_RDONLY, why=_WHY, into=self._fd).fileno()
        # Who has just brought it has it locked for another moment.
        while not locks.try_(fd, shared=True):
            time.sleep(0.001)

    def close(self) -> None:
        """Let go of them. Idempotent."""
        if self._fd and self._path:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
            except OSError as error:
                # Nobody has it locked then, so the next prune takes it away.
                self._fd.close()
                raise failed(error, f'unlink("{self._path}")', _WHY) from None
        self._fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lease(folder: str, digests: Iterable[str], into: Lease | None = None) -> Lease:
    """Make one below *folder*, or have it be *into*. Raises: as `Lease.begin`."""
    made = Lease() if into is None else into
    try:
        made.begin(folder, digests)
    except BaseException:
        made.close()
        raise
    return made


def lease_blob(path: str, into: Lease | None = None) -> Lease:
    """Make one of the manifest *path*, or have it be *into*. Raises: as `Lease.begin_blob`."""
    made = Lease() if into is None else into
    try:
        made.begin_blob(path)
    except BaseException:
        made.close()
        raise
    return made


def is_leased(path: str) -> bool:
    """Has somebody a `lease_blob` on this file? Nobody may make one meanwhile."""
    with contextlib.suppress(FileNotFoundError), openat(path, os.O_RDONLY, why=_WHY) as fd:
        return not locks.try_(fd)
    return False


def leased(folder: str) -> set[str]:
    """
    All digests that somebody uses; what the dead have left is removed.

    Nobody may make a lease meanwhile.
    """
    found: set[str] = set()
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError), openat(path, os.O_RDONLY, why=_WHY) as fd:
            if locks.try_(fd):
                os.unlink(path)
            else:
                with open(fd, encoding="ascii", closefd=False) as file:
                    found.update(file.read().split())
    return found


__all__ = ["Lease", "is_leased", "lease", "lease_blob", "leased"]
