"""
Threads of one piece of work: they come from it and end with it, whatever way it ends.

The thread that asked waits for them, and it alone calls back: what a caller gives to be called for progress,
or to give up, need not know of threads.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from sandboxlib.image.stopping import Stop

T = TypeVar("T")

#: Seconds between two looks at whether to give up.
PATIENCE = 0.05


def never() -> None:
    """Do not give up."""


class Crew:
    """
    At most *threads* threads.

    Args:
        stop: What they look at.
        cancelled: Raises to give up; called in the thread that waits.
        on_event: Gets what the threads `say`; called in the thread that waits.
        threads: How many.

    Attributes:
        cancelled: As given.
    """

    def __init__(
        self,
        stop: Stop,
        cancelled: Callable[[], None] = never,
        on_event: Callable[[Any], object] | None = None,
        threads: int = 4,
    ) -> None:
        self._stop = stop
        self.cancelled = cancelled
        self._on_event = on_event
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="sandboxlib-image")
        self._queue: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stop.now()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._stop.again()

    def start(self, function: Callable[[], T]) -> Future[T]:
        """Have a thread call *function*, when one is free."""
        future = self._executor.submit(function)
        future.add_done_callback(lambda done: self._queue.put((True, done)))
        return future

    def say(self, event: object) -> None:
        """Hand something to the thread that waits; from any thread."""
        if self._on_event is not None:
            self._queue.put((False, event))

    def done(self, count: int) -> Iterator[Future[Any]]:
        """The next *count* calls that have ended, as they end; calls back in between."""
        while count:
            self.cancelled()
            try:
                ended, what = self._queue.get(timeout=PATIENCE)
            except queue.Empty:
                continue
            if ended:
                count -= 1
                yield what
            elif self._on_event is not None:
                self._on_event(what)

    def drain(self) -> None:
        """Call back with what was said and not handed on yet; all calls have ended."""
        while self._on_event is not None and not self._queue.empty():
            ended, what = self._queue.get()
            if not ended:
                self._on_event(what)

    def run(self, function: Callable[[], T]) -> T:
        """Call *function* in a thread and wait for it; nothing else may have been started."""
        future = self.start(function)
        for _ in self.done(1):
            pass
        return future.result()


__all__ = ["PATIENCE", "Crew", "never"]
