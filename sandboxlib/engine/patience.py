"""
How long the library's own processes may take.

What runs inside can stop, freeze or hold a process on its way into the sandbox: a command before its
execve, pid 1 of a sandbox that shares another's PID namespace, a helper in a call on a file. So
nothing waits for one of them without a bound, and none is reaped by a call that waits.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING

from sandboxlib import quantity
from sandboxlib.engine.current import program
from sandboxlib.engine.waiter import READ
from sandboxlib.errors import KernelError, TimeoutExpired
from sandboxlib.kernel import proc
from sandboxlib.kernel.descriptor import Fd, pidfd_open
from sandboxlib.kernel.launcher import reaped

if TYPE_CHECKING:
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.kernel.cgroup import Leaf
    from sandboxlib.kernel.launcher import Launch

#: Seconds after which one that is stopped or asleep is taken to be held.
PATIENCE = 10.0
#: Seconds for one that works, or waits for a disk: a machine may be slow.
LONGEST = 60.0
#: For the error.
HELD = "something inside holds it: a signal that stops it, a lease, or a file system of its own"
#: Seconds between two looks after that, and how often it is found idle before it counts: it may just have
#: been about to go on.
_LOOK, _IDLE = 0.2, 3


class TooLateError(Exception):
    """The deadline came before a command had started."""


def _never() -> bool:
    return False


async def answer(
    waiter: Waiter,
    fds: Mapping[int, int],
    pid: int,
    what: Callable[[], tuple[str, str]] | tuple[str, str],
    *,
    deadline: float = inf,
    excused: Callable[[], bool] = _never,
) -> set[int]:
    """
    Wait for one of *fds*, which a process of ours is to make ready.

    Args:
        waiter: To wait by.
        fds: As `Waiter.ready`.
        pid: Which process it hangs on.
        what: The call and what it is for, for the error; or what tells both.
        deadline: The caller's own.
        excused: Is it the program itself that keeps it waiting?

    Returns:
        Those that are ready; none at the deadline.

    Raises:
        KernelError: ETIMEDOUT: it is held by something inside.
    """
    now = waiter.now()
    look, last, idle = now + PATIENCE, now + LONGEST, 0
    while not (found := await waiter.ready(fds, min(deadline, look))):
        now = waiter.now()
        if now >= deadline:
            break
        if excused():
            look, last = now + PATIENCE, now + LONGEST
            continue
        idle = idle + 1 if proc.state(pid) in proc.IDLE else 0
        if idle >= _IDLE or now >= last:
            raise KernelError(errno.ETIMEDOUT, *(what() if callable(what) else what), HELD)
        look = now + _LOOK
    return found


@asynccontextmanager
async def patiently(waiter: Waiter, verb: str, seconds: object) -> AsyncIterator[float]:
    """
    The deadline of a *verb* that has so many *seconds*, or no bound if that is None.

    Raises:
        TimeoutExpired: Something within came to it.
        SpecError: It is no time.
    """
    limit = None if seconds is None else quantity.seconds("timeout", seconds)
    deadline = inf if limit is None else waiter.now() + limit
    try:
        yield deadline
    except KernelError as error:
        if limit is None or error.errno != errno.ETIMEDOUT or waiter.now() < deadline:
            raise
        raise TimeoutExpired(verb, limit) from error


async def left(waiter: Waiter, launch: Launch, *, kill: bool = False) -> None:
    """
    Wait until the launcher of *launch*, if it was begun, has left; with *kill* it is killed first.

    Where it has not ended, although it was killed in the end, `reap_late` will find it.
    """
    if kill:
        launch.kill_launcher()
    await _ended(waiter, launch, launch.launcher, launch.reap_launcher, launch.kill_launcher)


async def killed(waiter: Waiter, launch: Launch) -> None:
    """Kill the child of *launch*, if it has one, and wait for its end, as `left` does."""
    launch.kill()
    await _ended(waiter, launch, launch.pid, launch.reap_child, launch.kill)


async def _ended(
    waiter: Waiter, launch: Launch, pid: int, reaped: Callable[[], bool], kill: Callable[[], None]
) -> None:
    if reaped():
        return
    with waiter.shield():
        for _ in range(2):
            deadline = waiter.now() + PATIENCE
            with _held(pid) as pidfd:
                while not reaped():
                    now = waiter.now()
                    if now >= deadline:
                        break
                    # Where there is no descriptor left for it, it is looked at now and then.
                    fds = {pidfd: READ} if pidfd >= 0 else {}
                    await waiter.ready(fds, deadline if fds else min(deadline, now + _LOOK))
                else:
                    return
            kill()
    program().late.add(launch)


async def emptied(waiter: Waiter, leaf: Leaf) -> None:
    """Kill all in a command's group, and reap those that are ours. Raises: KernelError: EBUSY: too late."""
    pids, deadline = leaf.pids(), waiter.now() + LONGEST
    await waiter.work(leaf.kill)
    while not all(reaped(pid) is not None for pid in pids):
        if waiter.now() >= deadline:
            call = f"waitpid({', '.join(map(str, pids))})"
            raise KernelError(errno.EBUSY, call, "a command that was killed is to end")
        await waiter.ready({}, waiter.now() + _LOOK)


def _held(pid: int) -> Fd:
    try:
        return pidfd_open(pid)
    except KernelError:
        return Fd()


async def reap_late(waiter: Waiter) -> None:
    """
    Reap those that could not be reaped in time: what held them has ended, if it was inside.

    Raises:
        KernelError: EBUSY, with those that are left.
    """
    late, deadline = program().late, waiter.now() + PATIENCE
    while found := {launch for launch in late if not (launch.reap_launcher() and launch.reap_child())}:
        late &= found
        if waiter.now() >= deadline:
            shown = ", ".join(str(launch.pid or launch.launcher) for launch in found)
            raise KernelError(errno.EBUSY, f"waitpid({shown})", "what was killed is to end")
        await waiter.ready({}, waiter.now() + _LOOK)
    late.clear()


__all__ = [
    "HELD",
    "LONGEST",
    "PATIENCE",
    "TooLateError",
    "answer",
    "emptied",
    "killed",
    "left",
    "patiently",
    "reap_late",
]
