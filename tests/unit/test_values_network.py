"""Networks as values: what may be asked for."""

from __future__ import annotations

import pickle
from typing import Any

import attrs
import pytest

from sandboxlib.errors import SpecError
from sandboxlib.namespace import Namespace
from sandboxlib.network import Network

VALUES = [
    Network.none(),
    Network.host(),
    Network.bridge("backend"),
    Network.bridge("backend", subnet="10.77.0.0/24", gateway="10.77.0.254", mtu=1400, rate="10M"),
    Network.bridge("six", subnet="fd00:77::/64", ipv6=True, internal=True, mtu=1280),
    Network.user(),
    Network.user(allow=[]),
    Network.user(allow=["api.example.com", "10.0.0.0/8:5432", "[fd00::]/8", "*.example.org:443"]),
    Network.macvlan("eth0"),
    Network.vxlan("wide", vni=7, peers=["192.0.2.2", "192.0.2.10"], local="192.0.2.1"),
    Network("of", namespace=Namespace("network", path="/run/netns/lab")),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_reads_back_copies_and_hashes(value: Network) -> None:
    assert eval(repr(value)) == value
    assert attrs.evolve(value) == value
    assert hash(attrs.evolve(value)) == hash(value)
    assert pickle.loads(pickle.dumps(value)) == value


def test_values_that_differ_are_not_equal() -> None:
    assert len(set(VALUES)) == len(VALUES)


def test_a_network_that_is_shared_has_a_namespace() -> None:
    assert Network.host().namespace == Namespace.host("network")
    assert Network.none().namespace is None


def test_nothing_allowed_is_not_everything_allowed() -> None:
    assert Network.user(allow=[]).allow == ()
    assert Network.user().allow is None


def test_addresses_are_kept_in_one_form() -> None:
    allow = [
        "API.example.com.",
        "10.0.0.1/32",
        "10.0.0.0/8",
        "[FD00:0::]/8:80",
        "[::1]:443",
        "api.example.com",
    ]
    assert set(Network.user(allow=allow).allow or ()) == {
        "api.example.com",
        "10.0.0.1",
        "10.0.0.0/8",
        "[fd00::]/8:80",
        "[::1]:443",
    }
    assert Network.bridge("six", subnet="FD00:0::/64").subnet == "fd00::/64"
    peers = ["192.0.2.10", "192.0.2.2", "192.0.2.10"]
    assert Network.vxlan("w", vni=1, peers=peers, local="192.0.2.1").peers == ("192.0.2.2", "192.0.2.10")


def test_rate_is_bytes() -> None:
    assert Network.bridge("b", rate="10M").rate == 10 << 20


WIDE: dict[str, Any] = {"kind": "vxlan", "name": "w", "vni": 1, "peers": ["192.0.2.2"], "local": "192.0.2.1"}


@pytest.mark.parametrize(
    "arguments, field",
    [
        ({"kind": "overlay"}, "kind"),
        ({"kind": ["none"]}, "kind"),
        ({"kind": "none", "name": "x"}, "name"),
        ({"kind": "none", "mtu": 1500}, "mtu"),
        ({"kind": "host", "internal": True}, "internal"),
        ({"kind": "host", "namespace": Namespace("network", pid=1)}, "namespace"),
        ({"kind": "none", "namespace": Namespace.host("network")}, "namespace"),
        ({"kind": "none", "vni": 0}, "vni"),
        ({"kind": "of"}, "namespace"),
        ({"kind": "of", "namespace": Namespace("ipc", pid=1)}, "namespace"),
        ({"kind": "of", "namespace": Namespace("network")}, "namespace"),
        ({"kind": "bridge"}, "name"),
        ({"kind": "bridge", "name": ""}, "name"),
        ({"kind": "bridge", "name": "a b"}, "name"),
        ({"kind": "bridge", "name": "a/b"}, "name"),
        ({"kind": "bridge", "name": "b", "parent": "eth0"}, "parent"),
        ({"kind": "bridge", "name": "b", "peers": ["192.0.2.2"]}, "peers"),
        ({"kind": "bridge", "name": "b", "subnet": "10.77.0.1/24"}, "subnet"),
        ({"kind": "bridge", "name": "b", "subnet": "10.77.0.0/31"}, "subnet"),
        ({"kind": "bridge", "name": "b", "subnet": "10.77.0.0"}, "subnet"),
        ({"kind": "bridge", "name": "b", "subnet": "0.0.0.0/0"}, "subnet"),
        ({"kind": "bridge", "name": "b", "subnet": "127.0.0.0/8"}, "subnet"),
        ({"kind": "bridge", "name": "b", "subnet": "224.0.0.0/8"}, "subnet"),
        ({"kind": "bridge", "name": "b", "subnet": 1}, "subnet"),
        ({"kind": "bridge", "name": "b", "subnet": "ten"}, "subnet"),
        ({"kind": "bridge", "name": "b", "gateway": "10.77.0.1"}, "gateway"),
        ({"kind": "bridge", "name": "b", "subnet": "10.77.0.0/24", "gateway": "10.78.0.1"}, "gateway"),
        ({"kind": "bridge", "name": "b", "subnet": "10.77.0.0/24", "gateway": "10.77.0.0"}, "gateway"),
        ({"kind": "bridge", "name": "b", "subnet": "10.77.0.0/24", "gateway": "10.77.0.255"}, "gateway"),
        ({"kind": "bridge", "name": "b", "subnet": "10.77.0.0/24", "gateway": "fd00::1"}, "gateway"),
        ({"kind": "bridge", "name": "b", "subnet": "10.77.0.0/24", "gateway": 1}, "gateway"),
        ({"kind": "bridge", "name": "b", "mtu": 67}, "mtu"),
        ({"kind": "bridge", "name": "b", "mtu": 65536}, "mtu"),
        ({"kind": "bridge", "name": "b", "mtu": 1279, "ipv6": True}, "mtu"),
        ({"kind": "bridge", "name": "b", "mtu": 1279, "subnet": "fd00::/64"}, "mtu"),
        ({"kind": "bridge", "name": "b", "rate": 0}, "rate"),
        ({"kind": "bridge", "name": "b", "rate": "fast"}, "rate"),
        ({"kind": "bridge", "name": "b", "ipv6": 1}, "ipv6"),
        ({"kind": "bridge", "name": "b", "internal": "yes"}, "internal"),
        ({"kind": "user", "allow": "api.example.com"}, "allow"),
        ({"kind": "user", "allow": [None]}, "allow"),
        ({"kind": "user", "allow": [""]}, "allow"),
        ({"kind": "user", "allow": ["api.example.com:0"]}, "allow"),
        ({"kind": "user", "allow": ["api.example.com:65536"]}, "allow"),
        ({"kind": "user", "allow": ["api.example.com:http"]}, "allow"),
        ({"kind": "user", "allow": ["https://api.example.com"]}, "allow"),
        ({"kind": "user", "allow": ["api example com"]}, "allow"),
        ({"kind": "user", "allow": ["-api.example.com"]}, "allow"),
        ({"kind": "user", "allow": ["*"]}, "allow"),
        ({"kind": "user", "allow": ["a." * 127 + "example"]}, "allow"),
        ({"kind": "user", "allow": ["10.0.0.1/8"]}, "allow"),
        ({"kind": "user", "allow": ["10.0.0.256"]}, "allow"),
        ({"kind": "user", "allow": ["10.0.0"]}, "allow"),
        ({"kind": "user", "allow": ["::1"]}, "allow"),
        ({"kind": "user", "allow": ["[example.com]"]}, "allow"),
        ({"kind": "macvlan"}, "parent"),
        ({"kind": "macvlan", "parent": ""}, "parent"),
        ({"kind": "macvlan", "parent": ".."}, "parent"),
        ({"kind": "macvlan", "parent": "eth0/1"}, "parent"),
        ({"kind": "macvlan", "parent": "an-interface-too-long"}, "parent"),
        (WIDE | {"vni": 0}, "vni"),
        (WIDE | {"vni": 1 << 24}, "vni"),
        (WIDE | {"vni": None}, "vni"),
        (WIDE | {"local": None}, "local"),
        (WIDE | {"local": "0.0.0.0"}, "local"),
        (WIDE | {"local": "224.0.0.1"}, "local"),
        (WIDE | {"peers": "192.0.2.2"}, "peers"),
        (WIDE | {"peers": ["192.0.2"]}, "peers"),
        (WIDE | {"peers": ["192.0.2.1"]}, "peers"),
        (WIDE | {"peers": ["fd00::1"]}, "peers"),
        (WIDE | {"name": "../x"}, "name"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Network(**arguments)
    assert caught.value.field == field
    assert caught.value.allowed in str(caught.value)


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Network.none().kind = "host"  # type: ignore[misc]
