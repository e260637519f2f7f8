"""
Groups on cgroup v1 and hybrid machines: one folder in each hierarchy that is needed.

A process joins by ``tasks`` and not ``cgroup.procs``: a thread that moves itself alone takes no lock
that all forks of the machine have to wait for, nor the RCU grace period (measured:
up to 14 ms) that taking this lock after a pause costs.

Kernel: Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from sandboxlib.cgroup import CGroup, require
from sandboxlib.errors import KernelError, UnsupportedError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import bounds, files, mapping, processes, v1stats
from sandboxlib.kernel.cgroup.changes import Changes
from sandboxlib.kernel.cgroup.common import ACCOUNTING, Counters, GroupBase
from sandboxlib.kernel.cgroup.interface import Events
from sandboxlib.kernel.cgroup.v1leaf import Leaf
from sandboxlib.kernel.owner import PREFIX
from sandboxlib.result import Stats

# Without "io": v1 does not know whose page it is that is written back, so its counters miss
# nearly all writes, and one hierarchy less is a tenth of a millisecond. The kernel's own
# accounting of each process tells more.
_ACCOUNTED = tuple(name for name in ACCOUNTING if name != "io")
# In the order of joining; see ACCOUNTING.
_ORDER = (*ACCOUNTING, "cpu", "cpuset", "devices", "hugetlb")


class Group(GroupBase[Leaf]):
    """See `sandboxlib.kernel.cgroup.interface.Group`."""

    def __init__(self, host: CGroupHost, spec: CGroup, name: str) -> None:
        super().__init__(host, spec, name)
        # Events of leaves that were removed: v1 counts them where the process is.
        self.gone = Events()
        self.frozen = False

    @classmethod
    def prepare(cls, host: CGroupHost, spec: CGroup, name: str) -> Group:
        """See to it that the group can be made."""
        require(spec, host)
        bounds.check_host(spec, host)
        return cls(host, spec, name)

    def make(self) -> None:
        """Make it with its limits in force."""
        bases, spec = self.host.bases, self.spec
        self._extend(
            [name for name in _ORDER if name in bases and (name in _ACCOUNTED or name in spec.controllers)]
        )
        self._write(spec, self.paths)

    def join_files(self) -> tuple[str, ...]:
        """One for each hierarchy; the process has to be single-threaded."""
        return tuple(f"{folder}/tasks" for folder in self.unique())

    def init_files(self) -> tuple[str, ...]:
        """None: v1 allows processes beside children."""
        return ()

    def init_oom_kills(self) -> int:
        """Those of processes that are directly in the group."""
        return v1stats.oom_kills(self.paths) or 0

    @property
    def clone_folder(self) -> str | None:
        """None: CLONE_INTO_CGROUP is v2's."""
        return None

    def enable_leaves(self) -> None:
        """Nothing has to be done: v1 allows processes beside children."""

    def _first(self) -> list[str]:
        """The folder that all are in; none as long as nothing is made."""
        return self.unique()[:1]

    def unique(self) -> list[str]:
        """The folders; those of controllers that are mounted together once."""
        return list(dict.fromkeys(self.paths.values()))

    def _make(self, folders: dict[str, str]) -> None:
        """Make a folder for each controller, which is entered where it will be found; all or none."""
        try:
            for folder in dict.fromkeys(folders.values()):
                files.mkdir(folder)
            if "cpuset" in folders:
                self._fill_cpuset(folders["cpuset"])
        except BaseException:
            for folder in folders.values():
                files.rmdir(folder)
            raise

    def new_leaf(self, limits: CGroup | None, number: int) -> Leaf:
        """Make a folder in each hierarchy that accounts or limits."""
        wanted = [name for name in ACCOUNTING if name in self.paths]
        if limits is not None:
            require(limits, self.host)
            wanted += [name for name in _ORDER if name in limits.controllers and name not in wanted]
            self._extend(wanted)
        paths = {name: f"{self.paths[name]}/c{number}" for name in wanted}
        self.leaf_folders.update(paths.values())
        self._make(paths)
        try:
            if limits is not None:
                self._write(limits, paths)
        except BaseException:
            for folder in set(paths.values()):
                files.rmdir(folder)
            raise
        return Leaf(self, limits, number, Counters(), paths)

    def again(self, leaf: Leaf) -> Leaf:
        """The same folders for the next command."""
        return Leaf(self, leaf.limits, leaf.number, leaf.start, leaf.paths)

    def add(self, pid: int) -> None:
        """Move a process, in each hierarchy."""
        self.check_open()
        for folder in self.unique():
            files.write(f"{folder}/cgroup.procs", str(pid))

    def pids(self) -> list[int]:
        """All processes, as the caller numbers them."""
        # Whoever has joined at all is in the first hierarchy.
        folders = [folder for path in self._first() for folder in files.tree(path)]
        return processes.listed(f"{folder}/cgroup.procs" for folder in folders)

    def stats(self) -> Stats:
        """What it uses now."""
        self.check_open()
        return v1stats.stats(self.paths, self.events())

    def events(self) -> Events:
        """How often limits were hit."""
        self.check_open()
        return v1stats.events(self.paths, self.gone)

    def update(self, limits: CGroup) -> None:
        """Change limits with the processes running."""
        self.check_open()
        merged = self.spec.merge(limits)
        require(merged, self.host)
        bounds.check_host(limits, self.host, live=True)
        with self.lock:
            self._extend([name for name in _ORDER if name in limits.controllers])
            changes = Changes()
            try:
                self._write(limits, self.paths, merged, changes.write)
            except BaseException as error:
                changes.take_back(error)
                raise
            self.spec = merged

    def freeze(self) -> None:
        """Stop every process; the freezer group is made when it is first needed."""
        self.check_open()
        if "freezer" not in self.host.bases:
            raise UnsupportedError("freeze", "the freezer cgroup controller", self.host.hint)
        with self.lock:
            if "freezer" not in self.paths:
                folder = f"{self.host.bases['freezer']}/{PREFIX}{self.name}"
                self.folders[folder] = None
                files.mkdir(folder)
                self.paths["freezer"] = folder
        folder = self.paths["freezer"]
        # Frozen first and filled then: each process stops as it comes in, so the number of
        # those that can still fork only falls.
        files.write(f"{folder}/freezer.state", "FROZEN")

        def done() -> bool:
            missing = set(self.pids()) - set(processes.listed([f"{folder}/cgroup.procs"]))
            for pid in missing:
                try:
                    files.write(f"{folder}/cgroup.procs", str(pid))
                except KernelError as problem:
                    if problem.errno != errno.ESRCH:
                        raise
            if files.read(f"{folder}/freezer.state") != "FROZEN\n":
                # Again, for who went to sleep in vfork(2) when told to stop: it waits for its child,
                # which has stopped, and counts as stopped only if it is told while it sleeps.
                files.write(f"{folder}/freezer.state", "FROZEN")
                return False
            return not missing

        self.frozen = True
        if not files.until(done):
            raise KernelError(errno.EBUSY, f'write("{folder}/freezer.state", "FROZEN")', hint="not all stop")

    def thaw(self) -> None:
        """Let them go on."""
        self.check_open()
        self.frozen = False
        if "freezer" in self.paths:
            files.write(f"{self.paths['freezer']}/freezer.state", "THAWED")

    def kill(self) -> None:
        """Forbid forks, kill until the list is empty, and allow forks again."""
        for first in self._first():
            self.kill_folders(first, self.paths.get("pids"))
        if "pids" in self.paths:
            limit = self.spec.pids_max
            files.write(f"{self.paths['pids']}/pids.max", "max" if limit is None else str(limit))

    def kill_folders(self, folder: str, pids: str | None) -> None:
        """Kill all in *folder* and below; *pids* is the group that can forbid them to fork."""

        def forbid() -> None:
            if pids is not None:
                files.write(f"{pids}/pids.max", "0")

        thaw = [f"{self.paths['freezer']}/freezer.state"] if "freezer" in self.paths else []
        processes.kill_listed([f"{below}/cgroup.procs" for below in files.tree(folder)], forbid, thaw)

    def close(self) -> None:
        """Kill what is left and remove the folders."""
        self.closed = True
        with self.lock:
            if not self.removed():
                # A launcher that was killed while it joined may be in some hierarchies only.
                self.remove_rest(
                    lambda folder: self.kill_folders(
                        folder, folder if os.path.exists(f"{folder}/pids.max") else None
                    )
                )

    def _extend(self, controllers: Iterable[str]) -> None:
        """Make the group in more hierarchies, and bring along who is in it."""
        missing = [name for name in controllers if name not in self.paths]
        if missing:
            folders = {name: f"{self.host.bases[name]}/{PREFIX}{self.name}" for name in missing}
            there = set(self.paths.values())
            self.folders |= dict.fromkeys(folders.values())
            self._make({name: folder for name, folder in folders.items() if folder not in there})
            self.paths = self.paths | folders
            if there:
                self.bring_along()

    def bring_along(self) -> None:
        """Move whoever is in the first hierarchy into the others, where they are in none of our groups."""
        others = self.unique()[1:]

        def done() -> bool:
            pids = set(self.pids())
            late = [(pid, path) for path in others for pid in pids - _below(path)]
            for pid, path in late:
                try:
                    files.write(f"{path}/cgroup.procs", str(pid))
                except KernelError as problem:
                    if problem.errno != errno.ESRCH:
                        raise
            return not late

        if not files.until(done):
            raise KernelError(errno.EBUSY, f"write({', '.join(others)})", hint="processes keep appearing")

    def _fill_cpuset(self, folder: str) -> None:
        # A new cpuset is empty and takes no process until it has both.
        above = os.path.dirname(folder)
        for name in ("mems", "cpus"):
            text = files.read(f"{above}/cpuset.effective_{name}").strip()
            files.write(f"{folder}/cpuset.{name}", text)

    def _write(
        self,
        limits: CGroup,
        paths: dict[str, str],
        merged: CGroup | None = None,
        write: Callable[[str, str], None] = files.write,
    ) -> None:
        disks = files.disks(device for device, _ in limits.io_max or ())
        rows = mapping.v1(limits, disks)
        if merged is not None and {row.field for row in rows} & {"memory_max", "memory_swap_max"}:
            # memory ≤ memory + swap holds at every moment, so which is written first
            # depends on the direction.
            rows = [row for row in rows if row.field not in ("memory_max", "memory_swap_max")]
            memory = [
                row for row in mapping.v1(merged, disks) if row.field in ("memory_max", "memory_swap_max")
            ]
            now = files.find(f"{paths['memory']}/memory.memsw.limit_in_bytes")
            limit = None if now is None else files.number(now)
            wanted = mapping.v1_memsw(merged)
            if limit is not None and (wanted == "max" or wanted > limit):
                memory.reverse()
            rows = memory + rows
        for row in rows:
            path = f"{paths[row.controller]}/{row.file}"
            try:
                write(path, row.text)
            except KernelError as problem:
                if problem.errno not in (errno.ENOENT, errno.EACCES) or os.path.exists(path):
                    raise
                if row.field == "io_weight" and os.path.exists(f"{paths['io']}/blkio.weight"):
                    write(f"{paths['io']}/blkio.weight", row.text)
                else:
                    self._without(row, problem)

    def _without(self, row: mapping.Write, problem: KernelError) -> None:
        """What to do where the kernel does not have a file."""
        if row.field == "memory_swap_max":
            if row.text == "-1" or (row.text == str(self.spec.memory_max) and not files.has_swap()):
                # No swap is just what was asked for.
                return
            raise UnsupportedError(
                "memory_swap_max", "swap accounting", "boot with swapaccount=1"
            ) from problem
        raise UnsupportedError(row.field, f"a kernel that has the file {row.file}") from problem


def _below(folder: str) -> set[int]:
    return set(processes.listed(f"{group}/cgroup.procs" for group in files.tree(folder)))
