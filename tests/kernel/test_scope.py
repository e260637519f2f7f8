"""Where a plain user has no cgroup, systemd is asked for one: for a limit only, and once."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.systemd_user, pytest.mark.unprivileged, pytest.mark.userns]

Run = Callable[..., "subprocess.CompletedProcess[str]"]

APP = Path(f"/sys/fs/cgroup/user.slice/user-{os.geteuid()}.slice/user@{os.geteuid()}.service/app.slice")

# All run as programs of their own: who has been moved cannot come back.
COMMON = """
import os, subprocess, sys, threading, time
from sandboxlib import CGroup, Sandbox, UnsupportedError
from sandboxlib.kernel.cgroup.scope import scope_name

def own():
    return open("/proc/self/cgroup").read().strip().partition("::")[2]

def moved():
    return f"/app.slice/{scope_name()}/" in own() + "/"

HOG = [sys.executable, "-c", "b = bytearray(200 << 20); print('filled')"]
assert "/session-" in own(), own()
"""


def scopes() -> list[str]:
    """The scopes of this library's that there are, by their folders and by systemd's list."""
    command = ["systemctl", "--user", "--all", "--plain", "--no-legend", "--no-pager", "list-units"]
    listed = subprocess.run([*command, "sandboxlib-*"], capture_output=True, text=True, check=True).stdout
    folders = [folder.name for folder in APP.glob("sandboxlib-*")] if APP.is_dir() else []
    return sorted({*folders, *(line.split()[0] for line in listed.splitlines())})


@pytest.fixture(autouse=True)
def _no_scope_is_left() -> Iterator[None]:
    """Whatever a program did, its scope goes with it."""
    yield
    deadline = time.monotonic() + 20
    while left := scopes():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.fixture
def said(as_user: Run) -> Callable[..., list[str]]:
    """Run a script after `COMMON`, as a plain user, and return what it prints, by lines."""

    def function(script: str, **env: str) -> list[str]:
        return as_user(COMMON + script, env=env).stdout.splitlines()

    return function


Said = Callable[..., list[str]]


# --- what is to be had ---------------------------------------------------------------------------------


def test_a_limit_of_memory_holds(said: Said) -> None:
    script = """
with Sandbox(memory="64M") as sandbox:
    result = sandbox.run(HOG)
    print(result.outcome.name, result.usage.oom_kills, b"filled" in result.stdout)
    print(sandbox.run(["true"]).usage.memory_peak > 0, sandbox.stats().memory.max == 64 << 20, moved())
"""
    assert said(script) == ["OUT_OF_MEMORY 1 False", "True True True"]


def test_a_limit_of_memory_holds_on_trio(said: Said) -> None:
    script = """
import trio
from sandboxlib import AsyncSandbox

async def one():
    async with AsyncSandbox(memory="64M", pids=20) as sandbox:
        print((await sandbox.run(HOG)).outcome.name)

async def main():
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)

trio.run(main)
print(moved())
"""
    assert said(script) == ["OUT_OF_MEMORY"] * 3 + ["True"]


def test_a_limit_of_processes_holds_and_pause_and_stats_are_to_be_had(said: Said) -> None:
    script = """
with Sandbox(pids=12) as sandbox:
    fork = "import os\\nfor n in range(40):\\n    if os.fork() == 0: os.read(0, 1)"
    result = sandbox.run([sys.executable, "-c", fork], timeout=30)
    print(result.returncode != 0, b"BlockingIOError" in result.stderr, result.usage.pids_peak <= 12)
    sandbox.pause()
    sandbox.resume()
    print(sandbox.stats().pids.max)
"""
    assert said(script) == ["True True True", "12"]


def test_a_group_alone_is_asked_for_as_well(said: Said) -> None:
    script = """
with CGroup(memory_max="64M").open() as group:
    print(f"/{scope_name()}/" in group.path, moved())
with CGroup(memory_max="64M").open() as group, subprocess.Popen(["sleep", "60"]) as sleeper:
    group.add(sleeper.pid)
    print(group.pids() == [sleeper.pid])
    group.kill()
    print(sleeper.wait())
