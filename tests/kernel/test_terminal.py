"""Commands on a terminal of the sandbox's own, and terminals that they must not reach."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable

import pytest

from sandboxlib.blocking import PIPE, Process, Sandbox
from sandboxlib.errors import CommandNotFoundError, KernelError, SpecError, StateError
from sandboxlib.security import Security

pytestmark = pytest.mark.userns


def python(source: str, *arguments: str) -> list[str]:
    """A command that runs *source* with nothing but the standard library."""
    return [sys.executable, "-I", "-S", "-c", source, *arguments]


def until(process: Process, text: bytes) -> bytes:
    """Read a process's terminal up to *text*; fail where it ends without."""
    assert process.tty is not None
    seen = b""
    while text not in seen:
        data = process.tty.read(4096)
        assert data, f"the terminal was closed after {seen!r}"
        seen += data
    return seen


def shown(sandbox: Sandbox, args: list[str], rows: int | None = None, columns: int | None = None) -> bytes:
    """All that a command shows on its terminal."""
    with sandbox.popen(args, tty=True, rows=rows, columns=columns) as process:
        assert process.tty is not None
        seen = process.tty.read()
    assert process.returncode == 0, seen
    return seen


# --- what a terminal does ---------------------------------------------------------------------------


def test_a_shell_on_a_terminal_as_the_api_writes_it() -> None:
    with Sandbox() as sb, sb.popen(["sh"], tty=True) as shell:
        assert shell.tty is not None
        shell.tty.write(b"stty size; exit\n")
        shell.resize(rows=40, columns=120)
        assert shell.tty.read()
        assert shell.wait() == 0


def test_all_three_streams_are_one_terminal_of_its_own_devpts() -> None:
    source = """
import os
print(sorted({os.ttyname(fd) for fd in (0, 1, 2)}))
print(os.tcgetpgrp(0) == os.getpgrp(), os.getsid(0) == os.getpid())
print(os.fstat(0).st_dev == os.stat("/dev/pts").st_dev, os.path.samefile("/dev/pts/0", "/dev/fd/0"))
os.close(os.open("/dev/tty", os.O_RDWR))
"""
    with Sandbox() as one, Sandbox() as two:
        for sandbox in (one, two):
            assert shown(sandbox, python(source)) == b"['/dev/pts/0']\r\nTrue True\r\nTrue True\r\n"


def test_the_streams_are_none_and_the_terminal_is_none_without_one() -> None:
    with Sandbox() as sb:
        with sb.popen(["true"], tty=True) as process:
            assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
        with sb.popen(["true"], stdout=PIPE) as process:
            assert process.tty is None


@pytest.mark.parametrize(
    "options, size",
    [({}, b"24 80\r\n"), ({"rows": 50}, b"50 80\r\n"), ({"rows": 1, "columns": 65535}, b"1 65535\r\n")],
)
def test_the_size_at_the_start(options: dict[str, int], size: bytes) -> None:
    with Sandbox() as sb:
        assert shown(sb, ["stty", "size"], **options) == size


def test_a_change_of_size_reaches_the_job_as_a_signal() -> None:
    source = """
import os, signal
signal.signal(signal.SIGWINCH, lambda *_: os.write(1, b"%d %d\\n" % os.get_terminal_size()))
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""
    with Sandbox() as sb, sb.popen(python(source), tty=True) as process:
        until(process, b"ready\r\n")
        process.resize(rows=40, columns=120)
        assert until(process, b"\n") == b"120 40\r\n"
        process.kill()


def test_job_control_works_in_bash() -> None:
    # A shell gives the terminal to a job before it lets it go on, so "again" is said by one in front.
    job = """
import os, signal
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"again\\n"))
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.write(1, b"here\\n")
while True:
    signal.pause()
