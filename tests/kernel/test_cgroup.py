"""Limits of cgroups bite, on whichever version this machine has."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import KernelError, SpecError, UnsupportedError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import Group, create
from sandboxlib.kernel.cgroup.files import tree

from groups import (
    HOG,
    SPIN,
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

# --- limits -----------------------------------------------------------------------------------------


def test_a_memory_bomb_is_killed_and_counted(make: Make) -> None:
    group = make(memory_max="48M", memory_swap_max=0)
    status, out = run(group, *python(HOG, 200))
    assert (status, out) == (-signal.SIGKILL, b"")
    events = group.events()
    assert events.oom_kill == 1
    assert events.memory_max > 0
    stats = group.stats().memory
    assert stats is not None
    assert (stats.max, stats.oom_kill) == (48 << 20, 1)
    assert stats.peak is None or 40 << 20 <= stats.peak <= 48 << 20


def test_what_fits_is_not_killed(make: Make) -> None:
    group = make(memory_max="48M")
    assert run(group, *python(HOG, 20)) == (0, b"filled\n")
    assert group.events().oom_kill == 0


def test_forks_above_the_limit_are_refused_and_counted(make: Make) -> None:
    group = make(pids_max=5)
    source = """
import os, time
made = 0
os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
for _ in range(20):
    try:
        if os.fork() == 0:
            os.close(1)
            time.sleep(60)
        made += 1
    except BlockingIOError as error:
        print(made, error.errno, flush=True)
        break
"""
    status, out = run(group, *python(source))
    # It is one of the five itself.
    assert (status, out) == (0, b"4 %d\n" % errno.EAGAIN)
    stats = group.stats().pids
    assert stats is not None
    assert stats.max == 5
    assert stats.current == 4
    assert group.events().pids_max == 1


@pytest.mark.cgroup("cpu")
def test_a_cpu_quota_throttles(make: Make) -> None:
    group = make(cpu_max=0.2)
    began = time.monotonic()
    status, _ = run(group, *python(SPIN.format(0.2)))
    wall = time.monotonic() - began
    stats = group.stats().cpu
    assert stats is not None
    assert status == 0
    # 0.2 s of work at a fifth of a CPU; bursts of one period are the kernel's right.
    assert wall > 0.6
    assert stats.throttled_periods > 0
    assert stats.throttled > 0.1
    assert 0.2 <= stats.usage < wall * 0.2 + 0.15


@pytest.mark.cgroup("cpu")
def test_weights_divide_a_cpu(make: Make) -> None:
    groups = [make(cpu_weight=100), make(cpu_weight=800)]
    cpu = min(os.sched_getaffinity(0))
    source = f"import os\nos.sched_setaffinity(0, [{cpu}])\nprint('ready', flush=True)\nwhile True: pass"
    spinners = [start(group, *python(source), stdout=subprocess.PIPE) for group in groups]
    try:
        for spinner in spinners:
            assert spinner.stdout is not None
            assert spinner.stdout.readline() == b"ready\n"
        used = [_cpu(group) for group in groups]
        time.sleep(1)
        light, heavy = (_cpu(group) - before for group, before in zip(groups, used, strict=True))
        assert heavy > 3 * light
    finally:
        for group, spinner in zip(groups, spinners, strict=True):
            group.kill()
            spinner.communicate()


def _cpu(group: Group) -> float:
    stats = group.stats().cpu
    assert stats is not None
    return stats.usage


@pytest.mark.qemu
@pytest.mark.cgroup("cpuset")
def test_pinning_holds_inside(make: Make) -> None:
    cpu = max(os.sched_getaffinity(0))
    group = make(cpuset_cpus=[cpu])
    status, out = run(group, *python("import os; print(os.sched_getaffinity(0))"))
    assert (status, out) == (0, b"{%d}\n" % cpu)


@pytest.mark.qemu
@pytest.mark.cgroup("cpuset")
def test_a_cpu_that_is_not_there_is_refused(make: Make) -> None:
    with pytest.raises(SpecError) as caught:
        make(cpuset_cpus="0,4000")
    assert caught.value.field == "cpuset_cpus"


def test_io_is_throttled_and_counted(make: Make, host: CGroupHost, tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    if "io" not in host.bases or not os.path.exists(f"/sys/dev/block/{name}/queue"):
        pytest.skip(f"needs the io controller and a disk of its own below /tmp, not {name}")
    group = make(io_max=[(name, {"wbps": "2M"})])
    source = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
block = mmap.mmap(-1, 1 << 18)
for _ in range(8):
    os.write(fd, block)
"""
    began = time.monotonic()
    status, _ = run(group, *python(source, tmp_path / "file"))
    assert status == 0
    assert time.monotonic() - began > 0.6
    stats = group.stats().io
    assert stats is not None
    assert stats[name].wbytes >= 2 << 20
    assert stats[name].wios >= 8


