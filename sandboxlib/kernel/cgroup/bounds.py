"""
Limits against what is above them.

The kernel takes a limit above the parent's and then enforces the parent's. A number
that will not hold is an error here.
"""

from __future__ import annotations

import functools
import os

from sandboxlib.cgroup import CGroup
from sandboxlib.cgroup import controller as controller_of
from sandboxlib.errors import SpecError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import files
from sandboxlib.kernel.cgroup.mapping import spelled
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


def check_host(spec: CGroup, host: CGroupHost, *, live: bool = False, own: str = "") -> None:
    """
    Compare with the folders that groups are made in, and all above them; *live*: with what holds there now.

    What the group in the folder *own* has already it may have: a partition's CPUs are nobody else's.

    Raises:
        SpecError: A limit is above an ancestor's, or a CPU or node is not to be had there.
    """
    most = dict(above(host) if live or host.above is None else host.above)
    for field, limit in most.items():
        wanted = getattr(spec, field)
        if isinstance(wanted, int) and wanted > limit:
            base = host.bases[controller_of(field)]
            raise SpecError(field, wanted, f"at most {limit}, the limit of {base} or a group above it")
    for field, names in _CPUSETS:
        numbers = getattr(spec, field)
        if numbers is not None:
            folders = (host.bases["cpuset"], own) if own else (host.bases["cpuset"],)
            texts = [files.find(f"{folder}/{names[host.version]}") or "" for folder in folders]
            given = sorted({number for text in texts if text.strip() for number in cpu_list(field, text)})
            if not set(numbers) <= set(given):
                raise SpecError(field, numbers, f"some of {spelled(given)}, which is what this machine gives")


def above(host: CGroupHost) -> tuple[tuple[str, int], ...]:
    """The tightest limits of the folders that groups are made in, and of all above them, by field."""
    found = []
    for field, controller, names in _LIMITS:
        if controller in host.bases:
            # The root group has no such file, or one that says "no limit".
            folders = ancestors(host.bases[controller])
            texts = [files.find(f"{folder}/{names[host.version]}") for folder in folders]
            limits = [number for text in texts if text and (number := files.number(text)) is not None]
            if limits:
                found.append((field, min(limits)))
    return tuple(found)


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
