"""Sockets to what listens inside; and that nothing else is reached by them."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from sandboxlib.blocking import PIPE, Process, Sandbox
from sandboxlib.engine.connect import RefusedError
from sandboxlib.errors import KernelError, SandboxError, SpecError, StateError, TimeoutExpired

pytestmark = pytest.mark.userns

SERVER = """
import os, socket, sys
family, kind, address, delay = sys.argv[1:]
import time
time.sleep(float(delay))
server = socket.socket(getattr(socket, family), getattr(socket, kind))
server.bind(eval(address))
if kind == "SOCK_DGRAM":
    os.write(1, b"ready\\n")
    data, peer = server.recvfrom(100)
    server.sendto(b"heard " + data, peer)
else:
    server.listen()
    os.write(1, b"ready\\n")
    while True:
        peer, _ = server.accept()
        peer.sendall(b"heard " + peer.recv(100))
        peer.close()
"""


def server(sandbox: Sandbox, family: str, kind: str, address: Any, *, delay: float = 0) -> Process:
    """Something that answers, and listens already unless there is a *delay*."""
    arguments = [family, kind, repr(address), str(delay)]
    process = sandbox.popen([sys.executable, "-I", "-S", "-c", SERVER, *arguments], stdout=PIPE)
    if not delay:
        assert process.stdout.readline() == b"ready\n"
    return process


def heard(connected: socket.socket) -> bytes:
    """What is answered to a greeting."""
    with connected:
        connected.settimeout(10)
        connected.sendall(b"you")
        return connected.recv(100)


def ends(process: Process) -> None:
    """Kill it and close what it had."""
    process.kill()
    with process:
        pass


@pytest.mark.parametrize(
    "family, bound, address",
    [
        ("AF_INET", ("127.0.0.1", 8080), 8080),
        ("AF_INET", ("0.0.0.0", 8080), "8080"),
        ("AF_INET", ("127.0.0.1", 8080), "8080/tcp"),
        ("AF_INET", ("127.0.0.9", 8080), ("127.0.0.9", 8080)),
        ("AF_INET6", ("::1", 8080), 8080),
        ("AF_INET6", ("::1", 8080), ("::1", 8080)),
    ],
)
def test_a_tcp_port(family: str, bound: Any, address: Any) -> None:
    with Sandbox() as sb:
        process = server(sb, family, "SOCK_STREAM", bound)
        connected = sb.connect(address)
        assert type(connected) is socket.socket
        assert connected.getblocking()
        assert not connected.get_inheritable()
        assert heard(connected) == b"heard you"
        ends(process)


def test_a_udp_port() -> None:
    with Sandbox() as sb:
        process = server(sb, "AF_INET", "SOCK_DGRAM", ("127.0.0.1", 5353))
        connected = sb.connect("5353/udp")
        assert connected.type == socket.SOCK_DGRAM
        assert heard(connected) == b"heard you"
        ends(process)


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_SEQPACKET"])
def test_a_unix_socket_of_whichever_kind(kind: str) -> None:
    with Sandbox() as sb:
        process = server(sb, "AF_UNIX", kind, "/run/app.sock")
        connected = sb.connect("/run/app.sock")
        assert connected.family == socket.AF_UNIX
        assert connected.type == getattr(socket, kind)
        assert heard(connected) == b"heard you"
        ends(process)


def test_a_unix_datagram_socket() -> None:
    with Sandbox() as sb:
        source = """
import os, socket
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind("/run/log")
os.write(1, b"ready\\n")
os.write(1, server.recv(100))
"""
        with sb.popen([sys.executable, "-I", "-S", "-c", source], stdout=PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            with sb.connect("/run/log") as connected:
                connected.send(b"a line")
            assert process.stdout.read() == b"a line"


def test_a_path_longer_than_a_socket_address() -> None:
    folder = "/work/" + "/".join(["d" * 60] * 4)
    with Sandbox() as sb:
        assert sb.run(["mkdir", "-p", folder]).returncode == 0
        source = f"""
