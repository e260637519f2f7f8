"""Bridges: addresses, names and ports; what is refused, and what is left behind, which is nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel.test_images import rootfs
from netlab import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.bridge,
    pytest.mark.tool("ip", "unshare", "nft"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
USES = """
import contextlib, os, signal, time
from sandboxlib import Network, NetworkError, Sandbox, SpecError, UnsupportedError, KernelError
def left():
    links = {line.split()[0] for line in sh("ip", "-br", "link").splitlines()}
    links -= {"lo"} | {link for link in links if link.startswith("to-")}
    files = sorted(str(path) for path in Path("/run/sandboxlib").rglob("*") if path.name != "ids")
    forward = [Path("/proc/sys/net", name).read_text().strip()
               for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]
    return [sorted(links), files, sh("nft", "list", "tables"), forward]
def refused(act, kind):
    try:
        act()
    except kind as error:
        return str(error)
    raise AssertionError("it was not refused")
def opened(**spec):
    def act():
        with Sandbox(**spec):
            pass
    return act
def sleeper(script, *, start=True):
    p = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "up\\n"
    return p
"""
NOTHING = [[], [], "", ["0", "0"]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.run(USES)
        yield lab


@pytest.fixture(autouse=True)
def _nothing_is_left(lab: Lab) -> Iterator[None]:
    yield
    # Interfaces go a moment after their namespace.
    assert (
        lab.run("for _ in range(100):\n    result = left()\n    if not result[0]: break\n    time.sleep(.02)")
        == NOTHING
    )


@pytest.mark.qemu
def test_what_is_inside(lab: Lab) -> None:
    result = lab.run(
        """
with Sandbox(network=Network.bridge("x", subnet="10.9.8.0/24", ipv6=True), hostname="me") as sb:
    result = [sb.addresses()["x"][0], sb.sh("cat /etc/resolv.conf /etc/hosts; hostname", text=True).stdout]
    result.append(sb.sh("echo x >> /etc/hosts; echo x >> /etc/resolv.conf").returncode)
    result.append(sb.run(["getent", "hosts", "me"], text=True).stdout.split()[0])
"""
    )
    assert result[0] == "10.9.8.2"
    assert result[1].startswith("nameserver 198.51.100.2\nsearch example.org\n127.0.0.1 localhost sandbox\n")
    assert "10.9.8.2 me\n" in result[1]
    assert result[1].endswith("\nme\n")
    assert result[2] != 0
    assert result[3].startswith("fd")


def test_neighbours_find_each_other_also_those_that_come_later(lab: Lab) -> None:
    code = """
net = Network.bridge("n")
def found(sb, *names):
    return [bool(sb.run(["getent", "hosts", name]).stdout) for name in names]
with Sandbox(network=net, hostname="first", domainname="example.net") as first:
    result = [found(first, "first", "first.example.net", "second", "db")]
    with Sandbox(network=net, hostname="second", aliases=["db"]) as second:
        result += [found(first, "second", "db", "third"), found(second, "first", "db", "second")]
        with Sandbox(network=Network.bridge("elsewhere"), hostname="third") as third:
            result += [found(first, "third"), found(third, "first", "third")]
    result.append(found(first, "first", "second", "db"))
    # A gap is used again, and nothing else moves.
    size = first.files.stat("/etc/hosts").st_size
    for _ in range(3):
        with Sandbox(network=net, hostname="again"):
            assert found(first, "again") == [True]
    result.append([first.files.stat("/etc/hosts").st_size - size])
"""
    assert lab.run(code) == [
        [True, True, False, False],
        [True, True, False],
        [True, True, True],
        [False],
        [False, True],
        [True, False, False],
        [0],
    ]


def test_fixed_addresses_and_more(lab: Lab) -> None:
    code = """
net = Network.bridge("f", subnet="10.9.0.0/24", mtu=1400, address="10.9.0.77", mac="02:00:00:00:00:07",
    routes={"10.200.0.0/16": "10.9.0.9"}, dns=["10.9.0.5"], search=["corp.example"],
    hosts={"printer": "10.9.0.6"})
with Sandbox(network=net) as sb:
    pid = str(sb._engine.pid)
    result = [
        sb.addresses()["f"], sh("nsenter", "-t", pid, "-n", "ip", "link", "show", "eth0"),
        sh("nsenter", "-t", pid, "-n", "ip", "route"),
        sb.sh("cat /etc/resolv.conf; grep printer /etc/hosts", text=True).stdout,
        refused(opened(network=Network.bridge("f", address="10.9.0.77")), NetworkError),
        refused(opened(network=Network.bridge("f", address="10.9.1.1")), NetworkError),
        refused(opened(network=Network.bridge("f", address="10.9.0.1")), NetworkError),
        refused(opened(network=Network.bridge("f", address="fd00::1")), NetworkError),
        refused(opened(network=Network.bridge("f", mac="02:00:00:00:00:07")), NetworkError),
    ]
