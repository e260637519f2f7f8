"""What cannot be removed keeps nothing else from being removed, and nobody from beginning; nothing grows."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxlib import CGroup, KernelError, Mount, Sandbox, Volume
from sandboxlib.engine.volumes import folder
from sandboxlib.host import CGroupHost, Host
from sandboxlib.kernel.cgroup import create, sweep
from sandboxlib.kernel.cgroup.common import KEPT
from sandboxlib.kernel.cgroup.files import subgroups
from sandboxlib.kernel.owner import PREFIX, owner_token

from groups import RUN_FOLDER, fresh_name, host_fixture, leak_fixture

pytestmark = pytest.mark.userns
__all__ = ["host_fixture", "leak_fixture"]


@contextlib.contextmanager
def readonly(place: str) -> Iterator[None]:
    """A hierarchy, in this mount namespace only, in which nothing can be removed."""
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def name_of_the_dead(number: int) -> str:
    """A name that nobody living has."""
    namespace, pid, start = owner_token().split("-")
    return f"{namespace}-{pid}-{int(start) - 1}-{number}"


# ---- cgroups -----------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.cgroup1("memory", "pids")
@pytest.mark.parametrize("controller", ["memory", "pids"])
def test_a_group_that_cannot_be_removed_keeps_no_other(host: CGroupHost, controller: str) -> None:
    group = create(host, CGroup(memory_max="64M", pids_max=5), name_of_the_dead(1))
    other = {name: path for name, path in group.paths.items() if path != group.paths[controller]}
    with readonly(host.bases[controller]):
        with pytest.raises(KernelError, match=r"Read-only file system \(EROFS\)"):
            group.close()
        assert not any(map(os.path.exists, other.values()))
        assert os.path.exists(group.paths[controller])
    # Closing again carries on.
    group.close()
    assert not os.path.exists(group.paths[controller])


@pytest.mark.root
@pytest.mark.cgroup1("memory", "pids")
def test_nor_does_one_of_a_dead_program(host: CGroupHost) -> None:
    groups = [create(host, CGroup(memory_max="64M", pids_max=5), name_of_the_dead(n)) for n in (1, 2, 3)]
    with readonly(host.bases["memory"]):
        with pytest.raises(KernelError, match=r"Read-only file system \(EROFS\)") as caught:
            sweep(host, RUN_FOLDER)
        # The two others.
        assert sum("(EROFS)" in note for note in caught.value.__notes__) == 2
        for group in groups:
            assert [name for name, path in group.paths.items() if os.path.exists(path)] == ["memory"]
    assert sweep(host, RUN_FOLDER) == 3
    for group in groups:
        group.close()


@pytest.mark.cgroup("memory", "pids")
def test_groups_below_do_not_keep_those_of_a_dead_program(host: CGroupHost) -> None:
    group = create(host, CGroup(pids_max=5), name_of_the_dead(4))
    below = [f"{path}/below" for path in dict.fromkeys(group.paths.values())]
    for path in below:
        Path(path).mkdir()
    # On v1 there are more hierarchies than controllers that were asked for.
    assert sweep(host, RUN_FOLDER) >= 2 * len(below)
    assert not any(map(os.path.exists, group.paths.values()))
    group.close()


# ---- volumes -----------------------------------------------------------------------------------------


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where volumes are, of which the removal of two was begun by programs that are dead."""
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(tmp_path / "state"))
    place = Path(folder())
    for name in ("one", "two"):
        below = place / f".removed-{name}" / "folder"
        below.mkdir(parents=True)
        (below / "file").write_text("x")
    for each in (place.parent, place):
        each.chmod(0o700)
    return place


def left(place: Path) -> list[str]:
    return sorted(os.listdir(place))


def test_what_is_left_of_volumes_goes_with_the_next_removal(volumes: Path) -> None:
    (volumes / "mine").mkdir()
    Volume.remove("mine")
    assert left(volumes) == []


def test_and_with_all_that_nobody_uses(volumes: Path) -> None:
    assert Volume.prune() == ()
    assert left(volumes) == []


