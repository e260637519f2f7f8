"""The group of one command, on cgroup v1: a folder in each hierarchy that accounts or limits."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from sandboxlib.cgroup import CGroup
from sandboxlib.cgroup import controller as of
from sandboxlib.errors import UnsupportedError
from sandboxlib.kernel.cgroup import files, mapping, processes, v1stats
from sandboxlib.kernel.cgroup.common import RESIDUE, Counters, LeafBase
from sandboxlib.kernel.descriptor import eventfd, openat

if TYPE_CHECKING:
    from sandboxlib.kernel.cgroup.v1 import Group


class Leaf(LeafBase):
    """See `sandboxlib.kernel.cgroup.interface.Leaf`."""

    def __init__(
        self, group: Group, limits: CGroup | None, number: int, start: Counters, paths: dict[str, str]
    ) -> None:
        super().__init__(limits, number, start)
        self._group = group
        self.paths = paths

    def join_files(self) -> tuple[str, ...]:
        """One for each hierarchy; the process has to be single-threaded."""
        # What a leaf does not have of its own it has of the group.
        return tuple(f"{folder}/tasks" for folder in dict.fromkeys((self._group.paths | self.paths).values()))

    def joined(self, files: tuple[str, ...]) -> None:
        """Bring the leaf along into hierarchies that were added while it was joined."""
        if files != self.join_files():
            self._group.bring_along()

    @property
    def clone_folder(self) -> str | None:
        """None: CLONE_INTO_CGROUP is v2's."""
        return None

    @property
    def pids_bound(self) -> tuple[str, int] | None:
        """Of the group, whose limit holds for all commands together."""
        most, folder = self._group.spec.pids_max, self._group.paths.get("pids")
        return (f"{folder}/pids.current", most) if isinstance(most, int) and folder is not None else None

    def is_empty(self) -> bool:
        """Whether no process, and no zombie, is in it."""
        if "pids" in self.paths:
            return files.read(f"{self.paths['pids']}/pids.current") == "0\n"
        return not files.read(f"{self._first()}/cgroup.procs")

    def counters(self) -> Counters:
        """The counters as they are."""
        return v1stats.counters(self.paths)

    def oom_kills(self) -> int:
        """Processes killed for want of memory."""
        self._check_open()
        return (v1stats.oom_kills(self.paths) or 0) - (self.start.oom_kills or 0)

    def met_memory(self) -> bool:
        """Has a limit on memory ever been met?"""
        self._check_open()
        folders = [paths["memory"] for paths in (self.paths, self._group.paths) if "memory" in paths]
        return any(int(files.read(f"{folder}/memory.failcnt")) for folder in folders)

    def cpu_seconds(self) -> float:
        """CPU seconds so far."""
        self._check_open()
        if "cpuacct" not in self.paths:
            raise UnsupportedError(
                "the CPU time of a command", "the cpuacct cgroup controller", self._group.host.hint
            )
        used = int(files.read(f"{self.paths['cpuacct']}/cpuacct.usage")) / 1e9
        return used - (self.start.cpu or 0)

    def oom_fd(self) -> tuple[int, int]:
        """An eventfd that the kernel adds to, and POLLIN."""
        self._check_open()
        if "memory" not in self.paths:
            raise UnsupportedError("OOM notification", "the memory cgroup controller", self._group.host.hint)
        if not self._oom_fd:
            event = eventfd(os.EFD_NONBLOCK)
            with openat(f"{self.paths['memory']}/memory.oom_control", os.O_RDONLY) as control:
                text = f"{event.fileno()} {control}"
                files.write(f"{self.paths['memory']}/cgroup.event_control", text)
            self._oom_fd = event
        return self._oom_fd.fileno(), select.POLLIN

    def pids(self) -> list[int]:
        """Its processes."""
        self._check_open()
        return processes.listed([f"{self._first()}/cgroup.procs"])

    def kill(self) -> None:
        """Kill the whole tree."""
        self._check_open()
        self.killed = True
        group = self._group
        frozen = group.frozen
        group.kill_folders(self._first(), self.paths.get("pids"))
        if frozen and not group.closed:
            # Its other commands stay stopped; they had to go on for a moment, for what is frozen cannot die.
            group.freeze()

    def give_back(self) -> None:
        """Put it on the free list, or remove what can be removed."""
        if not self.killed and not self._group.closed and (self.last or self.is_empty()):
            self.last = self.last or self.counters()
            if self._renew(self.last):
                self._group.keep(self)
                return
        self.remove()

    def remove(self) -> None:
        """Remove what can be removed."""
        for folder in dict.fromkeys(self.paths.values()):
            # What still runs in it goes on; the group removes it at the end.
            if self._remove(folder):
                self._group.leaf_folders.discard(folder)

    def _renew(self, last: Counters) -> bool:
        """Make the leaf as good as new; False if that cannot be done."""
        self.start = last._replace(memory_peak=None, pids_peak=None)
        if "memory" in self.paths:
            folder = self.paths["memory"]
            if int(files.read(f"{folder}/memory.usage_in_bytes")) > RESIDUE:
                if not self._replace("memory", folder):
                    return False
                self.start = self.start._replace(oom_kills=0)
            else:
                files.write(f"{folder}/memory.max_usage_in_bytes", "0")
        # The peak of pids cannot be set back: only 1 tells nothing of what came before.
        if last.pids_peak is not None and last.pids_peak > 1:
            return self._replace("pids", self.paths["pids"])
        return True

    def _replace(self, controller: str, folder: str) -> bool:
        if list(self.paths.values()).count(folder) > 1:
            # Mounted together with another controller, whose counters would go too.
            return False
        if not self._remove(folder):
            return False
        files.mkdir(folder)
        if self.limits is not None:
            fields = {name: value for name, value in self.limits.fields.items() if of(name) == controller}
            for row in mapping.v1(CGroup(**fields), {}):
                files.write(f"{folder}/{row.file}", row.text)
        return True

    def _remove(self, folder: str) -> bool:
        """Remove a folder, and keep for the group what was counted there; False while it is in use."""
        counted = {name: path for name, path in self.paths.items() if path == folder}
        events = v1stats.own_events(counted)
        if not files.rmdir(folder):
            return False
        with self._group.lock:
            self._group.gone = v1stats.add(self._group.gone, events)
        return True

    def _first(self) -> str:
        return next(iter(self.paths.values()))
