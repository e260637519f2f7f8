"""
What the fields of a `CGroup` may be given, and what is kept of it.

Each function takes what was given for one field, and returns what the value keeps: numbers
and tuples. It raises `SpecError` where that makes no sense.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from sandboxlib import quantity
from sandboxlib.errors import SpecError

#: A number, or the word that lifts the limit.
Limit = int | Literal["max"]

#: ``(quota, period)`` in microseconds, as cpu.max has them.
Bandwidth = tuple[int, int]

#: What a group's CPUs are: cpuset.cpus.partition.
Partition = Literal["root", "isolated", "member"]

# The kernel counts in pages; a limit below one page is a limit of nothing at all.
PAGE = 4096
_IO_KEYS: Mapping[str, bool] = {"rbps": True, "wbps": True, "riops": False, "wiops": False}
_DEVICE = re.compile(r"([abc])\s+(\d+|\*):(\d+|\*)\s+([rwm]{1,3})", re.ASCII)
_IO_DEVICE = re.compile(r"\d+:\d+", re.ASCII)
_PAGE_SIZE = re.compile(r"[1-9]\d*[KMG]B", re.ASCII)
_UNIFIED = re.compile(r"[a-z][a-z0-9_]*(\.[a-zA-Z0-9_]+)+", re.ASCII)
# The only core files that are limits; the others move, freeze or kill processes.
_CORE_LIMITS = ("cgroup.max.depth", "cgroup.max.descendants")


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


def limit(field: str, value: object, *, minimum: int = 0) -> Limit | None:
    """Bytes."""
    if value is None or value == "max":
        return value
    return quantity.size(field, value, minimum=minimum)


def number(field: str, value: object, *, maximum: int = quantity.MAX) -> Limit | None:
    """A count, from 1."""
    if value is None or value == "max":
        return value
    return quantity.count(field, value, maximum=maximum)


def flag(field: str, value: object) -> bool | None:
    """Yes or no."""
    if value is not None and not isinstance(value, bool):
        raise SpecError(field, value, "True or False")
    return value


def weight(field: str, value: object) -> int | None:
    """A share among siblings."""
    return None if value is None else quantity.count(field, value, maximum=10000)


def cpu_max(value: object) -> float | Bandwidth | Literal["max"] | None:
    """CPUs, or quota and period."""
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


def partition(value: object, cpus: tuple[int, ...] | None) -> Partition | None:
    """What the CPUs are; *cpus* are those of the same value, which a partition is made of."""
    if value is None or value == "member":
        return value
    if value not in ("root", "isolated"):
        raise SpecError("cpuset_cpus_partition", value, "one of 'root', 'isolated', 'member'")
    if not cpus:
        raise SpecError("cpuset_cpus_partition", value, "set together with cpuset_cpus")
    return value


def io_max(value: object) -> tuple[tuple[str, tuple[tuple[str, Limit], ...]], ...] | None:
    """Limits by disk."""
    if value is None:
        return None
    allowed = 'a list such as [("8:0", {"rbps": "10M", "wiops": 100})] with rbps, wbps, riops, wiops'
    found: dict[str, tuple[tuple[str, Limit], ...]] = {}
    for disk, limits in _by_disk("io_max", value, allowed):
        kept: dict[str, Limit] = {}
        for key, given in _pairs("io_max", limits, allowed):
            name = f"io_max[{disk!r}][{key!r}]"
            if key not in _IO_KEYS:
                raise SpecError("io_max", key, "rbps, wbps, riops or wiops")
            most = (
                limit(name, given, minimum=1) if _IO_KEYS[key] else number(name, given, maximum=(1 << 32) - 1)
            )
            if most is None:
                raise SpecError(name, given, 'a number or "max"')
            kept[key] = most
        if not kept:
            raise SpecError("io_max", limits, allowed)
        found[disk] = tuple(sorted(kept.items()))
    return tuple(found.items())


def io_latency(value: object) -> tuple[tuple[str, Limit], ...] | None:
    """Targets by disk, in microseconds."""
    if value is None:
        return None
    allowed = 'a list such as [("8:0", 10000)]: a disk, and microseconds or "max"'
    found: dict[str, Limit] = {}
    for disk, given in _by_disk("io_latency", value, allowed):
        # The kernel counts in nanoseconds.
        target = number(f"io_latency[{disk!r}]", given, maximum=quantity.MAX // 1000)
        if target is None:
            raise SpecError(f"io_latency[{disk!r}]", given, allowed)
        found[disk] = target
    return tuple(found.items())


def devices(value: object) -> tuple[str, ...] | None:
    """An allow-list."""
    if value is None:
        return None
    rules = _items("devices", value, 'a list of rules such as "c 10:200 rwm"')
    return tuple(dict.fromkeys(str(DeviceRule.parse(rule)) for rule in rules))


def hugetlb(value: object) -> tuple[tuple[str, Limit], ...] | None:
    """Bytes by page size."""
    if value is None:
        return None
    allowed = 'page sizes and bytes such as {"2MB": "64M"}'
    kept: dict[str, Limit] = {}
    for key, given in _pairs("hugetlb_max", value, allowed):
        most = limit(f"hugetlb_max[{key!r}]", given)
        if not _PAGE_SIZE.fullmatch(key) or most is None:
            raise SpecError("hugetlb_max", value, allowed)
        kept[key] = most
    return tuple(sorted(kept.items()))


def unified(value: object) -> tuple[tuple[str, str], ...] | None:
    """Files of cgroup v2 as they are called there."""
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


def _by_disk(field: str, value: object, allowed: str) -> Iterator[tuple[str, object]]:
    seen = set()
    for disk, given in _pairs(field, value, allowed):
        if not (_IO_DEVICE.fullmatch(disk) or disk.startswith("/")) or "\0" in disk or disk in seen:
            raise SpecError(field, disk, 'a device such as "8:0" or "/dev/sda", named once')
        seen.add(disk)
        yield disk, given


def _items(field: str, value: object, allowed: str) -> list[object]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise SpecError(field, value, allowed)
    return list(value)


def _pairs(field: str, value: object, allowed: str) -> list[tuple[str, object]]:
    given = list(value.items()) if isinstance(value, Mapping) else _items(field, value, allowed)
    found: list[tuple[str, object]] = []
    for pair in given:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise SpecError(field, pair, allowed)
        found.append((pair[0], pair[1]))
    return found
