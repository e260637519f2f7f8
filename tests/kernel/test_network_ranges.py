"""Which ranges networks get: clear of what the host needs, whatever its routes; what is named is taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from netlab import Lab

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.bridge, pytest.mark.tool("ip", "unshare")]

USES = """
import contextlib, ipaddress, time
from sandboxlib import Network, NetworkError, Sandbox
@contextlib.contextmanager
def routes(*lines):
    for line in lines:
        sh("ip", *line.split())
    try:
        yield
    finally:
        for line in reversed(lines):
            sh("ip", *line.replace(" add ", " del ").split())
def taken(**spec):
    with Sandbox(network=Network.bridge("x", **spec)) as sb:
        return list(sb.addresses()["x"])
def refused(**spec):
    try:
        taken(**spec)
    except NetworkError as error:
        return str(error)
    raise AssertionError("it was not refused")
def servers(*names):
    Path("/run/resolv.conf").write_text("".join(f"nameserver {name}\\n" for name in names))
def within(addresses, *ranges):
    nets = [ipaddress.ip_network(range) for range in ranges]
    return [any(ipaddress.ip_address(one) in net for net in nets) for one in addresses]
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.run(USES)
        yield lab
        assert lab.run("result = sh('nft', 'list', 'tables')") == ""


def test_what_the_host_has_routes_to_is_left_alone_as_long_as_there_is_more(lab: Lab) -> None:
    code = """
over = "via 198.51.100.2"
with routes(f"route add 10.64.0.0/16 {over}"):
    result = taken()
    with routes(f"route add 10.0.0.0/8 {over}"):
        result += taken()
"""
    assert lab.run(code) == ["10.65.0.2", "172.16.0.2"]