"""
    addresses, link, routes, files, *refusals = lab.run(code)
    assert addresses == ["10.9.0.77"]
    assert "02:00:00:00:00:07" in link
    assert "mtu 1400" in link
    assert "default via 10.9.0.1" in routes
    assert "10.200.0.0/16 via 10.9.0.9" in routes
    assert files == "nameserver 10.9.0.5\nsearch corp.example\n10.9.0.6 printer\n"
    for refusal, word in zip(
        refusals, ["10.9.0.77 is taken", "10.9.1.1", "10.9.0.1", "no IPv6", "MAC address"], strict=True
    ):
        assert word in refusal


def test_several_networks_on_one_sandbox(lab: Lab) -> None:
    code = """
front, back = Network.bridge("front"), Network.bridge("back", internal=True)
with (Sandbox(network=front, hostname="web") as web, Sandbox(network=back, hostname="db") as db,
      Sandbox(network=[front, back], hostname="app") as app):
    echo("7000/tcp", at="server")
    for sb in (web, db, app):
        serve(sb, "80/tcp")
    result = [sorted(app.addresses())]
    for source, target in ((app, "web"), (app, "db"), (web, "app"), (db, "app"), (web, "db")):
        address = {"web": web, "db": db, "app": app}[target].addresses()
        own = next((name for name in address if name in source.addresses()), None)
        named = source.run(["getent", "hosts", target], text=True).stdout.split()
        result.append([bool(named), ask(source, address[own][0], 80, "tcp")[:3] if own else None])
    result.append([ask(sb, "198.51.100.2", 7000, "tcp")[:3] == "no:" for sb in (web, db, app)])
    # One that comes later is found as well, and no longer when it has gone.
    for network in (front, back):
        with Sandbox(network=network, hostname="late"):
            result.append([bool(sb.run(["getent", "hosts", "late"]).stdout) for sb in (web, db, app)])
    result.append(bool(app.run(["grep", "late", "/etc/hosts"]).stdout))
"""
    assert lab.run(code) == [
        ["back", "front"],
        [True, "web"],
        [True, "db "],
        [True, "app"],
        [True, "app"],
        [False, None],
        [False, True, False],
        [True, False, True],
        [False, True, True],
        False,
    ]


def test_a_shared_network_shares_localhost(lab: Lab) -> None:
    code = """
with Sandbox(network=Network.bridge("s"), ports={0: 80}) as one:
    with Sandbox(network=Network.of(one)) as two:
        read = "cat /etc/hosts /etc/resolv.conf"
        assert two.sh(read).stdout == one.sh(read).stdout
        serve(two, "80/tcp")
        result = [ask(one, "127.0.0.1", 80, "tcp")[:3], ask("client", "192.0.2.1", one.port(80), "tcp")[:3]]
"""
    assert lab.run(code) == ["san", "san"]


def test_held_open_alone(lab: Lab) -> None:
    code = """
with Network.bridge("held", subnet="10.8.0.0/24").open() as net:
    result = [net.gateway, net.endpoints, net.interface in sh("ip", "-br", "link")]
    with Sandbox(network=Network.bridge("held"), hostname="me") as sb:
        result += [net.endpoints, sb.addresses()]
    result += [net.endpoints]
"""
    empty: dict[str, str] = {}
    assert lab.run(code) == ["10.8.0.1", empty, True, {"me": "10.8.0.2"}, {"held": ["10.8.0.2"]}, empty]


@pytest.mark.qemu
def test_ports(lab: Lab) -> None:
    code = """
net = Network.bridge("p")
with Sandbox(network=net, ports={0: 80, "0/udp": 81, "7700-7702": "90-92"}) as sb:
    serve(sb, "80/tcp", "81/udp", "90/tcp", "91/tcp", "92/tcp")
    tcp, udp = sb.port(80), sb.port(81, "udp")
    result = [ask("client", "192.0.2.1", tcp, "tcp")[:7], ask("", "127.0.0.1", udp, "udp")[:7]]
    result += [ask("client", "192.0.2.1", 7700 + i, "tcp")[:7] for i in range(4)]
    result += [sb.port(91), refused(lambda: sb.port(99), SpecError)]
"""
    *answers, port, refusal = lab.run(code)
    assert answers == ["sandbox"] * 5 + ["no: Con"]
    assert port == 7701
    assert "80/tcp" in refusal


def test_a_port_that_is_taken_is_named(lab: Lab) -> None:
    code = """
