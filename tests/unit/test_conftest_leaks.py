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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp

import pytest

import leaks

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
    folder = mkdtemp(prefix="sandboxlib-test-", dir="/tmp")
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
    folder = mkdtemp(prefix="sandboxlib-test-", dir="/tmp")
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


def test_a_leaking_test_of_the_kernel_folder_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SANDBOXLIB_MUST_RUN", raising=False)
    monkeypatch.delenv("SANDBOXLIB_RECORD", raising=False)
    monkeypatch.delenv("SANDBOXLIB_FAILED", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini(f"[pytest]\npythonpath = {TESTS}")
    pytester.makeconftest((TESTS / "conftest.py").read_text())
    folder = pytester.mkdir("kernel")
    source = "import os, leaks\nleaks.PATIENCE = 0.1\ndef test_it(): os.open('/dev/null', os.O_RDONLY)\n"
    (folder / "test_leaky.py").write_text(source)
    result = pytester.runpytest_subprocess()
    # Both checks end in the same teardown, the test's and the whole run's.
    result.assert_outcomes(passed=1, errors=1)
    named = "*descriptors: left behind: * -> /dev/null"
    result.stdout.fnmatch_lines(["*Failed: left behind:", named])
    result.stdout.fnmatch_lines(["*Failed: the run has not left all as it was:", named])
