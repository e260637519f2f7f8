"""
Entries of a layer, made as files in a folder.

Nothing is looked up by a path that could have a link in it: names are resolved to folders by
`Folders`, and what is made is made in an open folder, by its last name, anew.

Spec: image-spec layer.md.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable
from typing import final

from sandboxlib.errors import (
    ImageError,
    SandboxError,
    ViolationError,
)
from sandboxlib.image import attributes, removal, tarstream
from sandboxlib.image.folders import LONGEST_NAME, LONGEST_PATH, Folder, Folders, is_whiteout, look
from sandboxlib.image.owner import Owner, OwnerError
from sandboxlib.image.policy import Policy
from sandboxlib.image.source import Source
from sandboxlib.image.tarstream import Entry, shown
from sandboxlib.kernel.syscall import failed

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
#: Of AUFS, which layers were once written from: its own files, not the image's.
_AUFS = b".wh..wh."

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SET_ID = stat.S_ISUID | stat.S_ISGID
_NO_ATTRIBUTES = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)
_COPY = 1 << 20
#: Files from this size on are looked at for holes, and in what pieces.
_HOLED, _HOLE = 1 << 20, 1 << 16
_ZEROS = bytes(_HOLE)


def parts_of(name: bytes) -> list[bytes]:
    """
    Split a name in a layer into its parts; it begins at the root, whether it says so or not.

    Raises:
        ViolationError: It goes upwards, or is none.
    """
    if b"\0" in name:
        raise ViolationError("a name with a zero byte in it", shown(name))
    if len(name) > LONGEST_PATH:
        raise ViolationError(f"a name of more than {LONGEST_PATH} bytes", shown(name))
    if not name:
        raise ViolationError("an entry without a name")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    for part in parts:
        if part == b"..":
            raise ViolationError("a name that leads upwards", shown(name))
        if len(part) > LONGEST_NAME:
            raise ViolationError(f"a part of a name of more than {LONGEST_NAME} bytes", shown(name))
    return parts


@final
class Extractor:
    """
    Makes the entries of one layer.

    Attributes:
        dropped: What was left out, counted: names of attributes, and ``device``.
        size: Bytes of all files.
    """

    def __init__(self, folders: Folders, source: Source, owner: Owner, policy: Policy) -> None:
        self._folders = folders
        self._source = source
        self._policy = policy
        self._chown = owner.kind != "single"
        self._in_range = owner.kind == "range"
        self.dropped: Counter[str] = Counter()
        self.size = 0

    def make(self, entry: Entry, data: Iterable[bytes | memoryview]) -> None:
        """
        Make what *entry* says.

        Raises:
            ViolationError: It would reach outside, or is not allowed.
            ImageError: It makes no sense.
            KernelError: It cannot be made.
        """
        try:
            self._make(entry, data)
        except SandboxError:
            raise
        except OSError as error:
            call = f'unpack "{shown(entry.name)}"'
            if error.errno == errno.EINVAL and self._in_range:
                raise OwnerError(
                    f'the owner {entry.uid}:{entry.gid} of "{shown(entry.name)}"',
                    "a subordinate id for it",
                    "give the user a larger range in /etc/subuid and /etc/subgid",
                ) from None
            raise failed(error, call, "unpack a layer") from None

    def _make(self, entry: Entry, data: Iterable[bytes | memoryview]) -> None:
        parts = parts_of(entry.name)
        folders = self._folders
        folders.now = entry.mtime
        if folders.first is None:
            folders.first = entry.mtime
        if not parts:
            if entry.kind != tarstream.FOLDER:
                raise ViolationError("the root of a layer that is no folder", shown(entry.name))
            self._finish_folder(folders.fds[b""], b".", b"", entry)
            return
        if WHITEOUT in entry.name and any(part.startswith(WHITEOUT) for part in parts):
            self._whiteout(parts)
            return
        name = parts.pop()
        parent = folders.path_of(b"/".join(parts))
        path = parent + b"/" + name if parent else name
        if len(path) > LONGEST_PATH:
            raise ViolationError(f"a path of more than {LONGEST_PATH} bytes", shown(entry.name))
        kind = entry.kind
        if kind == tarstream.FILE:
            self._file(parent, name, path, entry, data)
        elif kind == tarstream.FOLDER:
            self._folder(parent, name, path, entry)
        elif kind == tarstream.LINK:
            self._link(parent, name, path, entry)
        else:
            self._special(parent, name, path, entry)

    # --- whiteouts ---

    def _whiteout(self, parts: list[bytes]) -> None:
        """Carry out the mark that a name is."""
        if any(part.startswith(_AUFS) and part != OPAQUE for part in parts):
            self.dropped["aufs"] += 1
            return
        *above, last = parts
        if any(part.startswith(WHITEOUT) for part in above):
            raise ViolationError("a name below one that is kept for whiteouts", shown(b"/".join(parts)))
        folders = self._folders
        if last == OPAQUE:
            folders.hide(folders.path_of(b"/".join(above)))
            return
        hidden = last[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise ViolationError("a whiteout of nothing that can be hidden", shown(b"/".join(parts)))
        parent = folders.path_of(b"/".join(above))
        path = parent + b"/" + hidden if parent else hidden
        found = look(folders.fds[parent], hidden)
        if found is None:
            folders.white_out(parent, hidden, path, useful=self._policy.whiteouts == "useful")
        elif stat.S_ISDIR(found.st_mode):
            # Of this layer, which whiteouts do not reach: only what is below is hidden.
            folders.hide(path)

    # --- each kind ---

    def _clear(self, fd: int, name: bytes, path: bytes) -> None:
        """Remove what this layer has had at a name."""
        found = look(fd, name)
        if found is None:
            return
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=fd)
            if stat.S_ISLNK(found.st_mode):
                self._folders.changed()
            return
        parent = path[: -len(name)]
        removal.remove(fd, name, lambda gone: self._folders.forget(parent + gone))
        self._folders.changed()

    def _file(
        self, parent: bytes, name: bytes, path: bytes, entry: Entry, data: Iterable[bytes | memoryview]
    ) -> None:
        folder = self._folders.fds[parent]
        try:
            fd = os.open(name, _NEW, 0o600, dir_fd=folder)
        except FileExistsError:
            self._clear(folder, name, path)
            fd = os.open(name, _NEW, 0o600, dir_fd=self._folders.fds[parent])
        try:
            if entry.holes is None:
                _write_whole(fd, entry.size, data)
            else:
                _write_parts(fd, entry, data)
            self.size += entry.size
            self._dress(fd, entry)
        finally:
            os.close(fd)

    def _dress(self, fd: int, entry: Entry) -> None:
        """Give a file its owner, mode, attributes and time: in this order, for each may undo a later one."""
        if self._chown:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode if self._policy.setuid else entry.mode & ~_SET_ID)
        if entry.xattrs:
            self._attributes(fd, entry.xattrs)
        os.utime(fd, ns=(entry.mtime, entry.mtime))

    def _attributes(self, target: int | bytes, values: dict[bytes, bytes]) -> None:
        for name, value in values.items():
            text = name.decode(errors="backslashreplace")
            if not attributes.allowed(name) or (
                name == b"security.capability" and not (self._chown and self._policy.setuid)
            ):
                self.dropped[text] += 1
                continue
            attributes.check(name, value)
            kept = attributes.portable(name, value) if self._in_range else value
            try:
                os.setxattr(target, name, kept, follow_symlinks=isinstance(target, int))
            except OSError as error:
                if error.errno == errno.EINVAL and name == b"security.capability":
                    raise ImageError("file capabilities that are none") from None
                # The file system has none, or a link cannot have one.
                if error.errno not in _NO_ATTRIBUTES:
                    raise
                self.dropped[text] += 1

    def _folder(self, parent: bytes, name: bytes, path: bytes, entry: Entry) -> None:
        folders = self._folders
        fd = folders.fds[parent]
        try:
            os.mkdir(name, 0o700, dir_fd=fd)
        except FileExistsError:
            found = look(fd, name)
            if found is None or not stat.S_ISDIR(found.st_mode):
                # What this layer had there hid what is below, and so does what comes in its place.
                if found is not None and stat.S_ISLNK(found.st_mode):
                    folders.changed()
                    fd = folders.fds[parent]
                folders.make(parent, name, path, hides=True)
        self._finish_folder(fd, name, path, entry)

    def _finish_folder(self, fd: int, name: bytes, path: bytes, entry: Entry) -> None:
        mode = entry.mode if self._policy.setuid else entry.mode & ~_SET_ID
        self._folders.made[path] = Folder(mode, entry.mtime)
        if self._chown:
            os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
        if entry.xattrs:
            self._attributes(attributes.path_of(fd, name), entry.xattrs)

    def _link(self, parent: bytes, name: bytes, path: bytes, entry: Entry) -> None:
        if not entry.target:
            raise ViolationError("a hard link to nothing", shown(entry.name))
        parts = parts_of(entry.target)
        if not parts or any(part.startswith(WHITEOUT) for part in parts):
            raise ViolationError(f"a hard link to {shown(entry.target)}", shown(entry.name))
        folders = self._folders
        last = parts.pop()
        above = folders.path_of(b"/".join(parts))
        target = above + b"/" + last if above else last
        if target == path:
            return
        found = look(folders.fds[above], last)
        if found is None:
            self._copy_up(above, last, target, entry)
        elif stat.S_ISDIR(found.st_mode) or is_whiteout(found):
            raise ImageError(f"{shown(entry.name)}: a hard link to {shown(entry.target)}, which is no file")
        self._clear(folders.fds[parent], name, path)
        try:
            source = os.open(b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folders.fds[above])
            try:
                os.link(last, name, src_dir_fd=source, dst_dir_fd=folders.fds[parent], follow_symlinks=False)
            finally:
                os.close(source)
        except FileNotFoundError:
            # It was in the folder that the link took the place of.
            raise ImageError(
                f"{shown(entry.name)}: a hard link in place of its own target {shown(entry.target)}"
            ) from None

    def _copy_up(self, parent: bytes, name: bytes, path: bytes, entry: Entry) -> None:
        """Copy a file of a layer below into this one, as overlayfs does when a link to it is made."""
        found = self._folders.find_below(path)
        if found is None:
            raise ImageError(f"{shown(entry.name)}: a hard link to {shown(entry.target)}, which is not there")
        lower, state = found
        try:
            if stat.S_ISDIR(state.st_mode):
                raise ImageError(
                    f"{shown(entry.name)}: a hard link to {shown(entry.target)}, which is a folder"
                )
            self._source.spend(state.st_size)
            copy = Entry(tarstream.FILE, path)
            copy.mode, copy.uid, copy.gid = stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid
            copy.mtime, copy.size = state.st_mtime_ns, state.st_size
            copy.xattrs = attributes.read_all(attributes.path_of(lower, name))
            if stat.S_ISREG(state.st_mode):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=lower)
                try:
                    self._file(parent, name, path, copy, iter(lambda: os.read(fd, _COPY), b""))
                finally:
                    os.close(fd)
                return
            copy.device = (os.major(state.st_rdev), os.minor(state.st_rdev))
            if stat.S_ISLNK(state.st_mode):
                copy.kind, copy.target = tarstream.SYMLINK, os.readlink(name, dir_fd=lower)
            elif stat.S_ISFIFO(state.st_mode):
                copy.kind = tarstream.FIFO
            else:
                copy.kind = tarstream.CHAR if stat.S_ISCHR(state.st_mode) else tarstream.BLOCK_DEVICE
            self._special(parent, name, path, copy)
        finally:
            os.close(lower)

    def _special(self, parent: bytes, name: bytes, path: bytes, entry: Entry) -> None:
        """Make a symbolic link, a FIFO or a device."""
        is_device = entry.kind in (tarstream.CHAR, tarstream.BLOCK_DEVICE)
        if is_device:
            if self._policy.devices == "refuse":
                raise ViolationError("a device", shown(entry.name))
            # Number 0/0 is overlayfs's whiteout, for which layers have a way of their own.
            if self._policy.devices == "skip" or entry.device == (0, 0):
                self.dropped["device"] += 1
                return
        self._clear(self._folders.fds[parent], name, path)
        fd = self._folders.fds[parent]
        mode = entry.mode if self._policy.setuid else entry.mode & ~_SET_ID
        if entry.kind == tarstream.SYMLINK:
            if not entry.target or b"\0" in entry.target or len(entry.target) > LONGEST_PATH:
                raise ViolationError("a symbolic link to nothing that is a path", shown(entry.name))
            os.symlink(entry.target, name, dir_fd=fd)
        elif entry.kind == tarstream.FIFO:
            os.mkfifo(name, 0o600, dir_fd=fd)
        else:
            kind = stat.S_IFCHR if entry.kind == tarstream.CHAR else stat.S_IFBLK
            number = _device(entry)
            os.mknod(name, kind | 0o600, number, dir_fd=fd)
        if self._chown:
            os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
        if entry.kind != tarstream.SYMLINK:
            os.chmod(name, mode, dir_fd=fd)
        if entry.xattrs:
            self._attributes(attributes.path_of(fd, name), entry.xattrs)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=fd, follow_symlinks=False)


def _device(entry: Entry) -> int:
    major, minor = entry.device
    # What the kernel's own number has room for.
    if major >= 1 << 12 or minor >= 1 << 20:
        raise ImageError(f"{shown(entry.name)}: a device number that is too large")
    return os.makedev(major, minor)


def _write(fd: int, piece: bytes | memoryview) -> None:
    done = os.write(fd, piece)
    while done < len(piece):
        # Interrupted, or more than 2 GiB at once.
        piece = piece[done:]
        done = os.write(fd, piece)


def _write_whole(fd: int, size: int, data: Iterable[bytes | memoryview]) -> None:
    """Write a file; long runs of zeros become holes, as they may have been where it was packed."""
    skipped = False
    for piece in data:
        if size < _HOLED:
            _write(fd, piece)
            continue
        for at in range(0, len(piece), _HOLE):
            part = piece[at : at + _HOLE]
            # Few that are no hole get further than to the first comparison.
            skipped = not part[0] and not part[-1] and bytes(part) == _ZEROS[: len(part)]
            if skipped:
                os.lseek(fd, len(part), os.SEEK_CUR)
            else:
                _write(fd, part)
    if skipped:
        os.ftruncate(fd, size)


def _write_parts(fd: int, entry: Entry, data: Iterable[bytes | memoryview]) -> None:
    """Write the parts of a file with holes, each to its place."""
    os.ftruncate(fd, entry.size)
    parts = iter([part for part in entry.holes or () if part[1]])
    at = left = 0
    for piece in data:
        rest = memoryview(piece)
        while rest:
            if not left:
                at, left = next(parts)
                os.lseek(fd, at, os.SEEK_SET)
            now = rest[:left]
            _write(fd, now)
            left -= len(now)
            rest = rest[len(now) :]


__all__ = ["OPAQUE", "WHITEOUT", "Extractor", "Policy", "parts_of"]
