"""What cgroup v2 alone has: CPUs of one's own, latency, groups within groups, and a kill that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxlib import CGroup, Outcome, Sandbox, Security
from sandboxlib.errors import SpecError, TimeoutExpired, UnsupportedError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import create

from groups import (
    HOG,
    Make,
    fresh_name,
    host_fixture,
    leak_fixture,
    make_fixture,
    python,
    run,
    start,
    wait_for,
)

pytestmark = pytest.mark.cgroup2("memory", "pids")
__all__ = ["host_fixture", "leak_fixture", "make_fixture"]


def folder(group: object) -> Path:
    paths = getattr(group, "paths", None)
    return Path(next(iter(paths.values())) if paths else group.folder)  # type: ignore[attr-defined]


# --- CPUs of one's own ------------------------------------------------------------------------------


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.cgroup2("cpuset")
@pytest.mark.parametrize("kind", ["root", "isolated"])
def test_a_partition_has_its_cpus_to_itself(kind: str) -> None:
    every = os.sched_getaffinity(0)
    own = max(every)
    with Sandbox(cgroup=CGroup(cpuset_cpus=[own], cpuset_cpus_partition=kind)) as sb:  # type: ignore[arg-type]
        done = sb.run(["python3", "-c", "import os; print(os.sched_getaffinity(0))"], text=True)
        assert done.stdout == f"{{{own}}}\n"
        assert os.sched_getaffinity(0) == every - {own}
        # It is not for the taking meanwhile.
        with pytest.raises(SpecError, match="cpuset_cpus"):
            Sandbox(cgroup=CGroup(cpuset_cpus=[own])).__enter__()
    assert os.sched_getaffinity(0) == every


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.cgroup2("cpuset")
def test_a_partition_that_cannot_be_is_refused_in_the_kernels_words_and_undone(make: Make) -> None:
    every = sorted(os.sched_getaffinity(0))
    with pytest.raises(UnsupportedError, match="Parent unable to distribute cpu downstream"):
        make(cpuset_cpus=every, cpuset_cpus_partition="root")
    group = make(cpuset_cpus=every[-1:])
    for change in (
        CGroup(cpuset_cpus=every, cpuset_cpus_partition="isolated"),
        CGroup(cpuset_cpus=every, unified={"cpuset.cpus.partition": "isolated"}),
    ):
        with pytest.raises(UnsupportedError, match="cpuset_cpus_partition='isolated'"):
            group.update(change)
        assert partition(group) == ("member", str(every[-1]))
        assert group.spec == CGroup(cpuset_cpus=every[-1:])
    assert sorted(os.sched_getaffinity(0)) == every


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.cgroup2("cpuset")
def test_a_partition_is_given_up_live(make: Make) -> None:
    every = os.sched_getaffinity(0)
    group = make(cpuset_cpus=[max(every)], cpuset_cpus_partition="root")
    group.update(CGroup(cpuset_cpus_partition="member"))
    assert os.sched_getaffinity(0) == every


def partition(group: object) -> tuple[str, str]:
    """What the kernel says that a group is, and which CPUs were asked for."""
    names = ("cpuset.cpus.partition", "cpuset.cpus")
    kind, cpus = [(folder(group) / name).read_text().strip() for name in names]
    return kind, cpus


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.cgroup2("cpuset")
@pytest.mark.parametrize("kind", ["root", "isolated"])
def test_a_partition_whose_cpus_change_is_one_afterwards_or_they_do_not_change(kind: str, make: Make) -> None:
    first, *_, last = sorted(os.sched_getaffinity(0))
    group = make(cpuset_cpus=[last], cpuset_cpus_partition=kind)
    # What it has already it may have, though nobody else has it to give.
    group.update(CGroup(cpuset_cpus=[last]))
    assert partition(group) == (kind, str(last))
    spec = group.spec
    for change in (
        CGroup(cpuset_cpus=[first]),
        CGroup(cpuset_cpus=[first, last]),
        CGroup(pids_max=7, cpuset_cpus=[first]),
        CGroup(unified={"cpuset.cpus": str(first)}),
    ):
        with pytest.raises(UnsupportedError, match=r"partition's CPUs .*; the kernel says: \w+"):
            group.update(change)
        assert partition(group) == (kind, str(last))
        assert (folder(group) / "pids.max").read_text() == "max\n"
        assert group.spec == spec
    group.close()
    assert last in os.sched_getaffinity(0)


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.cgroup2("cpuset")
def test_a_commands_partition_ends_with_it(make: Make) -> None:
    last = max(os.sched_getaffinity(0))
    group = make(cpuset_cpus=[last], cpuset_cpus_partition="root")
    own = CGroup(cpuset_cpus=[last], cpuset_cpus_partition="root")
    effective = folder(group) / "cpuset.cpus.effective"
    for _ in range(3):
        leaf = group.leaf(own)
        assert effective.read_text() == "\n"
        assert run(leaf, *python("import os; print(os.sched_getaffinity(0))")) == (
            0,
            f"{{{last}}}\n".encode(),
        )
        leaf.usage(1.0)
        leaf.release()
        assert effective.read_text() == f"{last}\n"
    # It cannot go on without those of the group, which does not lose them.
    leaf = group.leaf(own)
    with pytest.raises(UnsupportedError, match="above a partition"):
        group.update(CGroup(cpuset_cpus_partition="member"))
    assert partition(group)[0] == "root"
    assert (folder(leaf) / "cpuset.cpus.partition").read_text() == "root\n"
    leaf.release()


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.cgroup2("cpuset")
def test_a_killed_programs_partition_is_anybodys_again() -> None:
    every = os.sched_getaffinity(0)
    source = f"""
