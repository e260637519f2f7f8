"""
A tar archive written: ustar headers, and pax ones only where those have no room.

The same entries give the same bytes: no names of users, no times of access, whole seconds.

Spec: POSIX.1-2017, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import final

from sandboxlib.errors import ImageError
from sandboxlib.image import pax, sparse, tarstream
from sandboxlib.image.source import BLOCK
from sandboxlib.image.tarstream import Entry, shown

_FLAGS = {
    tarstream.FILE: b"0",
    tarstream.LINK: b"1",
    tarstream.SYMLINK: b"2",
    tarstream.CHAR: b"3",
    tarstream.BLOCK_DEVICE: b"4",
    tarstream.FOLDER: b"5",
    tarstream.FIFO: b"6",
}
_BUFFER = 1 << 20
_NAME, _PREFIX = 100, 155


@final
class TarWriter:
    """
    Writes an archive to *write*, in large pieces.

    Attributes:
        size: Bytes until now.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._hash = hashlib.sha256()
        self._waiting = bytearray()
        self.size = 0

    def add(self, entry: Entry) -> None:
        """
        Write an entry's headers; its data comes by `data`, and then `pad`.

        That is as much as its size, or all of the parts between its holes.
        """
        records: list[tuple[bytes, bytes]] = []
        path, size, table = entry.name, entry.size, b""
        if entry.holes is not None:
            # Who does not know of holes makes a file of this name, with the map in it.
            folder, slash, last = path.rpartition(b"/")
            path = folder + slash + b"GNUSparseFile.0/" + last
            table = sparse.table(entry.holes, size)
            size = len(table) + sum(length for _, length in entry.holes)
        name, prefix = _split(path)
        if not name:
            records.append((b"path", path))
            name = path[:_NAME].rstrip(b"/") or b"x"
        if entry.holes is not None:
            records += sparse.records(entry.name, entry.size)
        target = entry.target
        if len(target) > _NAME:
            records.append((b"linkpath", target))
            target = target[:_NAME]
        if any(not _is_text(value) for _, value in records):
            records.insert(0, (b"hdrcharset", b"BINARY"))
        numbers = []
        for key, value, digits in ((b"uid", entry.uid, 7), (b"gid", entry.gid, 7), (b"size", size, 11)):
            if value >= 8**digits:
                records.append((key, str(value).encode()))
            numbers.append(value if value < 8**digits else 0)
        seconds = entry.mtime // 10**9
        if not 0 <= seconds < 8**11:
            records.append((b"mtime", str(seconds).encode()))
            seconds = 0
        records += [pax.xattr_record(key, value) for key, value in sorted((entry.xattrs or {}).items())]
        if records:
            data = pax.encode(records)
            short = b"PaxHeaders/" + entry.name.rstrip(b"/").rpartition(b"/")[2][:80]
            self._put(_header(short, b"", b"x", 0o644, (0, 0, len(data)), 0, b"", (0, 0)))
            self._put(data)
            self.pad(len(data))
        flag = _FLAGS[entry.kind]
        sizes = (numbers[0], numbers[1], numbers[2])
        self._put(_header(name, prefix, flag, entry.mode, sizes, seconds, target, entry.device))
        self._put(table)

    def data(self, piece: bytes) -> None:
        """Write a part of an entry's data."""
        self._put(piece)

    def pad(self, size: int) -> None:
        """Fill up after the *size* bytes of an entry's data."""
        self._put(bytes(-size % BLOCK))

    def close(self) -> str:
        """Write the end; returns the digest of all."""
        self._put(bytes(2 * BLOCK))
        self._flush()
        return f"sha256:{self._hash.hexdigest()}"

    def _put(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        data = bytes(self._waiting)
        self._waiting.clear()
        self._hash.update(data)
        self.size += len(data)
        self._write(data)


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _split(path: bytes) -> tuple[bytes, bytes]:
    """A path as the two fields for it, the last part in the first; empty where there is no room."""
    if len(path) <= _NAME:
        return path, b""
    # The slash between the two is not written.
    at = path.find(b"/", len(path) - _NAME - 1, _PREFIX + 1)
    if at <= 0 or at == len(path) - 1:
        return b"", b""
    return path[at + 1 :], path[:at]


def _header(
    name: bytes,
    prefix: bytes,
    flag: bytes,
    mode: int,
    numbers: tuple[int, int, int],
    mtime: int,
    target: bytes,
    device: tuple[int, int],
) -> bytes:
    uid, gid, size = numbers
    if max(device) >= 8**7:
        raise ImageError(f"{shown(name)}: a device number that is too large")
    filled = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime),
            b" " * 8,
            flag,
            target.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            b"%07o\0%07o\0" % device,
            prefix.ljust(167, b"\0"),
        )
    )
    return filled[:148] + b"%06o\0 " % sum(filled) + filled[156:]


__all__ = ["TarWriter"]