"""
    assert said(script) == ["True True", "True", "-9"]


def test_an_empty_cgroup_asks_too(said: Said) -> None:
    assert said("with Sandbox(cgroup=CGroup()) as s: print(s.run(['true']).usage.pids_peak, moved())") == [
        "1 True"
    ]


def test_the_program_is_moved_once_and_keeps_its_scope(said: Said) -> None:
    script = """
places = set()
for number in range(3):
    with Sandbox(memory="64M") as sandbox:
        sandbox.run(["true"])
        places.add(own())
# From then on there is a cgroup for all.
with Sandbox() as sandbox:
    print(sandbox.run(["true"]).usage.memory_peak > 0)
print(len(places), moved(), "StartTransientUnit" in str(Sandbox(memory="1M").plan()))
folder = "/sys/fs/cgroup" + os.path.dirname(own())
print(sorted(name for name in os.listdir(folder) if os.path.isdir(f"{folder}/{name}")))
"""
    assert said(script) == ["True", "1 True False", "['supervisor']"]


def test_a_scope_that_was_asked_for_is_found_at_every_moment_of_moving_aside(said: Said) -> None:
    script = """
from sandboxlib.kernel.cgroup import acquire, probe
first, folder = acquire(), "/sys/fs/cgroup" + own()
print(set(first.bases.values()) == {folder}, probe() == first)
# As by another thread that is about to make the first group.
os.mkdir(f"{folder}/supervisor")
with open(f"{folder}/supervisor/cgroup.procs", "w") as file:
    file.write("0")
print(probe() == first)
"""
    assert said(script) == ["True True", "True"]


def test_threads_ask_once(said: Said) -> None:
    script = """
barrier, results = threading.Barrier(6), []
def one():
    sandbox = Sandbox(memory="64M")
    barrier.wait()
    with sandbox:
        sandbox.run(["true"], check=True)
        results.append(own())
threads = [threading.Thread(target=one) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(results), len(set(results)), moved())
"""
    assert said(script) == ["6 1 True"]


def test_a_forked_child_uses_the_scope_it_is_born_in(said: Said) -> None:
    script = """
with Sandbox(memory="64M") as sandbox:
    before, sandbox_of_the_parent = own(), sandbox
    child = os.fork()
    if child == 0:
        with Sandbox(memory="64M") as sandbox:
            print(sandbox.run(HOG).outcome.name, own() == before, flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sandbox.run(["true"]).returncode)
"""
    assert said(script) == ["OUT_OF_MEMORY True", "0 0"]


def test_a_child_from_before_asks_for_a_scope_of_its_own(said: Said) -> None:
    script = """
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.read(reader, 1)
    with Sandbox(memory="64M") as sandbox:
        sandbox.run(["true"], check=True)
        os._exit(0 if moved() else 1)
with Sandbox(memory="64M") as sandbox:
    os.write(writer, b"x")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), moved())
"""
    assert said(script) == ["0 True"]


def test_a_program_in_a_pid_namespace_moves_itself_and_nobody_else(said: Said) -> None:
    script = """
inside = '''
import os
from sandboxlib import CGroup
print(os.getpid() < 20, "/session-" in open("/proc/self/cgroup").read())
with CGroup(pids_max=9).open():
    print("/sandboxlib-" in open("/proc/self/cgroup").read())
'''
command = ["unshare", "--user", "--map-current-user", "--pid", "--fork", "--mount-proc"]
sys.stdout.flush()
subprocess.run([*command, sys.executable, "-c", inside], check=True)
print("/session-" in own())
"""
    assert said(script) == ["True True", "True", "True"]


# --- what must not happen ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "with Sandbox() as sandbox: sandbox.run(['true'], check=True)",
        "print(Sandbox(memory='64M').plan())",
        "from sandboxlib import doctor; print(doctor.main())",
        "from sandboxlib.kernel.cgroup import probe; print(probe())",
    ],
    ids=["a default sandbox", "a plan", "the doctor", "a probe"],
)
def test_nothing_is_asked_for(said: Said, script: str) -> None:
    after = "print(own(), 'jeepney' in sys.modules)"
    *text, last = said(f"before = own()\n{script}\nassert own() == before\n{after}")
    assert "/session-" in last
    assert last.endswith("False")
    if "plan()" in script:
        assert any("StartTransientUnit" in line for line in text)
    if "doctor" in script:
        assert any(line.startswith("note") and "cgroups" in line and "none yet" in line for line in text)


# How an error shows: what was asked for, what it needs, and the way out.
REFUSED = """
began = time.monotonic()
try:
    with Sandbox({}) as sandbox:
        sandbox.run(["true"])
        print("not refused")
