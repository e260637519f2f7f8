"""Commands that misbehave: each ends as documented, and what comes after it is unharmed."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
from kernel.probe.outside import WHO, make, program, report

from sandboxlib.blocking import PIPE, Sandbox
from sandboxlib.errors import TimeoutExpired
from sandboxlib.result import Outcome

#: The lab's kernel takes ten times as long and more for each process and each page.
LAB = bool(os.environ.get("SANDBOXLIB_LAB"))

FORK_BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


def inside(sandbox: Sandbox) -> list[str]:
    """Names of the processes inside, without the one that looks."""
    found: dict[str, str] = report(sandbox, "processes")["processes"]
    return [name for name in found.values() if not name.startswith("python")]


# A plain user has the ceiling by RLIMIT_NPROC where no cgroup is his; in the lab a smaller one, for its
# one slow CPU is shared by all processes of the bomb and who ends them.
BOUND = {"root": "pids=64", "user": "security=Security(rlimits={'nproc': 64})" if LAB else ""}


# --- bombs -----------------------------------------------------------------------------------------


@WHO
def test_a_fork_bomb_ends_with_its_time(who: str) -> None:
    script = """
import time
from sandboxlib.errors import TimeoutExpired
with make(facts["arguments"]) as sandbox:
    began = time.monotonic()
    try:
        sandbox.run(["python3", "-I", "-S", "-c", facts["bomb"]], timeout=1)
    except TimeoutExpired:
        took = time.monotonic() - began
    after = [sandbox.run(["echo", "alive"]).stdout.decode(), len(report(sandbox, "processes")["processes"])]
    began = time.monotonic()
print(json.dumps([took, time.monotonic() - began, after]))
"""
    took, closing, after = program(who, script, bomb=FORK_BOMB, arguments=BOUND[who])
    assert 1 <= took < 15
    assert closing < 10
    assert after == ["alive\n", 1]


@WHO
def test_a_fork_bomb_ends_with_its_sandbox(who: str) -> None:
    script = """
import time
with make(facts["arguments"]) as sandbox:
    process = sandbox.popen(["python3", "-I", "-S", "-c", facts["bomb"]])
    time.sleep(0.5)
    began = time.monotonic()
print(json.dumps([time.monotonic() - began, process.poll()]))
"""
    took, returncode = program(who, script, bomb=FORK_BOMB, arguments=BOUND[who])
    assert took < 10
    assert returncode == -9


@pytest.mark.root
@pytest.mark.cgroup("pids")
def test_without_being_asked_processes_are_limited() -> None:
    with make("") as sandbox:
        engine = sandbox._engine
        assert engine is not None
        assert engine.group is not None
        pids = engine.group.stats().pids
        assert pids is not None
        assert pids.max == 512
        if not LAB:
            assert report(sandbox, "forks", facts={"forks": 700})["forks"][0] == "EAGAIN"
    with make("pids=30") as sandbox:
        assert report(sandbox, "forks", facts={"forks": 60})["forks"][0] == "EAGAIN"
    with make("security=Security(without=('ceilings',))") as sandbox:
        assert report(sandbox, "forks", facts={"forks": 60 if LAB else 600})["forks"][0] == "ok"


@pytest.mark.unprivileged
@pytest.mark.userns
def test_a_user_without_cgroups_has_the_ceiling_by_resource_limits() -> None:
    script = """
with make("") as sandbox:
    notes = "\\n".join(sandbox.plan().notes)
    print(json.dumps([report(sandbox, "forks", facts={"forks": 700})["forks"][0], notes]))
