"""
What to write where, for a `CGroup`: one row for each file. Pure.

The v1 column follows the kernel rather than older converters: v2's cpu.weight *w* is the
scheduler weight ``w * 1024 / 100``, which is what v1's cpu.shares holds, so shares by
that rule divide the CPU exactly as the weights would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sandboxlib.cgroup import MINIMAL_DEVICES, CGroup
from sandboxlib.cgroup_fields import DeviceRule, Limit
from sandboxlib.errors import UnsupportedError

#: cpu.max's default period in microseconds; so the kernel's least quota is 0.01 CPUs.
PERIOD = 100_000

_V1_IO = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}
# BFQ's scale ends here; so far it is the same as io.weight's, with the same default of 100.
_BFQ_MAX = 1000


class Write(NamedTuple):
    """A file and its new text, with the field that wants it and the hierarchy it is in."""

    field: str
    controller: str
    file: str
    text: str


def v2(spec: CGroup, disks: Mapping[str, str]) -> list[Write]:
    """
    The files of cgroup v2, without the device program.

    Args:
        spec: The limits.
        disks: ``major:minor`` for each device of io_max and io_latency.
    """
    rows: list[Write] = []
    for field in ("memory_min", "memory_low", "memory_high", "memory_swap_max", "memory_max"):
        value = getattr(spec, field)
        if value is not None:
            rows.append(Write(field, "memory", "memory." + field[7:].replace("_", "."), str(value)))
    if spec.memory_oom_group is not None:
        rows.append(Write("memory_oom_group", "memory", "memory.oom.group", str(int(spec.memory_oom_group))))
    # The idle flag comes first: an idle group takes no weight.
    if spec.cpu_idle is not None:
        rows.append(Write("cpu_idle", "cpu", "cpu.idle", str(int(spec.cpu_idle))))
    if spec.cpu_weight is not None:
        rows.append(Write("cpu_weight", "cpu", "cpu.weight", str(spec.cpu_weight)))
    if spec.cpu_max is not None:
        quota, period = bandwidth(spec.cpu_max)
        rows.append(Write("cpu_max", "cpu", "cpu.max", f"{quota} {period}"))
    # Memory nodes first: CPUs without memory are refused by older kernels.
    for field in ("cpuset_mems", "cpuset_cpus"):
        numbers = getattr(spec, field)
        if numbers is not None:
            rows.append(Write(field, "cpuset", "cpuset." + field[7:], spelled(numbers)))
    if spec.cpuset_cpus_partition is not None:
        word = spec.cpuset_cpus_partition
        rows.append(Write("cpuset_cpus_partition", "cpuset", "cpuset.cpus.partition", word))
    if spec.pids_max is not None:
        rows.append(Write("pids_max", "pids", "pids.max", str(spec.pids_max)))
    for device, limits in spec.io_max or ():
        text = " ".join(f"{key}={value}" for key, value in limits)
        rows.append(Write("io_max", "io", "io.max", f"{disks[device]} {text}"))
    for device, target in spec.io_latency or ():
        rows.append(Write("io_latency", "io", "io.latency", f"{disks[device]} target={target}"))
    if spec.io_weight is not None:
        rows.append(Write("io_weight", "io", "io.weight", f"default {spec.io_weight}"))
    for size, value in spec.hugetlb_max or ():
        rows.append(Write("hugetlb_max", "hugetlb", f"hugetlb.{size}.max", str(value)))
    for file, text in spec.unified or ():
        rows.append(Write("unified", file.partition(".")[0], file, text))
    return rows


def v1(spec: CGroup, disks: Mapping[str, str]) -> list[Write]:
    """
    The files of cgroup v1, in the order that a group with no limits yet needs.

    Args:
        spec: The limits; `sandboxlib.cgroup.require` has accepted them.
        disks: ``major:minor`` for each device of io_max.
    """
    rows: list[Write] = []
    if spec.pids_max is not None:
        rows.append(Write("pids_max", "pids", "pids.max", str(spec.pids_max)))
    if spec.memory_max is not None:
        rows.append(Write("memory_max", "memory", "memory.limit_in_bytes", _v1_limit(spec.memory_max)))
    if spec.memory_swap_max is not None:
        # v1 counts memory and swap together; so the sum can never be below the memory alone.
        total = v1_memsw(spec)
        rows.append(Write("memory_swap_max", "memory", "memory.memsw.limit_in_bytes", _v1_limit(total)))
    if spec.cpu_idle is not None:
        rows.append(Write("cpu_idle", "cpu", "cpu.idle", str(int(spec.cpu_idle))))
    if spec.cpu_weight is not None:
        rows.append(Write("cpu_weight", "cpu", "cpu.shares", str(shares(spec.cpu_weight))))
    if spec.cpu_max is not None:
        quota, period = bandwidth(spec.cpu_max)
        rows.append(Write("cpu_max", "cpu", "cpu.cfs_period_us", str(period)))
        rows.append(Write("cpu_max", "cpu", "cpu.cfs_quota_us", "-1" if quota == "max" else str(quota)))
    for field in ("cpuset_mems", "cpuset_cpus"):
        numbers = getattr(spec, field)
        if numbers is not None:
            rows.append(Write(field, "cpuset", "cpuset." + field[7:], spelled(numbers)))
    for device, limits in spec.io_max or ():
        for key, value in limits:
            # v1 lifts a throttle by a zero.
            text = "0" if value == "max" else str(value)
            rows.append(Write("io_max", "io", _V1_IO[key], f"{disks[device]} {text}"))
    if spec.io_weight is not None:
        rows.append(Write("io_weight", "io", "blkio.bfq.weight", bfq(spec.io_weight)))
    if spec.devices is not None:
        rows.append(Write("devices", "devices", "devices.deny", "a"))
        rows += [Write("devices", "devices", "devices.allow", str(rule)) for rule in rules(spec.devices)]
    for size, value in spec.hugetlb_max or ():
        rows.append(Write("hugetlb_max", "hugetlb", f"hugetlb.{size}.limit_in_bytes", _v1_limit(value)))
    return rows


def v1_memsw(spec: CGroup) -> Limit:
    """Memory and swap together, as v1 limits them."""
    if isinstance(spec.memory_max, int) and isinstance(spec.memory_swap_max, int):
        return spec.memory_max + spec.memory_swap_max
    return "max"


def bandwidth(cpu_max: float | tuple[int, int] | str) -> tuple[int | str, int]:
    """Quota and period in microseconds; the quota is ``"max"`` for none."""
    if isinstance(cpu_max, tuple):
        return cpu_max
    if isinstance(cpu_max, str):
        return "max", PERIOD
    return round(cpu_max * PERIOD), PERIOD


def shares(weight: int) -> int:
    """v1's cpu.shares for v2's cpu.weight; Linux takes 2 at least."""
    return max(2, round(weight * 1024 / 100))


def bfq(weight: int) -> str:
    """The weight on BFQ's scale. Raises: UnsupportedError above its end."""
    if weight > _BFQ_MAX:
        needs = "io.weight of cgroup v2 with CONFIG_BLK_CGROUP_IOCOST"
        raise UnsupportedError("io_weight above 1000", needs, "BFQ takes 1 to 1000")
    return str(weight)


def rules(devices: Iterable[str]) -> list[DeviceRule]:
    """The whole allow-list: what every sandbox has, then its own."""
    return list(dict.fromkeys([*MINIMAL_DEVICES, *map(DeviceRule.parse, devices)]))


def spelled(numbers: Iterable[int]) -> str:
    """A list of CPUs or nodes as the kernel reads it, runs of numbers as ranges."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _v1_limit(value: Limit) -> str:
    return "-1" if value == "max" else str(value)
