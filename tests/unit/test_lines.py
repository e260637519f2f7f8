"""Cutting what comes in pieces into lines."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxlib.engine.lines import LONGEST, Lines
from sandboxlib.errors import SpecError


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


@given(st.binary(max_size=200), st.lists(st.integers(0, 1000)))
def test_bytes_are_cut_as_a_file_would_cut_them(data: bytes, places: list[int]) -> None:
    lines = Lines()
    found = [line for piece in cut(data, places) for line in lines.feed(piece)]
    found += lines.end()
    assert found == data.splitlines(keepends=True) if b"\r" not in data else b"".join(found) == data
    assert all(line.endswith(b"\n") for line in found[:-1])


@given(
    st.text(max_size=100), st.lists(st.integers(0, 1000)), st.sampled_from(["utf-8", "utf-16", "utf-32-be"])
)
def test_no_character_is_lost_where_its_bytes_come_apart(text: str, places: list[int], encoding: str) -> None:
    lines = Lines(encoding)
    found = [line for piece in cut(text.encode(encoding), places) for line in lines.feed(piece)]
    found += lines.end()
    assert "".join(found) == text
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in found[:-1])


def test_a_line_without_end_does_not_take_all_memory() -> None:
    lines = Lines()
    found = list(lines.feed(b"x" * (3 * LONGEST + 5)))
    assert [len(line) for line in found] == [LONGEST] * 3
    assert list(lines.end()) == [b"xxxxx"]


def test_what_is_no_text_is_said_or_replaced_as_asked() -> None:
    with pytest.raises(UnicodeDecodeError):
        list(Lines("utf-8").feed(b"\xff\n"))
    assert list(Lines("utf-8", "replace").feed(b"\xff\n")) == ["\ufffd\n"]
    # An end in the middle of a character.
    half = Lines("utf-8", "replace")
    assert list(half.feed("ž".encode()[:1])) == []
    assert list(half.end()) == ["\ufffd"]


@pytest.mark.parametrize("arguments", [("no-such",), ("utf-8", "no-such"), (3,), ("utf-8", 3)])
def test_what_python_does_not_know_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(SpecError):
        Lines(*arguments)  # type: ignore[arg-type]
