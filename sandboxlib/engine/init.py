"""Pid 1 of a sandbox: its start, and its end. It is the program's own child."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from sandboxlib.engine.encode import failure
from sandboxlib.engine.join import open_namespace
from sandboxlib.engine.patience import LONGEST, answer, left
from sandboxlib.engine.waiter import READ, Waiter
from sandboxlib.errors import KernelError
from sandboxlib.kernel import launcher
from sandboxlib.kernel.descriptor import Fd, go_on, pidfd_open, pipe, private
from sandboxlib.plan.start import maps_by_tool, namespaces, to_join
from sandboxlib.plan.steps import Plan

if TYPE_CHECKING:
    from sandboxlib.engine.connect_network import Connected
    from sandboxlib.host import Host
    from sandboxlib.spec import SandboxSpec

_STANDS = ("recvmsg()", "hear that the sandbox stands")
#: Seconds that a pid 1 which was killed has to end before it is looked for what keeps it.
PATIENCE = 0.1


class Init:
    """
    Pid 1, which is there before it is started.

    Attributes:
        scratch: What it hands out: the folder with an overlay's upper layer.
    """

    def __init__(self, waiter: Waiter, children: set[int]) -> None:
        self._waiter = waiter
        self._children = children
        # A forked child is not to keep it alive.
        self._launch = private(launcher.Launch())
        self.scratch = Fd()

    @property
    def pid(self) -> int:
        """Its number outside; 0 as long as there is none."""
        return self._launch.pid

    @property
    def pidfd(self) -> int:
        """The same, as a descriptor; -1 before and after."""
        return self._launch.pidfd

    @property
    def ended(self) -> launcher.Ended | None:
        """How it ended, or None."""
        return self._launch.ended

    async def start(
        self, spec: SandboxSpec, host: Host, plan: Plan, code: bytes, connections: Connected | None
    ) -> None:
        """
        Carry out *plan*, which is *code*, until pid 1 is ready. Raises: KernelError: A step failed.

        Whatever comes, what has been made by then is known.
        """
        modes = namespaces(spec, host)
        launch = self._launch
        spaces: list[Fd] = []
        tie, (read, write) = launch.tie(), pipe()
        try:
            for value in to_join(modes):
                spaces.append(open_namespace(value))  # noqa: PERF401 - closed if a later one cannot be opened
            numbers = [space.fileno() for space in spaces]
            with pidfd_open(os.getpid()) as owner:
                launch.begin(code, owner, write.fileno(), read.fileno(), tie.fileno(), *numbers)
            read.close()
            tie.close()
            if not maps_by_tool(host, modes):
                write.close()
            await self._ready(spec, host, plan, write, connections)
        finally:
            # Without its last end a pid 1 that still waits gives up.
            for fd in (write, read, tie, *spaces):
                fd.close()
            await self._catch_up()

    async def _ready(
        self, spec: SandboxSpec, host: Host, plan: Plan, sync: Fd, connections: Connected | None
    ) -> None:
        launch, problem = self._launch, None
        while True:
            await answer(self._waiter, {launch.control: READ}, self.pid or launch.launcher, _STANDS)
            report = launch.hear()
            if report is None:
                raise KernelError(32, f"recvmsg({launch.control})", "the launcher ended without a word")
            if self.pid:
                self._children.add(self.pid)
                launch.pin()
            if report.kind == launcher.CHILD:
                if sync:
                    await self._map_ids(spec, host)
                    go_on(sync)
            elif report.kind == launcher.READY and connections is not None:
                # Pid 1 goes on meanwhile, and will say once more that it is ready; or why it is not, which
                # explains why there was nothing to connect.
                problem = await connections.connect(self._waiter, self.pid, report.fd)
                connections = None
            elif report.kind == launcher.READY:
                self.scratch = report.fd
                if problem is not None:
                    raise problem
                return
            else:
                raise failure(plan.steps, report.step, report.error)

    async def _map_ids(self, spec: SandboxSpec, host: Host) -> None:
        from sandboxlib.engine.idmap import write_maps

        pid = self.pid
        await self._waiter.work(lambda: write_maps(pid, spec, host))

    async def _catch_up(self) -> None:
        """
        See the launcher's end, and hear of a pid 1 that nobody has heard of: it is our child, to be ended.

        When the launcher has ended, what it had to say of a child is there.
        """
        launch = self._launch
        if launch.control >= 0:
            await left(self._waiter, launch)
            for _ in launch.pending():
                continue
            launch.hang_up()
        if launch.lives and launch.pidfd < 0:
            self._children.add(self.pid)
            # Without a descriptor it is waited for all the same.
            with contextlib.suppress(KernelError):
                launch.pin()

    def kill(self) -> None:
        """Kill it, if it is there, and with it all that is in its PID namespace."""
        self._launch.kill()

    def poll(self) -> launcher.Ended | None:
        """How it ended, or None. Does not wait."""
        # Where the program ignores SIGCHLD the kernel has reaped it.
        with contextlib.suppress(ChildProcessError):
            self._launch.wait()
        if self.ended is not None:
            self._children.discard(self.pid)
        return self.ended

    async def reap(self) -> None:
        """
        Kill it, and wait for its end and, where that was interrupted, the launcher's.

        Raises:
            KernelError: EBUSY: something in it is in a call that nothing interrupts.
        """
        await self._catch_up()
        if not self._launch.lives:
            return
        self._launch.kill()
        deadline = self._waiter.now() + LONGEST
        while self.poll() is None:
            # Where there was no descriptor left for it, it is looked at now and then.
            fds = {self.pidfd: READ} if self.pidfd >= 0 else {}
            if not await self._waiter.ready(fds, self._waiter.now() + PATIENCE):
                # A command that was interrupted while it started, before we heard of it, is our child
                # all the same, and pid 1 cannot go before it is reaped.
                launcher.reap_strays(f"/proc/{self.pid}/ns/pid", self._children)
                if self._waiter.now() >= deadline:
                    call = f"waitpid({self.pid})"
                    raise KernelError(errno.EBUSY, call, "pid 1, which was killed, is to end")

    def close(self) -> None:
        """Close all descriptors."""
        self._launch.close()
        self.scratch.close()


__all__ = ["PATIENCE", "Init"]
