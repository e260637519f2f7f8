"""Feeds a command, keeps what it writes, and watches its limits, until it has ended."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from sandboxlib.engine.lines import Lines
from sandboxlib.engine.pipes import CHUNK, grow
from sandboxlib.engine.process import Process
from sandboxlib.engine.text import Kept
from sandboxlib.engine.waiter import READ, WRITE
from sandboxlib.errors import KernelError
from sandboxlib.result import Outcome

if TYPE_CHECKING:
    from sandboxlib.limits import Limits

#: Bytes of a stream that are kept when nothing is said.
MAX_OUTPUT = 16 << 20
#: Takes the name of a stream and a line of it.
OnLine = Callable[[str, Any], object]
#: Seconds between two looks at the CPU clock when the limit is near.
_TICK = 0.005


class Capture:
    """
    The first and the last half of *limit* bytes of a stream.

    Attributes:
        total: Bytes that were written, kept or not.
        chunk: Bytes to read at once.
        ended: Everyone who could write to it has closed it.
    """

    def __init__(self, limit: int) -> None:
        self.chunk = CHUNK
        self.ended = False
        self._limit = limit
        self._head_room = limit - limit // 2
        self._tail_room = limit // 2
        self._head: list[bytes] = []
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self.total = 0

    @property
    def over(self) -> bool:
        """Were there more than *limit*?"""
        return self.total > self._limit

    def add(self, data: bytes) -> None:
        """Take in what was read."""
        self.total += len(data)
        if self._head_room:
            self._head.append(data[: self._head_room])
            taken = len(self._head[-1])
            self._head_room -= taken
            data = data[taken:]
        if data:
            self._tail.append(data)
            self._tail_size += len(data)
            # Whole chunks only: the cut to the byte is made once, at the end.
            while self._tail and self._tail_size - len(self._tail[0]) >= self._tail_room:
                self._tail_size -= len(self._tail.popleft())

    def result(self, *, killed: bool) -> Kept:
        """What was kept; *killed*: the command did not end by itself."""
        tail = b"".join(self._tail)
        if len(tail) > self._tail_room:
            tail = tail[len(tail) - self._tail_room :]
        head = b"".join(self._head)
        return Kept(head, tail, self.total - len(head) - len(tail), self.ended and not killed)


class Captured(NamedTuple):
    """
    What `communicate` brings back.

    Attributes:
        stdout, stderr: What was kept, None where there is no pipe.
        expired: The deadline came first, and the command was killed for it.
    """

    stdout: Kept | None
    stderr: Kept | None
    expired: bool


class _Teller(Capture):
    """A capture that tells a function each line as it comes."""

    def __init__(self, limit: int, name: str, on_line: OnLine, decoding: tuple[str, str] | None) -> None:
        super().__init__(limit)
        self._name = name
        self._on_line = on_line
        self._lines = Lines(*decoding) if decoding is not None else Lines()

    def add(self, data: bytes) -> None:
        """Take in what was read, and tell of the lines in it."""
        super().add(data)
        self._tell(self._lines.feed(data))

    def result(self, *, killed: bool) -> Kept:
        """Tell of a last line without an end, too."""
        kept = super().result(killed=killed)
        self._tell(self._lines.end(whole=kept.whole))
        return kept

    def _tell(self, lines: Iterator[Any]) -> None:
        for line in lines:
            self._on_line(self._name, line)


class _Bounds(NamedTuple):
    """
    How much a command may write.

    Attributes:
        together: Bytes of both streams, or None.
        each: No stream may be longer than what is kept of it.
    """

    together: int | None
    each: bool

    def are_passed(self, captures: Iterable[Capture]) -> bool:
        """Did they write more?"""
        found = list(captures)
        if self.each and any(capture.over for capture in found):
            return True
        return self.together is not None and sum(capture.total for capture in found) > self.together


class _Clock:
    """When a limit on time has to be looked at again."""

    def __init__(self, process: Process, limits: Limits | None, began: float, cpus: int) -> None:
        self._process = process
        self._wall = began + limits.wall_time if limits is not None and limits.wall_time else inf
        self._cpu = limits.cpu_time if limits is not None and limits.cpu_time else inf
        self._cpus = cpus
        # CPU time cannot pass faster than all CPUs together make it.
        self.next = min(self._wall, began + self._cpu / cpus)

    def check(self, now: float) -> Outcome | None:
        """The limit that is over, if any; sets `next`."""
        if now >= self._wall:
            return Outcome.WALL_TIME
        if self._cpu < inf and self._process.leaf is not None:
            left = self._cpu - self._process.leaf.cpu_seconds()
            if left <= 0:
                return Outcome.CPU_TIME
            self.next = min(self._wall, now + max(left / self._cpus, _TICK))
        return None


async def communicate(
    process: Process,
    data: bytes,
    *,
    deadline: float = inf,
    limits: Limits | None = None,
    max_output: int = MAX_OUTPUT,
    kill_past: bool = False,
    on_line: OnLine | None = None,
    decoding: tuple[str, str] | None = None,
) -> Captured:
    """
    Write *data* to its stdin, read both outputs, and wait for its end.

    Only the command itself is waited for: what it leaves running may hold the
    pipes for as long as it likes. At the deadline its whole tree is killed.
    """
    engine = process.engine
    waiter = engine.waiter
    captures: dict[int, Capture] = {
        fd.fileno(): Capture(max_output) if on_line is None else _Teller(max_output, name, on_line, decoding)
        for name, fd in (("stdout", process.stdout), ("stderr", process.stderr))
        if fd
    }
    view = memoryview(data)
    expired = False
    stdin, out, err = (fd.fileno() for fd in (process.stdin, process.stdout, process.stderr))
    clock = _Clock(process, limits, waiter.now(), os.cpu_count() or 1)
    waiting = dict.fromkeys(captures, READ)
    bounds = _Bounds(limits.output if limits is not None else None, kill_past)
    for fd in (*captures, *([stdin] if stdin >= 0 else [])):
        os.set_blocking(fd, False)
    if view and stdin >= 0:
        waiting[stdin] = WRITE
    else:
        process.stdin.close()
    while True:
        waiting[process.pidfd] = READ
        ready = await waiter.ready(waiting, min(deadline, clock.next))
        for fd in ready & captures.keys():
            if not _drain(fd, captures[fd]):
                del waiting[fd]
        if not process.past_output and bounds.are_passed(captures.values()):
            # First: it may have ended by itself meanwhile, which is what the kill finds then.
            process.past_output = True
            await process.end(Outcome.OUTPUT_LIMIT)
        if stdin in ready:
            view = _feed(stdin, view)
            if not view:
                del waiting[stdin]
                process.stdin.close()
                stdin = -1
        if process.pidfd in ready:
            break
        now = waiter.now()
        if now >= deadline:
            expired = True
            await process.end(Outcome.KILLED)
            deadline = inf
        elif now >= clock.next and (reason := clock.check(now)) is not None:
            await process.end(reason)
            clock.next = inf
    # What it wrote last counts as well, before it is said how it ended.
    for fd in waiting.keys() & captures.keys():
        _drain(fd, captures[fd], whole=True)
    process.past_output = bounds.are_passed(captures.values())
    await process.ended()
    process.release()
    killed = process.outcome is not Outcome.EXITED
    stdout, stderr = (captures[fd].result(killed=killed) if fd >= 0 else None for fd in (out, err))
    return Captured(stdout, stderr, expired)


def _drain(fd: int, capture: Capture, *, whole: bool = False) -> bool:
    """Read what is there; False at the end of the stream. With *whole*, until nothing is left."""
    # A daemon that goes on writing must not keep us here: what was in the pipe when the
    # command ended is at most the pipe's capacity.
    for _ in range(17 if whole else 1):
        try:
            data = os.read(fd, capture.chunk)
        except BlockingIOError:
            return True
        if not data:
            capture.ended = True
            return False
        if len(data) == CHUNK and capture.chunk == CHUNK:
            capture.chunk = grow(fd)
        capture.add(data)
    return True


def _feed(fd: int, view: memoryview) -> memoryview:
    try:
        return view[os.write(fd, view[:CHUNK]) :]
    except BlockingIOError:
        return view
    except BrokenPipeError:
        # As with subprocess: a command need not read what it is given.
        return view[:0]


__all__ = ["KernelError", "communicate"]
