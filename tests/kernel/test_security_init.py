"""Pid 1, and a command before its program runs: what the launcher has in memory is nobody's inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from kernel.probe.outside import TESTS, WHO, look, look_as, without

import users

REFUSED = {"EACCES", "EPERM"}

# Whoever executes a file on which somebody has a write lease waits for that one, see F_SETLEASE(2const):
# here between the last step before execve and execve.
HELD = '''
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1].removesuffix("/tests")]
from kernel.probe.outside import make
from sandboxlib.blocking import PIPE
HOLD = """
import errno, fcntl, json, os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
file = os.open("/work/held", os.O_RDONLY)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
signal.sigwait([signal.SIGIO])
found = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) not in (1, os.getpid()):
        for name in ("environ", "maps", "mem"):
            try:
                os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
                found[name] = "ok"
            except OSError as error:
                found[name] = errno.errorcode[error.errno]
print(json.dumps(found), flush=True)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
"""
with make("security=Security(without=['hidden-processes', 'seccomp'])") as sandbox:
    sandbox.run(["cp", "/bin/true", "/work/held"], check=True)
    with sandbox.popen([sys.executable, "-I", "-S", "-c", HOLD], stdout=PIPE) as holder:
        assert holder.stdout.readline() == b"held\\n"
        sandbox.run(["/work/held"], check=True, timeout=30)
        print(holder.stdout.readline().decode(), end="")
'''


@WHO
def test_pid_1_has_no_session_and_no_terminal_of_the_callers(who: str) -> None:
    assert look_as(who, "init_session", arguments=without("hidden-processes"))["init_session"] == [1, 1, 0]


@pytest.mark.root
@pytest.mark.namespace("time")
@pytest.mark.parametrize("clocks", ["", "namespaces=[Namespace('time', boottime_offset=3600)], "])
def test_pid_1_of_roots_is_out_of_reach_whatever_rights_are_inside(clocks: str) -> None:
    # Its own clocks are set by a file in /proc, for which it is open to itself for a moment.
    security = "Security(capabilities=['ALL'], without=['hidden-processes', 'seccomp'])"
    found = look("init", arguments=f"{clocks}security={security}")["init"]
    assert (found.pop("comm"), "/" in found.pop("cmdline")) == ("sandbox-init", False)
    assert set(found.values()) <= REFUSED, found


@WHO
def test_a_command_cannot_be_looked_into_before_its_program_runs(who: str) -> None:
    done = users.run(HELD, str(TESTS)).stdout if who == "user" else alone(HELD)
    assert json.loads(done) == dict.fromkeys(("environ", "maps", "mem"), "EACCES")


def alone(script: str) -> str:
    """Run *script* as root, in a program of its own as a plain user's is."""
    import subprocess

    command = [sys.executable, "-c", script, str(TESTS)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(TESTS).parent).stdout
