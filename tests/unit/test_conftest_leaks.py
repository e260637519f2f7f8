"""The check for leaks notices each kind of thing that could be left behind."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

import pytest

import leaks

Run = Callable[..., subprocess.CompletedProcess[str]]
TESTS = Path(__file__).parent.parent


@contextmanager
def descriptor() -> Iterator[None]:
    number = os.open("/dev/null", os.O_RDONLY)
    yield
    os.close(number)


@contextmanager
def child() -> Iterator[None]:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def zombie() -> Iterator[None]:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield
    process.wait()


@contextmanager
def thread() -> Iterator[None]:
    end = threading.Event()
    worker = threading.Thread(target=end.wait)
    worker.start()
    yield
    end.set()
    worker.join()


@contextmanager
def umask() -> Iterator[None]:
    before = os.umask(0o123)
    yield
    os.umask(before)


@contextmanager
def working_directory() -> Iterator[None]:
    before = os.getcwd()
    os.chdir("/proc")
    yield
    os.chdir(before)


@contextmanager
def signal_mask() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


@contextmanager
def file() -> Iterator[None]:
    folder = mkdtemp(prefix=f"sandboxlib-test-{os.getpid()}-", dir="/tmp")
    yield
    os.rmdir(folder)


@contextmanager
def abstract_socket() -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(f"\0sandboxlib-test-{os.getpid()}")
        yield


@contextmanager
def shared_memory() -> Iterator[None]:
    made = subprocess.run(["ipcmk", "-M", "64"], capture_output=True, text=True, check=True)
    yield
    subprocess.run(["ipcrm", "-m", made.stdout.split()[-1]], check=True)


KINDS: dict[str, Callable[[], object]] = {
    "descriptors": descriptor,
    "children": child,
    "children zombie": zombie,
    "threads": thread,
    "identity umask": umask,
    "identity cwd": working_directory,
    "identity mask": signal_mask,
    "files": file,
    "sockets": abstract_socket,
    "ipc": shared_memory,
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "PATIENCE", 0.2)


@pytest.mark.leaks
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_behind_is_named(kind: str) -> None:
    before = leaks.snapshot()
    with ExitStack() as stack:
        stack.enter_context(KINDS[kind]())  # type: ignore[arg-type]
        assert any(
            line.startswith(f"{kind.partition(' ')[0]}: left behind: ") for line in leaks.since(before)
        )
    assert leaks.since(before) == []


@pytest.mark.root
@pytest.mark.leaks
def test_a_mount_an_interface_and_a_key_are_seen() -> None:
    script = """
import ctypes, fcntl, os, socket, sys
sys.path.insert(0, sys.argv[1])
import leaks
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWNET, PRIVATE, JOIN, ADD_BRIDGE = 0x20000, 0x40000000, 0x44000, 1, 0x89A0
def check(result):
    assert result >= 0, os.strerror(ctypes.get_errno())
check(libc.unshare(NEWNS | NEWNET))
check(libc.mount(b"none", b"/", None, PRIVATE, None))
leaks.PATIENCE = 0.2
before = leaks.snapshot()
check(libc.mount(b"sandboxlib", b"/mnt", b"tmpfs", 0, None))
check(libc.syscall(KEYCTL, JOIN, None))
with socket.socket() as end:
    fcntl.ioctl(end, ADD_BRIDGE, b"sbxtest0\\0")
