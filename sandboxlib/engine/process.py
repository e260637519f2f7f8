"""A command in a sandbox: its start, its descriptors, its end, and what it used."""

from __future__ import annotations

import errno
import os
import signal
import threading
from math import inf
from typing import TYPE_CHECKING, Any

from sandboxlib import quantity
from sandboxlib.engine import policy
from sandboxlib.engine.encode import encode_command
from sandboxlib.engine.patience import LONGEST, answer, reap
from sandboxlib.engine.refusal import refusal
from sandboxlib.engine.request import Stdio, arguments, candidates, default_cwd, variables
from sandboxlib.engine.waiter import READ
from sandboxlib.errors import KernelError, SandboxError, StateError
from sandboxlib.kernel import launcher, tagged
from sandboxlib.plan.command import Group, Request, environment
from sandboxlib.result import Outcome, Usage

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.engine.terminal import Size
    from sandboxlib.kernel.cgroup import Leaf
    from sandboxlib.limits import Limits


#: Seconds from the end of a command's output to its own, if that is what ends the output.
_MOMENT = 0.1


class _TooLateError(Exception):
    """The deadline came before the command had started."""


class Process:
    """
    A command that was started.

    Attributes:
        args: As given.
        pid: Outside of the sandbox.
        pidfd: Readable once it has ended; -1 afterwards.
        stdin, stdout, stderr: Our ends of its pipes, or -1; owned.
        terminal: Our end of its terminal, or -1; owned.
        returncode: None while it runs.
        outcome, usage: None while it runs.
    """

    def __init__(self, engine: Engine, args: object) -> None:
        self.engine = engine
        self.args = args
        self.pid = 0
        self.pidfd = -1
        self.stdin = self.stdout = self.stderr = self.terminal = -1
        self.returncode: int | None = None
        self.outcome: Outcome | None = None
        self.usage: Usage | None = None
        self.leaf: Leaf | None = None
        # Without cgroups: the namespace that its processes are told by, see `sandboxlib.kernel.tagged`.
        self.mark = -1
        self._executed = False
        self._reason: Outcome | None = None
        # Somebody else took its status.
        self._lost: KernelError | None = None
        self._began = 0.0
        self._lock = threading.Lock()

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
        engine = self.engine
        streams = io if isinstance(io, Stdio) else None
        try:
            with engine.starting(self):
                request = self._request(io, env, cwd, limits)
                if streams is None:
                    assert not isinstance(io, Stdio)
                    streams = await _on_terminal(engine, io)
                await self._begin(streams, request, limits, deadline)
        except BaseException as error:
            if streams is not None:
                launcher.close(*streams.ours, streams.terminal)
            self.release()
            if isinstance(error, _TooLateError):
                return False
            if isinstance(error, SandboxError) and engine.closed:
                # Whatever it found missing, that is why.
                raise StateError("the sandbox is closed, while a command started") from error
            raise
        finally:
            if streams is not None:
                launcher.close(*streams.close)
        self.stdin, self.stdout, self.stderr = streams.ours
        self.terminal = streams.terminal
        return True

    async def _begin(self, io: Stdio, request: Request, limits: Limits | None, deadline: float) -> None:
        """Start it in its leaf; on any error nothing of it is left."""
        engine = self.engine
        try:
            if engine.group is not None:
                self.leaf = engine.group.leaf(limits.cgroup() if limits is not None else None)
            elif limits is not None:
                policy.refuse_uncounted(limits, engine.host)
            await self._spawn(io, request, deadline)
        except BaseException:
            if self.pid:
                await self.gone()
            elif self.leaf is not None:
                # Interrupted before we heard of it, it may run all the same.
                self.leaf.kill()
                self.leaf.release()
            raise

    def _request(self, io: Stdio | Size, env: object, cwd: object, limits: Limits | None) -> Request:
        spec, host = self.engine.spec, self.engine.host
        where = quantity.absolute("cwd", cwd) if cwd is not None else spec.cwd or default_cwd(spec)
        argv = arguments(self.args)
        tty, foreign = (False, io.foreign) if isinstance(io, Stdio) else (True, False)
        extra = variables(env)
        if tty and "TERM" not in dict(spec.env):
            extra = {"TERM": "xterm", **extra}
        environ = environment(spec, host, extra)
        rlimits = policy.rlimits(limits)
        return Request(candidates(argv[0], environ), argv, environ, where, tty, foreign, rlimits)

    async def _spawn(self, io: Stdio, request: Request, deadline: float) -> None:
        engine = self.engine
        group = Group()
        if self.leaf is not None:
            # Without clone3 it joins by itself, before it does anything else.
            folder = None if "clone3" in engine.host.hidden else self.leaf.clone_folder
            group = Group(folder, f"/proc/{engine.pid}/ns/cgroup", self.leaf.join_files())
        code = encode_command(engine.spec, engine.host, request, group)
        if len(code) > launcher.MAX_SIZE:
            # More than the kernel takes in any case, whatever the limit on the stack is.
            raise KernelError(errno.E2BIG, f"execve({os.fsdecode(request.argv[0])!r})", "the command")
        ours, theirs = launcher.socketpair()
        try:
            self._began = engine.waiter.now()
            first = launcher.spawn(code, io.theirs, theirs, engine.pidfd)
            os.close(theirs)
            theirs = -1
            try:
                failed = await self._started(ours, first, deadline)
            finally:
                # It waits for nobody, so it has ended, or is about to.
                await reap(engine.waiter, first)
                if not self.pid:
                    # Interrupted: what it had to say of a child is there.
                    for report in launcher.pending(ours):
                        self._hear(report)
        finally:
            launcher.close(ours, theirs)
        if failed is not None:
            await self._never_ran()
            raise await refusal(engine, self.args, failed, request, group)
        if not self.pid:
            await self._end_unknown()
            raise KernelError(errno.EPIPE, f"recvmsg({ours})", "the launcher ended without a word")
        if self.leaf is not None:
            # A limit may have been added meanwhile that needs a hierarchy more.
            self.leaf.joined(group.files)

    async def _started(self, control: int, first: int, deadline: float) -> launcher.Reported | None:
        """
        Hear the launcher, *first*, and its child, until the child is the command; or why it is not.

        Both close their end: the launcher when it leaves, the child by its execve.
        """
        engine, failed = self.engine, None
        what = ("execve()", "the command begins")
        while True:
            if not await answer(
                engine.waiter,
                {control: READ},
                self.pid or first,
                what,
                deadline=deadline,
                excused=lambda: engine.frozen,
            ):
                raise _TooLateError
            report = launcher.receive(control)
            if report is None:
                self._executed = True
                return failed
            failed = self._hear(report) or failed

    def _hear(self, report: launcher.Reported) -> launcher.Reported | None:
        """Know the child that is told of; returns a report of a failure."""
        if report.kind != launcher.CHILD:
            return report
        self.pid = report.value
        # First: where SIGCHLD is ignored, a child that has ended cannot be opened any more.
        self.mark = report.fd
        self.pidfd = os.pidfd_open(self.pid)
        self.engine.enter(self)
        return None

    async def _end_unknown(self) -> None:
        """The launcher was killed between its clone and its report: what it made is in the leaf."""
        if self.leaf is not None:
            pids = self.leaf.pids()
            self.leaf.kill()
            for pid in pids:
                await reap(self.engine.waiter, pid)

    async def _never_ran(self) -> None:
        if self.pid:
            await self.ended()
        elif self.leaf is not None:
            self.leaf.release()
        self.leaf = None

    # ---- while it runs --------------------------------------------------------------------

    def poll(self) -> int | None:
        """Its return code if it has ended, else None. Does not wait."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            if self.returncode is None:
                found, status, rusage = self._wait4(os.WNOHANG)
                if found:
                    self._finish(status, rusage)
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
        return self.returncode

    async def exited(self) -> bool:
        """Has it ended by itself? Who closes its output as it ends is waited for, for a moment."""
        while self.poll() is None and await self.over(self.engine.waiter.now() + _MOMENT):
            continue
        return self.outcome in (None, Outcome.EXITED)

    async def gone(self) -> None:
        """
        Kill it, with all its children, and wait for its end; nothing cancels this.

        Raises:
            KernelError: EBUSY: it is in a call that nothing interrupts.
        """
        with self.engine.waiter.shield():
            self.kill(Outcome.KILLED)
            await self.ended(self.engine.waiter.now() + LONGEST)

    async def over(self, deadline: float = inf) -> bool:
        """
        Wait until it has ended or its descriptors are closed; False at the deadline.

        On a descriptor of its own: an epoll is not told when what it watches is closed, and whoever
        else waits may have done so by then.
        """
        with self._lock:
            if self.pidfd < 0:
                return True
            own = os.dup(self.pidfd)
        try:
            return bool(await self.engine.waiter.ready({own: READ}, deadline))
        finally:
            os.close(own)

    def _wait4(self, options: int) -> tuple[int, int, Any]:
        try:
            return os.wait4(self.pid, options)
        except ChildProcessError as error:
            self.engine.leave(self)
            if self.leaf is not None:
                self.leaf.release()
            self._lost = KernelError(
                errno.ECHILD,
                f"wait4({self.pid})",
                "the command's status",
                "someone else in this program reaped it: SIGCHLD is ignored, or a wait for any child",
            )
            raise self._lost from error

    def _finish(self, status: int, rusage: Any) -> None:
        engine = self.engine
        wall = engine.waiter.now() - self._began
        self.returncode = os.waitstatus_to_exitcode(status)
        try:
            self.usage = self._count(wall, rusage)
            self.outcome = self._judge()
        finally:
            # Last: a thread that closes the sandbox removes the leaf once nobody is in the list.
            engine.leave(self)

    def _count(self, wall: float, rusage: Any) -> Usage:
        if self.leaf is None:
            return Usage(wall, rusage.ru_utime, rusage.ru_stime, **_blocks(rusage))
        usage = self.leaf.usage(wall)
        self.leaf.release()
        return usage if usage.io_read is not None else usage._replace(**_blocks(rusage))

    def _judge(self) -> Outcome:
        if self._reason is not None and self._reason is not Outcome.KILLED:
            return self._reason
        if self.usage is not None and self.usage.oom_kills:
            return Outcome.OUT_OF_MEMORY
        if self.engine.lifetime_over:
            return Outcome.LIFETIME
        if self._reason is not None:
            return self._reason
        assert self.returncode is not None
        return Outcome.SIGNALED if self.returncode < 0 else Outcome.EXITED

    def send_signal(self, number: int) -> None:
        """Send a signal to the command itself; nothing happens if it has ended."""
        with self._lock:
            if self.returncode is None:
                signal.pidfd_send_signal(self.pidfd, number)

    def release(self) -> None:
        """
        Close its descriptors; nobody may wait for it any more.

        Not done when it ends: another thread may be waiting on them.
        """
        with self._lock:
            launcher.close(self.pidfd, self.mark, self.stdin, self.stdout, self.stderr, self.terminal)
            self.pidfd = self.mark = self.stdin = self.stdout = self.stderr = self.terminal = -1

    def __del__(self) -> None:
        self.release()

    def terminate(self) -> None:
        """End it in good order, by the signal that its image asks for."""
        held = self.engine.held
        self.send_signal(signal.SIGTERM if held is None else held.stop_signal)

    def kill(self, reason: Outcome = Outcome.KILLED) -> None:
        """
        Kill the command and all its children, also those that went into the background.

        If the command itself has ended, what it left behind goes on until the sandbox closes.
        """
        self.poll()
        with self._lock:
            if self.returncode is not None:
                return
            if self._reason is None:
                self._reason = reason
            if not self._executed and self.pidfd >= 0:
                # On its way into its group, where nobody would find it yet.
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            if self.leaf is not None:
                self.leaf.kill()
            elif self.mark >= 0:
                tagged.kill_tagged(os.fstat(self.mark).st_ino)


async def _on_terminal(engine: Engine, size: Size) -> Stdio:
    from sandboxlib.engine.terminal import open_pair

    master, slave = await open_pair(engine, size)
    return Stdio((slave, slave, slave), (-1, -1, -1), (slave,), foreign=False, terminal=master)


def _blocks(rusage: Any) -> dict[str, int]:
    """What getrusage(2) tells of block devices, in bytes: its unit is the classic block of 512."""
    return {"io_read": rusage.ru_inblock * 512, "io_written": rusage.ru_oublock * 512}
