"""A terminal of the caller's given to a command: a program on a real pseudo-terminal is the caller."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sandboxlib.blocking import Sandbox
from sandboxlib.engine.attach import Keys
from sandboxlib.errors import CommandNotFoundError, SpecError

pytestmark = pytest.mark.userns

PRELUDE = """
import os, signal, sys, threading
from sandboxlib.blocking import Sandbox
def say(*words):
    print(*words, file=sys.stderr, flush=True)
def python(source):
    return [sys.executable, "-I", "-S", "-c", source]
"""


class Caller:
    """
    A program on a terminal, seen from the terminal's other end.

    Attributes:
        main: What a person would see and type at.
        program: The program; it says things to us on its stderr.
    """

    def __init__(self, main: int, other: int, program: subprocess.Popen[bytes]) -> None:
        self.main = main
        self.other = other
        self.program = program
        self.shown = b""
        self.said = b""

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.main, keys)

    def resize(self, rows: int, columns: int) -> None:
        """Pull at the window's corner."""
        termios.tcsetwinsize(self.main, (rows, columns))

    def modes(self) -> list[Any]:
        """The terminal's modes."""
        return termios.tcgetattr(self.other)

    def until(self, text: bytes, seconds: float = 20) -> bytes:
        """Look at the screen until *text* is there; what was shown up to it."""
        return self._until("shown", self.main, text, seconds)

    def hear(self, text: bytes, seconds: float = 20) -> bytes:
        """Listen to the program until it says *text*; what it said up to it."""
        assert self.program.stderr is not None
        return self._until("said", self.program.stderr.fileno(), text, seconds)

    def _until(self, name: str, fd: int, text: bytes, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        seen: bytes = getattr(self, name)
        while text not in seen:
            ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {seen[-2000:]!r}; shown {self.shown[-500:]!r}"
            data = os.read(fd, 65536)
            assert data, f"ended without {text!r}: {seen[-2000:]!r}"
            seen += data
        before, _, after = seen.partition(text)
        setattr(self, name, after)
        return before

    def wait(self) -> int:
        """Wait for the program's end."""
        return self.program.wait(timeout=20)


@contextmanager
def caller(script: str) -> Iterator[Caller]:
    """Run a script on a terminal of 30 by 100 characters."""
    main, other = pty.openpty()
    termios.tcsetwinsize(main, (30, 100))
    program = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script],
        stdin=other,
        stdout=other,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "vt220", "PS1": "$ "},
    )
    me = Caller(main, other, program)
    try:
        yield me
        # Hang up: what is still attached is detached, and the program ends, with its sandbox.
        if me.main >= 0:
            os.close(main)
            me.main = -1
        me.wait()
    finally:
        program.kill()
        program.communicate()
        for fd in (me.main, me.other):
            if fd >= 0:
                os.close(fd)


SHELL = """
with Sandbox() as sb:
    process = sb.attach(["sh"])
    say("returned", process.returncode)
"""


def test_what_is_typed_goes_in_and_what_is_shown_comes_out() -> None:
    with caller(SHELL) as me:
        me.type(b"echo $((6 * 7)) $(tty) $TERM\n")
        me.until(b"42 /dev/pts/0 vt220\r\n")
        me.type(b"exit 3\n")
        me.hear(b"returned 3\n")
        assert me.wait() == 0


def test_the_terminal_is_raw_meanwhile_and_as_it_was_afterwards() -> None:
    with caller(SHELL) as me:
        before = me.modes()
        me.type(b"echo in'side'\n")
        me.until(b"inside\r\n")
        local, output = me.modes()[3], me.modes()[1]
        assert not local & (termios.ICANON | termios.ECHO | termios.ISIG)
        assert not output & termios.OPOST
        me.type(b"exit\n")
        me.hear(b"returned 0\n")
        assert me.modes() == before


def test_the_window_size_is_passed_on_at_the_start_and_when_it_changes() -> None:
    script = """
with Sandbox() as sb:
    source = '''
import os, signal
show = lambda *_: os.write(1, b"<%d %d>" % os.get_terminal_size())
signal.signal(signal.SIGWINCH, show)
show()
while True:
    signal.pause()
'''
    sb.attach(python(source))
"""
    with caller(script) as me:
        me.until(b"<100 30>")
        me.resize(40, 120)
        me.until(b"<120 40>")
        me.resize(10, 20)
        me.until(b"<20 10>")


