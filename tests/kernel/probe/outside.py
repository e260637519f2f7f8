"""
Asks from inside: runs probes in sandboxes, as who the tests run as or as a plain user.

Arguments of `Sandbox` are given as source text, such as ``security=Security(user=1000)``, since
those of the plain user cross to another process.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxlib.blocking import Sandbox

import users

TESTS = Path(__file__).parents[2]
SOURCE = (Path(__file__).parent / "inside.py").read_text()

#: Both ways to be allowed: root, who gives a range of IDs away, and a user, who has only his own.
WHO = pytest.mark.parametrize(
    "who",
    [
        pytest.param("root", marks=pytest.mark.root),
        pytest.param("user", marks=[pytest.mark.unprivileged, pytest.mark.userns]),
    ],
)
#: What is said of every sandbox that nothing was asked for.
FOLDERS = ("/tmp", "/var/tmp", "/home", "/root", "/run", "/work", "/dev/shm")
KERNEL_FILES = (
    "/proc/bus",
    "/proc/cgroups",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/net",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/softirqs",
    "/proc/stat",
    "/proc/sys",
    "/proc/sysvipc",
    "/proc/timer_list",
    "/proc/uptime",
    "/proc/version",
    "/proc/vmallocinfo",
    "/proc/zoneinfo",
    "/sys",
    "/sys/fs/cgroup",
    "/sys/kernel/debug",
    "/sys/firmware",
)


@functools.cache
def numbers() -> dict[str, int]:
    """Numbers of the system calls that the probes make; 4095 for what this machine's table does not know."""
    from sandboxlib.seccomp.abi import table

    known = table(os.uname().machine)
    nodes = list(ast.walk(ast.parse(SOURCE)))
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    # call("name", ...), and tried(call, "name", ...).
    made = [node.args[0] for node in calls if ast.unparse(node.func) == "call"]
    made += [node.args[1] for node in calls if node.args[1:] and ast.unparse(node.args[0]) == "call"]
    names = (name.value for name in made if isinstance(name, ast.Constant))
    return {name: known.get(name, 4095) for name in names if isinstance(name, str)}


def command(probes: tuple[str, ...], facts: dict[str, Any]) -> list[str]:
    """The command that runs *probes* inside."""
    request = json.dumps({"probes": probes, "numbers": numbers(), "facts": facts})
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", SOURCE, request]


def report(
    sandbox: Sandbox, *probes: str, facts: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """What *probes* find in a sandbox that is open; *options* are those of `Sandbox.run`."""
    done = sandbox.run(command(probes, facts or {}), **options)
    assert done.returncode == 0, (done.returncode, done.outcome, done.stdout[-500:], done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def make(arguments: str) -> Sandbox:
    """A sandbox with *arguments*."""
    from sandboxlib.cgroup import CGroup
    from sandboxlib.limits import Limits
    from sandboxlib.mount import Mount
    from sandboxlib.namespace import Namespace
    from sandboxlib.network import Network
    from sandboxlib.rootfs import Rootfs
    from sandboxlib.security import Security

    values = (CGroup, Limits, Mount, Namespace, Network, Rootfs, Security, Sandbox)
    sandbox: Sandbox = eval(f"Sandbox({arguments})", {value.__name__: value for value in values})
    return sandbox


def look(*probes: str, arguments: str = "", facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """What *probes* find in a sandbox of their own."""
    with make(arguments) as sandbox:
        return report(sandbox, *probes, facts=facts)


_AS_USER = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1].removesuffix("/tests")]
from kernel.probe.outside import look
probes, arguments, facts = json.loads(sys.argv[2])
print(json.dumps(look(*probes, arguments=arguments, facts=facts)))
"""


def look_as(
    who: str, *probes: str, arguments: str = "", facts: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The same, as ``root`` or as a plain ``user``."""
    if who == "root":
        return look(*probes, arguments=arguments, facts=facts)
    done = users.run(_AS_USER, str(TESTS), json.dumps([probes, arguments, facts]))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def without(*names: str) -> str:
    """The argument that switches protections off."""
    return f"security=Security(without={names!r})"


@functools.cache
def by_default(who: str) -> dict[str, Any]:
    """What the probes that harm nobody find in a sandbox for which nothing was asked; looked at once."""
    probes = (
        "status", "ids", "maps", "namespaces", "environment", "descriptors", "rlimits", "session", "mounts",
        "proc_names", "processes", "kernel_files", "sysctl", "init", "devices", "cgroups", "interfaces",
        "routes",
        "refused", "refused_twice", "sockets", "nested_user_namespace", "written", "sizes", "device_node",
        "unseen_paths",
    )  # fmt: skip
    facts = {
        "kernel_files": KERNEL_FILES,
        "folders": ["/", "/etc", "/dev", "/usr", *FOLDERS],
        "unseen": UNSEEN,
    }
    return look_as(who, *probes, facts=facts)


#: Files of the host that no sandbox shows.
UNSEEN = (
    "/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/etc/machine-id", "/etc/ssl/private", "/boot",
    "/var/log", "/var/lib", "/srv", "/opt", "/mnt", "/media", "/lost+found", "/run/lock",
    "/root/.ssh", "/root/.bash_history", "/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/net", "/dev/console",
)  # fmt: skip


#: At the begin of a program of root's that has networks: this machine's own stays as it is.
OWN_NETWORK = """
import ctypes
assert not ctypes.CDLL(None).unshare(0x40000000)
"""
_PRELUDE = """
import json, os, sys
sys.path[:0] = [sys.argv[1], sys.argv[1].removesuffix("/tests")]
from kernel.probe.outside import look, make, report, without
facts = json.loads(sys.argv[2])
"""


def program(who: str, script: str, *, patience: float = 60, **facts: Any) -> Any:
    """
    Run a program of its own that uses the library: *script* gets ``facts`` and prints its result as JSON.

    A test that has to spoil what a sandbox might inherit does it there.
    """
    arguments = [str(TESTS), json.dumps(facts)]
    if who == "root":
        done = subprocess.run(
            [sys.executable, "-c", _PRELUDE + script, *arguments],
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        done = users.run(_PRELUDE + script, *arguments, timeout=patience)
    return json.loads(done.stdout)
