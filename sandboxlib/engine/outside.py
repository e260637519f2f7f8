"""A helper that stands where the program stands, with all rights over the files of its sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandboxlib.engine.session import Helper
from sandboxlib.engine.waiter import Waiter
from sandboxlib.engine.walk import Requests, remove
from sandboxlib.host import Host
from sandboxlib.kernel.program import FIRST
from sandboxlib.plan.flags import CLONE_NEWUSER, Named
from sandboxlib.plan.steps import Call, Serve, Step, Write

#: The first descriptor that such a helper is given.
GIVEN = Named(FIRST, "<given>")


@asynccontextmanager
async def outside(waiter: Waiter, host: Host, fd: int) -> AsyncIterator[Requests]:
    """
    A helper that has *fd*, which is borrowed, as `GIVEN`.

    A user's files may belong to subordinate IDs, over which only root of a user namespace
    with these IDs has rights: there the helper goes.
    """
    serve = (Call("umask", (0,), "modes as given"), Serve("what the program asks for"))
    if host.privileged:
        async with Helper(waiter, serve, fd) as helper:
            yield Requests(helper)
    elif host.subuids and host.subgids:
        from sandboxlib.engine.alone import make_namespace
        from sandboxlib.namespace import Namespace

        maps = [
            [(0, own, 1), (1, *subordinate)]
            for own, subordinate in ((host.uid, host.subuids), (host.gid, host.subgids))
        ]
        # All of them: what sandboxes of other maps have left may be anybody's among these.
        space = await make_namespace(waiter, Namespace("user", uid_map=maps[0], gid_map=maps[1]))
        try:
            steps: tuple[Step, ...] = (
                Call("setns", (GIVEN + 1, CLONE_NEWUSER), "the user's own and subordinate IDs"),
                Call("setresgid", (0, 0, 0), "root of them"),
                Call("setresuid", (0, 0, 0), "root of them"),
                *serve,
            )
            async with Helper(waiter, steps, fd, space.fileno()) as helper:
                yield Requests(helper)
        finally:
            await space.aclose(waiter)
    else:
        steps = (
            Call("unshare", (CLONE_NEWUSER,), "the user's rights over what is the user's"),
            Write("/proc/self/setgroups", "deny", "without it only root may write gid_map"),
            Write("/proc/self/uid_map", f"0 {host.uid} 1\n", "the user"),
            Write("/proc/self/gid_map", f"0 {host.gid} 1\n", "and its group"),
            *serve,
        )
        async with Helper(waiter, steps, fd) as helper:
            yield Requests(helper)


async def remove_below(waiter: Waiter, host: Host, folder: int, name: str) -> None:
    """Remove *name* in the open *folder*, whatever sandboxes have put there. Raises: KernelError."""
    async with outside(waiter, host, folder) as asked:
        await remove(asked, GIVEN, name.encode())


__all__ = ["GIVEN", "outside", "remove_below"]
