"""What /proc tells of one process, read in a way that what runs inside cannot make slow or large."""

from __future__ import annotations

from sandboxlib.errors import KernelError
from sandboxlib.kernel.syscall import read_file

#: States in which a process does nothing until something else happens: stopped, traced, asleep for a signal,
#: and the time in which it is a zombie. Not D, which waits for a disk, nor R.
IDLE = frozenset("TtSZ")


#: Of a task that is ending: include/linux/sched.h.
_PF_EXITING = 0x4


def _fields(pid: int) -> list[bytes]:
    """What stands in a process's ``stat`` from its third field on."""
    # The name may hold spaces and brackets: count from the last bracket.
    return read_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def state(pid: int) -> str:
    """
    The letter of a process's state; empty if it has gone.

    Kernel: proc_pid_stat(5), field 3.
    """
    try:
        return _fields(pid)[0].decode()
    except (KernelError, IndexError):
        return ""


def is_dead(pid: int) -> bool:
    """
    Has a process ended with all its threads, whether or not it was waited for?

    Kernel: proc_pid_stat(5), fields 3 and 20.
    """
    try:
        fields = _fields(pid)
        return fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
    except (KernelError, IndexError):
        return True


def parent(pid: int) -> int:
    """
    The parent of a process. Raises: ProcessLookupError: It has gone.

    Kernel: proc_pid_stat(5), field 4.
    """
    try:
        return int(_fields(pid)[1])
    except (KernelError, IndexError):
        raise ProcessLookupError(pid) from None


def is_exiting(pid: int) -> bool:
    """
    Is a process ending? Raises: KernelError: It has gone.

    Kernel: proc_pid_stat(5), field 9.
    """
    return bool(int(_fields(pid)[6]) & _PF_EXITING)


__all__ = ["IDLE", "is_dead", "is_exiting", "parent", "state"]
