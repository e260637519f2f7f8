"""What it takes to keep the `Limits` of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandboxlib.errors import UnsupportedError

if TYPE_CHECKING:
    from sandboxlib.host import Host
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


__all__ = ["refuse_uncounted", "rlimits"]