@pytest.mark.parametrize("device", ["/dev/null", "/nowhere", "4000:4000"])
def test_io_limits_for_what_is_no_disk_are_refused(device: str, make: Make, host: CGroupHost) -> None:
    if "io" not in host.bases:
        pytest.skip("needs the io controller")
    with pytest.raises(SpecError) as caught:
        make(io_max=[(device, {"rbps": 1})])
    assert (caught.value.field, caught.value.value) == ("io_max", device)


@pytest.mark.root
def test_devices_that_are_not_listed_cannot_be_opened(make: Make, host: CGroupHost, tmp_path: Path) -> None:
    node = str(tmp_path / "node")
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 11))  # kmsg
    probe_it = "import sys, os\ntry: os.open(sys.argv[1], os.O_RDONLY)\nexcept OSError as e: print(e.errno)"
    assert run(make(), *python(probe_it, node)) == (0, b"")
    group = make(devices=[])
    assert run(group, *python(probe_it, node)) == (0, b"%d\n" % errno.EPERM)
    for allowed in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"):
        assert run(group, *python(probe_it, allowed)) == (0, b"")
    make_it = probe_it.replace(
        "os.open(sys.argv[1], os.O_RDONLY)", "os.mknod(sys.argv[1], 0o20666, 257)"
    )  # mem
    assert run(group, *python(make_it, tmp_path / "mem")) == (0, b"%d\n" % errno.EPERM)
    group.update(CGroup(devices=["c 1:11 r"]))
    assert run(group, *python(probe_it, node)) == (0, b"")
    group.update(CGroup(devices=[]))
    assert run(group, *python(probe_it, node)) == (0, b"%d\n" % errno.EPERM)


