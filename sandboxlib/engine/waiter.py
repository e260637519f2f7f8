"""What waits: descriptor readiness with a deadline, in each face's own way."""

from __future__ import annotations

import select
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import ceil, inf
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
READ, WRITE = select.POLLIN, select.POLLOUT
#: Milliseconds that poll(2) can wait at most: 24.8 days. Whoever has more patience asks again.
_LONGEST = (1 << 31) - 1


class Waiter(Protocol):
    """The six things in which the faces differ."""

    async def ready(self, fds: Mapping[int, int], deadline: float = inf) -> set[int]:
        """Wait until any of *fds* (descriptor to `READ` or `WRITE`) is ready; none are at the deadline."""

    async def work(self, fn: Callable[[], T]) -> T:
        """Run *fn*, which uses the disk, the network or the CPU for a while."""

    def check(self) -> None:
        """For what runs in `work`, every now and then: raises if it is to be given up."""

    async def turn(self) -> None:
        """
        Wait until it is one's turn: before what takes a while and has to be done here.

        Of many that begin or end something at once the others go on in between, and one that is
        cancelled has not begun.
        """

    def shield(self) -> AbstractContextManager[object]:
        """Within it, waiting is not cancelled."""

    def now(self) -> float:
        """Seconds on the clock of the deadlines."""


class BlockingWaiter:
    """Waits in poll(2); a coroutine on it never suspends."""

    async def ready(self, fds: Mapping[int, int], deadline: float = inf) -> set[int]:
        """Wait in poll(2)."""
        poll = select.poll()
        for fd, events in fds.items():
            poll.register(fd, events)
        while True:
            timeout = None
            if deadline != inf:
                timeout = min(max(0, ceil((deadline - time.monotonic()) * 1000)), _LONGEST)
            found = {fd for fd, _ in poll.poll(timeout)}
            if found or (timeout is not None and time.monotonic() >= deadline):
                return found

    async def work(self, fn: Callable[[], T]) -> T:
        """Run it here."""
        return fn()

    def check(self) -> None:
        """A signal's handler raises by itself."""

    async def turn(self) -> None:
        """Threads take turns by themselves."""

    def shield(self) -> AbstractContextManager[object]:
        """Nothing cancels a blocking call."""
        return nullcontext()

    def now(self) -> float:
        """The monotonic clock."""
        return time.monotonic()


BLOCKING = BlockingWaiter()


def complete(coroutine: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """
    Run a coroutine over a `BlockingWaiter` to its end.

    Raises:
        RuntimeError: It suspended, which a blocking waiter never does.
    """
    try:
        coroutine.send(None)  # type: ignore[union-attr]
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()  # type: ignore[union-attr]
    raise RuntimeError("the coroutine waits for an event loop")
