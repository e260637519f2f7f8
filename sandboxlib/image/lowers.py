"""The layers below what a sandbox writes to, as an overlay of them shows them."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Iterator

from sandboxlib.errors import KernelError
from sandboxlib.kernel.descriptor import Fd, dup, openat
from sandboxlib.kernel.syscall import failed

WHY = "see what has changed"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def is_whiteout(found: os.stat_result) -> bool:
    """Does it stand for something that is gone?"""
    return modes.S_ISCHR(found.st_mode) and found.st_rdev == 0


def opaque(fd: int, mark: str) -> bool:
    """Does a folder hide what is below it?"""
    try:
        return os.getxattr(fd, mark) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise failed(error, f'fgetxattr({fd}, "{mark}")', WHY) from None


class Layers:
    """
    One folder of the layers below, as the overlay shows it: the topmost first.

    Args:
        mark: The attribute of a folder that hides what is below it.
        base: The layer that is the sandbox's own, all of root's inside, or -1.
    """

    def __init__(self, mark: str, base: int = -1) -> None:
        self._mark = mark
        self._base = base
        # (the layer's number, the folder), as far down as they show through.
        self._open: list[tuple[int, Fd]] = []

    def open(self, tops: tuple[int, ...], path: bytes) -> None:
        """Open the folder *path* in each of the layers *tops* that shows through."""
        for top in tops:
            fd = descend(top, path)
            if not fd:
                continue
            self._open.append((top, fd))
            if path and opaque(fd.fileno(), self._mark):
                break

    def close(self) -> None:
        """Close what is open."""
        for _, fd in self._open:
            fd.close()

    def look(self, name: bytes) -> tuple[os.stat_result | None, tuple[int, ...]]:
        """What *name* is, and the layers in which it is a folder that is merged with those above."""
        first: os.stat_result | None = None
        folders: list[int] = []
        for top, fd in self._open:
            try:
                found = os.stat(name, dir_fd=fd.fileno(), follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise failed(error, f"fstatat({fd.fileno()}, {name!r})", WHY) from None
            if top == self._base:
                found = _of_root(found)
            if modes.S_ISDIR(found.st_mode) and not (first and not folders):
                first = first or found
                folders.append(top)
                continue
            if not is_whiteout(found) and first is None:
                first = found
            break
        return first, tuple(folders)

    def holder(self, name: bytes) -> int:
        """The folder, of the topmost layer that has it, in which *name* is."""
        for _, fd in self._open:
            try:
                os.stat(name, dir_fd=fd.fileno(), follow_symlinks=False)
            except FileNotFoundError:
                continue
            return fd.fileno()
        raise KernelError(errno.ENOENT, f"fstatat({name!r})", WHY)

    def names(self) -> Iterator[bytes]:
        """All names, each once, without those that are whited out."""
        listed: set[bytes] = set()
        for _, fd in self._open:
            for name in map(os.fsencode, os.listdir(fd.fileno())):
                if name not in listed:
                    listed.add(name)
                    if self.look(name)[0] is not None:
                        yield name


def _of_root(found: os.stat_result) -> os.stat_result:
    """The same, of root: on disk it has the number that root has outside."""
    fields = list(found)
    fields[modes.ST_UID] = fields[modes.ST_GID] = 0
    return os.stat_result(fields, {"st_rdev": found.st_rdev, "st_mtime_ns": found.st_mtime_ns})


def descend(top: int, path: bytes) -> Fd:
    """Open the folder *path* below *top*; none if it is no more. Links in a layer are not followed."""
    fd = dup(top)
    for part in filter(None, path.split(b"/")):
        try:
            with fd as above:
                fd = openat(part, _FOLDER, at=above, why=WHY)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return Fd()
            raise
    return fd


__all__ = ["WHY", "Layers", "descend", "is_whiteout", "opaque"]
