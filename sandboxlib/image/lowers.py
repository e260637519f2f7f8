"""The layers below what a sandbox writes to, as an overlay of them shows them."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from sandboxlib.errors import KernelError
from sandboxlib.kernel.descriptor import Fd, openat
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
        own: Those of them whose files have on disk the numbers that their owners have outside.
        owner: Makes these the numbers inside.
    """

    def __init__(
        self,
        mark: str,
        own: Collection[int] = (),
        owner: Callable[[int, int], tuple[int, int]] = lambda uid, gid: (uid, gid),
    ) -> None:
        self._mark = mark
        self._own = own
        self._owner = owner
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
            if top in self._own:
                found = _of(found, self._owner(found.st_uid, found.st_gid))
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


def _of(found: os.stat_result, owner: tuple[int, int]) -> os.stat_result:
    """The same, of somebody else."""
    fields = list(found)
    fields[modes.ST_UID], fields[modes.ST_GID] = owner
    return os.stat_result(fields, {"st_rdev": found.st_rdev, "st_mtime_ns": found.st_mtime_ns})


class Told:
    """One folder of the layers below as somebody else has looked at it; as `Layers`."""

    def __init__(self, entries: Mapping[str, Sequence[int]], tops: tuple[int, ...]) -> None:
        self._entries = {os.fsencode(name): fields for name, fields in entries.items()}
        self._tops = tops

    def look(self, name: bytes) -> tuple[os.stat_result | None, tuple[int, ...]]:
        """What *name* is, and the layers below if it is a folder."""
        fields = self._entries.get(name)
        if fields is None:
            return None, ()
        mode, uid, gid, size, mtime, rdev = fields
        found = os.stat_result(
            (mode, 0, 0, 1, uid, gid, size, 0, 0, 0), {"st_mtime_ns": mtime, "st_rdev": rdev}
        )
        return found, self._tops if modes.S_ISDIR(mode) else ()

    def names(self) -> Iterator[bytes]:
        """All names."""
        return iter(self._entries)

    def close(self) -> None:
        """Do nothing."""


def tell(lowers: Iterable[int], mark: str, paths: Iterable[bytes]) -> dict[str, dict[str, list[int]]]:
    """
    What the layers show in each of the folders *paths*, parents first; for `Told`.

    Raises:
        KernelError: A layer cannot be read.
    """
    tops = {b"": tuple(lowers)}
    found: dict[str, dict[str, list[int]]] = {}
    for path in paths:
        layers = Layers(mark)
        entries = found[os.fsdecode(path)] = {}
        try:
            layers.open(tops.get(path, ()), path)
            for name in layers.names():
                state, merged = layers.look(name)
                assert state is not None
                tops[path + b"/" + name if path else name] = merged
                entries[os.fsdecode(name)] = [
                    *(state.st_mode, state.st_uid, state.st_gid),
                    *(state.st_size, state.st_mtime_ns, state.st_rdev),
                ]
        finally:
            layers.close()
    return found


def descend(top: int, path: bytes) -> Fd:
    """Open the folder *path* below *top*; none if it is no more. Links in a layer are not followed."""
    # Also the top itself, which may be open as a place alone.
    fd = openat(b".", _FOLDER, at=top, why=WHY)
    for part in filter(None, path.split(b"/")):
        try:
            with fd as above:
                fd = openat(part, _FOLDER, at=above, why=WHY)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return Fd()
            raise
    return fd


__all__ = ["WHY", "Layers", "Told", "descend", "is_whiteout", "opaque", "tell"]
