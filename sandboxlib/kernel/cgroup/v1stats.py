"""What the files of cgroup v1 tell, brought to the meaning of v2's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sandboxlib.kernel.cgroup import files
from sandboxlib.kernel.cgroup.common import Counters
from sandboxlib.kernel.cgroup.interface import Events
from sandboxlib.result import CPUStats, IOStats, MemoryStats, PidsStats, Stats

# Both count what the whole tree does; bfq's files count only on disks that use BFQ.
_IO_BYTES = "blkio.throttle.io_service_bytes_recursive"
_IO_COUNT = "blkio.throttle.io_serviced_recursive"


def stats(paths: Mapping[str, str], seen: Events) -> Stats:
    """What the group in *paths* uses now; *seen* are its events. Raises: KernelError."""
    return Stats(
        memory=_memory(paths["memory"], seen) if "memory" in paths else None,
        cpu=_cpu(paths) if "cpuacct" in paths else None,
        pids=_pids(paths["pids"], seen) if "pids" in paths else None,
        io=_io(paths["io"]) if "io" in paths else None,
    )


def events(paths: Mapping[str, str], gone: Events) -> Events:
    """
    How often limits were hit, in the group and below.

    v1 counts OOM kills and refused forks where the process is, so those of the leaves are added up;
    *gone* are those of leaves that are no more.
    """
    total = gone
    for controller in ("memory", "pids"):
        if controller in paths:
            for folder in files.tree(paths[controller]):
                total = add(total, own_events({controller: folder}))
    hits = 0
    if "memory" in paths:
        hits = int(files.read(f"{paths['memory']}/memory.failcnt"))
    # Where swap is limited too, the limit of both is hit first, and newer kernels do not
    # count that; but a kill is never without a hit.
    return total._replace(memory_max=max(hits, total.oom_kill))


def own_events(paths: Mapping[str, str]) -> Events:
    """What happened to processes that are directly in these folders."""
    killed = oom_kills(paths) or 0
    # Older kernels do not count refused forks on v1.
    text = files.find(f"{paths['pids']}/pids.events") if "pids" in paths else None
    return Events(
        oom=killed, oom_kill=killed, pids_max=0 if text is None else files.keyed(text).get("max", 0)
    )


def add(one: Events, other: Events) -> Events:
    """The sum of both."""
    return Events(*map(sum, zip(one, other, strict=True)))


def counters(paths: Mapping[str, str]) -> Counters:
    """All that is accounted for a command. Raises: KernelError."""
    cpu, system = cpu_seconds(paths["cpuacct"]) if "cpuacct" in paths else (None, None)
    read = written = None
    if "io" in paths:
        read = written = 0
        for _, operation, amount in _io_lines(f"{paths['io']}/{_IO_BYTES}"):
            read += amount if operation == "Read" else 0
            written += amount if operation == "Write" else 0
    peak = files.find(f"{paths['pids']}/pids.peak") if "pids" in paths else None
    return Counters(
        cpu=cpu,
        cpu_system=system,
        io_read=read,
        io_written=written,
        oom_kills=oom_kills(paths),
        memory_peak=int(files.read(f"{paths['memory']}/memory.max_usage_in_bytes"))
        if "memory" in paths
        else None,
        pids_peak=None if peak is None else int(peak),
    )


def cpu_seconds(folder: str) -> tuple[float, float]:
    """
    CPU seconds, and those of them in the kernel.

    The first is exact; the second is sampled at timer ticks, and may run ahead of it.

    Kernel: cgroup-v1/cpuacct.rst.
    """
    total = int(files.read(f"{folder}/cpuacct.usage"))
    return total / 1e9, int(files.read(f"{folder}/cpuacct.usage_sys")) / 1e9


def oom_kills(paths: Mapping[str, str]) -> int | None:
    """Processes that were killed for want of memory while they were in this very group."""
    if "memory" not in paths:
        return None
    return files.keyed(files.read(f"{paths['memory']}/memory.oom_control"))["oom_kill"]


def _memory(folder: str, seen: Events) -> MemoryStats:
    # total_ is with the groups below, as v2 counts.
    stat = files.keyed(files.read(f"{folder}/memory.stat"))
    kernel = files.find(f"{folder}/memory.kmem.usage_in_bytes")
    return MemoryStats(
        current=int(files.read(f"{folder}/memory.usage_in_bytes")),
        peak=int(files.read(f"{folder}/memory.max_usage_in_bytes")),
        max=files.number(files.read(f"{folder}/memory.limit_in_bytes")),
        anon=stat["total_rss"],
        file=stat["total_cache"],
        kernel=None if kernel is None else int(kernel),
        active_anon=stat["total_active_anon"],
        inactive_anon=stat["total_inactive_anon"],
        active_file=stat["total_active_file"],
        inactive_file=stat["total_inactive_file"],
        swap=stat.get("total_swap"),
        oom=seen.oom,
        oom_kill=seen.oom_kill,
        at_max=seen.memory_max,
    )


def _cpu(paths: Mapping[str, str]) -> CPUStats:
    usage, system = cpu_seconds(paths["cpuacct"])
    system = min(system, usage)
    throttling = files.keyed(files.read(f"{paths['cpu']}/cpu.stat")) if "cpu" in paths else {}
    return CPUStats(
        usage=usage,
        user=usage - system,
        system=system,
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled=throttling.get("throttled_time", 0) / 1e9,
    )


def _pids(folder: str, seen: Events) -> PidsStats:
    peak = files.find(f"{folder}/pids.peak")
    return PidsStats(
        current=int(files.read(f"{folder}/pids.current")),
        peak=None if peak is None else int(peak),
        max=files.number(files.read(f"{folder}/pids.max")),
        at_max=seen.pids_max,
    )


def _io(folder: str) -> dict[str, IOStats]:
    found: dict[str, dict[str, int]] = {}
    for file, suffix in ((_IO_BYTES, "bytes"), (_IO_COUNT, "ios")):
        for device, operation, amount in _io_lines(f"{folder}/{file}"):
            found.setdefault(device, {})[operation + suffix] = amount
    return {
        device: IOStats(*(counts.get(name, 0) for name in ("Readbytes", "Writebytes", "Readios", "Writeios")))
        for device, counts in found.items()
    }


def _io_lines(path: str) -> Iterator[tuple[str, str, int]]:
    for line in files.read(path).splitlines():
        # "8:0 Read 4096"; the last line is a total without a device.
        if len(words := line.split()) == 3:
            yield words[0], words[1], int(words[2])
