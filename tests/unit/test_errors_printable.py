"""No text of an error holds what a terminal obeys, whatever the names in it are."""

from __future__ import annotations

import pickle
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxlib import errors
from sandboxlib.errors import printable

#: Clears the screen, renames the window, hides what comes before, turns the text around, ends the line.
HOSTILE = "\x1b[2J\x1b]0;x\x07\r\u202e\u2028\x9b\udcff\nend"

MAKERS: dict[str, Callable[[str], BaseException]] = {
    "SpecError": lambda name: errors.SpecError("path", name, "a path"),
    "UnsupportedError": lambda name: errors.UnsupportedError(name, name, name),
    "KernelError": lambda name: errors.KernelError(2, f'openat("{name}")', name, name),
    "ImageError": lambda name: errors.ImageError("no", name),
    "ImageError's message": errors.ImageError,
    "NetworkError": errors.NetworkError,
    "ViolationError": lambda name: errors.ViolationError("no", name),
    "TooLargeError": lambda name: errors.TooLargeError(name, "bytes", 5, "max_size"),
    "StateError": errors.StateError,
    "BuildError": lambda name: errors.BuildError(name, name, 3, name),
    "DockerfileError": lambda name: errors.DockerfileError(name, name, 3, name),
    "ExitError": lambda name: errors.ExitError(1, [name], b"", name.encode(errors="surrogateescape")),
    "CommandNotFoundError": lambda name: errors.CommandNotFoundError(name, [name]),
    "CommandNotExecutableError": lambda name: errors.CommandNotExecutableError(name, [name], 13, name),
    "TimeoutExpired": lambda name: errors.TimeoutExpired([name], 1),
}


def obeyed(text: str) -> str:
    """What of a text is not shown as itself: control characters, marks, what is no character."""
    return "".join(
        letter for letter in text if unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    )


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_nothing_of_a_name_is_obeyed(make: Callable[[str], BaseException]) -> None:
    error = make(HOSTILE)
    # Of several lines are messages, and what a command has written.
    assert set(obeyed(str(error))) <= {"\n"}
    assert not obeyed(repr(error).replace("\n", ""))
    assert "\\x1b[2J" in str(error)


@pytest.mark.parametrize("name", ["KernelError", "ImageError", "ViolationError", "TooLargeError"])
def test_a_name_makes_no_line_of_its_own(name: str) -> None:
    assert "\n" not in str(MAKERS[name]("file\nERROR: all is lost"))


def test_every_error_is_tried() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.SandboxError) and not name.startswith("_")
    }
    kernels = {name for name in found if name.startswith("Kernel") and name != "KernelError"}
    assert found - kernels - {"SandboxError"} == {name.partition("'")[0] for name in MAKERS} & found


def test_the_attributes_hold_the_names_as_they_are() -> None:
    assert errors.ViolationError("no", HOSTILE).path == HOSTILE
    assert errors.TooLargeError(HOSTILE, "bytes", 5, "max_size").where == HOSTILE
    assert errors.CommandNotFoundError(HOSTILE, []).path == HOSTILE
    error = pickle.loads(pickle.dumps(errors.KernelError(2, f'openat("{HOSTILE}")')))
    assert error.call == f'openat("{HOSTILE}")'


@given(st.text(st.characters()))
def test_what_is_printable_stays_and_the_rest_is_as_in_python(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text
    assert printable(text, "\n").replace("\n", "\\n") == shown


def test_bytes_that_are_no_text_are_shown_as_bytes() -> None:
    assert printable("a\udcffb") == "a\\xffb"
    assert printable("ä ☃ 😀") == "ä ☃ 😀"
