"""All arguments of a sandbox together, and the rules between them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import attrs
import pytest

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import SpecError
from sandboxlib.mount import Mount, Volume
from sandboxlib.namespace import Namespace
from sandboxlib.network import Network
from sandboxlib.rootfs import Rootfs
from sandboxlib.security import Security
from sandboxlib.spec import Port, SandboxSpec

BRIDGE = Network.bridge("backend")
LAB = Namespace("network", path="/run/netns/lab")
TREE = Namespace("mount", pid=7)
USER = Namespace("user", uid_map=[(0, 100000, 10)], gid_map=[(0, 100000, 20)])

#: The example of the five parts put together.
FIVE = {
    "namespaces": [
        Namespace("network", path="/proc/4242/ns/net"),
        Namespace("user", uid_map=[(0, 100000, 65536)], gid_map=[(0, 100000, 65536)]),
        Namespace("time", boottime_offset=3600),
        Namespace.host("uts"),
    ],
    "cgroup": CGroup(memory_max="256M", cpu_max=0.5, pids_max=64, devices=["c 10:200 rwm"]),
    "rootfs": Rootfs.overlay(lower=["/srv/base"], size="64M"),
    "mounts": [
        Mount.bind("/data", "/data", readonly=True),
        Mount.tmpfs("/scratch", size="64M"),
        Volume("models").at("/models"),
    ],
    "network": BRIDGE,
    "ports": {8080: 80, "127.0.0.1:5353/udp": 53},
    "hostname": "db",
    "aliases": ["database"],
    "security": Security(
        user="1000:1000",
        capabilities=["CAP_NET_BIND_SERVICE"],
        seccomp="default",
        rlimits={"nofile": 1024},
    ),
}
VALUES = [
    SandboxSpec(),
    SandboxSpec.of(**FIVE),
    SandboxSpec(memory="256M", cpus=0.5, pids=64, lifetime=600),
    SandboxSpec(image="app:1", network="host", cwd="/work", env={"B": "2", "A": ""}),
    SandboxSpec(network=BRIDGE, ports={"[::1]:80": 80, 0: 81, "0/udp": 82}, domainname="example.org"),
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_value_reads_back_copies_and_hashes(value: SandboxSpec) -> None:
    assert eval(repr(value)) == value
    assert attrs.evolve(value) == value
    assert hash(attrs.evolve(value)) == hash(value)
    assert pickle.loads(pickle.dumps(value)) == value
    assert len(set(VALUES)) == len(VALUES)


def test_numbers_are_bytes_and_seconds() -> None:
    value = VALUES[2]
    assert (value.memory, value.cpus, value.pids, value.lifetime) == (256 << 20, 0.5, 64, 600.0)


def test_words_for_networks() -> None:
    assert SandboxSpec(network="none").network == Network.none()
    assert SandboxSpec(network="host").network == Network.host()


def test_ports_are_read_from_all_their_forms() -> None:
    ports: dict[int | str, int] = {
        8080: 80,
        "81": 81,
        "82/udp": 82,
        "127.0.0.1:5353/udp": 53,
        "[::1]:80/tcp": 80,
    }
    assert SandboxSpec(network=BRIDGE, ports=ports).ports == (
        Port("", 81, "tcp", 81),
        Port("", 82, "udp", 82),
        Port("", 8080, "tcp", 80),
        Port("127.0.0.1", 5353, "udp", 53),
        Port("::1", 80, "tcp", 80),
    )


def test_one_port_by_two_protocols_or_on_two_addresses_is_two_ports() -> None:
    assert len(SandboxSpec(network=BRIDGE, ports={53: 53, "53/udp": 53}).ports) == 2
    assert len(SandboxSpec(network=BRIDGE, ports={"127.0.0.1:1": 1, "127.0.0.2:1": 1}).ports) == 2
    assert len(SandboxSpec(network=BRIDGE, ports={0: 53, "127.0.0.1:0": 53}).ports) == 2


def test_a_folder_is_mounted_before_what_is_mounted_in_it() -> None:
    mounts = [Mount.tmpfs("/a/b"), Mount.tmpfs("/c"), Mount.tmpfs("/a")]
    assert [mount.destination for mount in SandboxSpec(mounts=mounts).mounts] == ["/a", "/a/b", "/c"]


def test_the_order_in_which_things_are_named_says_nothing() -> None:
    one = SandboxSpec(namespaces=[LAB, USER], env={"A": "1", "B": "2"})
    other = SandboxSpec(namespaces=(USER, LAB), env={"B": "2", "A": "1"})
    assert one == other


@pytest.mark.parametrize(
    "security, names",
    [
        (None, ()),
        (Security(), ()),
        (Security(without=["ceilings"]), ("ceilings",)),
        (Security(keyring="inherit"), ("new-keyring",)),
        (Security(no_new_privileges=False), ("no-new-privileges",)),
        (Security(seccomp="unconfined", without=["seccomp", "ceilings"]), ("ceilings", "seccomp")),
    ],
)
def test_what_is_gone_without_however_it_was_said(security: Security | None, names: tuple[str, ...]) -> None:
    assert SandboxSpec(security=security).without == names


def test_the_namespace_of_each_kind() -> None:
    value = SandboxSpec(namespaces=[USER], network=Network.host())
    assert value.namespace("user") is not None
    assert value.namespace("user") == USER
    assert value.namespace("network") == Namespace.host("network")
    assert value.namespace("ipc") is None


@pytest.mark.parametrize(
    "arguments, field",
    [
        ({"image": ""}, "image"),
        ({"image": 5}, "image"),
        ({"image": "app:1", "rootfs": Rootfs.host()}, "rootfs"),
        ({"rootfs": "/srv"}, "rootfs"),
        ({"memory": 0}, "memory"),
        ({"memory": "4095"}, "memory"),
        ({"memory": "lots"}, "memory"),
        ({"memory": -1}, "memory"),
        ({"memory": "256M", "cgroup": CGroup(memory_max="1G")}, "memory"),
        ({"memory": "256M", "cgroup": CGroup(memory_max="256M")}, "memory"),
        ({"cpus": 0}, "cpus"),
        ({"cpus": "all"}, "cpus"),
        ({"cpus": 1, "cgroup": CGroup(cpu_max=(50000, 100000))}, "cpus"),
        ({"pids": 0}, "pids"),
        ({"pids": 1.5}, "pids"),
        ({"pids": (1 << 22) + 1}, "pids"),
        ({"pids": 5, "cgroup": CGroup(pids_max="max")}, "pids"),
        ({"lifetime": 0}, "lifetime"),
        ({"lifetime": -1}, "lifetime"),
        ({"lifetime": float("inf")}, "lifetime"),
        ({"cgroup": {"memory_max": 5}}, "cgroup"),
        ({"security": "unconfined"}, "security"),
        ({"namespaces": Namespace("ipc")}, "namespaces"),
        ({"namespaces": ["ipc"]}, "namespaces"),
        ({"namespaces": [Namespace("ipc"), Namespace.host("ipc")]}, "namespaces"),
        ({"mounts": Mount.tmpfs("/x")}, "mounts"),
        ({"mounts": ["/data:/data"]}, "mounts"),
        ({"mounts": [Volume("models")]}, "mounts"),
        ({"mounts": [Mount.tmpfs("/x"), Mount.bind("/data", "/x/")]}, "mounts"),
        ({"network": "bridges"}, "network"),
        ({"network": 5}, "network"),
        ({"network": "host", "namespaces": [Namespace("network")]}, "network"),
        ({"network": "host", "namespaces": [LAB]}, "network"),
        ({"network": "none", "namespaces": [LAB]}, "network"),
        ({"network": Network("of", namespace=LAB), "namespaces": [LAB]}, "network"),
        ({"ports": {80: 80}}, "ports"),
        ({"ports": {80: 80}, "network": "host"}, "ports"),
        ({"ports": {80: 80}, "network": "none"}, "ports"),
        ({"ports": [80], "network": BRIDGE}, "ports"),
        ({"ports": "80:80", "network": BRIDGE}, "ports"),
        ({"ports": {65536: 80}, "network": BRIDGE}, "ports"),
        ({"ports": {-1: 80}, "network": BRIDGE}, "ports"),
        ({"ports": {True: 80}, "network": BRIDGE}, "ports"),
        ({"ports": {"80/sctp": 80}, "network": BRIDGE}, "ports"),
        ({"ports": {"localhost:80": 80}, "network": BRIDGE}, "ports"),
        ({"ports": {"::1:80": 80}, "network": BRIDGE}, "ports"),
        ({"ports": {"[127.0.0.1]:80": 80}, "network": BRIDGE}, "ports"),
        ({"ports": {"127.0.0.256:80": 80}, "network": BRIDGE}, "ports"),
        ({"ports": {80: 80, "80/tcp": 81}, "network": BRIDGE}, "ports"),
        ({"ports": {80: 80, "127.0.0.1:80": 81}, "network": BRIDGE}, "ports"),
        ({"ports": {80: 0}, "network": BRIDGE}, "ports[80]"),
        ({"ports": {80: 65536}, "network": BRIDGE}, "ports[80]"),
        ({"ports": {80: "80"}, "network": BRIDGE}, "ports[80]"),
        ({"hostname": ""}, "hostname"),
        ({"hostname": "a\nb"}, "hostname"),
        ({"hostname": "a b"}, "hostname"),
        ({"hostname": "-a"}, "hostname"),
        ({"hostname": "a..b"}, "hostname"),
        ({"hostname": "a" * 65}, "hostname"),
        ({"hostname": 5}, "hostname"),
        ({"hostname": "db", "namespaces": [Namespace.host("uts")]}, "hostname"),
        ({"hostname": "db", "namespaces": [Namespace("uts", pid=7)]}, "hostname"),
        ({"domainname": "", "hostname": "a"}, "domainname"),
        ({"domainname": "x", "network": BRIDGE, "namespaces": [Namespace.host("uts")]}, "domainname"),
        ({"aliases": "db", "network": BRIDGE}, "aliases"),
        ({"aliases": ["d b"], "network": BRIDGE}, "aliases"),
        ({"aliases": ["db"]}, "aliases"),
        ({"aliases": ["db"], "network": "host"}, "aliases"),
        ({"env": "A=1"}, "env"),
        ({"env": {"": "1"}}, "env"),
        ({"env": {"A=B": "1"}}, "env"),
        ({"env": {"A\0": "1"}}, "env"),
        ({"env": {5: "1"}}, "env"),
        ({"env": [("A", "1"), ("A", "2")]}, "env"),
        ({"env": {"A": 1}}, "env['A']"),
        ({"env": {"A": None}}, "env['A']"),
        ({"env": {"A": "1\0"}}, "env['A']"),
        ({"cwd": "work"}, "cwd"),
        ({"cwd": "/work/.."}, "cwd"),
        ({"cwd": ""}, "cwd"),
        ({"namespaces": [TREE], "rootfs": Rootfs.host()}, "rootfs"),
        ({"namespaces": [TREE], "image": "app"}, "image"),
        ({"namespaces": [Namespace.host("mount")], "mounts": [Mount.tmpfs("/x")]}, "mounts"),
        ({"namespaces": [TREE], "security": Security(devices=["/dev/kvm"])}, "security.devices"),
        ({"namespaces": [TREE], "security": Security(masked_paths=[])}, "security.masked_paths"),
        ({"namespaces": [TREE], "security": Security(readonly_paths=["/x"])}, "security.readonly_paths"),
        ({"namespaces": [USER], "security": Security(user="10:10")}, "security.user"),
        ({"namespaces": [USER], "security": Security(user="9:20")}, "security.user"),
        ({"namespaces": [USER], "security": Security(groups=[5, 20])}, "security.groups"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        SandboxSpec.of(**arguments)
    assert caught.value.field == field
    assert caught.value.allowed in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"namespaces": [USER], "security": Security(user="9:19", groups=[19])},
        {"namespaces": [Namespace("network")], "network": "none"},
        {"namespaces": [LAB]},
        {"namespaces": [TREE], "security": Security()},
        {"namespaces": [Namespace.host("uts")], "hostname": "db", "network": BRIDGE},
        {"memory": "256M", "cgroup": CGroup(cpu_max=0.5)},
        {"mounts": [Mount.tmpfs("/x"), Mount.tmpfs("/x/y")]},
        {"aliases": [], "ports": {}},
    ],
    ids=str,
)
def test_what_looks_contradictory_and_is_not(arguments: dict[str, Any]) -> None:
    assert isinstance(SandboxSpec.of(**arguments), SandboxSpec)


def test_two_limits_of_one_thing_are_both_named() -> None:
    with pytest.raises(SpecError, match=r"'memory' .*cgroup\.memory_max"):
        SandboxSpec(memory="256M", cgroup=CGroup(memory_max="1G"))


def test_a_volume_among_mounts_is_refused_with_the_way_out() -> None:
    with pytest.raises(SpecError, match=r"Volume\.at"):
        SandboxSpec(mounts=[Volume("models")])  # type: ignore[list-item]


def test_an_unknown_argument_is_a_type_error_as_in_python() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'memry'.*memory"):
        SandboxSpec.of(memry="256M")


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        SandboxSpec().memory = 1  # type: ignore[misc]


def test_values_load_nothing_heavy() -> None:
    script = (
        "import sys, attrs, sandboxlib.cgroup\nbefore = set(sys.modules)\nimport sandboxlib.spec\n"
        "sandboxlib.spec.SandboxSpec(memory='64M', network='host')\n"
        "sandboxlib.spec.Security(seccomp='/etc/x', capabilities=['net_raw'])\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('sandboxlib')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
