"""
How blobs of layers are compressed: told by how they begin, not by what is said of them.

Layers are plain, or compressed by gzip or zstd. By xz and bzip2 others have compressed some, and many
archives of root file systems: they are read, and never written.

Spec: RFC 1952 (gzip), RFC 8878 (zstd), image-spec layer.md; xz-file-format 1.2; bzip2(1).
"""

from __future__ import annotations

import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Literal, Protocol, final

from sandboxlib.errors import ImageError, SpecError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Kind = Literal["gzip", "zstd", "xz", "bzip2", "none"]
Written = Literal["gzip", "zstd", "none"]

#: Bytes that are read from a blob at once, and at most made of them at once.
CHUNK_IN = 1 << 18
CHUNK_OUT = 1 << 20

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # after one byte from 0x50 to 0x5f
_XZ = b"\xfd7zXZ\0"
_LZ4 = b"\x04\x22\x4d\x18"
_BZIP2, _BZIP2_BLOCKS = b"BZh", (b"1AY&SY", b"\x17rE8P\x90")  # pi, and the root of it where there is none
#: Bytes of memory that a stream may want: xz -9 wants 65 MiB.
_MOST_MEMORY = 256 << 20
#: Of the beginning, by which `sniff` tells.
SNIFFED = 10


class Readable(Protocol):
    """What bytes come from: a file, a response of a registry, a pipe."""

    def read(self, size: int, /) -> bytes:
        """At most *size* bytes; none at the end."""


def sniff(start: bytes) -> Kind:
    """
    Tell from the first bytes of a blob how it is compressed.

    Raises:
        ImageError: In a way that layers never are.
    """
    if start.startswith(_GZIP):
        return "gzip"
    if _is_zstd(start):
        return "zstd"
    if start.startswith(_XZ):
        return "xz"
    if _is_bzip2(start):
        return "bzip2"
    if start.startswith(_LZ4):
        raise ImageError("it is compressed with lz4; it has to be gzip, zstd, xz, bzip2 or nothing")
    return "none"


def _is_zstd(start: bytes) -> bool:
    return start.startswith(_ZSTD) or (start[1:4] == _SKIPPABLE and start[0] & 0xF0 == 0x50)


def _is_bzip2(start: bytes) -> bool:
    return start.startswith(_BZIP2) and start[4:10] in _BZIP2_BLOCKS


class _Decoder(Protocol):
    """One member or frame: both libraries in one form."""

    eof: bool
    unused_data: bytes

    def take(self, data: bytes) -> bytes: ...

    def hungry(self) -> bool: ...


@final
class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._full = False
        self.unused_data = b""
        self.eof = False

    def take(self, data: bytes) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, CHUNK_OUT)
        self.eof, self.unused_data = self._inner.eof, self._inner.unused_data
        self._full = len(out) == CHUNK_OUT
        return out

    def hungry(self) -> bool:
        # What did not fit is still to come, even where all input has been taken in.
        return not self._inner.unconsumed_tail and not self._full


@final
class _Zstd:
    def __init__(self) -> None:
        self._inner = zstd.ZstdDecompressor()
        self.unused_data = b""
        self.eof = False

    def take(self, data: bytes) -> bytes:
        out = self._inner.decompress(data, CHUNK_OUT)
        self.eof = self._inner.eof
        if self.eof:
            self.unused_data = self._inner.unused_data
        return out

    def hungry(self) -> bool:
        return bool(self._inner.needs_input)


class _DamagedError(Exception):
    """What was decompressed is not what its kind has to be."""


@final
class _Bounded:
    """What lzma and bz2 have, each with errors of its own."""

    def __init__(self, inner: _MaxLength, errors: tuple[type[Exception], ...]) -> None:
        self._inner = inner
        self._errors = errors
        self.unused_data = b""
        self.eof = False

    def take(self, data: bytes) -> bytes:
        try:
            out = self._inner.decompress(data, CHUNK_OUT)
        except self._errors as error:
            raise _DamagedError(str(error)) from None
        self.eof = self._inner.eof
        if self.eof:
            self.unused_data = self._inner.unused_data
        return out

    def hungry(self) -> bool:
        return self._inner.needs_input


class _MaxLength(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _decoder(kind: Kind) -> _Decoder:
    if kind == "gzip":
        return _Gzip()
    if kind == "zstd":
        return _Zstd()
    if kind == "xz":
        import lzma

        return _Bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ, _MOST_MEMORY), (lzma.LZMAError,))
    import bz2

    return _Bounded(bz2.BZ2Decompressor(), (OSError, EOFError))


