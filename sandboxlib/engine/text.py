"""What a command wrote, as bytes and as text: also where it was cut in the middle of a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import NamedTuple

from sandboxlib.errors import SpecError

#: Encodings whose characters begin at multiples of so many bytes.
_UNITS = {"utf-16": 2, "utf-32": 4}
#: Bytes behind a cut that are looked at to find where a character begins.
_LOOK = 64
#: The most bytes that a character has, by those encodings that Python knows.
_LONGEST_CHARACTER = 4


def decoder(encoding: object, errors: object) -> codecs.IncrementalDecoder:
    """
    A decoder for what comes in pieces.

    Raises:
        SpecError: Python knows no such encoding of text, or no such way with errors.
    """
    if not isinstance(encoding, str):
        raise SpecError("encoding", encoding, "the name of an encoding, such as 'utf-8'")
    if not isinstance(errors, str):
        raise SpecError("errors", errors, "the name of a way with errors, such as 'replace'")
    try:
        codecs.lookup_error(errors)
    except (LookupError, ValueError) as error:
        raise SpecError("errors", errors, f"known to Python: {error}") from None
    try:
        # What is no encoding of text, such as base64, is refused by a string only.
        " ".encode(encoding)
        return codecs.getincrementaldecoder(encoding)(errors)
    except (LookupError, ValueError) as error:
        raise SpecError("encoding", encoding, f"known to Python: {error}") from None


class Kept(NamedTuple):
    """
    What was kept of a stream.

    Attributes:
        head: Its first bytes.
        tail: Its last bytes.
        left_out: Bytes between the two that were not kept.
        whole: It ends where its writer ended it. Else it was cut there: by a signal, a limit, a timeout.
    """

    head: bytes = b""
    tail: bytes = b""
    left_out: int = 0
    whole: bool = True

    @property
    def data(self) -> bytes:
        """All that was kept."""
        return self.head + self.tail

    def text(self, encoding: str, errors: str) -> str:
        r"""
        It as text, with ``\n`` for the ends of lines as `subprocess` has them.

        A character that a cut has gone through is left out. What is no text for another reason is treated as
        *errors* says.

        Raises:
            UnicodeDecodeError: The command wrote what is no text, and *errors* is ``strict``.
        """
        if self.whole and not self.left_out:
            found = self.data.decode(encoding, errors)
        else:
            found = "".join(self._pieces(encoding, errors))
        return found.replace("\r\n", "\n").replace("\r", "\n")

    def _pieces(self, encoding: str, errors: str) -> Iterator[str]:
        made = decoder(encoding, errors)
        if not self.left_out:
            # What stays in the decoder is the character that was cut.
            yield made.decode(self.data, self.whole)
            return
        yield made.decode(self.head)
        # Behind the gap it goes on with all that it knows, such as the order of bytes, but no half character.
        _, state = made.getstate()
        made.setstate((b"", state))
        begin = self._begin(encoding, state)
        if begin is None and errors == "strict":
            # Nobody can tell any more how the tail is to be read.
            made = decoder(encoding, "replace")
        yield made.decode(self.tail[begin or 0 :], self.whole)

    def _begin(self, encoding: str, state: int) -> int | None:
        """Where in the tail the first whole character begins; None where it does not look like text."""
        name = codecs.lookup(encoding).name
        unit = next((size for prefix, size in _UNITS.items() if name.startswith(prefix)), 1)
        first = -(len(self.head) + self.left_out) % unit
        for begin in range(first, first + _LONGEST_CHARACTER, unit):
            trial = decoder(encoding, "strict")
            trial.setstate((b"", state))
            try:
                trial.decode(self.tail[begin : begin + _LOOK])
            except UnicodeDecodeError:
                continue
            return begin
        return None


#: The name by which `codecs` knows `_leave_out_half`.
HALF_LEFT_OUT = "sandboxlib.half-left-out"
# As the decoders of CPython call an end in the middle of a character.
_HALVES = ("unexpected end of data", "incomplete multibyte sequence", "truncated data")


def _leave_out_half(error: UnicodeError) -> tuple[str, int]:
    """Leave out half a character at the end of a stream, for whoever wrote it may have been killed."""
    if isinstance(error, UnicodeDecodeError) and error.reason in _HALVES and error.end == len(error.object):
        return "", error.end
    raise error


def strict_but_for_the_end() -> str:
    """The name, for ``errors=``, of a way with errors that refuses all but half a character at the end."""
    codecs.register_error(HALF_LEFT_OUT, _leave_out_half)
    return HALF_LEFT_OUT


__all__ = ["Kept", "decoder", "strict_but_for_the_end"]