except UnsupportedError as error:
    print(error.feature)
    print(error.needs)
    print(error.hint)
print("/session-" in own(), time.monotonic() - began < 15)
"""


@pytest.mark.parametrize(
    "address", ["unix:path=/nowhere/bus", "unix:path=/dev/null", "tcp:host=localhost,port=1", "nonsense", ";"]
)
def test_an_address_that_leads_nowhere_is_named(said: Said, address: str) -> None:
    feature, needs, hint, last = said(REFUSED.format("memory='64M'"), DBUS_SESSION_BUS_ADDRESS=address)
    assert (feature, last) == ("a cgroup", "True True")
    assert repr(address) in needs
    assert "DBUS_SESSION_BUS_ADDRESS" in hint


def test_without_a_way_to_the_bus_it_is_refused_while_planning(said: Said) -> None:
    feature, _, hint, last = said(REFUSED.format("memory='64M'"), XDG_RUNTIME_DIR="")
    assert (feature, last) == ("memory_max", "True True")
    assert f"XDG_RUNTIME_DIR to /run/user/{os.geteuid()}" in hint


def test_it_can_be_switched_off(said: Said) -> None:
    feature, _, hint, last = said(REFUSED.format("pids=10"), SANDBOXLIB_CGROUP="found")
    assert (feature, last) == ("pids_max", "True True")
    assert "SANDBOXLIB_CGROUP" in hint


def test_a_controller_that_the_user_has_not_been_given_is_refused_while_planning(said: Said) -> None:
    script = """
from sandboxlib.kernel.cgroup import probe
given = probe().offer.bases
values = {"cpu": "cpus=0.5", "io": "cgroup=CGroup(io_weight=50)", "cpuset": "cgroup=CGroup(cpuset_cpus=[0])"}
values["devices"] = "cgroup=CGroup(devices=[])"
for name in values.keys() - given.keys():
    try:
        exec(f"Sandbox({values[name]}).plan()")
        print("not refused")
    except UnsupportedError as error:
        print(name in error.needs or name == "devices", bool(error.hint))
print("/session-" in own())
"""
    *found, last = said(script)
    assert set(found) == {"True True"}
    assert last == "True"


@contextmanager
def listening(folder: Path, answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A socket that is no bus: *answer* deals with each who connects. Its address."""
    path = folder / "bus"
    threads: list[threading.Thread] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def accept() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    if not (first := connection.recv(1, socket.MSG_PEEK)):
                        return
                    assert first == b"\0"
                    answer(connection)

        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield f"unix:path={path}"
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
            threads[0].join()


def wait_for_the_end(connection: socket.socket) -> None:
    """Take all that comes, and say nothing more."""
    while connection.recv(4096):
        pass


def greet(connection: socket.socket) -> None:
    """Let the client in, as a bus does."""
    heard = b""
    while not heard.endswith(b"\r\n"):
        heard += connection.recv(4096)
    assert heard.startswith(b"\0AUTH EXTERNAL ")
    connection.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")


def silent(connection: socket.socket) -> None:
    wait_for_the_end(connection)


def silent_after_greeting(connection: socket.socket) -> None:
    greet(connection)
    wait_for_the_end(connection)


@pytest.mark.parametrize("answer", [silent, silent_after_greeting])
def test_a_bus_that_never_answers_is_given_up_on(
    said: Said, tmp_path: Path, answer: Callable[[socket.socket], None]
) -> None:
    with listening(tmp_path, answer) as address:
        feature, needs, hint, last = said(REFUSED.format("memory='64M'"), DBUS_SESSION_BUS_ADDRESS=address)
    assert (feature, last) == ("a cgroup", "True True")
    assert "within 5 seconds" in needs
    assert address in needs
    assert "systemd-run" in hint


