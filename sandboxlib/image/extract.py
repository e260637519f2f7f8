"""
Entries of a layer, made below a folder.

Spec: image-spec layer.md, "Applying Changesets".
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Literal

import attrs

from sandboxlib.errors import ImageError, KernelError, UnsupportedError, ViolationError
from sandboxlib.image import tarstream
from sandboxlib.image.owner import Owner
from sandboxlib.image.paths import Below, Folders, is_whiteout, parts_of, shown
from sandboxlib.image.removal import remove_at
from sandboxlib.image.tarstream import Entry, TarStream
from sandboxlib.kernel.files import open_in_root

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_COPY = 1 << 20


@attrs.frozen
class Limits:
    """
    What a layer may be, for it is somebody else's.

    Attributes:
        size: Bytes of all files.
        entries: How many.
        ratio: Bytes that one byte of the file may become; the first 64 MiB are free.
        devices: What happens with device nodes: ``skip``, ``make`` (root only) or ``refuse``.
        setuid: Keep setuid and setgid bits. In a sandbox they have no effect unless it goes without
            no_new_privs.
    """

    size: int = 64 << 30
    entries: int = 4_000_000
    ratio: int = 1000
    devices: Literal["skip", "make", "refuse"] = "skip"
    setuid: bool = True


class Extraction:
    """
    Makes entries one by one.

    Attributes:
        size: Bytes of files so far.
        files: Entries so far.
        dropped: Device nodes and attributes that were left out.
    """

    def __init__(self, top: int, owner: Owner, lowers: Sequence[int], limits: Limits) -> None:
        self._folders = Folders(top, owner, lowers)
        self._owner = owner
        self._limits = limits
        # Folders whose mode and time are set in the end, when all in them is made.
        self._later: dict[bytes, Entry] = {}
        self.size = self.files = self.dropped = 0

    def close(self) -> None:
        """Let go of what is open."""
        self._folders.close()

    def add(self, entry: Entry, tar: TarStream) -> None:
        """
        Make one.

        Raises:
            ImageError: It cannot be.
            ViolationError: It would lead elsewhere, or is too large.
        """
        self.files += 1
        if self.files > self._limits.entries:
            raise ViolationError(f"a layer has more than {self._limits.entries} entries")
        parts = parts_of(entry.name)
        try:
            if not parts:
                if entry.kind == tarstream.FOLDER:
                    self._describe(self._folders.open(()), b"", entry)
                return
            parent = self._folders.open(parts[:-1])
            if parts[-1].startswith(_WHITEOUT):
                self._white(parent, parts[-1], entry)
            else:
                self._make(parent, parts, entry, tar)
        except KernelError:
            raise
        except OSError as error:
            raise self._explained(error, entry) from None

    def _explained(self, error: OSError, entry: Entry) -> Exception:
        name = shown(entry.name)
        if error.errno in (
            errno.ENAMETOOLONG,
            errno.ENOTDIR,
            errno.ELOOP,
            errno.EISDIR,
            errno.EEXIST,
            errno.EMLINK,
        ):
            return ImageError(f"a layer has {name!r}, which cannot be made: {error.strerror}")
        if error.errno == errno.EINVAL and self._owner.kind == "range":
            return UnsupportedError(
                f"a file of user {entry.uid} and group {entry.gid} ({name})",
                "as many subordinate IDs",
                "give the user a longer range in /etc/subuid and /etc/subgid",
            )
        return KernelError(error.errno or 0, f"make {name!r}", "unpack a layer")

    # ---- kinds ----------------------------------------------------------------------------

    def _make(self, parent: int, parts: tuple[bytes, ...], entry: Entry, tar: TarStream) -> None:
        name, path = parts[-1], b"/".join(parts)
        if entry.kind in (tarstream.CHARACTER, tarstream.DEVICE) and self._limits.devices != "make":
            if self._limits.devices == "refuse":
                raise ViolationError("a layer has a device node", shown(path))
            self.dropped += 1
            return
        if entry.kind == tarstream.FOLDER:
            self._folder(parent, name, path, entry)
            return
        if entry.kind == tarstream.LINK:
            self._link(parent, name, path, entry)
            return
        self._clear(parent, name, path)
        if entry.kind == tarstream.FILE:
            self._file(parent, name, entry, tar)
            return
        if entry.kind == tarstream.SYMLINK:
            if not entry.link or b"\0" in entry.link:
                raise ImageError(f"a layer has {shown(path)!r} as a link to nothing")
            os.symlink(entry.link, name, dir_fd=parent)
        elif entry.kind == tarstream.FIFO:
            os.mkfifo(name, 0o600, dir_fd=parent)
        else:
            kind = stat.S_IFCHR if entry.kind == tarstream.CHARACTER else stat.S_IFBLK
            if entry.device == (0, 0):
                raise ViolationError("a layer has a device node that would be a whiteout", shown(path))
            os.mknod(name, kind | 0o600, os.makedev(*entry.device), dir_fd=parent)
        self._own(name, parent, entry)
        if entry.kind != tarstream.SYMLINK:
            os.chmod(name, self._mode(entry), dir_fd=parent)
        self._attributes(f"/proc/self/fd/{parent}/".encode() + name, entry)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _folder(self, parent: int, name: bytes, path: bytes, entry: Entry) -> None:
        hidden = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                hidden = is_whiteout(found)
                self._clear(parent, name, path)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _FOLDER, dir_fd=parent)
        try:
            self._describe(fd, path, entry)
            if hidden:
                os.setxattr(fd, self._owner.marks + "opaque", b"y")
        finally:
            os.close(fd)

    def _describe(self, fd: int, path: bytes, entry: Entry) -> None:
        self._own(fd, None, entry)
        # Until the end it can be written by whoever unpacks.
        os.fchmod(fd, 0o700)
        self._attributes(fd, entry)
        self._later[path] = entry

    def _file(self, parent: int, name: bytes, entry: Entry, tar: TarStream) -> None:
        self._count(entry.size, entry)
        fd = os.open(name, _NEW, 0o600, dir_fd=parent)
        try:
            if entry.pieces is None:
                for part in tar.data():
                    _write(fd, part)
            else:
                self._sparse(fd, entry, tar)
            self._own(fd, None, entry)
            os.fchmod(fd, self._mode(entry))
            self._attributes(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _count(self, size: int, entry: Entry) -> None:
        self.size += size
        if self.size > self._limits.size:
            raise ViolationError(
                f"a layer has files of more than {self._limits.size} bytes", shown(entry.name)
            )

    @staticmethod
    def _sparse(fd: int, entry: Entry, tar: TarStream) -> None:
        assert entry.pieces is not None
        os.ftruncate(fd, entry.size)
        left = iter(entry.pieces)
        offset = room = 0
        for part in tar.data():
            rest = part
            while rest:
                while not room:
                    offset, room = next(left)
                now, rest = rest[:room], rest[room:]
                os.lseek(fd, offset, os.SEEK_SET)
                _write(fd, now)
                offset, room = offset + len(now), room - len(now)

    def _link(self, parent: int, name: bytes, path: bytes, entry: Entry) -> None:
        target = parts_of(entry.link, "hard link")
        if not target:
            raise ImageError(f"a layer has {shown(path)!r} as a hard link to its root")
        if target == tuple(path.split(b"/")):
            return
        # A copy, since the other folder may be let go of when the next one is opened.
        held = os.dup(parent)
        try:
            other = self._folders.open(target[:-1])
            try:
                found = os.stat(target[-1], dir_fd=other, follow_symlinks=False)
            except FileNotFoundError:
                below = self._folders.below(target)
                if below is None:
                    link = shown(entry.link)
                    raise ImageError(
                        f"a layer has {shown(path)!r} as a hard link to {link!r}, which is not there"
                    ) from None
                self._copy_up(other, target[-1], below)
                found = os.stat(target[-1], dir_fd=other, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode) or is_whiteout(found):
                raise ImageError(f"a layer has {shown(path)!r} as a hard link to what is no file")
            if self._is_same(held, name, found):
                return
            self._clear(held, name, path)
            # The folder may have been let go of with what was cleared.
            other = self._folders.open(target[:-1])
            os.link(target[-1], name, src_dir_fd=other, dst_dir_fd=held, follow_symlinks=False)
        finally:
            os.close(held)

    @staticmethod
    def _is_same(parent: int, name: bytes, found: os.stat_result) -> bool:
        try:
            return os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), found)
        except FileNotFoundError:
            return False

    def _copy_up(self, parent: int, name: bytes, below: Below) -> None:
        """Have a file of a layer below in this one, to link to."""
        found = below.found
        if stat.S_ISLNK(found.st_mode):
            os.symlink(Folders.read_link(below), name, dir_fd=parent)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=parent, follow_symlinks=False)
            os.utime(name, ns=(found.st_mtime_ns, found.st_mtime_ns), dir_fd=parent, follow_symlinks=False)
            return
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(
                f"a layer has a hard link to {shown(below.path)!r}, which is no plain file below"
            )
        source = Folders.open_below(below)
        try:
            fd = os.open(name, _NEW, 0o600, dir_fd=parent)
            try:
                self.size += found.st_size
                offset = 0
                while sent := os.sendfile(fd, source, offset, _COPY):
                    offset += sent
                if self._owner.kind != "single":
                    os.fchown(fd, found.st_uid, found.st_gid)
                os.fchmod(fd, stat.S_IMODE(found.st_mode))
                for key in os.listxattr(source):
                    if not key.startswith((self._owner.marks, "security.selinux")):
                        os.setxattr(fd, key, os.getxattr(source, key))
                os.utime(fd, ns=(found.st_mtime_ns, found.st_mtime_ns))
            finally:
                os.close(fd)
        finally:
            os.close(source)

    # ---- what all have --------------------------------------------------------------------

    def _white(self, parent: int, name: bytes, entry: Entry) -> None:
        if name == _OPAQUE:
            os.setxattr(parent, self._owner.marks + "opaque", b"y")
            return
        gone = name[len(_WHITEOUT) :]
        if gone.startswith(_WHITEOUT):
            return  # AUFS's own notes
        if gone in (b"", b".", b".."):
            raise ViolationError("a layer has a whiteout of no name", shown(entry.name))
        try:
            found = os.stat(gone, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            os.mknod(gone, stat.S_IFCHR, 0, dir_fd=parent)
            return
        # It is about the layers below: what this one has stays.
        if stat.S_ISDIR(found.st_mode):
            self._folders.hide(gone, parent)

    def _clear(self, parent: int, name: bytes, path: bytes) -> None:
        """Take away what an earlier entry of this layer has left at this name."""
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        remove_at(parent, name)
        self._folders.forget_below(path, parent)
        for known in [known for known in self._later if known == path or known.startswith(path + b"/")]:
            del self._later[known]

    def _own(self, what: int | bytes, parent: int | None, entry: Entry) -> None:
        if self._owner.kind == "single":
            return
        if isinstance(what, int):
            os.fchown(what, entry.uid, entry.gid)
        else:
            os.chown(what, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)

    def _mode(self, entry: Entry) -> int:
        return entry.mode if self._limits.setuid else entry.mode & 0o1777

    def _attributes(self, what: int | bytes, entry: Entry) -> None:
        for key, value in entry.xattrs.items():
            # Marks of overlayfs would lead to other files.
            if key.startswith(("trusted.overlay.", "user.overlay.", "trusted.fuse")):
                self.dropped += 1
                continue
            try:
                os.setxattr(what, key, value, follow_symlinks=False) if isinstance(
                    what, bytes
                ) else os.setxattr(what, key, value)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                # Labels of another machine's, or what a user may not set.
                self.dropped += 1

    def finish(self) -> None:
        """Give all folders the mode and the time that they are to have."""
        self._folders.forget()
        for path, found in self._folders.made.items():
            if path not in self._later:
                self._finish(
                    path, stat.S_IMODE(found.st_mode), found.st_mtime_ns, (found.st_uid, found.st_gid)
                )
        # What is deeper first: the others may not be entered then.
        for path in sorted(self._later, key=lambda path: path.count(b"/") + bool(path), reverse=True):
            entry = self._later[path]
            self._finish(path, self._mode(entry), entry.mtime, None)

    def _finish(self, path: bytes, mode: int, mtime: int, owner: tuple[int, int] | None) -> None:
        try:
            fd = open_in_root(self._folders.top, path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return  # a later entry took its place
            raise
        try:
            if owner is not None and self._owner.kind != "single":
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


Tell = Callable[[int], object]

__all__ = ["Extraction", "Limits"]
