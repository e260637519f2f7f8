"""
Limits on a group of processes, as a value.

Fields carry the names of cgroup v2's files with dots as underscores, and mean what
those files mean (Linux, Documentation/admin-guide/cgroup-v2.rst). A host with cgroup
v1 is served by a second driver; `require` says what it cannot do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs

from sandboxlib import cgroup_fields as read
from sandboxlib import quantity
from sandboxlib.cgroup_fields import Bandwidth, DeviceRule, Limit, Partition
from sandboxlib.doors import door
from sandboxlib.errors import SpecError, UnsupportedError
from sandboxlib.host import CGroupHost

if TYPE_CHECKING:
    from sandboxlib.kernel.cgroup.handle import OpenCGroup

# What v1 lacks, and why the nearest thing that it has is not the same.
_V2_ONLY: Mapping[str, str] = {
    "memory_high": "cgroup v2 (v1's soft limit acts only when the whole machine is short of memory)",
    "memory_low": "cgroup v2 (v1 protects no memory from reclaim)",
    "memory_min": "cgroup v2 (v1 protects no memory from reclaim)",
    "cpuset_cpus_partition": "cgroup v2 (v1's cpusets are no partitions)",
    "io_latency": "cgroup v2 (v1 has no target for latency)",
    "unified": "cgroup v2 (its keys are names of v2 files)",
}
_V2_HINT = "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"


def controller(field: str) -> str:
    """The controller of a field, by its v2 name: the first word, as in the kernel's own file names."""
    return field.partition("_")[0]


#: What every allow-list holds besides its own rules: the nodes of the OCI default /dev
#: (runtime-spec, config-linux.md, Default Devices) and pseudo-terminals. None of them
#: reaches hardware, the kernel's memory or another process.
MINIMAL_DEVICES: tuple[DeviceRule, ...] = (
    DeviceRule("c", 1, 3, "rwm"),  # null
    DeviceRule("c", 1, 5, "rwm"),  # zero
    DeviceRule("c", 1, 7, "rwm"),  # full
    DeviceRule("c", 1, 8, "rwm"),  # random
    DeviceRule("c", 1, 9, "rwm"),  # urandom
    DeviceRule("c", 5, 0, "rwm"),  # tty: the caller's own terminal
    DeviceRule("c", 5, 2, "rwm"),  # ptmx
    DeviceRule("c", 136, None, "rwm"),  # pts/*
)


