"""
Files with holes, in the four ways in which GNU tar has stored them.

Spec: GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from sandboxlib.errors import ImageError, ViolationError
from sandboxlib.image import pax
from sandboxlib.image.source import BLOCK, Source

#: The (offset, size) of each part that is stored, in order.
Map = list[tuple[int, int]]

_MOST = 1 << 18
_LINE = 20
#: A hole of fewer bytes is no hole: it would save nothing.
_LEAST = 1 << 16


class Found(NamedTuple):
    """What an extended header says: the real name and size, and where the map is."""

    name: bytes
    size: int
    map: Map | None
    in_data: bool


def check(parts: Map, size: int, stored: int, where: str) -> None:
    """Raise ImageError unless the parts lie in the file, in order, and are what is stored."""
    end = total = 0
    for offset, length in parts:
        if offset < end or length < 0 or offset + length > size:
            raise ImageError(f"{where}: a map of holes that contradicts itself")
        end = offset + length
        total += length
    if total != stored:
        raise ImageError(f"{where}: a map of holes for {total} bytes, and {stored} are stored")


def of_file(fd: int, size: int, cancelled: Callable[[], None], most: int = _MOST) -> Map:
    """
    The parts of an open file that are not holes. Where there would be *most* small holes do not count.

    Kernel: lseek(2), SEEK_DATA.
    """
    found: list[list[int]] = []
    least, at = _LEAST, 0
    while at < size:
        cancelled()
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            at = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        except OSError as error:
            # There is nothing but a hole, or the file has become shorter.
            if error.errno != errno.ENXIO:
                raise
            break
        found.append([begin, at])
        _join(found, least, len(found) - 1)
        while len(found) >= most:
            least *= 2
            _join(found, least, 1)
    if found and size - found[-1][1] < least:
        found[-1][1] = size
    return [(begin, end - begin) for begin, end in found if end > begin]


def _join(parts: list[list[int]], least: int, first: int) -> None:
    """Join parts, from number *first* on, between which there are fewer than *least* bytes."""
    kept = parts[:first]
    for begin, end in parts[first:]:
        if begin - (kept[-1][1] if kept else 0) >= least:
            kept.append([begin, end])
        elif kept:
            kept[-1][1] = end
        else:
            kept.append([0, end])
    parts[:] = kept


def table(parts: Map, size: int) -> bytes:
    """The map of a file of *size* bytes as version 1.0 has it: before the data, in whole blocks."""
    numbers = [len(parts), *(number for part in parts for number in part)]
    if not parts or sum(parts[-1]) < size:
        # So do others: the end of the file is the end of a part.
        numbers = [len(parts) + 1, *numbers[1:], size, 0]
    text = b"".join(b"%d\n" % number for number in numbers)
    return text + bytes(-len(text) % BLOCK)


def records(name: bytes, size: int) -> list[tuple[bytes, bytes]]:
    """What the extended header of such a file says."""
    version = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
    return [*version, (b"GNU.sparse.name", name), (b"GNU.sparse.realsize", b"%d" % size)]


def from_records(records: pax.Records, where: str) -> Found:
    """Read versions 0.0, 0.1 and the beginning of 1.0. Raises: ImageError."""
    last = dict(records)
    name = last.get(b"GNU.sparse.name", b"")
    size = pax.number(
        last.get(b"GNU.sparse.realsize") or last.get(b"GNU.sparse.size") or b"0", "the real size", where
    )
    version = last.get(b"GNU.sparse.major", b"0"), last.get(b"GNU.sparse.minor", b"0")
    if version == (b"1", b"0"):
        return Found(name, size, None, in_data=True)
    if version not in ((b"0", b"0"), (b"0", b"1")):
        raise ImageError(f"{where}: holes stored in the unknown version {version[0]!r}.{version[1]!r}")
    if b"GNU.sparse.map" in last:
        text = last[b"GNU.sparse.map"]
        numbers = [pax.number(each, "a hole", where) for each in text.split(b",")] if text else []
    else:
        # Pairs of records, each offset before its size.
        wanted = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
        pairs = [(key, pax.number(value, "a hole", where)) for key, value in records if key in wanted]
        if [key for key, _ in pairs] != list(wanted) * (len(pairs) // 2):
            raise ImageError(f"{where}: a map of holes that has no order")
        numbers = [value for _, value in pairs]
        if not pairs and b"GNU.sparse.numblocks" not in last:
            return Found(name, size, None, in_data=False)
    return Found(name, size, _paired(numbers, where), in_data=False)


def from_data(source: Source, stored: int, where: str) -> tuple[Map, int]:
    """Read the map of version 1.0, which stands before the data; and how many bytes it took."""
    used = 0
    text = b""
    numbers: list[int] = []
    wanted = 1
    while len(numbers) < wanted:
        if used + BLOCK > stored:
            raise ImageError(f"{where}: a map of holes that has no end")
        used += BLOCK
        *lines, text = (text + source.read(BLOCK)).split(b"\n")
        if len(text) > _LINE and len(numbers) + len(lines) < wanted:
            raise ImageError(f"{where}: a map of holes with something that is no number")
        numbers += [pax.number(line, "a hole", where) for line in lines[: wanted - len(numbers)]]
        if wanted == 1 and numbers:
            if numbers[0] > _MOST:
                raise ViolationError(f"more than {_MOST} parts between holes", where)
            wanted = 1 + 2 * numbers[0]
            numbers += [pax.number(line, "a hole", where) for line in lines[1:wanted]]
    return _paired(numbers[1:wanted], where), used


def old(header: bytes, source: Source, where: str) -> tuple[int, Map]:
    """Read the map of the old GNU format, in the header and in blocks after it."""
    parts = _blocks(header, 386, 4, where)
    more = header[482]
    while more:
        block = source.block()
        if not block:
            raise ImageError(f"{where}: a map of holes that has no end")
        parts += _blocks(block, 0, 21, where)
        if len(parts) > _MOST:
            raise ViolationError(f"more than {_MOST} parts between holes", where)
        more = block[504]
    return _field(header[483:495], where), parts


def _blocks(data: bytes, at: int, count: int, where: str) -> Map:
    found = []
    for start in range(at, at + 24 * count, 24):
        if not data[start]:
            break
        found.append((_field(data[start : start + 12], where), _field(data[start + 12 : start + 24], where)))
    return found


def _field(raw: bytes, where: str) -> int:
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0")
    if digits and (not digits.isdigit() or b"8" in digits or b"9" in digits):
        raise ImageError(f"{where}: a map of holes with something that is no number")
    return int(digits or b"0", 8)


def _paired(numbers: list[int], where: str) -> Map:
    if len(numbers) % 2:
        raise ImageError(f"{where}: a map of holes with an offset and no size")
    if len(numbers) > 2 * _MOST:
        raise ViolationError(f"more than {_MOST} parts between holes", where)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


__all__ = ["Found", "Map", "check", "from_data", "from_records", "of_file", "old", "records", "table"]
