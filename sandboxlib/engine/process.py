"""A command in a sandbox: its start, its descriptors, its end, and what it used."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, cast

from sandboxlib.engine import policy
from sandboxlib.engine.clock import Clock
from sandboxlib.engine.given import further
from sandboxlib.engine.once import Once
from sandboxlib.engine.patience import LONGEST, TooLateError, answer, emptied, left
from sandboxlib.engine.refusal import refusal, taken, unheard
from sandboxlib.engine.request import encoded, requested
from sandboxlib.engine.stdio import Stdio, give_back
from sandboxlib.engine.waiter import READ
from sandboxlib.errors import KernelError, SandboxError, StateError
from sandboxlib.kernel import launcher, tagged
from sandboxlib.kernel.descriptor import Fd, dup
from sandboxlib.plan.command import Request
from sandboxlib.result import Outcome, Usage

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.engine.terminal import Size
    from sandboxlib.kernel.cgroup import Leaf
    from sandboxlib.limits import Limits


#: Seconds from the end of a command's output to its own, if that is what ends the output.
_MOMENT = 0.1
#: Seconds between two looks at a command that is no descriptor.
_LOOK = 0.01


class Process:
    """
    A command that was started.

    Attributes:
        args: As given.
        stdin, stdout, stderr: Our ends of its pipes, where it has them.
        terminal: Our end of its terminal, if it has one.
        returncode: None while it runs.
        outcome, usage: None while it runs.
        past_output: It wrote more than it may; known before it is said how it ended.
    """

    def __init__(self, engine: Engine, args: object) -> None:
        self.engine = engine
        self.args = args
        self._launch = launcher.Launch()
        self.stdin, self.stdout, self.stderr, self.terminal = Fd(), Fd(), Fd(), Fd()
        self.returncode: int | None = None
        self.outcome: Outcome | None = None
        self.usage: Usage | None = None
        self.leaf: Leaf | None = None
        # Without cgroups: what its processes are told by.
        self.mark = tagged.Mark(engine.family, 0)
        self._executed, self._lent = False, tuple[tuple[Fd, int], ...]()
        self._clock, self.past_output = Clock(), False
        self._limits, self._reason = cast("Limits | None", None), cast("Outcome | None", None)
        # How many kill it just now; and that somebody else took its status.
        self._killers, self._lost, self._began = 0, cast("KernelError | None", None), 0.0
        # A signal handler may ask, too.
        self._lock = threading.RLock()

    @property
    def pid(self) -> int:
        """Outside of the sandbox; 0 as long as there is none."""
        return self._launch.pid

    @property
    def pidfd(self) -> int:
        """Readable once it has ended; -1 afterwards."""
        return self._launch.pidfd

    @property
    def begun(self) -> bool:
        """Has its start come to its end?"""
        return bool(self.pid) and self._launch.control < 0

    async def start(
        self,
        io: Stdio | Size,
        *,
        env: object = None,
        cwd: object = None,
        limits: Limits | None = None,
        deadline: float = inf,
    ) -> bool:
        """
        Start it; takes ownership of *io*'s descriptors. With a size it gets a terminal.

        False: the deadline came first, which takes a `pause` meanwhile, and nothing is left of it.

        Raises:
            CommandNotFoundError, CommandNotExecutableError: Nothing ran.
            StateError: The sandbox is closed or paused.
            KernelError: A step failed; it says which.
        """
        engine, self._limits = self.engine, limits
        streams, once = io if isinstance(io, Stdio) else None, Once()
        try:
            await engine.waiter.turn()
            try:
                engine.begin(once)
                request = requested(engine, self.args, env, cwd, limits, streams)
                if streams is None:
                    from sandboxlib.engine.terminal import on_terminal

                    assert not isinstance(io, Stdio)
                    streams = await on_terminal(engine, io)
                await self._begin(streams, request, limits, deadline)
            finally:
                engine.begun(once)
        except BaseException as error:
            if streams is not None:
                streams.close()
            self.release()
            if isinstance(error, TooLateError):
                return False
            if isinstance(error, SandboxError) and engine.closed:
                # Whatever it found missing, that is why.
                raise StateError("the sandbox is closed, while a command started") from error
            raise
        self.stdin, self.stdout, self.stderr = streams.ours
        self.terminal, self._lent = streams.terminal, streams.lent
        for fd in streams.held:
            fd.close()
        return True

    async def _begin(self, io: Stdio, request: Request, limits: Limits | None, deadline: float) -> None:
        """Start it in its leaf; on any error nothing of it is left."""
        engine = self.engine
        try:
            if engine.group is not None:
                self.leaf = engine.group.leaf(limits.cgroup() if limits is not None else None)
            elif limits is not None:
                policy.refuse_uncounted(limits, engine.host)
            # From here on the engine ends it, whatever comes.
            engine.enter(self)
            await self._spawn(io, request, deadline)
        except BaseException:
            await self.abandon()
            raise

    async def abandon(self) -> None:
        """
        End it, begun or not, and let go of all; nothing cancels this, and closing the sandbox does it again.

        Raises: KernelError: EBUSY: it is in a call that nothing interrupts.
        """
        engine, launch, leaf = self.engine, self._launch, self.leaf
        with engine.waiter.shield():
            if launch.control >= 0:
                # It waits for nobody but the command, so it has ended, or is about to.
                await left(engine.waiter, launch, kill=self._clock.kept)
                # What it had to say of a child is there.
                for report in launch.pending():
                    self._hear(report)
                launch.hang_up()
            if self.pid:
                # A status that somebody else took, such as the parent, is not what is to be told here.
                with contextlib.suppress(ChildProcessError, StateError):
                    await self.gone()
            elif leaf is not None:
                # Before we heard of it, it may run all the same.
                await emptied(engine.waiter, leaf)
                self.leaf = None
                leaf.release()
            engine.leave(self)
            self.release()

    async def _spawn(self, io: Stdio, request: Request, deadline: float) -> None:
        engine = self.engine
        if self.leaf is None:
            self.mark = engine.mark()
        code, group = encoded(engine, self.leaf, request, self.mark.limits)
        launch = self._launch
        self._began = engine.waiter.now()
        with further(engine, request, self._clock) as fds:
            launch.begin(code, *fds, stdio=io.theirs)
        failed = await self._started(deadline)
        if not request.wall_time or failed is not None:
            # It waits for nobody, so it has ended, or is about to.
            await left(engine.waiter, launch)
        if failed is not None:
            if self.pid:
                await self.ended()
            raise await refusal(engine, self.args, failed, request, group)
        if not self.pid:
            request = await unheard(engine.waiter, launch, self.leaf, request)
            launch.hang_up()
            self._launch, self._executed = launcher.Launch(), False
            return await self._spawn(io, request, deadline)
        launch.hang_up()
        if self.pidfd < 0:
            self.poll()
        if self.leaf is not None:
            # A limit may have been added meanwhile that needs a hierarchy more.
            self.leaf.joined(group.files)
        return None

    async def _started(self, deadline: float) -> launcher.Reported | None:
        """
        Hear the launcher, and its child, until the child is the command; or why it is not.

        Both close their end: the launcher when it leaves, the child by its execve.
        """
        engine, launch, failed = self.engine, self._launch, None
        what = ("execve()", "the command begins")
        while True:
            fds, pid = {launch.control: READ}, self.pid or launch.launcher
            if not await answer(
                engine.waiter, fds, pid, what, deadline=deadline, excused=lambda: engine.frozen
            ):
                raise TooLateError
            report = launch.hear()
            if report is None:
                self._executed = True
                return failed
            failed = self._hear(report) or failed

    def _hear(self, report: launcher.Reported) -> launcher.Reported | None:
        """Know the child that is told of; returns a report of a failure."""
        if self.pid:
            self.engine.know(self)
            # Where SIGCHLD is ignored, a child that has ended cannot be opened any more: `poll` says so.
            with contextlib.suppress(ProcessLookupError):
                self._launch.pin()
        if report.kind == launcher.READY:
            self.mark.fd = report.fd
        elif report.kind != launcher.CHILD:
            return report
        return None

    # ---- while it runs --------------------------------------------------------------------

    def poll(self) -> int | None:
        """Its return code if it has ended, else None; does not wait. StateError: Another process has it."""
        self.engine.maker.check("the command")
        with self._lock:
            if self._lost is not None:
                raise self._lost
            # Asked again where the first who saw it end was interrupted before all was counted.
            ended = self.returncode is not None or not self.pid or self._killers
            if not ended and (found := self._wait()) is not None:
                self._finish(found)
        return self.returncode

    async def ended(self, deadline: float = inf) -> int:
        """
        Wait until it has ended, and count what it used.

        Raises:
            KernelError: EBUSY: it has not ended at the deadline.
        """
        while self.poll() is None:
            if not await self.over(deadline) and self.engine.waiter.now() >= deadline:
                raise KernelError(errno.EBUSY, f"wait4({self.pid})", "a command that was killed is to end")
        assert self.returncode is not None
        if self._clock.kept:
            await left(self.engine.waiter, self._launch)
            self._clock.close()
        return self.returncode

    async def gone(self) -> None:
        """
        Kill it, with all its children, and wait for its end; nothing cancels this.

        Raises:
            KernelError: EBUSY: it is in a call that nothing interrupts.
        """
        with self.engine.waiter.shield():
            await self.end(Outcome.KILLED)
            await self.ended(self.engine.waiter.now() + LONGEST)

    async def exited(self) -> bool:
        """Has it ended by itself? Who closes its output as it ends is waited for, for a moment."""
        while self.poll() is None and await self.over(self.engine.waiter.now() + _MOMENT):
            continue
        return self.outcome in (None, Outcome.EXITED)

    async def over(self, deadline: float = inf) -> bool:
        """
        Wait until it has ended or its descriptors are closed; False at the deadline.

        On a descriptor of its own: an epoll is not told when what it watches is closed, and whoever
        else waits may have done so by then.
        """
        waiter = self.engine.waiter
        if self._killers:
            # Until all of it is killed its end is not looked at.
            await waiter.ready({}, min(deadline, waiter.now() + _LOOK))
            return waiter.now() < deadline
        with self._lock:
            held = dup(self.pidfd) if self.pidfd >= 0 else Fd()
        with held as own:
            if own >= 0:
                return bool(await waiter.ready({own: READ}, deadline))
        # There was no descriptor left for it: it is looked at now and then.
        await waiter.ready({}, min(deadline, waiter.now() + _LOOK))
        return waiter.now() < deadline

    def _wait(self) -> launcher.Ended | None:
        try:
            return self._launch.wait()
        except ChildProcessError as error:
            self.engine.leave(self)
            if self.leaf is not None:
                self.leaf.release()
            self._lost = taken(self.pid)
            raise self._lost from error

    def _finish(self, found: launcher.Ended) -> None:
        engine = self.engine
        if self.usage is None:
            wall = self._clock.seconds(self._launch) or engine.waiter.now() - self._began
            self.usage = policy.used(self.leaf, found, wall)
        reason = Outcome.OUTPUT_LIMIT if self.past_output else self._reason
        outcome = policy.verdict(found, self.usage, self._limits, reason, engine, self.leaf)
        if outcome in policy.FINAL and self._reason is None:
            # It ended by itself, or by its launcher: its children do not go on either.
            self._all_of_it(0)()
        if self.leaf is not None:
            self.leaf.release()
        give_back(self._lent)
        self.outcome, self.returncode = outcome, found.status
        # Last: a thread that closes the sandbox removes the leaf once nobody is in the list.
        engine.leave(self)

    def send_signal(self, number: int) -> None:
        """Send a signal to the command itself; nothing happens if it has ended."""
        self.engine.maker.check("the command")
        with self._lock:
            if self.returncode is None:
                signal.pidfd_send_signal(self.pidfd, number)

    def release(self) -> None:
        """Close its descriptors. Not done when it ends: another thread may be waiting on them."""
        if self.engine.maker.is_another:
            # The parent gives back; another thread of its may have had the lock.
            self._lock, self._lent = threading.RLock(), ()
        with self._lock:
            self._launch.unpin()
            give_back(self._lent)
            self._clock.close()
            for fd in (self.mark.fd, self.stdin, self.stdout, self.stderr, self.terminal):
                fd.close()

    def terminate(self) -> None:
        """End it in good order, by the signal that its image asks for."""
        held = self.engine.held
        self.send_signal(signal.SIGTERM if held is None else held.stop_signal)

    async def end(self, reason: Outcome) -> None:
        """Kill it for *reason*, as `kill`: many, or those who fork, take a while."""
        self.poll()
        with self._lock:
            if (all_of_it := self._doomed(reason)) is None:
                return
            self._killers += 1
        try:
            await self.engine.waiter.work(all_of_it)
        finally:
            with self._lock:
                self._killers -= 1

    def kill(self, reason: Outcome = Outcome.KILLED) -> None:
        """
        Kill the command and all its children, also those that went into the background.

        If the command itself has ended, what it left behind goes on until the sandbox closes.
        """
        self.poll()
        with self._lock:
            if (all_of_it := self._doomed(reason)) is not None:
                all_of_it()

    def _doomed(self, reason: Outcome) -> Callable[[], None] | None:
        """What kills all of it; None where it has ended. Its group is its own until that has been called."""
        if self.returncode is not None:
            return None
        if self._reason is None:
            self._reason = reason
        if not self._executed:
            # On its way into its group, where nobody would find it yet.
            self._launch.kill()
        return self._all_of_it(self.pid)

    def _all_of_it(self, pid: int) -> Callable[[], None]:
        """What kills all its processes; *pid* is its own, or 0 once that may be somebody else's."""
        return partial(self.mark.kill, pid, self.engine.pid) if self.leaf is None else self.leaf.kill
