"""
Where there are no cgroups: whose a process is.

Each command gets a UTS namespace for itself. Its children inherit it, and none can
leave it (that takes CAP_SYS_ADMIN, and the filter refuses setns and unshare), so it
marks them as a cgroup would, however they fork and whose child they become.

Who has executed a file that it may not read, of an owner whom the sandbox does not know, shows its
namespaces to nobody but root (PR_SET_DUMPABLE of prctl(2)). Such a process is told by two limits that
Linux does not act on, see `Family`; and where it has lowered them, by whose child it is.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial

from sandboxlib.errors import KernelError
from sandboxlib.kernel import proc
from sandboxlib.kernel.descriptor import Fd, pidfd_open
from sandboxlib.kernel.syscall import syscall

#: Seconds for all to end, and between two looks at who is left.
_PATIENCE = 10.0
_PAUSE = 0.001
_GONE = (FileNotFoundError, ProcessLookupError)
#: Of asm-generic/resource.h; Linux acts on neither, since 2.4.30 and 2.4.25.
NAMES = "locks", "rss"
_LOCKS, _RSS = 10, 5
#: One limit is above the first by a number, the other one below the second by it. Both are far from what
#: anybody sets, and from no limit at all.
_LOW, _HIGH = 1 << 61, 1 << 62
#: How many numbers a family has, and the bits that tell one from another.
_ROOM, _BITS = 1 << 20, 40
STRANGER = -1


class Family:
    """
    Numbers of a sandbox's commands, which their processes have as hard limits.

    A process may lower a limit, and raise none. One of the two is the higher the higher the number is, the
    other one the lower: so nobody can give himself another's number.
    """

    def __init__(self) -> None:
        self._first = int.from_bytes(os.urandom(_BITS // 8), "little") * _ROOM
        self._numbers = itertools.count(1)

    def mark(self, hard: Callable[[str], int], taken: Collection[str]) -> Mark:
        """
        What tells the processes of one more command.

        It has no number where the program's own *hard* limits are too low for it, or one is *taken*.
        """
        none = min(map(hard, NAMES)) < _HIGH or {*NAMES} & {*taken}
        return Mark(self, 0 if none else next(self._numbers) % _ROOM)

    def limits(self, number: int) -> tuple[tuple[str, int], ...]:
        """The hard limits for *number*, by name."""
        of_all = self._first + number
        return tuple(zip(NAMES, (_LOW + of_all, _HIGH - of_all), strict=True)) if number else ()

    def number(self, pid: int) -> int | None:
        """
        The number of a process; `STRANGER` for one of another family, None for one that tells nothing.

        Raises:
            ProcessLookupError: It has ended.
        """
        try:
            above, below = _hard(pid, _LOCKS) - _LOW, _HIGH - _hard(pid, _RSS)
        except PermissionError:
            # Another user's.
            return STRANGER
        if above != below or not 0 < above < _ROOM << _BITS:
            return None
        number = above - self._first
        return number if 0 <= number < _ROOM else STRANGER


class Mark:
    """
    What tells the processes of one command.

    Attributes:
        fd: Their UTS namespace, which keeps its inode from being used again; none until the program has it.
        limits: What they have as limits, by name.
    """

    def __init__(self, family: Family, number: int) -> None:
        self.fd = Fd()
        self.limits = family.limits(number)
        self._family, self._number = family, number
        self._inode, self._top = 0, tuple[int, ...]()

    def kill(self, pid: int, init: int) -> None:
        """
        Kill every process that carries it: *pid* is the command, *init* pid 1 of the sandbox.

        Raises:
            KernelError: They fork faster than they can be killed.
        """
        if self.fd:
            self._inode, self._top = os.fstat(self.fd.fileno()).st_ino, (pid, init)
            kill_all(partial(chosen, self.tells, self.claims), f"<UTS namespace {self._inode}>")

    def tells(self, pid: int) -> bool | None:
        """
        Is a process, if it lives, one of the command's? None where nothing of its own says so.

        Raises: FileNotFoundError, ProcessLookupError: It has ended.
        """
        if (shown := namespace(pid, "uts")) is not None:
            return shown == self._inode
        number = self._family.number(pid)
        return None if number is None else number == self._number

    def claims(self, pid: int) -> bool | None:
        """
        The same of a parent of one who tells nothing.

        Nobody knows any more whose it was who has lost its parents, and tells nothing by its limits: it
        goes with the first who goes, so its parent is the sandbox's pid 1.
        """
        return True if pid in self._top else self.tells(pid)


def namespace(pid: int, kind: str) -> int | None:
    """
    The inode of a process's namespace, *kind* as /proc names it; None where the kernel does not show it.

    It shows none of one whose first thread has ended while others go on.

    Raises: FileNotFoundError: It has ended.
    """
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except PermissionError:
        return None
    except FileNotFoundError:
        if proc.is_dead(pid):
            raise
        return None


def _hard(pid: int, limit: int) -> int:
    found = bytearray(16)
    syscall("prlimit", pid, limit, 0, found, call=f"prlimit({pid}, {limit})")
    return int.from_bytes(found[8:], sys.byteorder)


def chosen(
    tells: Callable[[int], bool | None], claims: Callable[[int], bool | None], among: Iterable[int] = ()
) -> list[int]:
    """
    Those processes of all, or *among* some, that *tells* takes; where that is None, by their parents.

    Kernel: proc_pid_stat(5), field 4.
    """
    known: dict[int, bool] = {}

    def of_parents(pid: int) -> bool:
        """Each process is asked once: chains of parents may be long, and many have the same."""
        path: dict[int, bool] = {}
        while pid > 1 and pid not in known and pid not in path:
            if path and (said := claims(pid)) is not None:
                known[pid] = said
                break
            path[pid] = False
            pid = proc.parent(pid)
        verdict = known.get(pid, False)
        known.update(dict.fromkeys(path, verdict))
        return verdict

    found = []
    for pid in among or (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(*_GONE):
            said = tells(pid)
            # One that has ended shows its namespaces to nobody either.
            if (of_parents(pid) if said is None else said) and not proc.is_dead(pid):
                found.append(pid)
    return found


def kill_all(find: Callable[[Iterable[int]], list[int]], who: str) -> None:
    """
    Kill every process that *find* finds: it is asked for those among some, or with none for all.

    Raises:
        KernelError: They fork faster than they can be killed.
    """
    still: set[int] = set()
    deadline = time.monotonic() + _PATIENCE
    while found := find(()):
        # First all stand still, also those that were born while others were looked for: what is killed
        # makes room for a fork, what is stopped does not.
        if fresh := [pid for pid in found if pid not in still]:
            for pid in fresh:
                _signal(pid, find, signal.SIGSTOP)
            still.update(fresh)
        else:
            for pid in found:
                _signal(pid, find, signal.SIGKILL)
            still.clear()
            # They need the processor once more, to end.
            time.sleep(_PAUSE)
        if time.monotonic() > deadline:
            raise KernelError(11, f"kill({who}, SIGKILL)", "kill a command's processes")


def _signal(pid: int, find: Callable[[Iterable[int]], list[int]], number: int) -> None:
    with contextlib.suppress(*_GONE, PermissionError), pidfd_open(pid) as fd:
        # Asked again with the process pinned: the number may have gone to another.
        if find((pid,)):
            signal.pidfd_send_signal(fd, number)


__all__ = ["STRANGER", "Family", "Mark", "chosen", "kill_all", "namespace"]
