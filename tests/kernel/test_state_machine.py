"""
Any order of verbs through both faces: no leak, no hang, no wrong status.

Hypothesis chooses a list of operations; one interpreter carries it out on the trio face, or on
the blocking one, whose calls it makes through the same names. A model of one line for each command
says what its status has to be. That nothing is left the fixture for leaks sees after each test.
"""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxlib import (
    PIPE,
    AsyncSandbox,
    Completed,
    Outcome,
    Sandbox,
    StateError,
    TimeoutExpired,
    UnsupportedError,
)

pytestmark = [pytest.mark.userns, pytest.mark.timeout(600)]

#: Copies its input, and exits with 5 at its end.
CAT = ["sh", "-c", "cat; exit 5"]

OPERATIONS = st.one_of(
    st.tuples(st.just("run"), st.integers(0, 3)),
    st.tuples(st.just("time out"), st.sampled_from([0.001, 0.01, 0.05])),
    st.tuples(st.just("popen"), st.just(0)),
    st.tuples(st.sampled_from(["write", "finish", "wait", "terminate", "kill process"]), st.integers(0, 3)),
    st.tuples(st.just("cancel"), st.sampled_from([0.0, 0.002, 0.01, 0.05])),
    st.tuples(st.just("file"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["close", "open", "kill", "pause", "resume"]), st.just(0)),
)


#: What a paused sandbox does as any other does; before the rest it is resumed.
WHILE_PAUSED = {"wait", "kill process", "file", "close", "open", "kill", "pause", "resume"}


