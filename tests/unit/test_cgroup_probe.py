"""Reading what /proc says about cgroups, for machines other than this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxlib.errors import SpecError
from sandboxlib.kernel import owner
from sandboxlib.kernel.cgroup.probe import VARIABLE, Mount, _find_v2, folders, parse_mounts, parse_own, probe
from sandboxlib.kernel.cgroup.v2stats import pressure
from sandboxlib.result import Pressure, Stall

from groups import fresh_name

DEBIAN_V1 = r"""
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/ab /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/uni\040fied rw,relatime - cgroup2 cgroup2 rw
42 31 0:38 / /mnt/again rw,relatime - cgroup2 cgroup2 rw
""".strip()


def test_mounts_are_read() -> None:
    assert parse_mounts(DEBIAN_V1) == [
        Mount(1, ("cpu", "cpuacct"), "/sys/fs/cgroup/cpu,cpuacct", "/"),
        Mount(1, ("memory",), "/sys/fs/cgroup/memory", "/docker/ab"),
        Mount(1, (), "/sys/fs/cgroup/systemd", "/"),
        Mount(2, (), "/sys/fs/cgroup/uni fied", "/"),
    ]


def test_own_groups_are_read() -> None:
    text = "4:memory:/a/b\n3:cpu,cpuacct:/c\n1:name=systemd:/d\n0::/user.slice/x:y\n"
    assert parse_own(text) == {
        "memory": "/a/b",
        "cpu": "/c",
        "cpuacct": "/c",
        "name=systemd": "/d",
        "": "/user.slice/x:y",
    }


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("/", "/a/b", ["/cg/a/b", "/cg/a", "/cg"]),
        ("/", "/", ["/cg"]),
        ("/docker/ab", "/docker/ab/c", ["/cg/c", "/cg"]),
        ("/docker/ab", "/docker/ab", ["/cg"]),
        ("/docker/ab", "/docker/abc", ["/cg"]),
        ("/", "/../other", ["/cg"]),
    ],
)
def test_the_folders_of_a_group_and_above(root: str, path: str, expected: list[str]) -> None:
    assert folders(Mount(2, (), "/cg", root), path) == expected


@pytest.mark.parametrize(("root", "own"), [("/../..", "/"), ("/..", "/a"), ("/", "/../other")])
def test_groups_outside_of_the_programs_own_namespace_are_none_of_its(root: str, own: str) -> None:
    found = _find_v2(Mount(2, (), "/sys/fs/cgroup", root), own)
    assert (found.version, found.bases) == (0, {})
    assert "mount -t cgroup2" in found.hint


@pytest.mark.parametrize("value", ["relative", "/nowhere", "/tmp"])
def test_an_explicit_folder_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(SpecError) as caught:
        probe()
    assert (caught.value.field, caught.value.value) == (VARIABLE, value)


def test_a_token_names_this_process_and_no_other() -> None:
    namespace, pid, start = owner.owner_token().split("-")
    assert int(namespace) == Path("/proc/self/ns/pid").stat().st_ino
    assert int(pid) == os.getpid()
    assert int(start) > 0
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, owner.owner_token().encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    assert told.split("-")[1] == str(child)


def test_names_are_never_given_twice() -> None:
    assert len({fresh_name() for _ in range(100)}) == 100


def test_pressure_is_read_as_shares_and_seconds() -> None:
    text = (
        "some avg10=12.50 avg60=3.00 avg300=0.25 total=1500000\n"
        "full avg10=1.00 avg60=0.00 avg300=0.00 total=250000\n"
    )
    assert pressure(text) == Pressure(Stall(0.125, 0.03, 0.0025, 1.5), Stall(0.01, 0, 0, 0.25))
    # Before Linux 5.13 the file for the CPU has one line.
    assert pressure(text.splitlines()[0]).full is None
