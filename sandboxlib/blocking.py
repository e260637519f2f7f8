"""The blocking face: `Sandbox` and its `Process`es."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from sandboxlib import quantity
from sandboxlib.bounds import ENTRIES
from sandboxlib.doors import doors
from sandboxlib.engine import verbs
from sandboxlib.engine.attach import DETACH_KEYS
from sandboxlib.engine.capture import MAX_OUTPUT, OnLine
from sandboxlib.engine.opening import start
from sandboxlib.engine.planning import current_plan
from sandboxlib.engine.sandbox import Engine
from sandboxlib.engine.stdio import DEVNULL, PIPE, STDOUT, UNSAID
from sandboxlib.engine.waiter import BLOCKING, complete
from sandboxlib.errors import StateError
from sandboxlib.files import Files
from sandboxlib.from_image import FromImage
from sandboxlib.limits import Limits
from sandboxlib.plan.steps import Plan
from sandboxlib.process import Process, sources
from sandboxlib.result import Change, Completed, ProcessInfo, Stats
from sandboxlib.spec import SandboxSpec

if TYPE_CHECKING:
    from socket import socket

    from sandboxlib.engine.connect import Address

Args = Sequence[str | bytes | os.PathLike[str]]
Env = Mapping[str, str | None]
Stream = int | IO[Any] | None


@doors
class Sandbox(FromImage):
    """
    A sandbox: a context manager that starts it and removes it without a trace.

    Every argument is optional; see `SandboxSpec`. Entered again after it was closed, it starts anew.

    Example:
        >>> with Sandbox(memory="64M") as sb:
        ...     sb.run(["echo", "hello"], text=True).stdout.strip()
        'hello'
    """

    def __init__(self, **spec: Any) -> None:
        self.spec = SandboxSpec.of(**spec)
        self._engine: Engine | None = None

    def plan(self) -> Plan:
        """Every step that a start will take, in order; nothing happens."""
        return current_plan(self.spec)

    def open(self) -> Self:
        """Start it. Raises: StateError: It is open already. See `SandboxSpec` for the others."""
        if self._engine is not None and not self._engine.closed:
            raise StateError("the sandbox is open already")
        # What an earlier one has left behind, whose end was interrupted.
        self.close()

        def tell(engine: Engine) -> None:
            self._engine = engine

        complete(start(self.spec, BLOCKING, tell))
        return self

    def close(self) -> None:
        """Kill all that is in it and remove all that it made; closing again carries on with what is left."""
        if self._engine is not None:
            complete(self._engine.close())

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _live(self) -> Engine:
        if self._engine is None:
            raise StateError("the sandbox is not open: use it in a with statement")
        self._engine.check()
        return self._engine

    # ---- commands -------------------------------------------------------------------------

    def run(
        self,
        args: Args | None = None,
        *,
        input: bytes | str | None = None,
        stdin: Stream = None,
        stdout: Stream = PIPE,
        stderr: Stream = PIPE,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        limits: Limits | None = None,
        max_output: int | str = MAX_OUTPUT,
        overflow: str = "truncate",
        on_line: OnLine | None = None,
        check: bool = False,
    ) -> Completed:
        """
        Run a command to its end.

        Args:
            args: The command and its arguments, never a shell line; the image's own command where
                it is left out.
            input: What it reads; without it, and without stdin=, nothing.
            stdin, stdout, stderr: PIPE, DEVNULL, STDOUT, a file or descriptor, None to inherit.
            text, encoding, errors: As `subprocess`.
            env: Added to the sandbox's environment; None as a value takes a name out.
            cwd: Absolute, inside.
            timeout: Seconds of the caller's patience.
            limits: Policy; the outcome tells which was hit.
            max_output: Bytes of each stream that are kept, head and tail.
            overflow: What happens past that: ``truncate``, or ``kill`` it with all its children.
            on_line: Called with ("stdout" or "stderr", line) for each line as it comes; the command
                waits for a slow one. What it raises ends the command.
            check: Raise `ExitError` unless it exits with 0.

        Raises:
            TimeoutExpired: It was killed, with all its children.
            ExitError: *check* was given.
            CommandNotFoundError, CommandNotExecutableError: Nothing ran.
            SpecError: An argument makes no sense.
        """
        return complete(
            verbs.run(
                self._live(),
                args,
                input=input,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                text=text,
                encoding=encoding,
                errors=errors,
                env=env,
                cwd=cwd,
                timeout=timeout,
                limits=limits,
                max_output=max_output,
                overflow=overflow,
                on_line=on_line,
                check=check,
            )
        )

    def sh(self, line: str, **options: Any) -> Completed:
        """Run a shell line; options as `run`."""
        return self.run(["/bin/sh", "-c", quantity.text("line", line)], **options)

    def popen(
        self,
        args: Args | None = None,
        *,
        stdin: Stream = UNSAID,
        stdout: Stream = UNSAID,
        stderr: Stream = UNSAID,
        text: bool = False,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
        tty: bool = False,
        rows: int | None = None,
        columns: int | None = None,
    ) -> Process:
        """
        Start a command and return while it runs; arguments as `run`.

        Args:
            stdin, stdout, stderr: As `run`, but DEVNULL where nothing is said.
            tty: Give it a pseudo-terminal of the sandbox's own instead, as `Process.tty`.
            rows, columns: The terminal's size in characters; 24 and 80 where nothing is said.
        """
        started = verbs.popen(
            self._live(),
            args,
            lambda process: Process(process, text),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            limits=limits,
            tty=tty,
            rows=rows,
            columns=columns,
            text=text,
        )
        return complete(started)

    def attach(
        self,
        args: Args | Process,
        *,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
        detach_keys: bytes = DETACH_KEYS,
    ) -> Process:
        """
        Give this program's terminal to a command until it exits, or until Ctrl-P Ctrl-Q.

        The terminal is descriptor 0 and is raw meanwhile: every key goes to the command,
        Ctrl-C too. Output goes to descriptor 1. Its size is passed on, also when it changes.
        However this ends, the terminal is as it was. When an exception ends it (a signal
        that Python turns into one), a command that was started here is killed; a process
        that was handed in goes on.

        Args:
            args: A command, or a process of `popen` with ``tty=True`` or of an earlier call.
            env, cwd, limits: As `popen`; TERM is this program's. Not with a process.
            detach_keys: What detaches; ``b""`` for nothing.

        Returns:
            The process: its `returncode` is set, or None after it was detached and runs on, until
            what it writes has filled its terminal; attach it again, read its `tty`, or kill it.

        Raises:
            SpecError: Descriptor 0 is no terminal, or an argument makes no sense.
            CommandNotFoundError, CommandNotExecutableError: Nothing ran.
        """
        from sandboxlib.engine import attach

        engine = self._live()
        if isinstance(args, Process):
            attach.check_again(env=env, cwd=cwd, limits=limits)
            complete(attach.again(args._process, args.tty, detach_keys))
            return args
        started = attach.start(engine, args, env=env, cwd=cwd, limits=limits, keys=detach_keys)
        return Process(complete(started), text=False)

    def processes(
        self, *, max_size: int | str = "32K", max_entries: int = 100_000, timeout: float | None = None
    ) -> list[ProcessInfo]:
        """
        List what runs in it, by number inside, as ``top`` there would.

        Without pid 1, which is sandboxlib's own. Processes of other sandboxes that share
        its PID namespace are not listed.

        Args:
            max_size: Bytes of each command line, which is cut there; of many long ones together 64 MiB are
                kept, and 256 bytes of each further one.
            max_entries: How many processes there may be.
            timeout: Seconds; without it 10, which a machine that is kept busy may need.

        Raises:
            TooLargeError: There are more than *max_entries*.
            TimeoutExpired: *timeout* seconds have passed. Without it a `TimeoutError` says so.
        """
        from sandboxlib.engine.processes import processes

        found = processes(self._live(), max_size=max_size, max_entries=max_entries, seconds=timeout)
        return complete(found)

    def connect(self, address: Address, *, timeout: float | None = None) -> socket:
        """
        Connect to something that listens inside; nothing needs to be published for it.

        Args:
            address: A TCP port on its loopback (IPv4, then IPv6), a UDP port such as ``"53/udp"``,
                an (IP address, port), or the absolute path of a UNIX socket inside.
            timeout: Seconds to wait for somebody who listens; without it there is one attempt.

        Returns:
            A connected socket in the sandbox's network, owned by the caller. It outlives the sandbox.

        Raises:
            RefusedError: Nobody listens there; also a `ConnectionRefusedError`.
            TimeoutExpired: Nobody did so in time.
            KernelError: Another failure, such as a missing path.
        """
        from sandboxlib.engine.connect import connect

        return complete(connect(self._live(), address, timeout))

    def wait_for(
        self,
        *,
        port: int | str | None = None,
        path: str | os.PathLike[str] | None = None,
        output: tuple[Process, bytes | str] | None = None,
        command: Args | None = None,
        timeout: float | None = None,
    ) -> None:
        """
        Wait until something inside is ready; say which by exactly one of the arguments.

        Args:
            port: Somebody listens on this TCP port, or ``"53/udp"``; nothing is connected.
            path: This absolute path exists, whatever it is.
            output: (process, text): a pipe or the terminal of a process has brought this text,
                counted from what has not been read yet; all of it can still be read.
            command: This command exits with 0; it is run again and again until then.
            timeout: Seconds; without it there is no end of patience.

        Raises:
            TimeoutExpired: It was not ready in time.
            StateError: The sandbox, or the process whose output is awaited, has ended.
            SpecError: None or several are given, or one makes no sense.
        """
        from sandboxlib.engine import wait

        written = None if output is None else sources(output)
        waiting = wait.wait_for(
            self._live(), port=port, path=path, output=written, command=command, seconds=timeout
        )
        complete(waiting)

    # ---- files ----------------------------------------------------------------------------

    @property
    def files(self) -> Files:
        """Its files: read, write, list, copy in and out."""
        return Files(self._live)

    def changes(self, *, max_entries: int | None = ENTRIES, timeout: float | None = None) -> list[Change]:
        """
        Return what was added, modified or deleted in its root file system, by path.

        Args:
            max_entries: How many files, folders and links may have been written; None for no bound.
            timeout: Seconds.

        Raises:
            UnsupportedError: What is written to a `Rootfs.directory` is not kept apart.
            TooLargeError: More was written than *max_entries*.
            TimeoutExpired: *timeout* seconds have passed.
        """
        from sandboxlib.engine.changes import changes

        return complete(changes(self._live(), max_entries=max_entries, seconds=timeout))

    # ---- the sandbox as a whole -----------------------------------------------------------

    def stats(self) -> Stats:
        """What it uses now."""
        return complete(verbs.stats(self._live()))

    def port(self, inside: int, protocol: str = "tcp") -> int:
        """
        Return the host's port that leads to the port *inside*; the first, if there are several.

        Raises:
            SpecError: None does.
        """
        return verbs.port(self._live(), inside, protocol)

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Return its addresses by the name of the network."""
        return verbs.addresses(self._live())

    def pause(self) -> None:
        """Stop every process in it. Raises: UnsupportedError: There is no cgroup."""
        complete(verbs.pause(self._live()))

    def resume(self) -> None:
        """Let them go on."""
        complete(verbs.resume(self._live()))

    def update(self, **limits: Any) -> None:
        """Change limits while it runs: memory, cpus, pids, or fields of `CGroup`."""
        complete(verbs.update(self._live(), limits))

    def kill(self) -> None:
        """Kill every process in it; only closing is left then."""
        complete(self._live().kill())

    def __repr__(self) -> str:
        state = "closed" if self._engine is None or self._engine.closed else f"pid={self._engine.pid}"
        return f"<Sandbox {state}>"


__all__ = ["DEVNULL", "PIPE", "STDOUT", "Files", "Process", "Sandbox"]
