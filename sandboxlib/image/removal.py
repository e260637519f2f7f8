"""Trees removed, however deep they are and whatever their modes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

#: Folders that are open at once; what is deeper is brought up before it is emptied.
_DEEP = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(folder: int, name: bytes, gone: Callable[[bytes], None] | None = None) -> None:
    """
    Remove *name* in the open *folder* with all that is below it; links are not followed.

    Args:
        folder: Borrowed.
        name: One name.
        gone: Called with the path, from *name* on, of each folder that is removed.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be removed.
    """
    if not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
        os.unlink(name, dir_fd=folder)
        return
    queue = [(name, name)]
    while queue:
        top, shown = queue.pop()
        _remove_folder(folder, top, shown, gone, queue)


def _open(folder: int, name: bytes) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except PermissionError:
        # Its owner may still change the mode; not through a link, should one have come there.
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
        finally:
            os.close(handle)
        return os.open(name, _FOLDER, dir_fd=folder)


def _writable(fd: int) -> None:
    mode = os.fstat(fd).st_mode
    if mode & 0o700 != 0o700:
        os.fchmod(fd, stat.S_IMODE(mode) | 0o700)


def _remove_folder(
    base: int, top: bytes, path: bytes, gone: Callable[[bytes], None] | None, queue: list[tuple[bytes, bytes]]
) -> None:
    """Remove one folder of *base*; what lies too deep goes to *base* under new names, and into *queue*."""
    # Each: the descriptor, its name in its parent, its path for `gone`, the folders that are left in it.
    stack: list[tuple[int, bytes, bytes, list[bytes]]] = []
    try:
        _enter(stack, base, top, path)
        while stack:
            fd, name, here, left = stack[-1]
            if left:
                inner = left.pop()
                if len(stack) < _DEEP:
                    _enter(stack, fd, inner, here + b"/" + inner)
                else:
                    moved = b".removed-" + os.urandom(8).hex().encode()
                    os.rename(inner, moved, src_dir_fd=fd, dst_dir_fd=base)
                    queue.append((moved, here + b"/" + inner))
                continue
            os.close(stack.pop()[0])
            os.rmdir(name, dir_fd=stack[-1][0] if stack else base)
            if gone is not None:
                gone(here)
    finally:
        for entry in stack:
            os.close(entry[0])


def _enter(stack: list[tuple[int, bytes, bytes, list[bytes]]], parent: int, name: bytes, path: bytes) -> None:
    fd = _open(parent, name)
    folders: list[bytes] = []
    stack.append((fd, name, path, folders))
    _writable(fd)
    for each in map(os.fsencode, os.listdir(fd)):
        try:
            os.unlink(each, dir_fd=fd)
        except OSError as error:
            # Linux says EISDIR; EPERM is POSIX's, and a file that may not be removed says it too.
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            if not stat.S_ISDIR(os.lstat(each, dir_fd=fd).st_mode):
                raise
            folders.append(each)


__all__ = ["remove"]
