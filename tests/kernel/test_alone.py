"""Namespaces, file trees and networks that are opened alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sandboxlib import (
    KernelError,
    Namespace,
    Network,
    Rootfs,
    Sandbox,
    SpecError,
    StateError,
    UnsupportedError,
)

import trees
import users

pytestmark = pytest.mark.userns

KINDS = [
    "mount",
    "uts",
    "ipc",
    "network",
    "pid",
    "user",
    "cgroup",
    pytest.param("time", marks=pytest.mark.namespace("time")),
]
FILES = {"mount": "mnt", "network": "net"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_namespace_of_each_kind(kind: str) -> None:
    file = FILES.get(kind, kind)
    own = os.stat(f"/proc/self/ns/{file}").st_ino
    with Namespace(kind).open() as space, Namespace(kind).open() as other:
        assert len({space.inode, other.inode, own}) == 3
        assert os.fstat(space.fileno()).st_ino == space.inode == os.stat(space.path).st_ino
        assert os.readlink(space.path) == f"{file}:[{space.inode}]"
        assert not os.get_inheritable(space.fileno())
    assert os.stat(f"/proc/self/ns/{file}").st_ino == own
    with pytest.raises(StateError, match="closed"):
        space.fileno()
    space.close()


@pytest.mark.qemu
@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_own_and_one_that_is_joined(kind: str) -> None:
    with Namespace.host(kind).open() as own, Namespace.of("self", kind).open() as same:
        assert own.inode == same.inode == os.stat(f"/proc/self/ns/{FILES.get(kind, kind)}").st_ino
    with Sandbox() as sb, Namespace.of(sb, kind).open() as space:
        assert space.inode == Namespace.of(sb, kind).inode != own.inode


def test_what_is_joined_has_to_be_of_its_kind() -> None:
    for path in ("/proc/self/ns/uts", "/etc/passwd"):
        with pytest.raises(SpecError, match="file of a network namespace"):
            Namespace("network", path=path).open()
    with pytest.raises(KernelError) as caught:
        Namespace("network", path="/no/such/file").open()
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["network", "uts", "ipc"])
def test_a_sandbox_joins_it(kind: str) -> None:
    with Namespace(kind).open() as space:
        for _ in range(2):
            with Sandbox(namespaces=[Namespace(kind, path=space.path)]) as sb:
                assert Namespace.of(sb, kind).inode == space.inode
                assert sb.run(["true"]).returncode == 0


@pytest.mark.root
def test_its_loopback_is_up() -> None:
    with (
        Network.none().open() as net,
        Sandbox(network=Network("of", namespace=Namespace("network", path=net.namespace.path))) as sb,
    ):
        script = (
            "from socket import *; s = create_server(('127.0.0.1', 0)); create_connection(s.getsockname())"
        )
        assert sb.run(["python3", "-c", script]).returncode == 0


@pytest.mark.root
def test_an_own_mount_namespace_hears_nothing_of_the_host() -> None:
    with Namespace("mount").open() as space:
        lines = subprocess.run(
            ["nsenter", f"--mount={space.path}", "cat", "/proc/self/mountinfo"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    assert lines
    assert not [line for line in lines if "shared:" in line or "master:" in line]


@pytest.mark.root
def test_a_user_namespace_has_the_ids_that_were_asked_for() -> None:
    with Namespace("user", uid_map=[(0, 300000, 10)], gid_map=[(5, 400000, 20)]).open() as space:
        script = "cat /proc/self/uid_map /proc/self/gid_map"
        done = subprocess.run(
            ["nsenter", f"--user={space.path}", "-S", "0", "-G", "5", "sh", "-c", script],
            capture_output=True,
            check=True,
        )
    assert done.stdout.split() == [b"0", b"300000", b"10", b"5", b"400000", b"20"]


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.namespace("time")
def test_a_time_namespace_has_its_offsets() -> None:
    with Namespace("time", boottime_offset=100_000, monotonic_offset=-0.5).open() as space:
        script = "import time; print(time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic())"
        done = subprocess.run(
            ["nsenter", f"--time={space.path}", sys.executable, "-c", script], capture_output=True, check=True
        )
    import time

    boot, monotonic = map(float, done.stdout.split())
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) + 100_000 - boot < 5
    assert 0 <= time.monotonic() - 0.5 - monotonic < 5


def test_a_pid_namespace_lives_until_it_is_closed() -> None:
    space = Namespace("pid").open()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert len(children.read_text().split()) == 1
    space.close()
    assert children.read_text().split() == []


ENDS = """
import sys
from sandboxlib import Namespace, Rootfs
space, tree = Namespace("pid").open(), Rootfs.host().open()
print(space.launch.pid, flush=True)
sys.stdin.read()
"""


def test_it_ends_with_a_program_that_is_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": str(users.CHECKOUT)}
    with subprocess.Popen([sys.executable, "-c", ENDS], stdin=-1, stdout=-1, env=environment) as program:
        assert program.stdout is not None
        pidfd = os.pidfd_open(int(program.stdout.readline()))
        try:
            program.send_signal(signal.SIGKILL)
            program.wait()
            import select

            assert select.select([pidfd], [], [], 5)[0]
        finally:
            os.close(pidfd)


# --- file trees ---------------------------------------------------------------------------------------


@pytest.mark.overlay
def test_an_overlay_alone(tmp_path: Path) -> None:
    below, above = tmp_path / "below", tmp_path / "above"
    (below / "d").mkdir(parents=True)
    (below / "d" / "f").write_text("1")
    (below / "g").write_text("1")
    above.mkdir()
    (above / "h").write_text("2")
    mounts = Path("/proc/self/mountinfo").read_text()
    with Rootfs.overlay(lower=[above, below], storage=trees.storage(tmp_path)).open() as tree:
        assert sorted(os.listdir(tree.path)) == ["d", "g", "h"]
        assert tree.changes() == []
        root = Path(tree.path)
        (root / "d" / "f").unlink()
        (root / "g").write_text("2")
        (root / "new").mkdir()
        assert [tuple(change) for change in tree.changes()] == [
            ("deleted", "/d/f"),
            ("modified", "/g"),
            ("added", "/new"),
        ]
        # A program that is started finds it by this path as well.
        assert subprocess.run(["ls", tree.path], capture_output=True, check=True).stdout == b"d\ng\nh\nnew\n"
        assert (root / "new").stat().st_uid == os.geteuid()
    assert (below / "d" / "f").read_text() == (below / "g").read_text() == "1"
    assert Path("/proc/self/mountinfo").read_text() == mounts
    with pytest.raises(StateError, match="closed"):
        tree.changes()


@pytest.mark.overlay
@pytest.mark.kernel("6.6")
def test_an_overlay_alone_has_its_size(tmp_path: Path) -> None:
    overlay = Rootfs.overlay(lower=[tmp_path], size="1M")
    with overlay.open() as tree, pytest.raises(OSError, match="No space left"):
        Path(tree.path, "big").write_bytes(bytes(2 << 20))


@pytest.mark.overlay
def test_an_overlay_alone_on_a_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "storage").mkdir()
    with Rootfs.overlay(lower=[tmp_path / "lower"], storage=tmp_path / "storage").open() as tree:
        Path(tree.path, "new").write_text("1")
        assert [change.path for change in tree.changes()] == ["/new"]
    assert list((tmp_path / "storage").iterdir()) == []


def test_the_other_kinds_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    with Rootfs.host().open() as tree:
        names = set(os.listdir(tree.path))
        assert {"usr", "etc", "tmp", "work"} <= names
        assert not {"proc", "dev", "sys"} & names
        assert not Path(tree.path, "etc", "shadow").exists()
        with pytest.raises(OSError, match="Read-only"):
            Path(tree.path, "new").touch()
        Path(tree.path, "work", "new").touch()
        assert [tuple(change) for change in tree.changes()] == [("added", "/work/new")]
    with Rootfs.empty(size="1M").open() as tree:
        assert os.listdir(tree.path) == []
        Path(tree.path, "new").touch()
        assert [tuple(change) for change in tree.changes()] == [("added", "/new")]
    with Rootfs.directory(tmp_path).open() as tree:
        assert Path(tree.path, "file").read_text() == "1"
        with pytest.raises(OSError, match="Read-only"):
            Path(tree.path, "file").write_text("2")
        assert tree.changes() == []
    with Rootfs.directory(tmp_path, readonly=False).open() as tree:
        Path(tree.path, "file").write_text("2")
        with pytest.raises(UnsupportedError):
            tree.changes()
    assert (tmp_path / "file").read_text() == "2"


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"rootfs\.lower"):
        Rootfs.overlay(lower=[tmp_path / "nothing"]).open()
    with pytest.raises(SpecError, match=r"rootfs\.storage"):
        Rootfs.overlay(lower=[tmp_path], storage=tmp_path / "nothing").open()
    with pytest.raises(UnsupportedError, match="limit"):
        Rootfs.overlay(lower=[tmp_path], storage=tmp_path, size="1M").open()
    assert list(tmp_path.iterdir()) == []


# --- networks -----------------------------------------------------------------------------------------


def test_networks_alone() -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    with Network.none().open() as net:
        assert net.namespace.inode != own
        assert (net.gateway, net.endpoints) == (None, {})
    with Network.host().open() as net:
        assert net.namespace.inode == own
    with Sandbox() as sb, Network.of(sb).open() as net:
        assert net.namespace.inode == Namespace.of(sb, "network").inode


USER = """
import os, tempfile
folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)
from sandboxlib import Namespace, Rootfs
for kind in ("mount", "uts", "ipc", "network", "pid", "user", "cgroup"):
    with Namespace(kind).open() as space:
        own = os.stat("/proc/self/ns/" + {"mount": "mnt", "network": "net"}.get(kind, kind)).st_ino
        assert space.inode not in (0, own), kind
os.mkdir("lower"); os.mkdir("storage"); open("lower/f", "w").close()
here = os.getcwd()
overlay = Rootfs.overlay(lower=[here + "/lower"], storage=here + "/storage")
for tree in (Rootfs.host(), overlay, Rootfs.empty()):
    with tree.open() as opened:
        where = opened.path + ("/work" if tree.kind == "host" else "")
        open(where + "/new", "w").close()
        print([tuple(change) for change in opened.changes()], os.stat(where + "/new").st_uid == os.getuid())
print(os.listdir("storage"), os.listdir("lower"))
"""


@pytest.mark.unprivileged
@pytest.mark.overlay
@pytest.mark.parametrize("subids", [False, pytest.param(True, marks=pytest.mark.tool("newuidmap"))])
def test_a_user_opens_them_too(as_user: Callable[..., CompletedProcess[str]], subids: bool) -> None:
    done = as_user(USER, subids=subids, env={"PYTHONPATH": str(users.CHECKOUT)})
    assert done.stdout.splitlines() == [
        "[('added', '/work/new')] True",
        "[('added', '/new')] True",
        "[('added', '/new')] True",
        "[] ['f']",
    ]
