"""
Trees and changes, written as tar files: the same to the byte for the same content.

Spec: image-spec layer.md, "Representing Changes"; pax of POSIX.1-2017.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from sandboxlib.errors import ImageError, KernelError
from sandboxlib.image.locks import Cancelled, never
from sandboxlib.image.owner import Owner
from sandboxlib.image.tarheader import block, record
from sandboxlib.image.tarstream import BLOCK

Write = Callable[[bytes], object]
Shift = Callable[[int, int], tuple[int, int]]
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
# Marks of overlayfs, and labels that belong to this machine.
_LEFT_OUT = (
    "trusted.overlay.",
    "user.overlay.",
    "security.selinux",
    "security.ima",
    "security.evm",
    "system.",
)
_CAPABILITY = "security.capability"


class Packed(NamedTuple):
    """
    What was written.

    Attributes:
        diff_id: The digest of the tar file.
        size: Its bytes.
    """

    diff_id: str
    size: int


def pack_tree(
    folder: int,
    write: Write,
    owner: Owner,
    *,
    shift: Shift | None = None,
    cancelled: Cancelled = never,
) -> Packed:
    """
    Write a whole tree as a plain tar file.

    Args:
        folder: The open folder that is its root.
        write: Gets the tar file, piece by piece.
        owner: Whose the files are.
        shift: Gives the user and the group inside for those on disk; as they are where it is None.
        cancelled: Called every now and then; raises to give up.

    Raises:
        KernelError: Something cannot be read.
    """
    return _pack("tree", folder, write, owner, shift, frozenset(), cancelled)


def pack_changes(
    upper: int,
    write: Write,
    owner: Owner,
    *,
    shift: Shift | None = None,
    left_out: Collection[bytes] = (),
    cancelled: Cancelled = never,
) -> Packed:
    """
    Write what an overlay's upper folder holds as a layer: whiteouts and opaque folders as OCI has them.

    Args:
        upper: The open folder.
        write: As `pack_tree`.
        owner: As `pack_tree`.
        shift: As `pack_tree`.
        left_out: Paths without a leading slash that are not to be in it, with all below them. Folders
            that are there only because of them are not either.
        cancelled: As `pack_tree`.
    """
    return _pack("changes", upper, write, owner, shift, frozenset(left_out), cancelled)


def _pack(
    kind: str,
    folder: int,
    write: Write,
    owner: Owner,
    shift: Shift | None,
    left_out: frozenset[bytes],
    cancelled: Cancelled,
) -> Packed:
    if owner.kind == "range":
        from sandboxlib.image.worker import pack_inside

        return pack_inside(kind, folder, write, owner, left_out, cancelled)
    if owner.kind == "single":
        # All is the user's, who is root inside.
        shift = _root
    return pack_here(kind, folder, write, owner, shift, left_out, cancelled)


def _root(_uid: int, _gid: int) -> tuple[int, int]:
    return 0, 0


def pack_here(
    kind: str,
    folder: int,
    write: Write,
    owner: Owner,
    shift: Shift | None,
    left_out: frozenset[bytes],
    cancelled: Cancelled,
) -> Packed:
    """Do so with this process's own rights; *kind* is ``tree`` or ``changes``."""
    found = hashlib.sha256()
    size = 0

    def put(data: bytes) -> None:
        nonlocal size
        found.update(data)
        size += len(data)
        write(data)

    packer = _Packer(put, owner, shift, left_out, cancelled, changes=kind == "changes")
    try:
        packer.root(folder)
    except KernelError:
        raise
    except OSError as error:
        raise KernelError(error.errno or 0, f"read {packer.name!r}", "pack a layer") from None
    put(bytes(2 * BLOCK))
    return Packed(f"sha256:{found.hexdigest()}", size)


