"""Who reaches whom: a table for bridges, from inside, from the host and from other hosts."""

from __future__ import annotations

from collections.abc import Iterator

import netlab
import pytest
from netlab import Lab

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.bridge, pytest.mark.tool("ip", "unshare")]

STAND = """
from contextlib import ExitStack
from sandboxlib import Network, Sandbox
stack = ExitStack()
echo("7000/tcp", "7001/udp")
echo("7000/tcp", "7001/udp", at="client")
echo("7000/tcp", "7001/udp", at="server")
a = Network.bridge("a", ipv6=True)
ports = {8080: 80, "8081/udp": 81, "127.0.0.1:8090": 80, "[::1]:8091": 80, "192.0.2.1:8092": 80}
who = {
    "a1": Sandbox(network=a, hostname="a1"),
    "a2": Sandbox(network=a, hostname="a2", aliases=["service"], ports=ports),
    "b1": Sandbox(network=Network.bridge("b", ipv6=True), hostname="b1"),
    "i1": Sandbox(network=Network.bridge("i", ipv6=True, internal=True), hostname="i1"),
    "i2": Sandbox(network=Network.bridge("i"), hostname="i2", ports={8095: 80}),
    "none": Sandbox(hostname="none"),
}
place = {"client": "client", "server": "server", "host": ""}
address = {
    "client4": "192.0.2.2", "client6": "2001:db8:1::2",
    "server4": "198.51.100.2", "server6": "2001:db8:2::2",
    "host4": "192.0.2.1", "host6": "2001:db8:1::1",
    "loopback4": "127.0.0.1", "loopback6": "::1", "other4": "198.51.100.1", "other6": "2001:db8:2::1",
}
place["shared"] = stack.enter_context(Sandbox(network="host"))
for name, sandbox in who.items():
    place[name] = stack.enter_context(sandbox)
    if name != "none":
        (address[name + "4"], address[name + "6"]), = sandbox.addresses().values()
        serve(sandbox, "80/tcp", "81/udp", "90/tcp")
for name, gateway in (("a1", "gateway"), ("i1", "inner")):
    address[gateway + "4"] = address[name + "4"].rpartition(".")[0] + ".1"
    address[gateway + "6"] = address[name + "6"].rpartition(":")[0] + ":1"
place["pod"] = stack.enter_context(Sandbox(network=Network.of(who["a2"])))
"""

# From, to, TCP port, UDP port, and who answers: a name, or None for nobody.
REACH = [
    # Neighbours, and nobody of another network.
    ("a1", "a2", 80, 81, "a2"),
    ("a2", "a1", 80, 81, "a1"),
    ("a1", "b1", 80, 81, None),
    ("b1", "a1", 80, 81, None),
    ("a1", "i1", 80, 81, None),
    ("i1", "a1", 80, 81, None),
    ("i1", "i2", 80, 81, "i2"),
    ("none", "a1", 80, 81, None),
    # Loopback: each its own, the host's, or one that is shared.
    ("a1", "loopback", 80, 81, "a1"),
    ("a1", "loopback", 7000, 7001, None),
    ("none", "loopback", 7000, 7001, None),
    ("shared", "loopback", 7000, 7001, "any"),
    ("shared", "server", 7000, 7001, "any"),
    ("pod", "loopback", 80, 81, "a2"),
    ("pod", "loopback", 7000, 7001, None),
    ("pod", "a1", 80, 81, "a1"),
    ("pod", "b1", 80, 81, None),
    # The way out, and none from an internal network.
    ("a1", "server", 7000, 7001, "any"),
    ("b1", "client", 7000, 7001, "any"),
    ("i1", "server", 7000, 7001, None),
    ("i1", "client", 7000, 7001, None),
    ("none", "server", 7000, 7001, None),
    # The host itself: what listens there is not for sandboxes.
    ("a1", "host", 7000, 7001, None),
    ("b1", "other", 7000, 7001, None),
    ("i1", "host", 7000, 7001, None),
    ("a1", "gateway", 7000, 7001, None),
    ("a1", "inner", 7000, 7001, None),
    ("i1", "inner", 7000, 7001, None),
    # What is published, from everywhere.
    ("client", "host", 8080, 8081, "a2"),
    ("server", "host", 8080, 8081, "a2"),
    ("host", "host", 8080, 8081, "a2"),
    ("host", "other", 8080, 8081, "a2"),
    ("host", "loopback", 8080, 8081, "a2"),
    ("b1", "host", 8080, 8081, "a2"),
    ("a1", "host", 8080, 8081, "a2"),
    ("a2", "host", 8080, 8081, "a2"),
    ("i1", "host", 8080, 8081, None),
    # What is not: neither other ports, nor the sandbox's own address from outside.
    ("client", "host", 8082, 8083, None),
    ("client", "a2", 90, 81, None),
    ("client", "a1", 80, 81, None),
    ("server", "i1", 80, 81, None),
    # The host reaches its sandboxes.
    ("host", "a1", 80, 81, "a1"),
    ("host", "i1", 80, 81, "i1"),
]
# The same for ports of one address: TCP only.
PUBLISHED = [
    ("host", "loopback4", 8090, "a2"),
    ("host", "host4", 8090, None),
    ("client", "host4", 8090, None),
    ("a1", "host4", 8090, None),
    ("host", "loopback6", 8091, "a2"),
    ("host", "host6", 8091, None),
    ("client", "host6", 8091, None),
    ("client", "host4", 8092, "a2"),
    ("server", "other4", 8092, None),
    ("host", "loopback4", 8092, None),
    ("client", "host4", 8095, "i2"),
    ("host", "loopback4", 8095, "i2"),
]


