"""Has a launcher make something, and hears what it hands out."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

from sandboxlib.engine.encode import encode, failure
from sandboxlib.engine.idmap import write_maps
from sandboxlib.engine.patience import answer, reap
from sandboxlib.engine.waiter import READ, Waiter
from sandboxlib.errors import KernelError
from sandboxlib.host import Host
from sandboxlib.kernel import launcher
from sandboxlib.namespace import Namespace
from sandboxlib.plan.flags import CLONE_NEWUSER, Named
from sandboxlib.plan.start import id_map, maps_by_tool
from sandboxlib.plan.steps import Call, ChildWrite, Clone, Report, Step, flatten
from sandboxlib.spec import SandboxSpec

OWNER, SYNC_READ, SYNC_WRITE = Named(5, "<owner>"), Named(6, "<sync>"), Named(7, "<sync'>")


class Made(NamedTuple):
    """
    What a launcher made.

    Attributes:
        fds: What it handed out, in order; owned.
        pid: Of its child, which has to be reaped.
        pidfd: The same, as a descriptor; owned.
    """

    fds: tuple[int, ...]
    pid: int
    pidfd: int


class Recipe(NamedTuple):
    """
    What a launcher is to make.

    Attributes:
        flags: Of the clone.
        child: What the child does once the ID maps are there.
        early: What the launcher does before.
        late: What it does when the maps are written.
        user: A new user namespace for it, as asked for.
        own: That user namespace has a range of its own, or subordinate IDs.
    """

    flags: Named
    child: tuple[Step, ...]
    early: tuple[Step, ...] = ()
    late: tuple[Step, ...] = ()
    user: Namespace | None = None
    own: bool = False


def _steps(recipe: Recipe, host: Host, by_tool: bool) -> Iterator[Step]:
    new_user = bool(recipe.flags & CLONE_NEWUSER)
    wait: list[Step] = [
        Call("close", (SYNC_WRITE,), "so that the end of the launcher is noticed"),
        Call("read", (SYNC_READ, bytes(8), 1), "wait for the launcher", positive=True),
    ]
    yield from recipe.early
    yield Clone(recipe.flags, (*wait, *recipe.child), "in the new namespaces")
    yield Report("child", "the program may now wait for it")
    if new_user and not by_tool:
        if not host.privileged:
            yield ChildWrite("setgroups", "deny", "without it only root may write gid_map")
        for which, own in (("uid", host.uid), ("gid", host.gid)):
            text = id_map(host, recipe.user, which) if recipe.own else f"0 {own} 1\n"
            yield ChildWrite(f"{which}_map", text, "the IDs in it")
    yield from recipe.late
    if not by_tool:
        yield Call("write", (SYNC_WRITE, b"!", 1), "it may go on")


async def make(waiter: Waiter, host: Host, recipe: Recipe, values: Mapping[str, int | str]) -> Made:
    """Run the launcher until the child has handed out all that it is to. Raises: KernelError."""
    modes: dict[str, Namespace | None] = {"user": recipe.user}
    by_tool = recipe.own and maps_by_tool(host, modes)
    steps = tuple(_steps(recipe, host, by_tool))
    expected = sum(isinstance(step, Report) and step.fd >= 0 for step in flatten(steps))
    fds: list[int] = []
    pid, pidfd = 0, -1
    ours, theirs = launcher.socketpair()
    owner = read = write = -1
    try:
        owner = os.pidfd_open(os.getpid())
        read, write = os.pipe2(os.O_CLOEXEC)
        first = launcher.spawn(encode(steps, values), (theirs,) * 3, theirs, owner, read, write)
        launcher.close(theirs, read, *(() if by_tool else (write,)))
        theirs = read = -1
        write = write if by_tool else -1
        try:
            while len(fds) < expected or not pid:
                await answer(waiter, {ours: READ}, pid or first, ("recvmsg()", "hear the launcher"))
                report = launcher.receive(ours)
                if report is None:
                    raise KernelError(32, f"recvmsg({ours})", "the launcher ended without a word")
                if report.kind == launcher.CHILD:
                    pid = report.value
                    pidfd = os.pidfd_open(pid)
                    if by_tool:
                        spec = SandboxSpec(namespaces=[recipe.user] if recipe.user else [])
                        await waiter.work(partial(write_maps, pid, spec, host))
                        os.write(write, b"!")
                elif report.kind == launcher.READY:
                    fds.append(report.fd)
                else:
                    raise failure(steps, report.step, report.error)
        finally:
            launcher.close(write)
            write = -1
            await reap(waiter, first)
            if not pid:
                # Interrupted: the launcher has ended, so what it had to say of a child is there.
                for report in launcher.pending(ours):
                    launcher.close(report.fd)
                    if report.kind == launcher.CHILD:
                        pid, pidfd = report.value, os.pidfd_open(report.value)
    except BaseException:
        launcher.close(*fds)
        await end(waiter, pid, pidfd)
        raise
    finally:
        launcher.close(ours, theirs, owner, read, write)
    return Made(tuple(fds), pid, pidfd)


async def end(waiter: Waiter, pid: int, pidfd: int) -> None:
    """Kill and reap the child *pid*, if there is one, and close its *pidfd*."""
    if pidfd >= 0:
        # It may have ended by itself, and wait to be reaped.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await reap(waiter, pid)
        os.close(pidfd)
