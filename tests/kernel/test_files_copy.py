"""Copies into a sandbox and out of it: what arrives, and what a hostile tree on either side cannot do."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxlib import KernelError, Mount, Sandbox, Security, SpecError, ViolationError

pytestmark = pytest.mark.userns


@pytest.fixture
def sb() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def show(folder: Path) -> dict[str, tuple[str, int, object]]:
    """Everything below *folder*: type and bits, time, content."""
    found: dict[str, tuple[str, int, object]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (stat.filemode(status.st_mode), status.st_mtime_ns, content)
    return found


def make(folder: Path) -> Path:
    """A tree with some of everything that is copied."""
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "empty").mkdir(mode=0o700)
    (folder / "a" / "run").write_bytes(b"#!/bin/sh\necho ran\n")
    (folder / "a" / "run").chmod(0o755)
    (folder / "a" / "b" / "data").write_bytes(bytes(range(256)) * 10_000)
    (folder / "a" / "b" / "private").write_text("mine")
    (folder / "a" / "b" / "private").chmod(0o600)
    (folder / "a" / "up").symlink_to("../a/run")
    (folder / "broken").symlink_to("/no/such/file")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\n")).touch()
    for path in (*folder.rglob("*"), folder):
        os.utime(path, ns=(10**18 + 1, 10**18 + 123), follow_symlinks=False)
    return folder


def test_a_tree_goes_in_and_comes_out_as_it_was(sb: Sandbox, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    before = show(source)
    sb.files.copy_in(source, "/work/copy")
    assert sb.run(["/work/copy/a/run"]).stdout == b"ran\n"
    assert sb.sh("cat copy/a/up").stdout.startswith(b"#!/bin/sh")
    sb.files.copy_out("/work/copy", tmp_path / "back")
    assert show(tmp_path / "back") == before == show(source)
    assert (tmp_path / "back").stat().st_mtime_ns == 10**18 + 123


def test_a_single_file_is_called_what_was_said(sb: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    sb.files.copy_in(tmp_path / "file", "deep/inside/other")
    assert sb.files.read("deep/inside/other") == b"1"
    sb.files.copy_out("deep/inside/other", tmp_path / "new" / "folder" / "again")
    assert (tmp_path / "new" / "folder" / "again").read_text() == "1"
    with pytest.raises(KernelError) as caught:
        sb.files.copy_in(tmp_path / "file", "deep")
    assert isinstance(caught.value, IsADirectoryError)


def test_a_folder_that_is_there_is_added_to(sb: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "same").write_text("new")
    sb.sh("mkdir d; echo old > d/same; echo kept > d/other; ln d/same second")
    sb.files.copy_in(tmp_path / "source", "d")
    assert sb.sh("cat d/same d/other second").stdout == b"newkept\nold\n"
    target = tmp_path / "target"
    target.mkdir()
    (target / "same").write_text("older")
    (target / "kept").write_text("kept")
    os.link(target / "same", tmp_path / "second")
    sb.files.copy_out("d", target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "same": "new",
        "other": "kept\n",
        "kept": "kept",
    }
    assert (tmp_path / "second").read_text() == "older"


def test_relative_paths_of_the_host_are_the_programs(
    sb: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("src").mkdir()
    Path("src", "file").write_text("1")
    sb.files.copy_in("src/", "/work/src")
    sb.files.copy_out("/work/src", "out/")
    sb.files.copy_out("/work/src/file", "plain")
    assert Path("out", "file").read_text() == Path("plain").read_text() == "1"


@pytest.mark.root
def test_copies_belong_to_who_they_are_for(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").touch()
    os.chown(tmp_path / "source" / "file", 12345, 12345)
    with Sandbox(security=Security(user=1000)) as sb:
        sb.files.copy_in(tmp_path / "source", "in")
        assert sb.sh("stat -c %u in in/file").stdout.split() == [b"1000", b"1000"]
        sb.files.copy_out("in", tmp_path / "out")
    assert {path.stat().st_uid for path in (tmp_path / "out", tmp_path / "out" / "file")} == {0}


def test_set_user_bits_do_not_pass(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "set").touch()
    (tmp_path / "source" / "set").chmod(0o6755)
    # The default filter refuses to set such bits at all.
    with Sandbox(security=Security(without=["seccomp"])) as sb:
        sb.files.copy_in(tmp_path / "source", "in")
        assert sb.sh("stat -c %a in/set").stdout == b"755\n"
        assert sb.sh("chmod 6755 in/set; chmod 7777 in; cp in/set one; chmod 4711 one").returncode == 0
        assert sb.files.stat("one").st_mode & 0o4000
        sb.files.copy_out("in", tmp_path / "out")
        sb.files.copy_out("one", tmp_path / "one")
    modes = [(tmp_path / name).stat().st_mode for name in ("out", "out/set", "one")]
    assert not any(mode & 0o7000 for mode in modes)


def test_the_callers_umask_holds_outside(sb: Sandbox, tmp_path: Path) -> None:
    sb.sh("mkdir d; chmod 777 d; touch d/f; chmod 666 d/f")
    before = os.umask(0o027)
    try:
        sb.files.copy_out("d", tmp_path / "d")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "d", tmp_path / "d" / "f")] == [
        0o750,
        0o640,
    ]


def test_a_folder_stays_open_to_its_new_owner(sb: Sandbox, tmp_path: Path) -> None:
    sb.sh("mkdir -p d/e; echo 1 > d/e/f; chmod 0 d/e/f d/e d")
    sb.files.copy_out("d", tmp_path / "d")
    assert [path.name for path in (tmp_path / "d" / "e").iterdir()] == ["f"]


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_what_cannot_be_copied_is_refused_by_name(sb: Sandbox, tmp_path: Path, kind: str) -> None:
    odd = tmp_path / "source" / "odd"
    odd.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(odd)
        sb.sh("mkdir d; mkfifo d/odd")
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(odd))
        sb.run(
            ["python3", "-c", "import os, socket; os.mkdir('d'); socket.socket(socket.AF_UNIX).bind('d/odd')"]
        )
    for source in (odd.parent, odd):
        with pytest.raises(ViolationError, match="not copied") as caught:
            sb.files.copy_in(source, "in")
        assert caught.value.path == str(odd)
    for inside in ("d", "d/odd"):
        with pytest.raises(ViolationError, match="not copied") as caught:
            sb.files.copy_out(inside, tmp_path / "out")
        assert caught.value.path == "/work/d/odd"
    with pytest.raises(ViolationError, match="device"):
        sb.files.copy_out("/dev/null", tmp_path / "null")


def test_no_link_in_the_source_is_followed(sb: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").symlink_to(secret)
    (tmp_path / "source" / "folder").symlink_to(tmp_path)
    sb.files.copy_in(tmp_path / "source", "in")
    assert sb.sh("readlink in/file in/folder").stdout.split() == [os.fsencode(secret), os.fsencode(tmp_path)]
    assert b"secret" not in sb.sh("cat in/file; ls in/folder/").stdout


def test_no_link_at_the_target_is_followed(sb: Sandbox, tmp_path: Path) -> None:
    victim, victims = tmp_path / "victim", tmp_path / "victims"
    victim.write_text("untouched")
    victims.mkdir()
    sb.sh("mkdir -p d/sub; echo new > d/sub/file; echo new > d/file")
    (tmp_path / "link").symlink_to(victims)
    with pytest.raises(ViolationError, match="link"):
        sb.files.copy_out("d", tmp_path / "link")
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").symlink_to(victim)
    (target / "sub").symlink_to(victims)
    with pytest.raises(ViolationError, match="link"):
        sb.files.copy_out("d", target)
    assert list(victims.iterdir()) == []
    assert victim.read_text() == "untouched"
    # A file takes the place of a link, as by rename(2).
    sb.files.copy_out("d/file", target / "file")
    assert (target / "file").read_text() == "new\n"
    assert not (target / "file").is_symlink()
    assert victim.read_text() == "untouched"


def test_no_link_at_the_target_inside_is_followed(sb: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "file").write_text("new")
    sb.sh("mkdir in victims; echo untouched > victim; ln -s ../victim in/file")
    sb.files.copy_in(tmp_path / "source", "in")
    assert sb.sh("cat victim in/file").stdout == b"untouched\nnew"
    sb.sh("rmdir in/sub; ln -s ../victims in/sub")
    (tmp_path / "source" / "sub" / "x").touch()
    with pytest.raises(ViolationError, match="link"):
        sb.files.copy_in(tmp_path / "source", "in")
    assert sb.files.list("victims") == []


def test_nothing_half_written_is_left_outside(tmp_path: Path) -> None:
    from sandboxlib import Rootfs

    (tmp_path / "big").write_bytes(bytes(2 << 20))
    (tmp_path / "out").mkdir()
    with Sandbox(rootfs=Rootfs.host(size="1M")) as sb:
        with pytest.raises(KernelError, match="ENOSPC"):
            sb.files.copy_in(tmp_path / "big", "big")
        sb.sh("mkfifo fifo")
        with pytest.raises(ViolationError):
            sb.files.copy_out("fifo", tmp_path / "out" / "fifo")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("path", ["..", ".", "/", "out/.."])
def test_a_target_has_a_name(sb: Sandbox, path: str) -> None:
    with pytest.raises(SpecError, match="target"):
        sb.files.copy_out("/etc/hostname", path)


def test_a_source_that_does_not_exist_is_named(sb: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(KernelError) as caught:
        sb.files.copy_in(tmp_path / "nothing", "in")
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.filename == str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        sb.files.copy_out("nothing", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


BIG = """
import resource, sys
from sandboxlib import Rootfs, Sandbox
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
with Sandbox(rootfs=Rootfs.host(size="200M")) as sb:
    sb.files.copy_in(sys.argv[1] + "/small", "small")
    sb.files.copy_out("small", sys.argv[1] + "/small2")
    before = peak()
    sb.files.copy_in(sys.argv[1] + "/big", "big")
    sb.files.copy_out("big", sys.argv[1] + "/back")
    print(peak() - before)