"""
    env = {"PS1": "<ready>", "JOB": job}
    with Sandbox() as sb, sb.popen(["bash", "--norc", "-i"], tty=True, env=env) as shell:
        assert shell.tty is not None
        until(shell, b"<ready>")
        shell.tty.write(f'{sys.executable} -I -S -c "$JOB"\n'.encode())
        until(shell, b"here\r\n")
        shell.tty.write(b"\x1a")
        assert b"Stopped" in until(shell, b"<ready>")
        shell.tty.write(b"fg\n")
        until(shell, b"again\r\n")
        shell.tty.write(b"\x03")
        until(shell, b"<ready>")
        shell.tty.write(b"echo $?; exit\n")
        assert b"130\r\n" in shell.tty.read()


def test_the_end_of_a_terminal_reads_as_nothing_every_time() -> None:
    with Sandbox() as sb, sb.popen(["echo", "all"], tty=True) as process:
        assert process.tty is not None
        assert process.tty.read(3) == b"all"
        assert process.tty.read() == b"\r\n"
        assert process.tty.read(100) == b""
        assert process.tty.read() == b""
        assert process.tty.readinto(bytearray(10)) == 0


def test_writing_to_a_terminal_that_nobody_reads_any_more_is_a_broken_pipe() -> None:
    with Sandbox() as sb, sb.popen(["true"], tty=True) as process:
        assert process.tty is not None
        process.wait()
        with pytest.raises(BrokenPipeError):
            process.tty.write(b"anyone?")


def test_all_is_written_however_much_it_is() -> None:
    source = """
import hashlib, os, tty
tty.setraw(0)
os.write(1, b"raw")
left, digest = 3_000_000, hashlib.sha256()
while left:
    data = os.read(0, 65536)
    left -= len(data)
    digest.update(data)
print(digest.hexdigest(), flush=True)
"""
    data = os.urandom(3_000_000)
    with Sandbox() as sb, sb.popen(python(source), tty=True) as process:
        assert process.tty is not None
        until(process, b"raw")
        assert process.tty.write(data) == len(data)
        assert process.tty.read() == hashlib.sha256(data).hexdigest().encode() + b"\n"


def test_closing_the_terminal_hangs_up() -> None:
    with Sandbox() as sb, sb.popen(["sleep", "1000"], tty=True) as process:
        assert process.tty is not None
        process.tty.close()
        assert process.wait(timeout=5) == -1


def test_leaving_the_block_hangs_up_on_a_shell_that_waits_for_a_line() -> None:
    with Sandbox() as sb:
        with sb.popen(["sh"], tty=True) as shell:
            until(shell, b"#")
        assert shell.returncode == -1
        assert shell.tty is not None
        assert shell.tty.closed


@pytest.mark.parametrize("line", ["sleep 1000 & exit 0", "setsid sleep 1000 & exit 0"])
def test_who_is_left_in_the_background_does_not_keep_the_terminal_open(line: str) -> None:
    with Sandbox() as sb, sb.popen(["bash", "-c", line], tty=True) as process:
        assert process.tty is not None
        assert process.tty.read() == b""
        assert process.wait(timeout=5) == 0


def test_the_kind_of_terminal_is_known_and_can_be_chosen() -> None:
    command = ["sh", "-c", 'echo "$TERM"']
    with Sandbox() as sb:
        assert shown(sb, command) == b"xterm\r\n"
        with sb.popen(command, tty=True, env={"TERM": "dumb"}) as process:
            assert process.tty is not None
            assert process.tty.read() == b"dumb\r\n"
        assert sb.run(command).stdout == b"\n"
    with Sandbox(env={"TERM": "vt100"}) as sb:
        assert shown(sb, command) == b"vt100\r\n"


def test_line_editing_erases_whole_characters() -> None:
    with Sandbox() as sb, sb.popen(["head", "-n1"], tty=True) as process:
        assert process.tty is not None
        process.tty.write("a€\x7fb\n".encode())
        assert process.tty.read().endswith(b"\nab\r\n")


def test_several_terminals_at_once() -> None:
    with Sandbox() as sb:
        shells = [sb.popen(["sh"], tty=True) for _ in range(5)]
        for number, shell in enumerate(shells):
            assert shell.tty is not None
            shell.tty.write(b"tty; exit\n")
            assert f"/dev/pts/{number}\r\n".encode() in shell.tty.read()
        for shell in shells:
            with shell:
                pass


@pytest.mark.root
def test_a_terminal_belongs_to_the_commands_user() -> None:
    with Sandbox(security=Security(user="1000:1000")) as sb:
        assert (
            shown(sb, ["sh", "-c", "echo by name > $(tty); stat -c %u:%g:%a $(tty)"])
            == b"by name\r\n1000:1000:620\r\n"
        )


def test_a_plain_user_has_terminals_too(as_user: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = """
from sandboxlib.blocking import Sandbox
with Sandbox() as sb, sb.popen(["sh"], tty=True, rows=30) as shell:
    shell.tty.write(b"tty; stty size; exit\\n")
    print(shell.tty.read().decode())
    print(shell.wait())