"""
    result, notes = program("user", script)
    assert result == "EAGAIN"
    # Where a cgroup is his, it is the cgroup; else the plan says what holds instead.
    assert not notes or "RLIMIT_NPROC" in notes or "time namespace" in notes


@pytest.mark.root
@pytest.mark.cgroup("memory")
def test_a_memory_bomb_is_told_by_its_outcome() -> None:
    bomb = "b = []\nwhile True: b.append(bytearray(1 << 20))"
    with Sandbox(memory="64M") as sandbox:
        done = sandbox.run(["python3", "-I", "-S", "-c", bomb], timeout=30)
        assert (done.outcome, done.returncode) == (Outcome.OUT_OF_MEMORY, -9)
        assert done.usage.oom_kills
        # One of a tree that shares the fate: the command itself lives on and says so.
        tree = f"import os\nif os.fork() == 0:\n exec({bomb!r})\nprint(os.wait()[1])"
        done = sandbox.run(["python3", "-I", "-S", "-c", tree], timeout=30)
        assert done.outcome is Outcome.OUT_OF_MEMORY
        assert sandbox.run(["echo", "alive"]).outcome is Outcome.EXITED


@pytest.mark.root
@pytest.mark.cgroup("memory")
@pytest.mark.timeout(600)
def test_without_being_asked_memory_is_limited() -> None:
    with Sandbox() as sandbox:
        # A virtual machine may have to be given each page by its host first: 30 MB a second were seen.
        done = sandbox.run(["python3", "-I", "-S", "-c", "b = bytearray(1200 << 20)"], timeout=500)
        assert done.outcome is Outcome.OUT_OF_MEMORY


@pytest.mark.root
@pytest.mark.cgroup("memory")
def test_files_in_memory_count() -> None:
    with Sandbox(memory="64M") as sandbox:
        done = sandbox.run(["head", "-c", "200M", "/dev/zero"], stdout=PIPE, max_output="1M")
        assert done.returncode == 0
        done = sandbox.sh("head -c 200M /dev/zero > /tmp/full")
        assert done.outcome is Outcome.OUT_OF_MEMORY


# --- output ----------------------------------------------------------------------------------------


OUTPUT = """
import resource
from sandboxlib.blocking import PIPE
size = facts["size"]
with make("") as sandbox:
    sandbox.run(["true"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = sandbox.sh(f"head -c {size} /dev/zero & head -c 100M /dev/zero >&2; wait", max_output="4M")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
kept = [len(done.stdout), done.stdout_truncated, len(done.stderr), done.stderr_truncated]
print(json.dumps([*kept, done.returncode, grown]))
"""


@pytest.mark.root
@pytest.mark.parametrize(
    "size",
    [1 << 27 if LAB else 1 << 30, pytest.param(10 << 30, marks=[pytest.mark.slow, pytest.mark.timeout(300)])],
)
def test_output_without_end_is_cut_in_bounded_memory(size: int) -> None:
    kept = 4 << 20
    out, out_cut, err, err_cut, returncode, grown = program("root", OUTPUT, size=size, patience=280)
    assert (out, out_cut) == (kept, size - kept)
    assert (err, err_cut) == (kept, (100 << 20) - kept)
    assert returncode == 0
    # Both streams' heads and tails, joined once: kilobytes.
    assert grown < 40 << 10


# --- commands that will not go ---------------------------------------------------------------------


@pytest.mark.root
def test_a_command_that_ignores_sigterm_is_killed() -> None:
    stubborn = ["sh", "-c", "trap '' TERM INT HUP; echo ready; while :; do sleep 0.1; done"]
    with Sandbox() as sandbox:
        with sandbox.popen(stubborn, stdout=PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            process.terminate()
            with pytest.raises(TimeoutExpired):
                process.wait(timeout=0.3)
            process.kill()
            assert process.wait(timeout=5) == -9
        began = time.monotonic()
        with pytest.raises(TimeoutExpired) as caught:
            sandbox.run(stubborn, timeout=0.3)
        assert caught.value.output == b"ready\n"
        assert time.monotonic() - began < 30
        process = sandbox.popen(stubborn, stdout=PIPE)
        process.stdout.readline()
        began = time.monotonic()
    process.stdout.close()
    assert time.monotonic() - began < 30


@WHO
def test_a_daemon_that_holds_stdout_keeps_nobody_waiting(who: str) -> None:
    script = """
import time
with make("") as sandbox:
    began = time.monotonic()
    daemon = "trap '' PIPE; while :; do echo more 2>/dev/null; sleep 0.02; done"
    done = sandbox.run(["sh", "-c", 'echo before; setsid sh -c "$1" & echo after', "sh", daemon])
    took = time.monotonic() - began
    names = [sorted(report(sandbox, "processes")["processes"].values()) for _ in range(2)]
    began = time.monotonic()
print(json.dumps([done.stdout.decode(), done.outcome.name, took, names[1], time.monotonic() - began]))
"""
    out, outcome, took, names, closing = program(who, script)
    assert out.startswith(("before\nafter\n", "before\nmore\nafter\n"))
    assert outcome == "EXITED"
    assert took < 5
    # It lives on until the sandbox is closed.
    assert "sh" in names
    assert closing < 5


@pytest.mark.root
def test_a_daemon_dies_with_its_sandbox() -> None:
    with Sandbox() as sandbox:
        done = sandbox.run(["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & echo $!"])
        assert done.returncode == 0
        engine = sandbox._engine
        assert engine is not None
        children = Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text().split()
        assert len(children) == 1
        handles = [os.pidfd_open(int(pid)) for pid in children]
    import select

    try:
        # No process in sight any more when close() has returned, not a while later.
        assert len(select.select(handles, [], [], 0)[0]) == len(handles) == 1
    finally:
        for handle in handles:
            os.close(handle)


@pytest.mark.root
def test_a_thousand_zombies_are_reaped() -> None:
    made = """
import os, sys, time
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        if sys.argv[2] == "orphans" and os.fork():
            os._exit(0)
        os._exit(0)
print("made", flush=True)
"""
    with Sandbox(pids=2500) as sandbox:
        for kind in ("zombies", "orphans"):
            done = sandbox.run(
                ["python3", "-I", "-S", "-c", made, "100" if LAB else "1000", kind], timeout=50
            )
            assert done.stdout == b"made\n", done
            deadline = time.monotonic() + 5
            while inside(sandbox) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert inside(sandbox) == []
            stats = sandbox.stats()
            assert stats.pids is None or stats.pids.current <= 2


# --- standard input --------------------------------------------------------------------------------


@pytest.mark.root
def test_a_command_need_not_read_what_it_is_given() -> None:
    data = bytes(8 << 20)
    with Sandbox() as sandbox:
        assert sandbox.run(["true"], input=data).returncode == 0
        assert sandbox.run(["sh", "-c", "exec 0<&-; echo closed"], input=data).stdout == b"closed\n"
        assert sandbox.run(["head", "-c", "3"], input=b"abcdef").stdout == b"abc"
        assert sandbox.run(["cat"]).stdout == b""


@WHO
@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 2), (0, 1, 2)])
def test_a_program_whose_standard_descriptors_are_closed_can_use_sandboxes(
    who: str, closed: tuple[int, ...]
) -> None:
    script = """
kept = os.dup(1)
os.set_inheritable(kept, False)
for number in facts["closed"]:
    os.close(number)
with make("") as sandbox:
    done = [sandbox.run(["cat"], input=b"x"), sandbox.run(["sh", "-c", "echo out; echo err >&2"])]
    inside = report(sandbox, "descriptors")["descriptors"]
left = sorted(int(name) for name in os.listdir("/proc/self/fd") if int(name) < 3)
text = json.dumps([[one.stdout.decode() + one.stderr.decode() for one in done], inside, left])
os.dup2(kept, 1)
os.write(1, text.encode())
os._exit(0)
"""
    out, descriptors, left = program(who, script, closed=closed)
    assert out == ["x", "out\nerr\n"]
    assert descriptors == [0, 1, 2]
    # What was closed is closed again (listing takes the lowest that is free).
    assert set(left) - {0, 1, 2} == set()


# --- threads ---------------------------------------------------------------------------------------


def at_once(*functions: object) -> None:
    """Run functions in threads; the first error of any is raised here."""
    errors: list[BaseException] = []

    def guarded(function: object) -> None:
        try:
            function()  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.root
def test_threads_may_use_one_sandbox() -> None:
    with Sandbox() as sandbox:

        def use(number: int) -> None:
            for turn in range(15):
                text = f"{number} {turn}\n".encode() * 2000
                done = sandbox.run(["cat"], input=text)
                assert done.stdout == text
                assert done.outcome is Outcome.EXITED

        at_once(*(lambda number=number: use(number) for number in range(8)))


@pytest.mark.root
def test_threads_may_use_sandboxes_of_their_own() -> None:
    def use(number: int) -> None:
        for _ in range(6):
            with Sandbox(hostname=f"box{number}") as sandbox:
                assert sandbox.run(["hostname"]).stdout == f"box{number}\n".encode()

    at_once(*(lambda number=number: use(number) for number in range(8)))


@pytest.mark.root
def test_a_sandbox_may_be_closed_while_a_command_runs_in_another_thread() -> None:
    for _ in range(10):
        sandbox = Sandbox().open()
        ended: list[object] = []
        process = sandbox.popen(["sleep", "60"])
        thread = threading.Thread(target=lambda: ended.append(sandbox.run(["sleep", "60"]).returncode))  # noqa: B023 - joined below
        waiter = threading.Thread(target=lambda: ended.append(process.wait()))  # noqa: B023 - joined below
        thread.start()
        waiter.start()
        engine = sandbox._engine
        assert engine is not None
        deadline = time.monotonic() + 5
        while len(engine._processes) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        sandbox.close()
        for one in (thread, waiter):
            one.join(10)
            assert not one.is_alive()
        assert ended == [-9, -9]


@pytest.mark.root
def test_closing_twice_at_once_is_harmless() -> None:
    for _ in range(10):
        sandbox = Sandbox().open()
        sandbox.popen(["sleep", "60"])
        at_once(sandbox.close, sandbox.close, sandbox.close)
        with contextlib.suppress(RuntimeError):
            sandbox.run(["true"])
            raise AssertionError("it was closed")