import time
from sandboxlib import CGroup
with CGroup(cpuset_cpus=[{max(every)}], cpuset_cpus_partition="root").open():
    print("made", flush=True)
    time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"made\n"
        assert os.sched_getaffinity(0) == every - {max(every)}
        owner.kill()
    source = "from sandboxlib import Sandbox\nSandbox().open().close()"
    subprocess.run([sys.executable, "-c", source], check=True)
    assert os.sched_getaffinity(0) == every


# --- what a kernel may lack -------------------------------------------------------------------------


@pytest.mark.cgroup2("io")
@pytest.mark.parametrize(
    ("field", "file", "value"),
    [("io_latency", "io.latency", 10_000), ("io_weight", "io.weight", 50)],
)
def test_what_the_kernel_is_built_without_is_refused_and_not_left_out(
    field: str, file: str, value: int, make: Make
) -> None:
    device = os.stat("/scratch" if os.path.exists("/scratch") else "/").st_dev
    disk = f"{os.major(device)}:{os.minor(device)}"
    given = [(disk, value)] if field == "io_latency" else value
    plain = folder(make(io_max=[(disk, {"rbps": "max"})]))
    if not ((plain / file).exists() or (plain / file.replace("io.", "io.bfq.")).exists()):
        with pytest.raises(UnsupportedError) as caught:
            make(**{field: given})
        assert caught.value.feature == field
        assert file in caught.value.needs
        return
    made = folder(make(**{field: given}))
    written = [path for path in made.glob("io.*") if path.name in (file, file.replace("io.", "io.bfq."))]
    assert str(value) in "".join(path.read_text() for path in written)


@pytest.mark.root
def test_root_is_told_what_to_do_about_a_controller_that_there_is_not(make: Make) -> None:
    with pytest.raises(UnsupportedError) as caught:
        make(unified={"nonsense.max": "1"})
    assert caught.value.needs == "the nonsense cgroup controller"
    assert "boot a kernel that has it" in caught.value.hint


@pytest.mark.qemu
@pytest.mark.cgroup2("hugetlb")
def test_huge_pages_are_limited(make: Make) -> None:
    group = make(hugetlb_max={"2MB": "4M"})
    assert (folder(group) / "hugetlb.2MB.max").read_text() == f"{4 << 20}\n"
    group.update(CGroup(hugetlb_max={"2MB": "max"}))
    assert int((folder(group) / "hugetlb.2MB.max").read_text().replace("max", str(1 << 62))) > 1 << 40