print(*leaks.since(before), sep="\\n")
"""
    keyctl = {"x86_64": 250, "aarch64": 219}[platform.machine()]
    done = subprocess.run(
        [sys.executable, "-c", script.replace("KEYCTL", str(keyctl)), str(TESTS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert {line.partition(":")[0] for line in done.stdout.splitlines()} == {"mounts", "keys", "interfaces"}


def test_what_goes_away_in_time_is_no_leak() -> None:
    before = leaks.snapshot()
    folder = mkdtemp(prefix=f"sandboxlib-test-{os.getpid()}-", dir="/tmp")
    timer = threading.Timer(0.05, os.rmdir, [folder])
    timer.start()
    assert leaks.since(before) == []
    timer.join()


def test_what_belongs_to_others_and_changes_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(10_000))
    monkeypatch.setitem(leaks._WATCHED, "files", lambda: iter([f"/tmp/other-{next(looks)}"]))
    assert leaks.since(leaks.snapshot()) == []


def test_two_snapshots_are_cheap() -> None:
    def cost() -> float:
        start = time.thread_time()
        leaks.difference(leaks.snapshot(), leaks.snapshot())
        return time.thread_time() - start

    # CPU seconds, and the best of many: the question is whether much is read, not whether others are busy.
    assert min(cost() for _ in range(20)) < 0.005


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test suite of its own under our conftest."""
    for name in ("SANDBOXLIB_MUST_RUN", "SANDBOXLIB_RECORD", "SANDBOXLIB_FAILED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini(f"[pytest]\npythonpath = {TESTS}")
    pytester.makeconftest((TESTS / "conftest.py").read_text())
    pytester.mkdir("kernel")
    return pytester


def test_a_leaking_test_of_the_kernel_folder_fails(suite: pytest.Pytester) -> None:
    source = "import os, leaks\nleaks.PATIENCE = 0.1\ndef test_it(): os.open('/dev/null', os.O_RDONLY)\n"
    (suite.path / "kernel" / "test_leaky.py").write_text(source)
    result = suite.runpytest_subprocess()
    # Both checks end in the same teardown, the test's and the whole run's.
    result.assert_outcomes(passed=1, errors=1)
    named = "*descriptors: left behind: * -> /dev/null"
    result.stdout.fnmatch_lines(["*Failed: left behind:", named])
    result.stdout.fnmatch_lines(["*Failed: the run has not left all as it was:", named])


# --- others at work on the same machine -----------------------------------------------------------------

#: A run that stands, between its first look and its last, until the others have done what they do.
WAITS = """
import leaks
leaks.PATIENCE = 0.3
def test_it():
    with open("ready", "w"): pass
    with open("go"): pass
"""

#: What a run of this suite can leave behind, all of it; also by programs that it started.
LEAVES = """
import ctypes, os, signal, socket, subprocess, sys, tempfile
from pathlib import Path
import leaks
from sandboxlib.kernel.owner import PREFIX, owner_token
leaks.PATIENCE = 0.3
KILLED = '''
import os, signal, sys
from sandboxlib.kernel.owner import PREFIX, owner_token
# As of a PID namespace that there is not: who can see that the owner is dead removes it.
path = f"{sys.argv[1]}/{PREFIX}1-{owner_token().partition('-')[2]}-7"
os.mkdir(path)
print(path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
'''
held = []
def sh(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
def test_it():
    (root, *_) = leaks._cgroup_roots()
    place = f"{root}/{PREFIX}{owner_token()}-7"
    os.mkdir(place)
    done = subprocess.run([sys.executable, "-c", KILLED, root], stdout=-1, text=True)
    folder = tempfile.mkdtemp(prefix=f"sandboxlib-test-{os.getpid()}-", dir="/tmp")
    Path("left").write_text(f"{place} {done.stdout} {folder}")
    Path("/run/sandboxlib/storage-left").touch()
    sh("ip", "link", "add", "sbxtest0", "type", "bridge")
    sh("ip", "netns", "add", "left")
    sh("mount", "-t", "tmpfs", "none", "/mnt")
    sh("ipcmk", "-M", "64")
    held.append(socket.socket(socket.AF_UNIX))
    held[0].bind("\\0left")
    assert ctypes.CDLL(None).syscall(KEYCTL, 1, None) > 0
    # Its own parent ends at once, and so it is nobody's child here.
    sh("sh", "-c", "unshare --pid --fork sleep 60 >/dev/null 2>&1 & sleep 0.3; kill -9 $!")
    held.append(subprocess.Popen(["sleep", "60"]))
""".replace("KEYCTL", str({"x86_64": 250, "aarch64": 219}.get(platform.machine())))

#: What Docker and podman do when containers start and end.
STARTS = """
set -e
ip link add docker9 type bridge
ip link add veth9 type veth peer name veth8
mkdir "$1/merged"
mount -t tmpfs overlay "$1/merged"
ip netns add docker-9
mkdir /tmp/engine-9
"""
ENDS = """
set -e
ip link del docker9
ip link del veth9
umount "$1/merged"
rmdir "$1/merged"
ip netns del docker-9
rmdir /tmp/engine-9
"""


class Waiting:
    """A run of `WAITS`: it is between its two looks while the block lasts, and has to end well."""

    def __init__(self, suite: pytest.Pytester) -> None:
        self._place = suite.path
        (suite.path / "kernel" / "test_waits.py").write_text(WAITS)
        os.mkfifo(suite.path / "ready")
        os.mkfifo(suite.path / "go")
        command = [sys.executable, "-m", "pytest", "kernel/test_waits.py"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def __enter__(self) -> None:
        (self._place / "ready").read_text()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        (self._place / "go").write_text("")
        said = self._process.communicate(timeout=30)[0]
        if kind is None:
            assert self._process.returncode == 0, said.decode()


@pytest.mark.root
@pytest.mark.leaks
@pytest.mark.tool("ip")
def test_what_another_run_leaves_is_named_there_and_not_here(suite: pytest.Pytester) -> None:
    with Waiting(suite):
        (suite.path / "kernel" / "test_leaves.py").write_text(LEAVES)
        result = suite.runpytest_subprocess("kernel/test_leaves.py")
    result.assert_outcomes(passed=1, errors=1)
    named = [line.lstrip(" |") for line in result.outlines if ": left behind: " in line]
    left = (suite.path / "left").read_text().split()
    for path in left:
        # The group of the run itself may have been removed by somebody.
        with suppress(FileNotFoundError):
            os.rmdir(path)
    for pid in (line.split()[3] for line in named if line.startswith(("children: ", "processes: "))):
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    kinds = {line.partition(":")[0] for line in named}
    assert kinds >= {"children", "cgroups", "files", "interfaces", "ipc", "keys", "mounts", "processes"}
    for what in (
        *(f"cgroups: left behind: {path}" for path in left[:2]),
        f"files: left behind: {left[2]}",
        "files: left behind: /run/sandboxlib/storage-left",
        "interfaces: left behind: sbxtest0",
        "interfaces: left behind: netns left",
        "sockets: left behind: @left",
    ):
        assert what in named


@pytest.mark.root
@pytest.mark.leaks
@pytest.mark.tool("ip")
@pytest.mark.parametrize("when", ["starts", "ends"])
def test_what_a_container_engine_does_meanwhile_is_no_leak(suite: pytest.Pytester, when: str) -> None:
    def act(script: str) -> None:
        subprocess.run(["sh", "-c", script, "sh", str(suite.path)], check=True)

    if when == "starts":
        with Waiting(suite):
            act(STARTS)
        act(ENDS)
    else:
        act(STARTS)
        with Waiting(suite):
            act(ENDS)


#: Plain users have no namespaces of their own: what the parent does here is not the child's.
BESIDE = """
import os, socket, sys, tempfile
sys.path.insert(0, sys.argv[1])
from sandboxlib.kernel.owner import owner_token
import leaks
leaks.PATIENCE = 0.2
to_other, to_run = os.pipe(), os.pipe()
runtime = f"{os.environ['XDG_RUNTIME_DIR']}/sandboxlib-{os.getuid()}"
os.makedirs(runtime, exist_ok=True)
def act():
    place = tempfile.mkdtemp(prefix=f"sandboxlib-test-{os.getpid()}-", dir="/tmp")
    path = f"{runtime}/{owner_token()}-7.hosts"
    open(path, "x").close()
    held = socket.socket(socket.AF_UNIX)
    held.bind(f"\\0plain-{os.getpid()}")
    def undo():
        os.rmdir(place)
        os.unlink(path)
        held.close()
    return undo
run = os.fork()
if not run:
    leaks.follow()
    before = leaks.snapshot()
    os.write(to_other[1], b"x")
    os.read(to_run[0], 1)
    print("others:", leaks.since(before))
    undo = act()
    found = leaks.since(before)
    print("own:", sorted({leak.partition(":")[0] for leak in found}), len(found), flush=True)
    undo()
    os._exit(0)
os.read(to_other[0], 1)
undo = act()
os.write(to_run[1], b"x")
os.waitpid(run, 0)
undo()
"""


@pytest.mark.unprivileged
@pytest.mark.leaks
def test_what_another_program_of_the_same_plain_user_makes_is_no_leak(as_user: Run) -> None:
    lines = as_user(BESIDE, str(TESTS)).stdout.splitlines()
    assert lines == ["others: []", "own: ['descriptors', 'files', 'sockets'] 4"]
