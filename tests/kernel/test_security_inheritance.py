"""What a program has, and a sandbox must not get from it. As root, and as a plain user."""

from __future__ import annotations

import os
import pty
import resource
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from kernel.probe.outside import _PRELUDE, TESTS, WHO, make, program, without

# --- descriptors and the working directory ---------------------------------------------------------

LEAK = """
os.chdir("/")
leaked = [os.open("/", os.O_DIRECTORY), os.open("/etc/passwd", 0), os.open("/etc", os.O_PATH)]
for number in (9, 20, 40, 41, 77, 200):
    leaked.append(os.dup2(leaked[0], number))
for number in leaked:
    os.set_inheritable(number, True)
"""


@WHO
def test_descriptors_that_the_program_forgot_do_not_go_along(who: str) -> None:
    script = (
        LEAK + 'print(json.dumps(look("descriptors", "unseen_paths", facts={"unseen": ["/etc/shadow"]})))'
    )
    assert program(who, script) == {"descriptors": [0, 1, 2], "unseen_paths": {"/etc/shadow": "ENOENT"}}


@WHO
def test_pid_1_keeps_two_descriptors(who: str) -> None:
    # It is seen from outside, where the program may look.
    script = (
        LEAK
        + """
import time
with make("") as sandbox:
    folder = f"/proc/{sandbox._engine.pid}/fd"
    # It says that the sandbox stands, and closes the others then.
    deadline = time.monotonic() + 5
    while len(os.listdir(folder)) > 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    print(json.dumps([os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]))
"""
    )
    kept = program(who, script)
    # One tells that the program has ended, the other that it has become another program.
    assert sorted(text.partition(":")[0] for text in kept) == ["anon_inode", "pipe"]
    assert any("pidfd" in text for text in kept)


@WHO
@pytest.mark.parametrize("number", [3, 5, 7, 9, 40, 77])
def test_a_working_directory_cannot_lead_out_through_a_descriptor(who: str, number: int) -> None:
    script = (
        LEAK
        + """
from sandboxlib.errors import KernelError
with make("") as sandbox:
    leaked = f"/proc/self/fd/{facts['number']}"
    for place in (leaked, f"{leaked}/etc", "/proc/self/root", "/proc/1/cwd"):
        try:
            done = sandbox.run(["/bin/ls", "."], cwd=place)
        except Exception as error:
            assert isinstance(error, KernelError), repr(error)
            assert error.call.startswith("openat2("), repr(error)
        else:
            sys.exit(f"{place}: {done}")
print("[]")
"""
    )
    assert program(who, script, number=number) == []


# --- standard input and output ---------------------------------------------------------------------

STDIN = """
path = os.path.join(facts["folder"], "given")
with open(path, "w") as file:
    file.write("keep me")
os.chmod(path, 0o666)
with make(facts["arguments"]) as sandbox, open(path) as given:
    found = report(sandbox, "stdin_for_writing", stdin=given)["stdin_for_writing"]
with open(path) as file:
    print(json.dumps([found, file.read()]))
"""


@pytest.mark.qemu
@WHO
@pytest.mark.landlock(3)
def test_a_file_that_is_read_cannot_be_opened_for_writing(who: str, tmp_path: Path) -> None:
    folder = str(tmp_path) if who == "root" else "."
    tmp_path.chmod(0o755)
    assert program(who, STDIN, folder=folder, arguments="") == [
        {"write": "EACCES", "truncate": "EACCES", "read": "ok"},
        "keep me",
    ]


@WHO
def test_without_its_row_a_file_that_is_read_can_be_written(who: str, tmp_path: Path) -> None:
    folder = str(tmp_path) if who == "root" else "."
    found, content = program(who, STDIN, folder=folder, arguments=without("private-stdio"))
    assert found["write"] == found["truncate"] == "ok"
    assert content == ""


# --- environment, signals, limits, groups ----------------------------------------------------------