def test_a_key_that_would_interrupt_the_caller_interrupts_the_command() -> None:
    script = """
with Sandbox() as sb:
    line = 'trap "echo caught; exit 5" INT; echo here; while :; do sleep 0.05; done'
    process = sb.attach(["sh", "-c", line])
    say("returned", process.returncode)
"""
    with caller(script) as me:
        me.until(b"here\r\n")
        me.type(b"\x03")
        me.until(b"caught\r\n")
        me.hear(b"returned 5\n")


def test_detached_it_runs_on_and_can_be_attached_again() -> None:
    script = """
with Sandbox() as sb:
    process = sb.attach(["sh"])
    say("detached", process.returncode, process.poll())
    sys.stdin.readline()
    again = sb.attach(process)
    say("returned", again is process, process.returncode)
"""
    with caller(script) as me:
        before = me.modes()
        me.type(b"name=kept; echo $name\n")
        me.until(b"kept\r\n")
        me.type(b"\x10\x11")
        me.hear(b"detached None None\n")
        assert me.modes() == before
        me.type(b"now\n")
        me.until(b"now\r\n")
        me.type(b"echo still $name; exit 4\n")
        me.until(b"still kept\r\n")
        me.hear(b"returned True 4\n")


def test_what_popen_started_can_be_attached_and_is_drawn_anew() -> None:
    script = """
with Sandbox() as sb:
    source = '''
import os, signal
signal.signal(signal.SIGWINCH, lambda *_: os.write(1, b"<%d %d>" % os.get_terminal_size()))
os.write(1, b"ready")
while True:
    signal.pause()
'''
    with sb.popen(python(source), tty=True, rows=30, columns=100) as process:
        sb.wait_for(output=(process, b"ready"), timeout=10)
        sb.attach(process)
        say("detached", process.poll())
        process.kill()
"""
    with caller(script) as me:
        # The size is what it was: it is changed for a moment, so that everything is drawn again.
        assert me.until(b"<100 30>").startswith(b"ready")
        me.type(b"\x10\x11")
        me.hear(b"detached None\n")
        assert me.wait() == 0


RAW = """
import os, tty
tty.setraw(0)
os.write(1, b"ready")
while True:
    for byte in os.read(0, 4096):
        os.write(1, b"<%02x>" % byte)
"""


def test_the_first_key_of_the_sequence_alone_is_passed_on_with_the_next_key() -> None:
    with caller(f"with Sandbox() as sb:\n    sb.attach(python({RAW!r}))\n    say('detached')\n") as me:
        me.until(b"ready")
        me.type(b"\x10a")
        me.until(b"<10><61>")
        me.type(b"\x10\x10\x11")
        me.hear(b"detached\n")
        assert b"<11>" not in me.shown


@pytest.mark.parametrize("keys", [b"", b"\x1d"])
def test_every_byte_reaches_the_command(keys: bytes) -> None:
    script = (
        f"with Sandbox() as sb:\n    sb.attach(python({RAW!r}), detach_keys={keys!r})\n    say('detached')\n"
    )
    with caller(script) as me:
        me.until(b"ready")
        data = bytes(byte for byte in range(256) if bytes((byte,)) != keys)
        me.type(data)
        for byte in data:
            assert me.until(b"<%02x>" % byte) == b""
        if keys:
            me.type(keys)
            me.hear(b"detached\n")


def test_much_output_arrives_whole() -> None:
    script = """
with Sandbox() as sb:
    process = sb.attach(["sh", "-c", "stty raw; head -c 3000000 /dev/zero | tr '\\\\0' x; printf END"])
    say("returned", process.returncode)
"""
    with caller(script) as me:
        assert me.until(b"END") == b"x" * 3_000_000
        me.hear(b"returned 0\n")


def test_much_typing_into_a_command_that_does_not_read_can_still_be_detached_from() -> None:
    script = """
with Sandbox() as sb:
    sb.attach(["sh", "-c", "stty raw -echo; echo ready; sleep 1000"])
    say("detached")
"""
    with caller(script) as me:
        me.until(b"ready")
        for _ in range(100):
            me.type(b"x" * 1000)
        me.type(b"\x10\x11")
        me.hear(b"detached\n")


