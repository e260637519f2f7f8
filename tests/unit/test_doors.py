"""What comes out of the library is an error of the library's, which says what it was for."""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandboxlib
from sandboxlib import KernelError, SandboxError, StateError
from sandboxlib.doors import door, doors

#: Values: what they have is worked out of themselves, but for the verbs that open or look.
VALUES = {
    "CGroup": {"open"},
    "IdRange": set(),
    "Limits": set(),
    "Mount": set(),
    "Namespace": {"of", "open"},
    "Network": {"open"},
    "Rootfs": {"open"},
    "SandboxSpec": set(),
    "Security": set(),
    "Volume": {"list", "path", "prune", "remove"},
}
#: Nothing of these asks the kernel.
RESULTS = {
    *("CPUStats", "Change", "Completed", "IOStats", "MemoryStats", "NetworkStats", "Outcome", "PidsStats"),
    *("Plan", "Pressure", "ProcessInfo", "Stall", "Stats", "Usage"),
}


def is_door(member: object) -> bool:
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    return hasattr(member, "__wrapped__")


def verbs(cls: type) -> dict[str, object]:
    """What a caller can call of it, with what calls it."""
    kinds = (staticmethod, classmethod, property)
    return {
        name: member
        for one in cls.__mro__[:-1]
        if one.__module__.startswith("sandboxlib")
        for name, member in vars(one).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, kinds))
    }


def test_every_verb_is_a_door() -> None:
    missing = []
    for name in sandboxlib.__all__:
        thing = getattr(sandboxlib, name)
        if (
            not callable(thing)
            or name in RESULTS
            or (isinstance(thing, type) and issubclass(thing, Exception))
        ):
            continue
        if not isinstance(thing, type):
            missing += [] if is_door(thing) else [name]
            continue
        for verb, member in verbs(thing).items():
            if is_door(member) is not (name not in VALUES or verb in VALUES[name]):
                missing.append(f"{name}.{verb}")
    # Those of values that were said to be any.
    for name, wanted in VALUES.items():
        missing += [f"{name}.{verb}" for verb in wanted - verbs(getattr(sandboxlib, name)).keys()]
    assert missing == []


@doors
class Verbs:
    """As those of the library's classes."""

    def opened(self, path: object) -> Any:
        return open(path)  # type: ignore[call-overload]

    @property
    def listed(self) -> list[str]:
        return os.listdir("/nowhere/at/all")

    @classmethod
    def renamed(cls, source: str, target: str) -> None:
        os.rename(source, target)

    async def awaited(self) -> None:
        os.rmdir("/nowhere")

    def generated(self) -> Iterator[int]:
        yield 1
        os.rmdir("/nowhere")

    def called(self, function: Any) -> Any:
        return function()

    def _within(self) -> None:
        os.rmdir("/nowhere")


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module is a part of the library."""
    monkeypatch.setitem(globals(), "__name__", "sandboxlib.test")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Verbs().opened("/nowhere"), "Verbs.opened('/nowhere'): open(\"/nowhere\")"),
        (lambda: Verbs().opened(path=Path("/nowhere")), "Verbs.opened('/nowhere'): open(\"/nowhere\")"),
        (lambda: Verbs().listed, 'Verbs.listed(): listdir("/nowhere/at/all")'),
        (lambda: Verbs.renamed("/no", "/way"), 'Verbs.renamed(\'/no\'): rename("/no", "/way")'),
        (lambda: asyncio.run(Verbs().awaited()), 'Verbs.awaited(): rmdir("/nowhere")'),
        (lambda: list(Verbs().generated()), 'Verbs.generated(): rmdir("/nowhere")'),
    ],
)
def test_an_error_says_what_it_was_for(call: Any, text: str) -> None:
    with pytest.raises(KernelError) as caught:
        call()
    assert str(caught.value) == f"{text}: No such file or directory (ENOENT)"
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.errno == errno.ENOENT
    assert type(caught.value.__cause__) is FileNotFoundError


def test_what_the_caller_gave_is_shown_up_to_a_bound() -> None:
    with pytest.raises(KernelError) as caught:
        Verbs().opened("/" + "x" * 5000)
    assert "xxx…): open(" in str(caught.value)


def test_what_has_said_it_already_is_left_alone() -> None:
    known = KernelError(errno.EPERM, "mount()", "mount the root")
    for error in (known, StateError("the sandbox is closed")):

        @door
        def verb(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            verb()
        assert caught.value is error
    assert known.step == "mount the root"


def test_one_without_a_step_gets_it_and_stays_the_same() -> None:
    bare = KernelError(errno.EPERM, "mount()")

    @door
    def verb() -> None:
        raise bare

    with pytest.raises(
        SandboxError, match=r"^verb\(\): mount\(\): Operation not permitted \(EPERM\)$"
    ) as caught:
        verb()
    assert caught.value is bare


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("of a signal handler's"),
        OSError("no number"),
        socket.gaierror(-2, "no host"),
        ValueError("x"),
    ],
)
def test_what_no_call_of_the_kernel_says_is_left_alone(error: Exception) -> None:
    @door
    def verb() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        verb()
    assert caught.value is error


def test_what_a_function_of_the_callers_raises_is_the_callers() -> None:
    # Such as what `on_progress` writes to.
    made = compile("def callers():\n    open('/nowhere')\n", "<caller>", "exec")
    space: dict[str, Any] = {"__name__": "program", "__builtins__": __builtins__}
    exec(made, space)
    with pytest.raises(FileNotFoundError) as caught:
        Verbs().called(space["callers"])
    assert not isinstance(caught.value, SandboxError)


def test_signatures_and_texts_are_those_of_the_verbs() -> None:
    assert str(inspect.signature(sandboxlib.Files.read)).startswith("(self, path: 'Path', *, max_size")
    assert inspect.getdoc(sandboxlib.run)
    assert inspect.iscoroutinefunction(inspect.unwrap(sandboxlib.AsyncSandbox.run))
    assert inspect.iscoroutinefunction(sandboxlib.AsyncSandbox.run)