@WHO
def test_the_programs_environment_stays_with_it(who: str) -> None:
    script = """
os.environ |= {"TOKEN": "secret", "LD_PRELOAD": "/none.so", "SSH_AUTH_SOCK": "/s", "LISTEN_FDS": "3"}
with make("") as sandbox:
    init = open(f"/proc/{sandbox._engine.pid}/environ").read()
    print(json.dumps([report(sandbox, "environment")["environment"], init]))
"""
    inside, init = program(who, script)
    assert inside.keys() - {"LC_CTYPE"} == {"PATH", "HOME", "LANG", "TMPDIR"}
    assert init == ""


@WHO
def test_blocked_and_ignored_signals_stay_with_the_program(who: str) -> None:
    script = """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGALRM, signal.SIGUSR2])
with make("") as sandbox:
    done = sandbox.run(["grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"])
    print(json.dumps(done.stdout.decode().split()))
"""
    assert program(who, script) == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]


@WHO
def test_resource_limits_are_not_the_programs(who: str) -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (200, facts["files"]))
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
print(json.dumps(look("rlimits", arguments=facts["arguments"])["rlimits"]))
"""
    # What the machine's own allows of it.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    found = program(who, script, arguments="", files=hard)
    assert found["nofile"] == [min(1024, hard), min(4096, hard)]
    assert found["rtprio"] == found["nice"] == [0, 0]
    assert found["core"][1] <= 1
    assert found["memlock"][1] <= 8 << 20
    assert found["msgqueue"][1] <= 819200
    off = program(who, script, arguments=without("rlimits"), files=hard)
    assert off["nofile"] == [200, hard]


@WHO
def test_lower_limits_of_the_program_hold_inside_and_keep_nothing_from_running(who: str) -> None:
    script = """
import ctypes, resource
# Root of a container may have no right to raise them.
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.capget(header, sets) == 0
sets[0] &= ~(1 << 24)
assert libc.capset(header, sets) == 0
for name, value in facts["low"].items():
    resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))
found = look("rlimits")["rlimits"]
print(json.dumps([found, make("").plan().notes]))
"""
    low = {"nofile": 200, "core": 0, "memlock": 0, "stack": 1 << 20, "sigpending": 10, "msgqueue": 0}
    found, notes = program(who, script, low=low)
    assert {name: found[name] for name in low} == {name: [value, value] for name, value in low.items()}
    # What that weakens is said.
    assert [note for note in notes if "RLIMIT_CORE" in note]


@pytest.mark.root
def test_groups_of_root_stay_with_the_program(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    os.chown(secret, 0, 60_000)
    secret.chmod(0o640)
    tmp_path.chmod(0o755)
    script = """
os.setgroups([4, 24, 60000])
with make(f"mounts=[Mount.bind({facts['folder']!r}, '/data', readonly=True)]") as sandbox:
    status = open(f"/proc/{sandbox._engine.pid}/status").read()
    done = sandbox.run(["cat", "/data/secret"])
    print(json.dumps([[line for line in status.splitlines() if line.startswith("Groups")], done.returncode]))
"""
    groups, returncode = program("root", script, folder=str(tmp_path))
    assert [line.split() for line in groups] == [["Groups:"]]
    assert returncode == 1


# --- keys ------------------------------------------------------------------------------------------

KEY = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
numbers = facts["numbers"]
def call(name, *arguments):
    result = libc.syscall(ctypes.c_long(numbers[name]), *arguments)
    assert result != -1, (name, os.strerror(ctypes.get_errno()))
    return result
call("keyctl", 1, None, 0, 0, 0)  # a session keyring of this program's
call("add_key", b"user", facts["key"].encode(), b"secret", 6, -3)
print(json.dumps(look("keyring", arguments=facts["arguments"], facts={"key": facts["key"]})["keyring"]))
"""


@WHO
def test_the_programs_keys_stay_with_it(who: str) -> None:
    from kernel.probe.outside import numbers

    facts: dict[str, Any] = {"key": f"sandboxlib-{uuid.uuid4()}", "numbers": numbers()}
    assert program(who, KEY, arguments="", **facts) == "EPERM"
    # Behind the filter the session keyring is a new one.
    assert program(who, KEY, arguments=without("seccomp"), **facts) in ("ENOKEY", "EACCES")
    assert program(who, KEY, arguments=without("seccomp", "new-keyring"), **facts) == "ok"


# --- the terminal ----------------------------------------------------------------------------------