import socket
net = Network.bridge("p")
mine = socket.socket(); mine.bind(("127.0.0.1", 7788)); mine.listen()
result = [refused(opened(network=net, ports={7788: 80}), NetworkError)]
mine.close()
with Sandbox(network=net, ports={7788: 80, "7789/udp": 80}):
    result.append(refused(opened(network=net, ports={"192.0.2.1:7788": 80}), NetworkError))
    other = socket.socket(); other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    result.append(refused(lambda: other.bind(("0.0.0.0", 7788)), OSError))
    result.append(ask("", "127.0.0.1", 7789, "tcp"))
result.append(refused(opened(network=net, ports={"203.0.113.7:80": 80}), NetworkError))
other.bind(("0.0.0.0", 7788)); other.close()
"""
    result = lab.run(code)
    assert "port 7788/tcp" in result[0]
    assert "port 192.0.2.1:7788/tcp" in result[1]
    assert "in use" in result[2]
    assert "refused" in result[3]
    assert "not an address of this host" in result[4]


@pytest.mark.parametrize(
    "first, second, words",
    [
        (
            {"name": "x", "subnet": "10.5.0.0/24"},
            {"name": "y", "subnet": "10.5.0.128/25"},
            ["10.5.0.0/24", "'x'"],
        ),
        ({"name": "x"}, {"name": "y", "subnet": "198.51.100.0/25"}, ["198.51.100.0/24", "to-server"]),
        (
            {"name": "x", "subnet": "10.5.0.0/24"},
            {"name": "x", "subnet": "10.6.0.0/24"},
            ["subnet", "10.5.0.0/24"],
        ),
        ({"name": "x"}, {"name": "x", "internal": True}, ["internal"]),
        ({"name": "x"}, {"name": "x", "ipv6": True}, ["ipv6"]),
        ({"name": "x", "subnet": "10.5.0.0/30"}, {"name": "x"}, ["no free address", "10.5.0.0/30"]),
    ],
)
def test_what_contradicts_is_refused(
    lab: Lab, first: dict[str, object], second: dict[str, object], words: list[str]
) -> None:
    code = """
with Sandbox(network=Network.bridge(**first)):
    before = left()
    result = [refused(opened(network=Network.bridge(**second)), NetworkError), before == left()]
"""
    text, same = lab.run(code, first=first, second=second)
    assert [word for word in words if word not in text] == []
    assert same


def test_a_name_in_use_is_refused_on_one_network_only(lab: Lab) -> None:
    code = """
with Sandbox(network=Network.bridge("x"), hostname="db"):
    result = refused(opened(network=Network.bridge("x"), hostname="other", aliases=["DB"]), NetworkError)
    opened(network=Network.bridge("y"), hostname="db")()
"""
    assert "'DB' is taken on network 'x'" in lab.run(code)


@pytest.mark.parametrize(
    "script",
    [
        "Sandbox().open().close()",
        "Sandbox(network=Network.bridge('k'), hostname='gone', ports={7799: 80}).open().close()",
        "Network.bridge('other').open().close()",
    ],
)
def test_what_a_killed_program_left_is_found_and_removed(lab: Lab, script: str) -> None:
    code = '''
p = sleeper("""
from sandboxlib import *
import time
sb = Sandbox(network=Network.bridge("k", ipv6=True), hostname="gone", ports={7799: 80}).open()
print("up", flush=True)
time.sleep(60)
""")
p.kill(); p.wait()
result = [left() != [[], [], "", ["0", "0"]]]
# Any sandbox of the next program will do.
script = "from sandboxlib import *; " + script
sh(sys.executable, "-c", script)
result.append(left())
'''
    assert lab.run(code, script=script) == [True, NOTHING]


def test_two_programs_share_a_network(lab: Lab) -> None:
    code = '''
p = sleeper("""
from sandboxlib import *
import sys
with Sandbox(network=Network.bridge("t"), hostname="theirs") as sb:
    print("up", flush=True)
    sys.stdin.readline()
""".replace("sys.stdin.readline()", "import time; time.sleep(3)"))
with Sandbox(network=Network.bridge("t"), hostname="mine") as sb:
    result = [bool(sb.run(["getent", "hosts", "theirs"]).stdout)]
    p.wait()
    result.append(bool(sb.run(["getent", "hosts", "theirs"]).stdout))
'''
    assert lab.run(code) == [True, False]


def test_the_rules_come_back_where_others_flushed_them(lab: Lab) -> None:
    code = """
