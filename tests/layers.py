"""
Layers for tests: archives built byte by byte, so that they can be as wrong as a test wants.

`tarfile` would not write most of them.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sandboxlib.image.owner import Owner
from sandboxlib.image.unpack import Unpacked, unpack

ROOT = Owner("root")
SINGLE = Owner("single")
#: Ids that no user of a machine has.
RANGE = Owner("range", ((0, 1_900_000_000, 65536),), ((0, 1_900_000_000, 65536),))
END = bytes(1024)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """A number as GNU tar writes it where octal digits have no room."""
    raw = bytearray(value.to_bytes(width, "big", signed=True))
    raw[0] = 0xFF if value < 0 else raw[0] | 0x80
    return bytes(raw)


def header(
    name: bytes,
    flag: bytes = b"0",
    size: int | bytes = 0,
    *,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 1_000_000_000,
    target: bytes = b"",
    magic: bytes = b"ustar\x0000",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header; a number that is given as bytes stands there as it is."""

    def field(value: int | bytes, width: int) -> bytes:
        raw = value if isinstance(value, bytes) else octal(value, width)
        return raw.ljust(width, b"\0")

    filled = b"".join(
        (
            name.ljust(100, b"\0"),
            field(mode, 8),
            field(uid, 8),
            field(gid, 8),
            field(size, 12),
            field(mtime, 12),
            b" " * 8,
            flag,
            target.ljust(100, b"\0"),
            magic.ljust(8, b"\0"),
            bytes(64),
            field(device[0], 8),
            field(device[1], 8),
            prefix.ljust(167, b"\0"),
        )
    )
    assert len(filled) == 512
    return filled[:148] + (checksum or b"%06o\0 " % sum(filled)) + filled[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    return header(name, b"0", len(data), **fields) + padded(data)  # type: ignore[arg-type]


def folder(name: bytes, mode: int = 0o755, **fields: object) -> bytes:
    return header(name, b"5", mode=mode, **fields)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **fields: object) -> bytes:
    return header(name, b"2", mode=0o777, target=target, **fields)  # type: ignore[arg-type]


def link(name: bytes, target: bytes, **fields: object) -> bytes:
    return header(name, b"1", target=target, **fields)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    """One record of an extended header; its length counts itself."""
    size = len(key) + len(value) + 3
    while len(b"%d" % size) + len(key) + len(value) + 3 != size:
        size += 1
    return b"%d %s=%s\n" % (size, key, value)


def pax(
    values: Mapping[bytes, bytes] | Sequence[tuple[bytes, bytes]], flag: bytes = b"x", *, raw: bytes = b""
) -> bytes:
    pairs = values.items() if isinstance(values, Mapping) else values
    data = raw or b"".join(record(key, value) for key, value in pairs)
    return header(b"PaxHeaders/x", flag, len(data)) + padded(data)


def long_name(name: bytes, flag: bytes = b"L") -> bytes:
    data = name + b"\0"
    return header(b"././@LongLink", flag, len(data), magic=b"ustar  \0") + padded(data)


def layer(*entries: bytes) -> bytes:
    return b"".join(entries) + END


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@contextmanager
def opened(*paths: str | Path) -> Iterator[list[int]]:
    fds: list[int] = []
    try:
        for path in paths:
            fds += [os.open(path, os.O_RDONLY | os.O_DIRECTORY)]
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def unpacked(
    where: Path, data: bytes, owner: Owner = ROOT, lowers: Iterable[Path] = (), **options: object
) -> Unpacked:
    """Unpack *data* into the folder *where*, which is made."""
    where.mkdir(mode=0o755)
    if owner.kind == "range":
        os.chown(where, owner.uid_map[0][1], owner.gid_map[0][1])
    with opened(where, *lowers) as (fd, *below):
        return unpack(io.BytesIO(data), fd, owner, lowers=below, **options)  # type: ignore[arg-type]


def tree(top: Path, *, content: Callable[[Path], bytes] | None = None) -> dict[str, tuple[object, ...]]:
    """All that is below *top*, by path: type and mode, owner, time, content or target."""
    found: dict[str, tuple[object, ...]] = {}
    for parent, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(parent, name)
            state = path.lstat()
            data: object = b""
            if path.is_symlink():
                data = os.readlink(path)
            elif path.is_file():
                data = path.read_bytes() if content is None else content(path)
            elif not path.is_dir():
                data = state.st_rdev
            key = str(path.relative_to(top))
            found[key] = (oct(state.st_mode), state.st_uid, state.st_gid, state.st_mtime_ns, data)
    return found
