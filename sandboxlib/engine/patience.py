"""
How long the library's own processes may take.

What runs inside can stop, freeze or hold a process on its way into the sandbox: a command before its
execve, pid 1 of a sandbox that shares another's PID namespace, a helper in a call on a file. So
nothing waits for one of them without a bound, and none is reaped by a call that waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING

from sandboxlib.engine.current import program
from sandboxlib.engine.waiter import READ
from sandboxlib.errors import KernelError
from sandboxlib.kernel import launcher, proc

if TYPE_CHECKING:
    from sandboxlib.engine.waiter import Waiter

#: Seconds after which one that is stopped or asleep is taken to be held.
PATIENCE = 10.0
#: Seconds for one that works, or waits for a disk: a machine may be slow.
LONGEST = 60.0
#: Seconds between two looks after that, and how often it is found idle before it counts: it may just have
#: been about to go on.
_LOOK, _IDLE = 0.2, 3


def _never() -> bool:
    return False


async def answer(
    waiter: Waiter,
    fds: Mapping[int, int],
    pid: int,
    what: tuple[str, str],
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
        what: The call and what it is for, for the error.
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
            hint = "something inside holds it: a signal that stops it, a lease, or a file system of its own"
            raise KernelError(errno.ETIMEDOUT, *what, hint)
        look = now + _LOOK
    return found


async def reap(waiter: Waiter, pid: int, *, kill: bool = False) -> int | None:
    """
    Wait for the end of a child of ours which is about to end; with *kill* it is killed first.

    Returns:
        Its exit status, or the negative number of a signal; None if it has not ended, although it was
        killed in the end: `reap_late` will find it.
    """
    if kill:
        _kill(pid)
    elif (status := launcher.reaped(pid)) is not None:
        return status
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        # The program ignores SIGCHLD: the kernel has reaped it already.
        return 0
    try:
        with waiter.shield():
            if not await waiter.ready({pidfd: READ}, waiter.now() + PATIENCE):
                _kill(pid)
                if not await waiter.ready({pidfd: READ}, waiter.now() + PATIENCE):
                    program().late.add(pid)
                    return None
    finally:
        os.close(pidfd)
    return launcher.reaped(pid) or 0


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def reap_late(waiter: Waiter) -> None:
    """
    Reap those that could not be reaped in time: what held them has ended, if it was inside.

    Raises:
        KernelError: EBUSY, with those that are left.
    """
    late, deadline = program().late, waiter.now() + PATIENCE
    while left := {pid for pid in late if launcher.reaped(pid) is None}:
        late &= left
        if waiter.now() >= deadline:
            shown = ", ".join(map(str, sorted(left)))
            raise KernelError(errno.EBUSY, f"waitpid({shown})", "what was killed is to end")
        await waiter.ready({}, waiter.now() + _LOOK)
    late.clear()


__all__ = ["LONGEST", "PATIENCE", "answer", "reap", "reap_late"]
