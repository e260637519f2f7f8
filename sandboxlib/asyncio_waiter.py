"""How the asyncio face waits."""

from __future__ import annotations

import asyncio
import contextvars
import select
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from math import inf
from typing import Any, TypeVar

from sandboxlib.errors import StateError

T = TypeVar("T")
Loop = asyncio.AbstractEventLoop

#: Threads of one loop's that work at the same time; as trio has them.
THREADS = 40
#: How many have a turn in one round of the loop.
_TOGETHER = 16


class _GivenUp(BaseException):
    """What `AsyncioWaiter.check` raises; not an Exception, as asyncio.CancelledError is none."""


class _State:
    """
    What one task has asked for.

    Attributes:
        shields: How many shields it is in.
        verbs: How many verbs it is in.
        pending: A cancellation that asyncio has told, and that could not be passed on yet.
    """

    __slots__ = ("pending", "shields", "verbs")

    def __init__(self) -> None:
        self.shields = self.verbs = 0
        self.pending: asyncio.CancelledError | None = None

    def take(self) -> asyncio.CancelledError | None:
        """What is pending, and is now passed on."""
        pending, self.pending = self.pending, None
        return pending

    def told(self, error: asyncio.CancelledError) -> None:
        """Keep a cancellation; of several asyncio tells but one, too."""
        self.pending = self.pending or error


