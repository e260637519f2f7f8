"""The removal of groups whose owner is dead."""

from __future__ import annotations

import errno
import os

from sandboxlib.errors import KernelError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import files, partition, processes
from sandboxlib.kernel.owner import PREFIX, is_dead
from sandboxlib.kernel.removal import each


def sweep(host: CGroupHost, run_folder: str) -> int:
    """
    Remove the groups of owners that are dead, and kill what is in them.

    Several programs may sweep at once.

    Args:
        host: Where groups are.
        run_folder: Where their owners have their locks.

    Returns:
        How many folders were removed.

    Raises:
        KernelError: A group of a dead owner cannot be emptied or removed; all others are.
    """
    dead: dict[str, list[str]] = {}
    for base in dict.fromkeys(host.bases.values()):
        for path in files.subgroups(base):
            name = os.path.basename(path)
            if PREFIX in path and (name in dead or is_dead(name, run_folder)):
                dead.setdefault(name, []).append(path)
    removed = 0

    def remove(folder: str) -> None:
        nonlocal removed
        removed += len(files.tree(folder))
        processes.remove_tree(folder)

    def end(name: str) -> None:
        _kill(host, dead[name])
        each(remove, dead[name])

    each(end, dead)
    return removed


def _kill(host: CGroupHost, paths: list[str]) -> None:
    """Kill what is in a group: one folder on v2, one for each hierarchy on v1."""
    folders = [folder for path in paths for folder in files.tree(path)]
    if host.version == 2:
        each(processes.kill_group, paths)
        for folder in folders:
            # Or their CPUs come back some time after it only, see there.
            _write_if_there(f"{folder}/{partition.FILE}", "member")
        return
    # Each file is in one hierarchy only. Without the one of pids, a fork bomb is
    # outrun by repetition.
    for path in paths:
        _write_if_there(f"{path}/pids.max", "0")
    for folder in folders:
        # What is frozen dies when it is thawed; nothing can fork any more.
        _write_if_there(f"{folder}/freezer.state", "THAWED")
    processes.kill_listed([f"{folder}/cgroup.procs" for folder in folders])


def _write_if_there(path: str, text: str) -> None:
    try:
        files.write(path, text)
    except KernelError as problem:
        # Another hierarchy's folder, or another program has swept it meanwhile.
        if problem.errno not in (errno.ENOENT, errno.ENODEV):
            raise
