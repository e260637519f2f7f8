"""Output as text, whole and cut: no character is invented, and none is in the way of the others."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxlib.engine.capture import Capture
from sandboxlib.engine.lines import Lines
from sandboxlib.engine.text import Kept, decoder, strict_but_for_the_end
from sandboxlib.errors import SpecError

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le", "latin-1"]
#: Without carriage returns, which universal newlines change.
TEXT = st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cs"], exclude_characters="\r"))


def encoded(text: str, encoding: str) -> bytes:
    return text.encode(encoding, "replace")


@given(TEXT, st.sampled_from(ENCODINGS))
def test_what_is_whole_is_as_python_reads_it(text: str, encoding: str) -> None:
    data = encoded(text, encoding)
    for split in (0, len(data) // 2, len(data)):
        assert Kept(data[:split], data[split:]).text(encoding, "strict") == data.decode(encoding)


@given(TEXT, st.sampled_from(ENCODINGS), st.integers(0, 400))
def test_at_a_cut_end_all_whole_characters_are_there(text: str, encoding: str, at: int) -> None:
    data = encoded(text, encoding)
    whole = data.decode(encoding)
    kept = Kept(data[:at], whole=False).text(encoding, "strict")
    assert whole.startswith(kept)
    # Not one more is lost than the one that was cut.
    missing = len(data) - len(data[:at])
    assert len(encoded(whole[len(kept) :], encoding)) <= missing + 8


@given(TEXT, st.sampled_from(ENCODINGS), st.integers(0, 120), st.booleans())
def test_around_a_gap_the_text_is_that_of_its_two_ends(
    text: str, encoding: str, limit: int, killed: bool
) -> None:
    data = encoded(text, encoding)
    capture = Capture(limit)
    capture.ended = True
    for at in range(0, len(data), 7):
        capture.add(data[at : at + 7])
    kept = capture.result(killed=killed)
    assert (len(kept.data), kept.left_out) == (min(limit, len(data)), max(0, len(data) - limit))
    if not kept.left_out:
        assert kept.text(encoding, "strict") == data.decode(encoding)
    elif len(kept.head) >= 4 or encoding not in ("utf-16", "utf-32", "utf-8-sig"):
        # Where its first bytes say how it is to be read.
        found = kept.text(encoding, "strict")
        whole = data.decode(encoding)
        pieces = [(whole[:n], found[n:]) for n in range(len(found) + 1) if whole.startswith(found[:n])]
        assert any(whole.endswith(rest) for _, rest in pieces), (found, whole)


def test_a_cut_through_a_character_is_no_error() -> None:
    euro = "€".encode()
    for cut in (1, 2):
        assert Kept(b"a" + euro[:cut], whole=False).text("utf-8", "strict") == "a"
        assert Kept(b"a" + euro[:cut], euro[cut:] + b"b", 3).text("utf-8", "strict") == "ab"
    assert Kept(b"a", euro[1:] + b"b" + euro[:1], 3, whole=False).text("utf-8", "strict") == "ab"


def test_what_is_no_text_for_another_reason_is_said() -> None:
    with pytest.raises(UnicodeDecodeError):
        Kept(b"\xff").text("utf-8", "strict")
    with pytest.raises(UnicodeDecodeError):
        # Whoever ends by himself in the middle of a character has written what is no text.
        Kept("€".encode()[:2]).text("utf-8", "strict")
    with pytest.raises(UnicodeDecodeError):
        Kept(b"\xff" + "€".encode()[:2], whole=False).text("utf-8", "strict")
    assert Kept(b"\xff" + "€".encode()[:2], whole=False).text("utf-8", "replace") == "\ufffd"


def test_a_tail_that_nobody_can_read_does_not_cost_the_head() -> None:
    tail = b"\xff" * 100
    assert Kept(b"head", tail, 5).text("utf-8", "strict") == "head" + "\ufffd" * 100


def test_ends_of_lines_are_as_subprocess_has_them() -> None:
    assert Kept(b"a\r\nb\rc\n").text("utf-8", "strict") == "a\nb\nc\n"
    assert Kept(b"a\r\nb", b"\nc", 1, whole=False).text("utf-8", "strict") == "a\nb\nc"


def test_lines_leave_out_half_a_character_where_they_were_cut() -> None:
    lines = Lines("utf-8")
    assert list(lines.feed("a\n€".encode()[:-1])) == ["a\n"]
    assert lines.half
    assert list(lines.end(whole=False)) == []
    again = Lines("utf-8")
    assert list(again.feed(b"b")) == []
    assert not again.half
    assert list(again.end(whole=False)) == ["b"]


def test_a_file_for_text_leaves_out_half_a_character_at_its_end_alone() -> None:
    errors = strict_but_for_the_end()
    for encoding in ("utf-8", "utf-16-le", "gb18030"):
        data = "a€".encode(encoding)
        assert io.TextIOWrapper(io.BytesIO(data[:-1]), encoding, errors).read() == "a"
        assert io.TextIOWrapper(io.BytesIO(data), encoding, errors).read() == "a€"
    for wrong in (b"\xff", b"\xff\xe2", b"\xe2\x82a"):
        with pytest.raises(UnicodeDecodeError):
            io.TextIOWrapper(io.BytesIO(wrong), "utf-8", errors).read()
    with pytest.raises(UnicodeEncodeError):
        "\ud800".encode("utf-8", errors)


@pytest.mark.parametrize("encoding", ["no-such", "base64", "a\0b", "\ud800", 3])
def test_an_encoding_that_there_is_not_is_refused(encoding: object) -> None:
    with pytest.raises(SpecError, match="encoding"):
        decoder(encoding, "strict")


@pytest.mark.parametrize("errors", ["no-such", "a\0b", 3])
def test_a_way_with_errors_that_there_is_not_is_refused(errors: object) -> None:
    with pytest.raises(SpecError, match="errors"):
        decoder("utf-8", errors)
