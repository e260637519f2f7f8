"""
Limits against what is above them.

The kernel takes a limit above the parent's and then enforces the parent's. A number
that will not hold is an error here.
"""

from __future__ import annotations

import functools
import os

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import SpecError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import files
from sandboxlib.quantity import cpu_list

# Field, controller, and the file by version.
_LIMITS = (
    ("memory_max", "memory", {1: "memory.limit_in_bytes", 2: "memory.max"}),
    ("pids_max", "pids", {1: "pids.max", 2: "pids.max"}),
)
_CPUSETS = (
    ("cpuset_cpus", {1: "cpuset.effective_cpus", 2: "cpuset.cpus.effective"}),
    ("cpuset_mems", {1: "cpuset.effective_mems", 2: "cpuset.mems.effective"}),
)


def check_host(spec: CGroup, host: CGroupHost) -> None:
    """
    Compare with the folders that groups are made in, and all above them.

    Raises:
        SpecError: A limit is above an ancestor's, or a CPU or node is not to be had there.
    """
    for field, controller, names in _LIMITS:
        wanted = getattr(spec, field)
        if isinstance(wanted, int):
            for folder in ancestors(host.bases[controller]):
                # The root group has no such file, or one that says "no limit".
                text = files.find(f"{folder}/{names[host.version]}")
                limit = None if text is None else files.number(text)
                if limit is not None and wanted > limit:
                    raise SpecError(
                        field, wanted, f"at most {limit}, the limit of the group above ({folder})"
                    )
    for field, names in _CPUSETS:
        numbers = getattr(spec, field)
        if numbers is not None:
            text = files.read(f"{host.bases['cpuset']}/{names[host.version]}")
            if not set(numbers) <= set(cpu_list(field, text.strip())):
                raise SpecError(field, numbers, f"some of {text.strip()}, which is what this machine gives")


def check_parent(spec: CGroup, parent: CGroup) -> None:
    """
    Compare a leaf's limits with its group's, whose limits are known.

    Raises:
        SpecError: A limit is above the group's.
    """
    for field in ("memory_max", "memory_high", "pids_max"):
        wanted, limit = (
            getattr(spec, field),
            getattr(parent, "memory_max" if field == "memory_high" else field),
        )
        if isinstance(wanted, int) and isinstance(limit, int) and wanted > limit:
            raise SpecError(field, wanted, f"at most {limit}, the sandbox's own limit")
    for field in ("cpuset_cpus", "cpuset_mems"):
        wanted, limit = getattr(spec, field), getattr(parent, field)
        if wanted is not None and limit is not None and not set(wanted) <= set(limit):
            raise SpecError(field, wanted, f"some of {limit}, which are the sandbox's own")


@functools.cache
def ancestors(folder: str) -> tuple[str, ...]:
    """The group in *folder* and all above it that this program can see."""
    found = []
    while os.path.exists(f"{folder}/cgroup.procs"):
        found.append(folder)
        folder = os.path.dirname(folder)
    return tuple(found)
