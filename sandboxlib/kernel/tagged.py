"""
Where there are no cgroups: a command's processes, told by a namespace of their own.

Each command gets a UTS namespace for itself. Its children inherit it, and none can
leave it (that takes CAP_SYS_ADMIN, and the filter refuses setns and unshare), so it
marks them as a cgroup would, however they fork and whose child they become.
"""

from __future__ import annotations

import contextlib
import os
import signal

from sandboxlib.errors import KernelError

#: Rounds of looking and killing; each is at least as fast as a fork bomb's forks are rare
#: under its ceiling on processes.
_ROUNDS = 1000


def tag(pid: int) -> int:
    """The inode of a process's UTS namespace. Raises: FileNotFoundError: It has ended."""
    return os.stat(f"/proc/{pid}/ns/uts").st_ino


def members(mark: int) -> list[int]:
    """All processes that carry *mark*."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            # Gone in between, or another user's.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if tag(int(name)) == mark:
                    found.append(int(name))
    return found


def kill_tagged(mark: int) -> None:
    """
    Kill every process that carries *mark*.

    Raises:
        KernelError: They fork faster than they can be killed.
    """
    for _ in range(_ROUNDS):
        victims = members(mark)
        if not victims:
            return
        # First all stand still: then none of those that are left can fork.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in victims:
                _signal(pid, mark, number)
    raise KernelError(11, f"kill(<UTS namespace {mark}>, SIGKILL)", "kill a command's processes")


def _signal(pid: int, mark: int, number: int) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        fd = os.pidfd_open(pid)
        try:
            # Asked again with the process pinned: the number may have gone to another.
            if tag(pid) == mark:
                signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)
