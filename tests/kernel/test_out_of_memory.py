"""Out of memory is told as such in every form; pid 1 is the last to go, and commands go, whoever it is"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from faces import Run, Started, run_fixture, started_fixture
from kernel.probe.outside import TESTS, WHO, program

import sandboxlib
import sandboxlib.trio
from sandboxlib import Limits, Outcome, Rootfs, Sandbox
from sandboxlib.errors import KernelError, StateError

import needs

pytestmark = [pytest.mark.userns, pytest.mark.cgroup("memory")]
__all__ = ["run_fixture", "started_fixture"]

LAB = bool(os.environ.get("SANDBOXLIB_LAB"))
#: How often what happens once in a hundred times is looked for.
TIMES = 10 if LAB else 60
CAP_SYS_RESOURCE = 24
BOMB = "b = []\nwhile True: b.append(bytearray(1 << 20))"


def python(source: str) -> list[str]:
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", source]


def score(pid: int | str = "self") -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


# --- who goes first --------------------------------------------------------------------------------------


@WHO
@pytest.mark.parametrize("own", [None, 300, 950, 1000])
def test_commands_stand_above_pid_1(who: str, own: int | None) -> None:
    script = """
own = facts["own"]
if own is not None:
    open("/proc/self/oom_score_adj", "w").write(str(own))
with make("") as sandbox:
    inside = int(sandbox.run(["cat", "/proc/self/oom_score_adj"]).stdout)
    print(json.dumps([inside, int(open(f"/proc/{sandbox._engine.pid}/oom_score_adj").read())]))
"""
    command, init = program(who, script, own=own)
    expected = max(own if own is not None else score(), 0)
    assert command == min(expected + 100, 1000)
    assert init in (-1000, expected)
    assert (init == -1000) == (who == "root" and needs.has_capability(CAP_SYS_RESOURCE))


@pytest.mark.root
def test_in_a_small_sandbox_they_stand_far_above_it() -> None:
    with Sandbox(memory="1M") as sandbox:
        inside = int(sandbox.run(["cat", "/proc/self/oom_score_adj"]).stdout)
        assert inside == min(max(score(), 0) + 250, 1000)


@pytest.mark.root
@pytest.mark.lab
@pytest.mark.parametrize("own", [-1000, -900])
def test_a_bomb_is_killed_whatever_its_program_is_worth(own: int) -> None:
    """In the lab only: elsewhere root need not have the right to be worth so much."""
    script = f"""
open("/proc/self/oom_score_adj", "w").write("{own}")
from sandboxlib import Limits, Sandbox
with Sandbox(memory="64M") as sandbox:
    found = [sandbox.run(["python3", "-I", "-S", "-c", facts["bomb"]], timeout=100).outcome.value]
    done = sandbox.run(["python3", "-I", "-S", "-c", facts["bomb"]], timeout=100, limits=Limits(memory="32M"))
    found.append(done.outcome.value)
    found.append(sandbox.run(["echo", "alive"]).stdout.decode())
    found.append(open(f"/proc/{{sandbox._engine.pid}}/oom_score_adj").read())
