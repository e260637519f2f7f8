"""The steps that networks add to a start, and the values that say which."""

from __future__ import annotations

import attrs
import pytest

from sandboxlib.engine.firewall import of_network, of_ports
from sandboxlib.engine.helpers import pasta_options
from sandboxlib.engine.ledger import Member, Net
from sandboxlib.errors import SpecError
from sandboxlib.network import Network
from sandboxlib.plan.start import start
from sandboxlib.rootfs import Rootfs
from sandboxlib.spec import SandboxSpec

import hosts


def lines(spec: SandboxSpec, host: object = hosts.ROOT_V2) -> list[tuple[str, str]]:
    return [(who, text) for who, text, _ in start(spec, host).lines()]  # type: ignore[arg-type]


def test_a_bridge_is_entered_before_and_connected_while_pid_1_builds() -> None:
    steps = lines(SandboxSpec(network=Network.bridge("b"), ports={8080: 80}))
    order = [
        ("program", "bridge 'b'"),
        ("program", "bind(*:8080/tcp)"),
        ("launcher", "clone3("),
        ("init", "ip_unprivileged_port_start"),
        ("init", "socket(AF_NETLINK"),
        ("init", "'ready', SCM_RIGHTS"),
        ("init", "pivot_root"),
    ]
    at = 0
    for who, part in order:
        at = next(i for i in range(at, len(steps)) if steps[i][0] == who and part in steps[i][1]) + 1


@pytest.mark.parametrize("network", ["none", "host"])
def test_without_one_nothing_is_added(network: str) -> None:
    text = "\n".join(text for _, text in lines(SandboxSpec(network=network)))
    assert "AF_NETLINK" not in text
    assert "{hosts}" not in text


@pytest.mark.parametrize(
    "rootfs", [None, Rootfs.empty(), Rootfs.directory("/srv"), Rootfs.overlay(lower=["/srv"])]
)
def test_its_files_are_mounted_into_each_kind_of_root_to_be_read_only(rootfs: Rootfs | None) -> None:
    steps = [text for _, text in lines(SandboxSpec(network="bridge", rootfs=rootfs))]
    for name in ("hosts", "resolv"):
        opened = next(i for i, text in enumerate(steps) if f"{{{name}}}" in text and "open_tree" in text)
        assert "MOUNT_ATTR_RDONLY" in steps[opened + 1]
    # The host view has no file of its own in that place, which would be what others see.
    assert [text for text in steps if text.startswith("write(") and "etc/hosts" in text] == []


def test_several_networks() -> None:
    value = SandboxSpec(network=[Network.bridge("a"), Network.bridge("b", internal=True)]).network
    assert value is not None
    assert [one.name for one in value.every] == ["a", "b"]
    assert repr(value) == "Network.bridge('a', also=[Network.bridge('b', internal=True)])"


