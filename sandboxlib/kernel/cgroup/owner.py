"""
Names that say whose a group is, and the removal of groups whose owner is dead.

A group's folder is ``sandboxlib-<pid namespace>-<pid>-<start time>-<number>``. It stands directly in
the folder that the host gives us, with no folder of ours in between: that would have to
be made and removed once more for each controller, by every program.
"""

from __future__ import annotations

import errno
import itertools
import os
import re

from sandboxlib.errors import KernelError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import files, processes

PREFIX = "sandboxlib-"
_FOLDER = re.compile(PREFIX + r"(\d+)-(\d+)-(\d+)-\d+", re.ASCII)
_numbers = itertools.count()
# The token with the pid it was made for: after a fork it is made anew.
_token = (0, "")


def owner_token() -> str:
    """
    This program as ``<inode of its pid namespace>-<pid>-<start time in ticks>``.

    The start time tells it from a later program with the same pid.

    Kernel: proc_pid_stat(5), field 22.
    """
    global _token  # noqa: PLW0603 - a cache for as long as the process is the same
    pid = os.getpid()
    if _token[0] != pid:
        inode = os.stat("/proc/self/ns/pid").st_ino
        _token = (pid, f"{inode}-{pid}-{_start_time('self')}")
    return _token[1]


def fresh_name() -> str:
    """A name for a group that no other has."""
    return f"{owner_token()}-{next(_numbers)}"


def sweep(host: CGroupHost) -> int:
    """
    Remove the groups of owners that are dead, and kill what is in them.

    Only owners of this pid namespace can be told dead from alive; the others' groups
    are left alone. Several programs may sweep at once.

    Returns:
        How many folders were removed.

    Raises:
        KernelError: A group of a dead owner cannot be emptied or removed.
    """
    dead: list[str] = []
    for base in dict.fromkeys(host.bases.values()):
        dead += [path for path in files.subgroups(base) if PREFIX in path and is_dead(os.path.basename(path))]
    if not dead:
        return 0
    folders = [folder for path in dead for folder in files.tree(path)]
    if host.version == 2:
        for path in dead:
            processes.kill_group(path)
    else:
        # Each file is in one hierarchy only. Without the one of pids, a fork bomb is
        # outrun by repetition.
        for path in (f"{path}/pids.max" for path in dead):
            _write_if_there(path, "0")
        for path in (f"{path}/freezer.state" for path in dead):
            # What is frozen dies when it is thawed; nothing can fork any more.
            _write_if_there(path, "THAWED")
        processes.kill_listed([f"{folder}/cgroup.procs" for folder in folders])
    for folder in folders:
        processes.remove(folder)
    return len(folders)


def _write_if_there(path: str, text: str) -> None:
    try:
        files.write(path, text)
    except KernelError as problem:
        # Another hierarchy's folder, or another program has swept it meanwhile.
        if problem.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def _start_time(pid: str) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        # The command's name may hold spaces and brackets: count from the last bracket.
        return file.read().rpartition(")")[2].split()[19]


def is_dead(folder: str) -> bool:
    """Tell whether the owner named by a folder's name has certainly ended."""
    match = _FOLDER.fullmatch(folder)
    # A /proc of another pid namespace would show other processes under these numbers.
    if (
        match is None
        or match[1] != owner_token().partition("-")[0]
        or os.readlink("/proc/self") != str(os.getpid())
    ):
        return False
    pid = match[2]
    try:
        # Asked first, since /proc may hide the processes of others (hidepid= in proc(5)).
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    try:
        # Start times are shown by the reader's clock: in another time namespace they
        # differ for one and the same process.
        return _start_time(pid) != match[3] and _clock(pid) == _clock("self")
    except OSError:
        # It ended meanwhile, or is another user's and hidden: the next sweep will see.
        return False


def _clock(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/time")
    except FileNotFoundError:
        # A kernel without time namespaces has one clock for all.
        return ""
