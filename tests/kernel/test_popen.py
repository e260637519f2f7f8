"""Handles of running commands: streams, signals, waiting, and the end of the whole tree."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sandboxlib.blocking import DEVNULL, PIPE, STDOUT, Process, Sandbox
from sandboxlib.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    ExitError,
    SpecError,
    StateError,
    TimeoutExpired,
)
from sandboxlib.result import Outcome

pytestmark = pytest.mark.userns


def python(source: str, *arguments: str) -> list[str]:
    """A command that runs *source* with nothing but the standard library."""
    return [sys.executable, "-I", "-S", "-c", source, *arguments]


def gone(sandbox: Sandbox) -> bool:
    """Does the sandbox become empty soon?"""
    deadline = time.monotonic() + 10
    while sandbox.processes():
        if time.monotonic() > deadline:
            return False
        os.sched_yield()
    return True


# --- streams ----------------------------------------------------------------------------------------


def test_a_handle_as_the_api_writes_it() -> None:
    with Sandbox() as sb, sb.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
        process.stdin.write(b"ping\n")
        process.stdin.close()
        assert list(process.stdout) == [b"ping\n"]
        assert process.pid > 0
        assert process.wait(timeout=5) == 0
        assert process.poll() == process.returncode == 0
        assert process.outcome is Outcome.EXITED
        assert process.usage is not None
        assert process.usage.wall > 0


def test_it_runs_while_the_caller_goes_on() -> None:
    with Sandbox() as sb, sb.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.poll() is None
        assert (process.returncode, process.outcome, process.usage) == (None, None, None)
        for number in range(3):
            line = f"line {number}\n".encode()
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line
        assert process.poll() is None


def test_text_goes_both_ways() -> None:
    with Sandbox() as sb, sb.popen(["cat"], stdin=PIPE, stdout=PIPE, text=True) as process:
        process.stdin.write("grüß\n")
        process.stdin.close()
        assert process.stdout.read() == "grüß\n"


def test_without_a_word_about_streams_there_are_none() -> None:
    source = """
import os
with open("/work/out", "w") as out:
    print(*(os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)), file=out)