# Where br_netfilter is loaded, rules see packets that only cross a bridge, too; it can be switched.
FRAMES = """
for path in Path("/proc/sys/net/bridge").glob("bridge-nf-call-ip*"):
    path.write_text(filtered)
"""


@pytest.fixture(scope="module", params=["0", "1"], ids=["frames-unseen", "frames-filtered"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab() as lab:
        lab.run(FRAMES, filtered=request.param)
        lab.run(STAND)
        yield lab
        assert lab.run("stack.close(); result = sh('nft', 'list', 'ruleset')") == ""


def asked(lab: Lab, source: str, target: str, port: int, kind: str, *, answered: bool = True) -> str:
    # Who is waited for may be slow on a busy machine; who is not there will not come later either.
    code = "result = ask(place[source], address[target], port, kind, patience)"
    patience = 10 if answered else 0.7
    return str(lab.run(code, source=source, target=target, port=port, kind=kind, patience=patience))


def check(answer: str, expected: str | None) -> None:
    if expected is None:
        assert answer.startswith("no:")
    elif expected == "any":
        assert not answer.startswith("no:"), answer
    else:
        assert answer.split(maxsplit=1)[0] == expected


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize(
    "source, target, tcp, udp, expected", REACH, ids=lambda value: "nobody" if value is None else str(value)
)
def test_reach(
    lab: Lab, source: str, target: str, tcp: int, udp: int, expected: str | None, kind: str, family: int
) -> None:
    port = tcp if kind == "tcp" else udp
    answer = asked(lab, source, f"{target}{family}", port, kind, answered=expected is not None)
    check(answer, expected)


@pytest.mark.parametrize("source, target, port, expected", PUBLISHED)
def test_ports_of_one_address(lab: Lab, source: str, target: str, port: int, expected: str | None) -> None:
    check(asked(lab, source, target, port, "tcp", answered=expected is not None), expected)


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize(
    "source, target, expected",
    [
        ("a1", "a2", True),
        ("a1", "server", True),
        ("a1", "host", True),
        ("a1", "gateway", True),
        ("i1", "inner", True),
        ("i1", "i2", True),
        ("a1", "b1", False),
        ("a1", "i1", False),
        ("i1", "server", False),
        ("client", "a1", False),
        ("none", "server", False),
    ],
)
def test_ping(lab: Lab, source: str, target: str, expected: bool, family: int) -> None:
    answer = asked(lab, source, f"{target}{family}", 0, "icmp", answered=expected)
    assert (answer == "pong") == expected, answer


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_outside_a_sandbox_has_the_hosts_address(lab: Lab, family: int) -> None:
    answer = asked(lab, "a1", f"server{family}", 7000, "tcp")
    assert answer.split()[1] == ("198.51.100.1" if family == 4 else "2001:db8:2::1")


def test_a_published_service_sees_who_asks(lab: Lab) -> None:
    assert asked(lab, "client", "host4", 8080, "tcp").split() == ["a2", netlab.CLIENT]
    assert asked(lab, "client", "host6", 8080, "tcp").split() == ["a2", netlab.CLIENT6]
