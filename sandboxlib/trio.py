"""The trio face: `AsyncSandbox`, with the verbs and signatures of the blocking one, and `run`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import trio

import sandboxlib.forks  # noqa: F401 - before anything else is loaded: a fork waits for that
from sandboxlib import quantity
from sandboxlib.bounds import COPIED, ENTRIES
from sandboxlib.doors import door, doors
from sandboxlib.engine import verbs
from sandboxlib.engine.attach import DETACH_KEYS
from sandboxlib.engine.capture import MAX_OUTPUT, OnLine
from sandboxlib.engine.opening import start
from sandboxlib.engine.planning import current_plan
from sandboxlib.engine.sandbox import Engine
from sandboxlib.engine.stdio import PIPE, UNSAID
from sandboxlib.errors import StateError
from sandboxlib.limits import Limits
from sandboxlib.plan.steps import Plan
from sandboxlib.result import Change, Completed, ProcessInfo, Stats
from sandboxlib.spec import SandboxSpec
from sandboxlib.trio_process import AsyncProcess, sources
from sandboxlib.trio_waiter import TRIO

if TYPE_CHECKING:
    from sandboxlib.blocking import Args, Env, Stream
    from sandboxlib.engine.connect import Address
    from sandboxlib.trio_files import AsyncFiles
    from sandboxlib.trio_images import AsyncImage


@doors
class AsyncSandbox:
    r"""
    A sandbox in a trio program: an asynchronous context manager; arguments as `Sandbox`.

    Its verbs are those of `Sandbox`, awaited. Each is a checkpoint; one that is cancelled has
    killed and reaped what it started before its scope is left. Tasks may use one sandbox at once.

    Example:
        >>> async def main() -> None:
        ...     async with AsyncSandbox(memory="64M") as sb:
        ...         done = await sb.run(["sort"], input=b"b\na\n")
        ...         print(done.stdout)
        >>> import trio
        >>> trio.run(main)
        b'a\nb\n'
    """

    def __init__(self, **spec: Any) -> None:
        self.spec = SandboxSpec.of(**spec)
        self._engine: Engine | None = None

    def plan(self) -> Plan:
        """Every step that a start will take, in order; nothing happens."""
        return current_plan(self.spec)

    async def open(self) -> Self:
        """Start it. Raises: StateError: It is open already. See `SandboxSpec` for the others."""
        if self._engine is not None and not self._engine.closed:
            raise StateError("the sandbox is open already")
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._engine is not None:
            # What its end, which was interrupted, has left behind.
            await self._engine.close()

        def tell(engine: Engine) -> None:
            self._engine = engine

        await start(self.spec, TRIO, tell)
        return self

    async def close(self) -> None:
        """Kill every process in it and remove all that it made, cancelled or not. Idempotent."""
        if self._engine is not None:
            await self._engine.close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A cancellation that waits is told where the block waits next, not in place of its error.
        with TRIO.shield():
            await self.close()

    def _live(self) -> Engine:
        if self._engine is None:
            raise StateError("the sandbox is not open: use it in an async with statement")
        self._engine.check()
        return self._engine

    # ---- commands -------------------------------------------------------------------------

    async def run(
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
        """Run a command to its end; as `Sandbox.run`."""
        return await verbs.run(
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

    async def sh(self, line: str, **options: Any) -> Completed:
        """Run a shell line; options as `run`."""
        return await self.run(["/bin/sh", "-c", quantity.text("line", line)], **options)

    async def popen(
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
    ) -> AsyncProcess:
        """
        Start a command and return while it runs; as `Sandbox.popen`.

        Its streams are trio's, which are bytes always: with *text*, `AsyncProcess.lines` decodes UTF-8.
        """
        return await verbs.popen(
            self._live(),
            args,
            lambda process: AsyncProcess(process, text),
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

    async def attach(
        self,
        args: Args | AsyncProcess,
        *,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
        detach_keys: bytes = DETACH_KEYS,
    ) -> AsyncProcess:
        """Give this program's terminal to a command until it exits or is detached; as `Sandbox.attach`."""
        from sandboxlib.engine import attach

        engine = self._live()
        if isinstance(args, AsyncProcess):
            attach.check_again(env=env, cwd=cwd, limits=limits)
            await attach.again(args._process, args._terminal, detach_keys)
            return args
        started = await attach.start(engine, args, env=env, cwd=cwd, limits=limits, keys=detach_keys)
        return AsyncProcess(started, text=False)

    async def processes(
        self, *, max_size: int | str = "32K", max_entries: int = 100_000, timeout: float | None = None
    ) -> list[ProcessInfo]:
        """List what runs in it; as `Sandbox.processes`."""
        from sandboxlib.engine.processes import processes

        await trio.lowlevel.checkpoint()
        return await processes(self._live(), max_size=max_size, max_entries=max_entries, seconds=timeout)

    async def connect(
        self, address: Address, *, timeout: float | None = None
    ) -> trio.SocketStream | trio.socket.SocketType:
        """
        Connect to something that listens inside; as `Sandbox.connect`.

        Returns:
            A stream; for UDP, a connected trio socket.
        """
        import socket

        from sandboxlib.engine.connect import connect

        connected = trio.socket.from_stdlib_socket(await connect(self._live(), address, timeout))
        return trio.SocketStream(connected) if connected.type == socket.SOCK_STREAM else connected

    async def wait_for(
        self,
        *,
        port: int | str | None = None,
        path: str | os.PathLike[str] | None = None,
        output: tuple[AsyncProcess, bytes | str] | None = None,
        command: Args | None = None,
        timeout: float | None = None,
    ) -> None:
        """Wait until something inside is ready; as `Sandbox.wait_for`."""
        from sandboxlib.engine import wait

        written = None if output is None else sources(output)
        await wait.wait_for(
            self._live(), port=port, path=path, output=written, command=command, seconds=timeout
        )

    # ---- files ----------------------------------------------------------------------------

    @property
    def files(self) -> AsyncFiles:
        """Its files: read, write, list, copy in and out."""
        from sandboxlib.trio_files import AsyncFiles

        return AsyncFiles(self._live)

    async def changes(
        self, *, max_entries: int | None = ENTRIES, timeout: float | None = None
    ) -> list[Change]:
        """Return what was added, modified or deleted; as `Sandbox.changes`."""
        from sandboxlib.engine.changes import changes

        return await changes(self._live(), max_entries=max_entries, seconds=timeout)

    # ---- its image ------------------------------------------------------------------------

    @property
    def image(self) -> AsyncImage | None:
        """The image that it began with; as `Sandbox.image`."""
        held = self._live().held
        if held is None:
            return None
        from sandboxlib.engine import images
        from sandboxlib.trio_images import AsyncImage

        return AsyncImage.of(images.get(held.image.digest))

    async def commit(
        self,
        name: str,
        *,
        message: str = "",
        author: str = "",
        config: Mapping[str, Any] | None = None,
        created: str | None = None,
        max_size: int | str | None = COPIED,
        max_entries: int | None = ENTRIES,
        timeout: float | None = None,
    ) -> AsyncImage:
        """Make an image of its own and what has changed; as `Sandbox.commit`."""
        from sandboxlib.engine.commit import Most, commit
        from sandboxlib.trio_images import AsyncImage

        options = {"message": message, "author": author, "config": config, "created": created}
        most = Most(max_size, max_entries, timeout)
        return AsyncImage.of(await commit(self._live(), name, **options, most=most))

    async def export(
        self,
        target: str | os.PathLike[str] | IO[bytes],
        *,
        max_size: int | str | None = COPIED,
        max_entries: int | None = ENTRIES,
        timeout: float | None = None,
    ) -> None:
        """Write its whole file tree as a plain tar; as `Sandbox.export`."""
        from sandboxlib.engine.commit import Most, export

        await export(self._live(), target, Most(max_size, max_entries, timeout))

    # ---- the sandbox as a whole -----------------------------------------------------------

    async def stats(self) -> Stats:
        """What it uses now."""
        await trio.lowlevel.checkpoint()
        return await verbs.stats(self._live())

    async def port(self, inside: int, protocol: str = "tcp") -> int:
        """Return the host's port that leads to the port *inside*; as `Sandbox.port`."""
        await trio.lowlevel.checkpoint()
        return verbs.port(self._live(), inside, protocol)

    async def addresses(self) -> dict[str, tuple[str, ...]]:
        """Return its addresses by the name of the network."""
        await trio.lowlevel.checkpoint()
        return verbs.addresses(self._live())

    async def pause(self) -> None:
        """Stop every process in it. Raises: UnsupportedError: There is no cgroup."""
        await trio.lowlevel.checkpoint()
        await verbs.pause(self._live())

    async def resume(self) -> None:
        """Let them go on."""
        await trio.lowlevel.checkpoint()
        await verbs.resume(self._live())

    async def update(self, **limits: Any) -> None:
        """Change limits while it runs: memory, cpus, pids, or fields of `CGroup`."""
        await trio.lowlevel.checkpoint()
        await verbs.update(self._live(), limits)

    async def kill(self) -> None:
        """Kill every process in it; only closing is left then."""
        await trio.lowlevel.checkpoint()
        await self._live().kill()

    def __repr__(self) -> str:
        state = "closed" if self._engine is None or self._engine.closed else f"pid={self._engine.pid}"
        return f"<AsyncSandbox {state}>"


@door
async def run(args: Args, **options: Any) -> Completed:
    """Run one command in a sandbox of its own; options are those of `AsyncSandbox.run` and `AsyncSandbox`."""
    mine = {name: options.pop(name) for name in tuple(options) if name in _RUN_OPTIONS}
    async with AsyncSandbox(**options) as sandbox:
        return await sandbox.run(args, **mine)


_RUN_OPTIONS = frozenset(name for name in AsyncSandbox.run.__annotations__ if name not in ("args", "return"))

__all__ = ["AsyncProcess", "AsyncSandbox", "run"]
