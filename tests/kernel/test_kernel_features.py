"""Hosts that lack a system call: each is hidden behind a seccomp filter, and the library meets it."""

from __future__ import annotations

import errno
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxlib import seccomp

pytestmark = [pytest.mark.root, pytest.mark.userns]

UNDER_FILTER = Path(__file__).parents[1] / "oracle" / "under_filter.py"
PROGRAM = """
import json, os
from sandboxlib import Sandbox, SandboxError
try:
    with Sandbox() as sandbox:
        found = sandbox.run(["readlink", "/proc/self/ns/time"], text=True).stdout.strip()
    # Where the kernel has none, both are nothing.
    found = ["ok", not found or found != os.readlink("/proc/self/ns/time")]
except SandboxError as error:
    found = [type(error).__name__, str(error)]
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
print(json.dumps([found, children]))
"""


def without(call: str, number: int, folder: Path) -> list[object]:
    """Start a sandbox where *call* fails with *number*; what came of it."""
    rule = {"names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": number}
    profile = seccomp.Profile.from_json(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    (folder / "filter").write_bytes(seccomp.compile(profile, arch=platform.machine()))
    command = [sys.executable, str(UNDER_FILTER), str(folder / "filter"), sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result, children = json.loads(done.stdout)
    assert children == []
    return list(result)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM], ids=["ENOSYS", "EPERM"])
@pytest.mark.parametrize(
    "call",
    [
        "openat2",
        "mount_setattr",
        "close_range",
        "pidfd_open",
        "pidfd_send_signal",
        "memfd_create",
        "execveat",
    ],
)
def test_a_host_without_a_call_that_is_required_is_refused_by_its_name(
    call: str, number: int, tmp_path: Path
) -> None:
    kind, text = without(call, number, tmp_path)
    assert kind == "UnsupportedError"
    assert f"it needs the system call {call}; use Linux" in str(text)


@pytest.mark.parametrize("call", ["fsopen", "fsconfig", "fsmount", "open_tree", "move_mount"])
def test_a_host_without_the_mount_calls_is_refused_by_name(call: str, tmp_path: Path) -> None:
    kind, text = without(call, errno.ENOSYS, tmp_path)
    assert kind == "UnsupportedError"
    assert f"it needs the system call {call};" in str(text)


@pytest.mark.cgroup1
@pytest.mark.namespace("time")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM], ids=["ENOSYS", "EPERM"])
def test_without_clone3_a_sandbox_has_all_its_namespaces(number: int, tmp_path: Path) -> None:
    # True: the time namespace, for which clone(2) has no flag, is another than the program's.
    assert without("clone3", number, tmp_path) == ["ok", True]


@pytest.mark.cgroup2("memory")
def test_on_cgroup_v2_a_host_without_clone3_is_refused(tmp_path: Path) -> None:
    kind, text = without("clone3", errno.ENOSYS, tmp_path)
    assert kind == "UnsupportedError"
    assert "clone3" in str(text)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def test_without_landlock_a_sandbox_starts(number: int, tmp_path: Path) -> None:
    assert without("landlock_create_ruleset", number, tmp_path)[0] == "ok"


@pytest.mark.parametrize("call", ["seccomp", "capset", "keyctl", "pivot_root", "sethostname", "umount2"])
def test_a_protection_that_cannot_be_applied_is_an_error(call: str, tmp_path: Path) -> None:
    kind, text = without(call, errno.EPERM, tmp_path)
    assert kind == "KernelPermissionError"
    assert f"{call}(" in str(text)