"""
    lines = as_user(script).stdout.split()
    assert "/dev/pts/0" in lines
    assert lines[-1] == "0"
    assert "30" in lines


# --- what makes no sense ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, field",
    [
        ({"tty": True, "stdin": PIPE}, "stdin"),
        ({"tty": True, "stdout": PIPE}, "stdout"),
        ({"tty": True, "stderr": subprocess.DEVNULL}, "stderr"),
        ({"tty": True, "stdin": None}, "stdin"),
        ({"tty": True, "text": True}, "text"),
        ({"tty": True, "rows": 0}, "rows"),
        ({"tty": True, "columns": 65536}, "columns"),
        ({"tty": True, "rows": "24"}, "rows"),
        ({"rows": 24}, "rows"),
        ({"columns": 80}, "columns"),
        ({"tty": 1}, "tty"),
    ],
)
def test_contradictions_are_refused_by_name(options: dict[str, object], field: str) -> None:
    with Sandbox() as sb, pytest.raises(SpecError) as caught:
        sb.popen(["true"], **options)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_resize_needs_an_open_terminal_and_a_size() -> None:
    with Sandbox() as sb:
        with sb.popen(["true"]) as process, pytest.raises(StateError, match="tty=True"):
            process.resize(rows=24, columns=80)
        with sb.popen(["true"], tty=True) as process:
            with pytest.raises(SpecError) as caught:
                process.resize(rows=24, columns=0)
            assert caught.value.field == "columns"
        with pytest.raises(StateError):
            process.resize(rows=24, columns=80)


def test_a_command_that_does_not_exist_leaves_no_terminal() -> None:
    with Sandbox() as sb:
        for _ in range(3):
            with pytest.raises(CommandNotFoundError):
                sb.popen(["/no/such/thing"], tty=True)
        assert shown(sb, ["ls", "/dev/pts"]).split() == [b"0", b"ptmx"]


def test_no_terminal_in_a_sandbox_that_has_ended() -> None:
    with Sandbox() as sb:
        sb.kill()
        with pytest.raises(StateError):
            sb.popen(["true"], tty=True)
    with pytest.raises(StateError):
        sb.popen(["true"], tty=True)


# --- what must not be possible ----------------------------------------------------------------------

IOCTLS = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
def ioctl(request, argument):
    buffer = ctypes.create_string_buffer(argument, 16)
    done = libc.syscall(ctypes.c_long(NUMBER), ctypes.c_long(0), ctypes.c_ulong(request), buffer)
    return "allowed" if done != -1 else errno.errorcode[ctypes.get_errno()]
print(*(ioctl(request, b"x") for request in (0x5412, 0x541C, 0x5423, 1 << 32 | 0x5412, 1 << 63 | 0x541C)))
""".replace("NUMBER", "29" if os.uname().machine == "aarch64" else "16")


def test_keystrokes_cannot_be_pushed_into_a_terminal_not_even_its_own() -> None:
    # TIOCSTI, TIOCLINUX, TIOCSETD; and with bits set that the kernel does not look at (CVE-2019-10063).
    with Sandbox() as sb:
        assert shown(sb, python(IOCTLS)).split() == [b"EPERM"] * 5


NO_TERMINAL = """
import os, errno
for path in ("/dev/tty", "/dev/console", "/dev/tty0", "/dev/ttyS0", "/dev/pts/0"):
    try:
        os.open(path, os.O_RDWR)
        print(path, "opened")
    except OSError as error:
        print(path, errno.errorcode[error.errno])
print(sorted(os.listdir("/dev/pts")), os.getsid(0) == os.getpid(), [os.isatty(fd) for fd in (0, 1, 2)])
"""
NOTHING = [
    "/dev/tty ENXIO",
    "/dev/console ENOENT",
    "/dev/tty0 ENOENT",
    "/dev/ttyS0 ENOENT",
    "/dev/pts/0 ENOENT",
    "['ptmx'] True [False, False, False]",
]


