"""The choice between the two drivers."""

from __future__ import annotations

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import UnsupportedError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup.interface import Group


def prepare(host: CGroupHost, spec: CGroup, name: str) -> Group:
    """
    A group that can be made: there is something to close before there is something to be removed.

    Args:
        host: Where groups can be made, from `probe`.
        spec: The limits.
        name: Of `Owner.name`.

    Raises:
        UnsupportedError: No cgroups here, or not this limit.
        SpecError: A limit is above the parent's, or a device is none.
        KernelError: A call failed.
    """
    # Only the driver that is needed is loaded.
    if host.version == 2:
        from sandboxlib.kernel.cgroup.v2 import Group as Group2

        return Group2.prepare(host, spec, name)
    if host.version == 1:
        from sandboxlib.kernel.cgroup.v1 import Group as Group1

        return Group1.prepare(host, spec, name)
    raise UnsupportedError("a cgroup", "a cgroup hierarchy that this program may write", host.hint)


def create(host: CGroupHost, spec: CGroup, name: str) -> Group:
    """Prepare a group, and make it; all or nothing. Raises: as `prepare` and `Group.make`."""
    group = prepare(host, spec, name)
    try:
        group.make()
    except BaseException:
        group.close()
        raise
    return group


__all__ = ["create", "prepare"]
