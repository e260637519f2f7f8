"""
The steps that plans are made of.

Each is a small immutable tuple that prints as the call it makes and says why.
A launcher step becomes one record of the launcher's language (see
``_native/protocol.h``); an `Action` is carried out by the program itself.
A `Variable` and a `Template` stand for what is known only when the plan is carried out:
the range of IDs, the cgroup's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sandboxlib.plan.flags import AT_FDCWD, CLONE_PARENT, NOTHING, O_WRONLY, Named
from sandboxlib.plan.telling import Connect, Extents, Files, Read, Stats

_NAMED = re.compile(r"\{(?P<name>[a-z_]+)(?:\+(?P<plus>[0-9]+))?\}")


class Variable(NamedTuple):
    """A number that is known only when the plan is carried out, or one that is *plus* more."""

    name: str
    plus: int = 0

    def __str__(self) -> str:
        return f"<{self.name}+{self.plus}>" if self.plus else f"<{self.name}>"


class Template(str):
    """
    A text in which ``{name}`` stands for what is known only when the plan is carried out.

    ``{name+3}`` stands for a number that is three more.
    """

    __slots__ = ()

    def fill(self, values: Mapping[str, object]) -> str:
        """The text with *values*; a name that is not among them stays."""

        def known(match: re.Match[str]) -> str:
            if match["name"] not in values:
                return match[0]
            value = values[match["name"]]
            return str(value + int(match["plus"])) if match["plus"] and isinstance(value, int) else str(value)

        return _NAMED.sub(known, self)


Argument = int | str | bytes | Variable
#: It may fail: what follows does without.
ANY = (0xFFFF,)


def _show(value: Argument) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return str(value)


class Call(NamedTuple):
    """
    One system call.

    Attributes:
        name: The call's name.
        args: Numbers, strings (NUL is added) and buffers, at most six.
        why: What it is for.
        out: The number that a returned descriptor shall have, or -1.
        ignore: Up to two errnos that are no failure here; or `ANY`.
        positive: A result of 0 is a failure.
        absolute: The first buffer must hold an absolute path afterwards.
        each: Bits; the call is made for each that is set, with its number as second argument.
        tell: The argument, counted from 0, whose buffer the program is told afterwards, or -1.
        text: Printed instead of the arguments where buffers say little.
    """

    name: str
    args: tuple[Argument, ...]
    why: str
    out: int = -1
    ignore: tuple[int, ...] = ()
    positive: bool = False
    absolute: bool = False
    each: int = 0
    text: str = ""
    tell: int = -1

    def __str__(self) -> str:
        result = f" = {self.out}" if self.out >= 0 else ""
        return f"{self.name}({self.text or ', '.join(map(_show, self.args))}){result}"


class Write(NamedTuple):
    """Open *path* below *dir*, write *data* in one go, close."""

    path: str
    data: str | bytes
    why: str
    dir: int = AT_FDCWD
    flags: int = O_WRONLY
    mode: int = 0
    ignore: tuple[int, ...] = ()

    def __str__(self) -> str:
        data = (
            self.data if isinstance(self.data, str) and len(self.data) < 60 else f"<{len(self.data)} bytes>"
        )
        where = "" if self.dir == AT_FDCWD else f"{self.dir}, "
        return f"write({where}{self.path}, {data!r})"


class Pointer(NamedTuple):
    """In the next step's buffer *argument*: put its own address + *offset* at *at*."""

    at: int
    offset: int
    why: str = ""

    def __str__(self) -> str:
        return ""


class Clone(NamedTuple):
    """
    Make a process that carries out *child*; the launcher goes on after it.

    Attributes:
        flags: For clone3.
        cgroup: Descriptor of the cgroup that it is born in, or -1.
        timed: A `Watch` follows.
    """

    flags: Named
    child: tuple[Step, ...]
    why: str
    cgroup: int = -1
    timed: bool = False

    def __str__(self) -> str:
        return f"clone3({self.flags}{f', cgroup={self.cgroup}' if self.cgroup >= 0 else ''})"


class Watch(NamedTuple):
    """
    Stay until the child of the last `Clone` has ended, and end it when its time is up.

    Attributes:
        nanoseconds: Its time, from the clone on.
        tell: An eventfd that is told how long it lived.
        group: Its cgroup.kill, or -1.
    """

    nanoseconds: int
    tell: int
    why: str
    group: int = -1

    def __str__(self) -> str:
        kill = f"write({self.group}, '1'); " if self.group >= 0 else ""
        kill += "pidfd_send_signal(<child>, SIGKILL)"
        return f"ppoll(<child>, {self.nanoseconds / 1e9:g} s); {kill}; write({self.tell}, <time>)"


