"""Hosts that lack a system call: each is hidden behind a seccomp filter, and the library meets it."""

from __future__ import annotations

import base64
import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import filters
import trees

pytestmark = [pytest.mark.root, pytest.mark.userns]

HERE = Path(__file__)
DOCS = HERE.parents[2] / "docs" / "kernel-features.md"
HIDDEN = pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM], ids=["ENOSYS", "EPERM"])
START = """
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
LIMITED = """
import json, os
from sandboxlib import Limits, Sandbox
hog = ["python3", "-c", "b = bytearray(200 << 20)"]
where = ["cat", "/proc/self/cgroup"]
with Sandbox(memory="64M", pids=20) as sandbox:
    found = [sandbox.run(hog).outcome.value, sandbox.run(hog, limits=Limits(memory="32M")).outcome.value]
    # The first process of all and those of commands, from the first one on.
    with sandbox.popen(["sleep", "60"]) as process:
        for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split():
            found.append("sandboxlib-" in open(f"/proc/{pid}/cgroup").read())
        process.kill()
    found.append(sandbox.run(where).usage.memory_peak > 0)
    found.append("sandboxlib" in sandbox.run(where, text=True).stdout)
print(json.dumps([found, []]))
"""


def without(call: str, number: int, folder: Path, program: str = START) -> list[object]:
    """Start a sandbox where *call* fails with *number*; what came of it."""
    command = [*filters.under(folder, filters.failing([call], number)), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result, children = json.loads(done.stdout)
    assert children == []
    return list(result)


def as_user_without(
    call: str, number: int, as_user: Callable[..., CompletedProcess[str]], program: str = START
) -> list[object]:
    """The same as a plain user."""
    code = base64.b64encode(filters.compiled(filters.failing([call], number))).decode()
    load = f"""
import base64, sys
sys.path.insert(0, {str(filters.UNDER_FILTER.parent)!r})
from under_filter import load
load(base64.b64decode({code!r}))
"""
    result, children = json.loads(as_user(load + program).stdout)
    assert children == []
    return list(result)


REQUIRED = [
    "openat2",
    "mount_setattr",
    "close_range",
    "pidfd_open",
    "pidfd_send_signal",
    "memfd_create",
    "execveat",
]


@HIDDEN
@pytest.mark.parametrize("call", REQUIRED)
def test_a_host_without_a_call_that_is_required_is_refused_by_its_name(
    call: str, number: int, tmp_path: Path
) -> None:
    kind, text = without(call, number, tmp_path)
    assert kind == "UnsupportedError"
    assert f"it needs the system call {call}; use Linux" in str(text)


@HIDDEN
@pytest.mark.unprivileged
@pytest.mark.parametrize("call", REQUIRED)
def test_a_plain_user_without_one_is_refused_in_the_same_words(
    call: str, number: int, as_user: Callable[..., CompletedProcess[str]]
) -> None:
    kind, text = as_user_without(call, number, as_user)
    assert kind == "UnsupportedError"
    assert f"it needs the system call {call}; use Linux" in str(text)
    assert "inside a container, start that with a seccomp profile that allows it" in str(text)


@pytest.mark.parametrize("call", ["fsopen", "fsconfig", "fsmount", "open_tree", "move_mount"])
def test_a_host_without_the_mount_calls_is_refused_by_name(call: str, tmp_path: Path) -> None:
    kind, text = without(call, errno.ENOSYS, tmp_path)
    assert kind == "UnsupportedError"
    assert f"it needs the system call {call};" in str(text)


@HIDDEN
@pytest.mark.cgroup
def test_without_clone3_a_sandbox_has_all_its_namespaces(number: int, tmp_path: Path) -> None:
    # True: the time namespace, for which clone(2) has no flag, is another than the program's.
    assert without("clone3", number, tmp_path) == ["ok", True]


@HIDDEN
@pytest.mark.unprivileged
def test_a_plain_users_has_them_too(number: int, as_user: Callable[..., CompletedProcess[str]]) -> None:
    assert as_user_without("clone3", number, as_user) == ["ok", True]


@HIDDEN
@pytest.mark.cgroup("memory", "pids")
def test_without_clone_into_cgroup_no_process_is_outside_of_its_limits(number: int, tmp_path: Path) -> None:
    first, second, *where = without("clone3", number, tmp_path, LIMITED)
    assert (first, second) == ("out_of_memory", "out_of_memory")
    *groups, counted, named = where
    assert groups == [True, True]
    assert (counted, named) == (True, False)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def test_without_landlock_a_sandbox_starts(number: int, tmp_path: Path) -> None:
    assert without("landlock_create_ruleset", number, tmp_path)[0] == "ok"


@HIDDEN
@pytest.mark.unprivileged
def test_without_landlock_a_file_of_the_callers_is_no_stdin(
    number: int, as_user: Callable[..., CompletedProcess[str]]
) -> None:
    program = """
