"""How a command ended is told by what was counted: whoever was faster, and however late the program is"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
from kernel.probe.outside import WHO, program
from outcomes import CASES, FACES, LAB, PLACES, SLOW, is_right, outcomes, python

from sandboxlib import AsyncSandbox, Completed, Limits, Outcome, Sandbox
from sandboxlib.errors import TimeoutExpired

pytestmark = [pytest.mark.userns]

# --- just before, at and after each limit ----------------------------------------------------------------


NEEDS = {name: [pytest.mark.cgroup(case.controller)] for name, case in CASES.items() if case.controller}


@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS.get(name, ())) for name in CASES])
@pytest.mark.parametrize("place", PLACES)
def test_the_outcome_is_the_same_every_time(name: str, place: str) -> None:
    """A few times each; two hundred times by ``tests/outcomes.py``."""
    ways = [("blocking", False), ("trio", True)] if LAB else list(itertools.product(FACES, (False, True)))
    for face, busy in ways:
        found = outcomes(name, place, 1 if LAB else 2, face, busy=busy)
        assert is_right(name, place, found), (face, busy, found)


@pytest.mark.parametrize("way", ["limit", "kill"])
def test_whoever_writes_too_much_and_ends_is_told_so(way: str) -> None:
    # What the program sees first: the output, or the end.
    options: dict[str, Any] = (
        {"limits": Limits(output=1000)} if way == "limit" else {"max_output": 1000, "overflow": "kill"}
    )
    with Sandbox() as sandbox:
        found = Counter(
            sandbox.run(["head", "-c1001", "/dev/zero"], **options).outcome for _ in range(10 if LAB else 100)
        )
        both = "head -c600 /dev/zero; head -c600 /dev/zero >&2"
        expected = Outcome.OUTPUT_LIMIT if way == "limit" else Outcome.EXITED
        assert sandbox.sh(both, **options).outcome is expected
    assert set(found) == {Outcome.OUTPUT_LIMIT}


# --- a program that is late ------------------------------------------------------------------------------


def late(seconds: float) -> Callable[[str, Any], None]:
    """A listener that takes its time."""
    return lambda _name, _line: time.sleep(seconds)


@pytest.mark.parametrize("face", ["blocking", "trio"])
@pytest.mark.parametrize(
    ("command", "limits", "outcome"),
    [
        (["sh", "-c", f"echo x; sleep {0.3 * SLOW}"], Limits(wall_time=0.2 * SLOW), Outcome.WALL_TIME),
        (["sh", "-c", f"echo x; sleep {0.05 * SLOW}"], Limits(wall_time=0.4 * SLOW), Outcome.EXITED),
        pytest.param(
            python(f"print('x', flush=True)\nimport time\nwhile time.process_time() < {0.4 * SLOW}: pass"),
            Limits(cpu_time=0.2 * SLOW),
            Outcome.CPU_TIME,
            marks=pytest.mark.cgroup("cpu"),
        ),
    ],
    ids=["past its time", "in time", "past its CPU time"],
)
def test_a_listener_that_is_late_changes_nothing(
    command: list[str], limits: Limits, outcome: Outcome, face: str
) -> None:
    async def on_trio() -> Completed:
        async with AsyncSandbox() as sandbox:
            return await sandbox.run(command, limits=limits, on_line=late(0.6 * SLOW))

    if face == "trio":
        done = trio.run(on_trio)
    else:
        with Sandbox() as sandbox:
            done = sandbox.run(command, limits=limits, on_line=late(0.6 * SLOW))
    assert done.outcome is outcome
    assert limits.wall_time is None or done.usage.wall < 0.5 * SLOW


def test_time_is_over_for_the_command_while_the_program_is_busy() -> None:
    # It would go on for a minute, and writes what it has seen of it.
    script = "echo x; i=0; while [ $i -lt 600 ]; do date +%s%N >> /work/seen; sleep 0.1; i=$((i+1)); done"
    with Sandbox() as sandbox:
        began = time.time_ns()
        limits = Limits(wall_time=0.5 * SLOW)
        done = sandbox.run(["sh", "-c", script], limits=limits, on_line=late(2.0 * SLOW))
        assert done.outcome is Outcome.WALL_TIME
        last = max(int(line) for line in sandbox.files.read("/work/seen").split())
    assert last - began < 1.2e9 * SLOW


def test_the_children_of_who_is_out_of_time_do_not_go_on() -> None:
    with Sandbox() as sandbox:
        for seconds in (0.1 * SLOW, 60):
            script = f"sleep 50 & echo x; sleep {seconds}"
            limits = Limits(wall_time=0.3 * SLOW)
            done = sandbox.run(["sh", "-c", script], limits=limits, on_line=late(0.5 * SLOW))
            assert done.outcome is (Outcome.WALL_TIME if seconds == 60 else Outcome.EXITED)
            left = [info.command for info in sandbox.processes()]
            assert left == ([] if seconds == 60 else [("sleep", "50")])
            sandbox.run(["sh", "-c", "kill -9 -1"])


def test_time_is_over_also_while_the_sandbox_is_paused() -> None:
    with Sandbox() as sandbox:
        if sandbox._live().group is None:
            return
        timer = threading.Timer(0.1 * SLOW, sandbox.pause)
        timer.start()
        done = sandbox.run(["sleep", "60"], limits=Limits(wall_time=0.4 * SLOW))
        timer.join()
        assert done.outcome is Outcome.WALL_TIME
        sandbox.resume()
        assert sandbox.run(["echo", "alive"]).stdout == b"alive\n"


def test_who_ends_by_himself_was_not_killed() -> None:
    with Sandbox() as sandbox:
        for _ in range(5 if LAB else 50):
            with sandbox.popen(["true"]) as process:
                process.kill()
            expected = (Outcome.EXITED, 0) if process.returncode == 0 else (Outcome.KILLED, -9)
            assert (process.outcome, process.returncode) == expected


def test_who_ended_in_time_did_not_end_with_the_sandbox() -> None:
    with (
        Sandbox(lifetime=1.0 * SLOW) as sandbox,
        sandbox.popen(["true"]) as ended,
        sandbox.popen(["sleep", "60"]) as slept,
    ):
        time.sleep(1.5 * SLOW)
        assert (ended.wait(), ended.outcome) == (0, Outcome.EXITED)
        assert (slept.wait(), slept.outcome) == (-9, Outcome.LIFETIME)


def test_of_two_limits_the_one_that_was_passed_is_told() -> None:
    with Sandbox() as sandbox:
        limits = Limits(wall_time=30, output=1000)
        assert sandbox.run(["head", "-c1001", "/dev/zero"], limits=limits).outcome is Outcome.OUTPUT_LIMIT
        limits = Limits(wall_time=0.2 * SLOW, output=1000)
        assert sandbox.run(["sleep", "60"], limits=limits).outcome is Outcome.WALL_TIME


def test_patience_is_not_a_limit() -> None:
    with Sandbox() as sandbox:
        with pytest.raises(TimeoutExpired):
            sandbox.run(["sleep", "60"], timeout=0.2 * SLOW, limits=Limits(wall_time=50))
        done = sandbox.run(["sleep", "60"], timeout=50, limits=Limits(wall_time=0.2 * SLOW))
        assert done.usage.wall < 10 * SLOW


# --- nothing is left of who keeps the time ----------------------------------------------------------------


def test_many_with_a_limit_on_time_leave_nothing() -> None:
    with Sandbox() as sandbox:
        for _ in range(10):
            assert sandbox.run(["true"], limits=Limits(wall_time=60)).outcome is Outcome.EXITED
        assert sandbox.processes() == []


async def test_a_command_with_a_limit_on_time_can_be_cancelled() -> None:
    async with AsyncSandbox() as sandbox:
        for seconds in (0.0, 0.001, 0.01, 0.1, 0.3):
            with trio.move_on_after(seconds):
                await sandbox.run(["sleep", "60"], limits=Limits(wall_time=50))
        assert await sandbox.processes() == []


@WHO
def test_a_command_with_a_limit_on_time_dies_with_its_program(who: str) -> None:
    script = """
