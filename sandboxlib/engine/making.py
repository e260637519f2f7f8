"""Has a launcher make something, and hears what it hands out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

from sandboxlib.engine.encode import encode, failure
from sandboxlib.engine.idmap import write_maps
from sandboxlib.engine.patience import answer, killed, left
from sandboxlib.engine.waiter import READ, Waiter
from sandboxlib.errors import KernelError
from sandboxlib.host import Host
from sandboxlib.kernel import launcher
from sandboxlib.kernel.descriptor import Fd, go_on, pidfd_open, pipe
from sandboxlib.namespace import Namespace
from sandboxlib.plan.flags import CLONE_NEWUSER, O_CLOEXEC, Named
from sandboxlib.plan.ids import id_map
from sandboxlib.plan.start import GIVEN_TIE, SYNC_READ, SYNC_WRITE, TIE, maps_by_tool
from sandboxlib.plan.steps import Call, ChildWrite, Clone, Report, Step, flatten
from sandboxlib.spec import SandboxSpec


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
        Call("dup3", (GIVEN_TIE, TIE, O_CLOEXEC), "so that the end of the launcher is noticed"),
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


async def make(
    waiter: Waiter, host: Host, recipe: Recipe, values: Mapping[str, int | str], launch: launcher.Launch
) -> tuple[Fd, ...]:
    """
    Run the launcher, as *launch*, until the child has handed out all that it is to, in order.

    The child is there then, until `end`, and whatever comes before that.

    Raises:
        KernelError: A step failed.
    """
    modes: dict[str, Namespace | None] = {"user": recipe.user}
    by_tool = recipe.own and maps_by_tool(host, modes)
    steps = tuple(_steps(recipe, host, by_tool))
    expected = sum(isinstance(step, Report) and step.fd >= 0 for step in flatten(steps))
    fds: list[Fd] = []
    tie, (read, write) = launch.tie(), pipe()
    try:
        with pidfd_open(os.getpid()) as owner:
            launch.begin(encode(steps, values), owner, write.fileno(), read.fileno(), tie.fileno())
        read.close()
        tie.close()
        if not by_tool:
            write.close()
        while len(fds) < expected or not launch.pid:
            await answer(
                waiter,
                {launch.control: READ},
                launch.pid or launch.launcher,
                ("recvmsg()", "hear the launcher"),
            )
            report = launch.hear()
            if report is None:
                raise KernelError(32, f"recvmsg({launch.control})", "the launcher ended without a word")
            if report.kind == launcher.CHILD:
                if by_tool:
                    spec = SandboxSpec(namespaces=[recipe.user] if recipe.user else [])
                    await waiter.work(partial(write_maps, launch.pid, spec, host))
                    go_on(write)
            elif report.kind == launcher.READY:
                fds.append(report.fd)
            else:
                raise failure(steps, report.step, report.error)
        await left(waiter, launch)
        launch.hang_up()
    except BaseException:
        # Without its last end a child that still waits gives up.
        for fd in (write, read, tie, *fds):
            fd.close()
        await end(waiter, launch)
        raise
    write.close()
    return tuple(fds)


async def end(waiter: Waiter, launch: launcher.Launch) -> None:
    """Kill and reap what *launch* has made, if it has made anything. Idempotent."""
    if launch.control >= 0:
        await left(waiter, launch)
        # It has ended, so what it had to say of a child is there.
        for _ in launch.pending():
            continue
        launch.hang_up()
    await killed(waiter, launch)
    launch.close()
