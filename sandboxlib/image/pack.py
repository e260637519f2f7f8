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

from sandboxlib.bounds import Bound
from sandboxlib.errors import ImageError, SandboxError, SpecError, StateError
from sandboxlib.image import attributes, tarstream
from sandboxlib.image.content import UNBOUND, Bounds, Content, How, written
from sandboxlib.image.extract import OPAQUE, WHITEOUT
from sandboxlib.image.folders import LONGEST_PATH, OpenFolders, is_whiteout
from sandboxlib.image.omitted import NO_LINKS, Links, Omitted
from sandboxlib.image.owner import Owner
from sandboxlib.image.source import nothing
from sandboxlib.image.tarstream import Entry, shown
from sandboxlib.image.tarwrite import TarWriter
from sandboxlib.kernel.files import openat2
from sandboxlib.kernel.syscall import failed

#: (uid, gid) as they are on disk, and as a layer has them. Raises: LookupError: Nobody has this number there.
Shift = Callable[[int, int], tuple[int, int]]

_KINDS = {
    stat.S_IFREG: tarstream.FILE,
    stat.S_IFLNK: tarstream.SYMLINK,
    stat.S_IFCHR: tarstream.CHAR,
    stat.S_IFBLK: tarstream.BLOCK_DEVICE,
    stat.S_IFDIR: tarstream.FOLDER,
    stat.S_IFIFO: tarstream.FIFO,
}


_ALL = Omitted()


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
    left_out: Collection[bytes] = (),
    ways: Collection[bytes] = (),
    links: Links = NO_LINKS,
    bounds: Bounds = UNBOUND,
    sparse: bool = False,
    cancelled: Callable[[], None] = nothing,
) -> Packed:
    """
    Pack all that is below a folder, and the folder itself as ``./``.

    Args:
        folder: Borrowed; open to be read, or as a place alone (O_PATH).
        write: Called with the archive, piece by piece.
        owner: Whose the files are, see `Owner`; for ``range`` and ``single`` its maps turn ids on
            disk into those of the layer.
        shift: For ``root``: does the same; without it ids stay as they are.
        left_out: Paths, without a slash before them, that are no part of it: what something was mounted on.
        ways: Folders that are no part of it where they have nothing in them but these.
        links: What stands in place of a path that is left out.
        bounds: How much there may be.
        sparse: Write holes of more than 1 MiB as holes, in GNU tar's format 1.0. Not for layers, for which
            the specification advises against it: who takes them apart and puts them together again, as
            Docker does, would make others of them.
        cancelled: Called often; raises to give up.

    Raises:
        TooLargeError: There is more than *bounds* let in.
        ImageError: There is something that no layer can hold.
        StateError: A file was changed meanwhile.
        KernelError: It cannot be read.
    """
    omit = Omitted(frozenset(left_out), frozenset(ways), links)
    how = How(changes=False, sparse=sparse, bounds=bounds)
    return _pack(folder, write, owner, shift, cancelled, how, omit)


