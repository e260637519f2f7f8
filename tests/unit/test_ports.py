"""Ports of this host are taken by sockets, and free again when they are let go of."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from sandboxlib.engine.ports import Taken
from sandboxlib.errors import NetworkError
from sandboxlib.spec import SandboxSpec

#: Holds what it has inherited for as long as it is told.
HOLD = "import sys, time; print('up', flush=True); time.sleep(float(sys.argv[1]))"
KINDS = pytest.mark.parametrize("kind", ["tcp", "udp"])


def free(kind: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def take(kind: str, port: int) -> Taken:
    spec = SandboxSpec(network="bridge", ports={f"127.0.0.1:{port}/{kind}": 80})
    taken = Taken()
    try:
        taken.take(spec.ports, ipv6=False)
        if kind == "tcp":
            taken._sockets[0].listen(1)
    except BaseException:
        taken.release()
        raise
    return taken


def hold(taken: Taken, seconds: float) -> subprocess.Popen[bytes]:
    """Let another process have the sockets, as any has between its fork and its exec."""
    copies = [os.dup(one.fileno()) for one in taken._sockets]
    command = [sys.executable, "-SEc", HOLD, str(seconds)]
    process = subprocess.Popen(command, pass_fds=copies, stdout=subprocess.PIPE)
    for fd in copies:
        os.close(fd)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


@KINDS
def test_a_port_is_had_again_though_a_process_that_just_begins_has_it_for_a_moment(kind: str) -> None:
    taken = take(kind, free(kind))
    port = taken.published[0][1]
    assert isinstance(port, int)
    with hold(taken, 0.1):
        taken.release()
        take(kind, port).release()


@KINDS
def test_a_port_that_somebody_keeps_is_taken(kind: str) -> None:
    taken = take(kind, free(kind))
    port = taken.published[0][1]
    assert isinstance(port, int)
    with pytest.raises(NetworkError, match=f"127.0.0.1:{port}/{kind} of this host is taken"):
        take(kind, port)
    taken.release()
    take(kind, port).release()
