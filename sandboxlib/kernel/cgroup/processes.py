"""Who is in a group, how to end all of them, and how to remove it after them."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable, Sequence

from sandboxlib.errors import KernelError
from sandboxlib.kernel.cgroup import files
from sandboxlib.kernel.descriptor import Fd, pidfd_open
from sandboxlib.kernel.syscall import failed

# How many processes are held by pidfd at a time: few enough for any RLIMIT_NOFILE.
_BATCH = 64
# Seconds in which all who hear of cgroup.kill have ended, if they have little memory to give back.
_HEARD = 0.1


def listed(procs_files: Iterable[str]) -> list[int]:
    """
    The processes in these cgroup.procs files, sorted; a file that is gone has none.

    A process that the caller's pid namespace does not show is 0.
    """
    found: set[int] = set()
    for path in procs_files:
        try:
            found.update(map(int, files.read(path).split()))
        except KernelError as problem:
            # ENODEV: removed between the open and the read. EOPNOTSUPP: it is threaded, and the group above
            # lists its processes.
            if problem.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                raise
    return sorted(found)


def kill_listed(
    procs_files: Sequence[str], forbid: Callable[[], object] = lambda: None, thaw: Iterable[str] = ()
) -> None:
    """
    Kill until the lists are empty, for v1, which has no call for it.

    *forbid* forbids forks (pids.max), else a fork bomb may outrun this. It is called when all that
    are there have stopped: a shell whose fork fails would end with a status of its own. What v1 has
    frozen dies only when it is thawed: *thaw* are the freezer.state files for that.

    Raises:
        KernelError: EBUSY, with the pids that are left; EPERM for a process of another user.
    """

    def send(number: signal.Signals, pids: list[int]) -> None:
        for start in range(0, len(pids), _BATCH):
            _signal(number, pids[start : start + _BATCH], procs_files)

    send(signal.SIGSTOP, listed(procs_files))
    forbid()

    def done() -> bool:
        pids = listed(procs_files)
        # All stop before the first one dies, so that none sees another's end and reacts to it:
        # a shell would exit with a status of its own.
        send(signal.SIGSTOP, pids)
        send(signal.SIGKILL, pids)
        for path in thaw:
            files.write(path, "THAWED")
        return not pids

    if not files.until(done):
        left = listed(procs_files)
        raise KernelError(errno.EBUSY, f"kill({', '.join(procs_files)})", hint=f"still alive: {_shown(left)}")


def _signal(number: signal.Signals, pids: Sequence[int], procs_files: Sequence[str]) -> None:
    handles: dict[int, Fd] = {}
    try:
        for pid in pids:
            if pid == 0:
                raise KernelError(
                    errno.ESRCH, "pidfd_open(0)", hint="a process of the group is in a pid namespace above"
                )
            try:
                handles[pid] = pidfd_open(pid)
            except ProcessLookupError:
                continue
        # The list is read again once the handles are open: what is still in it is what
        # the handle means, so a number that was reused meanwhile is never hit.
        for pid in handles.keys() & set(listed(procs_files)):
            try:
                signal.pidfd_send_signal(handles[pid].fileno(), number)
            except ProcessLookupError:
                continue
            except OSError as problem:
                raise failed(problem, f"pidfd_send_signal({pid}, {number.name})") from None
    finally:
        for handle in handles.values():
            handle.close()


def kill_group(folder: str) -> None:
    """
    Kill all processes of a v2 group and below it, in one call that no fork escapes.

    The kernel signals the first thread of each. Where that has ended while others go on, it does not hear:
    such processes are killed one by one.

    Raises:
        KernelError: EBUSY, with the pids that are left; others if the file refuses.

    Kernel: cgroup.kill, Linux ≥ 5.14.
    """
    try:
        files.write(f"{folder}/cgroup.kill", "1")
    except KernelError as problem:
        if problem.errno in (errno.ENOENT, errno.ENODEV) and not os.path.exists(folder):
            return
        raise

    def ended(patience: float = 0) -> bool:
        return files.wait(f"{folder}/cgroup.events", "populated 0", patience)

    def done() -> bool:
        lists = [f"{group}/cgroup.procs" for group in files.tree(folder)]
        pids = [pid for pid in listed(lists) if pid]
        for start in range(0, len(pids), _BATCH):
            _signal(signal.SIGKILL, pids[start : start + _BATCH], lists)
        return ended()

    if not ended(_HEARD) and not files.until(done):
        left = listed(f"{group}/cgroup.procs" for group in files.tree(folder))
        raise KernelError(
            errno.EBUSY, f'write("{folder}/cgroup.kill", "1")', hint=f"still alive: {_shown(left)}"
        )


def remove(folder: str) -> None:
    """
    Remove a group that has no processes but perhaps some that are about to be gone.

    Raises:
        KernelError: EBUSY, with the pids that are left.
    """
    # A task leaves its group a moment after its end is reported.
    if not files.rmdir(folder) and not files.until(lambda: files.rmdir(folder)):
        left = listed([f"{folder}/cgroup.procs"])
        raise KernelError(errno.EBUSY, f'rmdir("{folder}")', hint=f"still in it: {_shown(left)}")


def remove_tree(folder: str) -> None:
    """Remove a group and all below it. Raises: as `remove`."""
    for below in files.tree(folder):
        remove(below)


def _shown(pids: Sequence[int]) -> str:
    return (
        ", ".join(map(str, pids[:20])) + (f" and {len(pids) - 20} more" if len(pids) > 20 else "")
        or "none listed"
    )