class ChildWrite(NamedTuple):
    """Write *data* to ``/proc/<child>/<name>``."""

    name: str
    data: str
    why: str

    def __str__(self) -> str:
        return f"write(/proc/<child>/{self.name}, {self.data!r})"


class OpenChild(NamedTuple):
    """Open ``/proc/<child>/<name>`` as *out*."""

    name: str
    why: str
    out: int

    def __str__(self) -> str:
        return f"openat(/proc/<child>/{self.name}) = {self.out}"


class Report(NamedTuple):
    """Tell the program: *kind* is ``child`` (its pid) or ``ready``, with a descriptor or -1."""

    kind: str
    why: str
    fd: int = -1

    def __str__(self) -> str:
        return f"sendmsg(<program>, {self.kind!r}{f', SCM_RIGHTS {self.fd}' if self.fd >= 0 else ''})"


class Exec(NamedTuple):
    """Replace the launcher by the first of *paths* that can be executed."""

    paths: tuple[bytes, ...]
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    why: str

    def __str__(self) -> str:
        path, *argv = (part.decode(errors="replace") for part in (self.paths[-1], *self.argv))
        return f"execve({path!r}, {argv})"


class Serve(NamedTuple):
    """Carry out what comes over the control socket."""

    why: str

    def __str__(self) -> str:
        return "recvmsg(<program>) ..."


class Init(NamedTuple):
    """
    Be pid 1: let the kernel reap orphans, end with the program, or after *milliseconds* unless 0.

    The pidfd *owner* tells that it has ended; the end of the pipe *tie* also, that it has become another one.
    """

    owner: int
    tie: int
    why: str
    milliseconds: int = 0

    def __str__(self) -> str:
        timeout = f"{self.milliseconds} ms" if self.milliseconds else "forever"
        return f"ppoll({self.owner}, {self.tie}, {timeout}); exit_group()"


class Fits(NamedTuple):
    """Fail with EAGAIN, as a fork would, where the number in the open file *fd* is above *most*."""

    fd: int
    most: int
    why: str

    def __str__(self) -> str:
        return f"pids.current({self.fd}) <= {self.most}"


class Join(NamedTuple):
    """
    Join the sandbox's cgroup: in each hierarchy of v1, and on v2 where clone3 is not to be had.

    On v1 by ``tasks`` and for itself: moving another process, or by ``cgroup.procs``, takes a lock that
    waits for an RCU grace period (14 ms measured).

    Attributes:
        stage: ``open`` the files, where they can be reached; ``enter`` by writing to them.
    """

    stage: str
    why: str

    def __str__(self) -> str:
        return "openat(<cgroup>, O_WRONLY)" if self.stage == "open" else 'write(<cgroup>, "0")'


class Action(NamedTuple):
    """A step of the program itself, wherever it stands; *verb* says which, *text* is printed."""

    verb: str
    text: str
    why: str

    def __str__(self) -> str:
        return self.text


Step = (
    Call | Write | Pointer | Clone | Watch | ChildWrite | OpenChild | Report | Exec | Serve | Init | Connect
    | Read | Stats | Files | Fits | Extents | Join | Action
)  # fmt: skip


def flatten(steps: tuple[Step, ...]) -> Iterator[Step]:
    """All launcher steps in the order of their numbers: a clone, its child's, what follows."""
    for step in steps:
        yield step
        if isinstance(step, Clone):
            yield from flatten(step.child)


class Plan(NamedTuple):
    """
    Everything that will happen, in order.

    Attributes:
        steps: What the program, the launcher and its child do.
        notes: What is not in force, and why; shown with the plan and by the sandbox.
    """

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[tuple[str, str, str]]:
        """Each step as (who carries it out, the call, why)."""
        for who, step in _walk(self.steps, "launcher"):
            if text := str(step):
                yield who, text, step.why

    def __str__(self) -> str:
        lines = [
            f"{who:8}  {text}\n{'':10}  # {why}" if why else f"{who:8}  {text}"
            for who, text, why in self.lines()
        ]
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])


def _walk(steps: tuple[Step, ...], who: str) -> Iterator[tuple[str, Step]]:
    for step in steps:
        yield "program" if isinstance(step, Action) else who, step
        if isinstance(step, Clone):
            executes = any(isinstance(below, Exec) for below in step.child)
            yield from _walk(step.child, "init" if step.flags & CLONE_PARENT and not executes else "command")


__all__ = [
    "NOTHING",
    "Action",
    "Call",
    "ChildWrite",
    "Clone",
    "Connect",
    "Exec",
    "Extents",
    "Files",
    "Fits",
    "Init",
    "Join",
    "OpenChild",
    "Plan",
    "Pointer",
    "Read",
    "Report",
    "Serve",
    "Stats",
    "Step",
    "Template",
    "Variable",
    "Watch",
    "Write",
    "flatten",
]
