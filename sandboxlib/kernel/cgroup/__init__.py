"""
cgroups: where they can be made, two drivers behind one shape, and cleaning up after the dead.

::

    interface   Group and Leaf, as the engine sees them
    drivers     create(): v2 or v1
    v2, v1      the drivers, with v2leaf, v1leaf for one command and v2stats, v1stats for what
                their files tell; common is what both share
    mapping     which file gets which text for a limit (pure)
    devices     device rules as a BPF program, for v2
    bounds      limits against what is above them
    probe       where groups can be made
    scope       systemd, asked for a place where they can
    owner       groups whose owner is dead
    processes   who is in a group, and ending them
    files       reading and writing
    handle      what CGroup.open returns
"""

from __future__ import annotations

from sandboxlib.kernel.cgroup.bounds import above
from sandboxlib.kernel.cgroup.drivers import create, prepare
from sandboxlib.kernel.cgroup.interface import Events, Group, Leaf
from sandboxlib.kernel.cgroup.owner import sweep
from sandboxlib.kernel.cgroup.probe import probe
from sandboxlib.kernel.cgroup.scope import acquire

__all__ = [
    "Events",
    "Group",
    "Leaf",
    "above",
    "acquire",
    "create",
    "prepare",
    "probe",
    "sweep",
]
