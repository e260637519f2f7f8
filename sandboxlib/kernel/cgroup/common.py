"""
What both drivers share: counters of a leaf, and leaves that are used again.

Making a group costs more than all the rest of joining one, so a leaf goes back to a
free list when nothing tells it from a new one: no process in it, counters that are set back or
subtracted, and no memory left behind by what ran there before.
"""

from __future__ import annotations

import itertools
import os
import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, NamedTuple, Self, TypeVar

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import KernelError, StateError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import bounds, files, processes
from sandboxlib.kernel.descriptor import Fd
from sandboxlib.kernel.removal import each
from sandboxlib.result import Usage

#: What is accounted for each command, as far as the host has it. The order is that of
#: joining: pids first, so that a process is in the list for killing before it is anywhere else.
ACCOUNTING = ("pids", "memory", "cpuacct", "io")

#: Page cache that a leaf may keep and still count as new. The kernel itself charges in
#: lots of 64 pages for each CPU, so that peaks are no more exact than this.
RESIDUE = 1 << 20

#: How many different limits of commands leaves are kept for.
KEPT = 16


class Counters(NamedTuple):
    """A leaf's counters as the kernel has them; None where nothing counts."""

    cpu: float | None = None
    cpu_system: float | None = None
    io_read: int | None = None
    io_written: int | None = None
    oom_kills: int | None = None
    memory_peak: int | None = None
    pids_peak: int | None = None


class LeafBase:
    """The part of `sandboxlib.kernel.cgroup.interface.Leaf` that does not depend on the version."""

    def __init__(self, limits: CGroup | None, number: int, start: Counters) -> None:
        self.limits = limits
        self.number = number
        # What earlier commands in the same folders have used.
        self.start = start
        self.last: Counters | None = None
        self.killed = False
        self._released = False
        self._oom_fd = Fd()

    def usage(self, wall: float) -> Usage:
        """What the command has used. Reap it first: a zombie still counts as a process."""
        self._check_open()
        # Asked before the counters are read: what is empty stays so, and its counters too.
        empty = self.is_empty()
        now = self.counters()
        self.last = now if empty else None
        start = self.start
        cpu = _since(now.cpu, start.cpu)
        # The sum is exact, the part in the kernel sampled at ticks on v1: it may run ahead.
        system = min(max(_since(now.cpu_system, start.cpu_system) or 0.0, 0.0), cpu or 0.0)
        return Usage(
            wall=wall,
            cpu_user=None if cpu is None else cpu - system,
            cpu_system=None if cpu is None else system,
            memory_peak=now.memory_peak,
            pids_peak=now.pids_peak,
            io_read=_since(now.io_read, start.io_read),
            io_written=_since(now.io_written, start.io_written),
            oom_kills=_since(now.oom_kills, start.oom_kills),
        )

    def release(self) -> None:
        """Give the leaf back; idempotent."""
        if self._released:
            return
        self._released = True
        self._oom_fd.close()
        self.give_back()

    def _check_open(self) -> None:
        if self._released:
            raise StateError("the leaf was released, and may belong to another command now")

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether no process, and no zombie, is in it."""

    @abstractmethod
    def counters(self) -> Counters:
        """The counters as they are."""

    @abstractmethod
    def give_back(self) -> None:
        """Put it on the free list, or remove it."""

    @abstractmethod
    def remove(self) -> None:
        """Remove it, unless somebody is in it still: then the group does at its end."""


L = TypeVar("L", bound=LeafBase)
N = TypeVar("N", int, float)


class GroupBase(Generic[L]):
    """The part of `sandboxlib.kernel.cgroup.interface.Group` that does not depend on the version."""

    def __init__(self, host: CGroupHost, spec: CGroup, name: str) -> None:
        self.host = host
        self.spec = spec
        self.name = name
        self.paths: dict[str, str] = {}
        self.closed = False
        # A signal handler may close it, too.
        self.lock = threading.RLock()
        # Its own folders, and those of leaves, from before they are made until they are removed.
        self.folders: dict[str, None] = {}
        self.leaf_folders: set[str] = set()
        self._free: dict[CGroup | None, list[L]] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def leaf(self, limits: CGroup | None = None) -> L:
        """A group for one command, new or as good as new."""
        self.check_open()
        if limits is not None and not limits.fields:
            limits = None
        # pop() and append() of a list are atomic: no lock on this way.
        free = self._free.get(limits)
        while free:
            try:
                return self.again(free.pop())
            except IndexError:
                break
        if limits is not None:
            bounds.check_parent(limits, self.spec)
        return self.new_leaf(limits, next(self._numbers))

    def keep(self, leaf: L) -> None:
        """Take a leaf that is as good as new, and remove those with limits that nobody asked for lately."""
        spare: list[L] = []
        with self.lock:
            free = self._free.pop(leaf.limits, [])
            free.append(leaf)
            self._free[leaf.limits] = free
            if len(self._free) > KEPT:
                # What has no limits of its own is asked for most.
                oldest = next(limits for limits in self._free if limits is not None)
                spare = self._free.pop(oldest)
        while spare:
            try:
                spare.pop().remove()
            except IndexError:
                break  # another thread has begun to use it

    def forget_leaves(self) -> None:
        """Never use again what is on the free list."""
        self._free.clear()

    def check_open(self) -> None:
        """Raise `StateError` once the group is closed."""
        if self.closed:
            raise StateError("the cgroup is closed")

    @abstractmethod
    def new_leaf(self, limits: CGroup | None, number: int) -> L:
        """Make a leaf."""

    @abstractmethod
    def again(self, leaf: L) -> L:
        """A fresh object for the folders of a leaf that was given back."""

    @abstractmethod
    def close(self) -> None:
        """Kill what is left and remove the group."""

    def removed(self) -> bool:
        """Remove all folders that nobody is in; True if none is left."""
        for folder in list(self.leaf_folders):
            if _gone(folder):
                self.leaf_folders.discard(folder)
        for folder in list(self.folders):
            if _gone(folder):
                self.folders.pop(folder, None)
        return not (self.leaf_folders or self.folders)

    def remove_rest(self, kill: Callable[[str], object]) -> None:
        """Kill what is left in each folder, and remove it. Raises: KernelError: EBUSY."""

        def end(folder: str) -> None:
            if os.path.exists(folder):
                kill(folder)
                processes.remove_tree(folder)
            self.folders.pop(folder, None)

        each(end, self.folders)
        self.leaf_folders.clear()


def _gone(folder: str) -> bool:
    """Remove it, if nobody is in it. Why it cannot be removed is told by `GroupBase.remove_rest`."""
    try:
        return files.rmdir(folder)
    except KernelError:
        return False


def _since(now: N | None, start: N | None) -> N | None:
    return now if now is None or start is None else now - start
