"""The choice between the two drivers."""

from __future__ import annotations

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import UnsupportedError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup.interface import Group


def create(host: CGroupHost, spec: CGroup, name: str) -> Group:
    """
    Make a group with its limits in force before any process is in it; all or nothing.

    Args:
        host: Where groups can be made, from `probe`.
        spec: The limits.
        name: From `fresh_name`.

    Raises:
        UnsupportedError: No cgroups here, or not this limit.
        SpecError: A limit is above the parent's, or a device is none.
        KernelError: A call failed; what had been made is removed.
    """
    # Only the driver that is needed is loaded.
    if host.version == 2:
        from sandboxlib.kernel.cgroup.v2 import Group as Group2

        return Group2.create(host, spec, name)
    if host.version == 1:
        from sandboxlib.kernel.cgroup.v1 import Group as Group1

        return Group1.create(host, spec, name)
    raise UnsupportedError("a cgroup", "a cgroup hierarchy that this program may write", host.hint)
