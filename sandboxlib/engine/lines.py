"""Cuts what comes in pieces into lines, as bytes or as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sandboxlib.engine.text import decoder

if TYPE_CHECKING:
    import codecs

#: Bytes or characters without a line end after which what there is counts as a line: memory has an end.
LONGEST = 1 << 20


class Lines:
    """
    Lines of one stream, each with its end; the last may have none.

    A character whose bytes come in two pieces is decoded when it is whole.

    Raises:
        SpecError: There is no such encoding or way with errors.
    """

    def __init__(self, encoding: str | None = None, errors: str = "strict") -> None:
        self._decoder: codecs.IncrementalDecoder | None = None
        self._end: Any = b"\n"
        self._rest: Any = b""
        if encoding is not None:
            self._decoder = decoder(encoding, errors)
            self._end, self._rest = "\n", ""

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take in *data*; the lines that are whole now."""
        yield from self._cut(data if self._decoder is None else self._decoder.decode(data))

    @property
    def half(self) -> bool:
        """Has only a part of the last character come?"""
        return self._decoder is not None and bool(self._decoder.getstate()[0])

    def end(self, *, whole: bool = True) -> Iterator[Any]:
        """What is left at the end of the stream; without the half of a character where it is not *whole*."""
        if self._decoder is not None and whole:
            yield from self._cut(self._decoder.decode(b"", final=True))
        if self._rest:
            yield self._rest
            self._rest = self._rest[:0]

    def _cut(self, data: Any) -> Iterator[Any]:
        *whole, rest = data.split(self._end)
        for part in whole:
            yield self._rest + part + self._end
            self._rest = self._rest[:0]
        self._rest += rest
        while len(self._rest) >= LONGEST:
            yield self._rest[:LONGEST]
            self._rest = self._rest[LONGEST:]


__all__ = ["LONGEST", "Lines"]
