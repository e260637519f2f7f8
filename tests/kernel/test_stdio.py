"""Standard streams opened again by name: for what they are open for already, and for nothing more"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from faces import Run, run_fixture
from kernel.probe.outside import WHO, program

from sandboxlib import STDOUT, Sandbox, Security

pytestmark = [pytest.mark.userns]
__all__ = ["run_fixture"]

SOURCE = b"int main(void) { return 7; }\n"
COMPILE = "gcc -x c /dev/stdin -o /tmp/made && /tmp/made; echo $?"
#: Opens each stream by each of its names in each way, and says what came of it.
LOOK = r"""
import errno, os, sys
found = []
for number, name in enumerate(("stdin", "stdout", "stderr")):
    for path in (f"/dev/{name}", f"/dev/fd/{number}", f"/proc/self/fd/{number}"):
        for mode, flags in (("r", os.O_RDONLY), ("w", os.O_WRONLY), ("rw", os.O_RDWR)):
            try:
                os.close(os.open(path, flags))
            except OSError as error:
                found.append((path, mode, errno.errorcode[error.errno]))
            else:
                found.append((path, mode, "ok"))
with open("/tmp/found", "w") as file:
    file.write(repr(found))
"""


def python(source: str) -> list[str]:
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", source]


def look(**streams: Any) -> dict[tuple[str, str], str]:
    """What a command can open of its streams: by path and way."""
    with Sandbox() as sandbox:
        assert sandbox.run(python(LOOK), **streams).returncode == 0
        found: list[tuple[str, str, str]] = eval(sandbox.files.read_text("/tmp/found"))
    return {(path, mode): said for path, mode, said in found}


# --- pipes -----------------------------------------------------------------------------------------------


def test_pipes_can_be_opened_by_name(run: Run) -> None:
    assert run(["sh", "-c", "echo hi > /dev/stdout; echo ho > /dev/stderr"]).stdout == b"hi\n"
    done = run(["tee", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/2"], input=b"x")
    assert (done.stdout, done.stderr) == (b"xx", b"xx")
    assert run(["cat", "/dev/stdin", "/dev/fd/0"], input=b"in").stdout == b"in"
    done = run(["sh", "-c", "echo one; echo two >> /dev/stdout; echo three > /dev/stderr"], stderr=STDOUT)
    assert done.stdout == b"one\ntwo\nthree\n"


@pytest.mark.tool("gcc")
def test_a_compiler_reads_its_source_from_standard_input_by_name(run: Run) -> None:
    assert run(["sh", "-c", COMPILE], input=SOURCE).stdout == b"7\n"


@pytest.mark.root
def test_so_can_those_of_other_users_inside(run: Run) -> None:
    spec = {"security": Security(user="1000:1000")}
    done = run(["sh", "-c", "cat /dev/stdin > /dev/stdout; id -u > /dev/stderr"], input=b"in", spec=spec)
    assert (done.stdout, done.stderr) == (b"in", b"1000\n")


@WHO
def test_so_can_those_of_a_process_and_of_a_terminal(who: str) -> None:
    script = """
