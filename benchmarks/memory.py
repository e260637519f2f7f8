"""What an idle sandbox takes: memory, processes, descriptors, disk; and if many cost more each."""

from __future__ import annotations

import argparse
import os
import re
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Bar
from sandboxlib import Sandbox

KILOBYTE = 1000


def children() -> set[int]:
    """Children of this program: pid 1 of each sandbox."""
    return {
        int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()
    }


def inside(pid: int) -> int:
    """How many processes are in the PID namespace that *pid* is in."""
    own = os.readlink(f"/proc/{pid}/ns/pid")
    count = 0
    for other in filter(str.isdigit, os.listdir("/proc")):
        try:
            count += os.readlink(f"/proc/{other}/ns/pid") == own
        except (FileNotFoundError, PermissionError):
            # It ended while we looked, or is one whose namespaces nobody may see, so none of ours.
            continue
    return count


def proportional(pid: int) -> int:
    """Bytes of a process's memory, shared pages by their share. Kernel: smaps_rollup, proc(5)."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def disk() -> int:
    """Bytes in folders of ours on any file system."""
    folders = [
        Path("/run/sandboxlib"),
        Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")) / f"sandboxlib-{os.getuid()}",
    ]
    return sum(file.lstat().st_blocks * 512 for folder in folders for file in folder.rglob("*"))


def available() -> int:
    """Bytes that the machine has left."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--many", type=int, default=200, help="how many at once")
    options = parser.parse_args()
    with Sandbox():
        # What the first one in a program brings along is not the next one's.
        fds, disk_before, pids = len(os.listdir("/proc/self/fd")), disk(), children()
        with Sandbox() as sandbox:
            (pid,) = children() - pids
            process, processes = proportional(pid), inside(pid)
            memory = sandbox.stats().memory
            # By kind, not memory.current: each CPU charges 64 pages ahead (MEMCG_CHARGE_BATCH).
            group = 0 if memory is None else memory.anon + memory.file + (memory.kernel or 0)
            descriptors = len(os.listdir("/proc/self/fd")) - fds
            written = disk() - disk_before
    with ExitStack() as stack:
        free, times = available(), []
        for _ in range(options.many):
            began = time.perf_counter()
            stack.enter_context(Sandbox())
            times.append(time.perf_counter() - began)
        each = (free - available()) / options.many
        began = time.perf_counter()
    closing = (time.perf_counter() - began) / options.many
    tenth = max(1, options.many // 10)
    first, last = measure.Times(tuple(times[:tenth])), measure.Times(tuple(times[-tenth:]))
    print(f"## An idle sandbox\n\n{measure.machine()}\n")
    measure.show_bars(
        [
            Bar("pid 1 (proportional set) and its cgroup", (process + group) / KILOBYTE, 200, unit="kB"),
            Bar("on disk", written / KILOBYTE, 4, unit="kB"),
            Bar("processes", processes, 1, unit=""),
            Bar(f"the last tenth of {options.many} at once, to the first", last.median / first.median, 1.1),
        ]
    )
    print(
        f"pid 1 alone {process / KILOBYTE:.0f} kB, its cgroup {group / KILOBYTE:.0f} kB; "
        f"{descriptors} descriptors of the program; {each / KILOBYTE:.0f} kB of the machine's memory each "
        f"(with {options.many} at once, kernel objects included); "
        f"{1000 * first.median:.2f} ms to open, {1000 * closing:.2f} ms to close\n"
    )


if __name__ == "__main__":
    main()
