"""Programs that end badly or are odd: no process, cgroup, mount or file of theirs remains."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel.probe.outside import _PRELUDE, TESTS, WHO, program

import leaks
import users

#: Where starting a program takes ten times as long, there are fewer of them.
LAB = bool(os.environ.get("SANDBOXLIB_LAB"))

CLEANER = "with make('') as sandbox:\n    sandbox.run(['true'])\nprint('[]')"


def started(who: str, script: str, **facts: object) -> subprocess.Popen[bytes]:
    """Start a program of its own as ``root`` or as a plain ``user``; its standard output is a pipe."""
    arguments = ["-c", _PRELUDE + script, str(TESTS), json.dumps(facts)]
    if who == "root" or os.geteuid():
        command = [sys.executable, *arguments]
    else:
        command = users._command(arguments, subids=False)
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def groups_of(pid: int) -> set[str]:
    """Folders of cgroups that the program *pid* has made."""
    name, roots = re.compile(rf"sandboxlib-\d+-{pid}-\d+-\d+"), leaks._cgroup_roots()
    return {f"{root}/{entry}" for root in roots for entry in os.listdir(root) if name.fullmatch(entry)}


def inside_processes() -> set[int]:
    """All processes that are in another PID namespace than this one, and launchers on their way there."""
    own = os.readlink("/proc/self/ns/pid")
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            launcher = "memfd:sandboxlib" in os.readlink(f"/proc/{pid}/exe")
            if launcher or os.readlink(f"/proc/{pid}/ns/pid") != own:
                found.add(int(pid))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, a kernel thread, or another user's
    return found


def gone(pids: set[int], seconds: float = 5) -> set[int]:
    """Which of *pids* are still there after at most so many seconds."""
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if _alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.005)
    return left


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(name="processes")
def new_processes() -> Iterator[set[int]]:
    """After the test no process that is in a sandbox has been added, but those of sandboxes of others."""
    before = inside_processes()
    yield before
    deadline = time.monotonic() + 5
    while (left := _orphans(inside_processes() - before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, [Path(f"/proc/{pid}/status").read_text()[:200] for pid in left]


def _orphans(pids: set[int]) -> set[int]:
    """Those whose parent is no program any more: others at work on this machine have sandboxes, too."""
    found = set()
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent = int(re.findall(r"^PPid:\s*(\d+)", status, re.MULTILINE)[0])
        if parent in (0, 1) and "Z" not in re.findall(r"^State:\s*(\S)", status, re.MULTILINE)[0]:
            found.add(pid)
    return found


#: Counts a program's descriptors, when the launcher's own, which stays, is there.
DESCRIPTORS = """
def descriptors():
    return len(os.listdir("/proc/self/fd"))
with make("") as sandbox:
    sandbox.run(["true"])
before = descriptors()
"""

# --- killed ----------------------------------------------------------------------------------------

RUNNING = """
with make(facts["arguments"]) as sandbox, make(facts["arguments"]) as other:
    sandbox.run(["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 &"])
    running = [box.popen(["sh", "-c", "sleep 1000 & sleep 1000"]) for box in (sandbox, other)]
    pids = [sandbox._engine.pid, other._engine.pid, *(process.pid for process in running)]
    print(json.dumps(pids), flush=True)
    sandbox.run(["sleep", "1000"])
"""


@WHO
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_sandboxes_die_with_their_program(who: str, number: signal.Signals, processes: set[int]) -> None:
    with started(who, RUNNING, arguments="") as owner:
        assert owner.stdout is not None
        pids = set(json.loads(owner.stdout.readline()))
        everyone = pids | (inside_processes() - processes)
        assert len(everyone) >= len(pids) == 4
        owner.send_signal(number)
        owner.wait(10)
    # By themselves: nobody has swept yet.
    assert not gone(pids)
    program(who, CLEANER)
    assert not groups_of(owner.pid)


@pytest.mark.root
def test_a_frozen_sandbox_dies_with_its_program(processes: set[int]) -> None:
    script = """
with make("") as sandbox:
    process = sandbox.popen(["sleep", "1000"])
    sandbox.pause()
    print(json.dumps([sandbox._engine.pid, process.pid]), flush=True)
    import time
    time.sleep(1000)