import os, socket
os.chdir({folder!r})
server = socket.socket(socket.AF_UNIX)
server.bind("s")
server.listen()
os.write(1, b"ready\\n")
peer, _ = server.accept()
peer.sendall(b"heard " + peer.recv(100))
"""
        with sb.popen([sys.executable, "-I", "-S", "-c", source], stdout=PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            assert heard(sb.connect(f"{folder}/s")) == b"heard you"


def test_who_listens_sees_root_of_the_sandbox_and_no_process() -> None:
    source = """
import os, socket, struct
server = socket.socket(socket.AF_UNIX)
server.bind("/run/s")
server.listen()
os.write(1, b"ready\\n")
peer, _ = server.accept()
print(struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))
"""
    with Sandbox() as sb, sb.popen([sys.executable, "-I", "-S", "-c", source], stdout=PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        with sb.connect("/run/s"):
            assert process.stdout.read() == b"(0, 0, 0)\n"


def test_waiting_for_who_begins_to_listen() -> None:
    with Sandbox() as sb:
        for family, bound, address in (
            ("AF_INET", ("127.0.0.1", 8080), 8080),
            ("AF_INET6", ("::1", 8081), 8081),
            ("AF_UNIX", "/run/app.sock", "/run/app.sock"),
        ):
            process = server(sb, family, "SOCK_STREAM", bound, delay=0.3)
            began = time.monotonic()
            assert heard(sb.connect(address, timeout=20)) == b"heard you"
            assert 0.2 < time.monotonic() - began < 30
            ends(process)


@pytest.mark.parametrize("address", [8080, "/run/nothing.sock", "/no/such/folder/s"])
def test_patience_has_an_end(address: Any) -> None:
    with Sandbox() as sb:
        began = time.monotonic()
        with pytest.raises(TimeoutExpired, match=r"connect\(") as caught:
            sb.connect(address, timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 30
        assert caught.value.timeout == 0.2


def test_a_listener_that_takes_nobody_cannot_keep_the_caller() -> None:
    source = """
