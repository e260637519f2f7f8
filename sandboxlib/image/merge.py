"""
Layers copied into one folder, as an overlay of them would show them.

For hosts whose kernel gives no overlay. What lies on a file system with reflinks takes no room until it
is written to; nothing is linked to the layers, which others use too.

Kernel: Documentation/filesystems/overlayfs.rst; ioctl_ficlone(2), copy_file_range(2), lseek(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat as modes
from collections.abc import Callable, Iterable
from contextlib import closing

from sandboxlib.image.lowers import Layers, descend
from sandboxlib.kernel.descriptor import openat
from sandboxlib.kernel.syscall import failed

_FICLONE = 0x40049409
_CHUNK = 1 << 24
_WHY = "copy the layers"
#: What an overlay keeps for itself, or no file of a sandbox may have.
_OWN = ("trusted.overlay.", "user.overlay.", "security.selinux", "security.ima", "security.evm")

Shift = Callable[[int, int], tuple[int, int]]


def merge(
    lowers: Iterable[int], target: int, mark: str, shift: Shift | None, cancelled: Callable[[], None]
) -> None:
    """
    Copy what the folders *lowers*, the topmost first, show together into the empty folder *target*.

    Args:
        lowers: Descriptors; nothing in them is changed, no link in them followed.
        target: Descriptor; ours alone.
        mark: The attribute of a folder that hides what is below it.
        shift: The owner that a file is to have for the one that it has; None where it is the copying user's.
        cancelled: Called for each file; may raise.

    Raises:
        KernelError: Something cannot be read or made; what has been made stays.
    """
    copier = _Copier(target, shift)
    tops = tuple(lowers)
    folders: list[tuple[bytes, tuple[int, ...]]] = [(b"", tops)]
    made: list[tuple[bytes, int, os.stat_result]] = []
    for path, below in folders:
        with closing(Layers(mark)) as layers, descend(target, path) as out:
            layers.open(below, path)
            for name in layers.names():
                cancelled()
                found, merged = layers.look(name)
                assert found is not None
                inside = path + b"/" + name if path else name
                holder = layers.holder(name)
                try:
                    if modes.S_ISDIR(found.st_mode):
                        os.mkdir(name, 0o700, dir_fd=out)
                        folders.append((inside, merged))
                        made.append((inside, holder, found))
                        copier.attributes_of_folder(holder, name, out)
                    else:
                        copier.copy(holder, name, out, inside, found)
                except OSError as error:
                    raise failed(error, f'copy("/{os.fsdecode(inside)}")', _WHY) from None
    # From below: what is made in a folder changes its times.
    for path, _, found in reversed(made):
        with descend(target, path) as fd:
            copier.settle(fd, found)


def dress(folder: int, mode: int, mtime: int | None) -> None:
    """Give the open folder, in which all is made, its mode and time; the time in nanoseconds."""
    os.fchmod(folder, mode)
    if mtime is not None:
        os.utime(folder, ns=(mtime, mtime))


class _Copier:
    def __init__(self, target: int, shift: Shift | None) -> None:
        self._target = target
        self._shift = shift
        self._linked: dict[tuple[int, int], bytes] = {}

    def copy(self, holder: int, name: bytes, out: int, path: bytes, found: os.stat_result) -> None:
        """Copy one thing that is no folder."""
        key = found.st_dev, found.st_ino
        if found.st_nlink > 1 and key in self._linked:
            os.link(self._linked[key], name, src_dir_fd=self._target, dst_dir_fd=out, follow_symlinks=False)
            return
        if modes.S_ISREG(found.st_mode):
            self._file(holder, name, out, found)
        elif modes.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=holder), name, dir_fd=out)
            self._owner(name, out, found)
            os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=out, follow_symlinks=False)
        else:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=out)
            self._owner(name, out, found)
            os.chmod(name, modes.S_IMODE(found.st_mode), dir_fd=out)
            os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=out)
        if found.st_nlink > 1:
            self._linked[key] = path

    def _file(self, holder: int, name: bytes, out: int, found: os.stat_result) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with (
            openat(name, os.O_RDONLY | os.O_NOFOLLOW, at=holder) as source,
            openat(name, flags, 0o600, at=out) as fd,
        ):
            _content(source, fd, found.st_size)
            self.settle(fd, found, source)

    def attributes_of_folder(self, holder: int, name: bytes, out: int) -> None:
        """Copy a folder's extended attributes."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        with openat(name, flags, at=holder) as source, openat(name, flags, at=out) as fd:
            _attributes(source, fd)

    def settle(self, fd: int, found: os.stat_result, source: int = -1) -> None:
        """
        Give what is open its owner, mode, attributes of *source* and times.

        The owner comes first: who changes it takes bits of the mode, and file capabilities.
        """
        self._owner(fd, None, found)
        os.fchmod(fd, modes.S_IMODE(found.st_mode))
        if source >= 0:
            _attributes(source, fd)
        os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))

    def _owner(self, what: bytes | int, out: int | None, found: os.stat_result) -> None:
        if self._shift is None:
            return
        uid, gid = self._shift(found.st_uid, found.st_gid)
        try:
            if isinstance(what, int):
                os.fchown(what, uid, gid)
            else:
                os.chown(what, uid, gid, dir_fd=out, follow_symlinks=False)
        except OSError as error:
            # Nobody in the map of who copies: it stays his.
            if error.errno != errno.EINVAL:
                raise


def _content(source: int, target: int, size: int) -> None:
    """By reflink where the file system has them, else what is no hole."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM):
            raise
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            count = os.sendfile(target, source, at, min(end - at, _CHUNK))
            if not count:
                return  # shorter than it was
            at += count


def _attributes(source: int, target: int) -> None:
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return
        raise
    for name in names:
        if not name.startswith(_OWN):
            os.setxattr(target, name, os.getxattr(source, name))


__all__ = ["Shift", "dress", "merge"]
