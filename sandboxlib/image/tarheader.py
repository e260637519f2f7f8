"""Headers of tar files. Spec: pax of POSIX.1-2017, "ustar Interchange Format" and "pax Header Block"."""

from __future__ import annotations

import os


def record(key: bytes, value: bytes) -> bytes:
    """A record of a PAX header."""
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + 1
    # The length counts its own digits.
    while len(str(size)) + len(rest) != size:
        size = len(str(size)) + len(rest)
    return str(size).encode() + rest


def block(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes = b"",
    device: int = 0,
) -> bytes:
    """A header of ustar's, with its checksum."""
    special = kind in (b"3", b"4")
    major, minor = (os.major(device), os.minor(device)) if special else (0, 0)
    raw = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0" % mode,
            b"%07o\0" % uid,
            b"%07o\0" % gid,
            b"%011o\0" % size,
            b"%011o\0" % mtime,
            b"        ",
            kind,
            link.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            b"%07o\0" % major,
            b"%07o\0" % minor,
            bytes(167),
        )
    )
    return raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]


__all__ = ["block", "record"]