import os, socket
server = socket.socket(socket.AF_UNIX)
server.bind("/run/s")
server.listen(0)
os.write(1, b"ready\\n")
os.read(0, 1)
"""
    with Sandbox() as sb:
        command = [sys.executable, "-I", "-S", "-c", source]
        with sb.popen(command, stdin=PIPE, stdout=PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            with sb.connect("/run/s"):
                began = time.monotonic()
                with pytest.raises(TimeoutExpired):
                    sb.connect("/run/s", timeout=0.3)
                assert time.monotonic() - began < 30


# --- what is not reached ----------------------------------------------------------------------------


def test_nobody_listens() -> None:
    with Sandbox() as sb:
        for address in (8080, ("::1", 8080)):
            with pytest.raises(ConnectionRefusedError) as caught:
                sb.connect(address)
            assert isinstance(caught.value, RefusedError)
            assert isinstance(caught.value, SandboxError)
            assert caught.value.errno == errno.ECONNREFUSED
        with pytest.raises(KernelError) as missing:
            sb.connect("/run/app.sock")
        assert missing.value.errno == errno.ENOENT
        sb.run([sys.executable, "-c", "import socket; socket.socket(socket.AF_UNIX).bind('/run/left')"])
        with pytest.raises(ConnectionRefusedError):
            sb.connect("/run/left")
        sb.run(["touch", "/run/file"])
        with pytest.raises(ConnectionRefusedError):
            sb.connect("/run/file")


def test_what_listens_on_the_host_is_not_reached(tmp_path: Any) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        path = str(tmp_path / "s")
        unix.bind(path)
        unix.listen()
        port = tcp.getsockname()[1]
        with Sandbox() as sb:
            for address in (port, ("127.0.0.1", port)):
                with pytest.raises(ConnectionRefusedError):
                    sb.connect(address)
            with pytest.raises(KernelError) as caught:
                sb.connect(path)
            assert caught.value.errno == errno.ENOENT
            with pytest.raises(KernelError) as unreachable:
                sb.connect(("192.0.2.1", 80))
            assert unreachable.value.errno == errno.ENETUNREACH


def test_a_link_inside_leads_to_where_it_leads_inside(tmp_path: Any) -> None:
    with socket.socket(socket.AF_UNIX) as unix, Sandbox() as sb:
        path = str(tmp_path / "s")
        unix.bind(path)
        unix.listen()
        links = [(path, "/run/s"), (str(tmp_path), "/run/folder"), ("/proc/self/root" + path, "/run/magic")]
        for target, link in links:
            sb.run(["ln", "-s", target, link], check=True)
        for address in (
            "/run/s",
            "/run/folder/s",
            "/run/magic",
            f"/proc/self/root{path}",
            f"/proc/1/root{path}",
        ):
            with pytest.raises(KernelError) as caught:
                sb.connect(address)
            assert caught.value.errno in (errno.ENOENT, errno.ELOOP), address


@pytest.mark.parametrize(
    "address",
    [
        0,
        65536,
        -1,
        True,
        "http",
        "53/sctp",
        "relative/path",
        "",
        None,
        1.5,
        ("localhost", 80),
        ("127.0.0.1",),
        ("127.0.0.1", 0),
        ("fe80::1%eth0", 80),
        ("::1", 80, 0, 0),
        "/",
        "/run/../s",
        "/run/" + "x" * 108,
        "/run/a\0b",
    ],
)
def test_addresses_that_make_no_sense_are_refused(address: Any) -> None:
    with Sandbox() as sb, pytest.raises(SpecError) as caught:
        sb.connect(address)
    assert caught.value.field == "address"


def test_no_connection_into_a_sandbox_that_has_ended() -> None:
    with Sandbox() as sb:
        process = server(sb, "AF_INET", "SOCK_STREAM", ("127.0.0.1", 8080))
        connected = sb.connect(8080)
        sb.kill()
        with connected:
            connected.settimeout(10)
            with suppress(ConnectionResetError):
                assert connected.recv(1) == b""
        with pytest.raises(StateError):
            sb.connect(8080)
        with pytest.raises(StateError):
            sb.connect(8080, timeout=20)
        ends(process)


@pytest.mark.parametrize("command", [["true"], ["sleep", "1000"]])
def test_waiting_to_connect_ends_with_the_sandbox(command: list[str]) -> None:
    # A command that nobody waits for must not keep the sandbox from being over.
    with Sandbox(lifetime=0.5) as sb, sb.popen(command):
        began = time.monotonic()
        with pytest.raises(StateError, match="lifetime"):
            sb.connect(8080, timeout=30)
        assert time.monotonic() - began < 30


def test_a_plain_user_connects_too(as_user: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = f"""
import sys
from sandboxlib.blocking import PIPE, Sandbox
source = {SERVER!r}
with Sandbox() as sb:
    for family, bound, address in (("AF_INET", ("127.0.0.1", 8080), 8080), ("AF_UNIX", "/run/s", "/run/s")):
        command = [sys.executable, "-I", "-S", "-c", source, family, "SOCK_STREAM", repr(bound), "0.1"]
        with sb.popen(command) as process:
            with sb.connect(address, timeout=20) as connected:
                connected.sendall(b"you")
                print(connected.recv(100))
            process.kill()
"""
    assert as_user(script).stdout == "b'heard you'\n" * 2


def test_descriptors_are_not_used_up() -> None:
    with Sandbox() as sb:
        process = server(sb, "AF_INET", "SOCK_STREAM", ("127.0.0.1", 8080))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            assert heard(sb.connect(8080)) == b"heard you"
            with pytest.raises(ConnectionRefusedError):
                sb.connect(8081)
        assert len(os.listdir("/proc/self/fd")) == before
        ends(process)
