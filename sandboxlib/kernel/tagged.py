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
import time

from sandboxlib.errors import KernelError
from sandboxlib.kernel.descriptor import pidfd_open

#: Looks at what there is; two or three get all, unless they wake each other.
_ROUNDS = 1000
#: Seconds between two of them.
_PAUSE = 0.001


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
    still: set[int] = set()
    for _ in range(_ROUNDS):
        found = members(mark)
        if not found:
            return
        # First all stand still, also those that were born while others were looked for: what is killed
        # makes room for a fork, what is stopped does not.
        if fresh := [pid for pid in found if pid not in still]:
            for pid in fresh:
                _signal(pid, mark, signal.SIGSTOP)
            still.update(fresh)
            continue
        for pid in found:
            _signal(pid, mark, signal.SIGKILL)
        still.clear()
        # They need the processor once more, to end.
        time.sleep(_PAUSE)
    raise KernelError(11, f"kill(<UTS namespace {mark}>, SIGKILL)", "kill a command's processes")


def _signal(pid: int, mark: int, number: int) -> None:
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError),
        pidfd_open(pid) as fd,
    ):
        # Asked again with the process pinned: the number may have gone to another.
        if tag(pid) == mark:
            signal.pidfd_send_signal(fd, number)
