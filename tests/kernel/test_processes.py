"""The list of what runs in a sandbox: what is in it, and what is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from sandboxlib.blocking import PIPE, Process, Sandbox
from sandboxlib.errors import StateError
from sandboxlib.namespace import Namespace

pytestmark = pytest.mark.userns

#: Says "ready" when it runs and then waits for the end of its stdin.
WAITS = "import os; {}; os.write(1, b'ready'); os.read(0, 1)"


def python(source: str) -> list[str]:
    """A command that runs *source* with nothing but the standard library."""
    return [sys.executable, "-I", "-S", "-c", source]


def started(sandbox: Sandbox, prepare: str = "pass") -> Process:
    """A command that has done *prepare* and waits."""
    process = sandbox.popen(python(WAITS.format(prepare)), stdin=PIPE, stdout=PIPE)
    assert process.stdout.read(5) == b"ready"
    return process


def test_an_idle_sandbox_shows_nothing() -> None:
    # Pid 1 is there, and sandboxlib's own.
    with Sandbox() as sb:
        assert sb.processes() == []
        sb.run(["true"])
        assert sb.processes() == []


def test_a_command_with_its_numbers_inside_and_outside() -> None:
    prepare = "import sys; os.write(1, b'%d\\n' % os.getpid())"
    with Sandbox() as sb:
        command = tuple(python(WAITS.format(prepare)))
        with sb.popen(command, stdin=PIPE, stdout=PIPE) as process:
            inside = int(process.stdout.readline())
            process.stdout.read(5)
            (info,) = sb.processes()
            assert (info.pid, info.host_pid) == (inside, process.pid)
            assert info.command == command
            assert 1 << 20 < info.memory < 1 << 30
            assert 0 <= info.cpu < 5
        assert sb.processes() == []


def test_children_and_grandchildren_are_there_also_when_orphaned() -> None:
    prepare = """
import time
def child():
    if os.fork() == 0:
        time.sleep(1000)
        os._exit(0)
if os.fork() == 0:
    child()
    os.setsid()
    child()
    os._exit(0)
os.wait()
"""
    source = prepare + "\nos.write(1, b'ready'); os.read(0, 1)"
    with Sandbox() as sb, sb.popen(python("import os\n" + source), stdin=PIPE, stdout=PIPE) as process:
        process.stdout.read(5)
        found = sb.processes()
        assert len(found) == 3
        assert [info.pid for info in found] == sorted(info.pid for info in found)
        assert len({info.host_pid for info in found}) == 3
        process.kill()


def test_time_and_state_of_one_that_works_and_one_that_sleeps() -> None:
    with Sandbox() as sb, started(sb) as asleep, sb.popen(python("while True: pass")) as busy:
        deadline = time.monotonic() + 20
        while True:
            found = {info.host_pid: info for info in sb.processes()}
            # To start may take the one that sleeps longer than a fixed time.
            worked, slept = found[busy.pid], found[asleep.pid]
            if worked.cpu > slept.cpu + 0.2 and slept.state == "S":
                break
            assert time.monotonic() < deadline
            os.sched_yield()
        assert found[busy.pid].state == "R"
        assert {info.host_pid: info.cpu for info in sb.processes()}[asleep.pid] < found[busy.pid].cpu
        busy.send_signal(19)
        while {info.host_pid: info.state for info in sb.processes()}[busy.pid] != "T":
            assert time.monotonic() < deadline
        busy.kill()


HOSTILE = r"""
import ctypes
libc = ctypes.CDLL(None)
libc.prctl(15, b") Z 1 (\n\xff", 0, 0, 0)
"""


def test_a_name_made_to_confuse_confuses_nobody() -> None:
    command = tuple(python(f"import os\n{HOSTILE}\nos.write(1, b'ready'); os.read(0, 1)"))
    with Sandbox() as sb, sb.popen(command, stdin=PIPE, stdout=PIPE) as process:
        process.stdout.read(5)
        (info,) = sb.processes()
        assert info.state in "RS"
        assert info.host_pid == process.pid
        assert info.command == command


def test_arguments_may_be_any_bytes_or_none_at_all() -> None:
    source = """
import os
os.execv("/bin/sleep", [b"\\xff ) (", b"1000"])
"""
    with Sandbox() as sb, sb.popen(python(source)) as process:
        deadline = time.monotonic() + 20
        while True:
            (info,) = sb.processes()
            if info.command == ("\udcff ) (", "1000"):
                break
            assert time.monotonic() < deadline, info
        process.kill()


def test_what_has_ended_is_not_shown_before_or_after_it_is_waited_for() -> None:
    with Sandbox() as sb, sb.popen(["true"], stdout=PIPE) as process:
        process.stdout.read()
        deadline = time.monotonic() + 20
        while sb.processes():
            assert time.monotonic() < deadline
        process.wait()
        assert sb.processes() == []


def test_a_list_while_processes_come_and_go_never_fails() -> None:
    line = "while :; do sh -c : & sh -c : ; done"
    with Sandbox() as sb, sb.popen(["sh", "-c", line]) as process:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert all(info.pid > 1 for info in sb.processes())
        process.kill()


def test_processes_of_the_host_and_of_another_sandbox_are_not_shown() -> None:
    with Sandbox() as one, Sandbox() as two, started(one) as first, started(two) as second:
        assert [info.host_pid for info in one.processes()] == [first.pid]
        assert [info.host_pid for info in two.processes()] == [second.pid]


@pytest.mark.root
@pytest.mark.cgroup("pids")
def test_of_a_shared_pid_namespace_each_sandbox_shows_its_own() -> None:
    with Sandbox() as one, started(one) as first:
        assert one._engine is not None
        folder = f"/proc/{one._engine.pid}/ns"
        shared = [Namespace("user", path=f"{folder}/user"), Namespace("pid", path=f"{folder}/pid")]
        with Sandbox(namespaces=shared) as two, started(two) as second:
            assert [info.host_pid for info in one.processes()] == [first.pid]
            (info,) = two.processes()
            assert info.host_pid == second.pid
            # Numbered by the namespace that both are in.
            assert info.pid > one.processes()[0].pid


def test_a_frozen_sandbox_can_be_looked_at() -> None:
    with Sandbox() as sb, started(sb) as process:
        if sb._engine is not None and sb._engine.group is not None:
            sb.pause()
            assert [info.host_pid for info in sb.processes()] == [process.pid]
            sb.resume()


def test_a_closed_or_killed_sandbox_has_none_to_show() -> None:
    with Sandbox() as sb:
        pass
    with pytest.raises(StateError):
        sb.processes()


def test_a_plain_user_sees_the_same(as_user: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = """
import sys
from sandboxlib.blocking import PIPE, Sandbox
wait = [sys.executable, "-I", "-S", "-c", "import os; os.write(1, b'r'); os.read(0, 1)"]
with Sandbox() as one, Sandbox() as two:
    pipes = {"stdin": PIPE, "stdout": PIPE}
    with one.popen(wait, **pipes) as first, two.popen(wait, **pipes) as second:
        first.stdout.read(1), second.stdout.read(1)
        (info,) = one.processes()
        assert info.host_pid == first.pid and 1 < info.pid < 100, info
        assert info.command == tuple(wait), info
        assert [info.host_pid for info in two.processes()] == [second.pid]
    assert one.processes() == []
print("done")
"""
    assert as_user(script).stdout == "done\n"
