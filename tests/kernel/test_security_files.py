"""What is shared with the host stays unharmed, and no tree, however hostile, leads out of the sandbox."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from kernel.probe.outside import WHO, look, look_as, make, program, report, without

from sandboxlib.blocking import Sandbox
from sandboxlib.errors import KernelError, SandboxError
from sandboxlib.mount import Mount
from sandboxlib.rootfs import Rootfs

SYSTEM = [Mount.bind("/usr", "/usr", readonly=True)]


def tree(folder: Path) -> Path:
    """A root with nothing but what a program needs to be found in: /usr is mounted."""
    for name in ("proc", "dev", "usr", "tmp", "etc"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (folder / name).symlink_to(f"usr/{name}")
    return folder


# --- shared folders --------------------------------------------------------------------------------

SHARED = """
import tempfile
with tempfile.TemporaryDirectory(dir=os.path.abspath(facts["folder"])) as shared:
    os.chmod(shared, 0o777)
    arguments = f"mounts=[Mount.bind({shared!r}, '/shared')], " + facts["arguments"]
    found = look("shared_folder", arguments=arguments, facts={"shared": "/shared"})["shared_folder"]
    made = {name: oct(os.lstat(f"{shared}/{name}").st_mode) for name in os.listdir(shared)}
    for name in made:
        (os.rmdir if os.path.isdir(f"{shared}/{name}") else os.unlink)(f"{shared}/{name}")
print(json.dumps([found, made]))
"""


@WHO
def test_neither_set_id_files_nor_devices_can_be_made_on_a_shared_folder(who: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    found, made = program(who, SHARED, folder=str(tmp_path) if who == "root" else ".", arguments="")
    assert found.pop("mode") == "0o755"
    # Younger calls are as if they were not there.
    assert set(found.values()) <= {"EPERM", "ENOSYS"}, found
    assert {name: int(mode, 8) for name, mode in made.items()} == {"plain": stat.S_IFREG | 0o755}


@WHO
def test_without_the_filter_set_id_files_can_be_made(who: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = str(tmp_path) if who == "root" else "."
    found, made = program(who, SHARED, folder=folder, arguments=without("seccomp"))
    assert found["chmod"] == "ok"
    assert int(made["plain"], 8) & 0o6000
    # Devices take a capability over the whole machine, which nobody inside has.
    assert found["character device"] == found["block device"] == "EPERM"


@pytest.mark.root
@pytest.mark.parametrize(
    "options", ["", "without=('no-new-privileges',), ", "without=('no-new-privileges', 'seccomp'), "]
)
def test_a_set_user_id_program_of_the_host_has_no_effect(options: str, tmp_path: Path) -> None:
    """By no_new_privs, and where that is taken away by nosuid."""
    tmp_path.chmod(0o755)
    program_ = tmp_path / "id"
    shutil.copy("/usr/bin/id", program_)
    program_.chmod(0o6755)
    assert program_.stat().st_uid == 0
    for mount in (Mount.bind(tmp_path, "/shared"), Mount.bind(tmp_path, "/shared", readonly=True)):
        from sandboxlib.security import Security

        security = eval(f"Security({options}user=1000)", {"Security": Security})
        with Sandbox(mounts=[mount], security=security) as sandbox:
            assert sandbox.run(["/shared/id", "-u"], check=True).stdout == b"1000\n"
            assert sandbox.run(["/shared/id", "-g"], check=True).stdout == b"1000\n"


@pytest.mark.root
def test_a_read_only_share_is_read_only_all_the_way_down(tmp_path: Path) -> None:
    """Mounts below it too, which mount(8)'s ro leaves writable."""
    script = """
import subprocess
share = facts["folder"]
os.mkdir(f"{share}/below")
subprocess.run(["mount", "-t", "tmpfs", "none", f"{share}/below"], check=True)
os.chmod(f"{share}/below", 0o777)
arguments = f"mounts=[Mount.bind({share!r}, '/shared', readonly=True)]"
found = look("written", arguments=arguments, facts={"folders": ["/shared", "/shared/below"]})
print(json.dumps(found["written"]))
"""
    tmp_path.chmod(0o777)
    found = _in_mount_namespace(script, folder=str(tmp_path))
    assert found == {"/shared": "EROFS", "/shared/below": "EROFS"}


def _in_mount_namespace(script: str, **facts: Any) -> object:
    """As `program`, in a mount namespace of its own, so that what it mounts goes with it."""
    enter = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0
"""
    return program("root", enter + script, **facts)


@pytest.mark.root
def test_mounts_go_neither_in_nor_out(tmp_path: Path) -> None:
    """Even where the host's mounts are shared, as under systemd."""
    script = """
import subprocess
share = facts["folder"]
subprocess.run(["mount", "-t", "tmpfs", "none", share], check=True)
subprocess.run(["mount", "--make-rshared", "/"], check=True)
os.mkdir(f"{share}/later")
before = len(open("/proc/self/mountinfo").readlines())
with make(f"mounts=[Mount.bind({share!r}, '/shared', readonly=True)]") as sandbox:
    outward = len(open("/proc/self/mountinfo").readlines()) - before
    subprocess.run(["mount", "-t", "tmpfs", "none", f"{share}/later"], check=True)
    open(f"{share}/later/secret", "w").close()
    inside = sandbox.run(["ls", "/shared/later"], check=True).stdout.decode()
    mounts = sandbox.run(["cat", "/proc/self/mountinfo"]).stdout.decode().splitlines()
    peers = [line for line in mounts if "shared:" in line or "master:" in line]
    subprocess.run(["umount", f"{share}/later"], check=True)
print(json.dumps([outward, inside, peers]))
"""
    assert _in_mount_namespace(script, folder=str(tmp_path)) == [0, "", []]


