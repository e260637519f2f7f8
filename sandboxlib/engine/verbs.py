"""What a live sandbox can be asked, once for all faces."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from sandboxlib import quantity
from sandboxlib.engine.capture import MAX_OUTPUT, OnLine, communicate
from sandboxlib.engine.process import Process
from sandboxlib.engine.stdio import DEVNULL, PIPE, UNSAID, Unsaid, stdio
from sandboxlib.engine.text import Kept, decoder
from sandboxlib.errors import KernelError, SpecError, StateError, TimeoutExpired, UnsupportedError
from sandboxlib.limits import Limits
from sandboxlib.result import Completed, NetworkStats, Stats

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.engine.terminal import Size

P = TypeVar("P")
#: How many interfaces `stats` tells of.
_INTERFACES = 4096
Args = Sequence[str | bytes | os.PathLike[str]]


def words(engine: Engine, args: Args | None) -> Args:
    """The command *args*, or the image's own. Raises: SpecError: There is neither."""
    if args is not None:
        return args
    found = [] if engine.held is None else [*engine.held.command[0], *engine.held.command[1]]
    if not found:
        raise SpecError("args", args, "a command: the sandbox has no image that says what runs")
    return found


async def popen(
    engine: Engine,
    args: Args | None,
    face: Callable[[Process], P],
    *,
    stdin: Any = UNSAID,
    stdout: Any = UNSAID,
    stderr: Any = UNSAID,
    env: Any = None,
    cwd: Any = None,
    limits: Limits | None = None,
    tty: bool = False,
    rows: Any = None,
    columns: Any = None,
    text: bool = False,
) -> P:
    """Start a command and return while it runs; what the caller gets of it is made by *face*."""
    check_limits(limits, popen=True)
    if tty and text:
        raise SpecError("text", text, "left out with tty=True: a terminal is read as bytes")
    size = check_tty(tty, rows, columns, stdin=stdin, stdout=stdout, stderr=stderr)
    engine.check()
    process = Process(engine, words(engine, args))
    try:
        await process.start(size or stdio(stdin, stdout, stderr), env=env, cwd=cwd, limits=limits)
        return face(process)
    except BaseException:
        await process.abandon()
        raise


def check_tty(tty: object, rows: object, columns: object, **streams: object) -> Size | None:
    """The size of the terminal that is asked for. Raises: SpecError: Something contradicts it."""
    if not isinstance(tty, bool):
        raise SpecError("tty", tty, "True or False")
    if not tty:
        for name, value in (("rows", rows), ("columns", columns)):
            if value is not None:
                raise SpecError(name, value, "left out without tty=True")
        return None
    for name, stream in streams.items():
        if not isinstance(stream, Unsaid):
            raise SpecError(name, stream, "left out with tty=True: the terminal is all three streams")
    from sandboxlib.engine.terminal import Size

    return Size.of(24 if rows is None else rows, 80 if columns is None else columns)


async def run(
    engine: Engine,
    args: Args | None,
    *,
    input: Any = None,
    stdin: Any = None,
    stdout: Any = PIPE,
    stderr: Any = PIPE,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    env: Any = None,
    cwd: Any = None,
    timeout: float | None = None,
    limits: Limits | None = None,
    max_output: int | str = MAX_OUTPUT,
    overflow: str = "truncate",
    on_line: OnLine | None = None,
    check: bool = False,
) -> Completed:
    """Run a command to its end."""
    deadline = inf
    if timeout is not None:
        deadline = engine.waiter.now() + quantity.seconds("timeout", timeout)
    kept = MAX_OUTPUT if max_output is MAX_OUTPUT else quantity.size("max_output", max_output)
    if overflow not in ("truncate", "kill"):
        raise SpecError("overflow", overflow, '"truncate" or "kill"')
    if on_line is not None and not callable(on_line):
        raise SpecError("on_line", on_line, "a function of a stream's name and a line")
    decoding = None
    if text or encoding is not None or errors is not None:
        decoding = ("utf-8" if encoding is None else encoding, "strict" if errors is None else errors)
        decoder(*decoding)
    data = to_bytes(input, decoding)
    if input is not None and stdin is not None:
        raise SpecError("stdin", stdin, "left out where input= is given")
    feed = PIPE if input is not None else DEVNULL if stdin is None else stdin
    if feed == PIPE and isinstance(feed, int) and input is None:
        data = b""
    check_limits(limits)
    engine.check()
    args = words(engine, args)
    process = Process(engine, args)
    try:
        io = stdio(feed, stdout, stderr)
        if not await process.start(io, env=env, cwd=cwd, limits=limits, deadline=deadline):
            assert timeout is not None
            raise TimeoutExpired(args, timeout, *(written(Kept(), decoding) for _ in range(2)))
        captured = await communicate(
            process,
            data,
            deadline=deadline,
            limits=limits,
            max_output=kept,
            kill_past=overflow == "kill",
            on_line=on_line,
            decoding=decoding,
        )
    except BaseException:
        await process.abandon()
        raise
    streams = captured.stdout, captured.stderr
    if captured.expired:
        assert timeout is not None
        raise TimeoutExpired(args, timeout, *(written(kept, decoding, expired=True) for kept in streams))
    out, err = (written(kept, decoding) for kept in streams)
    assert process.returncode is not None
    assert process.outcome is not None
    assert process.usage is not None
    done = Completed(
        args,
        process.returncode,
        out,
        err,
        outcome=process.outcome,
        usage=process.usage,
        stdout_truncated=captured.stdout.left_out if captured.stdout else 0,
        stderr_truncated=captured.stderr.left_out if captured.stderr else 0,
    )
    if check:
        done.check_returncode()
    return done


