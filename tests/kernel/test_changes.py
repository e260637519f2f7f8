"""What has changed in a root file system since it was opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sandboxlib import Change, Mount, Namespace, Rootfs, Sandbox, Security, StateError, UnsupportedError

import trees
import users

pytestmark = pytest.mark.userns


def shown(changes: list[Change]) -> dict[str, str]:
    assert [change.path for change in changes] == sorted(change.path for change in changes)
    assert len({change.path for change in changes}) == len(changes)
    return {change.path: change.kind for change in changes}


# --- the host view and the empty root -----------------------------------------------------------------


def test_nothing_has_changed_at_first() -> None:
    for rootfs in (None, Rootfs.empty(), Rootfs.host(paths=["/etc/hostname"])):
        with Sandbox(rootfs=rootfs) as sb:
            assert sb.changes() == []
    with Sandbox(security=Security(without=["read-only-root", "proc-subset"])) as sb:
        assert sb.changes() == []


def test_what_is_written_to_the_host_view_is_told() -> None:
    with Sandbox(mounts=[Mount.tmpfs("/work/mounted")]) as sb:
        sb.sh(
            "mkdir -p a/b; echo > a/b/file; ln -s a link; echo > /home/x; echo > /tmp/y; echo > mounted/z; "
            "chmod 700 /run"
        )
        assert shown(sb.changes()) == {
            "/home/x": "added",
            "/run": "modified",
            "/tmp/y": "added",
            "/work/a": "added",
            "/work/a/b": "added",
            "/work/a/b/file": "added",
            "/work/link": "added",
        }
        sb.sh("rm -r a link /home/x /tmp/y; chmod 755 /run")
        assert sb.changes() == []


@pytest.mark.root
def test_what_the_user_owns_from_the_start_is_no_change() -> None:
    with Sandbox(security=Security(user=1000)) as sb:
        assert sb.changes() == []
        sb.sh("chmod 700 /work; mkdir -m 0 /work/mine")
        assert shown(sb.changes()) == {"/work": "modified", "/work/mine": "added"}


def test_a_root_that_can_be_written_is_compared_with_how_it_was_made() -> None:
    with Sandbox(security=Security(without=["read-only-root"])) as sb:
        sb.sh("echo x >> /etc/hosts; rm /etc/passwd; ln -sfn elsewhere /bin; mkdir /new")
        # A name of the same length.
        sb.files.write("/etc/hostname", b"SANDBOX\n")
        assert shown(sb.changes()) == {
            "/bin": "modified",
            "/etc/hostname": "modified",
            "/etc/hosts": "modified",
            "/etc/passwd": "deleted",
            "/new": "added",
        }


def test_of_an_empty_root_everything_is_told() -> None:
    with Sandbox(rootfs=Rootfs.empty()) as sb:
        sb.files.write("/a/b", b"1", parents=True)
        sb.files.remove("/dev/stdin")
        assert shown(sb.changes()) == {"/a": "added", "/a/b": "added", "/dev/stdin": "deleted"}


def test_names_of_any_bytes_are_told() -> None:
    with Sandbox() as sb:
        sb.sh(r"touch $(printf '\377\n\t')")
        assert shown(sb.changes()) == {"/work/\udcff": "added"}


# --- folders ------------------------------------------------------------------------------------------


def test_a_folder_that_is_only_read_does_not_change(tmp_path: Path) -> None:
    folder, mounts = trees.system(tmp_path / "root")
    with Sandbox(rootfs=Rootfs.directory(folder), mounts=mounts) as sb:
        assert sb.sh("touch /new").returncode != 0
        assert sb.changes() == []


def test_of_a_folder_that_is_written_to_nobody_knows(tmp_path: Path) -> None:
    folder, mounts = trees.system(tmp_path / "root")
    rootfs = Rootfs.directory(folder, readonly=False)
    told = pytest.raises(UnsupportedError, match=r"Rootfs\.overlay")
    with Sandbox(rootfs=rootfs, mounts=mounts) as sb, told:
        sb.changes()


def test_of_a_tree_that_is_shared_nobody_knows() -> None:
    with (
        Sandbox() as first,
        Sandbox(namespaces=[Namespace.of(first, "user"), Namespace.of(first, "mount")]) as sb,
        pytest.raises(UnsupportedError, match="joined"),
    ):
        sb.changes()


def test_a_closed_sandbox_has_no_changes() -> None:
    with Sandbox() as sb:
        pass
    with pytest.raises(StateError, match="closed"):
        sb.changes()


# --- overlays -----------------------------------------------------------------------------------------

#: What is in the lower layer, what is done to it, what is told.
SCENARIOS: dict[str, tuple[str, str, dict[str, str]]] = {
    "nothing": ("mkdir d; touch d/f", "true", {}),
    "looking": ("mkdir d; echo 1 > d/f", "cat d/f; ls -lR d", {}),
    "a new file": ("mkdir -p d/e", "touch d/e/f", {"/t/d/e/f": "added"}),
    "a new folder": (
        "touch x",
        "mkdir -p a/b; touch a/b/c",
        {"/t/a": "added", "/t/a/b": "added", "/t/a/b/c": "added"},
    ),
    "other content": ("mkdir d; echo 1 > d/f", "echo 2 >> d/f", {"/t/d/f": "modified"}),
    "other bits": ("touch f; mkdir d", "chmod 700 f d", {"/t/d": "modified", "/t/f": "modified"}),
    "other times": ("touch f", "touch -d 2001-01-01 f", {"/t/f": "modified"}),
    "a file removed": ("mkdir d; touch d/f", "rm d/f", {"/t/d/f": "deleted"}),
    "a folder removed": ("mkdir -p d/e; touch d/e/f", "rm -r d", {"/t/d": "deleted"}),
    "made and removed": ("touch x", "mkdir a; touch a/b; rm -r a", {}),
    "removed and made again": (
        "mkdir d; touch d/f d/g; mkdir d/h",
        "rm -r d; mkdir d; touch d/g",
        {"/t/d/f": "deleted", "/t/d/g": "modified", "/t/d/h": "deleted"},
    ),
    "a file renamed": ("echo 1 > f", "mv f g", {"/t/f": "deleted", "/t/g": "added"}),
    "a folder renamed": (
        "mkdir -p d/e; touch d/e/f",
        "mv d x",
        {"/t/d": "deleted", "/t/x": "added", "/t/x/e": "added", "/t/x/e/f": "added"},
    ),
    "one renamed over another": ("echo 1 > f; echo 2 > g", "mv f g", {"/t/f": "deleted", "/t/g": "modified"}),
    "a file in place of a folder": ("mkdir d; touch d/f", "rm -r d; touch d", {"/t/d": "modified"}),
    "a folder in place of a file": (
        "touch f",
        "rm f; mkdir f; touch f/x",
        {"/t/f": "modified", "/t/f/x": "added"},
    ),
    "a link to elsewhere": ("ln -s a l", "ln -sfn b l", {"/t/l": "modified"}),
    "a second name": ("echo 1 > f", "ln f g", {"/t/f": "modified", "/t/g": "added"}),
    "a name of two": ("echo 1 > f; ln f g", "echo 2 >> f", {"/t/f": "modified"}),
    "deep in the tree": (
        "mkdir -p a/b/c/d/e; touch a/b/c/d/e/f",
        "rm a/b/c/d/e/f; chmod 711 a/b/c",
        {"/t/a/b/c": "modified", "/t/a/b/c/d/e/f": "deleted"},
    ),
}


def lower(folder: Path, script: str) -> tuple[Path, list[Mount]]:
    root, mounts = trees.system(folder)
    (root / "t").mkdir()
    (root / "t").chmod(0o755)
    assert os.system(f"cd {root}/t && umask 022 && ({script})") == 0
    return root, mounts


def snapshot(folder: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found.append((str(path), status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content))
    return found


@pytest.mark.overlay
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_overlay_tells_what_was_done(tmp_path: Path, name: str) -> None:
    before, script, expected = SCENARIOS[name]
    root, mounts = lower(tmp_path / "root", before)
    state = snapshot(root)
    with Sandbox(
        rootfs=Rootfs.overlay(lower=[root], storage=trees.storage(tmp_path)),
        mounts=[*mounts, Mount.tmpfs("/made/for/this")],
    ) as sb:
        assert sb.changes() == []
        done = sb.sh(f"cd /t && {script}")
        assert done.returncode == 0, done.stderr
        assert shown(sb.changes()) == expected
    assert snapshot(root) == state


@pytest.mark.overlay
def test_what_is_beside_a_mount_is_told(tmp_path: Path) -> None:
    root, mounts = lower(tmp_path / "root", "true")
    with Sandbox(
        rootfs=Rootfs.overlay(lower=[root], storage=trees.storage(tmp_path)),
        mounts=[*mounts, Mount.tmpfs("/made/for/this")],
    ) as sb:
        sb.sh("touch /made/x /made/for/this/not")
        assert shown(sb.changes()) == {"/made/x": "added"}


@pytest.mark.overlay
def test_several_layers_are_seen_as_one(tmp_path: Path) -> None:
    root, mounts = lower(tmp_path / "root", "mkdir d; echo 1 > d/low; echo 1 > d/both")
    top = tmp_path / "top"
    (top / "t" / "d").mkdir(parents=True)
    (top / "t" / "d" / "both").write_text("2")
    (top / "t" / "d" / "top").write_text("2")
    with Sandbox(
        rootfs=Rootfs.overlay(lower=[top, root], storage=trees.storage(tmp_path)), mounts=mounts
    ) as sb:
        assert sb.sh("cd /t/d; rm low both; echo 3 > top; echo > new").returncode == 0
        assert shown(sb.changes()) == {
            "/t/d/both": "deleted",
            "/t/d/low": "deleted",
            "/t/d/new": "added",
            "/t/d/top": "modified",
        }


@pytest.mark.root
@pytest.mark.overlay
def test_what_a_layer_hides_was_not_there(tmp_path: Path) -> None:
    """Layers with whiteouts and opaque folders, as those of an image are."""
    root, mounts = lower(tmp_path / "root", "mkdir -p gone hidden/sub; touch gone/f hidden/sub/f hidden/g w")
    top = tmp_path / "top"
    (top / "t" / "hidden").mkdir(parents=True)
    os.setxattr(top / "t" / "hidden", "trusted.overlay.opaque", b"y")
    (top / "t" / "hidden" / "shown").touch()
    for name in ("gone", "w"):
        os.mknod(top / "t" / name, stat.S_IFCHR, 0)
    with Sandbox(
        rootfs=Rootfs.overlay(lower=[top, root], storage=trees.storage(tmp_path)), mounts=mounts
    ) as sb:
        assert sb.files.list("/t") == ["hidden"]
        assert sb.sh("cd /t; mkdir gone; touch gone/f w; touch hidden/sub; rm hidden/shown").returncode == 0
        assert shown(sb.changes()) == {
            "/t/gone": "added",
            "/t/gone/f": "added",
            "/t/hidden/shown": "deleted",
            "/t/hidden/sub": "added",
            "/t/w": "added",
        }
        sb.sh("rm -r /t/hidden; mkdir /t/hidden")
        assert shown(sb.changes())["/t/hidden/shown"] == "deleted"


@pytest.mark.overlay
def test_a_disk_holds_what_is_written_and_keeps_nothing(tmp_path: Path) -> None:
    root, mounts = lower(tmp_path / "root", "mkdir d; touch d/f")
    storage = tmp_path / "storage"
    storage.mkdir()
    with Sandbox(rootfs=Rootfs.overlay(lower=[root], storage=storage), mounts=mounts) as sb:
        assert len(list(storage.iterdir())) == 1
        assert (
            sb.sh("cd /t; rm d/f; mkdir -m 0 d/closed; touch new; head -c 3M /dev/zero > big").returncode == 0
        )
        assert shown(sb.changes()) == {
            "/t/big": "added",
            "/t/d/closed": "added",
            "/t/d/f": "deleted",
            "/t/new": "added",
        }
    assert list(storage.iterdir()) == []


SUBORDINATE = """
import os, tempfile
folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)
os.chmod(folder.name, 0o755)
from sandboxlib import Rootfs, Sandbox, Security
os.makedirs("lower/t"); os.makedirs("storage")
os.chmod("lower/t", 0o777)
here = os.getcwd()
for storage in ("tmpfs", here + "/storage"):
    rootfs = Rootfs.overlay(lower=[here + "/lower"], storage=storage)
    with Sandbox(rootfs=rootfs, security=Security(user=1000)) as sb:
        # As a user whose number is not the caller's, in folders that only this user may enter.
        sb.files.mkdir("/t/closed", 0o700)
        sb.files.mkdir("/t/closed/deep", 0o700)
        sb.files.write("/t/closed/deep/file", b"x", mode=0o600)
        assert sb.files.stat("/t/closed").st_uid == 1000
        print([tuple(change) for change in sb.changes()])
    print(os.listdir("storage"))
with Sandbox(security=Security(user=1000)) as sb:
    sb.sh("mkdir -m 700 closed; touch closed/f")
    print([tuple(change) for change in sb.changes()])
"""


@pytest.mark.unprivileged
@pytest.mark.overlay
@pytest.mark.kernel("6.6")
@pytest.mark.tool("newuidmap")
def test_a_user_sees_what_subordinate_users_did(as_user: Callable[..., CompletedProcess[str]]) -> None:
    lines = as_user(SUBORDINATE, subids=True, env={"PYTHONPATH": str(users.CHECKOUT)}).stdout.splitlines()
    files = "[('added', '/t/closed'), ('added', '/t/closed/deep'), ('added', '/t/closed/deep/file')]"
    assert lines == [files, "[]", files, "[]", "[('added', '/work/closed'), ('added', '/work/closed/f')]"]
