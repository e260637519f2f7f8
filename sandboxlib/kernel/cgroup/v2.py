"""
Groups on the unified hierarchy.

A group's folder holds ``init`` for the sandbox's first process and ``c0``, ``c1``, … for
its commands: once controllers are passed on, v2 allows no process beside them.

Kernel: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from sandboxlib.cgroup import CGroup, require
from sandboxlib.errors import KernelError, UnsupportedError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import bounds, devices, files, mapping, partition, processes, v2stats
from sandboxlib.kernel.cgroup.changes import Changes
from sandboxlib.kernel.cgroup.common import ACCOUNTING, Counters, GroupBase
from sandboxlib.kernel.cgroup.interface import Events
from sandboxlib.kernel.cgroup.probe import SUPERVISOR
from sandboxlib.kernel.cgroup.v2leaf import Leaf
from sandboxlib.kernel.descriptor import Fd
from sandboxlib.kernel.owner import PREFIX
from sandboxlib.result import Stats

# Always there, without a controller that would have to be passed on.
_CORE = frozenset({"cpuacct", "freezer", "devices"})

# Controllers that a folder was seen to pass on, so that it is read once per program.
_passed_on: dict[str, set[str]] = {}


class Group(GroupBase[Leaf]):
    """See `sandboxlib.kernel.cgroup.interface.Group`."""

    def __init__(self, host: CGroupHost, spec: CGroup, name: str) -> None:
        super().__init__(host, spec, name)
        self.folder = f"{next(iter(host.bases.values()))}/{PREFIX}{name}"
        self.kills = 0
        self._leaves_enabled = False
        self._program = Fd()
        # Folders, its own or leaves', that were made partitions of CPUs.
        self.partitions: set[str] = set()

    @classmethod
    def prepare(cls, host: CGroupHost, spec: CGroup, name: str) -> Group:
        """See to it that the group can be made."""
        require(spec, host)
        bounds.check_host(spec, host)
        return cls(host, spec, name)

    def make(self) -> None:
        """Make it with its limits in force."""
        base = os.path.dirname(self.folder)
        accounted = {controller for controller in ACCOUNTING if controller in self.host.bases}
        needed = (accounted | self.spec.controllers) - _CORE
        _pass_on(base, needed)
        self.folders[self.folder] = None
        for attempt in (1, 2):
            files.mkdir(self.folder)
            try:
                self._apply(self.spec)
                break
            except UnsupportedError:
                files.rmdir(self.folder)
                if attempt == 2:
                    raise
                # Somebody else, such as systemd, may have stopped passing the controller on.
                _passed_on.pop(base, None)
                _pass_on(base, needed)
        self.paths = dict.fromkeys(sorted(needed) or ["cpuacct"], self.folder)

    def join_files(self) -> tuple[str, ...]:
        """The one file."""
        return (f"{self.folder}/cgroup.procs",)

    def init_files(self) -> tuple[str, ...]:
        """The group of the first process; made by the first call."""
        self.leaf_folders.add(f"{self.folder}/init")
        try:
            files.mkdir(f"{self.folder}/init")
        except KernelError as problem:
            if problem.errno != errno.EEXIST:
                raise
        return (f"{self.folder}/init/cgroup.procs",)

    def init_oom_kills(self) -> int:
        """Those of the first process's group."""
        return v2stats.oom_kills(f"{self.folder}/init") or 0

    @property
    def clone_folder(self) -> str | None:
        """For CLONE_INTO_CGROUP; None once cgroup.kill was written."""
        return None if self.kills else self.folder

    def enable_leaves(self) -> None:
        """Pass the controllers that account on."""
        if not self._leaves_enabled:
            _pass_on(self.folder, set(self.paths) - _CORE - {"cpuset", "hugetlb", "cpu"}, move_aside=False)
            self._leaves_enabled = True

    def new_leaf(self, limits: CGroup | None, number: int) -> Leaf:
        """Make a folder for one command."""
        self.enable_leaves()
        if limits is not None:
            require(limits, self.host)
            needed = set(limits.controllers) - _CORE
            _pass_on(os.path.dirname(self.folder), needed)
            _pass_on(self.folder, needed, move_aside=False)
        leaf = Leaf(self, limits, number, Counters())
        self.leaf_folders.add(leaf.folder)
        files.mkdir(leaf.folder)
        try:
            if limits is not None:
                self._write(limits, leaf.folder)
                if limits.devices is not None:
                    devices.attach(leaf.folder, mapping.rules(limits.devices)).close()
        except BaseException:
            self.end_partition(leaf.folder)
            files.rmdir(leaf.folder)
            raise
        return leaf

    def end_partition(self, folder: str) -> bool:
        """Let others have the CPUs of *folder*, its own or a leaf's; False if it had none to itself."""
        if folder not in self.partitions:
            return False
        partition.end(folder)
        self.partitions.discard(folder)
        return True

    def again(self, leaf: Leaf) -> Leaf:
        """The same folder for the next command."""
        fresh = Leaf(self, leaf.limits, leaf.number, leaf.last or leaf.start)
        fresh.reset_peak()
        return fresh

    def add(self, pid: int) -> None:
        """Move a process in; with leaves there it goes beside the first process."""
        self.check_open()
        path = self.init_files()[0] if self._leaves_enabled else f"{self.folder}/cgroup.procs"
        files.write(path, str(pid))

    def pids(self) -> list[int]:
        """All processes in it and below."""
        return processes.listed(f"{folder}/cgroup.procs" for folder in files.tree(self.folder))

    def stats(self) -> Stats:
        """What it uses now."""
        self.check_open()
        return v2stats.stats(self.folder)

    def events(self) -> Events:
        """How often limits were hit."""
        self.check_open()
        return v2stats.events(self.folder)

    def update(self, limits: CGroup) -> None:
        """Change limits with the processes running."""
        self.check_open()
        require(limits, self.host)
        bounds.check_host(limits, self.host, live=True, own=self.folder)
        _pass_on(os.path.dirname(self.folder), set(limits.controllers) - _CORE)
        with self.lock:
            before = partition.found(self.folder) if "cpuset" in limits.controllers else {}
            changes = Changes()
            try:
                self._write(limits, self.folder, changes.write)
                partition.check(before, self.folder, limits)
                self._attach(limits)
            except BaseException as error:
                changes.take_back(error)
                partition.mend(before, error)
                raise
            self.spec = self.spec.merge(limits)

    def freeze(self) -> None:
        """Stop every process."""
        self._freezer("1")

    def thaw(self) -> None:
        """Let them go on."""
        self._freezer("0")

    def kill(self) -> None:
        """Kill all in one call."""
        # A kernel bug kills whatever is cloned into a group after its kill, so what is
        # on the free list, being below, is not used again. Joining by a write is safe.
        self.kills += 1
        self.forget_leaves()
        processes.kill_group(self.folder)

    def close(self) -> None:
        """Kill what is left and remove the folders."""
        self.closed = True
        with self.lock:
            self._program.close()
            _passed_on.pop(self.folder, None)
            # The deepest first.
            for folder in sorted(self.partitions, key=len, reverse=True):
                self.end_partition(folder)
            if not self.removed():
                self.remove_rest(processes.kill_group)

    def _freezer(self, state: str) -> None:
        self.check_open()
        files.write(f"{self.folder}/cgroup.freeze", state)
        if not files.wait(f"{self.folder}/cgroup.events", f"frozen {state}"):
            raise KernelError(errno.EBUSY, f'write("{self.folder}/cgroup.freeze", "{state}")')

    def _apply(self, limits: CGroup) -> None:
        self._write(limits, self.folder)
        self._attach(limits)

    def _attach(self, limits: CGroup) -> None:
        if limits.devices is not None:
            rules, before = mapping.rules(limits.devices), self._program
            self._program = devices.attach(self.folder, rules, before.fileno())
            before.close()

    def _write(self, limits: CGroup, folder: str, write: Callable[[str, str], None] = files.write) -> None:
        disks = files.disks(device for device, _ in limits.io_max or ())
        disks |= files.disks((device for device, _ in limits.io_latency or ()), "io_latency")
        for row in mapping.v2(limits, disks):
            try:
                write(f"{folder}/{row.file}", row.text)
                if row.file == partition.FILE:
                    partition.made(folder, row.text.strip())
                    self.partitions.add(folder)
            except KernelError as problem:
                if problem.errno not in (errno.ENOENT, errno.EACCES) or os.path.exists(
                    f"{folder}/{row.file}"
                ):
                    raise
                if row.field == "io_weight" and os.path.exists(f"{folder}/io.bfq.weight"):
                    write(f"{folder}/io.bfq.weight", mapping.bfq(int(row.text.split()[1])))
                elif row.field != "memory_swap_max" or row.text != "0" or files.has_swap():
                    raise UnsupportedError(row.field, f"a kernel that has the file {row.file}") from problem


