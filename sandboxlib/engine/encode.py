"""From a plan's launcher steps to the bytes of a launcher program."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from sandboxlib.errors import KernelError
from sandboxlib.kernel import program
from sandboxlib.plan.command import GROUPS, Group, Kind, Request, fixed, kind_of, opened, watched
from sandboxlib.plan.flags import AT_FDCWD, O_CLOEXEC, O_WRONLY
from sandboxlib.plan.steps import (
    Action,
    Call,
    ChildWrite,
    Clone,
    Connect,
    Exec,
    Extents,
    Files,
    Fits,
    Init,
    Join,
    OpenChild,
    Pointer,
    Read,
    Report,
    Serve,
    Stats,
    Step,
    Template,
    Variable,
    Watch,
    Write,
    flatten,
)
from sandboxlib.plan.tree import JOINS

if TYPE_CHECKING:
    from sandboxlib.host import Host
    from sandboxlib.spec import SandboxSpec


#: What a `Variable`, and a ``{name}`` in a text, stands for; the files of `Join` by the name "join".
Values = Mapping[str, int | str | tuple[str, ...]]
NO_VALUES: Values = {}


def encode(steps: tuple[Step, ...], values: Values = NO_VALUES, index: int = 0) -> bytes:
    """The program for *steps*, whose first has the number *index*."""
    parts = []
    for step in steps:
        parts.append(_encode(step, index, values))
        index += 1 if not isinstance(step, Clone) else 1 + sum(1 for _ in flatten(step.child))
    return b"".join(parts)


class Compiled(NamedTuple):
    """
    Steps encoded as far as they can be before the values are known.

    Attributes:
        parts: Bytes, and (step, index) for what has to be filled in.
    """

    parts: tuple[bytes | tuple[Step, int] | tuple[Clone, int, Compiled], ...]

    def fill(self, values: Values) -> bytes:
        """The program, with *values*."""
        found = []
        for part in self.parts:
            if isinstance(part, bytes):
                found.append(part)
            elif len(part) == 2:
                found.append(_encode(part[0], part[1], values))
            else:
                clone, index, child = part
                code = child.fill(values)
                found.append(program.clone(clone.flags, code, index, clone.cgroup, timed=clone.timed))
        return b"".join(found)


def precompile(steps: tuple[Step, ...], index: int = 0) -> Compiled:
    """Encode all of *steps* that does not depend on values; most of a start does not."""
    parts: list[bytes | tuple[Step, int] | tuple[Clone, int, Compiled]] = []
    ready: list[bytes] = []
    for step in steps:
        varies = _varies(step)
        if (varies or isinstance(step, Clone)) and ready:
            parts.append(b"".join(ready))
            ready = []
        if isinstance(step, Clone):
            parts.append((step, index, precompile(step.child, index + 1)))
            index += sum(1 for _ in flatten(step.child))
        elif varies:
            parts.append((step, index))
        else:
            ready.append(_encode(step, index, NO_VALUES))
        index += 1
    return Compiled((*parts, b"".join(ready)))


def _varies(step: Step) -> bool:
    match step:
        case Join():
            return True
        case Call(_, args):
            return any(isinstance(arg, (Variable, Template)) for arg in args)
        case Write(path, data) | ChildWrite(path, data):
            return isinstance(path, Template) or isinstance(data, Template)
    return False


def _encode(step: Step, index: int, values: Values) -> bytes:
    match step:
        case Call(name, args, _, out, ignore, positive, absolute, each, _, tell):
            filled = [_fill(arg, values) for arg in args]
            return program.call(
                name, filled, index,
                out=out, ignore=ignore, positive=positive, absolute=absolute, each=each, tell=tell,
            )  # fmt: skip
        case Write(path, data, _, directory, flags, mode, ignore):
            text = _text(data, values)
            return program.write(str(_fill(path, values)), text, index, directory, flags, mode, ignore)
        case Action():
            return b""
        case Join(stage, _):
            return _join(stage, index, values)
        case Clone(flags, child, _, cgroup, timed):
            return program.clone(flags, encode(child, values, index + 1), index, cgroup, timed=timed)
        case Watch(nanoseconds, tell, _, group):
            return program.watch(nanoseconds, tell, group, index)
        case ChildWrite(name, data, _):
            return program.child_write(name, _text(data, values), index)
        case OpenChild(name, _, out):
            return program.child_open(name, 0, out, index)
        case Pointer(at, offset, _):
            return program.pointer(at, offset, index)
        case Report(kind, _, fd):
            return program.report(kind, fd, index)
        case Exec(paths, argv, env, _):
            return program.execute(paths, argv, env, index)
        case Serve():
            return program.serve(index)
        case Init(owner, tie, _, milliseconds):
            return program.init(owner, tie, milliseconds, index)
        case Read(name, fd, size, _, ignore):
            return program.read(name, fd, size, index, ignore=ignore)
        case Files(names, most, _):
            return program.files(names, most, index)
        case Fits(fd, most, _):
            return program.fits(fd, most, index)
        case Stats(fd, names, flags, _):
            return program.stats(fd, names, flags, index)
        case Extents(fd, begin, most, _):
            return program.extents(fd, begin, most, index)
        case Connect(fd, address, milliseconds, _, ignore):
            return program.connect(fd, address, milliseconds, index, ignore=ignore)
    raise TypeError(f"not a launcher step: {step!r}")


def _join(stage: str, index: int, values: Values) -> bytes:
    paths = values["join"]
    assert isinstance(paths, tuple)
    parts = []
    for fd, path in enumerate(paths, JOINS):
        if stage == "open":
            parts.append(program.call("openat", (AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0), index, out=fd))
        else:
            parts.append(program.call("write", (fd, b"0", 1), index))
    return b"".join(parts)


def _fill(value: int | str | bytes | Variable, values: Values) -> int | str | bytes:
    if isinstance(value, Variable):
        number = values[value.name]
        assert isinstance(number, int)
        return number + value.plus
    return value.fill(values) if isinstance(value, Template) else value


def _text(data: str | bytes, values: Values) -> bytes:
    if isinstance(data, bytes):
        return data
    filled = _fill(data, values)
    return str(filled).encode()


def failure(steps: tuple[Step, ...], index: int, errno: int) -> KernelError:
    """The error for a report that step *index* failed."""
    for number, step in enumerate(flatten(steps)):
        if number == index:
            return KernelError(errno, str(step), step.why)
    return KernelError(errno, f"launcher step {index}", "the launcher refused its program")


@lru_cache(256)
def _fixed(spec: SandboxSpec, host: Host, kind: Kind) -> tuple[bytes, bytes, int, int, bytes, int]:
    parts = fixed(spec, host, kind)
    first = kind.opened
    index = first + len(parts.before)
    child = encode(parts.child, index=index + 1)
    last = index + len(parts.child) + 2
    report = encode((parts.report,), index=last)
    return encode(parts.before, index=first), child, parts.flags, index, report, last


def encode_command(spec: SandboxSpec, host: Host, request: Request, group: Group) -> bytes:
    """The program of `sandboxlib.plan.command.command`, most of which is made once."""
    kind = kind_of(request, group)
    before, child, flags, index, report, last = _fixed(spec, host, kind)
    execute = program.execute(request.paths, request.argv, request.env, index + 1)
    cgroup, timed = GROUPS if kind.into else -1, bool(request.wall_time)
    clone = program.clone(flags, child + execute, index, cgroup, timed=timed)
    watch = encode(watched(request, kind), index=last + 1) if timed else b""
    return b"".join((_opened(group), before, clone, report, watch))


@lru_cache(1024)
def _opened(group: Group) -> bytes:
    # A leaf is used again and again.
    return encode(opened(group))
