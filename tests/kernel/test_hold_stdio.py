"""What a command does to its standard descriptors is not done to the program's own"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kernel.probe.outside import TESTS, WHO

from sandboxlib.blocking import PIPE, Sandbox

import users

pytestmark = pytest.mark.userns

#: Sets all that belongs to an open file description, and says what it has; then waits if it is told to.
SPOIL = r"""
import fcntl, os, sys
for fd in (0, 1, 2):
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, (flags | os.O_NONBLOCK) & ~os.O_APPEND)
    except OSError:
        pass
os.write(1, b"spoilt\n")
if sys.argv[1:]:
    sys.stdin.read(1)
"""

#: Shows its own flags on descriptor 3, before, while a command has its descriptors, and after.
PROGRAM = r"""
import fcntl, json, os, sys
sys.path[:0] = [sys.argv[1], sys.argv[1].removesuffix("/tests")]
from sandboxlib.blocking import PIPE, Sandbox
report = int(sys.argv[3])
def flags():
    return [fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_APPEND | os.O_ASYNC) for fd in (0, 1, 2)]
spoil = ["python3", "-I", "-S", "-c", sys.argv[2]]
with Sandbox() as sandbox:
    found = [flags()]
    sandbox.run(spoil, stdin=0, stdout=None, stderr=None, check=True)
    found.append(flags())
    with sandbox.popen([*spoil, "wait"], stdin=PIPE, stdout=None, stderr=None) as process:
        with sandbox.popen(spoil, stdin=0, stdout=PIPE, stderr=None) as other:
            other.stdout.read()
        found.append(flags())
        process.stdin.write(b"x")
    found.append(flags())
os.write(report, json.dumps(found).encode())
"""


def flags_of(who: str, stdio: int) -> list[list[int]]:
    """The flags of a program that has *stdio* as all three of its own descriptors."""
    arguments = [str(TESTS), SPOIL]
    read, write = os.pipe()
    try:
        if who == "root" or os.geteuid():
            command = [sys.executable, "-c", PROGRAM, *arguments, str(write)]
        else:
            # The report's number is the same there: it is handed on.
            command = users._command(["-c", PROGRAM, *arguments, str(write)], subids=False)
        subprocess.run(
            command, stdin=stdio, stdout=stdio, stderr=stdio, pass_fds=[write], check=True, timeout=60
        )
        os.close(write)
        write = -1
        with os.fdopen(read, "rb", closefd=False) as file:
            found: list[list[int]] = json.load(file)
        return found
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = os.openpty()
    os.fchmod(slave, 0o666)
    yield slave
    os.close(master)
    os.close(slave)


@WHO
def test_a_terminal_that_is_inherited_keeps_its_flags_all_the_time(who: str, terminal: int) -> None:
    found = flags_of(who, terminal)
    assert found == [[0, 0, 0]] * 4


@WHO
def test_a_pipe_that_is_inherited_keeps_its_flags_all_the_time(who: str, tmp_path: Path) -> None:
    path = tmp_path / "sandboxlib-fifo"
    os.mkfifo(path, 0o666)
    path.chmod(0o666)
    # As stdin and stdout at once.
    fd = os.open(path, os.O_RDWR)
    with closing(os.fdopen(fd, "rb", buffering=0)):
        assert flags_of(who, fd) == [[0, 0, 0]] * 4


@pytest.mark.root
def test_a_socket_has_its_flags_back_when_the_command_has_ended() -> None:
    # There is no other description of a socket.
    one, two = socket.socketpair()
    with one, two:
        found = flags_of("root", one.fileno())
        assert found[0] == found[1] == found[3] == [0, 0, 0]


@pytest.mark.root
@pytest.mark.landlock(1)
def test_a_file_has_its_flags_back_and_is_written_on_where_the_command_stopped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Sandbox() as sandbox, path.open("ab", buffering=0) as log:
        log.write(b"one\n")
        sandbox.run(["python3", "-I", "-S", "-c", SPOIL], stdout=log, check=True)
        assert fcntl.fcntl(log.fileno(), fcntl.F_GETFL) & os.O_APPEND
        assert log.tell() == len("one\nspoilt\n")
        log.write(b"two\n")
    assert path.read_bytes() == b"one\nspoilt\ntwo\n"


def test_the_end_of_a_pipe_is_still_the_end_of_the_command(tmp_path: Path) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as file, Sandbox() as sandbox:
        process = sandbox.popen(["sh", "-c", "echo here; exec sleep 1000"], stdout=write, stderr=PIPE)
        os.close(write)
        assert file.readline() == b"here\n"
        process.kill()
        assert file.read() == b""
        process.wait()
        process.stderr.close()
        process._process.release()


def test_a_pipe_that_nobody_reads_is_a_broken_pipe_to_the_command() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        with Sandbox() as sandbox:
            assert sandbox.run(["sh", "-c", "echo there"], stdout=write).returncode != 0
    finally:
        os.close(write)
