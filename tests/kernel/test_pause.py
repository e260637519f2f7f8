"""A paused sandbox: nothing begins in it, nothing hangs on it, and it can be ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import trio

from sandboxlib import PIPE, AsyncSandbox, Limits, Outcome, Sandbox, StateError, TimeoutExpired

pytestmark = [pytest.mark.userns, pytest.mark.cgroup("pids")]

#: Adds a byte to a file for as long as it may run.
COUNT = 'while :; do printf . >> "$1"; sleep 0.01; done'


@pytest.fixture
def sb() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def size(sandbox: Sandbox, path: str) -> int:
    return sandbox.files.stat(path).st_size if sandbox.files.exists(path) else 0


def grows(sandbox: Sandbox, path: str, patience: float) -> bool:
    """Does a file grow within *patience* seconds?"""
    before, deadline = size(sandbox, path), time.monotonic() + patience
    while time.monotonic() < deadline:
        if size(sandbox, path) > before:
            return True
        time.sleep(0.01)
    return False


def test_nothing_begins_while_it_is_paused(sb: Sandbox) -> None:
    sb.pause()
    began = time.monotonic()
    with pytest.raises(StateError, match="paused"):
        sb.run(["true"], timeout=50)
    with pytest.raises(StateError, match="paused"):
        sb.run(["true"], limits=Limits(wall_time=50))
    with pytest.raises(StateError, match="paused"):
        sb.popen(["true"])
    assert time.monotonic() - began < 40
    sb.resume()
    assert sb.run(["true"]).returncode == 0


async def test_on_trio_nothing_begins_either() -> None:
    async with AsyncSandbox() as sb:
        await sb.pause()
        with trio.fail_after(5), pytest.raises(StateError, match="paused"):
            await sb.run(["true"])
        await sb.resume()
        assert (await sb.run(["true"])).returncode == 0


@pytest.mark.parametrize("verb", ["close", "kill"])
def test_a_paused_sandbox_can_be_ended(verb: str) -> None:
    with Sandbox() as sb, sb.popen(["sleep", "1000"]) as process:
        sb.pause()
        getattr(sb, verb)()
        assert process.wait(timeout=20) == -9


def test_a_command_that_is_killed_while_paused_ends_and_the_others_stay_stopped(sb: Sandbox) -> None:
    with sb.popen(["sleep", "1000"]) as victim, sb.popen(["sh", "-c", COUNT, "sh", "/work/count"]) as other:
        assert grows(sb, "/work/count", 20)
        sb.pause()
        victim.kill()
        assert victim.wait(timeout=20) == -9
        assert not grows(sb, "/work/count", 0.3)
        sb.resume()
        assert grows(sb, "/work/count", 20)
        other.kill()


def test_a_shell_in_the_middle_of_a_vfork_is_stopped_too(sb: Sandbox) -> None:
    # It waits for its child, which has stopped before its exec: on cgroup v1 it has to be told again.
    for _ in range(60):
        with sb.popen(["sh", "-c", "cat; exit 5"], stdin=PIPE, stdout=PIPE) as process:
            sb.pause()
            sb.resume()
            process.stdin.close()
            assert process.wait(timeout=20) == 5


def test_a_start_that_is_overtaken_by_a_pause_keeps_its_deadline(sb: Sandbox) -> None:
    # Another thread pauses again and again, so that some starts are stopped in the middle.
    stop = threading.Event()

    def pauses() -> None:
        while not stop.is_set():
            sb.pause()
            time.sleep(0.02)
            sb.resume()
            time.sleep(0.002)

    thread = threading.Thread(target=pauses)
    thread.start()
    found = set()
    try:
        for _ in range(100):
            began = time.monotonic()
            try:
                found.add(sb.run(["true"], timeout=5).outcome)
            except StateError as error:
                assert "paused" in str(error)  # noqa: PT017 - either is right here
            except TimeoutExpired:
                found.add(Outcome.KILLED)
            assert time.monotonic() - began < 20
    finally:
        stop.set()
        thread.join()
    assert found <= {Outcome.EXITED, Outcome.KILLED}
    assert sb.run(["true"]).returncode == 0


def test_a_deadline_that_comes_while_a_start_is_stopped_leaves_nothing(sb: Sandbox) -> None:
    # The group is stopped behind the library's back, which is all that a thread's pause at a bad moment is.
    group = sb._live().group
    assert group is not None
    group.freeze()
    sb._live().frozen = False
    began = time.monotonic()
    thaw = threading.Timer(30, group.thaw)
    thaw.start()
    try:
        mark = threading.Timer(1, lambda: setattr(sb._live(), "frozen", True))
        mark.start()
        with pytest.raises(TimeoutExpired):
            sb.run(["true"], timeout=2)
        mark.join()
        assert time.monotonic() - began < 20
    finally:
        thaw.cancel()
        thaw.join()
    sb.resume()
    assert sb.run(["true"]).returncode == 0
