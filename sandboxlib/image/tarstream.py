"""
A tar archive read as a stream: POSIX ustar and pax, GNU, star, and what came before them.

The standard library's tarfile is slow for many small files, and forgets what layers need:
bytes that are not UTF-8, which of two headers came first, holes.

Sizes and types are read as Go's archive/tar does, with which layers are made and read
elsewhere: an archive that two readers take for two different ones is a way past a scanner.

Spec: POSIX.1-2017, pax; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from sandboxlib.errors import ImageError, ViolationError, printable
from sandboxlib.image import pax, sparse
from sandboxlib.image.source import BLOCK, DEFAULT, Limits, Source

FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, FOLDER, FIFO = range(7)

_KINDS = {
    0: FILE,
    0x30: FILE,  # "0"
    0x31: LINK,
    0x32: SYMLINK,
    0x33: CHAR,
    0x34: BLOCK_DEVICE,
    0x35: FOLDER,
    0x36: FIFO,
    0x37: FILE,  # contiguous
    0x53: FILE,  # "S", GNU, with holes
    0x44: FOLDER,  # "D", GNU, with a list of names
}
_PAX, _PAX_SOLARIS, _PAX_GLOBAL = 0x78, 0x58, 0x67
_LONG_NAME, _LONG_LINK = 0x4C, 0x4B
_VOLUME = 0x56
_SPARSE, _DUMPDIR, _OLD = 0x53, 0x44, 0
_NOTHING = bytes(BLOCK)
#: Of an extended header, and of a name in a header of its own.
_MOST = 1 << 20
#: Headers that stand before the one that they belong to.
_BEFORE = 16
_MAX_ID = (1 << 32) - 2  # 4294967295 is "leave as it is" for chown(2)


def shown(name: bytes) -> str:
    """A name for printing."""
    text = printable(name.decode(errors="backslashreplace"))
    return text if len(text) <= 300 else f"{text[:200]}...{text[-80:]}"


@final
class Entry:
    """
    One entry of an archive.

    Attributes:
        kind: One of the constants of this module.
        name: As it stands there.
        target: Of a link.
        mode: Without the type's bits.
        uid, gid: Of its owner.
        size: Of a file, holes counted in.
        mtime: In nanoseconds.
        device: (major, minor).
        xattrs: Extended attributes by name.
        holes: None, or the (offset, size) of each part of the file that is stored.
    """

    __slots__ = (
        "device", "gid", "holes", "kind", "mode", "mtime", "name", "size", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, kind: int, name: bytes) -> None:
        self.kind = kind
        self.name = name
        self.target = b""
        self.mode = 0
        self.uid = self.gid = 0
        self.size = 0
        self.mtime = 0
        self.device = (0, 0)
        self.xattrs: dict[bytes, bytes] | None = None
        self.holes: sparse.Map | None = None


@final
class TarReader:
    """
    The entries of an archive, in order; the data of each is read before the next is asked for.

    Attributes:
        entries: How many there were until now.
        uids, gids: The owners of these.
    """

    def __init__(self, source: Source, limits: Limits = DEFAULT) -> None:
        self.uids: set[int] = set()
        self.gids: set[int] = set()
        self._source = source
        self._limits = limits
        self._left = 0
        self._next = 0
        self._global: dict[bytes, bytes] = {}
        self.entries = 0

    def data(self) -> Iterator[bytes | memoryview]:
        """What is stored of the current file, in pieces; what is not taken of it is passed over."""
        left, self._left = self._left, 0
        return self._source.pieces(left)

    def __iter__(self) -> Iterator[Entry]:
        source = self._source
        before = 0
        local: pax.Records = []
        name = target = b""
        while True:
            # Whatever was made of the entry, and however much of its content was read for that.
            if self._next > source.position:
                source.skip(self._next - source.position)
            header = source.block()
            if not header or (header[0] == 0 and header == _NOTHING):
                if before:
                    raise ImageError("the layer ends after a header that belongs to a next one")
                self._end(header)
                return
            kind = header[156]
            size = self._checked(header)
            if kind in _KINDS:
                self._count()
                yield self._entry(header, kind, size, local, name, target)
                before, local, name, target = 0, [], b"", b""
                continue
            where = shown(_text(header, 0, 100))
            if kind == _VOLUME:
                self._hold(size)
                continue
            before += 1
            if before > _BEFORE:
                raise ViolationError(f"more than {_BEFORE} headers before the one they belong to", where)
            if kind not in (_PAX, _PAX_SOLARIS, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
                raise ImageError(f"{where}: an entry of the unknown type {chr(kind)!r}")
            if size > _MOST:
                raise ViolationError(f"an extended header of more than {_MOST} bytes", where)
            self._hold(size)
            data = source.read(size)
            if kind == _LONG_NAME:
                name = data.partition(b"\0")[0]
            elif kind == _LONG_LINK:
                target = data.partition(b"\0")[0]
            elif kind == _PAX_GLOBAL:
                self._add_global(pax.records(data, where), where)
                before -= 1
            else:
                local = pax.records(data, where)

    def _end(self, header: bytes) -> None:
        # One block of zeros, two, or none: writers differ. What comes after two is of no interest.
        if header:
            second = self._source.block()
            if second and second != _NOTHING:
                raise ImageError("a block of zeros in the middle of the layer")
            self._source.drain()

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self._limits.entries:
            raise ViolationError(f"a layer of more than {self._limits.entries} entries (the limit 'entries')")

    def _hold(self, size: int) -> None:
        """The header that was read last has *size* bytes of content; then the next header comes."""
        self._left = size
        self._next = self._source.position + size + -size % BLOCK

    def _add_global(self, records: pax.Records, where: str) -> None:
        self._count()
        for key, value in records:
            if value:
                self._global[key] = value
            else:
                self._global.pop(key, None)
        if sum(len(key) + len(value) for key, value in self._global.items()) > _MOST:
            raise ViolationError(f"global extended headers of more than {_MOST} bytes", where)

    def _checked(self, header: bytes) -> int:
        """The size field of a header whose checksum is right."""
        wanted = _number(header, 148, 156, "the checksum")
        total = sum(header) - sum(header[148:156]) + 256
        if wanted != total:
            # Some old writers added the bytes up as signed ones.
            signed = total - 256 * sum(byte > 127 for byte in header)
            signed += 256 * sum(byte > 127 for byte in header[148:156])
            if wanted != signed:
                raise ImageError(f"{shown(_text(header, 0, 100))}: a header with a wrong checksum")
        return _number(header, 124, 136, "the size")

    def _entry(
        self, header: bytes, flag: int, size: int, local: pax.Records, name: bytes, target: bytes
    ) -> Entry:
        kind = _KINDS[flag]
        posix = header[257:263] == b"ustar\0"
        if not name:
            name = _text(header, 0, 100)
            if posix:
                # star keeps times at the prefix's end.
                prefix = _text(header, 345, 476 if header[508:512] == b"tar\0" else 500)
                if prefix:
                    name = prefix + b"/" + name
        if flag == _OLD and name.endswith(b"/"):
            kind = FOLDER
        entry = Entry(kind, name)
        entry.target = target or _text(header, 157, 257)
        entry.mode = _number(header, 100, 108, "the mode") & 0o7777
        entry.uid = _number(header, 108, 116, "the owner")
        entry.gid = _number(header, 116, 124, "the group")
        entry.mtime = pax.bounded_ns(_number(header, 136, 148, "the time", negative=True))
        if kind in (CHAR, BLOCK_DEVICE):
            entry.device = (_number(header, 329, 337, "a device"), _number(header, 337, 345, "a device"))
        holes: pax.Records = []
        if local or self._global:
            size, holes = self._extend(entry, size, local)
        # Its map goes on in blocks between the header and the content.
        old = sparse.old(header, self._source, shown(entry.name)) if flag == _SPARSE else None
        self._hold(size if kind == FILE or flag == _DUMPDIR else 0)
        entry.size = self._left
        if old is not None:
            entry.size, entry.holes = old
        elif kind == FILE and holes:
            self._holes(entry, holes)
        if entry.uid > _MAX_ID or entry.gid > _MAX_ID:
            raise ImageError(f"{shown(entry.name)}: an owner or group above {_MAX_ID}")
        self.uids.add(entry.uid)
        self.gids.add(entry.gid)
        if entry.holes is not None:
            sparse.check(entry.holes, entry.size, self._left, shown(entry.name))
            self._source.spend(entry.size - self._left)
        return entry

    def _extend(self, entry: Entry, size: int, local: pax.Records) -> tuple[int, pax.Records]:
        """Put what extended headers say into *entry*; the size that is stored, and records of holes."""
        where = shown(entry.name)
        holes: pax.Records = []
        values = dict(self._global)
        for key, value in local:
            if key.startswith(b"GNU.sparse."):
                holes.append((key, value))
            elif value or pax.is_xattr(key):
                values[key] = value
            else:
                # Deletes what a global header said; the plain header's value stands again.
                values.pop(key, None)
        for key, value in values.items():
            if key == b"path":
                entry.name = value
            elif key == b"linkpath":
                entry.target = value
            elif key == b"size":
                size = pax.number(value, "the size", where)
            elif key == b"uid":
                entry.uid = pax.number(value, "the owner", where)
            elif key == b"gid":
                entry.gid = pax.number(value, "the group", where)
            elif key == b"mtime":
                entry.mtime = pax.time_ns(value, where)
            elif (attribute := pax.xattr(key, value, where)) is not None:
                entry.xattrs = entry.xattrs or {}
                entry.xattrs[attribute[0]] = attribute[1]
        return size, holes

    def _holes(self, entry: Entry, records: pax.Records) -> None:
        found = sparse.from_records(records, shown(entry.name))
        entry.name = found.name or entry.name
        if found.in_data:
            entry.holes, used = sparse.from_data(self._source, self._left, shown(entry.name))
            self._left -= used
        else:
            entry.holes = found.map
        if entry.holes is not None:
            entry.size = found.size


def _text(header: bytes, start: int, end: int) -> bytes:
    return header[start:end].partition(b"\0")[0]


def _number(header: bytes, start: int, end: int, what: str, *, negative: bool = False) -> int:
    """A field with a number: octal digits, or a big one as GNU writes it."""
    if header[start] & 0x80:
        found = int.from_bytes(header[start:end], "big", signed=True)
        # The top bit marks the form; the one after it is the sign.
        found = found if header[start] == 0xFF else int.from_bytes(
            bytes([header[start] & 0x7F]) + header[start + 1 : end], "big"
        )  # fmt: skip
        if not -(1 << 63) <= found < 1 << 63:
            raise ImageError(f"{shown(_text(header, 0, 100))}: {what} is too large")
    else:
        digits = header[start:end].strip(b" \0")
        # int() itself would take signs, underscores and prefixes.
        if digits and (not digits.isdigit() or b"8" in digits or b"9" in digits):
            raise ImageError(f"{shown(_text(header, 0, 100))}: {what} is no number ({digits!r})")
        found = int(digits or b"0", 8)
    if found < 0 and not negative:
        raise ImageError(f"{shown(_text(header, 0, 100))}: {what} is negative")
    return found


__all__ = [
    "BLOCK_DEVICE", "CHAR", "FIFO", "FILE", "FOLDER", "LINK", "SYMLINK", "Entry", "TarReader", "shown",
]  # fmt: skip