def test_all_who_wait_for_a_silent_bus_hear_of_it_at_once(said: Said, tmp_path: Path) -> None:
    script = """
def one():
    try:
        with Sandbox(memory="64M"): print("not refused")
    except UnsupportedError as error:
        refused.append(error.needs)
refused, began = [], time.monotonic()
threads = [threading.Thread(target=one) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(refused), len(set(refused)), time.monotonic() - began < 15)
"""
    with listening(tmp_path, silent) as address:
        assert said(script, DBUS_SESSION_BUS_ADDRESS=address) == ["6 1 True"]


def test_a_task_that_is_cancelled_does_not_wait_for_a_silent_bus(said: Said, tmp_path: Path) -> None:
    script = """
import trio
from sandboxlib import AsyncSandbox
async def one():
    async with AsyncSandbox(memory="64M"): print("not refused")
async def main():
    await trio.to_thread.run_sync(lambda: None)
    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:
            for _ in range(3): nursery.start_soon(one)
    print(scope.cancelled_caught, trio.current_time() - scope.deadline < 2.5)
trio.run(main)
print("/session-" in own())
"""
    with listening(tmp_path, silent) as address:
        assert said(script, DBUS_SESSION_BUS_ADDRESS=address) == ["True True", "True"]


def rejecting(connection: socket.socket) -> None:
    connection.sendall(b"REJECTED EXTERNAL\r\n")
    wait_for_the_end(connection)


def closing(connection: socket.socket) -> None:
    greet(connection)


def babbling(connection: socket.socket) -> None:
    greet(connection)
    connection.sendall(b"x" * 100)
    wait_for_the_end(connection)


@pytest.mark.parametrize("answer", [rejecting, closing, babbling])
def test_what_is_no_bus_is_told_from_one(
    said: Said, tmp_path: Path, answer: Callable[[socket.socket], None]
) -> None:
    with listening(tmp_path, answer) as address:
        feature, needs, hint, last = said(REFUSED.format("memory='64M'"), DBUS_SESSION_BUS_ADDRESS=address)
    assert (feature, last) == ("a cgroup", "True True")
    assert address in needs
    assert hint


@pytest.mark.tool("dbus-daemon")
def test_a_bus_without_systemd_is_told(said: Said) -> None:
    command = ["dbus-daemon", "--session", "--nofork", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as daemon:
        assert daemon.stdout is not None
        address = daemon.stdout.readline().strip()
        try:
            feature, needs, _, last = said(REFUSED.format("memory='64M'"), DBUS_SESSION_BUS_ADDRESS=address)
        finally:
            daemon.kill()
    assert (feature, last) == ("a cgroup", "True True")
    assert "refuses" in needs
    assert "org.freedesktop" in needs


def test_what_systemd_says_against_it_is_told(said: Said) -> None:
    script = """
command = ["systemd-run", "--user", "--scope", "--quiet", f"--unit={scope_name()}"]
command += ["sh", "-c", "echo; exec cat"]
other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
other.stdout.readline()
""" + REFUSED.format("memory='64M'")
    feature, needs, hint, last = said(script + "other.communicate()")
    assert (feature, last) == ("a cgroup", "True True")
    assert "refuses" in needs
    assert "UnitExists" in needs
    assert "systemd-run" in hint


def test_after_a_refusal_the_next_may_work(said: Said) -> None:
    script = """
for address in ("unix:path=/nowhere", None):
    if address: os.environ["DBUS_SESSION_BUS_ADDRESS"] = address
    else: del os.environ["DBUS_SESSION_BUS_ADDRESS"]
    try:
        with Sandbox(memory="64M") as sandbox:
            print(sandbox.run(["true"]).returncode, moved())
    except UnsupportedError as error:
        print(error.feature)
"""
    assert said(script) == ["a cgroup", "0 True"]


def test_a_killed_program_leaves_nothing(as_user: Run) -> None:
    script = (
        COMMON
        + """
import signal
sandbox = Sandbox(memory="64M").__enter__()
process = sandbox.popen(["sleep", "1000"])
print(process.host_pid if hasattr(process, "host_pid") else process.pid, scope_name(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    done = as_user(script, check=False)
    assert done.returncode == -9
    pid, name = done.stdout.split()
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}") or name in scopes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # What says whose it was, a lock in the run folder, goes when the next program starts.
    assert as_user(COMMON + "Sandbox(memory='64M').__enter__().close()").returncode == 0