@attrs.frozen(kw_only=True, init=False)
class CGroup:
    """
    Limits for a group of processes; None is "not set", ``"max"`` lifts a limit.

    Sizes are bytes or strings such as ``"256M"``.

    Attributes:
        memory_max: Bytes of memory, page cache and kernel memory included; more is an OOM kill.
        memory_high: Bytes above which the processes are slowed down and reclaimed from.
        memory_low: Bytes that are reclaimed only when nothing unprotected is left.
        memory_min: Bytes that are never reclaimed.
        memory_swap_max: Bytes of swap; 0 forbids it.
        memory_oom_group: Whether an OOM kill takes the whole group.
        cpu_max: CPUs as a number (0.5), or ``(quota, period)`` in microseconds.
        cpu_weight: Share among siblings that want the CPU, 1 to 10000; 100 is the kernel's default.
        cpu_idle: Whether to run only when nothing else wants the CPU.
        cpuset_cpus: CPUs it may run on: ``"0-3,6"`` or numbers; kept as sorted numbers.
        cpuset_mems: Memory nodes, in the same form.
        cpuset_cpus_partition: ``"root"``: its CPUs are its own, nobody else runs on them; ``"isolated"``:
            the scheduler does not balance load among them either; ``"member"``: neither.
        pids_max: Processes and threads.
        io_max: ``[("8:0", {"rbps": "10M", "wbps": …, "riops": 100, "wiops": …})]``; also by path.
        io_latency: ``[("8:0", 10000)]``: microseconds that I/O of this group may take on average; others
            wait when it takes longer.
        io_weight: Share of disk time among siblings, 1 to 10000; 100 is the kernel's default.
        devices: Rules such as ``"c 10:200 rwm"``; a list, also an empty one, denies all devices
            but `MINIMAL_DEVICES` and these.
        hugetlb_max: ``{"2MB": "64M"}``: bytes of huge pages by page size.
        unified: ``{"memory.zswap.max": "0"}``: raw cgroup v2 files and what to write, after all else.

    Raises:
        SpecError: A value makes no sense, or two contradict each other.

    Spec: runtime-spec config-linux.md, Control groups and Unified.

    Example:
        >>> CGroup(memory_max="64M", cpu_max=0.5).memory_max
        67108864
    """

    memory_max: Limit | None
    memory_high: Limit | None
    memory_low: Limit | None
    memory_min: Limit | None
    memory_swap_max: Limit | None
    memory_oom_group: bool | None
    cpu_max: float | Bandwidth | Literal["max"] | None
    cpu_weight: int | None
    cpu_idle: bool | None
    cpuset_cpus: tuple[int, ...] | None
    cpuset_mems: tuple[int, ...] | None
    cpuset_cpus_partition: Partition | None
    pids_max: Limit | None
    io_max: tuple[tuple[str, tuple[tuple[str, Limit], ...]], ...] | None
    io_latency: tuple[tuple[str, Limit], ...] | None
    io_weight: int | None
    devices: tuple[str, ...] | None
    hugetlb_max: tuple[tuple[str, Limit], ...] | None
    unified: tuple[tuple[str, str], ...] | None

    # Written out rather than left to attrs, so that the signature says what may be
    # given (strings, lists) while the attributes say what is kept (numbers, tuples).
    def __init__(
        self,
        *,
        memory_max: int | str | None = None,
        memory_high: int | str | None = None,
        memory_low: int | str | None = None,
        memory_min: int | str | None = None,
        memory_swap_max: int | str | None = None,
        memory_oom_group: bool | None = None,
        cpu_max: float | tuple[int, int] | str | None = None,
        cpu_weight: int | None = None,
        cpu_idle: bool | None = None,
        cpuset_cpus: str | Iterable[int] | None = None,
        cpuset_mems: str | Iterable[int] | None = None,
        cpuset_cpus_partition: Partition | None = None,
        pids_max: int | str | None = None,
        io_max: Iterable[tuple[str, _Pairs]] | None = None,
        io_latency: _Pairs | Iterable[tuple[str, int | str]] | None = None,
        io_weight: int | None = None,
        devices: Iterable[str] | None = None,
        hugetlb_max: _Pairs | None = None,
        unified: Mapping[str, str] | None = None,
    ) -> None:
        self.__attrs_init__(
            memory_max=read.limit("memory_max", memory_max, minimum=read.PAGE),
            memory_high=read.limit("memory_high", memory_high, minimum=read.PAGE),
            memory_low=read.limit("memory_low", memory_low),
            memory_min=read.limit("memory_min", memory_min),
            memory_swap_max=read.limit("memory_swap_max", memory_swap_max),
            memory_oom_group=read.flag("memory_oom_group", memory_oom_group),
            cpu_max=read.cpu_max(cpu_max),
            cpu_weight=read.weight("cpu_weight", cpu_weight),
            cpu_idle=read.flag("cpu_idle", cpu_idle),
            cpuset_cpus=None if cpuset_cpus is None else quantity.cpu_list("cpuset_cpus", cpuset_cpus),
            cpuset_mems=None if cpuset_mems is None else quantity.cpu_list("cpuset_mems", cpuset_mems),
            cpuset_cpus_partition=cpuset_cpus_partition,
            # Linux has no pid above 2**22, and refuses a larger limit.
            pids_max=read.number("pids_max", pids_max, maximum=1 << 22),
            io_max=read.io_max(io_max),
            io_latency=read.io_latency(io_latency),
            io_weight=read.weight("io_weight", io_weight),
            devices=read.devices(devices),
            hugetlb_max=read.hugetlb(hugetlb_max),
            unified=read.unified(unified),
        )
        read.partition(self.cpuset_cpus_partition, self.cpuset_cpus)
        if self.cpu_idle and self.cpu_weight is not None:
            raise SpecError("cpu_weight", self.cpu_weight, "left out where cpu_idle is set")
        for key, text in self.unified or ():
            if getattr(self, key.replace(".", "_"), None) is not None:
                raise SpecError("unified", (key, text), f"left out where {key.replace('.', '_')} is set")
        if isinstance(self.memory_max, int):
            for field in ("memory_min", "memory_low"):
                value = getattr(self, field)
                if value == "max" or (value is not None and value > self.memory_max):
                    raise SpecError(field, value, f"at most memory_max, which is {self.memory_max}")

    @property
    def fields(self) -> dict[str, Any]:
        """What is set, by field."""
        return {name: value for name in _NAMES if (value := getattr(self, name)) is not None}

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers that these limits need, by their v2 names, and ``"devices"``."""
        raw = {key.partition(".")[0] for key, _ in self.unified or ()}
        return frozenset({controller(name) for name in self.fields if name != "unified"} | (raw - {"cgroup"}))

    def merge(self, other: CGroup) -> CGroup:
        """Return these limits with those that *other* sets in their place."""
        fields = other.fields
        # A weight and the idle flag exclude each other: the newer one wins.
        if "cpu_weight" in fields:
            fields.setdefault("cpu_idle", False if self.cpu_idle else None)
        elif fields.get("cpu_idle"):
            fields["cpu_weight"] = None
        return attrs.evolve(self, **fields) if fields else self

    @door
    def open(self) -> OpenCGroup:
        """
        Make the group; it lives until it is closed, and works with any process.

        Where a plain user's program may write no group, systemd is asked for a scope and moves the program
        there, once; that may take up to five seconds.

        Returns:
            A context manager; closing it kills what is still in the group.

        Raises:
            UnsupportedError: A controller is missing here, or is v2's alone; systemd gives no scope.
            SpecError: A limit is above the parent's.
            KernelError: A file could not be written; nothing is left behind.
        """
        from sandboxlib.kernel.cgroup.handle import OpenCGroup

        return OpenCGroup.make(self)


_Pairs = Mapping[str, int | str]
_NAMES = tuple(attribute.name for attribute in attrs.fields(CGroup))


def require(spec: CGroup, host: CGroupHost) -> None:
    """Refuse, for planner and drivers, what *host* lacks. Raises: UnsupportedError with the way out."""
    if host.version == 1:
        for field, needs in _V2_ONLY.items():
            if getattr(spec, field):
                raise UnsupportedError(field, needs, _V2_HINT)
        if spec.memory_oom_group:
            needs = "cgroup v2 (v1's OOM killer takes one process at a time)"
            raise UnsupportedError("memory_oom_group", needs, _V2_HINT)
        if isinstance(spec.memory_swap_max, int) and not isinstance(spec.memory_max, int):
            needs = "cgroup v2 (v1 limits memory and swap together only)"
            raise UnsupportedError("memory_swap_max without memory_max", needs, "set memory_max too")
    for needed in sorted(spec.controllers - host.bases.keys()):
        fields = [name for name in spec.fields if controller(name) == needed] or ["unified"]
        needs = f"the {needed} cgroup controller"
        if needed == "devices" and host.version == 2:
            needs = "root in the first user namespace (device rules are a BPF program)"
            raise UnsupportedError(", ".join(fields), needs, "without root, hand in no device at all")
        raise UnsupportedError(", ".join(fields), needs, host.hint)
