"""Root file systems and mounts, asked from inside: what is there, what is not, and where limits bite."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sandboxlib import (
    KernelError,
    Mount,
    Rootfs,
    Sandbox,
    SandboxError,
    Security,
    SpecError,
    UnsupportedError,
)

import trees
import users

pytestmark = pytest.mark.userns


def mounts_of(sb: Sandbox) -> dict[str, str]:
    """Mount points and their options, as the kernel has them for the sandbox's own view."""
    lines = sb.run(["sh", "-c", "cat /proc/$$/mounts"], text=True).stdout.splitlines()
    return {line.split()[1]: line.split()[3] for line in lines}


# --- the host view ------------------------------------------------------------------------------------


def test_programs_of_the_host_run_and_cannot_be_changed() -> None:
    with Sandbox() as sb:
        assert sb.run(["cat", "/etc/hostname"]).stdout == b"sandbox\n"
        assert sb.run([sys.executable, "-c", "import attrs; print(1)"]).stdout == b"1\n"
        for path in ("/usr/new", "/etc/new", "/new", "/etc/passwd"):
            assert b"Read-only file system" in sb.run(["sh", "-c", f"echo x >> {path}"]).stderr, path
        assert sb.sh("echo x >> /bin/sh").returncode != 0
        assert "ro" in mounts_of(sb)["/usr"].split(",")


def test_nothing_of_the_users_of_the_host_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with Sandbox() as sb:
        seen = {
            path: sb.files.list(path)
            for path in ("/tmp", "/home", "/var/tmp", "/run", "/dev/shm", "/dev/pts")
        }
        # What the interpreter needs may lie in somebody's home, and is shown there.
        shown = {part for path in (sys.prefix, sys.base_prefix, *sys.path) for part in Path(path).parts}
        assert {name for names in seen.values() for name in names} - shown <= {"ptmx"}
        for path in (
            tmp_path,
            "/etc/shadow",
            "/etc/gshadow",
            "/etc/sudoers",
            "/etc/ssh",
            "/root/.ssh",
            "/boot",
            "/sys",
            "/opt",
            "/srv",
            "/var/log",
        ):
            # The checkout, or its environment, may lie below one of them.
            if Path(path).name not in shown:
                assert not sb.files.exists(path), path
        names = [line.split(":")[0] for line in sb.files.read_text("/etc/passwd").splitlines()]
        assert names == ["root", "nobody"]


def test_the_hosts_tree_is_not_mounted_anywhere() -> None:
    for rootfs in (None, Rootfs.empty()):
        with Sandbox(rootfs=rootfs) as sb:
            assert sb._engine is not None
            lines = Path(f"/proc/{sb._engine.pid}/mountinfo").read_text().splitlines()
            mounted = [line.split()[:5] for line in lines]
            host = os.stat("/")
            device = f"{os.major(host.st_dev)}:{os.minor(host.st_dev)}"
            assert not [line for line in mounted if line[2] == device and line[3] == "/"]
            assert len([line for line in mounted if line[4] == "/"]) == 1