print(json.dumps(found))
"""
    found = program("root", script, bomb=BOMB, patience=300)
    assert found == ["out_of_memory", "out_of_memory", "alive\n", "-1000\n"]


@pytest.mark.root
@pytest.mark.lab
def test_nothing_inside_can_make_itself_worth_more() -> None:
    lower = "import sys\nwith open('/proc/self/oom_score_adj', 'w') as f: f.write(sys.argv[1])"
    with Sandbox() as sandbox:
        for value in ("-1000", "0", "99"):
            done = sandbox.run([*python(lower), value])
            assert done.returncode == 1, value
            assert b"PermissionError" in done.stderr
        assert sandbox.run([*python(lower), "1000"]).returncode == 0


# --- limits that are too small -----------------------------------------------------------------------------

TOO_SMALL = ["4K", "16K", "64K"]


@pytest.mark.parametrize("size", TOO_SMALL)
def test_a_command_that_cannot_begin_for_want_of_memory_is_out_of_memory(run: Run, size: str) -> None:
    done = run(["true"], limits=Limits(memory=size))
    assert (done.outcome, done.returncode) == (Outcome.OUT_OF_MEMORY, -9)
    assert done.usage.oom_kills


@pytest.mark.parametrize("size", TOO_SMALL)
def test_so_is_one_that_is_started_and_waited_for(started: Started, size: str) -> None:
    assert started(["true"], limits=Limits(memory=size)) == (-9, Outcome.OUT_OF_MEMORY)


@pytest.mark.parametrize("size", ["4K", "64K"])
def test_it_is_so_each_time(size: str) -> None:
    with Sandbox() as sandbox:
        found: Counter[Any] = Counter()
        for _ in range(TIMES):
            done = sandbox.run(["true"], limits=Limits(memory=size))
            found[done.outcome, done.returncode] += 1
        assert set(found) == {(Outcome.OUT_OF_MEMORY, -9)}, found
        assert sandbox.run(["echo", "alive"]).stdout == b"alive\n"


@pytest.mark.parametrize("face", ["sandbox", "one command", "trio"])
@pytest.mark.parametrize("size", ["4K", "16K"])
def test_a_sandbox_that_cannot_start_for_want_of_memory_says_so(size: str, face: str) -> None:
    ways: dict[str, Callable[[], object]] = {
        "sandbox": lambda: Sandbox(memory=size).open(),
        "trio": lambda: trio.run(lambda: sandboxlib.trio.run(["true"], memory=size)),
        "one command": lambda: sandboxlib.run(["true"], memory=size),
    }
    with pytest.raises(KernelError, match=r"ENOMEM.*memory_max, \d+ bytes, is too small") as caught:
        ways[face]()
    assert caught.value.errno == 12
    assert "\n" not in str(caught.value)


def tried(size: str) -> str:
    """What becomes of a command in a sandbox of that size: the errno of its start, or how it ended."""
    try:
        with Sandbox(memory=size) as sandbox:
            done = sandbox.run(["true"], timeout=60)
    except KernelError as error:
        return str(error.errno)
    except StateError as error:
        # Where pid 1 may not be made the last to go: a plain user's.
        return "12" if "its memory was full" in str(error) else str(error)
    return str((done.outcome.value, done.returncode))


def test_between_the_two_it_is_one_or_the_other() -> None:
    for size in ("64K", "128K", "192K", "256K", "320K"):
        for _ in range(3 if LAB else 10):
            found = tried(size)
            assert found in ("12", "('exited', 0)", "('out_of_memory', -9)"), (size, found)


@pytest.mark.root
def test_the_command_line_says_so_too() -> None:
    for options, said in (("64M", "out of memory"), ("16K", "too small")):
        command = [sys.executable, "-m", "sandboxlib", "run", "--memory", options, "--", *python(BOMB)]
        done = subprocess.run(
            command, input="", capture_output=True, text=True, check=False, cwd=TESTS.parent
        )
        assert said in done.stderr
        assert (done.returncode, done.stderr.count("\n")) == (137 if options == "64M" else 125, 1)


# --- a sandbox that is full --------------------------------------------------------------------------------


def fill(sandbox: Sandbox, mib: int) -> Any:
    command = ["dd", "if=/dev/zero", "of=/tmp/full", "bs=1M", f"count={mib}", "status=none"]
    return sandbox.run(command, timeout=200)


def test_a_full_sandbox_lives_and_its_commands_are_out_of_memory() -> None:
    with Sandbox(memory="32M", rootfs=Rootfs.host(size="128M")) as sandbox:
        assert fill(sandbox, 100).outcome is Outcome.OUT_OF_MEMORY
        found: Counter[Any] = Counter()
        for _ in range(TIMES):
            done = sandbox.run(python("b = bytearray(8 << 20)"), timeout=100)
            found[done.outcome, done.returncode] += 1
        assert set(found) == {(Outcome.OUT_OF_MEMORY, -9)}, found
        # It is still there, and what fills it can be taken away.
        sandbox.files.remove("/tmp/full")
        done = sandbox.run(python("print('alive')"))
        assert (done.outcome, done.stdout) == (Outcome.EXITED, b"alive\n")


def test_of_many_that_fill_it_together_none_takes_pid_1_along() -> None:
    hog = "import os\nfor _ in range(3): os.fork()\nb = []\nwhile True: b.append(bytearray(1 << 18))"
    with Sandbox(memory="48M", pids=32) as sandbox:
        for _ in range(2 if LAB else 5):
            done = sandbox.run(python(hog), timeout=200)
            assert done.outcome is Outcome.OUT_OF_MEMORY
            assert sandbox.run(["echo", "alive"]).stdout == b"alive\n"


def test_a_child_that_goes_is_told_by_the_outcome() -> None:
    with Sandbox() as sandbox:
        done = sandbox.run(
            ["sh", "-c", '"$@"; exit 3', "sh", *python(BOMB)], limits=Limits(memory="32M"), timeout=100
        )
        assert (done.outcome, done.returncode) == (Outcome.OUT_OF_MEMORY, 3)


@pytest.mark.root
def test_where_pid_1_goes_all_the_same_that_is_said() -> None:
    with Sandbox(memory="32M", rootfs=Rootfs.host(size="128M")) as sandbox:
        sandbox.run(["true"])
        engine = sandbox._live()
        # As if it were the largest.
        Path(f"/proc/{engine.pid}/oom_score_adj").write_text("1000")
        with sandbox.popen(["sleep", "60"]) as slept:
            fill(sandbox, 100)
            assert slept.wait() == -9
            assert slept.outcome is Outcome.OUT_OF_MEMORY
        with pytest.raises(StateError, match="its memory was full"):
            sandbox.run(["true"])