class _Packer:
    def __init__(
        self,
        put: Write,
        owner: Owner,
        shift: Shift | None,
        left_out: frozenset[bytes],
        cancelled: Cancelled,
        *,
        changes: bool,
    ) -> None:
        self._put = put
        self._opaque = owner.marks + "opaque"
        self._whiteout = owner.marks + "whiteout"
        self._shift = shift or (lambda uid, gid: (uid, gid))
        self._left_out = left_out
        self._cancelled = cancelled
        self._changes = changes
        # Files with several names, by what they are: the first of them.
        self._known: dict[tuple[int, int], bytes] = {}
        self.name = b"."

    def root(self, folder: int) -> None:
        """Write all that is in the root, and the root itself where that is more than its children."""
        found = os.fstat(folder)
        if not self._changes:
            self._header(b"./", found, folder)
        self._folder(folder, b"")

    def _folder(self, fd: int, path: bytes) -> None:
        entries = []
        for name in sorted(map(os.fsencode, os.listdir(fd))):
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if (path + b"/" + name if path else name) not in self._left_out:
                entries.append((name, found))
        if path and self._changes and self._has(fd, self._opaque):
            self._line(path + b"/.wh..wh..opq", b"0", 0o644, 0, (0, 0), 0)
        for name, found in entries:
            self._cancelled()
            self.name = path + b"/" + name if path else name
            self._entry(fd, name, self.name, found)

    def _entry(self, parent: int, name: bytes, path: bytes, found: os.stat_result) -> None:
        mode = found.st_mode
        if self._changes and self._gone(parent, name, found):
            folder = path[: -len(name)]
            self._line(folder + b".wh." + name, b"0", 0o644, 0, (0, 0), 0)
        elif stat.S_ISDIR(mode):
            fd = os.open(name, _FOLDER, dir_fd=parent)
            try:
                if self._only_for_others(fd, path):
                    return
                self._header(path + b"/", found, fd)
                self._folder(fd, path)
            finally:
                os.close(fd)
        elif stat.S_ISSOCK(mode):
            return  # nobody listens there any more
        elif self._again(path, found):
            return
        elif stat.S_ISREG(mode):
            self._file(parent, name, path, found)
        elif stat.S_ISLNK(mode):
            owner, link = self._shift(found.st_uid, found.st_gid), os.readlink(name, dir_fd=parent)
            self._line(path, b"2", 0o777, int(found.st_mtime), owner, 0, link=link)
        else:
            kind = b"6" if stat.S_ISFIFO(mode) else b"3" if stat.S_ISCHR(mode) else b"4"
            self._line(
                path,
                kind,
                stat.S_IMODE(mode),
                int(found.st_mtime),
                self._shift(found.st_uid, found.st_gid),
                0,
                device=found.st_rdev,
            )

    def _gone(self, parent: int, name: bytes, found: os.stat_result) -> bool:
        if stat.S_ISCHR(found.st_mode):
            return found.st_rdev == 0
        # Since Linux 6.7 a whiteout within a whiteout's folder may be an empty file with a mark.
        if stat.S_ISREG(found.st_mode) and not found.st_size:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                return self._has(fd, self._whiteout)
            finally:
                os.close(fd)
        return False

    def _only_for_others(self, fd: int, path: bytes) -> bool:
        """Is a folder there only on the way to what is left out?"""
        return (
            self._changes
            and any(out.startswith(path + b"/") for out in self._left_out)
            and not [
                name
                for name in map(os.fsencode, os.listdir(fd))
                if not self._leads_out(fd, name, path + b"/" + name)
            ]
        )

    def _leads_out(self, parent: int, name: bytes, path: bytes) -> bool:
        if path in self._left_out:
            return True
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return False
        fd = os.open(name, _FOLDER, dir_fd=parent)
        try:
            return self._only_for_others(fd, path)
        finally:
            os.close(fd)

    def _again(self, path: bytes, found: os.stat_result) -> bool:
        """Write a further name of a file that was written already."""
        if found.st_nlink < 2:
            return False
        key = (found.st_dev, found.st_ino)
        first = self._known.setdefault(key, path)
        if first == path:
            return False
        self._line(
            path,
            b"1",
            stat.S_IMODE(found.st_mode),
            int(found.st_mtime),
            self._shift(found.st_uid, found.st_gid),
            0,
            link=first,
        )
        return True

    def _file(self, parent: int, name: bytes, path: bytes, found: os.stat_result) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            size = os.fstat(fd).st_size
            self._header(path, found, fd, size)
            left = size
            while left:
                data = os.read(fd, min(left, _CHUNK))
                if not data:
                    raise ImageError(f"{path!r} became shorter while it was read")
                left -= len(data)
                self._put(data)
            self._put(bytes(-size % BLOCK))
        finally:
            os.close(fd)

    # ---- headers --------------------------------------------------------------------------

    def _header(self, path: bytes, found: os.stat_result, fd: int, size: int = 0) -> None:
        kind = b"5" if stat.S_ISDIR(found.st_mode) else b"0"
        self._line(
            path,
            kind,
            stat.S_IMODE(found.st_mode),
            int(found.st_mtime),
            self._shift(found.st_uid, found.st_gid),
            size,
            xattrs=dict(self._xattrs(fd)),
        )

    def _xattrs(self, fd: int) -> Iterator[tuple[str, bytes]]:
        try:
            names = os.listxattr(fd)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return
            raise
        for name in sorted(names):
            if name.startswith(_LEFT_OUT):
                continue
            value = os.getxattr(fd, name)
            yield name, _unbound(value) if name == _CAPABILITY else value

    @staticmethod
    def _has(fd: int, mark: str) -> bool:
        try:
            return os.getxattr(fd, mark) in (b"y", b"x", b"")
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return False
            raise

    def _line(
        self,
        path: bytes,
        kind: bytes,
        mode: int,
        mtime: int,
        owner: tuple[int, int],
        size: int,
        *,
        link: bytes = b"",
        device: int = 0,
        xattrs: dict[str, bytes] | None = None,
    ) -> None:
        """Write a header, and one of PAX before it for what does not fit."""
        records: dict[bytes, bytes] = {
            b"SCHILY.xattr." + name.encode(errors="surrogateescape"): value
            for name, value in (xattrs or {}).items()
        }
        if len(path) > 100:
            records[b"path"] = path
        if len(link) > 100:
            records[b"linkpath"] = link
        numbers = {}
        for name, value, most in (
            (b"uid", owner[0], 8**7),
            (b"gid", owner[1], 8**7),
            (b"size", size, 8**11),
            (b"mtime", mtime, 8**11),
        ):
            fits = 0 <= value < most
            numbers[name] = value if fits else 0
            if not fits:
                records[name] = str(value).encode()
        if records:
            raw = b"".join(record(key, records[key]) for key in sorted(records))
            self._put(block(b"PaxHeader", b"x", 0o644, 0, 0, len(raw), 0))
            self._put(raw + bytes(-len(raw) % BLOCK))
        self._put(
            block(
                path[:100],
                kind,
                mode,
                numbers[b"uid"],
                numbers[b"gid"],
                numbers[b"size"],
                numbers[b"mtime"],
                link[:100],
                device,
            )
        )


def _unbound(value: bytes) -> bytes:
    """A file's capabilities without the user namespace that they are good in: version 2 of 3."""
    if len(value) == 24 and value[3] == 3:
        return value[:3] + b"\x02" + value[4:20]
    return value


__all__ = ["Packed", "pack_changes", "pack_tree"]
