"""A sandbox that stands: its start, what is asked of it, and its end."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandboxlib.engine.begin import gather
from sandboxlib.engine.current import Program, program, resolve
from sandboxlib.engine.init import PATIENCE, Init
from sandboxlib.engine.maker import Maker
from sandboxlib.engine.once import Once
from sandboxlib.engine.patience import LONGEST
from sandboxlib.engine.planning import asks_for_image, compiled, plan_start
from sandboxlib.engine.policy import wants_memory
from sandboxlib.engine.undo import Undo
from sandboxlib.engine.waiter import READ, Waiter
from sandboxlib.errors import KernelError, SandboxError, StateError
from sandboxlib.image.leases import Lease
from sandboxlib.kernel import cgroup, launcher, proc, tagged
from sandboxlib.kernel.descriptor import Fd
from sandboxlib.plan.start import namespaces
from sandboxlib.plan.steps import Plan

if TYPE_CHECKING:
    from sandboxlib.engine.connect_network import Connected
    from sandboxlib.engine.image import Held
    from sandboxlib.engine.process import Process
    from sandboxlib.engine.storage import Places
    from sandboxlib.host import Host
    from sandboxlib.image.owner import Owner
    from sandboxlib.spec import SandboxSpec

#: Changes what is known of the host before it is used.
View = Callable[["Host"], "Host"]


class Engine:
    """
    One sandbox.

    Attributes:
        spec: What was asked for.
        host: What this machine can do.
        plan: What was done to start it.
        held: Its image, or None.
        lease: Keeps that in the store.
        owner: Whose it is: it ends with it, if not sooner.
        group: Its cgroup, or None where there are none.
        ids: The first of its range of IDs, or None.
        init: Its pid 1.
        closed: Nothing begins in it any more; it may take a while until `finished`.
    """

    def __init__(self, spec: SandboxSpec, waiter: Waiter, view: View | None = None) -> None:
        self.waiter = waiter
        self._view = view
        self.program: Program = program()
        self.owner = self.program.owner
        self.spec, self.host, self.plan = spec, self.program.host, Plan(())
        self.held: Held | None = None
        self.lease = Lease()
        if not asks_for_image(spec):
            self.settle(spec)
        self.group: cgroup.Group | None = None
        # Without one: what its commands are told by.
        self.family = tagged.Family()
        self.ids: list[int] = []
        self.places: Places | None = None
        self.connections: Connected | None = None
        self.init = Init(waiter, self.program.children)
        self.closed = False
        self.frozen = False
        self.killed = False
        self._began = waiter.now()
        self.maker = Maker()
        # A signal handler may close it, too.
        self._lock = threading.RLock()
        # Commands from before they are made until nothing of them is left; and those that are known to run.
        self._entered: set[Process] = set()
        self._processes: set[Process] = set()
        self._starting: set[Once] = set()
        # Whoever closes it after the first waits for the first.
        self._closing: Once | None = None
        # Commands first: the kernel keeps pid 1 until those of its processes whose parent is outside are
        # reaped. What pid 1 uses goes after it.
        self._undo = Undo(
            self._end_all,
            self._end_commands,
            self.init.reap,
            self._close_descriptors,
            self._disconnect,
            self._remove_layers,
            self._remove_group,
            self._release_ids,
            self._release_image,
            self._disown,
        )

    @property
    def pid(self) -> int:
        """Of its pid 1, outside; 0 as long as there is none."""
        return self.init.pid

    @property
    def pidfd(self) -> int:
        """The same, as a descriptor; -1 before and after."""
        return self.init.pidfd

    @property
    def ended(self) -> launcher.Ended | None:
        """How pid 1 ended, or None."""
        return self.init.ended

    @property
    def scratch(self) -> Fd:
        """The folder with an overlay's upper layer, if it has one."""
        return self.init.scratch

    @property
    def finished(self) -> bool:
        """Is nothing left of it?"""
        return self._undo.finished

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
        except BaseException as error:
            with self.waiter.shield():
                try:
                    await self.close()
                except SandboxError as problem:
                    error.add_note(f"and: {problem}")
            raise

    async def _open(self) -> None:
        try:
            values = await gather(self)
            spec, host = self.spec, self.host
            code = compiled(spec, host).fill(values)
            await self.init.start(spec, host, self.plan, code, self.connections)
        except KernelError as error:
            if self.group is None or not wants_memory(self.group, error):
                raise
            hint = f"its memory_max, {self.group.spec.memory_max} bytes, is too small for a sandbox to start"
            raise KernelError(errno.ENOMEM, error.call, "a sandbox starts", hint) from error

    # ---- while it stands ------------------------------------------------------------------

    @property
    def layers(self) -> Owner:
        """Whose the files of its layers are, on disk."""
        from sandboxlib.engine.image import owner_of

        return self.held.owner if self.held is not None else owner_of(self.host, self.spec.namespace("user"))

    def check(self) -> None:
        """Raises: StateError: It is not open, has ended, or belongs to another process (a fork's parent)."""
        if self.closed or not self.pid:
            raise StateError("the sandbox is closed")
        self.maker.check("the sandbox")
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
        if self.lost_to_memory:
            return "its memory was full, and the kernel killed its pid 1"
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

    @property
    def lost_to_memory(self) -> bool:
        """Did the kernel kill pid 1 for want of memory?"""
        if self.group is None or self.group.closed or self.killed:
            return False
        gone = self.ended.status == -signal.SIGKILL if self.ended is not None else proc.is_exiting(self.pid)
        return gone and self.group.init_oom_kills() > 0

    def namespace_path(self, kind: str) -> str:
        """The file of one of its namespaces, below /proc."""
        self.check()
        return f"/proc/{self.pid}/ns/{ {'mount': 'mnt', 'network': 'net'}.get(kind, kind) }"

    def begin(self, once: Once) -> None:
        """
        A command starts until *once* is over: whoever closes the sandbox waits for it.

        Raises:
            StateError: As `check`, or it is paused.
        """
        with self._lock:
            self.check()
            if self.frozen:
                raise StateError("the sandbox is paused: resume() it before a command is started")
            self._starting.add(once)

    def begun(self, once: Once) -> None:
        """It has started, or failed."""
        once.over = True
        self._starting.discard(once)
        once.end()

    def enter(self, process: Process) -> None:
        """Remember a command that is about to be made, to be ended with the sandbox."""
        with self._lock:
            self._entered.add(process)

    def know(self, process: Process) -> None:
        """It has a number: it is there."""
        self.program.children.add(process.pid)
        with self._lock:
            self._processes.add(process)

    def mark(self) -> tagged.Mark:
        """What one more command's processes are told by, where there is no cgroup."""
        taken = dict(self.spec.security.rlimits) if self.spec.security else ()
        return self.family.mark(self.host.hard, taken)

    @property
    def commands(self) -> set[int]:
        """The numbers of those that are known to run."""
        with self._lock:
            return {process.pid for process in self._processes}

    def leave(self, process: Process) -> None:
        """Forget a command that has ended."""
        self.program.children.discard(process.pid)
        with self._lock:
            self._processes.discard(process)
            self._entered.discard(process)

    # ---- end ------------------------------------------------------------------------------

    async def kill(self) -> None:
        """Kill every process in it; it cannot be used again."""
        self.check()
        self.killed = True
        await self.waiter.work(self._kill)

    def _kill(self) -> None:
        # Where pid 1 is not pid 1 (its namespace is another's) its end does not end the others.
        if self.group is None and self.pid and self._joined_pids():
            from sandboxlib.engine.processes import end_all

            end_all(self)
        self.init.kill()
        if self.group is None or self.group.closed:
            return
        if self.frozen:
            # On v1 what is frozen dies when it is thawed.
            self.group.thaw()
            self.frozen = False
        if self._joined_pids():
            self.group.kill()

    def _joined_pids(self) -> bool:
        value = namespaces(self.spec, self.host)["pid"]
        return value is not None and value.mode != "new"

    async def close(self) -> None:
        """
        Kill all that is in it and remove all that it made; closing again carries on where it was left.

        Who calls it while it is under way waits for its end.

        Raises:
            KernelError: Something could not be removed.
        """
        self.closed = True
        if self.maker.is_another:
            # No lock: another thread of the parent may have held it at the fork.
            self.init.close()
            return
        with self.waiter.shield():
            while not self.finished:
                mine = Once()
                try:
                    with self._lock:
                        other = self._closing = self._closing or mine
                    if other is mine:
                        await self._undo.carry_out()
                    elif not await other.wait(self.waiter):
                        return
                finally:
                    if self._closing is mine:
                        # Before anything is called, where an exception may come in between.
                        mine.over = True
                        self._closing = None
                        mine.end()

    async def _end_all(self) -> None:
        if self.pid and (self.frozen or self._joined_pids()):
            await self.waiter.work(self._kill)
        self.init.kill()

    async def _end_commands(self) -> None:
        # What another thread or task is about to start is soon heard of, or has failed.
        for once in list(self._starting):
            await once.wait(self.waiter)
        deadline = self.waiter.now() + LONGEST
        for process in list(self._entered):
            # That it has ended is all that counts here: a status that someone else in this
            # program took was said by the first who asked, or nobody asks for it.
            with contextlib.suppress(KernelError):
                await (process.ended(deadline) if process.begun else process.abandon())
            self.leave(process)

    async def _close_descriptors(self) -> None:
        self.init.close()

    async def _disconnect(self) -> None:
        if self.connections is not None:
            await self.connections.release(self.waiter)

    async def _remove_layers(self) -> None:
        if self.places is not None:
            await self.places.release(self.waiter)

    async def _remove_group(self) -> None:
        if self.group is not None:
            if self._joined_pids():
                # Some may have come after the others were killed.
                await self.waiter.work(self.group.close)
            else:
                await self.waiter.turn()
                self.group.close()

    async def _release_ids(self) -> None:
        self.program.ids.release(self)
        self.ids.clear()

    async def _release_image(self) -> None:
        self.lease.close()

    async def _disown(self) -> None:
        self.owner.drop(self)

    async def has_ended(self) -> StateError:
        """The error for a sandbox that was found to have ended."""
        # A moment of patience: its namespaces can no longer be joined before it is quite gone.
        patience = self.waiter.now() + PATIENCE
        if self.ended is None and not self.closed and await self.waiter.ready({self.pidfd: READ}, patience):
            self.init.poll()
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
            await self.init.reap()
            self.check()