TERMINAL = (
    _PRELUDE
    + """
inside = '''
import fcntl, os, sys
found = {}
for name, call in (
    ("tty", lambda: os.open("/dev/tty", os.O_RDWR)),
    ("TIOCSTI", lambda: fcntl.ioctl(1, 0x5412, b"x")),
    ("TIOCSCTTY", lambda: fcntl.ioctl(1, 0x540e, 1)),
):
    try:
        call()
        found[name] = "ok"
    except OSError as error:
        found[name] = error.errno
open(sys.argv[1], "w").write(repr(found))
'''
os.open("/dev/tty", os.O_RDWR)  # the program has a terminal
with make(facts["arguments"]) as sandbox:
    python = os.path.realpath(sys.executable)
    sandbox.run([python, "-I", "-S", "-c", inside, "/tmp/found"], stdout=None, check=True)
    print("FOUND", sandbox.run(["cat", "/tmp/found"]).stdout.decode())
"""
)


def in_terminal(arguments: str) -> dict[str, Any]:
    """Run `TERMINAL` with a terminal of its own; what the sandbox said."""
    import ast
    import json

    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable, [sys.executable, "-c", TERMINAL, str(TESTS), json.dumps({"arguments": arguments})]
        )
    data = b""
    try:
        while chunk := os.read(terminal, 65536):
            data += chunk
    except OSError:
        pass  # EIO: the other side has been closed
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    line = next((line for line in data.decode().splitlines() if line.startswith("FOUND")), None)
    assert line is not None, data.decode()
    found: dict[str, Any] = ast.literal_eval(line[6:])
    return found


@pytest.mark.root
def test_input_cannot_be_pushed_into_the_programs_terminal() -> None:
    found = in_terminal("")
    assert (found["tty"], found["TIOCSTI"]) == (6, 1)  # ENXIO, EPERM
    # Without the filter it is the session of its own that keeps it away.
    found = in_terminal(without("seccomp"))
    assert (found["tty"], found["TIOCSTI"], found["TIOCSCTTY"]) == (6, 1, 1)


# --- core dumps ------------------------------------------------------------------------------------

CRASH = """
with make(facts["arguments"]) as sandbox:
    done = sandbox.run(["sh", "-c", "mkdir /tmp/crash; cd /tmp/crash; kill -SEGV $$"])
    print(json.dumps([done.returncode, sandbox.run(["ls", "/tmp/crash"]).stdout.decode().split()]))
"""


@WHO
def test_a_crash_leaves_no_core_file(who: str) -> None:
    assert program(who, CRASH, arguments="") == [-11, []]


@pytest.mark.root
@pytest.mark.rlimit("core=unlimited")
def test_a_core_file_has_to_be_asked_for() -> None:
    returncode, files = program("root", CRASH, arguments="security=Security(rlimits={'core': 'unlimited'})")
    assert returncode == -11
    # Where the host's pattern is a pipe or a path elsewhere there is none here, either: core(5).
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    assert len(files) == (0 if pattern.startswith("|") or "/" in pattern else 1)


@pytest.mark.root
@pytest.mark.rlimit("core=1")
@pytest.mark.lab
def test_a_crash_does_not_start_the_hosts_crash_handler(tmp_path: Path) -> None:
    """The machine's setting is changed for it: in the lab only."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    handler, ran = tmp_path / "handler", tmp_path / "ran"
    handler.write_text(f"#!/bin/sh\ncat > /dev/null\necho ran > {ran}\n")
    handler.chmod(0o755)
    crash = "kill -SEGV $$"
    try:
        pattern.write_text(f"|{handler}")
        with make("") as sandbox:
            assert sandbox.sh(crash).returncode == -11
            # Nor where it asks for no core files itself.
            assert sandbox.sh(f"ulimit -c 0; {crash}").returncode == -11
        assert not ran.exists()
        # RLIMIT_CORE 0, as others set it, does not keep it away.
        with make("security=Security(rlimits={'core': 0})") as sandbox:
            assert sandbox.sh(crash).returncode == -11
        deadline = time.monotonic() + 10
        while not ran.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ran.exists()
    finally:
        pattern.write_text(before)