a, b = Network.bridge("a"), Network.bridge("b")
with Sandbox(network=a, ports={7711: 80}) as one:
    serve(one, "80/tcp")
    sh("nft", "flush", "ruleset")
    with Sandbox(network=b) as two:
        result = [ask("client", "192.0.2.1", 7711, "tcp")[:7]]
        result.append(ask(two, one.addresses()["a"][0], 80, "tcp")[:3])
        sh("nft", "flush", "ruleset")
"""
    assert lab.run(code) == ["sandbox", "no:"]


def test_a_bridge_that_vanishes_is_made_again(lab: Lab) -> None:
    code = """
a = Network.bridge("a")
with Sandbox(network=a, hostname="one") as one:
    serve(one, "80/tcp")
    names = [line.split()[0] for line in sh("ip", "-br", "link").splitlines()]
    sh("ip", "link", "delete", next(name for name in names if name.startswith("sbx-")))
    with Sandbox(network=a) as two:
        result = [ask(two, one.addresses()["a"][0], 80, "tcp")[:3]]
"""
    assert lab.run(code) == ["one"]


def test_tables_of_others_stay_as_they_are(lab: Lab) -> None:
    code = '''
Path("/run/other.nft").write_text("""
table inet filter {
  chain input { type filter hook input priority filter; policy accept; tcp dport 22 accept; }
  chain forward { type filter hook forward priority filter; policy accept; }
}
table ip nat {
  chain PREROUTING { type nat hook prerouting priority dstnat; tcp dport 7000 dnat to 198.51.100.2; }
  chain POSTROUTING { type nat hook postrouting priority srcnat; oifname "to-server" masquerade; }
}
""")
sh("nft", "-f", "/run/other.nft")
before = sh("nft", "list", "ruleset")
with Sandbox(network=Network.bridge("a"), ports={7712: 80}) as sb:
    serve(sb, "80/tcp")
    result = [ask("client", "192.0.2.1", 7712, "tcp")[:7], ask(sb, "198.51.100.2", 7000, "tcp")[:6]]
result.append(sh("nft", "list", "ruleset") == before)
sh("nft", "flush", "ruleset")
'''
    echoed = lab.run('echo("7000/tcp", at="server"); result = 0\n' + code)
    assert echoed[0] == "sandbox"
    assert not echoed[1].startswith("no:")
    assert echoed[2] is True


def test_the_host_becomes_no_router_for_others(lab: Lab) -> None:
    code = """
echo("7005/tcp", at="server")
sh("ip", "-n", "server", "route", "replace", "192.0.2.0/24", "via", "198.51.100.1")
result = [ask("client", "198.51.100.2", 7005, "tcp")]
with Sandbox(network=Network.bridge("a")) as sb:
    result += [ask("client", "198.51.100.2", 7005, "tcp"), ask(sb, "198.51.100.2", 7005, "tcp")]
"""
    before, between, inside = lab.run(code)
    assert before.startswith("no:")
    assert between.startswith("no:")
    assert not inside.startswith("no:")


def test_forwarding_that_was_on_stays_on(lab: Lab) -> None:
    code = """
Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
with Sandbox(network=Network.bridge("a")):
    result = [ask("client", "198.51.100.2", 7005, "tcp")[:3]]
result.append(Path("/proc/sys/net/ipv4/ip_forward").read_text())
Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
"""
    lab.run('echo("7005/tcp", at="server")')
    through, after = lab.run(code)
    assert through != "no:"
    assert after == "1\n"


def test_metadata_services_are_closed(lab: Lab) -> None:
    code = """
sh("ip", "-n", "server", "address", "add", "169.254.169.254/32", "dev", "eth0")
sh("ip", "route", "add", "169.254.169.254", "via", "198.51.100.2")
echo("7006/tcp", at="server")
with Sandbox(network=Network.bridge("a")) as sb:
    result = [ask("", "169.254.169.254", 7006, "tcp")[:3], ask(sb, "169.254.169.254", 7006, "tcp")[:3]]
sh("ip", "route", "del", "169.254.169.254")
"""
    host, inside = lab.run(code)
    assert host != "no:"
    assert inside == "no:"


def test_abstract_sockets_of_others_are_not_there(lab: Lab) -> None:
    code = """
import socket
mine = socket.socket(socket.AF_UNIX); mine.bind("\\0sbx-test"); mine.listen()
with Sandbox(network=Network.bridge("a")) as one, Sandbox(network=Network.bridge("a")) as two:
    look = ["python3", "-c", "import socket; socket.socket(socket.AF_UNIX).connect('\\\\0sbx-test')"]
    result = [subprocess.run(look).returncode, one.run(look).returncode, two.run(look).returncode]
mine.close()
"""
    assert lab.run(code) == [0, 1, 1]


def test_rate_holds_both_ways(lab: Lab) -> None:
    code = """
