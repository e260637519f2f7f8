"""A sandbox that stands: its start, what is asked of it, and its end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from sandboxlib.engine.begin import gather
from sandboxlib.engine.current import Program, program, resolve
from sandboxlib.engine.encode import failure
from sandboxlib.engine.join import open_namespace
from sandboxlib.engine.once import Once
from sandboxlib.engine.patience import LONGEST, answer, reap
from sandboxlib.engine.planning import asks_for_image, compiled, plan_start
from sandboxlib.engine.waiter import READ, Waiter
from sandboxlib.errors import KernelError, StateError
from sandboxlib.kernel import cgroup, launcher, proc
from sandboxlib.plan.start import maps_by_tool, namespaces, to_join
from sandboxlib.plan.steps import Plan

if TYPE_CHECKING:
    from sandboxlib.engine.connect_network import Connected
    from sandboxlib.engine.image import Held
    from sandboxlib.engine.process import Process
    from sandboxlib.engine.storage import Places
    from sandboxlib.host import Host
    from sandboxlib.spec import SandboxSpec

#: Seconds that a pid 1 which was killed has to end before it is looked for what keeps it.
_PATIENCE = 0.1


#: Changes what is known of the host before it is used.
View = Callable[["Host"], "Host"]


class Ended(NamedTuple):
    """How pid 1 ended: its exit status, negative for a signal."""

    status: int


class Engine:
    """
    One sandbox.

    Attributes:
        spec: What was asked for.
        host: What this machine can do.
        plan: What was done to start it.
        held: Its image, or None.
        group: Its cgroup, or None where there are none.
        pid: Of its pid 1, outside.
        pidfd: The same, as a descriptor.
        ids: The first of its range of IDs, or None.
        scratch: The folder with an overlay's upper layer, or -1.
    """

    def __init__(self, spec: SandboxSpec, waiter: Waiter, view: View | None = None) -> None:
        self.waiter = waiter
        self._view = view
        self.program: Program = program()
        self.spec, self.host, self.plan = spec, self.program.host, Plan(())
        self.held: Held | None = None
        if not asks_for_image(spec):
            self.settle(spec)
        self.group: cgroup.Group | None = None
        self.pid = 0
        self.pidfd = -1
        self.ids: int | None = None
        self.scratch = -1
        self.places: Places | None = None
        self.connections: Connected | None = None
        self.ended: Ended | None = None
        self.closed = False
        self.frozen = False
        self.killed = False
        self._began = waiter.now()
        self._owner = os.getpid()
        # A signal handler may close it, too.
        self._lock = threading.RLock()
        self._processes: set[Process] = set()
        self._starting: dict[Process, Once] = {}
        # Whoever closes it after the first waits for the first.
        self._closing: Once | None = None

    # ---- start ----------------------------------------------------------------------------

    def settle(self, spec: SandboxSpec) -> None:
        """Know what is to be started, and how."""
        self.spec, self.host = resolve(spec)
        if self._view is not None:
            self.host = self._view(self.host)
        self.plan = plan_start(self.spec, self.host)

    async def open(self) -> None:
        """
        Start it; on any error nothing is left behind.

        Raises:
            KernelError: A step failed; it says which.
        """
        try:
            await self._open()
        except BaseException:
            with self.waiter.shield():
                await self.close()
            raise

    async def _open(self) -> None:
        values = await gather(self)
        spec, host = self.spec, self.host
        modes = namespaces(spec, host)
        code = compiled(spec, host).fill(values)
        by_tool = maps_by_tool(host, modes)
        ours, theirs = launcher.socketpair()
        owner = read = write = -1
        spaces: list[int] = []
        try:
            owner = os.pidfd_open(os.getpid())
            read, write = os.pipe2(os.O_CLOEXEC)
            for value in to_join(modes):
                # One by one: what is open is closed if a later one cannot be opened.
                spaces.append(open_namespace(value))  # noqa: PERF401
            child = launcher.spawn(code, (theirs, theirs, theirs), theirs, owner, read, write, *spaces)
            launcher.close(theirs, read, *(() if by_tool else (write,)))
            theirs = read = -1
            write = write if by_tool else -1
            try:
                await self._standing(ours, write, child)
            finally:
                # Without its last end a pid 1 that still waits gives up.
                launcher.close(write)
                write = -1
                await reap(self.waiter, child)
                self._catch_up(ours, child)
        finally:
            launcher.close(ours, theirs, owner, read, write, *spaces)

    async def _standing(self, control: int, sync: int, child: int) -> None:
        """Hear the launcher until pid 1 is ready."""
        connections, problem = self.connections, None
        what = ("recvmsg()", "hear that the sandbox stands")
        while True:
            await answer(self.waiter, {control: READ}, self.pid or child, what)
            report = launcher.receive(control)
            if report is None:
                raise KernelError(32, f"recvmsg({control})", "the launcher ended without a word")
            if report.kind == launcher.CHILD:
                self._know(report.value)
                if sync >= 0:
                    await self._map_ids()
                    os.write(sync, b"!")
            elif report.kind == launcher.READY and connections is not None:
                # Pid 1 goes on meanwhile, and will say once more that it is ready; or why it is not, which
                # explains why there was nothing to connect.
                problem = await connections.connect(self.waiter, self.pid, report.fd)
                connections = None
            elif report.kind == launcher.READY:
                self.scratch = report.fd
                if problem is not None:
                    raise problem
                return
            else:
                if not self.pid and report.sender != child:
                    # Pid 1 itself: the launcher was killed before it could tell of it.
                    self._know(report.sender)
                raise failure(self.plan.steps, report.step, report.error)

    def _catch_up(self, control: int, child: int) -> None:
        """
        After an interruption, hear of a pid 1 that nobody has heard of: it is our child, to be ended.

        The launcher has ended, so what it had to say of a child is there.
        """
        if self.pid:
            return
        for report in launcher.pending(control):
            launcher.close(report.fd)
            if report.kind == launcher.CHILD or report.sender != child:
                self._know(report.value if report.kind == launcher.CHILD else report.sender)
                return

    def _know(self, pid: int) -> None:
        self.pid = pid
        self.program.children.add(pid)
        self.pidfd = os.pidfd_open(pid)

    async def _map_ids(self) -> None:
        from sandboxlib.engine.idmap import write_maps

        pid, spec, host = self.pid, self.spec, self.host
        await self.waiter.work(lambda: write_maps(pid, spec, host))

    # ---- while it stands ------------------------------------------------------------------

    def check(self) -> None:
        """Raises: StateError: It is not open, has ended, or belongs to another process (a fork's parent)."""
        if self.closed or not self.pid:
            raise StateError("the sandbox is closed")
        if self._owner != os.getpid():
            raise StateError("the sandbox belongs to the process that this one was forked from")
        # Killed, it takes a moment to be gone: nothing is begun in it any more.
        if self.ended is not None or self.killed:
            raise StateError(f"the sandbox has ended: {self.how_ended()}")

    def how_ended(self) -> str:
        """A phrase for why pid 1 is no more."""
        if self.killed:
            return "it was killed"
        if self.ended is None:
            return "its pid 1 is ending"
        if self.lifetime_over:
            return f"its lifetime of {self.spec.lifetime} seconds is over"
        return f"its pid 1 ended with status {self.ended.status}"

    @property
    def lifetime_over(self) -> bool:
        """Has it ended because its lifetime was over?"""
        if self.ended is not None:
            return self.ended.status == launcher.LIFETIME_OVER
        if self.spec.lifetime is None or self.killed or self.waiter.now() < self._began + self.spec.lifetime:
            return False
        # The kernel lets pid 1 end only when its commands are reaped, so its status is not to be
        # had yet: but nothing else ends it at this time, unasked.
        return proc.is_exiting(self.pid)

    def namespace_path(self, kind: str) -> str:
        """The file of one of its namespaces, below /proc."""
        self.check()
        return f"/proc/{self.pid}/ns/{ {'mount': 'mnt', 'network': 'net'}.get(kind, kind) }"

    @contextlib.contextmanager
    def starting(self, process: Process) -> Iterator[None]:
        """
        A command starts meanwhile: whoever closes the sandbox waits for it.

        Raises:
            StateError: As `check`, or it is paused.
        """
        with self._lock:
            self.check()
            if self.frozen:
                raise StateError("the sandbox is paused: resume() it before a command is started")
            once = self._starting[process] = Once()
        try:
            yield
        finally:
            with self._lock:
                del self._starting[process]
            once.end()

    def enter(self, process: Process) -> None:
        """Remember a command, to be ended with the sandbox."""
        self.program.children.add(process.pid)
        with self._lock:
            self._processes.add(process)

    def leave(self, process: Process) -> None:
        """Forget a command that has ended."""
        self.program.children.discard(process.pid)
        with self._lock:
            self._processes.discard(process)

    # ---- end ------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill every process in it; it cannot be used again."""
        self.check()
        self.killed = True
        self._kill()

    def _kill(self) -> None:
        if self.frozen and self.group is not None:
            self.group.thaw()
            self.frozen = False
        if self.pidfd >= 0 and self.ended is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        # Where pid 1 is not pid 1 (its namespace is another's) its end does not end the others.
        if self.group is not None and self._joined_pids():
            self.group.kill()

    def _joined_pids(self) -> bool:
        value = namespaces(self.spec, self.host)["pid"]
        return value is not None and value.mode != "new"

    async def close(self) -> None:
        """
        Kill all that is in it and remove all that it made. Idempotent: who calls it while it is under
        way waits for its end.

        Raises:
            KernelError: Something could not be removed.
        """
        if self._owner != os.getpid():
            # No lock: another thread of the parent may have held it at the fork.
            if not self.closed:
                self.closed = True
                launcher.close(self.pidfd, self.scratch)
            return
        with self._lock:
            other, mine = self._closing, Once()
            self._closing = other or mine
            self.closed = True
        with self.waiter.shield():
            if other is not None:
                await other.wait(self.waiter)
                return
            try:
                await self._close()
            finally:
                mine.end()

    async def _close(self) -> None:
        self._kill()
        # What another thread or task is about to start is soon heard of, or has failed.
        for once in list(self._starting.values()):
            await once.wait(self.waiter)
        # The kernel keeps a PID namespace's pid 1 until those of its processes whose parent
        # is outside, our commands, are reaped.
        deadline = self.waiter.now() + LONGEST
        for process in list(self._processes):
            # That it has ended is all that counts here: a status that someone else in this
            # program took was said by the first who asked, or nobody asks for it.
            with contextlib.suppress(KernelError):
                await process.ended(deadline)
        await self.reap()
        launcher.close(self.pidfd, self.scratch)
        self.pidfd = self.scratch = -1
        async with contextlib.AsyncExitStack() as left:
            # The last that is entered here goes first; what fails does not keep the others.
            left.callback(self._release)
            for part in (self.connections, self.places):
                if part is not None:
                    left.push_async_callback(part.release, self.waiter)

    def _release(self) -> None:
        try:
            if self.group is not None:
                self.group.close()
        finally:
            if self.ids is not None:
                self.program.ids.release(self.ids)
                self.ids = None
            if self.held is not None:
                self.held.lease.close()

    async def has_ended(self) -> StateError:
        """The error for a sandbox that was found to have ended."""
        # A moment of patience: its namespaces can no longer be joined before it is quite gone.
        patience = self.waiter.now() + _PATIENCE
        if self.ended is None and not self.closed and await self.waiter.ready({self.pidfd: READ}, patience):
            self.ended = Ended(await reap(self.waiter, self.pid) or 0)
        return StateError(f"the sandbox has ended: {self.how_ended()}")

    async def check_alive(self) -> None:
        """
        Look whether pid 1 is still there.

        Raises:
            StateError: As `check`.
        """
        # The kernel keeps pid 1 until the commands that ended with it are reaped.
        for process in list(self._processes):
            process.poll()
        self.check()
        if await self.waiter.ready({self.pidfd: READ}, self.waiter.now()):
            await self.reap()
            self.check()

    async def reap(self) -> None:
        """
        Wait for pid 1's end, which has been killed.

        Raises:
            KernelError: EBUSY: something in it is in a call that nothing interrupts.
        """
        if self.pidfd < 0 or self.ended is not None:
            return
        deadline = self.waiter.now() + LONGEST
        while not await self.waiter.ready({self.pidfd: READ}, self.waiter.now() + _PATIENCE):
            # A command that was interrupted while it started, before we heard of it, is our child
            # all the same, and pid 1 cannot go before it is reaped.
            launcher.reap_strays(f"/proc/{self.pid}/ns/pid", self.program.children)
            if self.waiter.now() >= deadline:
                raise KernelError(errno.EBUSY, f"waitpid({self.pid})", "pid 1, which was killed, is to end")
        self.ended = Ended(await reap(self.waiter, self.pid) or 0)
        self.program.children.discard(self.pid)