@final
class Inflater:
    """
    The plain bytes of a blob, piece by piece.

    What follows the last member of a compressed stream is read and left out, as gzip(1) does.

    Attributes:
        kind: How the blob is compressed, once the first piece is there.
        taken: How many bytes of the blob have been read.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self.kind: Kind = "none"
        self.taken = 0

    def _read(self) -> bytes:
        data = self._source.read(CHUNK_IN)
        self.taken += len(data)
        return data

    def __iter__(self) -> Iterator[bytes]:
        start = b""
        while len(start) < SNIFFED and (more := self._read()):
            start += more
        self.kind = sniff(start)
        if self.kind != "none":
            try:
                yield from self._members(start)
            except (zlib.error, zstd.ZstdError, _DamagedError) as error:
                raise ImageError(f"its {self.kind} stream is damaged: {error}") from None
        else:
            while start:
                yield start
                start = self._read()

    def _members(self, data: bytes) -> Iterator[bytes]:
        while True:
            decoder = _decoder(self.kind)
            if out := decoder.take(data):
                yield out
            while not decoder.eof:
                data = b""
                if decoder.hungry() and not (data := self._read()):
                    raise ImageError(f"its {self.kind} stream ends too early")
                if out := decoder.take(data):
                    yield out
            data = self._after(decoder.unused_data)
            if not self._begins(data):
                break
        while self._read():
            pass  # so that a digest of the blob is one of all of it

    def _after(self, data: bytes) -> bytes:
        """The beginning of what comes after a member: enough to tell whether it is another one."""
        while True:
            if self.kind == "xz":
                # Streams are filled up with zeros to where their reader wants the next one.
                data = data.lstrip(b"\0")
            if len(data) >= SNIFFED or not (more := self._read()):
                return data
            data += more

    def _begins(self, data: bytes) -> bool:
        if self.kind == "gzip":
            return data.startswith(_GZIP)
        if self.kind == "xz":
            return data.startswith(_XZ)
        return _is_zstd(data) if self.kind == "zstd" else _is_bzip2(data)


class Decompressed(io.RawIOBase):
    """A blob as a file of its plain bytes. Raises: ImageError: on reading, if it is damaged."""

    def __init__(self, source: Readable) -> None:
        super().__init__()
        self._inflater = Inflater(source)
        self._pieces = iter(self._inflater)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill *buffer* as far as there is something at hand."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def decompressed(source: Readable) -> io.BufferedReader:
    """The plain bytes of a blob as a file; *source* is borrowed."""
    return io.BufferedReader(Decompressed(source), CHUNK_OUT)


@final
class Compressed:
    """
    Compresses what is written, and passes it on; the same bytes give the same result.

    Attributes:
        size: Bytes that have been passed on.
        digest: Theirs, once it is closed.
    """

    def __init__(self, write: Callable[[bytes], object], kind: Written) -> None:
        self._write = write
        self._hash = hashlib.sha256()
        self.size = 0
        self.digest = ""
        if kind == "gzip":
            # With these bits zlib writes a header without a name and a time.
            self._compress, self._flush = _methods(zlib.compressobj(wbits=31))
        elif kind == "zstd":
            self._compress, self._flush = _methods(zstd.ZstdCompressor())
        elif kind == "none":
            self._compress, self._flush = bytes, bytes
        else:
            raise SpecError("kind", kind, "'gzip', 'zstd' or 'none'")

    def write(self, data: bytes) -> int:
        """Take *data*; it may be passed on later."""
        self._pass(self._compress(data))
        return len(data)

    def close(self) -> None:
        """Pass on the rest. A second time does nothing."""
        if not self.digest:
            self._pass(self._flush())
            self.digest = f"sha256:{self._hash.hexdigest()}"

    def _pass(self, data: bytes) -> None:
        if data:
            self._hash.update(data)
            self.size += len(data)
            self._write(data)


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _methods(of: _Compressor) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    return of.compress, of.flush


def compressed(write: Callable[[bytes], object], kind: Written) -> Compressed:
    """A sink that compresses; close it, then all has gone to *write*. Raises: SpecError: the kind."""
    return Compressed(write, kind)


__all__ = ["Compressed", "Inflater", "Kind", "Readable", "compressed", "decompressed", "sniff"]
