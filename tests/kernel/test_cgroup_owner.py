"""Groups of programs that were killed are removed, and nobody else's; a plain user's groups."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxlib.cgroup import CGroup
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import create
from sandboxlib.kernel.cgroup import sweep as sweep_all
from sandboxlib.kernel.owner import PREFIX, owner_token, remove_locks

from groups import (
    RUN_FOLDER,
    Make,
    found_groups,
    fresh_name,
    host_fixture,
    leak_fixture,
    make_fixture,
    python,
    run,
    start,
    wait_for,
)

pytestmark = pytest.mark.cgroup("memory", "pids")
__all__ = ["host_fixture", "leak_fixture", "make_fixture"]

# Makes a group with a command in a leaf and a frozen one, says the command's pid, and waits for its end.
OWNER = """
import os, subprocess, sys, time
from sandboxlib.cgroup import CGroup
from sandboxlib.kernel.cgroup import create, probe
from sandboxlib.kernel.folders import run_folder
from sandboxlib.kernel.owner import Owner
owner = Owner(run_folder(os.geteuid()))
owner.hold("test")
group = create(probe(), CGroup(pids_max=20), owner.name())
leaf = group.leaf()
join = 'for file; do echo 0 > "$file"; done; echo $$; exec sleep 60'
sleeper = subprocess.Popen(["setsid", "sh", "-c", join, "sh", *leaf.join_files()], stdout=subprocess.PIPE)
pid = sleeper.stdout.readline().decode().strip()
if "freeze" in sys.argv:
    group.freeze()
print(pid, flush=True)
time.sleep(60)
"""


def sweep(host: CGroupHost) -> int:
    """Remove what the dead have left."""
    count = sweep_all(host, RUN_FOLDER)
    remove_locks(RUN_FOLDER)
    return count


def owner(*arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a program that owns a group, and the pid of the process in it."""
    command = list(python(OWNER, *arguments))
    command.remove("-I")
    command.remove("-S")
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("state", ["running", "freeze"])
def test_the_groups_of_a_killed_program_are_emptied_and_removed(state: str, host: CGroupHost) -> None:
    process, sleeper = owner(state)
    with process:
        made = found_groups(host, process.pid)
        assert made
        # Alive, it keeps what it has.
        sweep(host)
        assert found_groups(host, process.pid) == made
        process.kill()
    handle = os.pidfd_open(sleeper)
    try:
        sweep(host)
        assert found_groups(host, process.pid) == set()
        # A pidfd is readable once its process has ended, collected or not.
        assert select.select([handle], [], [], 10)[0]
    finally:
        os.close(handle)


def test_several_programs_sweep_at_once(host: CGroupHost) -> None:
    owners = [owner("freeze" if number % 2 else "running") for number in range(4)]
    for process, _ in owners:
        process.kill()
        process.communicate()
    sweepers = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                sweep(host)
                status = 0
            finally:
                os._exit(status)
        sweepers.append(child)
    assert [os.waitpid(child, 0)[1] for child in sweepers] == [0, 0, 0, 0]
    assert not [path for process, _ in owners for path in found_groups(host, process.pid)]


def test_opening_a_group_sweeps(host: CGroupHost) -> None:
    process, _ = owner()
    with process:
        process.kill()
    assert found_groups(host, process.pid)
    with CGroup(pids_max=5).open() as group:
        assert found_groups(host, process.pid) == set()
        assert found_groups(host) == set(group.paths.values())
    remove_locks(RUN_FOLDER)


def test_a_recycled_pid_is_not_taken_for_the_owner(host: CGroupHost) -> None:
    namespace, pid, start_time = owner_token().split("-")
    group = create(host, CGroup(), f"{namespace}-{pid}-{int(start_time) - 1}-0")
    folders = set(group.paths.values())
    assert sweep(host) >= len(folders)
    assert not any(map(os.path.exists, folders))
    group.close()


@pytest.mark.parametrize("name", ["1-2-3-4", "something", "4026531836-1-x-0"])
def test_what_is_not_known_to_be_dead_stays(name: str, host: CGroupHost) -> None:
    group = create(host, CGroup(), name)
    try:
        sweep(host)
        assert all(map(os.path.isdir, group.paths.values()))
    finally:
        group.close()


