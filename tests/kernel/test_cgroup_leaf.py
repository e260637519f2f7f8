"""A group for each command: what it used, its OOM and its kill are its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import SpecError, StateError
from sandboxlib.kernel.cgroup import Group
from sandboxlib.result import Usage

from groups import HOG, SPIN, Make, host_fixture, leak_fixture, make_fixture, python, run, start, wait_for

pytestmark = pytest.mark.cgroup("memory", "pids")
__all__ = ["host_fixture", "leak_fixture", "make_fixture"]

IDLE = "import signal; print('here', flush=True); signal.pause()"


def used(group: Group, *command: str) -> Usage:
    """Run a command in a leaf of its own."""
    leaf = group.leaf()
    began = time.monotonic()
    status, _ = run(leaf, *command)
    assert status == 0
    wait_for(lambda: leaf.usage(0).pids_peak is None or not leaf.pids())
    usage = leaf.usage(time.monotonic() - began)
    leaf.release()
    return usage


def test_a_leaf_counts_its_command_with_all_children(make: Make) -> None:
    group = make(pids_max=50)
    source = f"""
import os
b = bytearray(30 << 20)
if os.fork() == 0:
    if os.fork() == 0:
        exec({SPIN.format(0.2)!r})
    else:
        os.wait()
    os._exit(0)