# --- roots that somebody else has made -------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("name", ["dev", "proc", "tmp", "usr"])
@pytest.mark.parametrize("form", ["absolute", "dots", "chain", "loop", "file"])
def test_a_hostile_root_does_not_reach_the_host(name: str, form: str, tmp_path: Path) -> None:
    """A root whose /dev is a link has made other engines create files in the host's own folders."""
    host = tmp_path / "host"
    host.mkdir()
    root = tree(tmp_path / "root")
    (root / name).rmdir()
    target = {
        "absolute": str(host),
        "dots": "../../../../../../../.." + str(host),
        "chain": "etc/one",
        "loop": name,
    }
    (root / "etc" / "one").symlink_to(str(host))
    if form == "file":
        (root / name).touch()
    else:
        (root / name).symlink_to(target[form])
    for readonly in (True, False):
        mounts = [*SYSTEM, Mount.tmpfs(f"/{name}/made/deep")] if name == "tmp" else SYSTEM
        with (
            contextlib.suppress(SandboxError),
            Sandbox(rootfs=Rootfs.directory(root, readonly=readonly), mounts=mounts) as sandbox,
        ):
            sandbox.run(["/usr/bin/true"])
        assert list(host.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("host", "root")] == []


@pytest.mark.root
def test_a_link_to_a_mount_point_is_followed_inside_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    root = tree(tmp_path / "root")
    (root / "way").symlink_to("/etc")
    mounts = [*SYSTEM, Mount.bind(tmp_path, "/way/sandboxlib-in")]
    with Sandbox(rootfs=Rootfs.directory(root, readonly=False), mounts=mounts) as sandbox:
        shown = sandbox.run(["/usr/bin/ls", "/etc/sandboxlib-in"], check=True)
        assert shown.stdout == b"root\n"
    assert not Path("/etc/sandboxlib-in").exists()
    # One that leads to what is not there inside is refused, whether it is there outside or not.
    (root / "way").unlink()
    (root / "way").symlink_to(tmp_path)
    with pytest.raises(KernelError), Sandbox(rootfs=Rootfs.directory(root, readonly=False), mounts=mounts):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.root
