"""The plain user that tests become is one indeed, and can do what the tests need."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

import users

AsUser = Callable[..., CompletedProcess[str]]
pytestmark = [pytest.mark.unprivileged, pytest.mark.leaks]


def test_has_no_privilege_left(as_user: AsUser) -> None:
    script = """
import json, os, re
status = open("/proc/self/status").read()
sets = re.findall(r"^Cap(?:Inh|Prm|Eff|Amb):\\s*(\\w+)$", status, re.M)
print(json.dumps([os.getresuid(), os.getresgid(), [int(one, 16) for one in sets]]))
"""
    uids, gids, sets = json.loads(as_user(script).stdout)
    assert len(set(uids)) == len(set(gids)) == 1
    assert uids[0] != 0
    assert sets == [0, 0, 0, 0]


def test_has_a_home_and_a_runtime_folder_of_its_own(as_user: AsUser) -> None:
    script = """
import os, pathlib
for name in ("HOME", "XDG_RUNTIME_DIR"):
    pathlib.Path(os.environ[name], "sandboxlib-test").touch()
    pathlib.Path(os.environ[name], "sandboxlib-test").unlink()
"""
    as_user(script)


@pytest.mark.root
def test_reaches_the_checkout_and_nothing_else_of_root(as_user: AsUser) -> None:
    script = """
import json, os, sys
def names(folder):
    try:
        return os.listdir(folder)
    except PermissionError:
        return []
print(json.dumps([names(sys.argv[1]), names("/root")]))
"""
    checkout, root = json.loads(as_user(script, str(users.CHECKOUT)).stdout)
    assert {"pyproject.toml", "sandboxlib"} <= set(checkout)
    needed = json.loads(users._command([], subids=False)[4])["reach"]
    assert {f"/root/{name}" for name in root} <= {"/".join(path.split("/")[:3]) for path in needed}


@pytest.mark.root
def test_leaves_the_user_database_alone(as_user: AsUser) -> None:
    before = {name: os.stat(f"/etc/{name}") for name in ("passwd", "group")}
    as_user("import pwd, os; assert pwd.getpwuid(os.getuid()).pw_name == 'sandboxlib-test'", subids=True)
    assert {name: os.stat(f"/etc/{name}").st_mtime_ns for name in before} == {
        name: value.st_mtime_ns for name, value in before.items()
    }


@pytest.mark.userns
@pytest.mark.tool("newuidmap", "unshare")
def test_can_use_subordinate_ids(as_user: AsUser) -> None:
    script = """
import os, subprocess
ranges = [line.strip().split(":") for line in open("/etc/subuid")]
me = {os.environ["USER"], str(os.getuid())}
start, count = next((start, count) for name, start, count in ranges if name in me)
with subprocess.Popen(["unshare", "--user", "sh", "-c", "echo; read _"],
                      stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    subprocess.run(["newuidmap", str(process.pid), "0", str(os.getuid()), "1", "1", start, count], check=True)
    print(open(f"/proc/{process.pid}/uid_map").read())
    process.stdin.close()
"""
    lines = as_user(script, subids=True).stdout.split()
    assert lines[0] == "0"
    assert lines[5] == str(users.SUBORDINATE[1])


def test_a_failing_script_fails_the_test(as_user: AsUser) -> None:
    with pytest.raises(AssertionError, match="the script of the plain user ended with 3\nout\n\nerr"):
        as_user("import sys; print('out'); sys.stderr.write('err'); sys.exit(3)")
