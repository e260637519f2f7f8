"""Files of a live sandbox: what can be done with them, and that no path leads out."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxlib import KernelError, Mount, Rootfs, Sandbox, Security, SpecError, StateError, ViolationError

pytestmark = pytest.mark.userns


@pytest.fixture(scope="module")
def live() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sb(live: Sandbox) -> Iterator[Sandbox]:
    before = set(live.files.list("/work"))
    yield live
    for name in set(live.files.list("/work")) - before:
        live.files.remove(f"/work/{name}", recursive=True)


def test_what_is_written_is_read(sb: Sandbox) -> None:
    content = bytes(range(256)) * 1000
    sb.files.write("/work/file", content)
    assert sb.files.read("/work/file") == content
    assert sb.run(["wc", "-c", "/work/file"]).stdout.split()[0] == b"256000"
    sb.files.write("/work/file", "kürzer\r\n")
    assert sb.files.read_text("/work/file") == "kürzer\r\n"
    assert sb.files.read("/work/file") == "kürzer\r\n".encode()
    with pytest.raises(UnicodeDecodeError):
        sb.files.read_text("/work/file", encoding="ascii")
    assert sb.files.read_text("/work/file", encoding="ascii", errors="ignore") == "krzer\r\n"


def test_views_of_any_shape_are_written(sb: Sandbox) -> None:
    sb.files.write("/work/file", memoryview(b"abcdef").cast("H"))  # type: ignore[arg-type]
    assert sb.files.read("/work/file") == b"abcdef"


def test_a_relative_path_begins_where_commands_do(sb: Sandbox) -> None:
    sb.files.write("here", b"1")
    assert sb.sh("cat here").stdout == b"1"
    with Sandbox(cwd="/tmp") as other:
        other.files.write("here", b"2")
        assert other.run(["cat", "/tmp/here"]).stdout == b"2"


def test_modes_are_as_given_whatever_the_umask(sb: Sandbox) -> None:
    before = os.umask(0o077)
    try:
        sb.files.write("a/b/file", b"", mode=0o666, parents=True)
        sb.files.mkdir("folder", 0o1777)
    finally:
        os.umask(before)
    assert sb.sh("stat -c %a a a/b a/b/file folder").stdout.split() == [b"755", b"755", b"666", b"1777"]


def test_the_mode_of_a_file_that_is_there_stays(sb: Sandbox) -> None:
    sb.files.write("file", b"1", mode=0o600)
    sb.files.write("file", b"2", mode=0o644)
    assert sb.files.stat("file").st_mode & 0o777 == 0o600


def test_permission_bits_do_not_stop_it(sb: Sandbox) -> None:
    sb.sh("mkdir -m 0 closed; umask 777; echo secret > file")
    assert sb.files.read("file") == b"secret\n"
    sb.files.write("closed/new", b"x")
    assert sb.files.list("closed") == ["new"]


def test_names_are_listed_sorted_whatever_their_bytes(sb: Sandbox) -> None:
    sb.sh(r"mkdir d; cd d; touch b a .c; touch $(printf '\377\n')")
    assert sb.files.list("d") == [".c", "a", "b", "\udcff"]
    assert sb.files.exists("d/\udcff")
    assert sb.files.list(b"d") == sb.files.list(Path("/work/d"))


def test_owners_are_those_inside(sb: Sandbox) -> None:
    sb.files.write("file", b"")
    assert (sb.files.stat("file").st_uid, sb.files.stat("file").st_gid) == (0, 0)
    for path in ("/usr", "/dev/null", "/work/file", "/proc"):
        found = sb.files.stat(path)
        shown = sb.run(["stat", "-c", "%u %g %a %s %Y %h %i", path], text=True).stdout.split()
        mode = format(found.st_mode & 0o7777, "o")
        numbers = (
            found.st_uid,
            found.st_gid,
            mode,
            found.st_size,
            int(found.st_mtime),
            found.st_nlink,
            found.st_ino,
        )
        # The number of processes is what /proc has as its links.
        keep = slice(0, 5) if path == "/proc" else slice(0, 7)
        assert [str(number) for number in numbers][keep] == shown[keep]


def test_a_link_is_looked_at_or_followed(sb: Sandbox) -> None:
    sb.sh("echo 12345 > file; ln -s file link; ln -s nowhere broken")
    assert sb.files.stat("link").st_size == 6
    assert sb.files.stat("link", follow=False).st_size == 4
    assert sb.files.exists("link")
    assert not sb.files.exists("broken")
    assert not sb.files.exists("file/below")
    sb.files.remove("link")
    assert sb.files.exists("file")


def test_times_have_nanoseconds(sb: Sandbox) -> None:
    sb.sh("touch -d '2001-02-03 04:05:06.123456789' file")
    assert sb.files.stat("file").st_mtime_ns % 10**9 == 123456789


@pytest.mark.root
def test_files_belong_to_the_user_that_commands_run_as() -> None:
    with Sandbox(security=Security(user="1000:1001")) as sb:
        sb.files.write("a/file", b"x", parents=True)
        sb.files.mkdir("folder")
        assert set(sb.sh("stat -c %u:%g . a a/file folder").stdout.split()) == {b"1000:1001"}
        assert sb.sh("echo more >> a/file; touch folder/mine").returncode == 0
        # Not even there do the permission bits stop it.
        sb.files.write("/root/deep", b"x")
        assert (sb.files.stat("/root/deep").st_uid, sb.files.stat("/root").st_uid) == (1000, 0)


def test_errors_are_the_builtin_ones_too(sb: Sandbox) -> None:
    sb.sh("mkdir -p d/e; echo > file; ln -s loop loop")
    table: list[tuple[Callable[[], object], type[OSError], str]] = [
        (lambda: sb.files.read("nothing"), FileNotFoundError, "/work/nothing"),
        (lambda: sb.files.read("d"), IsADirectoryError, "/work/d"),
        (lambda: sb.files.write("d", b""), IsADirectoryError, "/work/d"),
        (lambda: sb.files.read("file/below"), NotADirectoryError, "/work/file/below"),
        (lambda: sb.files.list("file"), NotADirectoryError, "/work/file"),
        (lambda: sb.files.list("nothing"), FileNotFoundError, "/work/nothing"),
        (lambda: sb.files.mkdir("d"), FileExistsError, "/work/d"),
        (lambda: sb.files.mkdir("file", exist_ok=True), NotADirectoryError, "/work/file"),
        (lambda: sb.files.mkdir("x/y"), FileNotFoundError, "/work/x/y"),
        (lambda: sb.files.rename("nothing", "x"), FileNotFoundError, "/work/nothing"),
        (lambda: sb.files.remove("nothing", recursive=True), FileNotFoundError, "/work/nothing"),
    ]
    for call, kind, path in table:
        with pytest.raises(KernelError) as caught:
            call()
        assert isinstance(caught.value, kind)
        assert caught.value.filename == path
    numbers: list[tuple[Callable[[], object], int]] = [
        (lambda: sb.files.read("loop"), errno.ELOOP),
        (lambda: sb.files.remove("d"), errno.ENOTEMPTY),
        (lambda: sb.files.remove("/etc/hostname"), errno.EROFS),
        (lambda: sb.files.write("/usr/new", b""), errno.EROFS),
        (lambda: sb.files.read("n" * 300), errno.ENAMETOOLONG),
    ]
    for refused, number in numbers:
        with pytest.raises(KernelError) as caught:
            refused()
        assert caught.value.errno == number


@pytest.mark.parametrize("path", ["", "a\0b", 5, None])
def test_what_is_no_path_is_refused(sb: Sandbox, path: object) -> None:
    with pytest.raises(SpecError, match="path"):
        sb.files.read(path)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/", "..", "d/.."])
def test_what_ends_in_no_name_is_not_removed(sb: Sandbox, path: str) -> None:
    sb.files.mkdir("d")
    with pytest.raises(SpecError, match="ends in a name"):
        sb.files.remove(path, recursive=True)


def test_set_user_bits_cannot_be_given(sb: Sandbox) -> None:
    with pytest.raises(SpecError, match="mode"):
        sb.files.write("file", b"", mode=0o4755)
    with pytest.raises(SpecError, match="mode"):
        sb.files.mkdir("d", 0o2755)
    with pytest.raises(SpecError, match="data"):
        sb.files.write("file", 5)  # type: ignore[arg-type]
    assert not sb.files.exists("file")


def test_renamed_over_what_is_there(sb: Sandbox) -> None:
    sb.sh("mkdir d; echo new > d/a; echo old > b")
    sb.files.rename("d/a", "b")
    assert sb.files.read("b") == b"new\n"
    assert sb.files.list("d") == []


def test_a_full_disk_is_an_error() -> None:
    with Sandbox(rootfs=Rootfs.host(size="1M")) as sb:
        with pytest.raises(KernelError) as caught:
            sb.files.write("file", bytes(2 << 20))
        assert caught.value.errno == errno.ENOSPC


def test_a_closed_sandbox_has_no_files() -> None:
    with Sandbox() as sb:
        files = sb.files
    with pytest.raises(StateError, match="closed"):
        files.read("/etc/hostname")


# --- whole folders ------------------------------------------------------------------------------------


def test_a_folder_goes_with_all_that_is_in_it(sb: Sandbox) -> None:
    sb.sh("mkdir -p d/e/f; cd d; seq 1 2000 | xargs touch; ln -s /etc link; mkfifo e/fifo; chmod 0 e/f e")
    sb.files.remove("d", recursive=True)
    assert not sb.files.exists("d")


DEEP = """
import os
os.mkdir("deep"); os.chdir("deep")
for _ in range(5000): os.mkdir("d"); os.chdir("d")
open("bottom", "w")
"""


def test_a_folder_deeper_than_any_path_is_removed(sb: Sandbox) -> None:
    sb.run(["python3", "-c", DEEP], check=True)
    sb.files.remove("deep", recursive=True)
    assert not sb.files.exists("deep")


def test_removal_follows_no_link_and_leaves_mounts(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    kept = tmp_path / "kept"
    kept.write_text("mine")
    with Sandbox(mounts=[Mount.bind(tmp_path, "/work/d/mounted")]) as sb:
        sb.sh("mkdir -p e; ln -s /work/d/mounted e/link")
        sb.files.remove("e", recursive=True)
        assert kept.read_text() == "mine"
        with pytest.raises(KernelError):
            sb.files.remove("d", recursive=True)
        assert sb.files.exists("d/mounted")


# --- nothing outside ----------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["{}", "../../../../../../../..{}", "/proc/1/root{}", "/proc/self/root{}"])
def test_no_link_leads_to_a_file_of_the_host(sb: Sandbox, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.write_text("the host's")
    sb.run(["ln", "-s", link.format(outside), "link"], check=True)
    sb.run(["ln", "-s", link.format(tmp_path), "folder"], check=True)
    for call in (
        lambda: sb.files.read("link"),
        lambda: sb.files.write("link", b"changed"),
        lambda: sb.files.read("folder/outside"),
        lambda: sb.files.write("folder/new", b"new"),
        lambda: sb.files.remove("folder/outside"),
        lambda: sb.files.list("folder"),
        lambda: sb.files.copy_out("folder", tmp_path / "copy"),
        lambda: sb.files.mkdir("folder/new"),
        lambda: sb.files.rename("folder/outside", "mine"),
    ):
        with pytest.raises(KernelError):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert outside.read_text() == "the host's"


def test_dots_end_at_the_root(sb: Sandbox) -> None:
    assert sb.files.read("/../../../etc/hostname") == b"sandbox\n"
    sb.sh("ln -s ../../../../../etc/hostname link")
    assert sb.files.read("link") == b"sandbox\n"


def test_secrets_of_the_host_are_not_there(sb: Sandbox) -> None:
    assert Path("/etc/shadow").exists()
    assert not sb.files.exists("/etc/shadow")


def test_magic_links_lead_nowhere(sb: Sandbox) -> None:
    with sb.popen(["sleep", "60"], stdin=0) as process:
        inside = next(info.pid for info in sb.processes() if info.host_pid == process.pid)
        assert b"sleep" in sb.files.read(f"/proc/{inside}/cmdline")
        for below in ("root/etc/hostname", "cwd", "exe", "fd/0"):
            with pytest.raises(KernelError) as caught:
                sb.files.stat(f"/proc/{inside}/{below}")
            assert caught.value.errno == errno.ELOOP
        process.kill()


def test_what_is_no_plain_file_is_refused_at_once(sb: Sandbox) -> None:
    sb.sh("mkfifo fifo; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'")
    for path in ("fifo", "/dev/zero", "/dev/tty"):
        with pytest.raises((ViolationError, KernelError)) as caught:
            sb.files.read(path)
        assert isinstance(caught.value, ViolationError) or "ENXIO" in str(caught.value)
    for path in ("fifo", "/dev/null", "socket"):
        with pytest.raises(ViolationError, match="not a regular file"):
            sb.files.write(path, b"x")


def test_the_kernels_files_are_not_written(sb: Sandbox) -> None:
    with sb.popen(["sleep", "60"]) as process:
        inside = next(info.pid for info in sb.processes() if info.host_pid == process.pid)
        path = f"/proc/{inside}/oom_score_adj"
        before = sb.files.read(path)
        sb.sh(f"ln -s {path} link")
        for name in (path, "link"):
            with pytest.raises(ViolationError, match="kernel's"):
                sb.files.write(name, b"999")
        assert sb.files.read(path) == before
        process.kill()


EXCHANGE = """
import os, sys
os.mkdir("real"); os.symlink(sys.argv[1], "bad"); os.mkdir("real/sub")
print(flush=True)
while True:
    os.rename("real", "d"); os.rename("d", "real")
    os.rename("bad", "d"); os.rename("d", "bad")
"""


def test_a_folder_that_is_exchanged_all_the_time_leads_nowhere_else(sb: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    outside = tmp_path / "outside"
    outside.write_text("the host's")
    worked, unexpected = 0, set[int | None]()
    with sb.popen(["python3", "-c", EXCHANGE, str(tmp_path)], stdout=-1) as process:
        process.stdout.readline()
        deadline = time.monotonic() + 1
        for i in itertools.takewhile(lambda _: time.monotonic() < deadline, itertools.count()):
            for call in (
                lambda i=i: sb.files.write(f"d/new{i}", b"x"),
                lambda: sb.files.read("d/outside"),
                lambda: sb.files.remove("d/outside"),
                lambda: sb.files.remove("d/sub", recursive=True),
            ):
                try:
                    call()
                    worked += 1
                except KernelError as error:
                    unexpected |= {error.errno} - {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}
        process.kill()
    assert worked
    assert not unexpected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "sub"]
    assert outside.read_text() == "the host's"