"""
    with started("root", script) as owner:
        assert owner.stdout is not None
        pids = set(json.loads(owner.stdout.readline()))
        owner.kill()
    # What is frozen under v1 can only die when it is thawed: the next program does that.
    program("root", CLEANER)
    assert not gone(pids)
    assert not groups_of(owner.pid)


STARTING = """
import itertools
print("ready", flush=True)
for number in itertools.count():
    with make(facts["arguments"]) as sandbox:
        sandbox.run(["true"])
"""


@WHO
def test_a_program_killed_at_any_moment_leaves_nothing(who: str, processes: set[int]) -> None:
    generator = random.Random(2)
    owners = []
    for _ in range(8 if LAB else 25):
        with started(who, STARTING, arguments="memory='64M'" if who == "root" else "") as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"ready\n"
            time.sleep(generator.uniform(0, 0.06))
            owner.kill()
        owners.append(owner.pid)
    time.sleep(0.05)
    program(who, CLEANER)
    assert not [group for pid in owners for group in groups_of(pid)]
    folder = Path("/run/sandboxlib")
    if who == "root" and folder.exists():
        # A file of locks, which the kernel has dropped, stays; it is the same for all programs.
        assert {path.name for path in folder.iterdir()} <= {"ids"} | {
            path.name for path in folder.iterdir() if path.is_dir() and not list(path.iterdir())
        }


@pytest.mark.root
def test_a_killed_programs_ids_are_given_out_again() -> None:
    script = """
with make("") as sandbox:
    print(json.dumps(sandbox._engine.ids), flush=True)
    if facts["stay"]:
        import time
        time.sleep(1000)
"""
    # Others on this machine have ranges, too, and may be given this one before we are.
    for _ in range(20):
        with started("root", script, stay=True) as owner:
            assert owner.stdout is not None
            first = json.loads(owner.stdout.readline())
            assert program("root", script, stay=False) != first
            owner.kill()
        if program("root", script, stay=False) == first:
            return
    pytest.fail("it is never given out again")


@pytest.mark.root
def test_a_launcher_that_is_killed_is_an_error_and_leaves_nothing() -> None:
    script = """
import signal, threading, time
errors, over = [], []
def hunt():
    own = str(os.getpid())
    while not over:
        for child in open(f"/proc/{own}/task/{own}/children").read().split():
            try:
                if os.readlink(f"/proc/{child}/ns/pid") == os.readlink("/proc/self/ns/pid"):
                    os.kill(int(child), signal.SIGKILL)
            except OSError:
                pass
thread = threading.Thread(target=hunt)
thread.start()
from sandboxlib.errors import SandboxError
for _ in range(facts["times"]):
    try:
        with make("") as sandbox:
            sandbox.run(["true"])
    except SandboxError as error:
        errors.append(type(error).__name__)
over.append(1)
thread.join()
with make("") as sandbox:
    assert sandbox.run(["true"]).returncode == 0
left = open(f"/proc/self/task/{os.getpid()}/children").read().split()
print(json.dumps([len(errors), left, descriptors() - before]))
"""
    errors, left, more = program("root", DESCRIPTORS + script, times=15 if LAB else 40)
    assert errors
    assert left == []
    assert more == 0


# --- odd -------------------------------------------------------------------------------------------


@WHO
def test_a_program_that_ignores_sigchld_is_told_so_and_leaves_nothing(who: str) -> None:
    script = """
import signal
from sandboxlib.errors import SandboxError
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
found = []
for _ in range(3):
    try:
        with make("") as sandbox:
            found.append([sandbox.run(["sh", "-c", "echo hello; exit 3"]).returncode, ""])
    except SandboxError as error:
        found.append([type(error).__name__, str(error)])
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
with make("") as sandbox:
    last = sandbox.run(["true"]).returncode
children = open(f"/proc/self/task/{os.getpid()}/children").read()
print(json.dumps([found, last, descriptors() - before, children]))
"""
    found, last, more, children = program(who, DESCRIPTORS + script)
    for result, text in found:
        # Its status is known, or that it cannot be known is said with the reason.
        assert result == 3 or "SIGCHLD" in text, found
    assert last == 0
    assert more == 0
    assert children == ""


@WHO
def test_a_forked_child_cannot_use_the_programs_sandbox(who: str) -> None:
    script = """