os.wait()
"""
    usage = used(group, *python(source))
    assert usage.cpu_user is not None
    assert usage.cpu_system is not None
    assert 0.2 <= usage.cpu_user + usage.cpu_system <= usage.wall * (os.cpu_count() or 1) + 0.1
    assert usage.memory_peak is None or 30 << 20 <= usage.memory_peak < 60 << 20
    assert usage.pids_peak in (None, 3)
    assert usage.oom_kills == 0


def test_the_next_command_starts_at_zero(make: Make) -> None:
    group = make(pids_max=50)
    used(group, *python(f"b = bytearray(40 << 20)\n{SPIN.format(1)}"))
    used(group, "sh", "-c", "sleep 0 & sleep 0 & sleep 0 & wait")
    for _ in range(3):
        usage = used(group, "/bin/true")
        assert usage.cpu_user is not None
        assert usage.cpu_system is not None
        assert 0 <= usage.cpu_user + usage.cpu_system < 0.6
        assert min(usage.cpu_user, usage.cpu_system) >= 0
        assert usage.memory_peak is None or usage.memory_peak < 8 << 20
        assert usage.pids_peak in (None, 1)


def test_page_cache_of_one_command_is_not_counted_for_the_next(make: Make, tmp_path: Path) -> None:
    group = make(pids_max=50)
    used(group, "dd", "if=/dev/zero", f"of={tmp_path / 'file'}", "bs=1M", "count=16", "status=none")
    usage = used(group, "/bin/true")
    assert usage.memory_peak is None or usage.memory_peak < 8 << 20


@pytest.mark.cgroup1("memory", "pids")
def test_a_small_command_makes_no_folder_on_v1(make: Make) -> None:
    group = make(pids_max=50)
    used(group, "/bin/true")
    before = _inodes(group)
    for _ in range(3):
        used(group, "/bin/true")
        assert _inodes(group) == before
    assert len(before) == len(set(group.paths.values()))


@pytest.mark.cgroup2("memory", "pids")
def test_a_small_command_makes_no_folder_on_v2(make: Make) -> None:
    group = make(pids_max=50)
    used(group, "/bin/true")
    before = _inodes(group)
    used(group, "/bin/true")
    assert _inodes(group) == before
    # Before Linux 6.12 a peak cannot be set back: a folder is not kept, and the next command gets its own.
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert bool(before) == (release >= (6, 12))


def _inodes(group: Group) -> set[tuple[str, int]]:
    entries = (entry for folder in set(group.paths.values()) for entry in os.scandir(folder))
    return {(entry.path, entry.inode()) for entry in entries if entry.is_dir()}


@pytest.mark.cgroup2("io")
def test_reading_and_writing_files_is_counted(make: Make, tmp_path: Path) -> None:
    group = make(pids_max=50)
    usage = used(
        group,
        "dd",
        "if=/dev/zero",
        f"of={tmp_path / 'file'}",
        "bs=1M",
        "count=4",
        "oflag=direct",
        "status=none",
    )
    assert usage.io_written is not None
    assert 4 << 20 <= usage.io_written < 8 << 20
    usage = used(
        group, "dd", f"if={tmp_path / 'file'}", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"
    )
    assert usage.io_read is not None
    assert 4 << 20 <= usage.io_read < 8 << 20
    assert usage.io_written == 0


def test_killing_one_command_spares_the_others(make: Make) -> None:
    group = make(pids_max=50)
    one, other = group.leaf(), group.leaf()
    with (
        start(one, "sh", "-c", "sleep 60 & setsid sleep 60 & wait", stdout=subprocess.DEVNULL) as first,
        start(other, *python(IDLE), stdout=subprocess.PIPE) as second,
    ):
        wait_for(lambda: len(one.pids()) == 3)
        wait_for(lambda: other.pids() == [second.pid])
        assert set(group.pids()) == {*one.pids(), *other.pids()}
        one.kill()
        assert one.pids() == []
        assert first.wait(5) == -signal.SIGKILL
        assert second.poll() is None
        other.kill()
    assert second.returncode == -signal.SIGKILL
    one.release()
    other.release()
    # Nothing that was killed is used again.
    assert used(group, "/bin/true").pids_peak in (None, 1)


def test_what_a_command_leaves_running_goes_on_until_the_end(make: Make) -> None:
    group = make(pids_max=50)
    leaf = group.leaf()
    status, out = run(leaf, "sh", "-c", "sleep 60 > /dev/null & echo $!")
    assert status == 0
    daemon = int(out)
    leaf.usage(1)
    leaf.release()
    assert group.pids() == [daemon]
    assert used(group, "/bin/true").pids_peak in (None, 1)
    assert group.pids() == [daemon]
    group.close()
    wait_for(lambda: not _is_alive(daemon))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_commands_own_limit_kills_it_alone(make: Make) -> None:
    group = make(memory_max="256M", memory_swap_max=0)
    small, large = group.leaf(CGroup(memory_max="24M", memory_swap_max=0)), group.leaf()
    assert run(large, *python(HOG, 60))[0] == 0
    assert run(small, *python(HOG, 60))[0] == -signal.SIGKILL
    assert (small.oom_kills(), large.oom_kills()) == (1, 0)
    assert small.usage(1).oom_kills == 1
    assert large.usage(1).oom_kills == 0
    small.release()
    large.release()
    # Used again, it has the same limit and a new count.
    again = group.leaf(CGroup(memory_max="24M", memory_swap_max=0))
    assert again.oom_kills() == 0
    assert run(again, *python(HOG, 60))[0] == -signal.SIGKILL
    assert again.oom_kills() == 1
    again.release()
    assert group.events().oom_kill == 2


def test_an_oom_of_the_whole_group_is_counted_where_the_victim_was(make: Make) -> None:
    group = make(memory_max="48M", memory_swap_max=0)
    leaf, bystander = group.leaf(), group.leaf()
    assert run(leaf, *python(HOG, 200))[0] == -signal.SIGKILL
    assert (leaf.oom_kills(), bystander.oom_kills()) == (1, 0)
    leaf.release()
    bystander.release()
    assert group.events().oom_kill == 1


def test_an_oom_is_signalled_while_it_happens(make: Make) -> None:
    group = make(memory_max="48M", memory_swap_max=0)
    leaf = group.leaf()
    fd, event = leaf.oom_fd()
    poll = select.poll()
    poll.register(fd, event)
    assert not [found for _, found in poll.poll(0) if found & event]
    assert run(leaf, *python(HOG, 200))[0] == -signal.SIGKILL
    assert [found & event for _, found in poll.poll(5000)] == [event]
    leaf.release()


@pytest.mark.cgroup("cpu")
def test_a_command_can_have_limits_of_a_controller_that_the_group_has_not(make: Make) -> None:
    group = make(pids_max=20)
    leaf = group.leaf(CGroup(cpu_max=0.2, pids_max=3))
    began = time.monotonic()
    assert run(leaf, *python(SPIN.format(0.2)))[0] == 0
    assert time.monotonic() - began > 0.6
    assert leaf.cpu_seconds() >= 0.2
    leaf.release()


@pytest.mark.parametrize("limits", [CGroup(memory_max="65M"), CGroup(pids_max=11)])
def test_a_commands_limit_above_the_groups_is_refused(limits: CGroup, make: Make) -> None:
    group = make(memory_max="64M", pids_max=10)
    with pytest.raises(SpecError, match="the sandbox's own"):
        group.leaf(limits)


@pytest.mark.cgroup("cpu")
def test_a_command_that_joined_during_an_update_gets_its_limits(make: Make) -> None:
    group = make(pids_max=10)
    leaf = group.leaf()
    files = leaf.join_files()
    group.update(CGroup(cpu_max=0.1))
    script = 'for file; do echo 0 > "$file" || exit 9; done; echo joined; while :; do :; done'
    with subprocess.Popen(["/bin/sh", "-c", script, "sh", *files], stdout=subprocess.PIPE) as late:
        assert late.stdout is not None
        assert late.stdout.readline() == b"joined\n"
        leaf.joined(files)
        before, began = leaf.cpu_seconds(), time.monotonic()
        time.sleep(0.6)
        spent, allowed = leaf.cpu_seconds() - before, 0.1 * (time.monotonic() - began)
        assert spent < allowed + 0.2
        leaf.kill()
    leaf.release()


def test_a_released_leaf_tells_nothing_of_the_next_command(make: Make) -> None:
    leaf = make(pids_max=5).leaf()
    leaf.release()
    leaf.release()
    for use in (lambda: leaf.usage(1), leaf.kill, leaf.pids, leaf.oom_kills, leaf.cpu_seconds):
        with pytest.raises(StateError):
            use()


def test_a_first_process_moves_aside_for_the_commands(make: Make) -> None:
    group = make(pids_max=20)
    files = [*group.join_files(), *group.init_files()]
    script = 'for file; do echo 0 > "$file" || exit 9; done; echo joined; exec sleep 60'
    with subprocess.Popen(["/bin/sh", "-c", script, "sh", *files], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"joined\n"
        group.enable_leaves()
        assert used(group, "/bin/true").pids_peak in (None, 1)
        assert group.pids() == [first.pid]
        with subprocess.Popen(["sleep", "60"]) as late:
            group.add(late.pid)
            assert set(group.pids()) == {first.pid, late.pid}
            group.kill()
    assert (first.returncode, late.returncode) == (-signal.SIGKILL, -signal.SIGKILL)
    leaf = group.leaf()
    assert leaf.clone_folder is None or os.path.isdir(leaf.clone_folder)
    leaf.release()
    assert group.clone_folder is None


def test_threads_use_one_group_at_once(make: Make) -> None:
    group = make(pids_max=200)
    wrong: list[object] = []

    def work(number: int) -> None:
        for _ in range(10):
            leaf = group.leaf()
            status, out = run(leaf, "sh", "-c", f"exec echo {number}")
            usage = leaf.usage(1)
            if (status, out) != (0, b"%d\n" % number) or usage.pids_peak not in (None, 1):
                wrong.append((status, out, usage))
            leaf.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert group.pids() == []