@pytest.mark.parametrize(
    "lines",
    [
        ["route add 0.0.0.0/1 via 198.51.100.2", "route add 128.0.0.0/1 via 198.51.100.2"],
        ["route add 0.0.0.0/1 dev to-server", "route add 128.0.0.0/1 dev to-server"],
        [f"route add blackhole {net}" for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")],
        [
            f"route add {net} via 198.51.100.2"
            for net in ("10.64.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
        ],
        ["route add 0.0.0.0/1 via 198.51.100.2 table 77", "route add unreachable 128.0.0.0/1 table 77"],
        ["-6 route add fd00::/8 via 2001:db8:2::2"],
        ["-6 route add blackhole fd00::/8", "-6 route add blackhole fc00::/7"],
        ["-6 route add ::/1 via 2001:db8:2::2", "-6 route add 8000::/1 via 2001:db8:2::2"],
    ],
    ids=[
        "split",
        "split-direct",
        "blackholes",
        "all-private",
        "another-table",
        "ula",
        "ula-blackholes",
        "split6",
    ],
)
def test_routes_to_everything_keep_nobody_from_having_a_network(lab: Lab, lines: list[str]) -> None:
    code = """
with routes(*lines):
    net = Network.bridge("x", ipv6=True)
    with Sandbox(network=net, hostname="one") as one, Sandbox(network=net) as two:
        serve(one, "80/tcp")
        found = one.addresses()["x"]
        result = [within(found, *PRIVATE, "fd00::/8")]
        result.append([ask(two, address, 80, "tcp", 5).split()[0] for address in found])
"""
    assert lab.run(code, lines=lines) == [[True, True], ["one", "one"]]


def test_a_thousand_routes_within_are_left_alone(lab: Lab) -> None:
    """All of what is taken first, but for one range in its midst; and others in the rest."""
    code = """
lines = [f"route add 10.{64 + n // 256}.{n % 256}.0/24 via 198.51.100.2" for n in range(3000) if n != 2000]
Path("/run/batch").write_text("\\n".join(lines))
sh("ip", "-batch", "/run/batch")
began = time.monotonic()
result = [taken(), time.monotonic() - began]
"""
    found, took = lab.run(code)
    assert found == ["10.71.208.2"]
    # It took seven seconds.
    assert took < 3


@pytest.mark.parametrize(
    "server, network",
    [("10.64.0.2", "10.64.0.0/24"), ("10.64.0.77", "10.64.0.0/24"), ("10.64.3.2", "10.64.3.0/24")],
)
def test_the_hosts_name_servers_stay_reachable(lab: Lab, server: str, network: str) -> None:
    """As in a cloud's network, where the server has an address of the range from which others are chosen."""
    code = """
sh("ip", "-n", "server", "address", "add", f"{server}/32", "dev", "eth0")
sh("ip", "route", "add", "default", "via", "198.51.100.2", check=False)
echo("53/tcp", at="server")
servers(server)
nets, found = [], []
with contextlib.ExitStack() as stack:
    for number in range(5):
        sb = stack.enter_context(Sandbox(network=Network.bridge(f"n{number}")))
        found += within(sb.addresses()[f"n{number}"], network)
        found.append(ask("", server, 53, "tcp", 5)[:2] == "no")
        found.append(ask(sb, server, 53, "tcp", 5)[:2] == "no")
servers("198.51.100.2")
result = found
"""
    assert lab.run(code, server=server, network=network) == [False] * 15


def test_who_is_beside_the_host_stays_reachable(lab: Lab) -> None:
    """The host is on 10.64.0.0/14 itself: nothing of that is chosen, nor where it has an address."""
    code = """
sh("ip", "address", "add", "10.64.0.1/14", "dev", "to-client")
sh("ip", "-n", "client", "address", "add", "10.65.3.2/14", "dev", "eth0")
sh("ip", "address", "add", "10.68.0.1/32", "dev", "lo")
echo("7400/tcp", at="client")
with Sandbox(network=Network.bridge("x")) as sb:
    result = [sb.addresses()["x"][0], *(ask(at, "10.65.3.2", 7400, "tcp", 5)[:2] for at in (sb, ""))]
"""
    address, inside, host = lab.run(code)
    assert address == "10.68.1.2"
    assert "no" not in (inside, host)


def test_what_is_named_is_taken(lab: Lab) -> None:
    """Though a route leads to more than that, to the same, or to a part; the network's own is the closest."""
    code = """
result = []
for line in ("10.0.0.0/8", "10.50.0.0/24", "10.50.0.128/25", "10.50.0.7/32"):
    with routes(f"route add {line} via 198.51.100.2"):
        result += taken(subnet="10.50.0.0/24")
with routes("route add blackhole 10.50.0.0/16", "-6 route add blackhole fd50::/16"):
    result += taken(subnet="10.50.0.0/24") + taken(subnet="fd50:1::/64")
# A part of the network that the host is on, without an address of its own in it.
result += taken(subnet="198.51.100.128/25")
"""
    found = lab.run(code)
    assert found == ["10.50.0.2"] * 5 + ["fd50:1::2", "198.51.100.130"]


@pytest.mark.parametrize(
    "subnet, own",
    [
        ("198.51.100.0/25", "198.51.100.1"),
        ("198.51.100.0/24", "198.51.100.1"),
        ("192.0.0.0/8", "192.0.2.1"),
        ("2001:db8:2::/64", "2001:db8:2::1"),
    ],
)
def test_what_would_take_the_hosts_own_address_is_refused(lab: Lab, subnet: str, own: str) -> None:
    text = lab.run("result = refused(subnet=subnet)", subnet=subnet)
    assert subnet in text
    assert own in text
    assert "subnet=" in text


def test_where_nothing_is_left_it_says_so(lab: Lab) -> None:
    code = """
for number, net in enumerate(PRIVATE):
    sh("ip", "address", "add", net.replace(".0/", ".1/"), "dev", "to-client")
result = [refused(), taken(subnet="100.64.0.0/24")]
sh("ip", "address", "add", "fd00::1/8", "dev", "to-client", "nodad")
result.append(refused(subnet="100.64.0.0/24", ipv6=True))
"""
    refusal, named, six = lab.run(code)
    assert "no range of addresses is free" in refusal
    assert "subnet=" in refusal
    assert named == ["100.64.0.2"]
    assert "IPv6" in six


def test_the_book_is_not_held_while_what_the_host_has_is_looked_through(lab: Lab) -> None:
    """Thousands of routes, or of connections, keep no other program waiting: at no start, and no end."""
    code = '''
from sandboxlib.engine import ledger, ranges
from sandboxlib.engine.current import program
from sandboxlib.kernel import conntrack
import fcntl
calls = []
def watched(name, function):
    def call(*arguments, **more):
        if name != "look":
            arguments = [list(one) for one in arguments]
        held, lock = False, ledger.folder(program().host.run_dir) + "/lock"
        with contextlib.suppress(FileNotFoundError), open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = True
        if name == "look" or any(arguments):
            calls.append((name, held))
        return function(*arguments, **more)
    return call
look = ranges.Surroundings.look.__func__
ranges.Surroundings.look = classmethod(watched("look", look))
conntrack.forget = watched("forget", conntrack.forget)
conntrack.forget_ports = watched("forget_ports", conntrack.forget_ports)
with Network.bridge("y").open():
    taken(subnet="10.9.0.0/24")
    with Sandbox(network=Network.bridge("z"), ports={"7410/udp": 80}):
        pass
    script = """
from sandboxlib import *
import time
sb = Sandbox(network=Network.bridge("y"), ports={"7411/udp": 80}).open()
print("up", flush=True)
time.sleep(60)
"""
    for then in (taken, lambda: Network.bridge("y").open().close()):
        p = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert p.stdout.readline() == b"up\\n"
        p.kill(); p.wait()
        number = len(calls)
        then()
        assert "forget" in [name for name, _ in calls[number:]]
result = [sorted({name for name, _ in calls}), [name for name, held in calls if held]]
'''
    assert lab.run(code) == [["forget", "forget_ports", "look"], []]
