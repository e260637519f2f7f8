"""
What layers are compressed by: gzip, zstd, or nothing; told by the first bytes, not by what is said.

Spec: RFC 1952, with several members; RFC 8878, with several frames and those to be skipped.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Literal, Self

from sandboxlib.errors import ImageError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: The first byte of a frame of zstd to be skipped is one of sixteen, the others are fixed.
_SKIP = b"\x2a\x4d\x18"
_CHUNK = 1 << 18
#: Bytes that are produced at once, whatever they were compressed to.
MOST = 1 << 20
Kind = Literal["gzip", "zstd", "none"]


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


class decompressed:  # noqa: N801 - used as a function
    """
    A stream of what is in a layer's file, read in pieces of at most `MOST` bytes.

    Args:
        source: The file, at its beginning.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.consumed = 0
        head = self._next()
        if head.startswith(GZIP):
            self._pieces = self._gzip(head)
        elif head.startswith(ZSTD) or head[1:4] == _SKIP:
            self._pieces = self._zstd(head)
        else:
            self._pieces = self._plain(head)

    def _next(self) -> bytes:
        data = self._source.read(_CHUNK)
        self.consumed += len(data)
        return data

    def read(self, size: int = MOST) -> bytes:  # noqa: ARG002 - as a file's; a piece is never larger
        """
        Read the next piece; b"" at the end.

        Raises:
            ImageError: It is cut off, or damaged.
        """
        return next(self._pieces, b"")

    def _plain(self, data: bytes) -> Any:
        while data:
            yield data
            data = self._next()

    def _gzip(self, data: bytes) -> Any:
        inflate = zlib.decompressobj(31)
        try:
            while True:
                out = inflate.decompress(data, MOST)
                if out:
                    yield out
                data = inflate.unconsumed_tail
                if inflate.eof:
                    # What is no further member is padding, as gzip(1) sees it.
                    data = inflate.unused_data.lstrip(b"\0") or self._next().lstrip(b"\0")
                    if len(data) < len(GZIP):
                        data += self._next()
                    if not data.startswith(GZIP):
                        return
                    inflate = zlib.decompressobj(31)
                elif not data:
                    data = self._next()
                    if not data:
                        raise ImageError("it is cut off: its gzip stream does not end")
        except zlib.error as error:
            raise ImageError(f"its gzip stream is damaged: {error}") from None

    def _zstd(self, data: bytes) -> Any:
        zstd = _zstd()
        frame: Any = None
        try:
            while True:
                if frame is None or frame.eof:
                    data = (frame.unused_data if frame is not None else data) or self._next()
                    if not data:
                        return
                    while len(data) < 8 and (more := self._next()):
                        data += more
                    if data[1:4] == _SKIP and data[0] >> 4 == 5:
                        data = self._skip(data)
                        frame = None
                        if not data:
                            return
                        continue
                    frame = zstd.ZstdDecompressor()
                elif frame.needs_input:
                    data = self._next()
                    if not data:
                        raise ImageError("it is cut off: its zstd frame does not end")
                else:
                    data = b""
                if out := frame.decompress(data, MOST):
                    yield out
        except zstd.ZstdError as error:
            raise ImageError(f"its zstd stream is damaged: {error}") from None

    def _skip(self, data: bytes) -> bytes:
        left = 8 + int.from_bytes(data[4:8], "little")
        while left > len(data):
            left -= len(data)
            data = self._next()
            if not data:
                raise ImageError("it is cut off: its zstd frame does not end")
        return data[left:] or self._next()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pieces = iter(())


class compressed:  # noqa: N801 - used as a function
    """
    Compress what is written, the same bytes always for the same content.

    Args:
        write: Gets the result, piece by piece.
        kind: How.
    """

    def __init__(self, write: Callable[[bytes], object], kind: Kind = "gzip") -> None:
        self._write = write
        self._engine: Any = None
        if kind == "gzip":
            # No name and no time in its header.
            self._engine = zlib.compressobj(6, zlib.DEFLATED, 31)
        elif kind == "zstd":
            self._engine = _zstd().ZstdCompressor()

    def write(self, data: bytes) -> int:
        """Take some bytes."""
        out = data if self._engine is None else self._engine.compress(data)
        if out:
            self._write(out)
        return len(data)

    def close(self) -> None:
        """Write what is left."""
        if self._engine is not None and (out := self._engine.flush()):
            self._write(out)
        self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


__all__ = ["MOST", "compressed", "decompressed"]
