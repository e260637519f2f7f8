"""
What runs in a sandbox, told by the host's /proc.

A helper on the host reads it: a command line stands in memory of the process's own, which may lie in a
file whose disk does not answer. The names come from inside and are shown as they are: whoever prints
them to a terminal should use `repr`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from sandboxlib import quantity
from sandboxlib.bounds import Bound, entries_bound
from sandboxlib.engine.patience import patiently
from sandboxlib.engine.session import Helper
from sandboxlib.errors import UnsupportedError
from sandboxlib.kernel import tagged
from sandboxlib.kernel.descriptor import pidfd_open
from sandboxlib.kernel.syscall import read_file
from sandboxlib.plan.flags import NAMESPACES
from sandboxlib.plan.start import joined, namespaces
from sandboxlib.plan.steps import Files, Serve
from sandboxlib.result import ProcessInfo

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine

#: Kinds that tell a sandbox's processes from others where no cgroup does; those first that a process
#: gives up when it ends, also while its status waits to be asked for. Not uts: there each command has
#: one of its own.
_TELLING = ("mount", "ipc", "network", "pid", "user")
#: Bytes of all command lines together, and of each that comes after that.
_LINES, _LITTLE = 64 << 20, 256
#: Seconds without a timeout.
_PATIENCE = 10.0
#: Bytes of ``stat``, and of ``status`` up to where the numbers stand: supplementary groups come before them.
_STAT, _STATUS = 1024, 4096
#: Processes of one request.
_BATCH = 256


async def processes(
    engine: Engine, *, max_size: object, max_entries: object, seconds: object
) -> list[ProcessInfo]:
    """
    List the processes by number inside, without pid 1, which is ours.

    Args:
        engine: The sandbox.
        max_size: Bytes of each command line, which is cut there.
        max_entries: How many processes there may be.
        seconds: For it; 10 if None.

    Raises:
        UnsupportedError: There is no cgroup, and no namespace that only this sandbox has.
        TooLargeError: There are more.
        KernelError: The cgroup cannot be read. ETIMEDOUT: it takes longer than 10 seconds.
        TimeoutExpired: It takes longer than *seconds*.

    Kernel: proc(5): stat, status (NSpid), cmdline.
    """
    line = quantity.size("max_size", max_size)
    bound = entries_bound(max_entries, "the list of processes")
    engine.check()
    waiter = engine.waiter
    async with patiently(waiter, "processes()", seconds) as asked:
        deadline = min(asked, waiter.now() + _PATIENCE) if seconds is None else asked
        depth = len(_numbers(read_file(f"/proc/{engine.pid}/status"))) - 1
        pids = await waiter.work(partial(_listed, engine, bound))
        found = list[ProcessInfo]()
        left = _LINES
        async with Helper(waiter, (Serve("read what stands in /proc"),)) as helper:
            rest = iter(pids)
            while batch := list(islice(rest, _BATCH)):
                most = line if left > 0 else min(line, _LITTLE)
                heads = await _read(helper, batch, ("stat", "status"), _STATUS, deadline)
                lines = await _read(helper, batch, ("cmdline",), most, deadline)
                for pid, (stat, status), (arguments,) in zip(batch, heads, lines, strict=True):
                    left -= len(arguments)
                    # It may end at any moment.
                    with contextlib.suppress(ProcessLookupError):
                        found.append(_look(pid, depth, stat, status, arguments))
    return sorted(found)


async def _read(
    helper: Helper, pids: list[int], names: tuple[str, ...], most: int, deadline: float
) -> list[list[bytes]]:
    """What stands in these files of each of *pids*; nothing in those of one that has ended."""
    paths = tuple(f"/proc/{pid}/{name}".encode() for pid in pids for name in names)
    found = [bytearray() for _ in paths]
    for told in (await helper.ask(Files(paths, most, "what runs"), deadline=deadline)).told:
        found[told.value] += told.data
    whole = list(map(bytes, found))
    return [whole[i : i + len(names)] for i in range(0, len(whole), len(names))]


def _listed(engine: Engine, bound: Bound) -> list[int]:
    """All but pid 1, by their numbers outside."""
    pids = engine.group.pids() if engine.group is not None else _by_namespace(engine)
    bound.count(len(pids))
    return [pid for pid in pids if pid != engine.pid]


def _by_namespace(engine: Engine) -> list[int]:
    """Without a cgroup: those in a namespace of the sandbox's own."""
    if _kind(engine) is None:
        raise UnsupportedError(
            "a list of processes", "a cgroup, or a namespace of the sandbox's own", engine.host.cgroups.hint
        )
    return _chosen(engine, ())


def end_all(engine: Engine) -> None:
    """Kill all in a sandbox without a cgroup, but its pid 1. Raises: KernelError: They fork too fast."""
    tagged.kill_all(partial(_chosen, engine), f"<sandbox of {engine.pid}>")


def _kind(engine: Engine) -> str | None:
    """A kind of namespace that it shares with nobody."""
    shared = joined(namespaces(engine.spec, engine.host))
    return next((NAMESPACES[kind][1] for kind in _TELLING if kind not in shared), None)


def _chosen(engine: Engine, among: Iterable[int]) -> list[int]:
    """Those of all processes, or *among* some, that are the sandbox's, but for pid 1."""
    init, commands, kind = engine.pid, engine.commands, _kind(engine)
    own = None if kind is None else tagged.namespace(init, kind)

    def tells(pid: int) -> bool | None:
        if pid == init:
            return False
        if kind is not None and (shown := tagged.namespace(pid, kind)) is not None:
            return shown == own
        # Those of a command that has ended have a number of its own, too.
        number = engine.family.number(pid)
        return None if number is None else number != tagged.STRANGER

    def claims(pid: int) -> bool | None:
        return True if pid == init or pid in commands else tells(pid)

    return tagged.chosen(tells, claims, among)


def _numbers(status: bytes) -> list[int]:
    """
    The process's number in each PID namespace, from ours to its own.

    Raises: ProcessLookupError: They do not stand there.
    """
    _, colon, rest = status.partition(b"\nNSpid:")
    line, end, _ = rest.partition(b"\n")
    if not colon or not end:
        raise ProcessLookupError
    return [int(number) for number in line.split()]


def _of_handle(pid: int) -> list[int]:
    """The same for one whose supplementary groups fill what was read. Kernel: pidfd_open(2), fdinfo."""
    with pidfd_open(pid) as fd:
        return _numbers(read_file(f"/proc/self/fdinfo/{fd}"))


def _look(pid: int, depth: int, stat: bytes, status: bytes, arguments: bytes) -> ProcessInfo:
    # The name may hold spaces and parentheses itself; the last one ends it.
    before, bracket, after = stat.rpartition(b")")
    if not bracket or not status:
        raise ProcessLookupError(pid)
    name = os.fsdecode(before.partition(b"(")[2])
    fields = after.split()
    numbers = _numbers(status) if len(status) < _STATUS else _of_handle(pid)
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


__all__ = ["end_all", "processes"]
