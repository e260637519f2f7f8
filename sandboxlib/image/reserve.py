"""
Room that is kept for index.json: on a disk that is full, what is removed can be written down all the same.

It is a file of its own, which takes the place of the index in one step, and the old index is kept in its
place. As long as the index does not grow that needs no room at all.

Kernel: renameat2(2), RENAME_EXCHANGE; fallocate(2).
"""

from __future__ import annotations

import contextlib
import errno
import os

from sandboxlib.errors import KernelError
from sandboxlib.image.blobs import sync_folder, write_file
from sandboxlib.kernel.descriptor import AT_FDCWD, openat
from sandboxlib.kernel.syscall import failed, syscall

#: What a disk says that has no room left, or none for this user.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: The file, in the folder of the store.
NAME = "reserve"
_SIZE = 1 << 16
_EXCHANGE = 2


def keep(store: str) -> None:
    """
    Have as much room as the index takes, and some; it is there afterwards, or there is none.

    Who does so has the index locked.
    """
    size = _SIZE
    with contextlib.suppress(OSError):
        size = max(size, os.stat(os.path.join(store, "index.json")).st_size)
    with (
        contextlib.suppress(KernelError),
        openat(os.path.join(store, NAME), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW) as fd,
        contextlib.suppress(OSError),
    ):
        found = os.fstat(fd)
        if found.st_size < size or found.st_blocks * 512 < size:
            os.posix_fallocate(fd, 0, size)


def replace(store: str, raw: bytes, partial: str) -> None:
    """
    Have *raw* for the index, in one step.

    Raises:
        KernelError: It cannot be written, and there is no room kept for as much.
    """
    path = os.path.join(store, "index.json")
    try:
        write_file(path, raw, partial)
    except KernelError as error:
        # For what does not grow alone: for all that comes later there would be less.
        grows = not os.path.exists(path) or len(raw) > os.stat(path).st_size
        if error.errno not in FULL or grows or not _exchanged(store, raw):
            raise
        sync_folder(store)


def _exchanged(store: str, raw: bytes) -> bool:
    """Write it to what was kept, and put that in the place of the index; False if it takes more."""
    path, kept = os.path.join(store, "index.json"), os.path.join(store, NAME)
    try:
        with openat(kept, os.O_WRONLY | os.O_NOFOLLOW) as fd:
            if os.fstat(fd).st_blocks * 512 < len(raw):
                return False
            done = 0
            while done < len(raw):
                done += os.pwrite(fd, raw[done:], done)
            os.ftruncate(fd, done)
            os.fsync(fd)
        try:
            old, new = os.fsencode(kept) + b"\0", os.fsencode(path) + b"\0"
            syscall("renameat2", AT_FDCWD, old, AT_FDCWD, new, _EXCHANGE)
        except KernelError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOENT):
                raise
            os.rename(kept, path)
    except OSError as error:
        if error.errno in (*FULL, errno.ENOENT):
            return False
        raise failed(error, f'write("{path}")', "the names of images") from None
    return True


__all__ = ["FULL", "NAME", "keep", "replace"]