def _pass_on(folder: str, controllers: set[str], *, move_aside: bool = True) -> None:
    """Let the groups below *folder* have the controllers, with our own processes moved aside if need be."""
    known = _passed_on.get(folder, set())
    if controllers <= known:
        return
    path = f"{folder}/cgroup.subtree_control"
    on = set(files.read(path).split())
    missing = controllers - on
    if missing:
        text = " ".join(f"+{controller}" for controller in sorted(missing))
        try:
            files.write(path, text)
        except KernelError as problem:
            if problem.errno != errno.EBUSY or not move_aside:
                raise
            _move_aside(folder)
            files.write(path, text)
    _passed_on[folder] = known | on | controllers


def _move_aside(folder: str) -> None:
    """
    Move the processes of *folder*, ours among them, into its child ``supervisor``.

    Only where this program's own group is all that it may use: v2 passes controllers
    on only from a group without processes. They stay there when the program ends.
    """
    below = f"{folder}/{SUPERVISOR}"
    if not os.path.exists(below):
        files.mkdir(below)

    def done() -> bool:
        pids = processes.listed([f"{folder}/cgroup.procs"])
        for pid in pids:
            try:
                files.write(f"{below}/cgroup.procs", str(pid))
            except KernelError as problem:
                if problem.errno != errno.ESRCH:
                    raise
        return not pids

    if not files.until(done):
        raise KernelError(errno.EBUSY, f'write("{below}/cgroup.procs", ...)', hint="processes keep appearing")