@pytest.mark.parametrize(
    "number, handler, exception",
    [
        ("SIGINT", "", "KeyboardInterrupt"),
        ("SIGTERM", "signal.signal(15, lambda *_: sys.exit(9))", "SystemExit"),
    ],
)
def test_an_exception_restores_the_terminal_and_kills_what_was_started(
    number: str, handler: str, exception: str
) -> None:
    script = f"""
{handler}
with Sandbox() as sb:
    try:
        sb.attach(["sh", "-c", "trap '' HUP INT TERM; echo here; while :; do sleep 0.05; done"])
    except BaseException as error:
        say(type(error).__name__, sb.processes())
"""
    with caller(script) as me:
        before = me.modes()
        me.until(b"here\r\n")
        assert me.modes() != before
        os.kill(me.program.pid, getattr(signal, number))
        me.hear(f"{exception} []\n".encode())
        assert me.modes() == before
        assert me.wait() == 0


def test_an_exception_leaves_a_process_that_was_handed_in() -> None:
    script = """
with Sandbox() as sb, sb.popen(["sleep", "1000"], tty=True) as process:
    try:
        say("now")
        sb.attach(process)
    except KeyboardInterrupt:
        say("interrupted", process.poll())
        process.kill()
"""
    with caller(script) as me:
        before = me.modes()
        me.hear(b"now\n")
        deadline = time.monotonic() + 10
        while me.modes() == before and time.monotonic() < deadline:
            select.select([], [], [], 0.01)
        os.kill(me.program.pid, signal.SIGINT)
        me.hear(b"interrupted None\n")
        assert me.modes() == before


def test_it_works_in_a_thread_and_sets_no_signal_handler() -> None:
    script = """
before = [signal.getsignal(number) for number in range(1, 65)]
def work():
    with Sandbox() as sb:
        sb.attach(["sh"])
        say("returned")
thread = threading.Thread(target=work)
thread.start()
sys.stdin.closed
thread.join(0.5)
say("same" if [signal.getsignal(number) for number in range(1, 65)] == before else "other")
thread.join()
"""
    with caller(script) as me:
        me.hear(b"same\n")
        me.resize(20, 70)
        me.type(b"sleep 0.3; stty size; exit\n")
        me.until(b"20 70\r\n")
        me.hear(b"returned\n")


def test_when_the_callers_terminal_goes_away_the_command_is_detached() -> None:
    script = """
with Sandbox() as sb:
    process = sb.attach(["sh"])
    say("detached", process.poll())
    process.kill()
"""
    with caller(script) as me:
        me.type(b"echo in'side'\n")
        me.until(b"inside")
        os.close(me.main)
        me.main = -1
        me.hear(b"detached None\n")
        assert me.wait() == 0


def test_a_command_that_closes_its_terminal_and_opens_it_again() -> None:
    script = """
with Sandbox() as sb:
    source = '''
import os, time
for fd in range(3):
    os.close(fd)
time.sleep(0.3)
fd = os.open("/dev/tty", os.O_RDWR)
os.write(fd, b"back")
os._exit(6)
'''
    process = sb.attach(python(source))
    say("returned", process.returncode, process.usage.cpu_user is None or process.usage.cpu_user < 5)
"""
    with caller(script) as me:
        me.until(b"back")
        me.hear(b"returned 6 True\n")


def test_the_end_of_the_sandbox_is_the_end_of_being_attached() -> None:
    script = """
with Sandbox(lifetime=0.5) as sb:
    process = sb.attach(["sleep", "1000"])
    say("returned", process.returncode)
"""
    with caller(script) as me:
        before = me.modes()
        me.hear(b"returned -9\n")
        assert me.modes() == before


def test_a_process_that_has_ended_shows_its_rest_and_returns() -> None:
    script = """
with Sandbox() as sb, sb.popen(["echo", "last words"], tty=True) as process:
    process.wait()
    say("returned", sb.attach(process).returncode)
"""
    with caller(script) as me:
        me.hear(b"returned 0\n")
        me.until(b"last words\r\n")


def test_a_command_that_does_not_exist_leaves_the_terminal_alone() -> None:
    script = """
with Sandbox() as sb:
    try:
        sb.attach(["/no/such/thing"])
    except FileNotFoundError as error:
        say(type(error).__name__)
"""
    with caller(script) as me:
        before = me.modes()
        me.hear(b"CommandNotFoundError\n")
        assert me.modes() == before