@pytest.mark.overlay
def test_nor_below_an_overlay(tmp_path: Path) -> None:
    root, mounts = trees.system(tmp_path / "root")
    storage = tmp_path / "storage"
    storage.mkdir()
    with Sandbox(rootfs=Rootfs.overlay(lower=[root], storage=storage), mounts=mounts) as sb:
        assert set(mounts_of(sb)) == {
            "/",
            "/proc",
            "/dev",
            *(
                f"/dev/{name}"
                for name in ("null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "mqueue")
            ),
            *(mount.destination for mount in mounts),
        }


def test_its_writable_folders_hold_so_much_and_no_more() -> None:
    with Sandbox(rootfs=Rootfs.host(size="2M", nr_inodes=500)) as sb:
        assert sb.sh("head -c 1M /dev/zero > /work/a").returncode == 0
        # One limit for all of them together.
        assert b"No space left" in sb.sh("head -c 1536K /dev/zero > /tmp/b").stderr
        sb.sh("rm /work/a /tmp/b")
        assert b"No space left" in sb.sh("cd /work; seq 500 | xargs touch").stderr


def test_further_paths_of_the_host_are_shown(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for path in tmp_path.parents:
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("1")
    (tmp_path / "single").write_text("2")
    with Sandbox(rootfs=Rootfs.host(paths=[tmp_path / "folder", tmp_path / "single", "/etc/hostname"])) as sb:
        assert sb.run(["cat", str(tmp_path / "folder" / "file"), str(tmp_path / "single")]).stdout == b"12"
        assert sb.files.read("/etc/hostname") == Path("/etc/hostname").read_bytes()
        assert sb.sh(f"echo x > {tmp_path}/folder/file").returncode != 0
    with pytest.raises(SpecError, match="exists"), Sandbox(rootfs=Rootfs.host(paths=[tmp_path / "nothing"])):
        pass


@pytest.mark.root
def test_a_user_can_write_where_it_is_at_home() -> None:
    with Sandbox(security=Security(user=1000)) as sb:
        for path in ("/work", "/home", "/run", "/tmp", "/var/tmp"):
            assert sb.run(["touch", f"{path}/x"]).returncode == 0, path
        assert sb.run(["touch", "/root/x"]).returncode != 0


def test_the_callers_umask_is_not_the_sandboxs() -> None:
    before = os.umask(0o077)
    try:
        with Sandbox() as sb:
            modes = {
                path: stat.S_IMODE(sb.files.stat(path).st_mode)
                for path in ("/", "/work", "/tmp", "/etc/passwd")
            }
    finally:
        os.umask(before)
    assert modes == {"/": 0o755, "/work": 0o755, "/tmp": 0o1777, "/etc/passwd": 0o644}


# --- folders, empty roots -----------------------------------------------------------------------------


def test_a_folder_as_root(tmp_path: Path) -> None:
    root, mounts = trees.system(tmp_path / "root")
    (root / "mine").write_text("1")
    with Sandbox(rootfs=Rootfs.directory(root), mounts=mounts) as sb:
        assert sb.sh("cat /mine; pwd; stat -c %u /mine").stdout == b"1/\n0\n"
        assert b"Read-only" in sb.sh("echo 2 > /mine").stderr
        assert not sb.files.exists("/etc/passwd")
    assert (root / "mine").read_text() == "1"


def test_a_folder_that_is_written_to(tmp_path: Path) -> None:
    root, mounts = trees.system(tmp_path / "root")
    with Sandbox(rootfs=Rootfs.directory(root, readonly=False), mounts=mounts) as sb:
        assert sb.sh("echo 1 > /new; mkdir /d; touch /d/f").returncode == 0
        assert "nosuid" in mounts_of(sb)["/"]
    assert (root / "new").read_text() == "1\n"
    # Files on disk belong to whoever made the sandbox, not to a number that the next one may have.
    assert (root / "new").stat().st_uid == os.geteuid()


def test_a_folder_that_does_not_exist_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for rootfs, field in (
        (Rootfs.directory(tmp_path / "nothing"), "rootfs.path"),
        (Rootfs.overlay(lower=["/usr", tmp_path / "nothing"]), "rootfs.lower"),
        (Rootfs.overlay(lower=["/usr"], storage=tmp_path / "nothing"), "rootfs.storage"),
    ):
        with pytest.raises(SpecError) as caught, Sandbox(rootfs=rootfs):
            pass
        assert caught.value.field == field
        assert str(tmp_path / "nothing") in str(caught.value)


def test_an_empty_root_has_nothing_but_devices_and_processes() -> None:
    with Sandbox(rootfs=Rootfs.empty(size="1M")) as sb:
        assert sb.files.list("/") == ["dev", "proc"]
        sb.files.write("/file", b"1")
        with pytest.raises(KernelError, match="ENOSPC"):
            sb.files.write("/big", bytes(2 << 20))
    with Sandbox(rootfs=Rootfs.empty(readonly=True)) as sb, pytest.raises(KernelError, match="EROFS"):
        sb.files.write("/file", b"1")
    security = Security(without=["read-only-root"])
    refused = pytest.raises(KernelError, match="EROFS")
    with Sandbox(rootfs=Rootfs.empty(readonly=True), security=security) as sb, refused:
        sb.files.write("/file", b"1")


# --- overlays -----------------------------------------------------------------------------------------


@pytest.mark.overlay
@pytest.mark.parametrize("count", [1, 3, 20])
def test_layers_lie_over_each_other(tmp_path: Path, count: int) -> None:
    root, mounts = trees.system(tmp_path / "root")
    layers = []
    for i in range(count):
        layer = tmp_path / f"layer{i}"
        layer.mkdir()
        (layer / "same").write_text(f"{i}\n")
        (layer / f"only{i}").touch()
        layers.append(layer)
    with Sandbox(
        rootfs=Rootfs.overlay(lower=[*layers, root], storage=trees.storage(tmp_path)), mounts=mounts
    ) as sb:
        assert sb.run(["cat", "/same"]).stdout == b"0\n"
        assert all(sb.files.exists(f"/only{i}") for i in range(count))
        assert sb.sh("rm /same; echo new > /only0").returncode == 0
    assert [(layer / "same").read_text() for layer in layers] == [f"{i}\n" for i in range(count)]
    assert (layers[0] / "only0").read_text() == ""


@pytest.mark.overlay
@pytest.mark.kernel("6.7")
def test_more_than_a_hundred_layers(tmp_path: Path) -> None:
    root, mounts = trees.system(tmp_path / "root")
    layers = [tmp_path / f"layer{i}" for i in range(120)]
    for layer in layers:
        layer.mkdir()
        (layer / f"of-{layer.name}").touch()
    with Sandbox(
        rootfs=Rootfs.overlay(lower=[*layers, root], storage=trees.storage(tmp_path)), mounts=mounts
    ) as sb:
        assert sb.sh("ls -d /of-layer* | wc -l", text=True).stdout.strip() == "120"


def test_more_than_a_hundred_folders_of_the_host(tmp_path: Path) -> None:
    mounts = []
    for i in range(110):
        folder = tmp_path / f"folder{i}"
        folder.mkdir()
        (folder / "file").touch()
        mounts.append(Mount.bind(folder, f"/work/{i}", readonly=True))
    with Sandbox(mounts=mounts) as sb:
        assert sb.sh("ls -d /work/*/file | wc -l", text=True).stdout.strip() == "110"


@pytest.mark.root
@pytest.mark.overlay
def test_files_of_layers_have_their_owners_inside(tmp_path: Path) -> None:
    root, mounts = trees.system(tmp_path / "root")
    (root / "a").write_text("1")
    (root / "d").mkdir(mode=0o700)
    os.chown(root / "a", 1000, 1001)
    os.chown(root / "d", 5, 6)
    with Sandbox(
        rootfs=Rootfs.overlay(lower=[root], storage=trees.storage(tmp_path)),
        mounts=mounts,
        security=Security(capabilities=["CAP_CHOWN"]),
    ) as sb:
        assert sb.sh("stat -c %u:%g / /a /d").stdout.split() == [b"0:0", b"1000:1001", b"5:6"]
        assert sb.sh("chown 7:8 /a; stat -c %u:%g /a").stdout == b"7:8\n"
    assert (root / "a").stat().st_uid == 1000
    with Sandbox(
        rootfs=Rootfs.overlay(lower=[root], storage=trees.storage(tmp_path)),
        mounts=mounts,
        security=Security(user="5:6"),
    ) as sb:
        assert sb.sh("touch /d/x").returncode == 0
        assert sb.sh("touch /x").returncode != 0


@pytest.mark.overlay
@pytest.mark.kernel("6.6")
def test_what_is_written_over_layers_has_its_size(tmp_path: Path) -> None:
    root, mounts = trees.system(tmp_path / "root")
    (root / "big").write_bytes(bytes(3 << 20))
    with Sandbox(rootfs=Rootfs.overlay(lower=[root], size="2M", nr_inodes=100), mounts=mounts) as sb:
        assert b"No space left" in sb.sh("head -c 3M /dev/zero > /file").stderr
        # A file of a layer below is copied up before a byte of it is changed.
        assert b"No space left" in sb.sh("rm /file; echo x >> /big").stderr
        assert b"No space left" in sb.sh("mkdir /n; cd /n; seq 200 | xargs touch").stderr


@pytest.mark.overlay
def test_an_overlay_that_is_only_read(tmp_path: Path) -> None:
    root, mounts = trees.system(tmp_path / "root")
    with Sandbox(
        rootfs=Rootfs.overlay(lower=[root], readonly=True, storage=trees.storage(tmp_path)), mounts=mounts
    ) as sb:
        assert b"Read-only" in sb.sh("echo > /new").stderr


def test_a_limit_that_a_disk_does_not_hold_is_refused(tmp_path: Path) -> None:
    for rootfs in (
        Rootfs.overlay(lower=["/usr"], storage=tmp_path, size="1M"),
        Rootfs.overlay(lower=["/usr"], storage=tmp_path, nr_inodes=100),
    ):
        with pytest.raises(UnsupportedError, match="limit on what is written"), Sandbox(rootfs=rootfs):
            pass
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from sandboxlib import Rootfs, Sandbox
with Sandbox(rootfs=Rootfs.overlay(lower=[sys.argv[1] + "/lower"], storage=sys.argv[1] + "/storage")) as sb:
    sb.files.write("/a/b", b"1", parents=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.overlay
@pytest.mark.parametrize("same", [True, False])
def test_what_a_killed_program_wrote_is_removed_by_the_next(tmp_path: Path, same: bool) -> None:
    for name in ("lower", "storage", "elsewhere"):
        (tmp_path / name).mkdir()
    environment = {**os.environ, "PYTHONPATH": str(users.CHECKOUT)}
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    left = list((tmp_path / "storage").iterdir())
    assert [path.name for path in left[0].iterdir()]
    script = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass")
    script = script if same else "from sandboxlib import Sandbox\nwith Sandbox(): pass"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True)
    assert list((tmp_path / "storage").iterdir()) == []


# --- mounts -------------------------------------------------------------------------------------------


def test_a_folder_of_the_host_is_shared(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "given").write_text("1")
    with Sandbox(mounts=[Mount.bind(tmp_path, "/data")]) as sb:
        assert sb.sh("cat /data/given; echo 2 > /data/made").stdout == b"1"
        (tmp_path / "later").write_text("3")
        assert sb.run(["cat", "/data/later"]).stdout == b"3"
    assert (tmp_path / "made").read_text() == "2\n"


def test_a_single_file_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    (tmp_path / "file").chmod(0o666)
    with Sandbox(mounts=[Mount.bind(tmp_path / "file", "/etc/app/config", readonly=True)]) as sb:
        assert sb.run(["cat", "/etc/app/config"]).stdout == b"1"
        assert b"Read-only" in sb.sh("echo 2 > /etc/app/config").stderr


@pytest.mark.root
@pytest.mark.parametrize("recursive", [True, False])
def test_read_only_reaches_what_is_mounted_below(tmp_path: Path, recursive: bool) -> None:
    below = tmp_path / "below"
    below.mkdir()
    tmp_path.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=777", "none", str(below)], check=True)
    try:
        (below / "file").touch()
        with Sandbox(mounts=[Mount.bind(tmp_path, "/data", readonly=True, recursive=recursive)]) as sb:
            assert sb.files.list("/data/below") == (["file"] if recursive else [])
            assert b"Read-only" in sb.sh("touch /data/x").stderr
            assert b"Read-only" in sb.sh("touch /data/below/x").stderr
        assert [path.name for path in below.iterdir()] == ["file"]
    finally:
        subprocess.run(["umount", str(below)], check=True)


def test_rights_do_not_come_along_with_a_mount(tmp_path: Path) -> None:
    with Sandbox(
        mounts=[
            Mount.bind(tmp_path, "/a"),
            Mount.bind(tmp_path, "/b", noexec=True),
            Mount.tmpfs("/c", noexec=True),
        ]
    ) as sb:
        found = mounts_of(sb)
        for path in ("/a", "/b", "/c"):
            assert {"nosuid", "nodev"} <= set(found[path].split(","))
        assert ["noexec" in found[path].split(",") for path in ("/a", "/b", "/c")] == [False, True, True]


def test_a_memory_file_system_has_a_size_always() -> None:
    with Sandbox(
        mounts=[Mount.tmpfs("/small", size="1M", nr_inodes=50, mode=0o700), Mount.tmpfs("/default")]
    ) as sb:
        assert b"No space left" in sb.sh("head -c 2M /dev/zero > /small/x").stderr
        assert b"No space left" in sb.sh("rm /small/x; cd /small; seq 60 | xargs touch").stderr
        assert sb.sh("stat -c %a /small /default").stdout.split() == [b"700", b"1777"]
        for path, options in mounts_of(sb).items():
            kind = sb.run(["stat", "-f", "-c", "%T", path], text=True).stdout.strip()
            if kind == "tmpfs" and "rw" in options.split(","):
                assert "size=" in options, path


def test_a_source_that_is_missing_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    with pytest.raises(SpecError) as caught, Sandbox(mounts=[Mount.bind(missing, "/data")]):
        pass
    assert caught.value.value == str(missing)
    with Sandbox(mounts=[Mount.bind(missing, "/data", optional=True)]) as sb:
        assert not sb.files.exists("/data")


def test_a_destination_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="/usr/not/there"), Sandbox(mounts=[Mount.tmpfs("/usr/not/there")]):
        pass


# --- roots that are hostile ---------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["{}", "../../../../../../../..{}", "/proc/self/cwd{}"])
def test_a_destination_does_not_leave_the_root_by_a_link(tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    root, mounts = trees.system(tmp_path / "root")
    (root / "data").symlink_to(link.format(outside))
    before = Path("/proc/self/mountinfo").read_text()
    problem: KernelError | None = None
    wanted = [*mounts, Mount.tmpfs("/data/deep/folder"), Mount.bind("/etc/hostname", "/data/file")]
    try:
        with Sandbox(rootfs=Rootfs.directory(root, readonly=False), mounts=wanted) as sb:
            sb.sh("touch /data/deep/folder/x")
    except KernelError as error:
        # The link leads nowhere inside; that is all it may do.
        problem = error
    assert problem is None or problem.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    assert list(outside.iterdir()) == []
    assert Path("/proc/self/mountinfo").read_text() == before


def test_a_link_within_the_root_is_followed_there(tmp_path: Path) -> None:
    root, mounts = trees.system(tmp_path / "root")
    (root / "real").mkdir()
    (root / "data").symlink_to("/real")
    with Sandbox(rootfs=Rootfs.directory(root), mounts=[*mounts, Mount.tmpfs("/data")]) as sb:
        assert "/real" in mounts_of(sb)


@pytest.mark.parametrize("name", ["dev", "proc"])
def test_a_link_in_place_of_dev_or_proc_is_refused(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    root, mounts = trees.system(tmp_path / "root")
    (root / name).rmdir()
    (root / name).symlink_to(outside)
    with (
        pytest.raises(SandboxError, match=r"ELOOP|ENOTDIR"),
        Sandbox(rootfs=Rootfs.directory(root, readonly=False), mounts=mounts),
    ):
        pass
    assert list(outside.iterdir()) == []


@pytest.mark.overlay
def test_a_layer_that_marks_other_files_as_its_own_gets_nothing(tmp_path: Path) -> None:
    """The attributes with which an overlay renames are not believed when a layer brings them along."""
    root, mounts = trees.system(tmp_path / "root")
    (root / "secret").mkdir()
    (root / "secret" / "file").write_text("secret")
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    kind = "trusted" if os.geteuid() == 0 else "user"
    try:
        os.setxattr(top / "d", f"{kind}.overlay.redirect", b"/secret")
    except OSError:
        # Where no such attribute can be set there is nothing to believe.
        assert os.geteuid() != 0
        return
    with Sandbox(
        rootfs=Rootfs.overlay(lower=[top, root], storage=trees.storage(tmp_path)), mounts=mounts
    ) as sb:
        done = sb.sh("ls /d; cat /d/file")
        assert (done.returncode != 0, done.stdout) == (True, b"")


# --- /proc and /dev -----------------------------------------------------------------------------------


def test_devices_are_those_that_are_harmless() -> None:
    with Sandbox() as sb:
        assert sb.files.list("/dev") == sorted(
            [
                "fd",
                "full",
                "mqueue",
                "null",
                "ptmx",
                "pts",
                "random",
                "shm",
                "stderr",
                "stdin",
                "stdout",
                "tty",
                "urandom",
                "zero",
            ]
        )
        done = sb.sh(
            "echo x > /dev/null && head -c 2 /dev/zero | wc -c && head -c 2 /dev/urandom | wc -c; "
            "head -c 1 /dev/zero > /dev/full"
        )
        assert done.stdout.split() == [b"2", b"2"]
        assert b"No space left" in done.stderr


def test_the_whole_of_proc_is_masked() -> None:
    with Sandbox(security=Security(without=["proc-subset"])) as sb:
        for path in ("/proc/kallsyms", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/cmdline"):
            if Path(path).exists():
                assert sb.run(["cat", path]).stdout == b"", path
        for path in ("/proc/fs", "/proc/acpi", "/proc/bus", "/proc/scsi", "/proc/asound"):
            if Path(path).is_dir():
                assert sb.files.list(path) == [], path
        assert b"Read-only" in sb.sh("echo 1 > /proc/sys/kernel/domainname").stderr
        if Path("/proc/sysrq-trigger").exists():
            assert b"Read-only" in sb.sh("echo 1 > /proc/sysrq-trigger").stderr
        # The rest is there: that is what was asked for.
        assert b"MemTotal" in sb.run(["cat", "/proc/meminfo"]).stdout


def test_own_paths_are_masked_where_they_are_and_not_where_a_link_says(tmp_path: Path) -> None:
    root, mounts = trees.system(tmp_path / "root")
    (root / "secrets").mkdir()
    (root / "secrets" / "key").write_text("key")
    (root / "secret").write_text("secret")
    (root / "keep").mkdir()
    (root / "link").symlink_to("/secrets")
    security = Security(
        without=["proc-subset"],
        masked_paths=["/link", "/secret", "/no/such", "/given"],
        readonly_paths=["/keep", "/none"],
    )
    (tmp_path / "given").write_text("given")
    mounts.append(Mount.bind(tmp_path / "given", "/given"))
    with Sandbox(rootfs=Rootfs.directory(root, readonly=False), mounts=mounts, security=security) as sb:
        assert sb.sh("ls /link/ /secrets; cat /secret /given").stdout.split() == [b"/link/:", b"/secrets:"]
        assert b"Read-only" in sb.sh("touch /keep/x").stderr
        assert sb.sh("touch /new").returncode == 0


USER = """
import os, tempfile
folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)
from sandboxlib import Mount, Rootfs, Sandbox
os.mkdir("data"); os.mkdir("root")
for name in ("usr", "proc", "dev", "tmp", "work", "work/t", "data"): os.mkdir("root/" + name)
mounts = [Mount.bind("/usr", "/usr", readonly=True)]
for name in ("bin", "lib", "lib64"):
    if os.path.islink("/" + name): os.symlink(os.readlink("/" + name), "root/" + name)
    elif os.path.isdir("/" + name):
        os.mkdir("root/" + name); mounts.append(Mount.bind("/" + name, "/" + name, readonly=True))
here = os.getcwd()
for rootfs in (None, Rootfs.directory(here + "/root"), Rootfs.directory(here + "/root", readonly=False)):
    more = mounts if rootfs else []
    more = [*more, Mount.bind(here + "/data", "/data"), Mount.tmpfs("/work/t", size="1M")]
    line = "id -u; touch /data/x /work/t/x; stat -c %u /data/x; ls /etc/shadow; touch /new && echo new"
    with Sandbox(rootfs=rootfs, mounts=more) as sb:
        print(sb.sh(line).stdout.split())
print(os.listdir("data"), os.stat("data/x").st_uid == os.getuid(), os.path.exists("root/new"))
"""


@pytest.mark.unprivileged
@pytest.mark.parametrize("subids", [False, pytest.param(True, marks=pytest.mark.tool("newuidmap"))])
def test_a_user_has_roots_and_mounts_too(as_user: Callable[..., CompletedProcess[str]], subids: bool) -> None:
    done = as_user(USER, subids=subids, env={"PYTHONPATH": str(users.CHECKOUT)})
    assert done.stdout.splitlines() == [
        "[b'0', b'0']",
        "[b'0', b'0']",
        "[b'0', b'0', b'new']",
        "['x'] True True",
    ]
