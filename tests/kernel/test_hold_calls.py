"""Calls on itself by which what is inside would hold or burden others do nothing, or are refused"""

from __future__ import annotations

from typing import Any

import pytest
from kernel.probe.outside import WHO, program, without

pytestmark = pytest.mark.userns

#: Tries each, and says what came of it.
TRIES = r"""
import ctypes, errno, fcntl, json, os, platform, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
CLONE_PARENT, PR_SET_MM, PR_SET_MM_MAP_SIZE = 0x8000, 35, 15
CLONE = {"x86_64": 56, "aarch64": 220}[platform.machine()]

def tried(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]

def called(function, *arguments):
    if function(*arguments) < 0:
        return errno.errorcode[ctypes.get_errno()]
    return 0

def clone():
    pid = libc.syscall(CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return 0 if pid > 0 else errno.errorcode[ctypes.get_errno()]

open("/tmp/file", "w").close()
file = os.open("/tmp/file", os.O_RDONLY)
size = ctypes.c_uint()
found = {
    "lease": tried(fcntl.fcntl, file, fcntl.F_SETLEASE, fcntl.F_RDLCK),
    "lease with high bits": called(libc.syscall, {"x86_64": 72, "aarch64": 25}[platform.machine()], file,
                                   ctypes.c_long(fcntl.F_SETLEASE | 1 << 40), fcntl.F_RDLCK),
    "other fcntl": tried(fcntl.fcntl, file, fcntl.F_GETFL) >= 0,
    "PR_SET_MM": called(libc.prctl, PR_SET_MM, PR_SET_MM_MAP_SIZE, ctypes.byref(size), 0, 0),
    "CLONE_PARENT": clone(),
    "no core files": tried(resource.setrlimit, resource.RLIMIT_CORE, (0, 0)),
    "then": resource.getrlimit(resource.RLIMIT_CORE),
    "and what it was": tried(resource.prlimit, 0, resource.RLIMIT_CORE, (0, 0)),
    "what it is": tried(resource.prlimit, 0, resource.RLIMIT_CORE),
    "another limit": tried(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64)),
    "it holds": resource.getrlimit(resource.RLIMIT_NOFILE),
}
print(json.dumps(found))
"""

SCRIPT = """
with make(facts["arguments"]) as sandbox:
    print(sandbox.run(["python3", "-I", "-S", "-c", facts["tries"]], text=True, check=True).stdout)
"""


def found(who: str, arguments: str = "") -> dict[str, Any]:
    answers: dict[str, Any] = program(who, SCRIPT, arguments=arguments, tries=TRIES)
    return answers


@WHO
def test_what_holds_others_is_refused_and_nothing_else(who: str) -> None:
    answers = found(who)
    assert answers["lease"] == answers["lease with high bits"] == "EPERM"
    assert answers["other fcntl"] is True
    assert answers["PR_SET_MM"] == "EPERM"
    assert answers["CLONE_PARENT"] == "EPERM"
    assert answers["another limit"] is None
    assert answers["it holds"] == [64, 64]


@WHO
def test_who_asks_for_no_core_files_is_told_yes_and_the_crash_handler_stays_away(who: str) -> None:
    answers = found(who)
    assert answers["no core files"] is None
    # One byte, as it was: with zero the kernel would start the handler.
    assert answers["then"] == answers["what it is"] == [1, 1]
    # A filter cannot fill in what it was.
    assert answers["and what it was"] == "EPERM"


@WHO
def test_without_the_filter_each_of_them_is_answered_otherwise(who: str) -> None:
    answers = found(who, without("seccomp"))
    assert answers["lease"] == 0
    assert answers["lease with high bits"] == 0
    assert answers["CLONE_PARENT"] == 0
    # A kernel without CONFIG_CHECKPOINT_RESTORE lets only CAP_SYS_RESOURCE have it.
    assert answers["PR_SET_MM"] in (0, "EPERM")
    assert answers["then"] == [0, 0]


@WHO
def test_the_size_of_core_files_can_be_set_where_it_was_asked_for(who: str) -> None:
    for arguments in (without("no-core-dumps"), "security=Security(rlimits={'core': 4096})"):
        answers = found(who, arguments)
        assert answers["then"] == [0, 0]
        assert answers["lease"] == "EPERM"


@pytest.mark.root
def test_a_lease_can_be_had_by_who_was_given_the_right() -> None:
    assert found("root", "security=Security(capabilities=['CAP_LEASE'])")["lease"] == 0
    assert found("root", "security=Security(capabilities=['CAP_NET_RAW'])")["lease"] == "EPERM"
