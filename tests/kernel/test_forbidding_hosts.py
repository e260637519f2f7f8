"""Hosts that forbid: what forbids is named, with the way out, by the error and by the doctor alike."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sandboxlib import Sandbox, Security

import filters

pytestmark = [pytest.mark.root, pytest.mark.userns]

LOOK = """
import json
from sandboxlib import Sandbox, SandboxError
from sandboxlib.doctor import findings
try:
    with Sandbox() as sb:
        error = str(sb.run(["true"]).returncode)
except SandboxError as problem:
    error = str(problem)
try:
    with Sandbox(memory="64M") as sb:
        limited = str(sb.run(["true"]).returncode)
except SandboxError as problem:
    limited = str(problem)
print(json.dumps([error, limited, [str(finding) for finding in findings()]]))
"""


def look(*before: str) -> tuple[str, str, str]:
    """What an error says, one where a limit is asked for, and the doctor; started by the command *before*."""
    command = [*before, sys.executable, "-c", LOOK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    error, limited, findings = json.loads(done.stdout)
    return error, limited, "\n".join(findings)


# --- switches of the kernel --------------------------------------------------------------------------


def test_a_limit_of_no_user_namespaces_is_named() -> None:
    # It is one of each user namespace: that of the machine stays as it is.
    script = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    error, _, doctor = look("unshare", "--user", "--map-root-user", "sh", "-c", script, "sh")
    for text in (error, doctor):
        assert "set user.max_user_namespaces above 0 with sysctl(8)" in text


SWITCH = Path("/proc/sys/kernel/unprivileged_userns_clone")


@pytest.fixture
def _forbidden() -> Iterator[None]:
    before = SWITCH.read_text()
    SWITCH.write_text("0")
    yield
    SWITCH.write_text(before)


@pytest.mark.lab
@pytest.mark.qemu
@pytest.mark.unprivileged
@pytest.mark.switch("kernel.unprivileged_userns_clone")
@pytest.mark.usefixtures("_forbidden")
def test_debians_switch_is_named(as_user: Callable[..., CompletedProcess[str]]) -> None:
    error, _, findings = json.loads(as_user(LOOK).stdout)
    for text in (error, "\n".join(findings)):
        assert "set kernel.unprivileged_userns_clone to 1 with sysctl(8)" in text
    # Root is not meant.
    assert look()[0] == "0"


# --- inside a container ------------------------------------------------------------------------------


#: What Docker's profile does to who has no CAP_SYS_ADMIN: no clone3, no namespaces, no mounts.
NO_CLONE = (
    filters.failing(["clone3"], errno.ENOSYS),
    filters.failing(["clone"], errno.EPERM, flag=filters.CLONE_NEWUSER),
)
NO_MOUNTS = filters.failing(
    ["setns", "unshare", "mount", "umount2", "pivot_root", "mount_setattr", "fsopen", "fsmount"], errno.EPERM
)


def test_a_container_engines_filter_is_refused_by_the_names_of_its_calls(tmp_path: Path) -> None:
    error, limited, doctor = look(*filters.under(tmp_path, *NO_CLONE, NO_MOUNTS))
    for text in (error, limited, doctor):
        assert "mount_setattr" in text
        assert "setns" in text
        assert "inside a container, start that with a seccomp profile that allows" in text


def test_a_filter_that_forbids_the_namespaces_alone_is_told(tmp_path: Path) -> None:
    error, _, doctor = look(*filters.under(tmp_path, *NO_CLONE))
    for text in (error, doctor):
        assert "user namespaces are forbidden here" in text


READ_ONLY = """
for folder in $(awk '$5 ~ "^/sys/fs/cgroup" {print $5}' /proc/self/mountinfo); do
    mount -o remount,bind,ro "$folder" || exit 9
done
exec "$@"
"""


@pytest.mark.cgroup("memory")
def test_with_a_read_only_cgroupfs_a_limit_is_refused_and_else_it_starts() -> None:
    error, limited, doctor = look("unshare", "--mount", "sh", "-c", READ_ONLY, "sh")
    assert error == "0"
    assert "not possible on this host" in limited
    for text in (limited, doctor):
        assert "/sys/fs/cgroup is mounted read-only" in text


def test_root_of_a_container_without_root_is_a_user_like_any_other() -> None:
    # It has all capabilities, and one ID.
    error, _, doctor = look("unshare", "--user", "--map-root-user")
    assert error == "0"
    assert "one alone, your own (0)" in doctor


@pytest.mark.unprivileged
def test_a_plain_user_who_is_root_of_a_namespace_keeps_what_is_his_in_his_own_folders(
    as_user: Callable[..., CompletedProcess[str]],
) -> None:
    script = """
import os, subprocess, sys
inner = "from sandboxlib import Sandbox; from sandboxlib.kernel.probe import probe;" \\
    "from sandboxlib.kernel.folders import state_folder;" \\
    "sb = Sandbox().__enter__(); print(sb.run(['id', '-u']).stdout); sb.close();" \\
    "print(state_folder()); print(probe().run_dir)"
done = subprocess.run(["unshare", "-Ur", sys.executable, "-c", inner], capture_output=True, text=True)
out, state, run = done.stdout.splitlines() or [done.stderr, "", ""]
home = os.path.realpath(os.path.expanduser("~"))
print(out, os.path.realpath(state).startswith(home), run.startswith("/run/sandboxlib"))
"""
    assert as_user(script).stdout == "b'0\\n' True False\n"


# --- a sandbox in a sandbox --------------------------------------------------------------------------

INNER = """
from sandboxlib import Limits, Sandbox, UnsupportedError
with Sandbox() as sb:
    print(sb.run(["id", "-u"], text=True).stdout.strip(), len(sb.processes()), sb.changes())
    print(sb.sh("unshare --user true || mount -t tmpfs none /work || echo >/usr/x").returncode != 0)
try:
    Sandbox(memory="64M").plan()
except UnsupportedError as error:
    print(error.feature)
with Sandbox() as sb:
    print(sb.run(["python3", "-c", "b = bytearray(400 << 20)"]).returncode != 0)
"""
OPEN = ["no-nested-userns", "proc-subset", "hidden-processes", "masked-paths"]


@pytest.mark.cgroup("memory")
def test_a_sandbox_in_a_sandbox_is_as_tight_and_bound_by_the_outer_limits() -> None:
    # It takes a user who may make user namespaces, and a /proc of which nothing is hidden.
    security = Security(user=1000, seccomp="unconfined", without=OPEN)
    with Sandbox(memory="256M", security=security) as sb:
        done = sb.run([sys.executable, "-c", INNER], text=True)
        assert (done.stdout.splitlines(), done.stderr) == (["0 0 []", "True", "memory_max", "True"], "")


def test_by_default_there_is_none() -> None:
    with Sandbox() as sb:
        done = sb.run([sys.executable, "-c", INNER], text=True)
        assert done.returncode == 1
        assert "UnsupportedError" in done.stderr