TAKE = '''
import socket, time, threading
l = socket.socket(); l.bind(("0.0.0.0", 99)); l.listen(); print("ready", flush=True)
while True:
    c, _ = l.accept()
    began = time.time(); n = 0
    while data := c.recv(65536): n += len(data)
    print(n / (time.time() - began), flush=True)
'''
PUSH = "import socket, sys; s = socket.create_connection((sys.argv[1], 99)); s.sendall(bytes(1500000))"
with Sandbox(network=Network.bridge("r", rate="1M")) as slow, Sandbox(network=Network.bridge("r")) as fast:
    result = []
    for source, target in ((slow, fast), (fast, slow)):
        p = target.popen(["python3", "-c", TAKE], stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        source.run(["python3", "-c", PUSH, target.addresses()["r"][0]], check=True)
        result.append(float(p.stdout.readline()))
        p.kill()
    result.append(slow.stats().network["eth0"].sent)
"""
    *rates, sent = lab.run(code)
    assert all(0.5e6 < rate < 1.4e6 for rate in rates), rates
    assert sent > 1_500_000


@pytest.mark.parametrize("spec, word", [({"network": "user"}, "without root's rights")])
def test_what_this_host_cannot_do(lab: Lab, spec: dict[str, object], word: str) -> None:
    assert word in lab.run("result = refused(opened(**spec), UnsupportedError)", spec=spec)


def test_many_on_one_bridge(lab: Lab) -> None:
    """Two hundred start, each talks to the next by its name, and all go without a trace."""
    code = """
SAY = "import socket, sys; s = socket.create_connection((sys.argv[1], 99), 30); print(s.recv(9).decode())"
ANSWER = "import socket; l = socket.create_server(('', 99)); print('up', flush=True); "
ANSWER += "l.accept()[0].send(b'hello')"
net = Network.bridge("many")
with contextlib.ExitStack() as stack:
    held = [stack.enter_context(Sandbox(network=net, hostname=f"s{n}", pids=20)) for n in range(count)]
    assert len({sb.addresses()["many"] for sb in held}) == count
    found = 0
    for first in range(0, count, 20):
        some = range(first, min(first + 20, count))
        servers = [held[n].popen(["python3", "-SEc", ANSWER], stdout=subprocess.PIPE) for n in some]
        for n, process in zip(some, servers):
            held[n].wait_for(output=(process, b"up"), timeout=30)
        clients = [held[n - 1].popen(["python3", "-SEc", SAY, f"s{n}"], stdout=subprocess.PIPE) for n in some]
        found += sum(process.stdout.read() == b"hello\\n" for process in clients)
        for process in (*clients, *servers):
            process.wait()
    result = found
"""
    assert lab.run(code, count=200) == 200


def test_tasks_of_one_program_share_a_network(lab: Lab) -> None:
    code = """
import trio
from sandboxlib import AsyncSandbox
async def main():
    addresses = []
    async def one(number):
        async with AsyncSandbox(network=Network.bridge("t"), hostname=f"s{number}", ports={0: 80}) as sb:
            addresses.append((await sb.addresses())["t"][0])
            done = await sb.run(["getent", "hosts", f"s{number}"])
            assert done.stdout.split()[0].decode() == (await sb.addresses())["t"][0]
            assert await sb.port(80) > 0
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
    # One that is cancelled leaves nothing either.
    with trio.move_on_after(0.004):
        async with AsyncSandbox(network=Network.bridge("t")) as sb:
            await trio.sleep_forever()
    return len(addresses)
result = trio.run(main)
"""
    assert lab.run(code) == 20


def test_rules_need_no_library_and_no_program_of_the_hosts(lab: Lab) -> None:
    """As a program with thousands of descriptors, which libnftables does not bear: it waits in select(2)."""
    code = '''
script = """
import os, resource
from sandboxlib import *
resource.setrlimit(resource.RLIMIT_NOFILE, (5000, 5000))
many = [os.open("/dev/null", os.O_RDONLY) for _ in range(3000)]
with Sandbox(network=Network.bridge("a", ipv6=True), ports={7713: 80}) as sb:
    print(sb.run(["true"]).returncode)
    with Network.bridge("b", internal=True).open():
        print("nftables" in open("/proc/self/maps").read())
for fd in many:
    os.close(fd)
"""
hide = "for path in /usr/sbin/nft $(ls /usr/lib/*/libnftables.so.1*); do mount --bind /dev/null $path; done; "
hide += "exec \\"$@\\""
result = sh("unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-c", script).split()
'''
    assert lab.run(code) == ["0", "False"]


def test_what_is_not_on_the_wire(lab: Lab) -> None:
    """Nothing of an internal network, and no address of a sandbox, gets out."""
    code = """
def captured(act):
    command = ["ip", "netns", "exec", "server", "tcpdump", "-nn", "-l", "-i", "eth0", "ip or ip6"]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "listening" in p.stderr.readline() + p.stderr.readline()
    act()
    time.sleep(0.3)
    p.terminate()
    return p.communicate()[0]
def talk(sb):
    for address in ("198.51.100.2", "2001:db8:2::2"):
        for kind in ("tcp", "udp", "icmp"):
            ask(sb, address, 7000, kind, 0.2)
raw = Security(capabilities=["CAP_NET_RAW", "CAP_NET_ADMIN"])
net = Network.bridge("w", subnet="10.9.0.0/24", ipv6=True)
with Sandbox(network=Network.bridge("i", subnet="10.8.0.0/24", ipv6=True, internal=True), security=raw) as sb:
    # Also if it makes itself a way.
    sb.sh("ip route add default via 10.8.0.1 && ip -6 route add default dev eth0", check=True)
    shut = captured(lambda: talk(sb))
with Sandbox(network=net, security=raw) as sb:
    out = captured(lambda: talk(sb))
    line = "ip address add 203.0.113.9/24 dev eth0 && ip route replace default via 10.9.0.1 src 203.0.113.9"
    sb.sh(line, check=True)
    spoofed = captured(lambda: talk(sb))
    own = sb.addresses()["w"]
result = [shut, out, spoofed, own]
"""
    shut, out, spoofed, own = lab.run("from sandboxlib import Security\n" + code)
    assert "7000" not in shut
    assert "ICMP echo" not in shut
    assert "198.51.100.1." in out
    assert "ICMP echo" in out
    assert "ICMP6, echo" in out
    assert [address for address in own if address in out + shut + spoofed] == []
    assert "203.0.113.9" not in spoofed


def test_a_udp_client_finds_the_one_that_comes_after(lab: Lab) -> None:
    code = """
import socket
net = Network.bridge("u")
with net.open():
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(2)
    client.connect(("127.0.0.1", 7720))
    result = []
    for name in ("one", "two"):
        with Sandbox(network=net, hostname=name, ports={"7720/udp": 81}) as sb:
            serve(sb, "81/udp")
            client.send(b"x")
            result.append(client.recv(100).split()[0].decode())
    client.close()
"""
    assert lab.run(code) == ["one", "two"]


def test_killed_at_any_moment_nothing_stays_for_long(lab: Lab) -> None:
    code = '''
import random
script = """
from sandboxlib import *
print("up", flush=True)
number = 0
while True:
    number += 1
    networks = [Network.bridge("k", ipv6=True, rate="10M"), Network.bridge(f"l{number % 2}")]
    with Sandbox(network=networks, hostname="me", ports={7733: 80, "7733/udp": 80}):
        pass
"""
for round in range(count):
    p = sleeper(script)
    time.sleep(random.uniform(0, 0.25))
    p.kill()
    p.wait()
sh(sys.executable, "-c", "from sandboxlib import *; Sandbox(network='bridge').open().close()")
'''
    lab.run(code, count=12)


def test_two_programs_come_and_go_at_once(lab: Lab) -> None:
    code = '''
script = """
import sys
from sandboxlib import *
print("up", flush=True)
for number in range(15):
    with Sandbox(network=Network.bridge("c"), hostname=sys.argv[1], ports={0: 80}) as sb:
        assert sb.run(["getent", "hosts", sys.argv[1]]).stdout
"""
programs = [subprocess.Popen([sys.executable, "-c", script, name], stderr=subprocess.PIPE, text=True)
            for name in ("one", "two", "three")]
result = [[program.communicate()[1], program.returncode] for program in programs]
'''
    assert lab.run(code) == [["", 0]] * 3


def test_each_kind_of_root_has_the_files(lab: Lab) -> None:
    code = """
import shutil
from sandboxlib import Rootfs
root = Path("/run/tree")
for name in ("bin", "proc", "dev", "etc", "work", "tmp"):
    (root / name).mkdir(parents=True, exist_ok=True)
shutil.copy("/bin/busybox", root / "bin/busybox")
for name in ("sh", "cat"):
    (root / "bin" / name).symlink_to("busybox")
outside = Path("/run/outside")
outside.write_text("mine")
result = []
# The link would lead out of the root, were it not followed inside.
for etc in ([], [("hosts", "")], [("hosts", None)]):
    for path in (root / "etc").iterdir():
        path.unlink()
    for name, text in etc:
        (root / "etc" / name).symlink_to(outside) if text is None else (root / "etc" / name).write_text(text)
    for rootfs in (Rootfs.overlay(lower=[root]), Rootfs.directory(root, readonly=bool(etc))):
        with Sandbox(network="bridge", rootfs=rootfs, hostname="me") as sb:
            done = sb.sh("cat /etc/hosts; echo x >> /etc/hosts", text=True)
            result.append([" me" in done.stdout, done.returncode != 0])
result.append(outside.read_text())
shutil.rmtree(root)
"""
    *found, outside = lab.run(code)
    assert outside == "mine"
    # A link to nowhere in a read-only root has no place for them.
    assert found[:4] == [[True, True]] * 4


def test_what_fails_inside_is_told_and_not_what_follows_from_it(lab: Lab) -> None:
    code = """
from sandboxlib import Rootfs
Path("/run/empty").mkdir()
start = opened(network="bridge", ports={7740: 80}, rootfs=Rootfs.directory("/run/empty"))
result = refused(start, KernelError)
Path("/run/empty").rmdir()
"""
    assert "its own processes" in lab.run(code)


def test_a_network_of_ipv6_alone_and_other_gateways(lab: Lab) -> None:
    code = """
echo("7050/tcp", at="server")
result = []
with Sandbox(network=Network.bridge("six", subnet="fd00:5b::/64", gateway="fd00:5b::ff"), hostname="me",
             ports={7051: 80}) as sb:
    serve(sb, "80/tcp")
    result += [sb.addresses()["six"], ask(sb, "2001:db8:2::2", 7050, "tcp")[:3]]
    result += [ask("", "::1", 7051, "tcp")[:2], ask("client", "2001:db8:1::1", 7051, "tcp")[:2]]
    result += [ask(sb, "fd00:5b::ff", 0, "icmp"), ask(sb, "198.51.100.2", 7050, "tcp")[:3]]
    result.append(refused(opened(network=Network.bridge("six"), ports={"127.0.0.1:7052": 80}), NetworkError))
with Sandbox(network=Network.bridge("four", subnet="10.9.0.0/24", gateway="10.9.0.254")) as sb:
    result += [sb.addresses()["four"], ask(sb, "198.51.100.2", 7050, "tcp")[:3]]
    result += [refused(opened(network=Network.bridge("four"), ports={"[::1]:7052": 80}), NetworkError)]
"""
    (own,), out, inside, published, gateway, four, refusal, other, way, last = lab.run(code)
    assert own == "fd00:5b::1"
    assert "no:" not in (out, way)
    assert (inside, published, gateway, four) == ("me", "me", "pong", "no:")
    assert "IPv4" in refusal
    assert other == ["10.9.0.1"]
    assert "IPv6" in last


def test_an_internal_network_asks_for_no_forwarding(lab: Lab) -> None:
    code = """
with Sandbox(network=Network.bridge("i", internal=True, ipv6=True)) as sb:
    result = [left()[3], sb.sh("cat /etc/resolv.conf", text=True).stdout]
"""
    forwarding, resolver = lab.run(code)
    assert forwarding == ["0", "0"]
    assert "nameserver" not in resolver


def test_a_firewall_of_others_that_drops_is_told_by_the_doctor(lab: Lab) -> None:
    code = """
from sandboxlib.doctor import others
result = [[str(finding) for finding in others()]]
sh("nft", "add table ip filter")
sh("nft", "add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }")
result.append([str(finding) for finding in others()])
with Sandbox(network="bridge") as sb:
    result.append(ask(sb, "198.51.100.2", 0, "icmp")[:3])
    # As it says.
    sh("nft", "add", "rule", "ip", "filter", "FORWARD", "iifname sbx-* accept")
    sh("nft", "add", "rule", "ip", "filter", "FORWARD", "oifname sbx-* accept")
    result.append(ask(sb, "198.51.100.2", 0, "icmp"))
sh("nft", "flush", "ruleset")
"""
    none, (told,), before, after = lab.run(code)
    assert none == []
    assert "ip filter FORWARD" in told
    assert "sbx-*" in told
    assert (before, after) == ("no:", "pong")


def test_the_example(lab: Lab) -> None:
    said = lab.run("result = sh(sys.executable, path)", path=str(EXAMPLES / "services.py")).splitlines()
    assert said[0] == "the store says forty-two"
    assert "front" in said[1]
    assert "back" in said[1]
    assert said[2:] == ["the guest reaches web: 200", "the guest reaches the store: False"]


def test_router_advertisements_are_heeded_as_before(lab: Lab) -> None:
    code = """
heeds = Path("/proc/sys/net/ipv6/conf/to-server/accept_ra")
result = [heeds.read_text()]
with Sandbox(network=Network.bridge("a", ipv6=True)):
    result.append(heeds.read_text())
result.append(heeds.read_text())
"""
    assert lab.run(code) == ["1\n", "2\n", "1\n"]


def test_interfaces_that_vanish_and_rules_that_are_gone_do_not_keep_it_from_ending(lab: Lab) -> None:
    code = """
with Sandbox(network=Network.bridge("a", rate="10M"), ports={7741: 80}) as sb:
    for line in sh("ip", "-br", "link").splitlines():
        if line.startswith("sbx"):
            sh("ip", "link", "delete", line.split("@")[0].split()[0], check=False)
    sh("nft", "flush", "ruleset")
    result = ask(sb, "198.51.100.2", 7005, "tcp")[:3]
"""
    assert lab.run(code) == "no:"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"networks": [[1]], "members": {}, "forwarding": {}}'])
def test_a_book_that_is_none_is_told(lab: Lab, text: str) -> None:
    code = """
with Sandbox(network=Network.bridge("a")):
    book = next(Path("/run/sandboxlib").glob("networks-*")) / "book"
    before = book.read_text()
    book.write_text(text)
    result = refused(opened(network=Network.bridge("b")), NetworkError)
    book.write_text(before)
"""
    assert "cannot be read" in lab.run(code, text=text)


def test_a_port_of_the_hosts_loopback_is_not_had_by_who_sends_to_127(lab: Lab) -> None:
    """A host beside this one can put any address into a packet, and the kernel looks at it late."""
    code = """
inside = ("ip", "netns", "exec", "client")
lines = sh("ip", "-n", "client", "route", "show", "table", "local", "dev", "lo").splitlines()
with Sandbox(network=Network.bridge("a"), ports={"127.0.0.1:7060": 80, 7061: 80}) as sb:
    serve(sb, "80/tcp")
    before = sb.stats().network["eth0"].packets_received
    for line in lines:
        if "127." in line:
            sh("ip", "-n", "client", "route", "del", "table", "local", *line.split()[:2], "dev", "lo")
    sh(*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet")
    sh("ip", "-n", "client", "route", "add", "127.0.0.0/8", "via", "192.0.2.1", "src", "192.0.2.2")
    for port in (7060, 7061):
        ask("client", "127.0.0.1", port, "tcp", 0.3)
    result = [sb.stats().network["eth0"].packets_received - before]
    sh("ip", "-n", "client", "route", "del", "127.0.0.0/8")
    sh("ip", "-n", "client", "route", "add", "table", "local", "local", "127.0.0.0/8", "dev", "lo")
    result += [ask("", "127.0.0.1", 7060, "tcp")[:2], ask("client", "192.0.2.1", 7061, "tcp")[:2]]
"""
    assert lab.run(code) == [0, "sa", "sa"]


def test_where_forwarding_cannot_be_switched_on_it_says_so(lab: Lab) -> None:
    code = '''
script = """
from sandboxlib import *
try:
    Sandbox(network="bridge").open()
except UnsupportedError as error:
    print(error)
with Network.bridge("i", internal=True).open() as net:
    print(net.gateway)
"""
readonly = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec \\"$@\\""
result = sh("unshare", "--mount", "sh", "-c", readonly, "sh", sys.executable, "-c", script).splitlines()
'''
    refusal, gateway = lab.run(code)
    assert "ip_forward" in refusal
    assert "internal=True" in refusal
    assert gateway.startswith("10.64.")


@pytest.mark.overlay
@pytest.mark.tool("busybox")
def test_an_image_has_the_files_of_its_network_and_is_not_changed_by_them(lab: Lab, tmp_path: Path) -> None:
    archive = rootfs(tmp_path / "rootfs.tar")
    result = lab.run(
        f"""
os.environ["SANDBOXLIB_STATE_DIR"] = {str(tmp_path / "state")!r}
from sandboxlib import Image
image = Image.from_rootfs({str(archive)!r}, name="base", config={{"Env": ["PATH=/bin"]}})
with Sandbox(image=image, network=Network.bridge("x", subnet="10.9.8.0/24"), hostname="me") as sb:
    result = [sb.sh("cat /etc/resolv.conf /etc/hosts", text=True).stdout, len(sb.changes())]
    result.append(len(sb.commit("made").layers))
with Sandbox(image="made") as sb:
    result.append(sb.sh("cat /etc/resolv.conf", text=True).stdout)
"""
    )
    assert result[0].startswith("nameserver 198.51.100.2\n")
    assert "10.9.8.2 me\n" in result[0]
    assert result[1:] == [0, 2, "# no name servers\n"]