class AsyncioWaiter:
    """
    Waits in the running loop of asyncio's, or of uvloop's; each call is a checkpoint.

    asyncio tells a cancellation once, where a task waits next, and has no shield which would hold it back.
    So it is kept here: what comes in a shield is told where the task waits next outside of it, and at the
    end of the verb at the latest, in place of the verb's result or error. How often a task is to be
    cancelled is counted by asyncio (`asyncio.Task.cancelling`), and stays as it is: by that
    `asyncio.timeout` and `asyncio.TaskGroup` see that a cancellation is theirs.
    """

    def __init__(self) -> None:
        self._states: weakref.WeakKeyDictionary[asyncio.Task[Any], _State] = weakref.WeakKeyDictionary()
        self._threads: weakref.WeakKeyDictionary[Loop, asyncio.Semaphore] = weakref.WeakKeyDictionary()
        self._turns: weakref.WeakKeyDictionary[Loop, asyncio.Semaphore] = weakref.WeakKeyDictionary()
        self._local = threading.local()

    async def ready(self, fds: Mapping[int, int], deadline: float = inf) -> set[int]:
        """
        Wait for any of them.

        An epoll of its own is what the loop watches: so several tasks may wait for one descriptor, and for
        one that a transport uses, which `asyncio.loop.add_reader` refuses.
        """
        poll = select.poll()
        for fd, events in fds.items():
            poll.register(fd, events)
        if fds and (found := _now(poll)):
            await self.checkpoint()
            return found
        if not fds:
            await self._until(None, deadline)
            return set()
        with select.epoll(len(fds)) as epoll:
            for fd, events in fds.items():
                # The bits of poll(2) and of epoll(7) are the same.
                epoll.register(fd, events)
            while True:
                await self._until(epoll.fileno(), deadline)
                # What somebody else took meanwhile is waited for again.
                if (found := _now(poll)) or time.monotonic() >= deadline:
                    return found

    async def checkpoint(self) -> None:
        """Let others run, and hear of a cancellation."""
        state = self._state()
        self._pass_on(state)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            if not state.shields:
                raise
            state.told(error)

    async def work(self, fn: Callable[[], T]) -> T:
        """
        Run it in a thread of its own, in the context of this task.

        Cancelled, it goes on until *fn* has ended or hears of it by `check`: what it uses is ours. What
        it returns is not lost then: the cancellation waits.
        """
        state, loop = self._state(), asyncio.get_running_loop()
        self._pass_on(state)
        limit = self._threads.setdefault(loop, asyncio.Semaphore(THREADS))
        await self._acquired(state, limit)
        try:
            given_up = threading.Event()
            result: asyncio.Future[Callable[[], T]] = loop.create_future()

            def tell(outcome: Callable[[], T]) -> None:
                # Nobody is left to tell where the loop has ended.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(result.set_result, outcome)

            context = contextvars.copy_context()
            body = (context.run, self._run, fn, given_up)
            threading.Thread(target=lambda: tell(_outcome(*body)), name="sandboxlib work").start()
            while not result.done():
                try:
                    await asyncio.wait([result])
                except asyncio.CancelledError as error:
                    state.told(error)
                    if not state.shields:
                        given_up.set()
        finally:
            limit.release()
        try:
            return result.result()()
        except _GivenUp:
            pending = state.take()
            assert pending is not None, "work is given up only when its task is cancelled"
            raise pending from None

    async def turn(self) -> None:
        """With the next round of the loop, or, where `_TOGETHER` others have that, with a later one."""
        state = self._state()
        self._pass_on(state)
        turns = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_TOGETHER))
        await self._acquired(state, turns)
        try:
            await self.checkpoint()
        finally:
            turns.release()

    def check(self) -> None:
        """For *fn* of `work`: ends it where its task is cancelled."""
        if self._local.given_up.is_set():
            raise _GivenUp

    def shield(self) -> AbstractContextManager[object]:
        """Within it, nothing is cancelled; what comes meanwhile is told later."""
        return self._shield(self._state())

    def verb(self) -> AbstractContextManager[object]:
        """
        One call of the face's, from its beginning to its end.

        A cancellation that came during a shield is told at its end at the latest, whatever the verb
        returns or raises, as by any code of asyncio's that is cancelled while it cleans up.
        """
        return self._verb(self._state())

    def now(self) -> float:
        """The monotonic clock; uvloop's own is that of its last turn."""
        return time.monotonic()

    # ---- parts ------------------------------------------------------------------------------

    def _state(self) -> _State:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if task is None:
            raise StateError(
                "sandboxlib.asyncio is for asyncio's tasks: in a trio program import from sandboxlib.trio, "
                "and elsewhere use Sandbox"
            )
        state = self._states.get(task)
        if state is None:
            state = self._states[task] = _State()
        return state

    def _pass_on(self, state: _State) -> None:
        if not state.shields and (pending := state.take()):
            raise pending

    async def _until(self, fd: int | None, deadline: float) -> None:
        """Wait until *fd* is readable, if there is one, but not beyond *deadline*."""
        state, loop = self._state(), asyncio.get_running_loop()
        self._pass_on(state)
        while True:
            woken: asyncio.Future[None] = loop.create_future()
            left = deadline - time.monotonic()
            timer = None if left == inf else loop.call_later(max(0.0, left), _wake, woken)
            if fd is not None:
                loop.add_reader(fd, _wake, woken)
            try:
                await woken
                return
            except asyncio.CancelledError as error:
                if not state.shields:
                    raise
                state.told(error)
            finally:
                if timer is not None:
                    timer.cancel()
                if fd is not None:
                    loop.remove_reader(fd)

    async def _acquired(self, state: _State, limit: asyncio.Semaphore) -> None:
        """Wait for a place; once more after each cancellation that comes in a shield."""
        while True:
            try:
                await limit.acquire()
                return
            except asyncio.CancelledError as error:
                if not state.shields:
                    raise
                state.told(error)

    def _run(self, fn: Callable[[], T], given_up: threading.Event) -> T:
        self._local.given_up = given_up
        return fn()

    @contextmanager
    def _shield(self, state: _State) -> Generator[None]:
        state.shields += 1
        try:
            yield
        finally:
            state.shields -= 1

    @contextmanager
    def _verb(self, state: _State) -> Generator[None]:
        state.verbs += 1
        pending = None
        try:
            yield
        except Exception:
            # The error is its context then.
            pending = state.pending
            if pending is None or state.verbs > 1:
                raise
        else:
            pending = state.pending
        finally:
            state.verbs -= 1
            if not state.verbs:
                # It is told now, or another one that the task is left with anyway.
                state.pending = None
        if pending is not None and not state.verbs:
            raise pending


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _now(poll: select.poll) -> set[int]:
    return {fd for fd, _ in poll.poll(0)}


def _outcome(run: Callable[..., T], *arguments: Any) -> Callable[[], T]:
    """Call *run* and return what gives its result, or raises its error, where it is wanted."""
    try:
        value = run(*arguments)
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is taken
        # An object and not a name, which ends with this block.
        return _Raises(error)
    return lambda: value


class _Raises:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self) -> Any:
        try:
            raise self._error
        finally:
            # An exception and its traceback must not hold each other.
            del self._error


ASYNCIO = AsyncioWaiter()

__all__ = ["ASYNCIO", "AsyncioWaiter"]