def pack_changes(
    upper: int,
    write: Callable[[bytes], object],
    owner: Owner,
    *,
    shift: Shift | None = None,
    left_out: Collection[bytes] = (),
    root: tuple[int, int, int] | None = None,
    bounds: Bounds = UNBOUND,
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
        root: Mode, user and group that the root had, in the layer's numbers: what it has is written where
            that is something else.
        bounds: How much there may be.
        cancelled: Called often; raises to give up.
    """
    ways = frozenset(path[:at] for path in left_out for at, byte in enumerate(path) if byte == 0x2F)
    omit = Omitted(frozenset(left_out), ways, NO_LINKS, root)
    return _pack(upper, write, owner, shift, cancelled, How(changes=True, bounds=bounds), omit)


def _pack(
    folder: int,
    write: Callable[[bytes], object],
    owner: Owner,
    shift: Shift | None,
    cancelled: Callable[[], None],
    how: How,
    omit: Omitted,
) -> Packed:
    if owner.kind == "root":
        return pack_here(folder, write, owner, how, shift=shift, omit=omit, cancelled=cancelled)
    if shift is not None:
        raise SpecError("shift", shift, "left out where the owner has maps")
    from sandboxlib.image.apart import pack_apart

    options = {"how": how, "omit": omit.as_words()}
    return Packed(**pack_apart(folder, write, owner, options, cancelled))


def pack_here(
    folder: int,
    write: Callable[[bytes], object],
    owner: Owner,
    how: How,
    *,
    shift: Shift | None = None,
    omit: Omitted = _ALL,
    cancelled: Callable[[], None] = nothing,
) -> Packed:
    """Do the same in this process, which has the rights that *owner* needs."""
    packer = _Packer(folder, TarWriter(write), owner, shift, omit, how, cancelled)
    try:
        for path in packer.walk():
            cancelled()
            packer.current = path
        return Packed(packer.out.close(), packer.out.size)
    except SandboxError:
        raise
    except OSError as error:
        call = f'pack "{shown(packer.current)}"'
        raise failed(error, call, "pack a layer") from None
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
        omit: Omitted,
        how: How,
        cancelled: Callable[[], None],
    ) -> None:
        where, (size, entries) = "what is packed", how.bounds
        self._content = Content(out, Bound("max_size", size, "bytes of data", where), how.sparse, cancelled)
        self._entries = Bound("max_entries", entries, "entries", where)
        self._cancelled = cancelled
        self._omit = omit
        self.folders = OpenFolders(folder)
        self.out = out
        self.current = b""
        self._top = folder
        self._marks = owner.marks.encode()
        self._shift = shift
        self._changes = how.changes
        self._links: dict[tuple[int, int], bytes] = {}

    def walk(self) -> Iterator[bytes]:
        """Write all entries, folders before what is in them; yields each path before it is written."""
        if not self._changes or self._root_differs():
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
            if self._is_left_out(path):
                if path in self._omit.links:
                    self._add_link(path)
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

    def _root_differs(self) -> bool:
        if self._omit.root is None:
            return False
        now = os.fstat(self._top)
        return (stat.S_IMODE(now.st_mode), *self._owner(b"./", now)) != self._omit.root

    def _is_left_out(self, path: bytes) -> bool:
        """Is it, or is it on the way to what is, with nothing else in it?"""
        if path in self._omit.paths:
            return True
        if path not in self._omit.ways:
            return False
        try:
            fd = openat2(self._top, path, os.O_RDONLY | os.O_DIRECTORY)
        except NotADirectoryError:
            return False
        try:
            if self._changes and self._own(fd, b"opaque") == b"y":
                return False
            # Somebody inside may have filled it: it is read no further than to the first that is his.
            with os.scandir(fd) as names:
                return all(self._is_left_out(path + b"/" + os.fsencode(each.name)) for each in names)
        finally:
            os.close(fd)

    def _add_link(self, path: bytes) -> None:
        entry = Entry(tarstream.SYMLINK, path)
        entry.target, entry.uid, entry.gid, entry.mtime = self._omit.links[path]
        entry.mode = 0o777
        self.out.add(entry)

    def _owner(self, path: bytes, found: os.stat_result) -> tuple[int, int]:
        """Whose it is, as a layer has it. Raises: ImageError: Somebody's who has no number there."""
        uid, gid = found.st_uid, found.st_gid
        try:
            return (uid, gid) if self._shift is None else self._shift(uid, gid)
        except LookupError:
            raise ImageError(
                f"{shown(path)}: its owner, {uid}:{gid} outside, has no number in the sandbox"
            ) from None

    def _enter(self, path: bytes) -> list[bytes]:
        """The names in a folder, in order, after its mark if it hides what is below it."""
        fd = openat2(self._top, path or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = sorted(self._names(fd))
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

    def _names(self, fd: int) -> Iterator[bytes]:
        with os.scandir(fd) as entries:
            for entry in entries:
                self._cancelled()
                name = os.fsencode(entry.name)
                self._entries.path(name)
                yield name

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
        entry.uid, entry.gid = self._owner(path, found)
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
        entry.xattrs = written(attributes.path_of(fd, name), path)
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
            self._content.add(entry, fd, now)
        finally:
            os.close(fd)


__all__ = ["Packed", "Shift", "pack_changes", "pack_here", "pack_tree"]
