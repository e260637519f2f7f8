"""
Limits on a group of processes, as a value.

Fields carry the names of cgroup v2's files with dots as underscores, and mean what
those files mean (Linux, Documentation/admin-guide/cgroup-v2.rst). A host with cgroup
v1 is served by a second driver; `require` says what it cannot do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import attrs

from sandboxlib import quantity
from sandboxlib.errors import SpecError, UnsupportedError
from sandboxlib.host import CGroupHost

if TYPE_CHECKING:
    from sandboxlib.kernel.cgroup.handle import OpenCGroup

#: A number, or the word that lifts the limit.
Limit = int | Literal["max"]

#: ``(quota, period)`` in microseconds, as cpu.max has them.
Bandwidth = tuple[int, int]

# What v1 lacks, and why the nearest thing that it has is not the same.
_V2_ONLY: Mapping[str, str] = {
    "memory_high": "cgroup v2 (v1's soft limit acts only when the whole machine is short of memory)",
    "memory_low": "cgroup v2 (v1 protects no memory from reclaim)",
    "memory_min": "cgroup v2 (v1 protects no memory from reclaim)",
    "unified": "cgroup v2 (its keys are names of v2 files)",
}
_V2_HINT = "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"

# The kernel counts in pages; a limit below one page is a limit of nothing at all.
_PAGE = 4096
_IO_KEYS: Mapping[str, bool] = {"rbps": True, "wbps": True, "riops": False, "wiops": False}
_DEVICE = re.compile(r"([abc])\s+(\d+|\*):(\d+|\*)\s+([rwm]{1,3})", re.ASCII)
_IO_DEVICE = re.compile(r"\d+:\d+", re.ASCII)
_PAGE_SIZE = re.compile(r"[1-9]\d*[KMG]B", re.ASCII)
_UNIFIED = re.compile(r"[a-z][a-z0-9_]*(\.[a-zA-Z0-9_]+)+", re.ASCII)
# The only core files that are limits; the others move, freeze or kill processes.
_CORE_LIMITS = ("cgroup.max.depth", "cgroup.max.descendants")


def controller(field: str) -> str:
    """The controller of a field, by its v2 name: the first word, as in the kernel's own file names."""
    return field.partition("_")[0]