import signal, subprocess, time
held = subprocess.Popen([sys.executable, "-c", '''
import sys
sys.path[:0] = [sys.argv[1].removesuffix("/tests")]
from sandboxlib import Limits, Sandbox
with Sandbox() as sandbox:
    told = lambda name, line: print(line, flush=True)
    sandbox.run(["sh", "-c", "echo on; exec sleep 60"], limits=Limits(wall_time=50), on_line=told)
''', sys.argv[1]], stdout=subprocess.PIPE, start_new_session=True)
held.stdout.readline()
def members():
    asked = ["ps", "-o", "pid=", "-s", str(held.pid)]
    found = subprocess.run(asked, capture_output=True, text=True).stdout
    return [pid for pid in found.split() if pid != str(held.pid)]
before = len(members())
held.kill()
held.wait()
with make("") as cleaner:
    # It removes what the other has left.
    cleaner.run(["true"])
deadline = time.monotonic() + 20
while members() and time.monotonic() < deadline:
    time.sleep(0.01)
print(json.dumps([before > 0, members()]))
"""
    assert program(who, script) == [True, []]


@WHO
def test_a_users_verdicts_are_counted_too(who: str) -> None:
    script = """
import time
from sandboxlib import Limits, Sandbox
with Sandbox() as sandbox:
    much = lambda: sandbox.run(["head", "-c1001", "/dev/zero"], limits=Limits(output=1000))
    found = [much().outcome.value for _ in range(20)]
    late = lambda name, line: time.sleep(0.5 * facts["slow"])
    limits = Limits(wall_time=0.2 * facts["slow"])
    found += [sandbox.sh(f"echo x; sleep {0.3 * facts['slow']}", limits=limits, on_line=late).outcome.value]
print(json.dumps(sorted(set(found))))
"""
    assert program(who, script, slow=SLOW) == ["output_limit", "wall_time"]
