"""The removal of groups whose owner is dead."""

from __future__ import annotations

import errno
import os

from sandboxlib.errors import KernelError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import files, processes
from sandboxlib.kernel.owner import PREFIX, is_dead


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
        KernelError: A group of a dead owner cannot be emptied or removed.
    """
    dead: list[str] = []
    for base in dict.fromkeys(host.bases.values()):
        found = [path for path in files.subgroups(base) if PREFIX in path]
        dead += [path for path in found if is_dead(os.path.basename(path), run_folder)]
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
