"""The blocking face of a command that runs in a sandbox."""

from __future__ import annotations

import io
from collections.abc import Iterator
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sandboxlib import quantity
from sandboxlib.doors import doors
from sandboxlib.engine.process import Process as EngineProcess
from sandboxlib.engine.waiter import BLOCKING, complete
from sandboxlib.errors import SpecError, StateError, TimeoutExpired
from sandboxlib.result import Outcome, Usage

if TYPE_CHECKING:
    from sandboxlib.engine.terminal import Terminal


@doors
class Process:
    """
    A command that runs in a sandbox; made by `Sandbox.popen`.

    Attributes:
        args: As given.
        stdin, stdout, stderr: Files for those that are `PIPE`, else None.
        tty: With ``tty=True`` a raw binary file for its terminal: what is written is typed,
            what is read is shown; closing it hangs up. Else None.
    """

    def __init__(self, process: EngineProcess, text: bool) -> None:
        self._process = process
        self.args = process.args
        self.stdin: Any = _stream(process, "stdin", "wb", text)
        self.stdout: Any = _stream(process, "stdout", "rb", text)
        self.stderr: Any = _stream(process, "stderr", "rb", text)
        self.tty: Terminal | None = _terminal(process)

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

    def wait(self, timeout: float | None = None) -> int:
        """
        Wait for its end and return its return code.

        Raises:
            TimeoutExpired: *timeout* seconds have passed. It goes on running, as with `subprocess`.
        """
        deadline = inf if timeout is None else BLOCKING.now() + quantity.seconds("timeout", timeout)
        while (code := self._process.poll()) is None:
            if not complete(self._process.over(deadline)) and timeout is not None:
                raise TimeoutExpired(self.args, timeout)
        return code

    def lines(
        self, stream: str = "stdout", *, encoding: str | None = None, errors: str = "strict"
    ) -> Iterator[Any]:
        """
        Iterate over the lines that it writes, each with its end, as they come.

        Args:
            stream: ``stdout`` or ``stderr``.
            encoding: Give texts; without it, and without ``text=True``, bytes.
            errors: As `codecs`.

        Raises:
            SpecError: This stream is not a pipe.
        """
        from sandboxlib.engine.lines import Lines

        source = getattr(self, stream) if stream in ("stdout", "stderr") else None
        if source is None:
            raise SpecError("stream", stream, '"stdout" or "stderr", started as PIPE')
        if isinstance(source, io.TextIOWrapper):
            if encoding is not None:
                raise SpecError("encoding", encoding, "left out with text=True")
            yield from source
            return
        lines = Lines(encoding, errors)
        while data := source.read1():
            yield from lines.feed(data)
        yield from lines.end(whole=not lines.half or complete(self._process.exited()))

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
        """
        Set its terminal's size in characters; what runs in it hears of it by SIGWINCH.

        Raises:
            StateError: It has no terminal, or that is closed.
            SpecError: A number is not between 1 and 65535.
        """
        from sandboxlib.engine import terminal

        size = terminal.Size.of(rows, columns)
        if self.tty is None or self.tty.closed:
            raise StateError("the process has no open terminal: start it with tty=True")
        terminal.resize(self.tty.fileno(), size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inherited = self._process.engine.maker.is_another
        if kind is not None and not inherited:
            self.kill()
        for stream in (self.stdin, self.stdout, self.stderr, self.tty):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    # What was buffered for a command that no longer reads is lost, as with subprocess.
                    continue
        if not inherited:
            self.wait()
        self._process.release()

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"returncode={self.returncode}"
        return f"<Process {self.args!r} {state}>"


def _stream(process: EngineProcess, name: str, mode: str, text: bool) -> Any:
    fd = getattr(process, name)
    if not fd:
        return None
    if mode == "wb":
        file = io.FileIO(f"<{name}>", mode, opener=fd.opener)
        stream: io.BufferedWriter | io.BufferedReader = io.BufferedWriter(file)
    else:
        from sandboxlib.engine.terminal import Stream as Pipe

        # As large as a pipe: one read takes what one full pipe holds.
        stream = io.BufferedReader(Pipe(fd, f"<{name}>"), 1 << 16)
    if not text:
        return stream
    if mode == "wb":
        return io.TextIOWrapper(stream, write_through=True)
    from sandboxlib.engine.text import strict_but_for_the_end

    return io.TextIOWrapper(stream, errors=strict_but_for_the_end())


def _terminal(process: EngineProcess) -> Terminal | None:
    if not process.terminal:
        return None
    from sandboxlib.engine.terminal import Terminal

    return Terminal(process.terminal)


def sources(output: Any) -> Any:
    """The engine's process, the files it writes to, and the text to look for."""
    if not isinstance(output, tuple) or len(output) != 2 or not isinstance(output[0], Process):
        raise SpecError("output", output, "a process of this sandbox and the text to wait for")
    process, text = output
    files = [file for file in (process.tty, process.stdout, process.stderr) if file is not None]
    return process._process, files, text
