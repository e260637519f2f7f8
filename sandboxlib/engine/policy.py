"""What it takes to keep the `Limits` of a command, what it has used, and how it ended."""

from __future__ import annotations

import errno
import signal
from math import ceil
from typing import TYPE_CHECKING

from sandboxlib.errors import UnsupportedError
from sandboxlib.plan import ceilings
from sandboxlib.result import Outcome, Usage

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.errors import KernelError
    from sandboxlib.host import Host
    from sandboxlib.kernel.cgroup import Group, Leaf
    from sandboxlib.kernel.launcher import Ended
    from sandboxlib.limits import Limits
    from sandboxlib.spec import SandboxSpec

#: Whoever reaches one of these is ended with all its children.
FINAL = frozenset({Outcome.WALL_TIME, Outcome.CPU_TIME, Outcome.OUTPUT_LIMIT})
#: Bytes of memory with which a program may not even begin.
_TIGHT = 1 << 20


def refuse_uncounted(limits: Limits, host: Host) -> None:
    """Raises: UnsupportedError: *limits* has one that only a cgroup can keep, and *host* has none."""
    from sandboxlib.cgroup import require

    if (wanted := limits.cgroup()) is not None:
        require(wanted, host.cgroups)
    if limits.cpu_time is not None:
        raise UnsupportedError("limits.cpu_time", "a cgroup that this program may write", host.cgroups.hint)


def rlimits(limits: Limits | None) -> tuple[tuple[str, tuple[int, int]], ...]:
    """The resource limits of a command, (soft, hard) by name."""
    if limits is None:
        return ()
    found = []
    for name, resource in (("file_size", "fsize"), ("open_files", "nofile")):
        if (value := getattr(limits, name)) is not None:
            found.append((resource, (value, value)))
    if limits.cpu_time is not None:
        # For each process, in whole seconds: where nobody looks at the sum, the kernel ends it all the same.
        value = ceil(limits.cpu_time) + 1
        found.append(("cpu", (value, value)))
    return tuple(found)


def nanoseconds(limits: Limits | None) -> int:
    """The time that a command may take; 0 where it has no limit."""
    return ceil(limits.wall_time * 1e9) if limits is not None and limits.wall_time is not None else 0


def is_tight(limits: Limits | None, spec: SandboxSpec, host: Host) -> bool:
    """May memory run out before the command is executed? Then it must not share its launcher's."""
    own = limits.memory if limits is not None else None
    most = ceilings.limits(spec, host).memory_max if host.cgroups.version else None
    return any(isinstance(limit, int) and limit < _TIGHT for limit in (own, most))


def wants_memory(group: Group, error: KernelError) -> bool:
    """Was it for want of memory that a sandbox did not start?"""
    # What is refused memory says so, is no more, or looks for some without end.
    seen, numbers = group.events(), (errno.ENOMEM, errno.EPIPE, errno.ETIMEDOUT)
    return seen.oom_kill > 0 or (seen.memory_max > 0 and error.errno in numbers)


def used(leaf: Leaf | None, found: Ended, wall: float) -> Usage:
    """What a command that has ended used, in *wall* seconds, by its *leaf* and by the kernel's last word."""
    # The kernel's unit is the classic block of 512: getrusage(2).
    blocks = {"io_read": found.read * 512, "io_written": found.written * 512}
    if leaf is None:
        return Usage(wall, found.user, found.system, **blocks)
    usage = leaf.usage(wall)
    return usage if usage.io_read is not None else usage._replace(**blocks)


def verdict(
    found: Ended,
    usage: Usage,
    limits: Limits | None,
    reason: Outcome | None,
    engine: Engine,
    leaf: Leaf | None,
) -> Outcome:
    """
    How a command ended that is no more.

    By what was counted, whoever was faster: the command that ended by itself past its limit, or the program
    that ended it. *reason* is why the program did, if it did.
    """
    if reason is Outcome.OUTPUT_LIMIT:
        return reason
    if limits is not None:
        cpu = (usage.cpu_user or 0.0) + (usage.cpu_system or 0.0)
        if limits.cpu_time is not None and (reason is Outcome.CPU_TIME or cpu >= limits.cpu_time):
            return Outcome.CPU_TIME
        if limits.wall_time is not None and (reason is Outcome.WALL_TIME or usage.wall >= limits.wall_time):
            return Outcome.WALL_TIME
    if usage.oom_kills:
        return Outcome.OUT_OF_MEMORY
    if found.status != -signal.SIGKILL:
        return Outcome.SIGNALED if found.status < 0 else Outcome.EXITED
    # What ends all at once, and counts it elsewhere.
    if engine.lifetime_over:
        return Outcome.LIFETIME
    if engine.lost_to_memory or (not found.executed and leaf is not None and leaf.met_memory()):
        return Outcome.OUT_OF_MEMORY
    return Outcome.SIGNALED if reason is None else reason


__all__ = [
    "FINAL",
    "is_tight",
    "nanoseconds",
    "refuse_uncounted",
    "rlimits",
    "used",
    "verdict",
    "wants_memory",
]
