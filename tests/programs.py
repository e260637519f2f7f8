"""Launcher programs to test the decoder with: whole ones, and each record alone."""

from __future__ import annotations

from typing import Any

from sandboxlib.engine.encode import encode, encode_command
from sandboxlib.host import Host
from sandboxlib.kernel import program
from sandboxlib.plan.command import Group, Request, serve
from sandboxlib.plan.start import start
from sandboxlib.spec import SandboxSpec

import hosts

#: What values that are known only later could be.
VALUES: dict[str, Any] = {
    "ids": 0x50000000,
    "join": ("/sys/fs/cgroup/memory/x/tasks", "/sys/fs/cgroup/pids/x/tasks"),
    "cgroup": "/sys/fs/cgroup/x",
    "storage": "/s",
    "volumes": "/v",
}
#: How a command gets into its group: by each hierarchy's file on v1, born in it on v2, or there is none.
GROUPS = {
    0: Group(),
    1: Group(files=("/a/tasks", "/b/tasks"), pids=("/a/pids.current", 512)),
    2: Group("/sys/fs/cgroup/x", "/proc/4242/ns/cgroup", ("/sys/fs/cgroup/x/cgroup.procs",)),
}


def start_of(host: Host) -> bytes:
    """What starts a sandbox."""
    return encode(start(SandboxSpec(), host).steps, VALUES)


def helper_of(host: Host) -> bytes:
    """What a helper for files carries out first."""
    return encode(serve(SandboxSpec(), host))


def command_of(host: Host) -> bytes:
    """What starts a command."""
    argv, env = (b"sh", b"-c", b""), (b"PATH=/bin", b"A=")
    request = Request((b"/bin/sh", b"/usr/bin/sh"), argv, env, "/work", tty=True, foreign=bool(host.landlock))
    return encode_command(SandboxSpec(), host, request, GROUPS[host.cgroups.version])


MAKERS = {"start": start_of, "helper": helper_of, "command": command_of}
#: Programs as the library makes them, by name.
REAL = [f"{kind}, {host}" for kind in MAKERS for host in hosts.HOSTS]


def real(name: str) -> bytes:
    """One of `REAL`."""
    kind, _, host = name.partition(", ")
    return MAKERS[kind](hosts.HOSTS[host])


def one_of_each() -> dict[str, bytes]:
    """Each record alone."""
    return {
        "call": program.call("openat", (-100, "/etc/hostname", 0, 0), 1, out=9, ignore=(2, 13)),
        "each": program.call("prctl", (24, 0, 0, 0, 0), 1, each=0b1011),
        "tell": program.call("statx", (9, b"", 0, 0, bytes(256)), 1, tell=4),
        "absolute": program.call("getcwd", (bytes(64), 64), 1, absolute=True),
        "pointer": program.pointer(8, 16, 1) + program.call("seccomp", (1, 0, bytes(32)), 2),
        "write": program.write("etc/hosts", b"127.0.0.1 localhost\n", 1, 8, 0o301, 0o644, (17,)),
        "clone": program.clone(0x8000, program.call("setsid", (), 2), 1),
        "child_write": program.child_write("uid_map", b"0 1000 1\n", 1),
        "child_open": program.child_open("ns/user", 0, 14, 1),
        "report": program.report("ready", 3, 1),
        "execute": program.execute([b"/bin/true"], [b"true", b""], [b"A=1"], 1),
        "connect": program.connect(5, b"\2\0\x1f\x90\x7f\0\0\1", 20, 1),
        "read": program.read("getdents64", 9, 1 << 40, 1),
        "files": program.files([b"/proc/1/stat", b"", b"/proc/1/cmdline"], 4096, 1),
        "fits": program.fits(9, 64, 1),
        "stats": program.stats(9, [b"a", b"", b"passwd"], 0x1100, 1),
        "extents": program.extents(9, 0, 64, 1),
        "init": program.init(5, 6, 0, 1),
        "serve": program.serve(1),
    }