@pytest.mark.parametrize(
    "network",
    [
        [Network.bridge("a"), Network.bridge("a")],
        [Network.bridge("a"), Network.host()],
        [Network.user(), Network.bridge("a")],
        [],
        ["a"],
    ],
)
def test_several_that_cannot_be(network: list[object]) -> None:
    with pytest.raises(SpecError):
        SandboxSpec(network=network)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "argument, value",
    [
        ("address", "10.0.0.0.1"),
        ("address", ["10.0.0.1", "10.0.0.2"]),
        ("mac", "01:00:00:00:00:01"),
        ("mac", "2:0:0:0:0:1"),
        ("mac", 5),
        ("routes", {"10.0.0.0/8": "fd00::1"}),
        ("routes", {"10.0.0.1/8": "10.0.0.1"}),
        ("dns", ["one"]),
        ("dns", ["10.0.0.1"] * 4),
        ("search", ["*.example.com"]),
        ("search", ["two words"]),
        ("hosts", {"a b": "10.0.0.1"}),
        ("hosts", {"a": "nowhere"}),
        ("hosts", {"a\n10.0.0.1 b": "10.0.0.1"}),
        # What stands behind a % may be anything: a line of a file, or another interface.
        ("hosts", {"a": "fe80::1%x\n10.0.0.1 bank.example"}),
        ("dns", ["fe80::1%x\nnameserver 10.0.0.1"]),
        ("dns", ["fe80::1%eth0"]),
        ("address", "fd00::5%eth0"),
        ("routes", {"fd00::%x/64": "fd00::1"}),
        ("routes", {"fd00::1%x": "fd00::1"}),
        ("routes", {"fd00::/64": "fe80::1%eth0"}),
        ("subnet", "fd00::1%x/64"),
    ],
)
def test_arguments_that_make_no_sense(argument: str, value: object) -> None:
    with pytest.raises(SpecError, match=argument):
        Network.bridge("a", **{argument: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key, target",
    [("80-90", 80), ("80-90", "80-91"), ("90-80", "90-80"), ("1-2000", "1-2000"), ("80", "80-81")],
)
def test_ranges_of_ports_that_make_no_sense(key: str, target: object) -> None:
    with pytest.raises(SpecError, match="ports"):
        SandboxSpec(network="bridge", ports={key: target})  # type: ignore[dict-item]


@pytest.mark.parametrize("key", ["[fe80::1%eth0]:80", "[::1%x\n]:80", "fe80::1%eth0:80"])
def test_an_address_with_a_scope_is_none_of_a_port(key: str) -> None:
    with pytest.raises(SpecError, match="ports"):
        SandboxSpec(network="bridge", ports={key: 80})


@pytest.mark.parametrize("value", ["[fe80::1%eth0]:80", "[fe80::1%x y]", "[fd00::%x]/64"])
def test_an_address_with_a_scope_is_no_destination(value: str) -> None:
    with pytest.raises(SpecError, match="allow"):
        Network.user(allow=[value])


def test_ranges_of_ports() -> None:
    found = SandboxSpec(network="bridge", ports={"127.0.0.1:80-82/udp": "90-92"}).ports
    assert [(port.address, port.port, port.protocol, port.target) for port in found] == [
        ("127.0.0.1", 80 + number, "udp", 90 + number) for number in range(3)
    ]


def test_elements_of_rules() -> None:
    net = Net("n", "sbx-n", v4="10.0.0.0/24", v6="fd00::/64", gateway6="fd00::1", internal=True)
    assert [name for name, _, _ in of_network(net)] == ["same"]
    member = Member("n", v4="10.0.0.2", v6="fd00::2")
    member.ports = [["", 80, "tcp", 81]]
    assert [name for name, _, _ in of_ports(net, member)] == ["any4", "any6", "loopback6"]
    member.ports = [["127.0.0.1", 80, "tcp", 81]]
    # Each part begins at four bytes: address, protocol, port; and address, port.
    key, data = "7f000001 06000000 00500000", "0a000002 00510000"
    assert of_ports(net, member) == [("at4", bytes.fromhex(key), bytes.fromhex(data))]
    member.ports = [["::1", 80, "udp", 81]]
    assert [name for name, _, _ in of_ports(net, member)] == ["at6", "loopback6"]
    # Without IPv6 it is not published by it.
    alone = attrs.evolve(member, v6="", ports=[["", 1, "tcp", 2]])
    assert [name for name, _, _ in of_ports(net, alone)] == ["any4"]


def test_pasta_opens_nothing_by_itself() -> None:
    options = pasta_options([])
    assert "--no-map-gw" in options
    for name in ("--tcp-ns", "--udp-ns", "--tcp-ports", "--udp-ports"):
        assert options[options.index(name) + 1] == "none"
    options = pasta_options([["127.0.0.1", 8080, "tcp", 80], ["", 53, "udp", 53]])
    assert options[options.index("--tcp-ports") + 1] == "127.0.0.1/8080:80"
    assert options[options.index("--udp-ports") + 1] == "53:53"
    assert options[options.index("--tcp-ns") + 1] == "none"
