"""The trio face of a command that runs in a sandbox, and its streams."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import trio

from sandboxlib import quantity
from sandboxlib.doors import doors
from sandboxlib.engine.lines import Lines
from sandboxlib.engine.pipes import CHUNK, Fd, dup
from sandboxlib.engine.process import Process as EngineProcess
from sandboxlib.engine.terminal import Size, Stream, Terminal, resize
from sandboxlib.errors import SpecError, StateError, TimeoutExpired
from sandboxlib.result import Outcome, Usage

if TYPE_CHECKING:
    from typing import TypeGuard


@doors
class Output(trio.abc.ReceiveStream):
    """
    What a command writes, as a stream; nothing is read ahead of who receives it.

    A command that nobody reads from waits when its pipe is full.
    """

    def __init__(self, raw: Stream) -> None:
        self.raw = raw
        os.set_blocking(raw.fileno(), False)
        self._busy = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """
        Receive what there is, at most *max_bytes*; ``b""`` at the end.

        Raises:
            trio.ClosedResourceError: It is closed.
            trio.BusyResourceError: Another task is receiving.
            SpecError: *max_bytes* is not above 0.
        """
        size = CHUNK if max_bytes is None else quantity.count("max_bytes", max_bytes)
        if self._busy:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._busy = True
        try:
            await trio.lowlevel.checkpoint()
            while True:
                if self.raw.closed:
                    raise trio.ClosedResourceError("the stream was closed")
                data: bytes | None = self.raw.receive(size)
                if data is not None:
                    return data
                await trio.lowlevel.wait_readable(self.raw.fileno())
        finally:
            self._busy = False

    async def aclose(self) -> None:
        """Close it: the command gets SIGPIPE when it writes."""
        if not self.raw.closed:
            trio.lowlevel.notify_closing(self.raw.fileno())
            self.raw.close()
        await trio.lowlevel.checkpoint()


class _LineIterator(AsyncIterator[Any]):
    """Not a generator: whoever stops in the middle has nothing to clean up."""

    def __init__(self, process: EngineProcess, source: Output, lines: Lines) -> None:
        self._process = process
        self._source = source
        self._lines = lines
        self._ready: deque[Any] = deque()
        self._ended = False

    async def __anext__(self) -> Any:
        if self._ready:
            await trio.lowlevel.checkpoint()
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            data = await self._source.receive_some()
            self._ended = not data
            if self._ended:
                whole = not self._lines.half or await self._process.exited()
                self._ready.extend(self._lines.end(whole=whole))
            else:
                self._ready.extend(self._lines.feed(data))
        return self._ready.popleft()


@doors
class AsyncProcess:
    """
    A command that runs in a sandbox; made by `AsyncSandbox.popen`.

    Attributes:
        args: As given.
        stdin: A trio SendStream if it is `PIPE`, else None.
        stdout, stderr: trio ReceiveStreams for those that are `PIPE`, else None.
        tty: With ``tty=True`` a trio StapledStream for its terminal, else None.
    """

    def __init__(self, process: EngineProcess, text: bool) -> None:
        self._process = process
        self._text = text
        self._terminal: Terminal | None = None
        self.args = process.args
        self.stdin: trio.abc.SendStream | None = None
        self.stdout = _output(process, "stdout")
        self.stderr = _output(process, "stderr")
        self.tty: trio.StapledStream[trio.lowlevel.FdStream, Output] | None = None
        if process.stdin:
            self.stdin = _input(process.stdin)
        if process.terminal:
            # One descriptor for each direction, since each is closed for itself.
            typed = _input(dup(process.terminal.fileno()))
            self._terminal = Terminal(process.terminal)
            self.tty = trio.StapledStream(typed, Output(self._terminal))

    @property
    def pid(self) -> int:
        """Its number outside of the sandbox."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, the negative number of a signal, or None as long as nobody saw it end."""
        return self._process.returncode

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, or None."""
        return self._process.outcome

    @property
    def usage(self) -> Usage | None:
        """What it and its children used, or None as long as nobody saw it end."""
        return self._process.usage

    def poll(self) -> int | None:
        """Its return code if it has ended, else None; does not wait."""
        return self._process.poll()

    async def wait(self, timeout: float | None = None) -> int:
        """
        Wait for its end and return its return code; cancelled, it goes on running.

        Raises:
            TimeoutExpired: *timeout* seconds have passed. It goes on running, as with `subprocess`.
        """
        waiter = self._process.engine.waiter
        deadline = inf if timeout is None else waiter.now() + quantity.seconds("timeout", timeout)
        while (code := self._process.poll()) is None:
            if not await self._process.over(deadline) and timeout is not None:
                raise TimeoutExpired(self.args, timeout)
        await trio.lowlevel.checkpoint()
        return code

    def lines(
        self, stream: str = "stdout", *, encoding: str | None = None, errors: str = "strict"
    ) -> AsyncIterator[Any]:
        """
        Iterate over the lines that it writes, each with its end, as they come.

        Args:
            stream: ``stdout`` or ``stderr``.
            encoding: Give texts; without it, and without ``text=True``, bytes.
            errors: As `codecs`.

        Raises:
            SpecError: This stream is not a pipe.
        """
        lines = Lines(encoding or ("utf-8" if self._text else None), errors)
        return _LineIterator(self._process, pipe(self, stream), lines)

    def send_signal(self, number: int) -> None:
        """Send a signal to the command itself; nothing happens if it has ended."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM, or what the image asks for in its place."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill it and all its children, also those in the background."""
        self._process.kill()

    def resize(self, *, rows: int, columns: int) -> None:
        """Set its terminal's size in characters; as `Process.resize`."""
        size = Size.of(rows, columns)
        if self._terminal is None or self._terminal.closed:
            raise StateError("the process has no open terminal: start it with tty=True")
        resize(self._terminal.fileno(), size)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.engine.maker.is_another:
            # The loop is the parent's, too.
            self._process.release()
            return
        try:
            if kind is not None:
                self.kill()
            for stream in (self.stdin, self.stdout, self.stderr, self.tty):
                if stream is not None:
                    with trio.CancelScope(shield=True):
                        await stream.aclose()
            await self.wait()
        except BaseException:
            # Cancelled while it waits: the whole tree is gone before the block is left.
            self.kill()
            raise
        finally:
            with trio.CancelScope(shield=True):
                await self.wait()
            self._process.release()

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"returncode={self.returncode}"
        return f"<AsyncProcess {self.args!r} {state}>"


