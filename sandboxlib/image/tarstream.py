"""
Tar files as streams of entries: ustar, PAX, and GNU's ways, as image builders write them.

Names are bytes, as they are to the kernel. What is read is somebody else's: every number is checked,
and every error says in which entry.

Spec: pax of POSIX.1-2017; GNU tar's manual, "Basic Tar Format" and "Storing Sparse Files".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from sandboxlib.errors import ImageError

BLOCK = 512
#: Bytes of an entry that only describes another one.
_MOST_HEADER = 1 << 20
_MOST_PIECES = 1 << 20
FILE, LINK, SYMLINK, CHARACTER, DEVICE, FOLDER, FIFO = (
    "file",
    "link",
    "symlink",
    "char",
    "block",
    "dir",
    "fifo",
)
_KINDS = {
    b"0": FILE,
    b"\0": FILE,
    b"7": FILE,
    b"S": FILE,
    b"1": LINK,
    b"2": SYMLINK,
    b"3": CHARACTER,
    b"4": DEVICE,
    b"5": FOLDER,
    b"6": FIFO,
}
_XATTR = b"SCHILY.xattr."
_ZERO = bytes(BLOCK)


class Entry(NamedTuple):
    """
    One entry.

    Attributes:
        name: As it stands there.
        kind: ``file``, ``link``, ``symlink``, ``char``, ``block``, ``dir`` or ``fifo``.
        mode: Permission bits.
        uid, gid: Owner.
        mtime: Nanoseconds.
        size: Of the file.
        link: Of a link: where to.
        device: Major and minor number.
        xattrs: Extended attributes.
        pieces: Of a sparse file: (offset, length) of what is there; else None.
    """

    name: bytes
    kind: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = {}  # noqa: RUF012 - a NamedTuple's default
    pieces: tuple[tuple[int, int], ...] | None = None


class TarStream:
    """
    Reads entries one after the other.

    Args:
        read: Returns the next piece of the tar file, b"" at its end.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._buffer = memoryview(b"")
        # Of the entry that was handed out last: data that was not read, and the padding after it.
        self._data = 0
        self._padding = 0
        self._global: dict[bytes, bytes] = {}
        self.name = b""

    # ---- bytes ----------------------------------------------------------------------------

    def _piece(self, most: int) -> memoryview:
        """Up to *most* bytes, at least one."""
        if not self._buffer:
            self._buffer = memoryview(self._read())
            if not self._buffer:
                raise self.wrong("the file is cut off")
        found, self._buffer = self._buffer[:most], self._buffer[most:]
        return found

    def _exactly(self, size: int) -> bytes:
        if len(self._buffer) >= size:
            found, self._buffer = bytes(self._buffer[:size]), self._buffer[size:]
            return found
        parts = []
        while size:
            part = self._piece(size)
            parts.append(bytes(part))
            size -= len(part)
        return b"".join(parts)

    def _pass(self, size: int) -> None:
        while size:
            size -= len(self._piece(size))

    def wrong(self, text: str) -> ImageError:
        """An error about the entry that is being read."""
        where = f" (at {self.name[:200].decode(errors='backslashreplace')!r})" if self.name else ""
        return ImageError(f"it is not a tar file as it has to be: {text}{where}")

    def data(self) -> Iterator[memoryview]:
        """The data of the entry that was handed out last; to be read before the next one is."""
        while self._data:
            part = self._piece(self._data)
            self._data -= len(part)
            yield part

    def _skip_rest(self) -> None:
        self._pass(self._data)
        self._pass(self._padding)
        self._data = self._padding = 0

    def _described(self, size: int) -> bytes:
        """The data of an entry that describes another one."""
        if size > _MOST_HEADER:
            raise self.wrong(f"a header has {size} bytes, and at most {_MOST_HEADER} are read")
        found = self._exactly(size)
        self._pass(-size % BLOCK)
        return found

    # ---- entries --------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry
        # To the end, so that the digest is of all of it; whatever comes there is padding to tar.
        self._buffer = memoryview(b"")
        while self._read():
            pass

    def _next(self) -> Entry | None:
        self._skip_rest()
        records: dict[bytes, bytes] = {}
        pieces: list[tuple[int, int]] = []
        long_name = long_link = None
        while True:
            if not self._buffer:
                self._buffer = memoryview(self._read())
                if not self._buffer:
                    # Without the two blocks of zeros, as some write it.
                    return None
            block = self._exactly(BLOCK)
            if block == _ZERO:
                return None
            self._check_sum(block)
            kind = block[156:157]
            size = self._number(block[124:136])
            if size < 0:
                raise self.wrong("a size is negative")
            self.name = _text(block[:100])
            if kind == b"x":
                self._records(self._described(size), records, pieces)
            elif kind == b"g":
                self._records(self._described(size), self._global, [])
                self._global.pop(b"comment", None)
            elif kind == b"L":
                long_name = self._described(size).rstrip(b"\0")
            elif kind == b"K":
                long_link = self._described(size).rstrip(b"\0")
            elif kind in (b"V", b"M", b"N", b"D"):
                # A volume's label, and lists of incremental backups: nothing to unpack.
                self._pass(size + -size % BLOCK)
            else:
                return self._entry(
                    block, kind, size, {**self._global, **records}, pieces, long_name, long_link
                )

    def _entry(
        self,
        block: bytes,
        kind: bytes,
        size: int,
        records: dict[bytes, bytes],
        pieces: list[tuple[int, int]],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        name = _text(block[:100])
        if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
            name = prefix + b"/" + name
        name = records.get(b"path", long_name or name)
        self.name = name
        link = records.get(b"linkpath", long_link or _text(block[157:257]))
        if kind not in _KINDS:
            raise self.wrong(f"there is no type {kind!r}")
        what = _KINDS[kind]
        if what == FILE and kind != b"S" and name.endswith(b"/"):
            what = FOLDER  # as before 1988
        if b"size" in records:
            size = self._decimal(records[b"size"])
        if what != FILE:
            # A link may give the size of what it leads to; no data follows.
            size = 0
        self._data, self._padding = size, -size % BLOCK
        real, found = size, None
        if kind == b"S":
            real, found = self._old_sparse(block)
        elif what == FILE and (b"GNU.sparse.major" in records or b"GNU.sparse.size" in records):
            name, real, found = self._sparse(name, records, pieces, size)
            self.name = name
        if found is not None:
            self._check_pieces(found, real)
        mtime = records.get(b"mtime")
        return Entry(
            name,
            what,
            self._number(block[100:108]) & 0o7777,
            self._id(records.get(b"uid"), block[108:116]),
            self._id(records.get(b"gid"), block[116:124]),
            self._number(block[136:148]) * 10**9 if mtime is None else self._time(mtime),
            real,
            link,
            (self._number(block[329:337]), self._number(block[337:345])),
            {
                key[len(_XATTR) :].decode(errors="surrogateescape"): value
                for key, value in records.items()
                if key.startswith(_XATTR)
            },
            found,
        )

    # ---- fields ---------------------------------------------------------------------------

    def _check_sum(self, block: bytes) -> None:
        said = self._number(block[148:156])
        rest = block[:148] + b"        " + block[156:]
        total = sum(rest)
        # Some old tars added signed bytes.
        if said not in (total, total - 256 * sum(byte > 127 for byte in rest)):
            raise self.wrong("the checksum of a header is not right")

    def _number(self, field: bytes) -> int:
        if field[0] & 0x80:
            # GNU's way for what octal digits cannot say.
            value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
            return value - (1 << 8 * len(field) - 1) if field[0] & 0x40 else value
        digits = field.split(b"\0", 1)[0].strip(b" ")
        try:
            return int(digits, 8) if digits else 0
        except ValueError:
            raise self.wrong(f"a number is none: {field!r}") from None

    def _decimal(self, value: bytes) -> int:
        if not value.isdigit() or len(value) > 19:
            raise self.wrong(f"a number is none: {value[:50]!r}")
        return int(value)

    def _id(self, record: bytes | None, field: bytes) -> int:
        found = self._number(field) if record is None else self._decimal(record)
        if not 0 <= found < (1 << 32) - 1:
            raise self.wrong(f"a user or a group is {found}, which is no ID")
        return found

    def _time(self, value: bytes) -> int:
        whole, _, fraction = value.partition(b".")
        sign = -1 if whole.startswith(b"-") else 1
        digits = whole.lstrip(b"-")
        if not digits.isdigit() or (fraction and not fraction.isdigit()) or len(digits) > 15:
            raise self.wrong(f"a time is none: {value[:50]!r}")
        return sign * (int(digits) * 10**9 + int((fraction[:9] or b"0").ljust(9, b"0")))

    def _records(self, raw: bytes, into: dict[bytes, bytes], pieces: list[tuple[int, int]]) -> None:
        """Read PAX records: a length, a space, a key, "=", a value, and a new line."""
        at = 0
        offset = None
        while at < len(raw):
            space = raw.find(b" ", at, at + 20)
            length = raw[at:space] if space > 0 else b""
            if not length.isdigit() or not space < at + int(length) <= len(raw):
                raise self.wrong("a record of a PAX header has no length")
            record = raw[space + 1 : at + int(length)]
            key, equals, value = record.partition(b"=")
            if not equals or not value.endswith(b"\n"):
                raise self.wrong("a record of a PAX header is none")
            value = value[:-1]
            at += int(length)
            if b"\0" in value and key in (b"path", b"linkpath"):
                raise self.wrong("a name has a NUL")
            # GNU's format 0.0 repeats these two, a pair for each piece.
            if key == b"GNU.sparse.offset":
                offset = self._decimal(value)
            elif key == b"GNU.sparse.numbytes" and offset is not None:
                pieces.append((offset, self._decimal(value)))
                offset = None
            if value or key.startswith(_XATTR):
                into[key] = value
            else:
                into.pop(key, None)

    # ---- sparse files ---------------------------------------------------------------------

    def _sparse(
        self, name: bytes, records: dict[bytes, bytes], pieces: list[tuple[int, int]], size: int
    ) -> tuple[bytes, int, tuple[tuple[int, int], ...]]:
        name = records.get(b"GNU.sparse.name", name)
        if records.get(b"GNU.sparse.major") == b"1":
            real = self._decimal(records.get(b"GNU.sparse.realsize", b""))
            return name, real, self._sparse_map(size)
        real = self._decimal(records.get(b"GNU.sparse.size", b""))
        if b"GNU.sparse.map" in records:
            numbers = [self._decimal(each) for each in records[b"GNU.sparse.map"].split(b",")]
            if len(numbers) % 2:
                raise self.wrong("the map of a sparse file has half a piece")
            pieces = list(zip(numbers[::2], numbers[1::2], strict=True))
        return name, real, tuple(pieces)

    def _sparse_map(self, size: int) -> tuple[tuple[int, int], ...]:
        """Format 1.0: the map stands in front of the data, in blocks of its own."""
        numbers: list[int] = []
        text = b""
        wanted = 1
        while len(numbers) < wanted:
            if self._data < BLOCK:
                raise self.wrong("the map of a sparse file does not end")
            text += self._exactly(BLOCK)
            self._data -= BLOCK
            *lines, text = text.split(b"\n")
            for line in lines:
                if len(numbers) < wanted:
                    numbers.append(self._decimal(line))
                if len(numbers) == 1:
                    wanted = 1 + 2 * numbers[0]
                    if numbers[0] > _MOST_PIECES or wanted > size:
                        raise self.wrong(f"a sparse file has {numbers[0]} pieces")
        return tuple(zip(numbers[1::2], numbers[2::2], strict=True))

    def _old_sparse(self, block: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
        pieces: list[tuple[int, int]] = []

        def take(raw: bytes) -> None:
            pieces.extend(
                (self._number(raw[at : at + 12]), self._number(raw[at + 12 : at + 24]))
                for at in range(0, len(raw), 24)
                if raw[at : at + 24].strip(b"\0 ")
            )

        take(block[386:482])
        more = block[482]
        while more:
            further = self._exactly(BLOCK)
            take(further[:504])
            more = further[504]
            if len(pieces) > _MOST_PIECES:
                raise self.wrong("a sparse file has too many pieces")
        return self._number(block[483:495]), tuple(pieces)

    def _check_pieces(self, pieces: tuple[tuple[int, int], ...], real: int) -> None:
        end = total = 0
        for offset, length in pieces:
            if offset < end or length < 0 or offset + length > real:
                raise self.wrong("the pieces of a sparse file lie over each other, or outside of it")
            end = offset + length
            total += length
        if total != self._data:
            raise self.wrong("the pieces of a sparse file are not what its data is")


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


__all__ = [
    "BLOCK",
    "CHARACTER",
    "DEVICE",
    "FIFO",
    "FILE",
    "FOLDER",
    "LINK",
    "SYMLINK",
    "Entry",
    "TarStream",
]