from sandboxlib.errors import StateError
with make("") as sandbox:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = []
        run, popen = (lambda: sandbox.run(["true"])), (lambda: sandbox.popen(["true"]))
        for use in (run, popen, sandbox.kill, sandbox.stats):
            try:
                use()
                found.append("ok")
            except StateError as error:
                found.append(str(error))
        sandbox.close()
        # One of its own it may have.
        with make("") as own:
            found.append(own.run(["echo", "own"]).stdout.decode())
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    found = json.loads(os.read(read, 65536))
    os.waitpid(pid, 0)
    print(json.dumps([found, sandbox.run(["echo", "alive"]).stdout.decode()]))
"""
    found, alive = program(who, script)
    assert found.pop() == "own\n"
    assert all("forked" in text for text in found), found
    assert alive == "alive\n"


@WHO
def test_an_exception_inside_the_block_ends_the_sandbox(who: str) -> None:
    script = """
try:
    with make("") as sandbox:
        process = sandbox.popen(["sleep", "1000"])
        pid = sandbox._engine.pid
        raise KeyboardInterrupt
except KeyboardInterrupt:
    returncode = process.poll()
del process
print(json.dumps([os.path.exists(f"/proc/{pid}"), returncode, descriptors() - before]))
"""
    assert program(who, DESCRIPTORS + script) == [False, -9, 0]


INTERRUPTED = """
import signal, time
signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
with make("") as sandbox:
    sandbox.run(["true"])
    for moment in facts["moments"]:
        try:
            # Inside: on a slow machine the shortest moment may be over before the next line.
            signal.setitimer(signal.ITIMER_REAL, moment)
            sandbox.run(["sleep", facts["length"]])
        except KeyboardInterrupt:
            pass
    names = list(report(sandbox, "processes")["processes"].values())
    began = time.monotonic()
children = open(f"/proc/self/task/{os.getpid()}/children").read()
print(json.dumps([names, time.monotonic() - began, children]))
"""


@WHO
def test_an_interrupted_run_ends_its_command(who: str) -> None:
    names, _, children = program(who, INTERRUPTED, moments=[0.5, 0.7], length="1000")
    assert all(name.startswith("python") for name in names), names
    assert children == ""


@WHO
@pytest.mark.timeout(600)
def test_an_interruption_at_any_moment_of_a_start_does_not_outlive_the_sandbox(who: str) -> None:
    """A command may be there of which the program was not told yet; closing must not wait for it for ever."""
    generator = random.Random(3)
    moments = [generator.uniform(0.0002, 0.006) for _ in range(12 if LAB else 40)]
    # Not for ever: an interruption that comes while an object is being deleted is dropped by Python.
    _, closing, children = program(who, INTERRUPTED, moments=moments, length="2", patience=500)
    assert closing < 5
    # A launcher that was interrupted has ended; it may not have been asked for its status.
    states = [
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        for pid in children.split()
        if Path(f"/proc/{pid}").exists()
    ]
    assert set(states) <= {"Z"}


@pytest.mark.root
def test_a_sandbox_whose_pid_1_was_killed_says_so() -> None:
    script = """
import signal
from sandboxlib.errors import StateError
found = []
with make("") as sandbox:
    process = sandbox.popen(["sleep", "1000"])
    os.kill(sandbox._engine.pid, signal.SIGKILL)
    found.append(process.wait(timeout=10))
    for use in (lambda: sandbox.run(["true"]), lambda: sandbox.popen(["true"])):
        try:
            use()
        except StateError as error:
            found.append(str(error))
print(json.dumps(found))
"""
    found = program("root", script)
    assert found[0] == -9
    assert len(found) == 3
    assert all("ended" in text for text in found[1:])


@pytest.mark.root
@pytest.mark.rlimit("nofile=4096")
def test_a_program_at_its_limit_of_descriptors_gets_an_error_and_leaves_nothing() -> None:
    script = """
import resource
from sandboxlib.errors import SandboxError
with make("") as sandbox:
    sandbox.run(["true"])
first = os.dup(0)
os.close(first)
before = descriptors()
outcomes = []
for room in (*range(1, 30), 400):
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + room, 4096))
    try:
        with make("") as sandbox:
            sandbox.run(["true"])
        outcomes.append("ok")
    except (SandboxError, OSError) as error:
        outcomes.append(type(error).__name__)
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
children = open(f"/proc/self/task/{os.getpid()}/children").read()
print(json.dumps([outcomes, descriptors() - before, children]))
"""
    outcomes, more, children = program("root", DESCRIPTORS + script)
    assert "ok" in outcomes
    assert outcomes[0] != "ok"
    assert more == 0
    assert children == ""
