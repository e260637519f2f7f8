"""Helpers that carry out steps somewhere else, inside a sandbox above all, and hand out what they opened."""

from __future__ import annotations

import errno
from functools import lru_cache
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from sandboxlib.engine.encode import encode, failure
from sandboxlib.engine.patience import HELD, answer, left
from sandboxlib.engine.waiter import READ, Waiter
from sandboxlib.errors import KernelError, StateError
from sandboxlib.kernel import launcher
from sandboxlib.kernel.descriptor import Fd
from sandboxlib.kernel.program import FIRST
from sandboxlib.plan.command import serve
from sandboxlib.plan.steps import Report, Step

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.host import Host
    from sandboxlib.spec import SandboxSpec

#: The steps of a helper's own start are numbered from here on.
START = 1 << 20


#: Seconds that all answers together may take which take longer than this many each.
_SLOW, _ALL_SLOW = 1.0, 30.0


class Told(NamedTuple):
    """What one step told. Attributes: step, its number in the request; value, its result; data, the bytes."""

    step: int
    value: int
    data: bytes


class Answer(NamedTuple):
    """
    What a request brought back.

    Attributes:
        value: Its last result.
        fds: What was handed out, the caller's: one for each step that does.
        told: What its steps told, in order.
    """

    value: int
    fds: tuple[Fd, ...]
    told: tuple[Told, ...] = ()


class Helper:
    """
    A process that carries out lists of steps, like a plan's, one request after the other.

    It begins with *start*, whose last step is `Serve`, and finds *fds*, which are
    borrowed, from `FIRST` on.
    """

    def __init__(self, waiter: Waiter, start: tuple[Step, ...], *fds: int, code: bytes = b"") -> None:
        self._waiter = waiter
        self._start = start
        self._code = code
        self._fds = fds
        self._launch = launcher.Launch()
        # Readable when the place where it stands has ended, which need not end a call that it makes.
        self._place = -1
        self._room = launcher.NO_ROOM
        # What slow answers have taken until now.
        self._slow = 0.0

    async def __aenter__(self) -> Self:
        await self._waiter.turn()
        self._check()
        self._launch.begin(self._code or encode(self._start, index=START), *self._fds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # At the end of its socket it leaves, unless it is still in a call of an unfinished request:
        # what is inside can make an open or a connect last for ever.
        self._launch.hang_up()
        await left(self._waiter, self._launch, kill=kind is not None)

    async def ask(self, *steps: Step, deadline: float = inf) -> Answer:
        """
        Carry out *steps* there.

        Raises:
            KernelError: One failed; those after it were not tried. ETIMEDOUT: *deadline* came first, or
                something inside holds it.
            StateError: The sandbox has ended.
        """
        fds, told = list[Fd](), list[Told]()
        self._send(encode(steps))
        try:
            while (report := await self._heard(steps, deadline)).kind != launcher.DONE:
                if report.kind == launcher.READY:
                    fds.append(report.fd)
                elif report.kind == launcher.DATA:
                    told.append(Told(report.step, report.value, report.data))
                elif report.step >= START:
                    raise self._not_started(failure(self._start, report.step - START, report.error))
                else:
                    raise failure(steps, report.step, report.error)
            if len(fds) != sum(isinstance(step, Report) and step.fd >= 0 for step in steps) or not all(fds):
                call = f"recvmsg({self._launch.control})"
                raise KernelError(errno.EPROTO, call, "a descriptor is to be handed out")
        except BaseException:
            for fd in fds:
                fd.close()
            raise
        return Answer(report.value, tuple(fds), tuple(told))

    async def _heard(self, steps: tuple[Step, ...], deadline: float) -> launcher.Reported:
        """The next report about *steps*."""

        def what() -> tuple[str, str]:
            return (str(steps[-1]), steps[-1].why) if steps else ("recvmsg()", "ask a helper")

        control = self._launch.control
        waiting = {fd: READ for fd in (control, self._place) if fd >= 0}
        asked = self._waiter.now()
        ready = await answer(self._waiter, waiting, self._launch.launcher, what, deadline=deadline)
        took = self._waiter.now() - asked
        self._slow += took if took > _SLOW else 0.0
        if not ready or self._slow > _ALL_SLOW:
            raise KernelError(errno.ETIMEDOUT, *what(), HELD if ready else "")
        report = self._receive() if control in ready else None
        if report is None:
            raise await self._gone()
        return report

    async def pause(self, seconds: float, deadline: float) -> None:
        """Let some time pass, as long as there is something to ask."""
        waiting = {self._place: READ} if self._place >= 0 else {}
        await self._waiter.ready(waiting, min(deadline, self._waiter.now() + seconds))

    def _send(self, code: bytes) -> None:
        try:
            self._launch.send(code)
        except KernelError as error:
            # It has ended at its start, and what it had to say about that stands in the socket.
            if error.errno != errno.EPIPE:
                raise

    def _receive(self) -> launcher.Reported | None:
        self._room = self._room or bytearray(launcher.ROOM)
        try:
            return self._launch.hear(self._room)
        except KernelError as error:
            # It has ended without having read what we sent; what it had to say comes after that.
            if error.errno != errno.ECONNRESET:
                raise
            return self._launch.hear(self._room)

    def _check(self) -> None:
        """Raises: StateError: There is no place to stand in."""

    async def _gone(self) -> Exception:
        return KernelError(errno.EPIPE, f"recvmsg({self._launch.control})", "the helper ended without a word")

    def _not_started(self, error: KernelError) -> Exception:
        return error


@lru_cache(64)
def _served(spec: SandboxSpec, host: Host, files: bool) -> tuple[tuple[Step, ...], bytes]:
    """How a `Session`'s helper begins, and the program for that."""
    steps = serve(spec, host, files=files)
    return steps, encode(steps, index=START)


class Session(Helper):
    """
    A helper with root's rights inside and the sandbox's view of the file tree, but no process of it.

    The kernel resolves each path where the helper stands, so nothing of the host can
    be named. Descriptors of the program that it is to have stand from `GIVEN` on. With *files* it
    keeps its rights over files alone, and makes them for the sandbox's user.
    """

    GIVEN = FIRST + 1

    def __init__(self, engine: Engine, *fds: int, files: bool = False) -> None:
        self._engine = engine
        steps, code = _served(engine.spec, engine.host, files)
        super().__init__(engine.waiter, steps, engine.pidfd, *fds, code=code)
        self._place = engine.pidfd

    def _check(self) -> None:
        self._engine.check()

    async def _gone(self) -> Exception:
        await self._engine.check_alive()
        return StateError("the sandbox has ended")

    def _not_started(self, error: KernelError) -> Exception:
        # It joins what pid 1 is in; where that fails, pid 1 is no more.
        gone = StateError("the sandbox has ended")
        gone.__cause__ = error
        return gone


__all__ = ["START", "Answer", "Helper", "KernelError", "Session", "Told"]