def test_and_with_the_next_sandbox_that_has_one(volumes: Path) -> None:
    with contextlib.suppress(KernelError), Sandbox(mounts=[Volume("mine").at("/v")]):
        # A file system that cannot be ID-mapped says so later.
        pass
    assert left(volumes) == ["mine"]


@pytest.mark.root
@pytest.mark.parametrize("stuck", ["one", "two"])
def test_one_that_cannot_be_removed_keeps_no_other_and_nobody(volumes: Path, stuck: str) -> None:
    mounted = volumes / f".removed-{stuck}" / "folder"
    subprocess.run(["mount", "-t", "tmpfs", "sandboxlib-test", mounted], check=True)
    try:
        with pytest.raises(KernelError, match=r"\(EBUSY\)"):
            Volume.prune()
        assert left(volumes) == [f".removed-{stuck}"]
        (volumes / "mine").mkdir()
        with pytest.warns(RuntimeWarning, match=r"has left cannot be removed: .*\(EBUSY\)"):
            Volume.remove("mine")
        assert left(volumes) == [f".removed-{stuck}"]
    finally:
        subprocess.run(["umount", mounted], check=True)
    Volume.prune()
    assert left(volumes) == []


def test_what_somebody_is_removing_is_left_to_him(volumes: Path) -> None:
    import fcntl

    with (volumes / ".lock-.removed-one").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Volume.prune()
        assert left(volumes) == [".lock-.removed-one", ".removed-one"]
    Volume.prune()
    assert left(volumes) == []


# ---- layers ------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.overlay
@pytest.mark.parametrize("stuck", [1, 2])
def test_a_layer_that_cannot_be_removed_keeps_no_other_and_nobody(tmp_path: Path, stuck: int) -> None:
    names = [PREFIX + name_of_the_dead(number) for number in (1, 2)]
    for name in names:
        (tmp_path / name / "upper").mkdir(parents=True)
        Path(RUN_FOLDER, f"storage-{name}").symlink_to(tmp_path)
    mounted = tmp_path / names[stuck - 1] / "upper"
    subprocess.run(["mount", "-t", "tmpfs", "sandboxlib-test", mounted], check=True)
    command = [
        sys.executable,
        "-c",
        "import sandboxlib; print(sandboxlib.run(['echo', 'x'], text=True).stdout)",
    ]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout == "x\n\n"
        assert "RuntimeWarning: what a program that was killed has left cannot be removed" in done.stderr
        assert "(EBUSY)" in done.stderr
        assert os.listdir(tmp_path) == [names[stuck - 1]]
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert subprocess.run(command, check=True, capture_output=True, text=True).stderr == ""
    assert os.listdir(tmp_path) == []


# ---- growth ------------------------------------------------------------------------------------------


@pytest.mark.cgroup("memory", "pids")
def test_a_group_does_not_grow_with_each_limit_that_a_command_had(host: CGroupHost) -> None:
    group = create(host, CGroup(pids_max=50), fresh_name())
    try:
        folders = list(dict.fromkeys(group.paths.values()))

        def leaves() -> int:
            return max(len(subgroups(path)) for path in folders)

        plain = group.leaf()
        plain.release()
        for number in range(100):
            leaf = group.leaf(CGroup(pids_max=number % 40 + 2))
            leaf.release()
        assert leaves() <= KEPT
        # Those that were asked for last are there again, and that without limits.
        before = leaves()
        for limits in (None, CGroup(pids_max=99 % 40 + 2), CGroup(pids_max=98 % 40 + 2)):
            group.leaf(limits).release()
            assert leaves() == before
    finally:
        group.close()


def hosts() -> int:
    gc.collect()
    return sum(type(each) is Host for each in gc.get_objects())


def test_a_program_that_binds_another_file_each_time_does_not_grow(tmp_path: Path) -> None:
    def plans(begin: int) -> int:
        for number in range(begin, begin + 70):
            path = tmp_path / str(number)
            path.touch()
            Sandbox(mounts=[Mount.bind(path, "/tmp/file")]).plan()
        return hosts()

    # As many as are kept by the caches of what is asked for again.
    for number in range(2):
        plans(70 * number)
    full = plans(140)
    assert plans(210) <= full