def to_bytes(value: Any, decoding: tuple[str, str] | None) -> bytes:
    """What a command is fed. Raises: SpecError."""
    if value is None:
        return b""
    if isinstance(value, str) and decoding is not None:
        try:
            return value.encode(*decoding)
        except UnicodeError as error:
            raise SpecError("input", value, f"a string that can be encoded: {error}") from None
    try:
        return bytes(memoryview(value))
    except TypeError:
        raise SpecError("input", value, "bytes, or a string with text=True") from None


def written(kept: Kept | None, decoding: tuple[str, str] | None, *, expired: bool = False) -> Any:
    """What a command wrote, as text where that was asked for."""
    if kept is None:
        return None
    if decoding is None:
        return kept.data
    try:
        return kept.text(*decoding)
    except UnicodeDecodeError:
        if not expired:
            raise
        # That the time is over is what has to be told: no wrong byte is to stand in its way.
        return kept.text(decoding[0], "replace")


def check_limits(limits: object, *, popen: bool = False) -> None:
    """Raises: SpecError: It is not a `Limits`, or has one that nobody would watch."""
    if limits is None:
        return
    if not isinstance(limits, Limits):
        raise SpecError("limits", limits, "a Limits value")
    for name in ("wall_time", "cpu_time", "output") if popen else ():
        if (value := getattr(limits, name)) is not None:
            raise SpecError(
                f"limits.{name}", value, "left out with popen(): it is kept by run(), which waits"
            )


async def stats(engine: Engine) -> Stats:
    """What it uses now. Raises: StateError: It has ended."""
    engine.check()
    try:
        return await engine.waiter.work(partial(_stats, engine))
    except OSError as error:
        # Of a process that is no more, whether or not somebody has asked for its status yet.
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EINVAL) or isinstance(error, KernelError):
            raise
        raise StateError(f"the sandbox has ended: {engine.how_ended()}") from None


def _stats(engine: Engine) -> Stats:
    network = _network(engine)
    if engine.group is None:
        return Stats(None, None, None, None, network)
    return engine.group.stats()._replace(network=network)


def _network(engine: Engine) -> dict[str, NetworkStats]:
    found = {}
    # Who may make interfaces inside may make many, and give them any name.
    with open(f"/proc/{engine.pid}/net/dev", encoding="utf-8", errors="surrogateescape") as file:
        for line in islice(file, _INTERFACES):
            name, colon, rest = line.partition(":")
            if colon:
                numbers = [int(part) for part in rest.split()]
                found[name.strip()] = NetworkStats(numbers[0], numbers[8], numbers[1], numbers[9])
    return found


def port(engine: Engine, inside: int, protocol: str) -> int:
    """The host's port that leads to one inside."""
    engine.check()
    published = engine.connections.published if engine.connections is not None else []
    for _, outside, kind, target in published:
        if (kind, target) == (protocol, inside):
            return int(outside)
    known = ", ".join(sorted({f"{target}/{kind}" for _, _, kind, target in published})) or "none"
    raise SpecError("inside", f"{inside}/{protocol}", f"a port that ports= publishes: {known}")


def addresses(engine: Engine) -> dict[str, tuple[str, ...]]:
    """Its addresses by network."""
    engine.check()
    return engine.connections.addresses if engine.connections is not None else {}


def group(engine: Engine, what: str) -> Any:
    """Its cgroup. Raises: UnsupportedError: This host has none."""
    engine.check()
    if engine.group is None:
        raise UnsupportedError(what, "a cgroup that this program may write", engine.host.cgroups.hint)
    return engine.group


async def pause(engine: Engine) -> None:
    """Stop every process in it."""
    await engine.waiter.work(partial(_freeze, engine, group(engine, "pause()")))


def _freeze(engine: Engine, found: Any) -> None:
    # First: whoever ends the sandbox has to know that some may have stopped already.
    engine.frozen = True
    try:
        found.freeze()
    except BaseException:
        found.thaw()
        engine.frozen = False
        raise


async def resume(engine: Engine) -> None:
    """Let them go on."""
    await engine.waiter.work(group(engine, "resume()").thaw)
    engine.frozen = False


async def update(engine: Engine, changes: dict[str, Any]) -> None:
    """Change limits while it runs: memory, cpus, pids, and every field of `CGroup`."""
    from sandboxlib.cgroup import CGroup

    short = {"memory": "memory_max", "cpus": "cpu_max", "pids": "pids_max"}
    names = {attribute.name for attribute in attrs.fields(CGroup)}
    fields = {}
    for name, value in changes.items():
        field = short.get(name, name)
        if field not in names:
            raise SpecError("update", name, f"one of {', '.join(sorted({*short, *names}))}")
        if field in fields:
            raise SpecError(name, value, f"left out where {field} is given")
        fields[field] = value
    await engine.waiter.work(partial(group(engine, "a change of limits").update, CGroup(**fields)))


__all__ = ["StateError"]