@pytest.mark.cgroup2("cpu")
def test_who_is_idle_gets_what_nobody_else_wants(make: Make) -> None:
    spin = python("import time\nend = time.monotonic() + 3\nwhile time.monotonic() < end: pass")
    # On one CPU, so that they are in each other's way.
    pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *spin]
    idle, busy = make(cpu_idle=True), make(cpu_weight=100)
    with start(idle, *pinned) as one, start(busy, *pinned) as other:
        other.wait()
        shares = [group.stats().cpu for group in (idle, busy)]
        one.kill()
    assert shares[0] is not None
    assert shares[1] is not None
    assert shares[1].usage > 5 * shares[0].usage


# --- groups within groups ---------------------------------------------------------------------------


def test_a_group_within_a_group_has_the_outer_limit_too(make: Make, host: CGroupHost) -> None:
    outer = make(memory_max="64M", memory_swap_max=0, pids_max=10)
    outer.enable_leaves()
    inner = CGroupHost(version=2, bases=dict.fromkeys(host.bases, str(folder(outer))))
    group = create(inner, CGroup(memory_max="48M", pids_max=8), fresh_name())
    try:
        # What is lifted inside holds outside.
        group.update(CGroup(memory_max="max", pids_max="max"))
        assert run(group, *python(HOG, 200))[0] == -signal.SIGKILL
        assert outer.events().oom_kill == 1
        forks = """
import os, time
try:
    for _ in range(50):
        if not os.fork():
            time.sleep(1)
            os._exit(0)
except OSError:
    print("refused")
"""
        assert run(group, *python(forks))[1] == b"refused\n"
    finally:
        group.close()


def test_no_more_levels_than_were_allowed(make: Make, host: CGroupHost) -> None:
    group = make(unified={"cgroup.max.depth": "0"})
    with pytest.raises(BlockingIOError):
        (folder(group) / "below").mkdir()


def test_a_sandbox_sees_no_group_but_its_own_and_cannot_make_any() -> None:
    with Sandbox(memory="64M") as sb:
        assert "sandboxlib" not in sb.run(["cat", "/proc/self/cgroup"], text=True).stdout
        assert sb.run(["ls", "/sys/fs/cgroup"]).returncode != 0
    # With all rights inside it may mount them, from its own down; the limit is above.
    script = """
mkdir /tmp/c && mount -t cgroup2 none /tmp/c || exit 9
echo max >/tmp/c/memory.max || echo refused
echo max >/tmp/c/../c/pids.max || echo refused
mkdir /tmp/c/own || echo refused
cat /tmp/c/cgroup.procs >/dev/null
"""
    with Sandbox(memory="64M", security=Security(capabilities=["ALL"], seccomp="unconfined")) as sb:
        done = sb.sh(script, text=True)
        assert done.returncode == 0
        if os.geteuid() == 0:
            assert done.stdout.splitlines() == ["refused"] * 3
        assert sb.run([*python(HOG, 200)]).outcome is Outcome.OUT_OF_MEMORY


@pytest.mark.root
def test_a_threaded_group_is_no_place_for_sandboxes(make: Make, host: CGroupHost) -> None:
    group = make()
    threaded = folder(group) / "threaded"
    threaded.mkdir()
    try:
        (threaded / "cgroup.type").write_text("threaded")
        script = """
from sandboxlib import CGroup
try:
    with CGroup(memory_max="64M").open(): pass
except ValueError as error:
    print(error)
"""
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "SANDBOXLIB_CGROUP": str(threaded)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "SANDBOXLIB_CGROUP" in done.stdout
        assert "threaded" in done.stdout
    finally:
        threaded.rmdir()


# --- the end ----------------------------------------------------------------------------------------


def test_after_a_kill_every_command_lives(make: Make) -> None:
    # Some kernels kill at once what is cloned into a group on which cgroup.kill was written once.
    with Sandbox(pids=50) as sb:
        for _ in range(20):
            with pytest.raises(TimeoutExpired):
                sb.run(["sleep", "60"], timeout=0.02)
            assert sb.run(["true"]).outcome is Outcome.EXITED


def test_no_group_is_used_again_after_its_kill(make: Make) -> None:
    group = make()
    used = []
    for _ in range(5):
        leaf = group.leaf(None)
        with start(leaf, "sleep", "60") as process:
            wait_for(lambda leaf=leaf, process=process: process.pid in leaf.pids())  # type: ignore[misc]
            leaf.kill()
            assert process.wait(10) == -signal.SIGKILL
        leaf.release()
        used.append(leaf.join_files())
    assert len(set(used)) == 5
