"""What it takes to keep the `Limits` of a command, and what it has used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandboxlib.errors import UnsupportedError
from sandboxlib.result import Outcome, Usage

if TYPE_CHECKING:
    from sandboxlib.host import Host
    from sandboxlib.kernel.cgroup import Leaf
    from sandboxlib.kernel.launcher import Ended
    from sandboxlib.limits import Limits


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
    return tuple(found)


def used(leaf: Leaf | None, found: Ended, wall: float) -> Usage:
    """What a command that has ended used, in *wall* seconds, by its *leaf* and by the kernel's last word."""
    # The kernel's unit is the classic block of 512: getrusage(2).
    blocks = {"io_read": found.read * 512, "io_written": found.written * 512}
    if leaf is None:
        return Usage(wall, found.user, found.system, **blocks)
    usage = leaf.usage(wall)
    return usage if usage.io_read is not None else usage._replace(**blocks)


def outcome(status: int, reason: Outcome | None, usage: Usage | None, lifetime_over: bool) -> Outcome:
    """How a command ended that was, or was not, killed by the program for a *reason*."""
    if reason is not None and reason is not Outcome.KILLED:
        return reason
    if usage is not None and usage.oom_kills:
        return Outcome.OUT_OF_MEMORY
    if lifetime_over:
        return Outcome.LIFETIME
    if reason is not None:
        return reason
    return Outcome.SIGNALED if status < 0 else Outcome.EXITED


__all__ = ["outcome", "refuse_uncounted", "rlimits", "used"]
