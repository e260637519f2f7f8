"""The group of one command, on the unified hierarchy."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from sandboxlib.cgroup import CGroup
from sandboxlib.kernel.cgroup import files, processes, v2stats
from sandboxlib.kernel.cgroup.common import RESIDUE, Counters, LeafBase
from sandboxlib.kernel.descriptor import Fd, openat
from sandboxlib.kernel.syscall import failed

if TYPE_CHECKING:
    from sandboxlib.kernel.cgroup.v2 import Group


class Leaf(LeafBase):
    """See `sandboxlib.kernel.cgroup.interface.Leaf`."""

    def __init__(self, group: Group, limits: CGroup | None, number: int, start: Counters) -> None:
        super().__init__(limits, number, start)
        self._group = group
        self.folder = f"{group.folder}/c{number}"
        self._kills = group.kills
        # An own view of memory.peak, which starts when it is written to.
        self._peak = Fd()

    def join_files(self) -> tuple[str, ...]:
        """The one file."""
        return (f"{self.folder}/cgroup.procs",)

    def joined(self, files: tuple[str, ...]) -> None:
        """Nothing has to be done: there is one hierarchy."""

    @property
    def clone_folder(self) -> str | None:
        """For CLONE_INTO_CGROUP; None once cgroup.kill was written here or above."""
        return None if self._is_spent() else self.folder

    @property
    def pids_bound(self) -> tuple[str, int] | None:
        """Of the group, whose limit holds for all commands together."""
        most = self._group.spec.pids_max
        return (f"{self._group.folder}/pids.current", most) if isinstance(most, int) else None

    def is_empty(self) -> bool:
        """Whether no process, and no zombie, is in it."""
        text = files.find(f"{self.folder}/pids.current")
        if text is not None:
            return text == "0\n"
        return "populated 0" in files.read(f"{self.folder}/cgroup.events").splitlines()

    def counters(self) -> Counters:
        """The counters as they are."""
        cpu = files.keyed(files.read(f"{self.folder}/cpu.stat"))
        io = files.find(f"{self.folder}/io.stat")
        devices_io = None if io is None else files.nested(io).values()
        return Counters(
            cpu=cpu["usage_usec"] / 1e6,
            cpu_system=cpu["system_usec"] / 1e6,
            io_read=None if devices_io is None else sum(device.get("rbytes", 0) for device in devices_io),
            io_written=None if devices_io is None else sum(device.get("wbytes", 0) for device in devices_io),
            oom_kills=v2stats.oom_kills(self.folder),
            memory_peak=self._memory_peak(),
            pids_peak=v2stats.optional(f"{self.folder}/pids.peak"),
        )

    def oom_kills(self) -> int:
        """Processes killed for want of memory."""
        self._check_open()
        return (v2stats.oom_kills(self.folder) or 0) - (self.start.oom_kills or 0)

    def met_memory(self) -> bool:
        """Has a limit on memory ever been met?"""
        self._check_open()
        return any(v2stats.events(folder).memory_max for folder in (self.folder, self._group.folder))

    def cpu_seconds(self) -> float:
        """CPU seconds so far."""
        self._check_open()
        used = files.keyed(files.read(f"{self.folder}/cpu.stat"))["usage_usec"] / 1e6
        return used - (self.start.cpu or 0)

    def oom_fd(self) -> tuple[int, int]:
        """A descriptor of memory.events, and POLLPRI."""
        self._check_open()
        if not self._oom_fd:
            fd = openat(f"{self.folder}/memory.events", os.O_RDONLY)
            # A change is signalled to who has read before.
            os.pread(fd.fileno(), 4096, 0)
            self._oom_fd = fd
        return self._oom_fd.fileno(), select.POLLPRI

    def pids(self) -> list[int]:
        """Its processes."""
        self._check_open()
        return processes.listed(f"{folder}/cgroup.procs" for folder in files.tree(self.folder))

    def kill(self) -> None:
        """Kill the whole tree."""
        self._check_open()
        self.killed = True
        processes.kill_group(self.folder)

    def give_back(self) -> None:
        """Put it on the free list, or remove it."""
        # CPUs of its own are for others to have from now on.
        ended = self._group.end_partition(self.folder)
        # The peak of pids cannot be set back: only 1 tells nothing of what came before.
        if not ended and not self._is_spent() and (self.last or self.is_empty()) and not self._group.closed:
            last = self.last = self.last or self.counters()
            residue = v2stats.optional(f"{self.folder}/memory.current")
            resettable = last.memory_peak is None or _can_reset(f"{self.folder}/memory.peak")
            if resettable and (residue or 0) <= RESIDUE and (last.pids_peak or 0) <= 1:
                self._peak.close()
                self._group.keep(self)
                return
        self.remove()

    def remove(self) -> None:
        """Remove it, if it can be."""
        self._peak.close()
        # What still runs in it goes on; the group removes it at the end.
        if files.rmdir(self.folder):
            self._group.leaf_folders.discard(self.folder)

    def _is_spent(self) -> bool:
        return self.killed or self._kills != self._group.kills

    def reset_peak(self) -> None:
        """Let the peak of memory start again. Kernel: memory.peak, Linux ≥ 6.12."""
        path = f"{self.folder}/memory.peak"
        try:
            self._peak = openat(path, os.O_RDWR)
            os.write(self._peak.fileno(), b"0")
        except FileNotFoundError:
            # Without the memory controller there is no peak to set back.
            return
        except OSError as problem:
            raise failed(problem, f'write("{path}", "0")') from None

    def _memory_peak(self) -> int | None:
        if self._peak:
            return int(os.pread(self._peak.fileno(), 64, 0))
        return v2stats.optional(f"{self.folder}/memory.peak")


def _can_reset(path: str) -> bool:
    # Before Linux 6.12 the file takes no writes, and its mode says so.
    return bool(os.stat(path).st_mode & 0o200)
