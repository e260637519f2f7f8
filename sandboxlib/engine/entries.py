"""
Entries of file trees, as a helper tells of them: what is in a folder, and what each is.

The program makes no call on a file of the inside, also not fstat(2) or close(2): who answers for a file
may be inside (a lease, a lock that a long write holds, a file system of its own), and need not answer.

Kernel: statx(2), getdents64(2).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from sandboxlib.kernel.program import STAT, STATS
from sandboxlib.plan.flags import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, Named
from sandboxlib.plan.steps import Stats

#: struct statx up to and with the device numbers.
_STATX = struct.Struct("=IIQIIIHHQQQQ16s16s16s16sIIII")
#: A time: seconds and nanoseconds.
_TIME = struct.Struct("=qIi")
_NO_AUTOMOUNT = Named(0x800, "AT_NO_AUTOMOUNT")
#: struct linux_dirent64: inode, offset, length of the record, type; then the name and a NUL.
_DIRENT = struct.Struct("=QqHB")
#: Kinds of entries, as dirent.h has them.
DT_UNKNOWN, DT_DIR = 0, 4


_FLAGS = AT_SYMLINK_NOFOLLOW | _NO_AUTOMOUNT | AT_EMPTY_PATH


def look(base: int, *names: bytes, why: str) -> Stats:
    """
    See what each of *names* in the folder *base* is, itself if it is a link: `STATS` at most.

    An empty name is *base* itself.
    """
    return Stats(base, names, _FLAGS, why)


def stats_of(data: bytes) -> Iterator[os.stat_result | int]:
    """What `look` told of each name, in their order: what it is, or the errno."""
    for at in range(0, len(data), STAT):
        error = int.from_bytes(data[at : at + 4], "little", signed=True)
        yield -error if error < 0 else stat_of(data, at)


def stat_of(data: bytes, at: int = 0) -> os.stat_result:
    """What was told of the name whose part begins *at*. Users and groups are those that the helper sees."""
    (_, blksize, _, nlink, uid, gid, mode, _, ino, size, blocks, _, atime, _, ctime, mtime, *devices) = (
        _STATX.unpack_from(data, at)
    )
    times = [_TIME.unpack(part)[:2] for part in (atime, mtime, ctime)]
    fields = (mode, ino, os.makedev(*devices[2:]), nlink, uid, gid, size, *(seconds for seconds, _ in times))
    more: dict[str, float] = {"st_blksize": blksize, "st_blocks": blocks, "st_rdev": os.makedev(*devices[:2])}
    for name, (seconds, nanoseconds) in zip(("st_atime", "st_mtime", "st_ctime"), times, strict=True):
        more[name] = seconds + nanoseconds / 1e9
        more[f"{name}_ns"] = seconds * 10**9 + nanoseconds
    return os.stat_result(fields, more)


def entries_of(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The names and kinds in what getdents64(2) brought."""
    at = 0
    while at < len(data):
        _, _, length, kind = _DIRENT.unpack_from(data, at)
        name = data[at + _DIRENT.size : at + length].partition(b"\0")[0]
        at += length
        if name not in (b".", b".."):
            yield name, kind


__all__ = ["DT_DIR", "DT_UNKNOWN", "STATS", "entries_of", "look", "stats_of"]