def test_a_child_of_the_program_is_another_owner(make: Make, host: CGroupHost) -> None:
    group = make(pids_max=5)
    child = os.fork()
    if child == 0:
        # What the parent has made is not the child's to sweep, nor the other way round.
        sweep(host)
        os._exit(0 if fresh_name().startswith(owner_token()) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(map(os.path.isdir, group.paths.values()))


def test_groups_are_below_no_group_of_another(make: Make) -> None:
    for folder in make().paths.values():
        assert os.path.basename(folder).startswith(PREFIX)
        assert "process_api" not in folder


def test_two_hundred_groups_leave_nothing(host: CGroupHost) -> None:
    before = found_groups(host)
    groups = [create(host, CGroup(memory_max="16M", pids_max=4), fresh_name()) for _ in range(200)]
    leaves = [group.leaf() for group in groups]
    with start(leaves[100], "sleep", "60") as process:
        wait_for(lambda: leaves[100].pids() == [process.pid])
        for group in groups:
            group.close()
    assert process.returncode == -signal.SIGKILL
    assert found_groups(host) == before


@pytest.mark.unprivileged
@pytest.mark.root
def test_a_plain_user_without_a_delegated_group_is_told_the_way_out(
    as_user: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script = """
from sandboxlib.cgroup import CGroup
from sandboxlib.errors import UnsupportedError
try:
    CGroup(memory_max="64M").open()
except UnsupportedError as error:
    print(error.hint)
"""
    hint = as_user(script).stdout
    assert "systemd" in hint
    assert "root" in hint


@pytest.mark.cgroup2("memory", "pids")
def test_a_program_in_the_only_folder_it_has_moves_aside(make: Make) -> None:
    group = make(pids_max=50)
    script = """
import subprocess
from sandboxlib.cgroup import CGroup
own = lambda: open("/proc/self/cgroup").read().strip().rpartition("/")[2]
for _ in range(2):
    with CGroup(memory_max="64M").open() as group, subprocess.Popen(["sleep", "60"]) as sleeper:
        group.add(sleeper.pid)
        print(own(), group.pids() == [sleeper.pid])
        group.kill()
"""
    folder = next(iter(group.paths.values()))
    command = [argument for argument in python(script) if argument not in ("-I", "-S")]
    status, out = run(group, "env", f"SANDBOXLIB_CGROUP={folder}", *command)
    assert (status, out) == (0, b"supervisor True\n" * 2)


@pytest.mark.root
@pytest.mark.unprivileged
@pytest.mark.cgroup2("memory", "pids")
def test_a_plain_user_uses_a_folder_that_was_handed_over(
    as_user: Callable[..., subprocess.CompletedProcess[str]], make: Make
) -> None:
    import users

    # Joining needs the folder to be above the program too, so that runs in a group of it from the start.
    group = make(pids_max=100)
    group.init_files()
    group.enable_leaves()
    folder = next(iter(group.paths.values()))
    for path in (folder, f"{folder}/init"):
        for name in ("", "cgroup.procs", "cgroup.subtree_control"):
            os.chown(f"{path}/{name}", users.UID, users.UID)
    script = """
import subprocess
from sandboxlib.cgroup import CGroup
with CGroup(memory_max="64M", pids_max=5).open() as group:
    sleeper = subprocess.Popen(["sleep", "60"])
    group.add(sleeper.pid)
    print(group.path, group.stats().memory.max, group.pids() == [sleeper.pid])
    group.kill()
    print(sleeper.wait())
"""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Path(group.init_files()[0]).write_text("0")
            done = as_user(script, env={"SANDBOXLIB_CGROUP": folder}, check=False)
            first, second, *_ = done.stdout.splitlines() or [done.stderr, ""]
            path, limit, found = first.split()[:3]
            status = (
                0
                if path.startswith(folder) and (limit, found, second) == (str(64 << 20), "True", "-9")
                else 2
            )
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