def _output(process: EngineProcess, name: str) -> Output | None:
    fd: Fd = getattr(process, name)
    return Output(Stream(fd, f"<{name}>")) if fd else None


def _input(fd: Fd) -> trio.lowlevel.FdStream:
    # In this order: whoever is interrupted has not lost it.
    stream = trio.lowlevel.FdStream(fd.fileno())
    fd.take()
    return stream


def pipe(process: AsyncProcess, stream: object) -> Output:
    """One of its outputs by name. Raises: SpecError: There is none, or it is no pipe."""
    found = getattr(process, stream) if stream in ("stdout", "stderr") else None
    if found is None:
        raise SpecError("stream", stream, '"stdout" or "stderr", started as PIPE')
    assert isinstance(found, Output)
    return found


def _is_of_process(output: object) -> TypeGuard[tuple[AsyncProcess, object]]:
    return isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], AsyncProcess)


def sources(output: object) -> Any:
    """The engine's process, the files it writes to, and the text to look for."""
    if not _is_of_process(output):
        raise SpecError("output", output, "a process of this sandbox and the text to wait for")
    process, text = output
    outputs = [file.raw for file in (process.stdout, process.stderr) if file is not None]
    files = [*([process._terminal] if process._terminal is not None else []), *outputs]  # noqa: SLF001
    return process._process, files, text  # noqa: SLF001


__all__ = ["AsyncProcess", "Output", "pipe", "sources"]
