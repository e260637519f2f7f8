"""Waiting until something inside is ready: it comes at once, and never without end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sandboxlib.blocking import PIPE, Sandbox
from sandboxlib.engine import wait
from sandboxlib.errors import CommandNotFoundError, SpecError, StateError, TimeoutExpired
from sandboxlib.mount import Mount

pytestmark = pytest.mark.userns


def python(source: str, *arguments: str) -> list[str]:
    """A command that runs *source* with nothing but the standard library."""
    return [sys.executable, "-I", "-S", "-c", source, *arguments]


LISTEN = """
import os, socket, sys, time
time.sleep(float(sys.argv[1]))
server = socket.socket(getattr(socket, sys.argv[2]), getattr(socket, sys.argv[3]))
server.bind((sys.argv[4], 8080))
if sys.argv[3] == "SOCK_STREAM":
    server.listen(1)
    server.setblocking(False)
# Until somebody says that it has been seen.
sys.stdin.read()
if sys.argv[3] == "SOCK_STREAM":
    try:
        server.accept()
        print("somebody came")
    except BlockingIOError:
        print("nobody came")
"""


# --- port -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, address", [("AF_INET", "127.0.0.1"), ("AF_INET", "0.0.0.0"), ("AF_INET6", "::1")]
)
def test_a_port_that_somebody_begins_to_listen_at(family: str, address: str) -> None:
    command = python(LISTEN, "0.2", family, "SOCK_STREAM", address)
    with Sandbox() as sb, sb.popen(command, stdin=PIPE, stdout=PIPE) as process:
        began = time.monotonic()
        sb.wait_for(port=8080, timeout=20)
        assert 0.15 < time.monotonic() - began < 30
        # A server that takes one client only must not lose it to the one who waits.
        process.stdin.close()
        assert process.stdout.read() == b"nobody came\n"


def test_a_udp_port_is_another_one() -> None:
    command = python(LISTEN, "0.1", "AF_INET", "SOCK_DGRAM", "127.0.0.1")
    with Sandbox() as sb, sb.popen(command, stdin=PIPE):
        sb.wait_for(port="8080/udp", timeout=20)
        with pytest.raises(TimeoutExpired):
            sb.wait_for(port="8080/tcp", timeout=0.1)


def test_a_port_of_the_host_is_not_meant() -> None:
    import socket

    with socket.socket() as server, Sandbox() as sb:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with pytest.raises(TimeoutExpired):
            sb.wait_for(port=server.getsockname()[1], timeout=0.2)


def test_a_port_that_is_only_connected_from_does_not_count() -> None:
    source = """
