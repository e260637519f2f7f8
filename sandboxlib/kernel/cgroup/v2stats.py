"""What the files of a cgroup v2 folder tell, as values."""

from __future__ import annotations

from sandboxlib.kernel.cgroup import files
from sandboxlib.kernel.cgroup.interface import Events
from sandboxlib.result import CPUStats, IOStats, MemoryStats, PidsStats, Pressure, Stall, Stats


def stats(folder: str) -> Stats:
    """What the group uses now; a part is None without its controller. Raises: KernelError."""
    return Stats(
        memory=_memory(folder),
        cpu=_cpu(folder),
        pids=_pids(folder),
        io=_io(folder),
        pressure=_pressure(folder),
    )


def events(folder: str) -> Events:
    """How often limits were hit. Raises: KernelError."""
    memory = _keyed(f"{folder}/memory.events")
    return Events(
        oom=memory.get("oom", 0),
        oom_kill=memory.get("oom_kill", 0),
        memory_max=memory.get("max", 0),
        memory_high=memory.get("high", 0),
        pids_max=_keyed(f"{folder}/pids.events").get("max", 0),
    )


def oom_kills(folder: str) -> int | None:
    """Processes killed for want of memory, in the group and below; None without the memory controller."""
    return _keyed(f"{folder}/memory.events").get("oom_kill")


def optional(path: str) -> int | None:
    """A file of one number that may not be there, or says ``max``."""
    text = files.find(path)
    return None if text is None else files.number(text)


def _keyed(path: str) -> dict[str, int]:
    text = files.find(path)
    return {} if text is None else files.keyed(text)


def _memory(folder: str) -> MemoryStats | None:
    current = optional(f"{folder}/memory.current")
    if current is None:
        return None
    stat = _keyed(f"{folder}/memory.stat")
    count = _keyed(f"{folder}/memory.events")
    return MemoryStats(
        current=current,
        peak=optional(f"{folder}/memory.peak"),
        max=optional(f"{folder}/memory.max"),
        anon=stat["anon"],
        file=stat["file"],
        kernel=stat.get("kernel"),
        active_anon=stat["active_anon"],
        inactive_anon=stat["inactive_anon"],
        active_file=stat["active_file"],
        inactive_file=stat["inactive_file"],
        swap=optional(f"{folder}/memory.swap.current"),
        oom=count.get("oom", 0),
        oom_kill=count.get("oom_kill", 0),
        at_max=count.get("max", 0),
    )


def _cpu(folder: str) -> CPUStats:
    stat = _keyed(f"{folder}/cpu.stat")
    return CPUStats(
        usage=stat["usage_usec"] / 1e6,
        user=stat["user_usec"] / 1e6,
        system=stat["system_usec"] / 1e6,
        # These three come with the controller.
        periods=stat.get("nr_periods", 0),
        throttled_periods=stat.get("nr_throttled", 0),
        throttled=stat.get("throttled_usec", 0) / 1e6,
    )


def _pids(folder: str) -> PidsStats | None:
    current = optional(f"{folder}/pids.current")
    if current is None:
        return None
    return PidsStats(
        current=current,
        peak=optional(f"{folder}/pids.peak"),
        max=optional(f"{folder}/pids.max"),
        at_max=_keyed(f"{folder}/pids.events").get("max", 0),
    )


def _io(folder: str) -> dict[str, IOStats] | None:
    text = files.find(f"{folder}/io.stat")
    if text is None:
        return None
    return {
        device: IOStats(*(counts.get(name, 0) for name in ("rbytes", "wbytes", "rios", "wios")))
        for device, counts in files.nested(text).items()
    }


def _pressure(folder: str) -> dict[str, Pressure] | None:
    texts = {name: files.find(f"{folder}/{name}.pressure") for name in ("memory", "cpu", "io")}
    return {name: pressure(text) for name, text in texts.items() if text is not None} or None


def pressure(text: str) -> Pressure:
    """Read what a file such as memory.pressure says."""
    lines = {}
    for line in text.splitlines():
        kind, *fields = line.split()
        values = dict(field.split("=", 1) for field in fields)
        avg10, avg60, avg300 = (float(values[name]) / 100 for name in ("avg10", "avg60", "avg300"))
        lines[kind] = Stall(avg10, avg60, avg300, int(values["total"]) / 1e6)
    return Pressure(lines["some"], lines.get("full"))
