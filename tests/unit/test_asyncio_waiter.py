"""How the asyncio face waits: readiness, deadlines, work in threads, and cancellations, told once each."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from math import inf

import pytest
from loops import LOOPS, Loop, cancelled_at, run

from sandboxlib.asyncio_waiter import ASYNCIO, THREADS
from sandboxlib.engine.waiter import READ, WRITE
from sandboxlib.errors import StateError

pytestmark = pytest.mark.parametrize("loop", LOOPS)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's two ends."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def task() -> asyncio.Task[object]:
    found = asyncio.current_task()
    assert found is not None
    return found


async def reached(told: BaseException | None) -> bool:
    """Is there an error of arithmetic among the contexts of *told*?"""
    while told is not None and not isinstance(told, ArithmeticError):
        told = told.__context__
    return told is not None


# --- readiness ------------------------------------------------------------------------------------------


def test_what_is_ready_is_told_at_once_and_what_becomes_ready_then(loop: Loop, pipe: tuple[int, int]) -> None:
    read, write = pipe

    async def main() -> None:
        assert await ASYNCIO.ready({read: READ, write: WRITE}) == {write}
        asyncio.get_running_loop().call_later(0.02, os.write, write, b"x")
        assert await ASYNCIO.ready({read: READ}) == {read}

    run(loop, main())


def test_at_the_deadline_nothing_is_ready_and_others_have_run(loop: Loop, pipe: tuple[int, int]) -> None:
    async def main() -> None:
        for fds in ({pipe[0]: READ}, {}):
            others: list[int] = []
            asyncio.get_running_loop().call_soon(others.append, 1)
            begin = ASYNCIO.now()
            assert await ASYNCIO.ready(fds, begin + 0.05) == set()
            assert ASYNCIO.now() - begin >= 0.05
            assert others
            # One that has passed waits for nothing.
            assert await ASYNCIO.ready(fds, begin) == set()

    run(loop, main())


def test_several_tasks_may_wait_for_one_descriptor_that_a_transport_reads(
    loop: Loop, pipe: tuple[int, int]
) -> None:
    async def main() -> None:
        read, write = pipe
        reader = asyncio.StreamReader()
        running = asyncio.get_running_loop()
        file = os.fdopen(os.dup(read), "rb", 0)
        transport, _ = await running.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
        transport.pause_reading()
        waiting = [asyncio.ensure_future(ASYNCIO.ready({read: READ})) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert not any(each.done() for each in waiting)
        os.write(write, b"x")
        assert await asyncio.gather(*waiting) == [{read}] * 3
        transport.close()
        await asyncio.sleep(0.01)

    run(loop, main())


# --- cancellation --------------------------------------------------------------------------------------


def test_who_is_cancelled_before_waits_for_nothing(loop: Loop, pipe: tuple[int, int]) -> None:
    async def main() -> None:
        for wait in (
            lambda: ASYNCIO.ready({pipe[0]: READ}),
            lambda: ASYNCIO.ready({pipe[1]: WRITE}),
            lambda: ASYNCIO.ready({}),
            ASYNCIO.checkpoint,
        ):
            (await task()).cancel()
            with pytest.raises(asyncio.CancelledError):
                await wait()
            (await task()).uncancel()

    run(loop, main())


def test_in_a_shield_nothing_is_cancelled_and_afterwards_it_is_told_once(
    loop: Loop, pipe: tuple[int, int]
) -> None:
    async def main() -> None:
        me, done = await task(), []
        with ASYNCIO.shield():
            me.cancel("the first")
            await ASYNCIO.checkpoint()
            me.cancel("the second")
            await ASYNCIO.ready({}, ASYNCIO.now() + 0.02)
            await ASYNCIO.ready({pipe[0]: READ}, ASYNCIO.now() + 0.02)
            with ASYNCIO.shield():
                assert await ASYNCIO.work(lambda: 5) == 5
            done.append(await ASYNCIO.ready({pipe[1]: WRITE}))
        assert done == [{pipe[1]}]
        with pytest.raises(asyncio.CancelledError, match="the first"):
            await ASYNCIO.ready({pipe[1]: WRITE})
        assert me.cancelling() == 2
        assert await ASYNCIO.ready({pipe[1]: WRITE}) == {pipe[1]}

    run(loop, main())


def test_a_shield_keeps_only_its_own_task(loop: Loop) -> None:
    async def other() -> None:
        await ASYNCIO.ready({})

    async def main() -> None:
        started = asyncio.ensure_future(other())
        with ASYNCIO.shield():
            await ASYNCIO.checkpoint()
            started.cancel()
            await asyncio.wait([started])
        assert started.cancelled()

    run(loop, main())


@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
def test_a_verb_tells_at_its_end_what_came_in_its_shield(loop: Loop, error: Exception | None) -> None:
    async def verb() -> None:
        with ASYNCIO.verb(), ASYNCIO.verb():
            with ASYNCIO.shield():
                await ASYNCIO.ready({}, ASYNCIO.now() + 0.05)
            if error is not None:
                raise error

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await verb()
        assert (await task()).cancelling() == 0
        # Nothing stays for what comes next.
        await asyncio.sleep(0)
        await ASYNCIO.checkpoint()

        asked = asyncio.ensure_future(verb())
        await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError) as told:
            await asked
        assert await reached(told.value) == (error is not None)

    run(loop, main())


def test_a_group_of_tasks_sees_that_the_cancellation_is_its_own(loop: Loop) -> None:
    ended = []

    async def verb() -> None:
        with ASYNCIO.verb():
            try:
                await ASYNCIO.ready({})
            finally:
                with ASYNCIO.shield():
                    await ASYNCIO.ready({}, ASYNCIO.now() + 0.02)
                    ended.append(1)

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise LookupError

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(verb())
            tasks.create_task(fails())

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as told:
            await group()
        assert [type(error) for error in told.value.exceptions] == [LookupError]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(verb(), 0.01)

    run(loop, main())
    assert ended == [1] * 4


def test_wherever_it_is_cancelled_it_is_told_and_the_end_is_reached(loop: Loop) -> None:
    async def verb(seen: list[str]) -> None:
        with ASYNCIO.verb():
            seen.append("begun")
            try:
                await ASYNCIO.checkpoint()
                await ASYNCIO.work(lambda: time.sleep(0.001))
                await ASYNCIO.ready({}, ASYNCIO.now() + 0.001)
            finally:
                with ASYNCIO.shield():
                    await ASYNCIO.checkpoint()
                    await ASYNCIO.work(lambda: time.sleep(0.001))
                    await ASYNCIO.ready({}, ASYNCIO.now() + 0.001)
                seen.append("ended")

    async def main() -> None:
        at, waits, told = 0, 0, True
        while told:
            at += 1
            seen: list[str] = []
            struck, told, waits = await cancelled_at(at, lambda seen=seen: verb(seen))  # type: ignore[misc]
            assert seen == ["begun", "ended"]
            assert told == struck
            assert at <= 20
        assert at > waits >= 6

    run(loop, main())


def test_many_that_want_a_turn_let_others_go_on(loop: Loop) -> None:
    turns = []

    async def takes(number: int) -> None:
        await ASYNCIO.turn()
        turns.append(number)
        time.sleep(0.002)  # noqa: ASYNC251 - as a start that keeps the loop busy

    async def main() -> None:
        rounds = 0
        tasks = [asyncio.ensure_future(takes(number)) for number in range(200)]
        while not all(each.done() for each in tasks):
            await asyncio.sleep(0)
            rounds += 1
        assert rounds >= 10
        assert turns == [*range(200)]
        (await task()).cancel()
        with pytest.raises(asyncio.CancelledError):
            await ASYNCIO.turn()
        (await task()).uncancel()
        late = [asyncio.ensure_future(takes(number)) for number in range(100)]
        await asyncio.sleep(0)
        for each in late:
            each.cancel()
        await asyncio.wait(late)
        assert len(turns) < 250
        await asyncio.wait_for(takes(300), 5)

    run(loop, main())


# --- work in threads -----------------------------------------------------------------------------------


def test_work_is_done_elsewhere_while_the_loop_goes_on(loop: Loop) -> None:
    async def main() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        counting = asyncio.ensure_future(count())
        assert await ASYNCIO.work(threading.get_ident) != threading.get_ident()
        await ASYNCIO.work(lambda: time.sleep(0.1))
        counting.cancel()
        assert turns > 10
        with pytest.raises(ZeroDivisionError):
            await ASYNCIO.work(lambda: 1 / 0)

    run(loop, main())


def test_work_that_looks_is_given_up(loop: Loop) -> None:
    ended = threading.Event()

    def busy() -> None:
        try:
            while True:
                time.sleep(0.001)
                ASYNCIO.check()
        finally:
            ended.set()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await ASYNCIO.work(busy)
        assert ended.is_set()
        await ASYNCIO.checkpoint()

    run(loop, main())


def test_what_work_returns_is_not_lost_to_a_cancellation(loop: Loop) -> None:
    got = []

    def make() -> str:
        time.sleep(0.1)
        return "made"

    async def timed() -> None:
        async with asyncio.timeout(0.01):
            got.append(await ASYNCIO.work(make))
            await ASYNCIO.checkpoint()
            got.append("gone on")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await timed()
        assert got == ["made"]

    run(loop, main())


def test_in_a_shield_work_hears_of_nothing(loop: Loop) -> None:
    def busy() -> str:
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            ASYNCIO.check()
            time.sleep(0.001)
        return "whole"

    async def main() -> None:
        me = await task()
        with ASYNCIO.shield():
            asyncio.get_running_loop().call_later(0.01, me.cancel)
            assert await ASYNCIO.work(busy) == "whole"
        with pytest.raises(asyncio.CancelledError):
            await ASYNCIO.work(busy)

    run(loop, main())


def test_so_many_threads_and_no_more(loop: Loop) -> None:
    most = now = 0
    lock = threading.Lock()

    def busy() -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1

    async def main() -> None:
        await asyncio.gather(*(ASYNCIO.work(busy) for _ in range(2 * THREADS)))

    before = threading.active_count()
    run(loop, main())
    assert most == THREADS
    assert threading.active_count() <= before + 1


# --- the wrong loop ------------------------------------------------------------------------------------


def test_without_a_task_of_asyncios_the_right_import_is_named(loop: Loop) -> None:
    del loop

    async def main() -> None:
        await ASYNCIO.ready({}, inf)

    for start in (_by_hand, _on_trio):
        with pytest.raises(StateError, match=r"sandboxlib\.trio"):
            start(main)


def _by_hand(main: Callable[[], object]) -> None:
    main().send(None)  # type: ignore[attr-defined]


def _on_trio(main: Callable[[], object]) -> None:
    import trio

    trio.run(main)  # type: ignore[arg-type]
