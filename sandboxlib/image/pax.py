"""
Extended headers of tar: records of a keyword and a value.

Spec: POSIX.1-2017, pax, "pax Extended Header"; GNU tar manual, "Storing Sparse Files"; libarchive's tar(5).
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections.abc import Iterable

from sandboxlib.errors import ImageError

XATTR = b"SCHILY.xattr."
XATTR_ENCODED = b"LIBARCHIVE.xattr."

Records = list[tuple[bytes, bytes]]

_LENGTH = re.compile(rb"([1-9][0-9]{0,9}) ")
_NUMBER = re.compile(rb"[0-9]{1,20}")
_TIME = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
#: Seconds that every part of the kernel's interface takes; a file system keeps fewer.
_FAR = 1 << 40


def records(data: bytes, where: str) -> Records:
    """
    Split an extended header into its records, in order: some keywords stand there many times.

    Raises:
        ImageError: It is not one.
    """
    found = []
    at = 0
    while at < len(data):
        match = _LENGTH.match(data, at)
        if match is None:
            raise ImageError(f"{where}: an extended header with a record that has no length")
        end = at + int(match[1])
        if end > len(data) or end <= match.end() or data[end - 1] != 0x0A:
            raise ImageError(f"{where}: an extended header with a record of a wrong length")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals or not key:
            raise ImageError(f"{where}: an extended header with a record that has no keyword")
        found.append((key, value))
        at = end
    return found


def number(value: bytes, what: str, where: str) -> int:
    """A whole number, not negative. Raises: ImageError."""
    if not _NUMBER.fullmatch(value):
        raise ImageError(f"{where}: {what} is no number ({value[:40]!r})")
    return int(value)


def time_ns(value: bytes, where: str) -> int:
    """A time with fractions of a second, in nanoseconds. Raises: ImageError."""
    match = _TIME.fullmatch(value)
    if match is None:
        raise ImageError(f"{where}: a time that is none ({value[:40]!r})")
    sign, whole, fraction = match.groups()
    seconds = min(int(whole), _FAR)
    found = seconds * 10**9 + int(((fraction or b"") + b"0" * 9)[:9])
    return -found if sign else found


def bounded_ns(seconds: int) -> int:
    """Whole seconds in nanoseconds, near enough for the kernel to take them."""
    return max(-_FAR, min(seconds, _FAR)) * 10**9


def is_xattr(key: bytes) -> bool:
    """Does the keyword stand for an extended attribute? Its value may be empty."""
    return key.startswith((XATTR, XATTR_ENCODED))


def xattr(key: bytes, value: bytes, where: str) -> tuple[bytes, bytes] | None:
    """
    The extended attribute that a record stands for, if it stands for one.

    Raises:
        ImageError: It is not encoded as libarchive does.
    """
    if key.startswith(XATTR):
        return key[len(XATTR) :], value
    if key.startswith(XATTR_ENCODED):
        try:
            # Written without the padding at the end, and read with and without.
            raw = base64.b64decode(value.rstrip(b"=") + b"=" * (-len(value.rstrip(b"=")) % 4), validate=True)
        except binascii.Error:
            raise ImageError(f"{where}: an extended attribute that is not base64") from None
        return urllib.parse.unquote_to_bytes(key[len(XATTR_ENCODED) :]), raw
    return None


def encode(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The extended header with *pairs* as records, in order."""
    out = []
    for key, value in pairs:
        rest = b" " + key + b"=" + value + b"\n"
        # The length counts its own digits.
        size = len(rest) + len(str(len(rest)))
        if len(str(size)) + len(rest) != size:
            size = len(rest) + len(str(size))
        out.append(str(size).encode() + rest)
    return b"".join(out)


def xattr_record(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The record for an extended attribute."""
    if b"=" in name:
        # A keyword ends at the first "=".
        quoted = urllib.parse.quote_from_bytes(name, safe="").encode()
        return XATTR_ENCODED + quoted, base64.b64encode(value).rstrip(b"=")
    return XATTR + name, value


__all__ = [
    "Records",
    "bounded_ns",
    "encode",
    "is_xattr",
    "number",
    "records",
    "time_ns",
    "xattr",
    "xattr_record",
]