import socket, time
server = socket.socket()
server.bind(("127.0.0.1", 8000))
server.listen()
client = socket.socket()
client.bind(("127.0.0.1", 8080))
client.connect(("127.0.0.1", 8000))
print("connected", flush=True)
time.sleep(1000)
"""
    with Sandbox() as sb, sb.popen(python(source), stdout=PIPE) as process:
        process.stdout.readline()
        with pytest.raises(TimeoutExpired):
            sb.wait_for(port=8080, timeout=0.2)
        sb.wait_for(port=8000, timeout=20)
        process.kill()


def test_the_same_ports_are_found_in_proc_where_the_kernel_has_no_inet_diag() -> None:
    with Sandbox() as sb:
        assert sb._engine is not None
        for family, address in ((2, "127.0.0.1"), (10, "::1")):
            name = {2: "AF_INET", 10: "AF_INET6"}[family]
            with sb.popen(python(LISTEN, "0", name, "SOCK_STREAM", address), stdin=PIPE):
                sb.wait_for(port=8080, timeout=20)
                waiter = sb._engine.waiter
                table = f"/proc/{sb._engine.pid}/net/{{}}{'6' if family == 10 else ''}"
                assert wait._in_table(table.format("tcp"), 8080, 10, waiter.check)
                assert not wait._in_table(table.format("tcp"), 8081, 10, waiter.check)
                assert not wait._in_table(table.format("udp"), 8080, 7, waiter.check)


# --- path -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "mkdir -p /work/a/b; echo > /work/a/b/c",
        "mkdir -p /tmp/other/b; echo > /tmp/other/b/c; mv /tmp/other /tmp/a; ln -s /tmp/a /work/a",
        "mkdir -p /work/a/b; ln -s ../x /work/a/b/c; sleep 0.1; echo > /work/a/x",
        "mkdir -p /work/a/b/c",
        "mkdir -p /work/a/b; mkfifo /work/a/b/c",
        "mkdir -p /work/a/b; ln -s /no/such/thing /work/a/b/c; sleep 0.1; rm /work/a/b/c; echo > /work/a/b/c",
        "mkdir -p /work/a/b; sleep 0.1; mv /work/a /work/d; mkdir -p /work/a/b; echo > /work/a/b/c",
    ],
)
def test_a_path_that_is_made(line: str) -> None:
    with Sandbox() as sb, sb.popen(["sh", "-c", f"sleep 0.2; {line}"]):
        began = time.monotonic()
        sb.wait_for(path="/work/a/b/c", timeout=20)
        assert time.monotonic() - began < 30
        assert sb.run(["test", "-e", "/work/a/b/c"]).returncode == 0


def test_a_path_that_is_there_already() -> None:
    with Sandbox() as sb:
        sb.wait_for(path="/", timeout=5)
        sb.wait_for(path="/dev/null", timeout=5)
        sb.wait_for(path="/usr/bin/env", timeout=5)


def test_a_path_is_told_of_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    # By inotify, not by looking now and then: there is no second look before this is over.
    monkeypatch.setattr(wait, "_LOOK", 1000.0)
    source = "import sys, time; time.sleep(0.1); open(sys.argv[1], 'w').close()"
    with Sandbox() as sb:
        sb.run(["mkdir", "/work/a"], check=True)
        for number in range(5):
            with sb.popen(python(source, f"/work/a/{number}")):
                sb.wait_for(path=f"/work/a/{number}", timeout=20)


def test_a_path_that_only_the_host_has_is_never_there(tmp_path: Any) -> None:
    (tmp_path / "file").touch()
    with Sandbox() as sb:
        sb.run(["ln", "-s", str(tmp_path), "/work/link"], check=True)
        for path in (tmp_path / "file", "/work/link/file", f"/proc/self/root{tmp_path}/file", "/etc/shadow"):
            with pytest.raises(TimeoutExpired):
                sb.wait_for(path=path, timeout=0.1)


def test_a_path_that_the_host_makes_in_a_shared_folder(tmp_path: Any) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    with Sandbox(mounts=[Mount.bind(str(shared), "/shared")]) as sb:
        timer = threading.Timer(0.1, (shared / "file").touch)
        timer.start()
        sb.wait_for(path="/shared/file", timeout=20)
        timer.join()


# --- output -----------------------------------------------------------------------------------------


def test_output_is_left_to_be_read() -> None:
    line = "echo one; sleep 0.1; printf 'rea'; sleep 0.1; echo 'dy'; echo two; echo error >&2"
    with Sandbox() as sb, sb.popen(["sh", "-c", line], stdout=PIPE, stderr=PIPE) as process:
        sb.wait_for(output=(process, b"ready"), timeout=20)
        assert process.stdout.readline() == b"one\n"
        sb.wait_for(output=(process, "ready"), timeout=20)
        assert process.stdout.read() == b"ready\ntwo\n"
        assert process.stderr.read() == b"error\n"


def test_output_on_stderr_counts_too() -> None:
    with (
        Sandbox() as sb,
        sb.popen(["sh", "-c", "echo ready >&2; sleep 1000"], stdout=PIPE, stderr=PIPE) as process,
    ):
        sb.wait_for(output=(process, b"ready"), timeout=20)
        process.kill()
        assert process.stderr.read() == b"ready\n"


def test_a_prompt_on_a_terminal() -> None:
    with Sandbox() as sb, sb.popen(["sh"], tty=True, env={"PS1": "<prompt>"}) as shell:
        assert shell.tty is not None
        sb.wait_for(output=(shell, b"<prompt>"), timeout=20)
        assert shell.tty.read(3) == b"<pr"
        assert shell.tty.read(100) == b"ompt>"
        shell.tty.write(b"exit\n")
        with pytest.raises(StateError):
            sb.wait_for(output=(shell, b"<prompt>"), timeout=20)
        assert b"exit" in shell.tty.read()


def test_what_has_been_read_does_not_count_again() -> None:
    with Sandbox() as sb, sb.popen(["sh", "-c", "echo ready; sleep 1000"], stdout=PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(TimeoutExpired):
            sb.wait_for(output=(process, b"ready"), timeout=0.2)
        process.kill()


def test_what_the_file_has_read_ahead_counts() -> None:
    with Sandbox() as sb, sb.popen(["printf", "one\\nready\\n"], stdout=PIPE) as process:
        process.wait()
        assert process.stdout.readline() == b"one\n"
        sb.wait_for(output=(process, b"ready"), timeout=20)
        assert process.stdout.read() == b"ready\n"


@pytest.mark.parametrize("line", ["echo no", "echo no; exec >&-; sleep 1000", "sleep 1000 & echo no"])
def test_output_that_can_no_longer_come(line: str) -> None:
    with Sandbox() as sb, sb.popen(["sh", "-c", line], stdout=PIPE) as process:
        began = time.monotonic()
        with pytest.raises(StateError, match="ready"):
            sb.wait_for(output=(process, b"ready"), timeout=20)
        assert time.monotonic() - began < 30
        process.kill()
        assert process.stdout.read(3) == b"no\n"


def test_endless_output_without_the_text_does_not_fill_the_memory() -> None:
    with Sandbox() as sb, sb.popen(["yes"], stdout=PIPE) as process:
        with pytest.raises(StateError, match="bytes without"):
            sb.wait_for(output=(process, b"no"), timeout=50)
        process.kill()


# --- command ----------------------------------------------------------------------------------------


def test_a_command_is_run_until_it_succeeds() -> None:
    with Sandbox() as sb, sb.popen(["sh", "-c", "sleep 0.2; echo > /work/ready"]):
        sb.wait_for(command=["sh", "-c", "echo x >> /work/tries; test -e /work/ready"], timeout=20)
        assert 1 < len(sb.run(["cat", "/work/tries"]).stdout.split()) < 20


def test_a_command_that_hangs_ends_with_the_patience() -> None:
    with Sandbox() as sb:
        began = time.monotonic()
        with pytest.raises(TimeoutExpired, match="wait_for"):
            sb.wait_for(command=["sleep", "1000"], timeout=0.3)
        assert time.monotonic() - began < 30
        assert sb.processes() == []


def test_a_command_that_does_not_exist_is_said_at_once() -> None:
    with Sandbox() as sb, pytest.raises(CommandNotFoundError):
        sb.wait_for(command=["/no/such/thing"], timeout=20)


# --- every kind -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [{"port": 8080}, {"path": "/work/a/b"}, {"command": ["false"]}])
@pytest.mark.parametrize("beside", [["true"], ["sleep", "1000"]])
def test_waiting_ends_with_the_sandbox(what: dict[str, Any], beside: list[str]) -> None:
    with Sandbox(lifetime=0.5) as sb, sb.popen(beside):
        began = time.monotonic()
        with pytest.raises(StateError):
            sb.wait_for(**what)
        assert time.monotonic() - began < 30
        with pytest.raises(StateError):
            sb.wait_for(**what, timeout=20)


def test_waiting_for_output_ends_with_the_sandbox() -> None:
    with Sandbox(lifetime=0.5) as sb, sb.popen(["sleep", "1000"], stdout=PIPE) as process:
        began = time.monotonic()
        with pytest.raises(StateError):
            sb.wait_for(output=(process, b"ready"))
        assert time.monotonic() - began < 30


@pytest.mark.parametrize("what", [{"port": 8080}, {"path": "/work/a"}, {"command": ["false"]}])
def test_patience_is_kept_to(what: dict[str, Any]) -> None:
    with Sandbox() as sb:
        before = len(os.listdir("/proc/self/fd"))
        began = time.monotonic()
        with pytest.raises(TimeoutExpired, match="wait_for") as caught:
            sb.wait_for(**what, timeout=0.3)
        assert 0.3 <= time.monotonic() - began < 30
        assert caught.value.timeout == 0.3
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "what, field",
    [
        ({}, "wait_for"),
        ({"port": 80, "path": "/x"}, "wait_for"),
        ({"port": 0}, "port"),
        ({"port": "http"}, "port"),
        ({"port": True}, "port"),
        ({"path": "relative"}, "path"),
        ({"path": "/a/../b"}, "path"),
        ({"output": b"ready"}, "output"),
        ({"output": (1, b"ready")}, "output"),
        ({"command": "true"}, "args"),
        ({"port": 80, "timeout": 0}, "timeout"),
        ({"port": 80, "timeout": float("inf")}, "timeout"),
    ],
)
def test_what_makes_no_sense_is_refused(what: dict[str, Any], field: str) -> None:
    with Sandbox() as sb, pytest.raises(SpecError) as caught:
        sb.wait_for(**what)
    assert caught.value.field == field


def test_outputs_that_cannot_be_looked_at_are_refused() -> None:
    with Sandbox() as one, Sandbox() as two:
        with one.popen(["true"]) as process, pytest.raises(SpecError, match="PIPE"):
            one.wait_for(output=(process, b"x"))
        with (
            one.popen(["true"], stdout=PIPE, text=True) as process,
            pytest.raises(SpecError, match="text=True"),
        ):
            one.wait_for(output=(process, b"x"))
        with one.popen(["true"], stdout=PIPE) as process:
            for text in (b"", "", 1):
                with pytest.raises(SpecError):
                    one.wait_for(output=(process, text))  # type: ignore[arg-type]
            with pytest.raises(SpecError, match="of this sandbox"):
                two.wait_for(output=(process, b"x"))


def test_a_plain_user_waits_too(as_user: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = f"""
import sys
from sandboxlib.blocking import PIPE, Sandbox
listen = [sys.executable, "-I", "-S", "-c", {LISTEN!r}, "0.1", "AF_INET", "SOCK_STREAM", "127.0.0.1"]
line = "sleep 0.1; echo ready; mkdir -p /work/a; echo > /work/a/b"
with Sandbox() as sb, sb.popen(["sh", "-c", line], stdout=PIPE) as one:
    sb.wait_for(output=(one, b"ready"), timeout=20)
    sb.wait_for(path="/work/a/b", timeout=20)
    sb.wait_for(command=["test", "-e", "/work/a/b"], timeout=20)
    with sb.popen(listen, stdin=PIPE):
        sb.wait_for(port=8080, timeout=20)
print("done")
"""
    assert as_user(script).stdout == "done\n"
