"""How the trio face waits."""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from math import inf
from typing import TypeVar

import trio

T = TypeVar("T")
#: How many have a turn in one round of the loop.
_TOGETHER = 16
_TURNS: trio.lowlevel.RunVar[trio.Semaphore] = trio.lowlevel.RunVar("sandboxlib's turns")


class TrioWaiter:
    """Waits in trio's loop; each call is a checkpoint."""

    async def ready(self, fds: Mapping[int, int], deadline: float = inf) -> set[int]:
        """
        Wait for any of them.

        An epoll of its own is what the loop waits for: so several tasks may wait for one
        descriptor (trio allows one), and one task for many, without a task for each.
        """
        if not fds:
            await trio.sleep_until(deadline)
            return set()
        poll = select.poll()
        for fd, events in fds.items():
            poll.register(fd, events)
        if found := _now(poll):
            await trio.lowlevel.checkpoint()
            return found
        with select.epoll(len(fds) or 1) as epoll:
            for fd, events in fds.items():
                # The bits of poll(2) and of epoll(7) are the same.
                epoll.register(fd, events)
            while not found and trio.current_time() < deadline:
                with trio.move_on_at(deadline):
                    await trio.lowlevel.wait_readable(epoll.fileno())
                # What somebody else took meanwhile is waited for again.
                found = _now(poll)
        if not found:
            await trio.lowlevel.checkpoint_if_cancelled()
        return found

    async def work(self, fn: Callable[[], T]) -> T:
        """Run it in a worker thread."""
        return await trio.to_thread.run_sync(fn)

    def check(self) -> None:
        """Raises: trio.Cancelled: The task that waits for this thread is cancelled."""
        trio.from_thread.check_cancelled()

    async def turn(self) -> None:
        """With the next round of the loop, or, where `_TOGETHER` others have that, with a later one."""
        try:
            turns = _TURNS.get()
        except LookupError:
            turns = trio.Semaphore(_TOGETHER)
            _TURNS.set(turns)
        # Whoever gets in has given the loop one round, and those next in line get another.
        async with turns:
            pass

    def shield(self) -> AbstractContextManager[object]:
        """Within it, nothing is cancelled."""
        return trio.CancelScope(shield=True)

    def now(self) -> float:
        """The loop's clock."""
        return trio.current_time()


def _now(poll: select.poll) -> set[int]:
    return {fd for fd, _ in poll.poll(0)}


TRIO = TrioWaiter()


__all__ = ["TRIO", "TrioWaiter"]