@pytest.mark.unprivileged
def test_a_plain_user_gets_no_device_rules(as_user: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = """
from sandboxlib.cgroup import CGroup
from sandboxlib.errors import UnsupportedError
try:
    CGroup(devices=[]).open()
except UnsupportedError as error:
    print("refused" if error.hint or error.needs else "without a word")
"""
    assert as_user(script).stdout == "refused\n"


@pytest.mark.cgroup2("memory")
def test_v2_has_memory_high_low_min_and_group_kills(make: Make) -> None:
    group = make(memory_max="64M", memory_high="32M", memory_low="1M", memory_min="1M", memory_oom_group=True)
    for file, text in (("high", 32 << 20), ("low", 1 << 20), ("min", 1 << 20), ("oom.group", 1)):
        assert Path(group.paths["memory"], f"memory.{file}").read_text() == f"{text}\n"
    # Without swap there is nothing to reclaim: it is slowed down to a crawl, not killed.
    with start(group, *python(HOG, 40), stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: group.events().memory_high > 0)
        assert process.poll() is None
        group.kill()


@pytest.mark.cgroup2("memory")
def test_v2_kills_the_whole_group_when_asked(make: Make) -> None:
    group = make(memory_max="48M", memory_swap_max=0, memory_oom_group=True)
    with start(group, "sleep", "60") as bystander:
        assert run(group, *python(HOG, 200))[0] == -signal.SIGKILL
        assert bystander.wait(5) == -signal.SIGKILL


@pytest.mark.cgroup2("memory")
def test_raw_v2_files_are_written(make: Make) -> None:
    group = make(unified={"cgroup.max.depth": "3", "memory.high": "8388608"})
    assert Path(group.paths["memory"], "cgroup.max.depth").read_text() == "3\n"
    assert Path(group.paths["memory"], "memory.high").read_text() == "8388608\n"


@pytest.mark.cgroup1("memory")
@pytest.mark.parametrize("field", ["memory_high", "memory_low", "memory_min"])
def test_v1_refuses_what_it_does_not_have(field: str, make: Make) -> None:
    with pytest.raises(UnsupportedError) as caught:
        make(**{field: "1M"})
    assert caught.value.feature == field


def test_a_controller_that_is_missing_is_refused(host: CGroupHost) -> None:
    bases = {name: folder for name, folder in host.bases.items() if name != "memory"}
    poor = CGroupHost(version=host.version, bases=bases, hint="ask root")
    with pytest.raises(UnsupportedError, match="ask root"):
        create(poor, CGroup(memory_max="1M"), fresh_name())


def test_without_any_hierarchy_there_is_no_group() -> None:
    with pytest.raises(UnsupportedError, match="the way out"):
        create(CGroupHost(hint="the way out"), CGroup(), fresh_name())


def test_a_limit_above_the_parents_is_refused_with_both_numbers(make: Make, host: CGroupHost) -> None:
    parent = make(memory_max="64M", pids_max=20)
    inner = CGroupHost(version=host.version, bases={name: parent.paths[name] for name in ("memory", "pids")})
    for fields, limit in (({"memory_max": "65M"}, 64 << 20), ({"pids_max": 21}, 20)):
        with pytest.raises(SpecError) as caught:
            create(inner, CGroup(**fields), fresh_name())
        assert str(limit) in caught.value.allowed
    create(inner, CGroup(memory_max="64M", pids_max=20), fresh_name()).close()
    group = create(inner, CGroup(), fresh_name())
    with pytest.raises(SpecError):
        group.update(CGroup(memory_max="65M"))
    group.close()


@pytest.mark.cgroup1("cpu")
def test_a_failure_half_way_leaves_nothing_on_v1(make: Make, host: CGroupHost) -> None:
    parent = make(cpu_max=0.1)
    inner = CGroupHost(version=1, bases=host.bases | {"cpu": parent.paths["cpu"]})
    before = found_groups(host)
    with pytest.raises(KernelError) as caught:
        create(inner, CGroup(cpu_max=0.5), fresh_name())
    assert caught.value.errno == errno.EINVAL
    assert caught.value.call.startswith('write("/')
    assert caught.value.call.endswith('/cpu.cfs_quota_us", "50000")')
    assert "allows less" in caught.value.hint
    assert found_groups(host) == before
    assert tree(parent.paths["cpu"]) == [parent.paths["cpu"]]


@pytest.mark.cgroup2("memory")
def test_a_failure_half_way_leaves_nothing_on_v2(make: Make, host: CGroupHost) -> None:
    before = found_groups(host)
    with pytest.raises(KernelError) as caught:
        make(pids_max=5, unified={"memory.high": "nonsense"})
    assert caught.value.errno == errno.EINVAL
    assert caught.value.call.endswith('/memory.high", "nonsense")')
    assert found_groups(host) == before


@pytest.mark.cgroup2("memory")
def test_a_file_that_the_kernel_lacks_is_unsupported(make: Make, host: CGroupHost) -> None:
    before = found_groups(host)
    with pytest.raises(UnsupportedError, match=r"memory\.nonsense"):
        make(unified={"memory.nonsense": "1"})
    assert found_groups(host) == before