def test_a_working_directory_through_a_link_stays_inside(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    (root / "etc" / "inside").touch()
    for link, target in (("out", "../../../../etc"), ("absolute", "/etc"), ("chain", "out/..")):
        (root / link).symlink_to(target)
    with Sandbox(rootfs=Rootfs.directory(root, readonly=False), mounts=SYSTEM) as sandbox:
        for place in ("/out", "/absolute", "/chain/etc"):
            done = sandbox.run(["/usr/bin/ls"], cwd=place, check=True)
            assert b"inside\n" in done.stdout, place
            assert b"shadow" not in done.stdout, place


@pytest.mark.root
def test_a_mount_point_that_changes_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    """The races of CVE-2021-30465 and CVE-2024-45310: a folder that turns into a link and back."""
    host = tmp_path / "host"
    host.mkdir()
    root = tree(tmp_path / "root")
    place, link = root / "etc" / "place", root / "etc" / "link"
    place.mkdir()
    link.symlink_to(host)
    over = threading.Event()

    def swap() -> None:
        import ctypes

        rename = ctypes.CDLL(None, use_errno=True).renameat2
        while not over.is_set():
            rename(-100, os.fsencode(place), -100, os.fsencode(link), 2)  # RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    tried = stood = 0
    try:
        mounts = [
            *SYSTEM,
            Mount.bind(tmp_path, "/etc/place/a/b/c", readonly=True),
            Mount.tmpfs("/etc/place/d"),
        ]
        # Where none starts, nothing has been tried: it takes a folder at each of several looks.
        while tried < 60 or not stood:
            tried += 1
            with (
                contextlib.suppress(SandboxError),
                Sandbox(rootfs=Rootfs.directory(root, readonly=False), mounts=mounts),
            ):
                stood += 1
            assert list(host.iterdir()) == []
    finally:
        over.set()
        thread.join()


@pytest.mark.root
def test_chroot_and_its_way_out_end_in_the_sandbox() -> None:
    """The host's tree is unmounted, not hidden: climbing out of a chroot finds the sandbox's root."""
    found = look("escape_by_chroot", arguments="security=Security(capabilities=['CAP_SYS_CHROOT'])")[
        "escape_by_chroot"
    ]
    assert {"work", "usr", "proc"} <= set(found)
    # The checkout, or its environment, may lie below one of them, and is shown there.
    shown = {part for path in (sys.prefix, sys.base_prefix, *sys.path) for part in Path(path).parts}
    assert not ({"boot", "srv", "opt"} - shown) & set(found)


@pytest.mark.root
def test_the_hosts_tree_is_mounted_nowhere_inside() -> None:
    with make("") as sandbox:
        mounts = report(sandbox, "mounts")["mounts"]
        engine = sandbox._engine
        assert engine is not None
        # As pid 1 sees it, from outside: nothing more than what commands see.
        seen = Path(f"/proc/{engine.pid}/mountinfo").read_text().splitlines()
    assert sorted(line.split()[4] for line in seen) == sorted(place for _, place, _, _ in mounts)
    assert sum(place == "/" for _, place, _, _ in mounts) == 1


# --- the launcher ----------------------------------------------------------------------------------


@pytest.mark.root
def test_the_launcher_is_a_sealed_copy_in_memory() -> None:
    with make("") as sandbox:
        engine = sandbox._engine
        assert engine is not None
        exe = f"/proc/{engine.pid}/exe"
        assert "memfd:sandboxlib" in os.readlink(exe)
        import fcntl

        fd = os.open(exe, os.O_RDONLY)
        try:
            # SEAL, SHRINK, GROW, WRITE: nobody can change it, root of the host not excepted.
            assert fcntl.fcntl(fd, 1034) & 15 == 15
        finally:
            os.close(fd)
        with pytest.raises(OSError, match=r"busy|permitted|Permission"):
            os.open(exe, os.O_RDWR)


# --- the host's services ---------------------------------------------------------------------------


@WHO
def test_services_memory_and_processes_of_the_host_are_out_of_reach(who: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        name = f"sandboxlib-{os.getpid()}-{who}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        facts: dict[str, object] = {
            "port": tcp.getsockname()[1],
            "abstract": name,
            "pid": os.getpid(),
            "file": __file__,
        }
        found = look_as(who, "host_services", facts=facts)["host_services"]
        assert found == {
            "loopback": "ECONNREFUSED",
            "abstract": "ECONNREFUSED",
            "signal": "ESRCH",
            "process": "ENOENT",
            "file": "ENOENT",
        }
        if who == "root":
            shared = look("host_services", arguments="network='host'", facts=facts)["host_services"]
            assert shared["loopback"] == shared["abstract"] == "ok"


@pytest.mark.root
def test_shared_memory_and_queues_of_the_host_are_out_of_reach() -> None:
    made = subprocess.run(
        ["ipcmk", "--shmem", "4096", "-p", "0666"], capture_output=True, text=True, check=True
    )
    number = made.stdout.split()[-1]
    try:
        listed = subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout
        key = next(int(line.split()[0], 16) for line in listed.splitlines() if line.split()[1:2] == [number])
        assert look("host_services", facts={"shm": key})["host_services"] == {"shm": "ENOENT"}
        # With the host's IPC namespace it is there: so it was the namespace that hid it.
        shared = look("host_services", arguments="namespaces=[Namespace.host('ipc')]", facts={"shm": key})
        assert shared["host_services"] == {"shm": "ok"}
    finally:
        subprocess.run(["ipcrm", "-m", number], check=True)


# --- clocks, cgroups -------------------------------------------------------------------------------


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.namespace("time")
def test_clocks_are_the_sandboxs_own() -> None:
    inside = look("clocks", arguments="namespaces=[Namespace('time', boottime_offset=3600)]")["clocks"]
    assert 3590 < inside["boottime"] - time.clock_gettime(time.CLOCK_BOOTTIME) <= 3600
    assert abs(inside["monotonic"] - time.monotonic()) < 10


@WHO
@pytest.mark.cgroup
def test_limits_can_neither_be_written_nor_left(who: str) -> None:
    """Not even by who has all capabilities inside, and so may mount the file system of cgroups."""
    found = look_as(
        who, "cgroup_escape", arguments="security=Security(capabilities=['ALL'], without=['seccomp'])"
    )["cgroup_escape"]
    assert "ok" in {result for name, result in found.items() if name.startswith("mount")}
    written = {name: result for name, result in found.items() if not name.startswith("mount")}
    assert written
    # Without root the groups are the user's own, whom the user inside is outside: below the top of its
    # namespace it may make groups (whose limits are within those above), and is told EINVAL for nonsense.
    # The limits themselves, and the way out, are shut by the namespace (nsdelegate).
    within = (
        ()
        if who == "root" and os.geteuid() == 0
        else (": mkdir", ": cgroup.procs", ": cgroup.subtree_control")
    )
    shut = (
        {name: result for name, result in written.items() if not name.endswith(within)} if within else written
    )
    assert shut
    assert set(shut.values()) <= {"EACCES", "EPERM", "EROFS"}, written
    assert {result for name, result in written.items() if name not in shut} <= {
        "EACCES",
        "EPERM",
        "EROFS",
        "EINVAL",
        "ok",
    }
    nobody = look_as(who, "cgroup_escape")["cgroup_escape"]
    assert set(nobody.values()) == {"EPERM"}
