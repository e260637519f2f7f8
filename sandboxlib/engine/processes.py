"""
What runs in a sandbox, told by the host's /proc.

The names come from inside and are shown as they are: whoever prints them to a terminal
should use `repr`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sandboxlib.errors import UnsupportedError
from sandboxlib.plan.flags import NAMESPACES
from sandboxlib.plan.start import joined, namespaces
from sandboxlib.result import ProcessInfo

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine

#: Kinds that tell a sandbox's processes from others where no cgroup does; those first that a process
#: gives up when it ends, also while its status waits to be asked for. Not uts: there each command has
#: one of its own.
_TELLING = ("mount", "ipc", "network", "pid", "user")


def processes(engine: Engine) -> list[ProcessInfo]:
    """
    List the processes by number inside, without pid 1, which is ours.

    Raises:
        UnsupportedError: There is no cgroup, and no namespace that only this sandbox has.
        KernelError: The cgroup cannot be read.

    Kernel: proc(5): stat, status (NSpid), cmdline.
    """
    engine.check()
    depth = _levels(engine.pid) - 1
    found = []
    for pid in engine.group.pids() if engine.group is not None else _by_namespace(engine):
        # It may end at any moment.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if pid != engine.pid:
                found.append(_look(pid, depth))
    return sorted(found)


def _levels(pid: int) -> int:
    return len(_numbers(pid))


def _numbers(pid: int) -> list[int]:
    """The process's number in each PID namespace, from ours to its own."""
    with open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"NSpid:"):
                return [int(number) for number in line.split()[1:]]
    raise ProcessLookupError(pid)


def _by_namespace(engine: Engine) -> Iterable[int]:
    shared = joined(namespaces(engine.spec, engine.host))
    kind = next((kind for kind in _TELLING if kind not in shared), None)
    if kind is None:
        raise UnsupportedError(
            "a list of processes", "a cgroup, or a namespace of the sandbox's own", engine.host.cgroups.hint
        )
    name = NAMESPACES[kind][1]
    own = os.stat(f"/proc/{engine.pid}/ns/{name}").st_ino
    for pid in filter(str.isdigit, os.listdir("/proc")):
        # It has ended, or it is another user's and so none of ours.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if os.stat(f"/proc/{pid}/ns/{name}").st_ino == own:
                yield int(pid)


def _look(pid: int, depth: int) -> ProcessInfo:
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name may hold spaces and parentheses itself; the last one ends it.
        before, _, after = file.read().rpartition(b")")
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        arguments = file.read()
    name = os.fsdecode(before.partition(b"(")[2])
    fields = after.split()
    numbers = _numbers(pid)
    if not numbers[-1]:
        # Its parent has just reaped it.
        raise ProcessLookupError(pid)
    ticks = int(fields[11]) + int(fields[12])
    return ProcessInfo(
        # One that was put into the cgroup from outside has no number inside.
        pid=numbers[depth] if depth < len(numbers) else 0,
        host_pid=pid,
        command=tuple(map(os.fsdecode, arguments.removesuffix(b"\0").split(b"\0")))
        if arguments
        else (f"[{name}]",),
        state=fields[0].decode(),
        memory=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        cpu=ticks / os.sysconf("SC_CLK_TCK"),
    )


__all__ = ["processes"]