from sandboxlib import PIPE, Sandbox
with Sandbox() as sandbox:
    with sandbox.popen(["tee", "/dev/stderr"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        process.stdin.write(b"x")
        process.stdin.close()
        found = [process.stdout.read().decode(), process.stderr.read().decode()]
    with sandbox.popen(["sh", "-c", "echo hi > /dev/stdout; echo ho > /dev/stderr"], tty=True) as process:
        found.append(process.tty.read(100).decode())
        process.wait()
print(json.dumps(found))
"""
    assert program(who, script)[:2] == ["x", "x"]


def test_no_pipe_can_be_opened_in_the_other_direction() -> None:
    found = look(input=b"x")
    for (path, mode), said in found.items():
        mine = "r" if path.endswith(("stdin", "0")) else "w"
        # A user is the owner of his pipes, and may change their modes; root's belong to nobody inside.
        assert said == ("ok" if mode == mine else "EACCES"), (path, mode)


@pytest.mark.root
def test_nobody_inside_can_change_that() -> None:
    source = """
import os
for number in (0, 1, 2):
    for call in (os.fchmod, lambda fd, mode: os.chmod(f"/proc/self/fd/{fd}", mode)):
        try:
            call(number, 0o666)
        except PermissionError:
            continue
        raise SystemExit(f"{number} could be changed")
"""
    with Sandbox() as sandbox:
        done = sandbox.run(python(source), input=b"")
    assert (done.returncode, done.stderr) == (0, b"")


def test_pipes_of_the_callers_can_be_opened_by_name(run: Run) -> None:
    read, write = os.pipe()
    try:
        done = run(["sh", "-c", "echo hi > /dev/stdout; echo ho > /dev/stderr"], stdout=write, stderr=write)
        assert done.returncode == 0
        assert os.read(read, 100) == b"hi\nho\n"
        os.write(write, b"in")
        os.close(write)
        write = -1
        assert run(["cat", "/dev/stdin"], stdin=read).stdout == b"in"
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


@pytest.mark.root
def test_what_the_caller_writes_to_his_own_pipe_cannot_be_read_by_a_command_that_writes_there() -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"secret")
        found = look(stdout=write)
        assert {found[path, "r"] for path in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")} == {"EACCES"}
        assert found["/dev/stdout", "rw"] == "EACCES"
        assert os.read(read, 100) == b"secret"
    finally:
        os.close(read)
        os.close(write)


# --- files of the caller's -------------------------------------------------------------------------------

#: Files with a name, of these modes; and those that have none.
MODES = [0o600, 0o640, 0o644, 0o666]
FILES = pytest.mark.parametrize("kind", [*map(oct, MODES), "removed", "memfd"])


def made(kind: str, folder: Path, content: bytes) -> IO[bytes]:
    """A file of a kind, open for both, at its beginning."""
    if kind == "removed":
        file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller's
    elif kind == "memfd":
        file = os.fdopen(os.memfd_create("sandboxlib-test"), "w+b")
    else:
        path = folder / "file"
        path.touch(int(kind, 0))
        path.chmod(int(kind, 0))
        file = open(path, "w+b")  # noqa: SIM115 - the caller's
    file.write(content)
    file.seek(0)
    return file


def facts(file: IO[bytes]) -> object:
    """What must not change of a file that has a name."""
    found = os.fstat(file.fileno())
    return (found.st_mode, found.st_uid, found.st_gid) if found.st_nlink else None


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Iterator[Path]:
    """A folder of the caller's; whatever is handed in from it has the owner and mode that it had."""
    yield tmp_path
    for path in tmp_path.iterdir():
        assert path.stat().st_uid == os.geteuid()


@pytest.mark.landlock(3)
@pytest.mark.tool("gcc")
@FILES
def test_a_file_is_read_by_name(run: Run, kind: str, folder: Path) -> None:
    with made(kind, folder, SOURCE) as file:
        before = facts(file)
        assert run(["sh", "-c", COMPILE], stdin=file).stdout == b"7\n"
        assert facts(file) == before
        file.seek(0)
        assert file.read() == SOURCE


@pytest.mark.landlock(3)
@FILES
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_file_is_written_by_name(run: Run, kind: str, stream: str, folder: Path) -> None:
    with made(kind, folder, b"") as file:
        before = facts(file)
        done = run(["sh", "-c", f"echo hi > /dev/{stream}"], **{stream: file})
        assert (done.returncode, done.stderr or b"") == (0, b"")
        file.seek(0)
        assert file.read() == b"hi\n"
        assert facts(file) == before


@pytest.mark.qemu
@pytest.mark.landlock(3)
def test_both_outputs_in_one_file_are_written_by_name(run: Run, folder: Path) -> None:
    with open(folder / "both", "wb") as file:
        run(["sh", "-c", "echo hi >> /dev/stdout; echo ho >> /dev/stderr"], stdout=file, stderr=STDOUT)
    assert (folder / "both").read_bytes() == b"hi\nho\n"


@pytest.mark.qemu
@pytest.mark.landlock(3)
@WHO
def test_a_process_that_runs_on_writes_its_file_by_name(who: str, folder: Path) -> None:
    script = """
from sandboxlib import PIPE, Sandbox
with Sandbox() as sandbox, open("out" if facts["here"] else f"{facts['folder']}/out", "w+b") as file:
    with sandbox.popen(["sh", "-c", "read x; echo $x > /dev/stdout"], stdin=PIPE, stdout=file) as process:
        process.stdin.write(b"hi\\n")
        process.stdin.close()
        process.wait()
    file.seek(0)
    print(json.dumps(file.read().decode()))
"""
    assert program(who, script, folder=str(folder), here=who == "user") == "hi\n"


@pytest.mark.landlock(3)
@pytest.mark.parametrize("kind", [*map(oct, MODES), "removed"])
def test_a_file_that_is_read_cannot_be_written_by_any_name(kind: str, folder: Path) -> None:
    with made(kind, folder, b"keep me") as file:
        with open(f"/proc/self/fd/{file.fileno()}", "rb") as given:
            found = look(stdin=given)
            assert {found["/dev/stdin", mode] for mode in ("w", "rw")} <= {"EACCES", "EROFS"}
            for path in ("/dev/fd/0", "/proc/self/fd/0"):
                assert found[path, "w"] == found[path, "rw"] == "EACCES"
            source = "import os, sys\nfor p in ('/dev/stdin', '/proc/self/fd/0'):\n os.truncate(p, 0)"
            with Sandbox() as sandbox:
                assert sandbox.run(python(source), stdin=given).returncode == 1
        assert file.read() == b"keep me"


@pytest.mark.landlock(3)
@pytest.mark.parametrize("kind", [*map(oct, MODES), "removed"])
def test_what_a_file_held_before_cannot_be_read_by_who_writes_there(kind: str, folder: Path) -> None:
    with made(kind, folder, b"secret") as file:
        given = os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_APPEND)
        try:
            found = look(stdout=given)
        finally:
            os.close(given)
        paths = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
        assert {found[path, mode] for path in paths for mode in ("r", "rw")} == {"EACCES"}
        assert file.read() == b"secret"


@pytest.mark.qemu
@pytest.mark.landlock(3)
@pytest.mark.root
def test_a_file_of_another_user_is_what_its_mode_makes_it(folder: Path) -> None:
    path = folder / "others"
    path.write_bytes(b"mine")
    path.chmod(0o600)
    os.chown(path, 4711, 4711)
    with open(path, "rb") as file:
        assert {said for (name, _), said in look(stdin=file).items() if "stdin" in name} == {"EACCES"}
        with Sandbox() as sandbox:
            assert sandbox.run(["cat"], stdin=file).stdout == b"mine"
    os.chown(path, os.geteuid(), os.getegid())


@pytest.mark.landlock(3)
@pytest.mark.root
def test_a_file_of_the_number_that_the_command_has_inside_is_its_own(folder: Path) -> None:
    path = folder / "numbered"
    path.write_bytes(b"mine")
    path.chmod(0o600)
    os.chown(path, 1000, 1000)
    with open(path, "rb") as file, Sandbox(security=Security(user=1000)) as sandbox:
        assert sandbox.run(["cat", "/dev/stdin"], stdin=file).stdout == b"mine"
    os.chown(path, os.geteuid(), os.getegid())


@pytest.mark.landlock(3)
def test_what_is_shown_to_one_command_is_not_shown_to_another(folder: Path) -> None:
    with open(folder / "one", "w+b") as file, Sandbox() as sandbox:
        os.chmod(folder / "one", 0o600)
        file.write(b"secret")
        file.seek(0)
        with sandbox.popen(["sleep", "60"], stdin=file) as process:
            assert sandbox.run(["cat", "/dev/stdin"], input=b"").stdout == b""
            assert b"/one" not in sandbox.run(["cat", "/proc/self/mountinfo"]).stdout
            process.kill()


@pytest.mark.landlock(3)
def test_a_command_with_a_file_has_the_same_tree_as_others(folder: Path) -> None:
    (folder / "in").write_bytes(b"")
    (folder / "in").chmod(0o600)
    with Sandbox() as sandbox, open(folder / "in", "rb") as file:
        sandbox.run(["sh", "-c", "echo made > /work/made"], stdin=file)
        assert sandbox.files.read("/work/made") == b"made\n"
        without, mounts = (
            sandbox.run(["cat", "/proc/mounts"], stdin=given).stdout.splitlines() for given in (None, file)
        )
        assert set(without) <= set(mounts)
        assert len(mounts) - len(without) <= 1


# --- from a shell ----------------------------------------------------------------------------------------


@WHO
def test_a_pipeline_of_the_callers_opens_its_pipes_by_name(who: str) -> None:
    script = """
import subprocess, sys
command = [sys.executable, "-m", "sandboxlib", "run", "--", "tee", "/dev/stderr"]
done = subprocess.run(command, input="x", capture_output=True, text=True, cwd=facts["checkout"])
print(json.dumps([done.stdout, done.stderr]))
"""
    assert program(who, script, checkout=str(Path(__file__).parents[2])) == ["x", "x"]
