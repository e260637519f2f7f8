"""The event loops that asyncio programs run on, and cancellations at every place where a task waits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
Loop = Callable[[], asyncio.AbstractEventLoop]


def eager() -> asyncio.AbstractEventLoop:
    """A loop whose tasks begin at once, before who made them goes on (Python 3.12)."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    return loop


def uvloop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop's."""
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


# libuv keeps one pair of pipes for signals as long as the program lives, from its first loop on.
uvloop().close()

LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop, id="uvloop")]
if sys.version_info >= (3, 12):
    LOOPS.append(pytest.param(eager, id="eager"))


def run(loop: Loop, main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in a loop of its own."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)


class Struck:
    """Awaits *inner*; where it waits for the time *at* (from 1 on), *strike* is called a moment later."""

    def __init__(self, inner: Coroutine[Any, Any, Any], at: int, strike: Callable[[], object]) -> None:
        self._inner = inner
        self._at = at
        self._strike = strike
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._inner.__await__()
        thrown: BaseException | None = None
        while True:
            try:
                waits_for = next(steps) if thrown is None else steps.throw(thrown)
            except StopIteration as stop:
                return stop.value
            thrown = None
            self.waits += 1
            if self.waits == self._at:
                asyncio.get_running_loop().call_soon(self._strike)
            try:
                yield waits_for
            except BaseException as error:
                thrown = error


async def cancelled_at(at: int, main: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[bool, bool, int]:
    """
    Run *main* in a task, and cancel that where it waits for the time *at*.

    Returns:
        Whether it was cancelled, whether its task ended as cancelled, and how often it waited.
    """
    struck = False
    held: list[Struck] = []

    async def body() -> None:
        task = asyncio.current_task()
        assert task is not None

        def strike() -> None:
            nonlocal struck
            struck = task.cancel()

        held.append(Struck(main(), at, strike))
        await held[0]

    task = asyncio.ensure_future(body())
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return struck, task.cancelled(), held[0].waits