class DeviceRule(NamedTuple):
    """
    One line of a device allow-list.

    Attributes:
        kind: ``"c"``, ``"b"``, or ``"a"`` for both.
        major, minor: The device's numbers; None for any.
        access: Some of ``r`` (read), ``w`` (write), ``m`` (mknod).

    Kernel: Documentation/admin-guide/cgroup-v1/devices.rst.
    """

    kind: str
    major: int | None
    minor: int | None
    access: str

    @classmethod
    def parse(cls, text: object) -> DeviceRule:
        """Read ``"c 10:200 rwm"``; ``*`` is any number, ``"a"`` alone everything. Raises: SpecError."""
        if text == "a":
            return cls("a", None, None, "rwm")
        match = _DEVICE.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None or len(set(match[4])) != len(match[4]):
            raise SpecError("devices", text, 'rules such as "c 10:200 rwm", "b 8:* r" or "a"')
        # Linux has 12 bits for the major number and 20 for the minor one.
        major, minor = (None if part == "*" else int(part) for part in (match[2], match[3]))
        if (major or 0) >= 1 << 12 or (minor or 0) >= 1 << 20:
            raise SpecError(
                "devices", text, "rules with a major number below 4096 and a minor one below 1048576"
            )
        return cls(match[1], major, minor, "".join(letter for letter in "rwm" if letter in match[4]))

    def __str__(self) -> str:
        major = "*" if self.major is None else self.major
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {major}:{minor} {self.access}"


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
        pids_max: Processes and threads.
        io_max: ``[("8:0", {"rbps": "10M", "wbps": …, "riops": 100, "wiops": …})]``; also by path.
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
    pids_max: Limit | None
    io_max: tuple[tuple[str, tuple[tuple[str, Limit], ...]], ...] | None
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
        pids_max: int | str | None = None,
        io_max: Iterable[tuple[str, _Pairs]] | None = None,
        io_weight: int | None = None,
        devices: Iterable[str] | None = None,
        hugetlb_max: _Pairs | None = None,
        unified: Mapping[str, str] | None = None,
    ) -> None:
        self.__attrs_init__(
            memory_max=_limit("memory_max", memory_max, minimum=_PAGE),
            memory_high=_limit("memory_high", memory_high, minimum=_PAGE),
            memory_low=_limit("memory_low", memory_low),
            memory_min=_limit("memory_min", memory_min),
            memory_swap_max=_limit("memory_swap_max", memory_swap_max),
            memory_oom_group=_flag("memory_oom_group", memory_oom_group),
            cpu_max=_cpu_max(cpu_max),
            cpu_weight=_weight("cpu_weight", cpu_weight),
            cpu_idle=_flag("cpu_idle", cpu_idle),
            cpuset_cpus=None if cpuset_cpus is None else quantity.cpu_list("cpuset_cpus", cpuset_cpus),
            cpuset_mems=None if cpuset_mems is None else quantity.cpu_list("cpuset_mems", cpuset_mems),
            # Linux has no pid above 2**22, and refuses a larger limit.
            pids_max=_number("pids_max", pids_max, maximum=1 << 22),
            io_max=_io_max(io_max),
            io_weight=_weight("io_weight", io_weight),
            devices=_devices(devices),
            hugetlb_max=_hugetlb(hugetlb_max),
            unified=_unified(unified),
        )
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

    def open(self) -> OpenCGroup:
        """
        Make the group; it lives until it is closed, and works with any process.

        Returns:
            A context manager; closing it kills what is still in the group.

        Raises:
            UnsupportedError: A controller is missing here, or is v2's alone.
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


def _limit(field: str, value: object, *, minimum: int = 0) -> Limit | None:
    if value is None or value == "max":
        return value
    return quantity.size(field, value, minimum=minimum)


def _number(field: str, value: object, *, maximum: int = quantity.MAX) -> Limit | None:
    if value is None or value == "max":
        return value
    return quantity.count(field, value, maximum=maximum)


def _flag(field: str, value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise SpecError(field, value, "True or False")
    return value


def _weight(field: str, value: object) -> int | None:
    return None if value is None else quantity.count(field, value, maximum=10000)


def _cpu_max(value: object) -> float | Bandwidth | Literal["max"] | None:
    if value is None or value == "max":
        return value
    if not isinstance(value, (tuple, list)):
        return quantity.cpus("cpu_max", value)
    whole = all(isinstance(part, int) and not isinstance(part, bool) for part in value)
    # A second per period is the kernel's most, 1 ms of quota its least; it counts in nanoseconds.
    if (
        len(value) == 2
        and whole
        and 1000 <= value[1] <= 1_000_000
        and 1000 <= value[0] <= quantity.MAX // 1000
    ):
        return value[0], value[1]
    allowed = "(quota, period) in microseconds: at least 1000, and a period of at most 1000000"
    raise SpecError("cpu_max", value, allowed)


def _io_max(value: object) -> tuple[tuple[str, tuple[tuple[str, Limit], ...]], ...] | None:
    if value is None:
        return None
    allowed = 'a list such as [("8:0", {"rbps": "10M", "wiops": 100})] with rbps, wbps, riops, wiops'
    found: dict[str, tuple[tuple[str, Limit], ...]] = {}
    for device, limits in _pairs("io_max", value, allowed):
        if not (_IO_DEVICE.fullmatch(device) or device.startswith("/")) or "\0" in device or device in found:
            raise SpecError("io_max", device, 'a device such as "8:0" or "/dev/sda", named once')
        kept: dict[str, Limit] = {}
        for key, number in _pairs("io_max", limits, allowed):
            name = f"io_max[{device!r}][{key!r}]"
            if key not in _IO_KEYS:
                raise SpecError("io_max", key, "rbps, wbps, riops or wiops")
            limit = (
                _limit(name, number, minimum=1)
                if _IO_KEYS[key]
                else _number(name, number, maximum=(1 << 32) - 1)
            )
            if limit is None:
                raise SpecError(name, number, 'a number or "max"')
            kept[key] = limit
        if not kept:
            raise SpecError("io_max", limits, allowed)
        found[device] = tuple(sorted(kept.items()))
    return tuple(found.items())


def _devices(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    rules = _items("devices", value, 'a list of rules such as "c 10:200 rwm"')
    return tuple(dict.fromkeys(str(DeviceRule.parse(rule)) for rule in rules))


def _hugetlb(value: object) -> tuple[tuple[str, Limit], ...] | None:
    if value is None:
        return None
    allowed = 'page sizes and bytes such as {"2MB": "64M"}'
    kept: dict[str, Limit] = {}
    for key, number in _pairs("hugetlb_max", value, allowed):
        limit = _limit(f"hugetlb_max[{key!r}]", number)
        if not _PAGE_SIZE.fullmatch(key) or limit is None:
            raise SpecError("hugetlb_max", value, allowed)
        kept[key] = limit
    return tuple(sorted(kept.items()))


def _unified(value: object) -> tuple[tuple[str, str], ...] | None:
    if value is None:
        return None
    allowed = 'names of cgroup v2 files and their text, such as {"memory.zswap.max": "0"}'
    kept: dict[str, str] = {}
    for key, text in _pairs("unified", value, allowed):
        if not _UNIFIED.fullmatch(key) or not isinstance(text, str) or not text or "\0" in text:
            raise SpecError("unified", (key, text), allowed)
        if key.startswith("cgroup.") and key not in _CORE_LIMITS:
            raise SpecError(
                "unified", key, f"a limit; of the core files these are: {', '.join(_CORE_LIMITS)}"
            )
        kept[key] = text
    return tuple(sorted(kept.items()))


def _items(field: str, value: object, allowed: str) -> list[object]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise SpecError(field, value, allowed)
    return list(value)


def _pairs(field: str, value: object, allowed: str) -> list[tuple[str, object]]:
    pairs = list(value.items()) if isinstance(value, Mapping) else _items(field, value, allowed)
    found: list[tuple[str, object]] = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise SpecError(field, pair, allowed)
        found.append((pair[0], pair[1]))
    return found