@pytest.mark.tool("tmux")
def test_in_a_terminal_emulator(tmp_path: Any) -> None:
    # What a person sees: a shell inside, with its lines where they belong, and the caller's after it.
    socket, script = str(tmp_path / "tmux"), tmp_path / "script.py"
    script.write_text(
        PRELUDE + "with Sandbox() as sb:\n    sb.attach(['sh'], env={'PS1': 'inside> '})\nprint('outside')\n"
    )

    def tmux(*arguments: str) -> str:
        command = ["tmux", "-f", "/dev/null", "-S", socket, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    def screen(pattern: str) -> None:
        deadline = time.monotonic() + 20
        while not re.search(pattern, shown := tmux("capture-pane", "-p")):
            assert time.monotonic() < deadline, shown
            select.select([], [], [], 0.02)

    command = shlex.join(["env", f"PYTHONPATH={os.pathsep.join(sys.path)}", sys.executable, str(script)])
    tmux("new-session", "-d", "-x", "90", "-y", "25", f"{command}; cat")
    try:
        screen(r"^inside>")
        tmux("send-keys", "stty size; tty", "Enter")
        screen(r"inside> stty size; tty\n25 90\n/dev/pts/0\ninside>")
        tmux("send-keys", "exit", "Enter")
        screen(r"inside> exit\noutside\n")
    finally:
        tmux("kill-server")


# --- what is refused --------------------------------------------------------------------------------


@contextmanager
def standard_input(fd: int) -> Iterator[None]:
    """Have another descriptor 0 for a while."""
    kept = os.dup(0)
    os.dup2(fd, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_without_a_terminal_nothing_is_started() -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        with Sandbox() as sb, standard_input(null):
            with pytest.raises(SpecError) as caught:
                sb.attach(["touch", "/work/ran"])
            assert caught.value.field == "stdin"
            assert sb.run(["test", "-e", "/work/ran"]).returncode == 1
    finally:
        os.close(null)


def test_bad_arguments_are_refused_by_name() -> None:
    main, other = pty.openpty()
    try:
        with Sandbox() as sb, standard_input(other):
            before = termios.tcgetattr(other)
            with pytest.raises(SpecError, match="detach_keys"):
                sb.attach(["true"], detach_keys="ctrl-p")  # type: ignore[arg-type]
            with pytest.raises(SpecError, match="args"):
                sb.attach("true")
            with pytest.raises(SpecError, match="cwd"):
                sb.attach(["true"], cwd="relative")
            with pytest.raises(CommandNotFoundError):
                sb.attach(["no-such-thing"])
            with sb.popen(["true"]) as process:
                with pytest.raises(SpecError, match="tty=True"):
                    sb.attach(process)
                with pytest.raises(SpecError, match="env"):
                    sb.attach(process, env={})
            assert termios.tcgetattr(other) == before
    finally:
        os.close(main)
        os.close(other)


@pytest.mark.parametrize(
    "keys, typed, passed, seen",
    [
        (b"\x10\x11", [b"abc"], b"abc", False),
        (b"\x10\x11", [b"a\x10\x11b"], b"a", True),
        (b"\x10\x11", [b"\x10", b"\x11"], b"", True),
        (b"\x10\x11", [b"\x10", b"x"], b"\x10x", False),
        (b"\x10\x11", [b"\x10\x10\x10"], b"\x10\x10", False),
        (b"\x11\x10", [b"\x11\x11\x10"], b"\x11", True),
        (b"aab", [b"aaab"], b"a", True),
        (b"abab!", [b"ababab!"], b"ab", True),
        (b"", [b"\x10\x11"], b"\x10\x11", False),
    ],
)
def test_the_sequence_is_found_wherever_it_begins(
    keys: bytes, typed: list[bytes], passed: bytes, seen: bool
) -> None:
    filtered = Keys(keys)
    assert b"".join(map(filtered.feed, typed)) == passed
    assert filtered.seen is seen


ASYNC = """
import trio
from sandboxlib import AsyncSandbox
async def main():
    async with AsyncSandbox() as sb:
        shell = await sb.attach(["sh"])
        say("detached", shell.returncode)
        await sb.attach(shell)
        say("ended", shell.returncode)
        try:
            with trio.fail_after(0.5):
                await sb.attach(["sleep", "1000"])
        except trio.TooSlowError:
            say("cancelled", await sb.processes())
trio.run(main)
"""


def test_it_is_the_same_on_trio_and_ends_when_it_is_cancelled() -> None:
    with caller(ASYNC) as me:
        before = me.modes()
        me.until(b"# ")
        assert me.modes() != before
        me.type(b"n=41\r")
        me.until(b"# ")
        me.type(b"\x10\x11")
        me.hear(b"detached None\n")
        me.type(b"echo $((n + 1))\r")
        me.until(b"42\r\n")
        me.type(b"exit 7\r")
        me.hear(b"ended 7\n")
        me.hear(b"cancelled []\n")
        assert me.modes() == before
        assert me.wait() == 0