import json
from sandboxlib import Sandbox, Security, UnsupportedError
found = []
with open("in", "w") as file:
    file.write("mine")
with Sandbox() as sandbox, open("in") as file:
    try:
        sandbox.run(["cat"], stdin=file)
    except UnsupportedError as error:
        found.append("Landlock" in str(error))
try:
    with Sandbox(security=Security(landlock={"/usr": "rx"})) as sandbox:
        sandbox.run(["true"])
except UnsupportedError as error:
    found.append("Landlock" in str(error))
print(json.dumps([found, []]))
"""
    assert as_user_without("landlock_create_ruleset", number, as_user, program) == [True, True]


@pytest.mark.overlay
def test_where_a_file_system_cannot_be_id_mapped_root_is_told_so(tmp_path: Path) -> None:
    # An overlay itself is such a file system. In a mount namespace, so that none is left.
    program = """
import json, sys
from sandboxlib import KernelError, Rootfs, Sandbox
try:
    with Sandbox(rootfs=Rootfs.directory(sys.argv[1])):
        print("started")
except KernelError as error:
    print(error)
"""
    (tmp_path / "lower").mkdir()
    told = trees.on_an_overlay(tmp_path, tmp_path / "lower", program, str(tmp_path / "merged"))
    assert "mount_setattr" in told
    assert "does not support ID-mapped mounts" in told


@pytest.mark.parametrize("call", ["seccomp", "capset", "keyctl", "pivot_root", "sethostname", "umount2"])
def test_a_protection_that_cannot_be_applied_is_an_error(call: str, tmp_path: Path) -> None:
    kind, text = without(call, errno.EPERM, tmp_path)
    assert kind == "KernelPermissionError"
    assert f"{call}(" in str(text)


#: The rows of the table whose lack can be shown, by the first words of each, with the test that does.
SHOWN = {
    "user namespaces": "test_forbidding_hosts.py",
    "`clone3`": "test_without_clone3_a_sandbox_has_all_its_namespaces",
    "`pidfd_open`": "test_a_host_without_a_call_that_is_required_is_refused_by_its_name",
    "`CLONE_INTO_CGROUP`": "test_without_clone_into_cgroup_no_process_is_outside_of_its_limits",
    "`fsopen`": "test_a_host_without_the_mount_calls_is_refused_by_name",
    "`openat2": "test_a_host_without_a_call_that_is_required_is_refused_by_its_name",
    "`close_range`": "test_a_host_without_a_call_that_is_required_is_refused_by_its_name",
    "`mount_setattr`": "test_a_host_without_a_call_that_is_required_is_refused_by_its_name",
    "ID-mapped mounts": "test_where_a_file_system_cannot_be_id_mapped_root_is_told_so",
    "nftables": "test_network_bridge.py",
    "Landlock |": "test_without_landlock_a_file_of_the_callers_is_no_stdin",
    "AppArmor": "test_labels.py",
    "a cgroup that may be written": "test_scope.py",
    "`cpuset.cpus.partition`": "test_cgroup_v2.py",
    "PSI": "test_cgroup_live.py",
    "overlay in a user namespace": "test_overlay_drivers.py",
    "time namespace": "test_without_clone3_a_sandbox_has_all_its_namespaces",
    "`user.*` attributes": "test_rootfs.py",
}
#: Those that no filter can hide, on kernels that all have them or by their version alone.
NOT_SHOWN = (
    "`setns` by pidfd",
    "`proc` with",
    "bridge, veth",
    "`clsact`",
    "a flush of tracked",
    "ifb",
    "tun",
    "`cgroup.kill`",
    "`memory.peak`",
    "Landlock ABI",
    "`pids.peak`",
    "`vm.memfd_noexec`",
)


def test_each_row_of_the_table_has_a_test_or_is_known_to_have_none() -> None:
    rows = re.findall(r"^\| (?!feature|---)(.*)$", DOCS.read_text(), re.MULTILINE)
    assert len(rows) > 20
    known = (*SHOWN, *NOT_SHOWN)
    assert [row for row in rows if not row.startswith(known)] == []
    assert [name for name in known if not any(row.startswith(name) for row in rows)] == []
    for test in SHOWN.values():
        assert f"def {test}(" in HERE.read_text() or (HERE.parent / test).exists(), test