"""


def test_a_large_file_does_not_come_into_memory(tmp_path: Path) -> None:
    (tmp_path / "small").touch()
    with (tmp_path / "big").open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(1 << 20))
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()


SWAP = """
import os, sys
print(flush=True)
while True:
    for a, b in (("out", "aside"), ("link", "out"), ("out", "link"), ("aside", "out")):
        try:
            os.rename(f"/shared/{a}", f"/shared/{b}")
        except OSError:
            pass
"""


def test_a_shared_target_that_is_exchanged_leads_nowhere_else(tmp_path: Path) -> None:
    """The sandbox can write where the copy goes, and puts a link there again and again."""
    shared, victims = tmp_path / "shared", tmp_path / "victims"
    shared.mkdir()
    shared.chmod(0o777)
    victims.mkdir()
    victims.chmod(0o777)
    with Sandbox(mounts=[Mount.bind(shared, "/shared")]) as sb:
        sb.sh(
            "mkdir -p d/sub; for i in 1 2 3 4 5 6 7 8; do echo $i > d/$i; echo $i > d/sub/$i; done; "
            f"ln -s {victims} /shared/link"
        )
        complete = 0
        with sb.popen(["python3", "-c", SWAP], stdout=-1) as process:
            process.stdout.readline()
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                try:
                    sb.files.copy_out("/work/d", shared / "out")
                    complete += 1
                except (ViolationError, KernelError):
                    continue
            process.kill()
    assert list(victims.iterdir()) == []
    assert complete