def on_a_terminal(script: str) -> str:
    """Run a script whose controlling terminal is a new one; what it wrote to stderr."""
    main, other = pty.openpty()
    try:
        source = f"import fcntl, sys, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{script}"
        done = subprocess.run(
            [sys.executable, "-c", source],
            stdin=other,
            stdout=other,
            stderr=PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=30,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr
    finally:
        os.close(main)
        os.close(other)


def test_without_tty_a_command_has_no_terminal_and_the_callers_is_out_of_reach() -> None:
    script = f"""
from sandboxlib.blocking import Sandbox
open("/dev/tty", "r+b", buffering=0).close()
with Sandbox() as sb:
    print(sb.run([sys.executable, "-I", "-S", "-c", {NO_TERMINAL!r}], text=True).stdout, file=sys.stderr)
"""
    assert on_a_terminal(script).strip().splitlines() == NOTHING


def test_with_tty_the_callers_terminal_is_out_of_reach_too() -> None:
    source = (
        "import os; print(os.listdir('/dev/pts'), os.ttyname(0)); os.close(os.open('/dev/tty', os.O_RDWR))"
    )
    script = f"""
from sandboxlib.blocking import Sandbox
with Sandbox() as sb, sb.popen([sys.executable, "-I", "-S", "-c", {source!r}], tty=True) as process:
    print(process.tty.read().decode(), file=sys.stderr)
"""
    assert sorted(eval(on_a_terminal(script).rpartition("]")[0] + "]")) == ["0", "ptmx"]


def test_a_terminal_that_is_handed_in_can_be_used_but_not_taken() -> None:
    # stdin=None and stdout=None inherit it: that is asked for. It is still no controlling terminal.
    inner = """
import ctypes, errno, fcntl, json, os, sys, termios
def refused(call, *args):
    try:
        call(*args)
        return "allowed"
    except OSError as error:
        return errno.errorcode[error.errno]
found = {
    "is a terminal": os.isatty(0),
    "push a key": refused(fcntl.ioctl, 0, termios.TIOCSTI, b"x"),
    "take it": refused(fcntl.ioctl, 0, termios.TIOCSCTTY, 0),
    "steal it": refused(fcntl.ioctl, 0, termios.TIOCSCTTY, 1),
    "be in its foreground": refused(os.tcsetpgrp, 0, os.getpgrp()),
    "open /dev/tty": refused(os.open, "/dev/tty", os.O_RDWR),
}
print(json.dumps(found), file=sys.stderr)
"""
    script = f"""
from sandboxlib.blocking import Sandbox
with Sandbox() as sb:
    done = sb.run([sys.executable, "-I", "-S", "-c", {inner!r}], stdin=0, stdout=None, text=True)
    print(done.stderr, file=sys.stderr)
"""
    assert json.loads(on_a_terminal(script)) == {
        "is a terminal": True,
        "push a key": "EPERM",
        "take it": "EPERM",
        "steal it": "EPERM",
        "be in its foreground": "ENOTTY",
        "open /dev/tty": "ENXIO",
    }


@pytest.mark.rlimit("nofile=4096")
def test_one_sandbox_cannot_use_up_the_terminals_of_all() -> None:
    source = """
import errno, os
try:
    for count in range(5000):
        os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
except OSError as error:
    print(count, errno.errorcode[error.errno], flush=True)
os.read(0, 1)
"""
    security = Security(rlimits={"nofile": 4096})
    with Sandbox(security=security) as one, Sandbox() as two:
        with one.popen(python(source), stdin=PIPE, stdout=PIPE) as greedy:
            assert greedy.stdout.readline() == b"256 ENOSPC\n"
            with pytest.raises(KernelError) as caught:
                one.popen(["true"], tty=True)
            assert caught.value.call.startswith("openat2(")
            assert shown(two, ["tty"]) == b"/dev/pts/0\r\n"
        assert shown(one, ["tty"]) == b"/dev/pts/0\r\n"
