"""Groups that are in use: changed, frozen, killed, closed, on whichever version this machine has."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import KernelError, StateError
from sandboxlib.kernel.cgroup import Group

import needs
from groups import (
    HOG,
    Make,
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


def _cpu(group: Group) -> float:
    stats = group.stats().cpu
    assert stats is not None
    return stats.usage


def test_limits_are_raised_and_lowered_live(make: Make) -> None:
    group = make(memory_max="64M")
    for size in ("128M", "32M", "max", "96M"):
        group.update(CGroup(memory_max=size))
        stats = group.stats().memory
        assert stats is not None
        assert stats.max == (None if size == "max" else int(size[:-1]) << 20)


def test_limits_on_memory_and_swap_change_together(make: Make) -> None:
    group = make(memory_max="64M", memory_swap_max=0, pids_max=5)
    for size in ("128M", "32M", "96M"):
        group.update(CGroup(memory_max=size))
        stats = group.stats().memory
        assert stats is not None
        assert stats.max == (None if size == "max" else int(size[:-1]) << 20)
    group.update(CGroup(memory_swap_max="32M"))
    group.update(CGroup(memory_swap_max=0, pids_max=50))
    assert group.spec == CGroup(memory_max="96M", memory_swap_max=0, pids_max=50)
    assert run(group, *python(HOG, 80))[0] == 0
    group.update(CGroup(memory_max="40M"))
    assert run(group, *python(HOG, 80))[0] == -signal.SIGKILL


@pytest.mark.cgroup1("memory")
def test_v1_refuses_a_limit_below_what_is_used(make: Make) -> None:
    group = make(memory_max="128M")
    source = HOG + "\nsys.stdin.read()"
    with start(group, *python(source, 60), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"filled\n"
        with pytest.raises(KernelError) as caught:
            group.update(CGroup(memory_max="16M"))
        assert caught.value.errno == errno.EBUSY
        assert "cannot be reclaimed" in caught.value.hint
        assert group.spec == CGroup(memory_max="128M")
        process.communicate()
    assert process.returncode == 0


@pytest.mark.cgroup("cpu")
def test_a_change_that_is_refused_changes_nothing(make: Make) -> None:
    """The first of its fields are written by then, and taken back."""
    group = make(memory_max="128M", pids_max=9, cpu_weight=200)
    names = ["memory.max", "pids.max", "cpu.weight"]
    version = 2 if Path(group.paths["memory"], names[0]).exists() else 1
    if version == 1:
        names = ["memory.limit_in_bytes", "pids.max", "cpu.shares"]
    paths = [f"{group.paths[name.partition('.')[0]]}/{name}" for name in names]
    before, spec = [Path(path).read_text() for path in paths], group.spec
    with start(group, *python(HOG + "\nsys.stdin.read()", 60), stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"filled\n"
        # Version 1 gives no memory back that is in use; version 2 has files that take no such word.
        refused: dict[str, Any] = (
            {"memory_max": "16M"} if version == 1 else {"unified": {"memory.high": "little"}}
        )
        with pytest.raises(KernelError) as caught:
            group.update(CGroup(pids_max=5, cpu_weight=50, **refused))
        assert caught.value.errno == (errno.EBUSY if version == 1 else errno.EINVAL)
        assert not getattr(caught.value, "__notes__", [])
        assert [Path(path).read_text() for path in paths] == before
        assert group.spec == spec
        process.communicate()
    group.update(CGroup(pids_max=5))
    assert [Path(path).read_text() for path in paths] == [before[0], "5\n", before[2]]


@pytest.mark.cgroup("cpu")
def test_a_limit_of_another_controller_reaches_running_processes(make: Make) -> None:
    group = make(pids_max=20)
    with start(group, *python("print(1, flush=True)\nwhile True: pass"), stdout=subprocess.PIPE) as spinner:
        try:
            assert spinner.stdout is not None
            assert spinner.stdout.readline() == b"1\n"
            group.update(CGroup(cpu_max=0.1))
            before, began = _cpu(group), time.monotonic()
            time.sleep(0.6)
            spent, allowed = _cpu(group) - before, 0.1 * (time.monotonic() - began)
            assert spent < allowed + 0.2
        finally:
            group.kill()
    assert spinner.returncode == -signal.SIGKILL


def test_freezing_stops_and_thawing_goes_on(make: Make) -> None:
    group = make(pids_max=20)
    source = "import sys, time\nwhile True:\n    sys.stdout.write('x'); sys.stdout.flush(); time.sleep(0.001)"
    with start(group, *python(source), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        os.set_blocking(pipe, False)
        try:
            wait_for(lambda: _drain(pipe) > 0)
            for _ in range(2):
                group.freeze()
                _drain(pipe)
                time.sleep(0.1)
                assert _drain(pipe) == 0
                group.thaw()
                wait_for(lambda: _drain(pipe) > 0)
            group.freeze()
        finally:
            # Also what is frozen dies.
            group.kill()
    assert process.returncode == -signal.SIGKILL


def _drain(pipe: int) -> int:
    total = 0
    try:
        while data := os.read(pipe, 65536):
            total += len(data)
    except BlockingIOError:
        return total
    return total


# --- ends -------------------------------------------------------------------------------------------

BOMB = """
import os
print("armed", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


def test_a_fork_bomb_dies_at_once(make: Make) -> None:
    group = make(pids_max=40, memory_max="256M")
    with start(group, *python(BOMB), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"armed\n"
        wait_for(lambda: len(group.pids()) >= 40)
        group.kill()
        assert group.pids() == []
    assert process.returncode == -signal.SIGKILL
    # The group is as usable as before, once nobody's children have been collected.
    wait_for(lambda: _processes(group) == 0)
    assert run(group, *python("import os; print(os.fork() >= 0)"))[0] == 0


def _processes(group: Group) -> int:
    stats = group.stats().pids
    assert stats is not None
    return stats.current


def test_closing_kills_what_is_left_and_twice_is_fine(make: Make) -> None:
    group = make(pids_max=20)
    with start(group, *python("import signal; signal.signal(15, signal.SIG_IGN); signal.pause()")) as process:
        # It has joined everywhere, and is what it is to be. At first it may have the name of the tests' own
        # program: the kernel closes the pipe that Popen waits for before it gives it the shell's.
        wait_for(lambda: group.pids() == [process.pid])
        wait_for(lambda: not Path(f"/proc/{process.pid}/comm").read_text().startswith(("sh", "dash")))
        group.close()
        group.close()
    assert process.returncode == -signal.SIGKILL
    for use in (group.stats, group.leaf, group.events, group.freeze):
        with pytest.raises(StateError):
            use()


def test_a_process_that_runs_already_is_added(make: Make) -> None:
    group = make(pids_max=20)
    with subprocess.Popen(["sleep", "60"]) as process:
        group.add(process.pid)
        assert group.pids() == [process.pid]
        group.kill()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(KernelError) as caught:
        group.add(process.pid)
    assert caught.value.errno == errno.ESRCH


def test_the_value_opens_alone() -> None:
    with CGroup(memory_max="64M").open() as group, subprocess.Popen(["sleep", "60"]) as process:
        group.add(process.pid)
        stats = group.stats()
        assert stats.memory is not None
        assert stats.memory.max == 64 << 20
        assert stats.pids is not None
        assert stats.pids.current == 1
        group.update(memory_max="128M")
        assert group.spec == CGroup(memory_max="128M")
        group.freeze()
        group.thaw()
        assert group.events.oom_kill == 0
        assert os.path.isdir(group.path)
        assert group.path in group.paths.values()
        group.kill()
        assert process.wait(5) == -signal.SIGKILL
    assert not any(map(os.path.exists, group.paths.values()))


def test_a_group_that_cannot_be_emptied_is_named(make: Make) -> None:
    # Another group inside, which is not ours to know of, holds the folder.
    group = make()
    inner = f"{next(iter(group.paths.values()))}/foreign"
    os.mkdir(inner)
    group.close()
    assert not os.path.exists(inner)


@pytest.mark.qemu
@pytest.mark.psi
@pytest.mark.cgroup2("cpu")
def test_pressure_is_told(make: Make) -> None:
    group = make(cpu_max=0.2)
    before = group.stats()
    assert before.pressure is not None
    spin = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    assert run(group, *python(spin))[0] == 0
    after = group.stats().pressure
    assert after is not None
    assert set(after) >= {"cpu", "memory"}
    # It ran for a fifth of the time, and waited for the rest.
    assert after["cpu"].some.total - before.pressure["cpu"].some.total > 0.5
    assert 0 <= after["cpu"].some.avg10 <= 1


@pytest.mark.cgroup2("cpu")
def test_pressure_is_none_just_where_the_kernel_does_not_count_it(make: Make) -> None:
    counts = needs.NEEDS["psi"][1]("") is None
    assert (make(cpu_max=0.5).stats().pressure is not None) == counts
