"""
Trees packed into layers: a whole one, or what an overlay has changed.

The same content gives the same bytes: names in order, times in whole seconds, nothing that is of
this machine.

Spec: image-spec layer.md; overlayfs.rst, "whiteouts and opaque directories".
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from typing import final

import attrs

from sandboxlib.errors import ImageError, KernelError, SandboxError, SpecError, StateError
from sandboxlib.image import attributes, tarstream
from sandboxlib.image.extract import OPAQUE, WHITEOUT
from sandboxlib.image.folders import LONGEST_PATH, OpenFolders, is_whiteout
from sandboxlib.image.owner import Owner
from sandboxlib.image.source import nothing
from sandboxlib.image.tarstream import Entry, shown
from sandboxlib.image.tarwrite import TarWriter
from sandboxlib.kernel.files import openat2

#: (uid, gid) as they are on disk, and as a layer has them.
Shift = Callable[[int, int], tuple[int, int]]

_PIECE = 1 << 20
_KINDS = {
    stat.S_IFREG: tarstream.FILE,
    stat.S_IFLNK: tarstream.SYMLINK,
    stat.S_IFCHR: tarstream.CHAR,
    stat.S_IFBLK: tarstream.BLOCK_DEVICE,
    stat.S_IFDIR: tarstream.FOLDER,
    stat.S_IFIFO: tarstream.FIFO,
}


@attrs.frozen
class Packed:
    """
    A layer that has been packed, plain.

    Attributes:
        diff_id: Its digest.
        size: Its bytes.
    """

    diff_id: str
    size: int


def pack_tree(
    folder: int,
    write: Callable[[bytes], object],
    owner: Owner,
    *,
    shift: Shift | None = None,
    cancelled: Callable[[], None] = nothing,
) -> Packed:
    """
    Pack all that is below a folder, and the folder itself as ``./``.

    Args:
        folder: Borrowed.
        write: Called with the archive, piece by piece.
        owner: Whose the files are, see `Owner`; for ``range`` and ``single`` its maps turn ids on
            disk into those of the layer.
        shift: For ``root``: does the same; without it ids stay as they are.
        cancelled: Called often; raises to give up.

    Raises:
        ImageError: There is something that no layer can hold.
        StateError: A file was changed meanwhile.
        KernelError: It cannot be read.
    """
    return _pack(folder, write, owner, shift, cancelled, changes=False)


def pack_changes(
    upper: int,
    write: Callable[[bytes], object],
    owner: Owner,
    *,
    shift: Shift | None = None,
    left_out: Collection[bytes] = (),
    cancelled: Callable[[], None] = nothing,
) -> Packed:
    """
    Pack the upper folder of an overlay: what was deleted comes as whiteouts.

    Other arguments and errors are those of `pack_tree`.

    Args:
        upper: Borrowed.
        write: Called with the archive, piece by piece.
        owner: Whose the files are.
        shift: For ``root``: turns IDs on disk into those of the layer.
        left_out: Paths, without a slash before them, that are no part of the changes: what something was
            mounted on. Folders that are there only on the way to them are none either.
        cancelled: Called often; raises to give up.
    """
    return _pack(upper, write, owner, shift, cancelled, changes=True, left_out=left_out)


def _pack(
    folder: int,
    write: Callable[[bytes], object],
    owner: Owner,
    shift: Shift | None,
    cancelled: Callable[[], None],
    *,
    changes: bool,
    left_out: Collection[bytes] = (),
) -> Packed:
    if owner.kind == "root":
        return pack_here(
            folder, write, owner, changes=changes, shift=shift, left_out=left_out, cancelled=cancelled
        )
    if shift is not None:
        raise SpecError("shift", shift, "left out where the owner has maps")
    from sandboxlib.image.apart import pack_apart

    options = {"changes": changes, "left_out": sorted(map(os.fsdecode, left_out))}
    return Packed(**pack_apart(folder, write, owner, options, cancelled))


def pack_here(
    folder: int,
    write: Callable[[bytes], object],
    owner: Owner,
    *,
    changes: bool,
    shift: Shift | None = None,
    left_out: Collection[bytes] = (),
    cancelled: Callable[[], None] = nothing,
) -> Packed:
    """Do the same in this process, which has the rights that *owner* needs."""
    packer = _Packer(folder, TarWriter(write), owner, shift, frozenset(left_out), changes=changes)
    try:
        for path in packer.walk():
            cancelled()
            packer.current = path
        return Packed(packer.out.close(), packer.out.size)
    except SandboxError:
        raise
    except OSError as error:
        call = f'pack "{shown(packer.current)}"'
        raise KernelError(error.errno or 0, call, "pack a layer") from None
    finally:
        packer.folders.close()


@final
class _Packer:
    def __init__(
        self,
        folder: int,
        out: TarWriter,
        owner: Owner,
        shift: Shift | None,
        left_out: frozenset[bytes],
        *,
        changes: bool,
    ) -> None:
        self._left_out = left_out
        self.folders = OpenFolders(folder)
        self.out = out
        self.current = b""
        self._top = folder
        self._marks = owner.marks.encode()
        self._shift = shift
        self._changes = changes
        self._links: dict[tuple[int, int], bytes] = {}

    def walk(self) -> Iterator[bytes]:
        """Write all entries, folders before what is in them; yields each path before it is written."""
        if not self._changes:
            yield b""
            self._add(b"./", self._top, b".", os.fstat(self._top))
        todo: list[tuple[bytes, Iterator[bytes]]] = [(b"", iter(self._enter(b"")))]
        while todo:
            parent, names = todo[-1]
            name = next(names, None)
            if name is None:
                todo.pop()
                continue
            path = parent + b"/" + name if parent else name
            yield path
            if self._left_out and self._is_left_out(path):
                continue
            if len(path) > LONGEST_PATH:
                raise ImageError(f"{shown(path)}: a path of more than {LONGEST_PATH} bytes")
            fd = self.folders[parent]
            found = os.lstat(name, dir_fd=fd)
            if self._is_whiteout(fd, name, found):
                self._mark(parent, WHITEOUT + name)
                continue
            if name.startswith(WHITEOUT):
                raise ImageError(f"{shown(path)}: a name that is kept for whiteouts")
            if stat.S_ISDIR(found.st_mode):
                self._add(path + b"/", fd, name, found)
                todo.append((path, iter(self._enter(path))))
            elif not stat.S_ISSOCK(found.st_mode):
                self._add(path, fd, name, found)

    def _is_left_out(self, path: bytes) -> bool:
        """Is it, or is it a folder with nothing in it but what is?"""
        if path in self._left_out:
            return True
        if not any(out.startswith(path + b"/") for out in self._left_out):
            return False
        try:
            fd = openat2(self._top, path, os.O_RDONLY | os.O_DIRECTORY)
        except NotADirectoryError:
            return False
        try:
            names = [os.fsencode(name) for name in os.listdir(fd)]
            hides = self._own(fd, b"opaque") == b"y"
        finally:
            os.close(fd)
        return not hides and all(self._is_left_out(path + b"/" + name) for name in names)

    def _enter(self, path: bytes) -> list[bytes]:
        """The names in a folder, in order, after its mark if it hides what is below it."""
        fd = openat2(self._top, path or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = sorted(map(os.fsencode, os.listdir(fd)))
            if self._changes:
                if self._own(fd, b"opaque") == b"y":
                    self._mark(path, OPAQUE)
                for mark in (b"redirect", b"metacopy"):
                    if self._own(fd, mark) is not None:
                        # Its content is elsewhere, below: what is here is not the change.
                        raise ImageError(
                            f"{shown(path)}: a change of an overlay mounted with {mark.decode()}"
                        )
            return names
        finally:
            os.close(fd)

    def _own(self, target: int | bytes, mark: bytes) -> bytes | None:
        try:
            return os.getxattr(target, self._marks + mark, follow_symlinks=isinstance(target, int))
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return None
            raise

    def _is_whiteout(self, fd: int, name: bytes, found: os.stat_result) -> bool:
        if not self._changes:
            return False
        if is_whiteout(found):
            return True
        if stat.S_ISREG(found.st_mode) and found.st_size == 0:
            # The other form, which counts in folders that say so. Linux 6.7.
            path = attributes.path_of(fd, name)
            if self._own(path, b"whiteout") is not None:
                return self._own(attributes.path_of(fd, b"."), b"opaque") == b"x"
        return False

    def _mark(self, parent: bytes, name: bytes) -> None:
        entry = Entry(tarstream.FILE, parent + b"/" + name if parent else name)
        entry.mode = 0o600
        self.out.add(entry)

    def _add(self, path: bytes, fd: int, name: bytes, found: os.stat_result) -> None:
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:
            raise ImageError(f"{shown(path)}: a file of an unknown kind")
        entry = Entry(kind, path)
        entry.mode = stat.S_IMODE(found.st_mode)
        entry.uid, entry.gid = found.st_uid, found.st_gid
        if self._shift is not None:
            entry.uid, entry.gid = self._shift(found.st_uid, found.st_gid)
        entry.mtime = found.st_mtime_ns
        if found.st_nlink > 1 and kind != tarstream.FOLDER:
            first = self._links.setdefault((found.st_dev, found.st_ino), path)
            if first != path:
                entry.kind, entry.target = tarstream.LINK, first
                self.out.add(entry)
                return
        if kind == tarstream.SYMLINK:
            entry.target = os.readlink(name, dir_fd=fd)
            entry.mode = 0o777
        if kind in (tarstream.CHAR, tarstream.BLOCK_DEVICE):
            if is_whiteout(found):
                return
            entry.device = (os.major(found.st_rdev), os.minor(found.st_rdev))
        if kind == tarstream.FILE:
            self._file(entry, fd, name, found)
            return
        entry.xattrs = _written(attributes.path_of(fd, name))
        self.out.add(entry)

    def _file(self, entry: Entry, folder: int, name: bytes, found: os.stat_result) -> None:
        # Not blocking: should a FIFO have come in its place meanwhile.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=folder)
        try:
            now = os.fstat(fd)
            if (now.st_dev, now.st_ino) != (found.st_dev, found.st_ino):
                raise StateError(f'"{shown(entry.name)}" was replaced while it was packed')
            if self._changes and self._own(fd, b"metacopy") is not None:
                raise ImageError(f"{shown(entry.name)}: a change of an overlay mounted with metacopy")
            entry.size = now.st_size
            entry.xattrs = _written(fd)
            self.out.add(entry)
            left = entry.size
            while left:
                piece = os.read(fd, min(left, _PIECE))
                if not piece:
                    raise StateError(f'"{shown(entry.name)}" became shorter while it was packed')
                self.out.data(piece)
                left -= len(piece)
            self.out.pad(entry.size)
        finally:
            os.close(fd)


def _written(target: int | bytes) -> dict[bytes, bytes]:
    found = attributes.read_all(target)
    return {name: attributes.portable(name, value) for name, value in found.items()}


__all__ = ["Packed", "Shift", "pack_changes", "pack_here", "pack_tree"]