class Handle:
    """A command with what has to come of it: the model."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.written = b""
        self.read = b""
        self.closed = False
        # What may end it first; the others come too late.
        self.possible: set[int] = set()

    def end(self, code: int) -> None:
        if not self.possible:
            self.possible.add(code)


class Machine:
    """Carries operations out on one face."""

    def __init__(self, face: type) -> None:
        self.asynchronous = face is AsyncSandbox
        self.sandbox: Any = face()
        self.open = False
        self.paused = False
        self.handles: list[Handle] = []
        self.files: dict[int, bytes] = {}

    async def do(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a verb of either face."""
        result = call(*args, **options)
        return await result if inspect.isawaitable(result) else result

    async def carry_out(self, operations: list[tuple[str, Any]]) -> None:
        try:
            for name, argument in operations:
                if not self.open and name not in ("open", "close"):
                    with pytest.raises(StateError):
                        await self.do(self.sandbox.run, ["true"])
                    continue
                if self.paused and name not in WHILE_PAUSED:
                    await self._resume(0)
                await getattr(self, "_" + name.replace(" ", "_"))(argument)
        finally:
            with trio.CancelScope(shield=True) if self.asynchronous else _nothing():
                await self._close(0)

    async def _open(self, _: object) -> None:
        if self.open:
            with pytest.raises(StateError):
                await self.do(self.sandbox.open)
            return
        await self.do(self.sandbox.open)
        self.open, self.files = True, {}

    async def _pause(self, _: object) -> None:
        if self.sandbox._engine.group is None:
            with pytest.raises(UnsupportedError):
                await self.do(self.sandbox.pause)
            return
        await self.do(self.sandbox.pause)
        self.paused = True

    async def _resume(self, _: object) -> None:
        if self.sandbox._engine.group is not None:
            await self.do(self.sandbox.resume)
        self.paused = False

    async def _close(self, _: object) -> None:
        await self.do(self.sandbox.close)
        self.open = self.paused = False
        for handle in self.handles:
            handle.end(-signal.SIGKILL)
            await self._check_end(handle)
            await self._let_go(handle)
        self.handles = []

    async def _kill(self, _: object) -> None:
        await self.do(self.sandbox.kill)
        with pytest.raises(StateError):
            await self.do(self.sandbox.run, ["true"])
        await self._close(0)

    async def _run(self, code: int) -> None:
        done: Completed = await self.do(self.sandbox.run, ["sh", "-c", f"echo {code}; exit {code}"])
        assert (done.returncode, done.stdout, done.outcome) == (code, b"%d\n" % code, Outcome.EXITED)

    async def _time_out(self, patience: float) -> None:
        with pytest.raises(TimeoutExpired):
            await self.do(self.sandbox.run, ["sleep", "1000"], timeout=patience)

    async def _cancel(self, moment: float) -> None:
        if not self.asynchronous:
            return
        with trio.move_on_after(moment) as scope:
            await self.sandbox.run(["sleep", "1000"])
        assert scope.cancelled_caught

    async def _file(self, number: int) -> None:
        path = f"/work/{number}"
        assert await self.do(self.sandbox.files.exists, path) == (number in self.files)
        self.files[number] = bytes([number]) * 1000
        await self.do(self.sandbox.files.write, path, self.files[number])
        assert await self.do(self.sandbox.files.read, path) == self.files[number]

    async def _popen(self, _: object) -> None:
        if len(self.handles) < 4:
            self.handles.append(Handle(await self.do(self.sandbox.popen, CAT, stdin=PIPE, stdout=PIPE)))

    def _handle(self, number: int) -> Handle | None:
        return self.handles[number % len(self.handles)] if self.handles else None

    async def _write(self, number: int) -> None:
        handle = self._handle(number)
        if handle is None or handle.closed or handle.possible:
            return
        data = b"%d\n" % number
        process = handle.process
        if self.asynchronous:
            await process.stdin.send_all(data)
            answer = await process.stdout.receive_some(len(data))
        else:
            process.stdin.write(data)
            process.stdin.flush()
            answer = process.stdout.read(len(data))
        assert answer == data

    async def _finish(self, number: int) -> None:
        handle = self._handle(number)
        if handle is not None and not handle.closed:
            handle.closed = True
            await self._close_stream(handle.process.stdin)
            if not handle.possible:
                handle.end(5)
                # Let it be so, before a signal overtakes the end.
                assert await self.do(handle.process.wait, timeout=60) == 5

    async def _wait(self, number: int) -> None:
        handle = self._handle(number)
        if handle is None:
            return
        if handle.possible:
            await self._check_end(handle)
            return
        with pytest.raises(TimeoutExpired):
            await self.do(handle.process.wait, timeout=0.002)
        assert handle.process.poll() is None

    async def _terminate(self, number: int) -> None:
        if (handle := self._handle(number)) is not None:
            handle.process.terminate()
            handle.end(-signal.SIGTERM)
            await self._check_end(handle)

    async def _kill_process(self, number: int) -> None:
        if (handle := self._handle(number)) is not None:
            handle.process.kill()
            handle.end(-signal.SIGKILL)
            await self._check_end(handle)

    async def _check_end(self, handle: Handle) -> None:
        assert await self.do(handle.process.wait, timeout=60) in handle.possible
        expected = Outcome.SIGNALED if handle.process.returncode < 0 else Outcome.EXITED
        assert handle.process.outcome in {expected, Outcome.KILLED}
        assert handle.process.usage is not None

    async def _close_stream(self, stream: Any) -> None:
        await self.do(stream.aclose if self.asynchronous else stream.close)

    async def _let_go(self, handle: Handle) -> None:
        for stream in (handle.process.stdin, handle.process.stdout):
            await self._close_stream(stream)
        handle.process._process.release()


class _nothing:  # noqa: N801 - used as a function
    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return


def play(face: type, operations: list[tuple[str, Any]]) -> None:
    machine = Machine(face)
    if machine.asynchronous:
        trio.run(machine.carry_out, [("open", 0), *operations])
        return
    coroutine = machine.carry_out([("open", 0), *operations])
    # The blocking face never waits for a loop.
    with pytest.raises(StopIteration):
        coroutine.send(None)


FACES = pytest.mark.parametrize("face", [Sandbox, AsyncSandbox], ids=["blocking", "trio"])
SETTINGS = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


@FACES
@given(operations=st.lists(OPERATIONS, min_size=8, max_size=25))
@settings(SETTINGS, max_examples=60)
def test_any_order_of_verbs_ends_well(face: type, operations: list[tuple[str, Any]]) -> None:
    play(face, operations)


@pytest.mark.slow
@FACES
@given(operations=st.lists(OPERATIONS, min_size=10, max_size=60))
@settings(SETTINGS, max_examples=120, derandomize=False)
def test_any_long_order_of_verbs_ends_well(face: type, operations: list[tuple[str, Any]]) -> None:
    play(face, operations)
