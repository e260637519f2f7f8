"""Both faces have the same verbs, with the same arguments."""

from __future__ import annotations

import inspect

import pytest

import sandboxlib
from sandboxlib import AsyncFiles, AsyncProcess, AsyncSandbox, Files, Process, Sandbox

PAIRS = [(Sandbox, AsyncSandbox), (Process, AsyncProcess), (Files, AsyncFiles)]
#: A context manager is entered in each face's own way.
ENTERED = {"__enter__": "__aenter__", "__exit__": "__aexit__"}


def verbs(face: type) -> dict[str, object]:
    """The public names of a class, methods and properties."""
    return {
        name: inspect.getattr_static(face, name)
        for name in dict.fromkeys(name for part in face.__mro__[:-1] for name in vars(part))
        if not name.startswith("_") or name in {*ENTERED, *ENTERED.values()}
    }


def shape(function: object) -> list[tuple[str, object, object]]:
    """Names, kinds and defaults of the parameters."""
    assert callable(function)
    parameters = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, one.default) for one in parameters]


@pytest.mark.parametrize("blocking, trio", PAIRS, ids=lambda face: face.__name__)
def test_the_faces_have_the_same_verbs(blocking: type, trio: type) -> None:
    expected = {ENTERED.get(name, name) for name in verbs(blocking)}
    assert verbs(trio).keys() == expected


@pytest.mark.parametrize("blocking, trio", PAIRS, ids=lambda face: face.__name__)
def test_the_verbs_have_the_same_arguments(blocking: type, trio: type) -> None:
    other = verbs(trio)
    for name, verb in verbs(blocking).items():
        twin = other[ENTERED.get(name, name)]
        if isinstance(verb, property):
            assert isinstance(twin, property), name
        else:
            assert shape(twin) == shape(verb), name


def test_run_takes_the_same_options_in_both() -> None:
    from sandboxlib import running, trio

    assert running._RUN_OPTIONS == trio._RUN_OPTIONS
    assert shape(trio.run) == shape(sandboxlib.run)


@pytest.mark.parametrize("face", [face for _, face in PAIRS], ids=lambda face: face.__name__)
def test_what_can_wait_is_a_coroutine(face: type) -> None:
    # As trio's own Process: to look, and to send a signal, waits for nothing.
    sync = {"plan", "files", "poll", "send_signal", "terminate", "kill", "resize", "lines"}
    for name, verb in verbs(face).items():
        if inspect.isfunction(verb) and not (name in sync and face is not AsyncSandbox) and name != "plan":
            assert inspect.iscoroutinefunction(verb), name