"""
    with Sandbox() as sb:
        with sb.popen(python(source)) as process:
            assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
        assert sb.run(["cat", "/work/out"]).stdout == b"/dev/null /dev/null /dev/null\n"


def test_stderr_apart_or_together() -> None:
    line = ["sh", "-c", "echo out; echo err >&2"]
    with Sandbox() as sb:
        with sb.popen(line, stdout=PIPE, stderr=PIPE) as process:
            assert (process.stdout.read(), process.stderr.read()) == (b"out\n", b"err\n")
        with sb.popen(line, stdout=PIPE, stderr=STDOUT) as process:
            assert process.stdout.read() == b"out\nerr\n"
            assert process.stderr is None
        with sb.popen(line, stdout=DEVNULL, stderr=PIPE) as process:
            assert process.stderr.read() == b"err\n"


def test_bulk_data_arrives_whole_both_ways() -> None:
    data = os.urandom(1 << 20) * 40
    with Sandbox() as sb, sb.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:

        def feed() -> None:
            process.stdin.write(data)
            process.stdin.close()

        thread = threading.Thread(target=feed)
        thread.start()
        digest = hashlib.sha256(process.stdout.read())
        thread.join()
        assert digest.digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("size", [1, 7, 4096, 70_000, 1 << 20])
def test_reading_by_pieces_of_any_size_gives_the_same(size: int) -> None:
    with Sandbox() as sb, sb.popen(["seq", "200000"], stdout=PIPE) as process:
        if size == 1:
            assert process.stdout.read(1) + process.stdout.readline() == b"1\n"
        else:
            data = b"".join(iter(lambda: process.stdout.read(size), b""))
            assert data == b"".join(b"%d\n" % number for number in range(1, 200_001))


def test_a_command_that_does_not_read_is_no_error_at_the_end() -> None:
    with Sandbox() as sb:
        with sb.popen(["true"], stdin=PIPE) as process:
            process.wait()
            process.stdin.write(b"too late")
        assert process.returncode == 0


@pytest.mark.qemu
@pytest.mark.landlock(1)
def test_descriptors_and_files_can_be_handed_in(tmp_path: Any) -> None:
    (tmp_path / "in").write_bytes(b"from a file\n")
    read, write = os.pipe()
    try:
        with Sandbox() as sb, open(tmp_path / "in", "rb") as source:
            with sb.popen(["cat"], stdin=source, stdout=write) as process:
                assert process.wait(timeout=10) == 0
            assert os.read(read, 100) == b"from a file\n"
    finally:
        os.close(read)
        os.close(write)


# --- waiting and the end ----------------------------------------------------------------------------


def test_wait_loses_patience_and_the_command_goes_on() -> None:
    with Sandbox() as sb, sb.popen(["sleep", "1000"]) as process:
        began = time.monotonic()
        with pytest.raises(TimeoutExpired) as caught:
            process.wait(timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 30
        assert isinstance(caught.value, subprocess.TimeoutExpired)
        assert process.poll() is None
        process.kill()
        assert process.wait(timeout=10) == -signal.SIGKILL
        assert process.outcome is Outcome.KILLED


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_status_is_its_own(code: int) -> None:
    with Sandbox() as sb, sb.popen(["sh", "-c", f"exit {code}"]) as process:
        assert process.wait() == code
        assert process.wait(timeout=1) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_that_ends_it_is_told_as_a_negative_number(number: signal.Signals) -> None:
    with Sandbox() as sb, sb.popen(["sleep", "1000"]) as process:
        process.send_signal(number)
        assert process.wait(timeout=10) == -number
        assert process.outcome is Outcome.SIGNALED
        # It is over: nobody is hit.
        process.send_signal(number)
        process.terminate()
        process.kill()
        assert process.outcome is Outcome.SIGNALED


def test_signals_can_be_caught() -> None:
    line = 'trap "echo caught; exit 3" USR1; echo ready; while :; do sleep 0.01; done'
    with Sandbox() as sb, sb.popen(["sh", "-c", line], stdout=PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == b"caught\n"
        assert process.wait() == 3


def test_a_signal_is_ignored_by_the_command_only_if_it_says_so_itself() -> None:
    # Dispositions of the caller's do not go along: pytest or a shell may have set some.
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Sandbox() as sb, sb.popen(["sleep", "1000"]) as process:
            process.send_signal(signal.SIGUSR1)
            assert process.wait(timeout=10) == -signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, before)


IGNORES = """
import os, signal, time
for number in range(1, 65):
    if number not in (9, 19, 32, 33):
        signal.signal(number, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        break
os.write(1, b"x")
while True:
    time.sleep(1000)
"""


def test_a_process_that_ignores_sigterm_and_its_children_are_killed() -> None:
    with Sandbox() as sb, sb.popen(python(IGNORES), stdout=PIPE) as process:
        assert process.stdout.read(4) == b"xxxx"
        process.terminate()
        with pytest.raises(TimeoutExpired):
            process.wait(timeout=0.2)
        assert len(sb.processes()) == 4
        process.kill()
        assert process.wait(timeout=10) == -signal.SIGKILL
        assert gone(sb)


def test_kill_is_for_the_tree_of_that_command_only() -> None:
    tree = ["sh", "-c", "sleep 1000 & setsid sleep 1000 & echo; wait"]
    with Sandbox() as sb, sb.popen(tree, stdout=PIPE) as one, sb.popen(tree, stdout=PIPE) as two:
        one.stdout.readline()
        two.stdout.readline()
        one.kill()
        one.wait(timeout=10)
        left = [tuple(tree), ("sleep", "1000"), ("sleep", "1000")]
        deadline = time.monotonic() + 10
        # What was forked last may not have executed its command yet.
        while sorted(info.command for info in sb.processes()) != sorted(left):
            assert time.monotonic() < deadline, sb.processes()
        assert two.poll() is None
        two.kill()


def test_a_daemon_that_holds_stdout_keeps_nobody() -> None:
    line = "setsid sh -c 'trap \"\" PIPE; while :; do echo still here; sleep 0.05; done' & echo started"
    with Sandbox() as sb:
        began = time.monotonic()
        assert sb.run(["sh", "-c", line]).stdout.startswith(b"started\n")
        with sb.popen(["sh", "-c", line], stdout=PIPE) as process:
            assert process.wait(timeout=10) == 0
            assert process.stdout.readline() == b"started\n"
            assert process.stdout.readline() == b"still here\n"
        assert time.monotonic() - began < 30
        # What a command leaves running goes on until the sandbox closes.
        # Each forks for its sleep, and is there twice for a moment.
        assert sum(info.command[0] == "sh" for info in sb.processes()) >= 2


def test_the_end_of_the_block_waits_and_an_exception_kills() -> None:
    with Sandbox() as sb:
        with sb.popen(["sh", "-c", "read line; sleep 0.2; exit 4"], stdin=PIPE) as process:
            pass
        assert process.returncode == 4
        with pytest.raises(ZeroDivisionError), sb.popen(["sh", "-c", "sleep 1000 & sleep 1000"]) as process:
            raise ZeroDivisionError
        assert process.returncode == -signal.SIGKILL
        assert gone(sb)


def test_the_end_of_the_sandbox_ends_what_runs_in_it() -> None:
    with Sandbox() as sb:
        process = sb.popen(["sleep", "1000"], stdin=PIPE)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert process.outcome is Outcome.KILLED or process.outcome is Outcome.SIGNALED
    process.kill()
    process.send_signal(15)
    with process:
        pass


def test_two_threads_wait_for_the_same_process() -> None:
    with Sandbox() as sb, sb.popen(["sleep", "0.3"]) as process:
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(process.wait(timeout=20))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [0, 0, 0, 0]


def test_many_at_once_in_one_sandbox_from_many_threads() -> None:
    with Sandbox() as sb:
        results: dict[int, bytes] = {}

        def work(number: int) -> None:
            with sb.popen(["sh", "-c", f"echo {number}"], stdout=PIPE) as process:
                results[number] = process.stdout.read()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {number: b"%d\n" % number for number in range(20)}


def test_usage_counts_the_children_too() -> None:
    burn = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    line = f"import os\nif os.fork() == 0:\n exec({burn!r})\n os._exit(0)\nos.wait()"
    with Sandbox() as sb, sb.popen(python(line)) as process:
        process.wait(timeout=20)
        assert process.usage is not None
        if process.usage.cpu_user is not None and process.usage.cpu_system is not None:
            assert 0.15 < process.usage.cpu_user + process.usage.cpu_system < 5
        assert process.usage.wall >= 0.2


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, options, field",
    [
        ("true", {}, "args"),
        ([], {}, "args"),
        (["a\0b"], {}, "args"),
        ([""], {}, "args"),
        ([1], {}, "args"),
        (["true"], {"stdin": "x"}, "stdin"),
        (["true"], {"stdin": STDOUT}, "stdin"),
        (["true"], {"stdout": STDOUT}, "stdout"),
        (["true"], {"stdout": -7}, "stdout"),
        (["true"], {"stderr": 987_654}, "stderr"),
        (["true"], {"env": {"A=B": "x"}}, "env"),
        (["true"], {"env": {"A": 1}}, "env"),
        (["true"], {"cwd": "relative"}, "cwd"),
        (["true"], {"limits": 7}, "limits"),
    ],
)
def test_bad_arguments_are_refused_by_name(args: Any, options: dict[str, Any], field: str) -> None:
    with Sandbox() as sb, pytest.raises(SpecError) as caught:
        sb.popen(args, **options)
    assert caught.value.field == field


def test_what_cannot_be_executed_is_said_as_a_shell_would() -> None:
    with Sandbox() as sb:
        with pytest.raises(CommandNotFoundError) as missing:
            sb.popen(["no-such-command"], stdout=PIPE)
        assert isinstance(missing.value, FileNotFoundError)
        assert isinstance(missing.value, ExitError)
        assert (missing.value.returncode, missing.value.path) == (127, "no-such-command")
        with pytest.raises(CommandNotExecutableError) as forbidden:
            sb.popen(["/etc/hostname"])
        assert (forbidden.value.returncode, forbidden.value.path) == (126, "/etc/hostname")


def test_the_caller_cannot_be_signalled_or_seen_from_inside() -> None:
    source = """
import os, sys
found = []
for pid in (int(sys.argv[1]), os.getppid(), -1):
    try:
        os.kill(pid, 0)
        found.append((pid, "reached"))
    except (ProcessLookupError, PermissionError) as error:
        found.append((pid, type(error).__name__))
print(found, os.getppid())
"""
    with Sandbox() as sb, sb.popen(python(source, str(os.getpid())), stdout=PIPE) as process:
        shown = process.stdout.read().decode()
        assert f"({os.getpid()}, 'ProcessLookupError')" in shown
        # Its parent is outside, which is told as 0; to signal 0 is to signal its own group.
        assert shown.strip().endswith(" 0")


def test_no_process_in_a_sandbox_that_is_closed() -> None:
    with Sandbox() as sb:
        pass
    with pytest.raises(StateError):
        sb.popen(["true"])


def test_a_plain_user_has_handles_too(as_user: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = f"""
import sys
from sandboxlib.blocking import PIPE, Sandbox
with Sandbox() as sb:
    with sb.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
        process.stdin.write(b"ping")
        process.stdin.close()
        print(process.stdout.read(), process.wait())
    with sb.popen([sys.executable, "-I", "-S", "-c", {IGNORES!r}], stdout=PIPE) as process:
        process.stdout.read(4)
        process.terminate()
        print(process.poll())
        process.kill()
        print(process.wait(timeout=10))
    print(sb.processes())
"""
    assert as_user(script).stdout.split("\n")[:4] == ["b'ping' 0", "None", "-9", "[]"]


def handle(process: Process) -> str:
    """What a handle says of itself."""
    return repr(process)


def test_a_handle_says_what_it_is() -> None:
    with Sandbox() as sb, sb.popen(["true"]) as process:
        assert handle(process) == "<Process ['true'] running>"
        process.wait()
        assert handle(process) == "<Process ['true'] returncode=0>"


def test_a_shell_that_is_killed_ends_by_the_signal_and_not_by_a_status_of_its_own() -> None:
    # Forks are forbidden meanwhile: a shell that saw its fork fail would say 2.
    with Sandbox() as sb:
        for _ in range(150):
            with sb.popen(["sh", "-c", "cat; exit 5"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                process.kill()
                assert process.wait(timeout=20) == -signal.SIGKILL
                assert process.stderr.read() == b""


# --- the end of the sandbox -------------------------------------------------------------------------


def test_who_closes_while_another_closes_waits_for_the_end() -> None:
    for _ in range(10):
        sb = Sandbox().open()
        process = sb.popen(["sh", "-c", "sleep 1000 & sleep 1000"])
        pid = sb._live().pid
        found: list[bool] = []

        def close(sb: Sandbox = sb, pid: int = pid, found: list[bool] = found) -> None:
            sb.close()
            found.append(os.path.exists(f"/proc/{pid}"))

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [False] * 4
        process._process.release()


def test_a_command_that_starts_while_another_thread_closes_says_that_it_is_closed() -> None:
    for delay in range(12):
        sb = Sandbox().open()
        errors: list[BaseException] = []

        def work(sb: Sandbox = sb, errors: list[BaseException] = errors) -> None:
            try:
                while True:
                    sb.run(["true"])
            except BaseException as found:
                errors.append(found)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.01 + delay / 1000)
        sb.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        for error in errors:
            assert isinstance(error, StateError)
            assert "closed" in str(error)
