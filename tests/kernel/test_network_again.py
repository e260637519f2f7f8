"""An address that is given again has nothing of who had it before: no connection, no answer, no port."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from netlab import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.bridge,
    pytest.mark.tool("ip", "unshare", "nsenter", "nft"),
]

STAND = """
import ipaddress, socket, time
from sandboxlib import Network, Sandbox, Security
# The range stays while those with the same addresses come and go.
net = Network.bridge("n", subnet="10.9.0.0/24", ipv6=True)
held = net.open()
six = held.subnet6.rpartition("::")[0] + "::99"
def same(**spec):
    return Sandbox(network=Network.bridge("n", address=["10.9.0.99", six]), **spec)
def known(*addresses):
    lines = Path("/proc/net/nf_conntrack").read_text().splitlines()
    wanted = [*addresses, ipaddress.ip_address(six).exploded]
    return [line for line in lines if any(f"={one} " in line for one in wanted)]
# Sends from a place as what it is told, and prints what it is answered.
SAY = '''
import socket, sys, time
host, port, kind, own, count, text = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
s.bind(("", int(own)))
s.settimeout(1)
for number in range(int(count)):
    try:
        if number == 0:
            s.connect((host, int(port)))
        s.send(text.encode())
        print(s.recv(1000).decode(), flush=True)
    except OSError as error:
        print("no:", type(error).__name__, flush=True)
    time.sleep(0.05)
'''
def say(at, host, port, kind, own, text="x", count=1):
    inside = ["ip", "netns", "exec", at] if at else []
    words = (host, str(port), kind, str(own), str(count), text)
    return sh(*inside, sys.executable, "-c", SAY, *words).splitlines()
"""

# At a neighbour: hears who speaks to it, and speaks to them for as long as its input is open.
GOES_ON = """
import select, socket, sys, threading, time
family = socket.AF_INET6 if sys.argv[1] == "6" else socket.AF_INET
kind = sys.argv[2]
if kind == "udp":
    s = socket.socket(family, socket.SOCK_DGRAM); s.bind(("", 7100))
elif kind == "tcp":
    l = socket.socket(family, socket.SOCK_STREAM); l.bind(("", 7100)); l.listen()
else:
    s = socket.socket(family, socket.SOCK_RAW, int(sys.argv[3]))
print("ready", flush=True)
if kind == "tcp":
    s, peer = l.accept(); s.recv(100)
else:
    data, peer = s.recvfrom(1000)
print("heard", flush=True)
while not select.select([0], [], [], 0.05)[0]:
    try:
        s.send(b"<goes on>") if kind == "tcp" else s.sendto(b"<goes on>", peer)
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.run(STAND)
        lab.run("GOES_ON = text", text=GOES_ON)
        yield lab
        lab.run("held.close()")


@pytest.mark.parametrize("family", ["4", "6"], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("kind", ["udp", "tcp", "other"])
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_who_was_asked_by_the_one_before_does_not_reach_the_next(
    lab: Lab, end: str, kind: str, family: str
) -> None:
    """What it sent, of whatever protocol, is remembered with its address; answers come to the host's own."""
    code = """
# Without ports there is one such connection between two hosts: each test has a protocol of its own.
number = "253" if end == "closed" else "254"
far = "198.51.100.2" if family == "4" else "2001:db8:2::2"
p = subprocess.Popen(["ip", "netns", "exec", "server", sys.executable, "-c", GOES_ON, family, kind, number],
                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert p.stdout.readline() == "ready\\n"
kinds = {"udp": "socket.SOCK_DGRAM, 0", "tcp": "socket.SOCK_STREAM, 0", "other": f"socket.SOCK_RAW, {number}"}
family_name = "AF_INET6" if family == "6" else "AF_INET"
script = f'''
import socket, time
s = socket.socket(socket.{family_name}, {kinds[kind]})
s.bind(("", {0 if kind == "other" else 7099})); s.connect(({far!r}, 7100)); s.send(b"x")
print("said", flush=True); time.sleep(60)
'''
rights = {"security": Security(capabilities=["CAP_NET_RAW"])} if kind == "other" else {}
if end == "closed":
    with same(**rights) as one:
        q = one.popen(["python3", "-c", script], stdout=subprocess.PIPE)
        assert q.stdout.readline() == b"said\\n"
        assert p.stdout.readline() == "heard\\n"
        before = len(known("10.9.0.99"))
else:
    # By a program that is killed; whatever is started next finds what it left.
    program = f'''
import sys, time
from sandboxlib import *
rights = Security(capabilities={["CAP_NET_RAW"] if rights else []!r})
sb = Sandbox(network=Network.bridge("n", address=["10.9.0.99", {six!r}]), security=rights).open()
q = sb.popen(["python3", "-c", {script!r}])
time.sleep(60)
'''
    q = subprocess.Popen([sys.executable, "-c", program])
    assert p.stdout.readline() == "heard\\n"
    before = len(known("10.9.0.99"))
    q.kill(); q.wait()
    with Sandbox(network=net):
        pass
left = known("10.9.0.99")
with same() as two:
    recorder = Recorder(two)
    # Somebody would be there to hear it.
    listens = script.split("s.connect")[0].replace(f"SOCK_RAW, {number}", "SOCK_DGRAM, 0")
    two.popen(["python3", "-c", listens + "time.sleep(60)"])
    time.sleep(0.5)
    frames = [frame.hex() for frame in recorder.frames() if b"<goes on>" in frame]
p.communicate("\\n")
result = [before > 0, left, frames]
"""
    assert lab.run(code, kind=kind, family=family, end=end) == [True, [], []]


@pytest.mark.parametrize("family", ["4", "6"], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_who_spoke_to_a_port_of_the_one_before_does_not_reach_the_next(
    lab: Lab, kind: str, family: str
) -> None:
    """The client goes on, with the connection that it has; the next publishes nothing."""
    code = """
host = "192.0.2.1" if family == "4" else "2001:db8:1::1"
script = SAY.replace("s.settimeout(1)", "s.settimeout(0.05)")
def client():
    command = ["ip", "netns", "exec", "client", sys.executable, "-c", script]
    command += [host, "7200", kind, "7201", "40", "<on>"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
KEEP = '''
import socket, sys
family, kind = (socket.AF_INET6 if sys.argv[1] == "6" else socket.AF_INET), sys.argv[2]
s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.bind(("", 80))
if kind == "tcp":
    s.listen()
    print("ready", flush=True)
    s, _ = s.accept()
else:
    print("ready", flush=True)
while True:
    data, peer = s.recvfrom(100)
    s.send(b"one") if kind == "tcp" else s.sendto(b"one", peer)
'''
with same(ports={f"7200/{kind}": 80}) as one:
    q = one.popen(["python3", "-c", KEEP, family, kind], stdout=subprocess.PIPE)
    assert q.stdout.readline() == b"ready\\n"
    p = client()
    assert p.stdout.readline() == "one\\n"
left = known("10.9.0.99")
with same() as two:
    recorder = Recorder(two)
    two.popen(["python3", "-c", KEEP, family, kind])
    p.communicate()
    frames = [frame.hex() for frame in recorder.frames() if b"<on>" in frame]
result = [left, frames]
"""
    assert lab.run(code, kind=kind, family=family) == [[], []]


def test_a_sender_that_never_pauses_is_led_to_what_is_published_meanwhile(lab: Lab) -> None:
    """It began before the port was published: from beside the host, and on the host itself."""
    code = """
def send(at, host):
    script = '''
import socket, sys, time
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 7211))
s.setblocking(False)
print("ready", flush=True)
while True:
    s.sendto(b"x", (sys.argv[1], 7210))
    try:
        print(s.recvfrom(100)[0].decode().split()[0], flush=True)
    except OSError:
        pass  # nothing yet, or that nobody is there
    time.sleep(0.01)
'''
    inside = ["ip", "netns", "exec", at] if at else []
    return subprocess.Popen([*inside, sys.executable, "-c", script, host], stdout=subprocess.PIPE)
result = []
for at, host in (("client", "192.0.2.1"), ("", "127.0.0.1"), ("", "192.0.2.1"), ("client", "2001:db8:1::1")):
    p = send(at, host)
    assert p.stdout.readline() == b"ready\\n"
    os.set_blocking(p.stdout.fileno(), False)
    time.sleep(0.2)
    found = []
    for name in ("one", "two"):
        with Sandbox(network=net, hostname=name, ports={"7210/udp": 81}) as sb:
            serve(sb, "81/udp")
            said, until = b"", time.monotonic() + 5
            while name.encode() not in said and time.monotonic() < until:
                said += p.stdout.read() or b""
                time.sleep(0.02)
            found.append(name.encode() in said)
        time.sleep(0.1)
    p.kill(); p.communicate()
    result.append(found)
"""
    assert lab.run(code) == [[True, True]] * 4


def test_a_client_with_a_port_of_its_own_meets_the_service_that_is_there_now(lab: Lab) -> None:
    code = """
result = []
places = (("client", "192.0.2.1"), ("", "127.0.0.1"), ("client", "2001:db8:1::1"))
for kind in ("udp", "tcp"):
    for name in ("one", "two", "three"):
        with Sandbox(network=net, hostname=name, ports={f"7220/{kind}": 80}) as sb:
            serve(sb, f"80/{kind}")
            result.append([say(at, host, 7220, kind, 7221)[0].split()[0] for at, host in places])
"""
    assert lab.run(code) == [[name] * 3 for _ in ("udp", "tcp") for name in ("one", "two", "three")]


def test_what_others_do_is_not_forgotten(lab: Lab) -> None:
    """A connection of the host's own, and a sandbox's, to a port elsewhere that is published here."""
    code = """
echo("7230/udp", at="server")
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2); s.connect(("198.51.100.2", 7230))
with Sandbox(network=net, hostname="talks") as talks:
    script = '''
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("198.51.100.2", 7230))
for line in sys.stdin:
    s.send(b"x"); print(s.recv(100).decode(), flush=True)
'''
    q = talks.popen(["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    def spoken():
        s.send(b"x"); s.recv(100)
        q.stdin.write(b"x\\n"); q.stdin.flush()
        return q.stdout.readline().decode().split()[1]
    def entries():
        lines = Path("/proc/net/nf_conntrack").read_text().splitlines()
        told = ("src", "dst", "sport", "dport")
        return sorted(" ".join(word for word in line.split() if word.startswith(told))
                      for line in lines if "dport=7230" in line)
    spoken()
    before = entries()
    with Sandbox(network=net, hostname="publishes", ports={"7230/udp": 80}):
        spoken()
        during = entries()
    after = entries()
result = [len(before), before == during, before == after]
s.close()
"""
    assert lab.run(code) == [2, True, True]


def test_addresses_and_ranges_are_given_again_as_late_as_can_be(lab: Lab) -> None:
    """Also across networks, of a name or another, as long as there is any."""
    code = """
def address(name, **spec):
    with Sandbox(network=Network.bridge(name, **spec)) as sb:
        return sb.addresses()[name][0]
result = [[address("x") for _ in range(3)], [address("y") for _ in range(2)]]
# No network at all meanwhile: a program remembers which ranges it has had.
held.close()
result[1].append(address("x"))
held = net.open()
six = held.subnet6.rpartition("::")[0] + "::99"
# One of a range that is named, made anew each time.
result.append([address("z", subnet="10.55.0.0/28") for _ in range(14)])
"""
    automatic, others, named = lab.run(code)
    ranges = [one.rpartition(".")[0] for one in (*automatic, *others)]
    assert len(set(ranges)) == len(ranges)
    assert named[:13] == [f"10.55.0.{number}" for number in range(2, 15)]
    assert named[13] == "10.55.0.2"


@pytest.mark.parametrize("kind", ["mac", "address"])
def test_a_fixed_address_with_another_mac_is_reached_at_once(lab: Lab, kind: str) -> None:
    """Neighbours and the host know who had it before; they are told."""
    code = """
result = []
with Sandbox(network=net, hostname="asks") as asks:
    for number in range(4):
        mac = {"mac": f"02:00:00:00:0{number}:01"} if number % 2 or kind == "mac" else {}
        network = Network.bridge("n", address=["10.9.0.98", six[:-2] + "98"], **mac)
        with Sandbox(network=network, hostname=f"n{number}", ports={7240: 80}) as sb:
            serve(sb, "80/tcp", "81/udp")
            began = time.monotonic()
            for target in ("10.9.0.98", six[:-2] + "98"):
                for where in (asks, ""):
                    result.append([ask(where, target, port, kind, 0.5).split()[0]
                                   for port, kind in ((81, "udp"), (80, "tcp"))])
"""
    assert lab.run(code, kind=kind) == [[f"n{number}"] * 2 for number in range(4) for _ in range(4)]


@pytest.mark.parametrize("way", ["the kernel looks", "we look"])
def test_only_what_leaves_is_forgotten_in_whatever_zone_it_is(lab: Lab, way: str) -> None:
    """As on kernels before 6.9, and where many leave among many connections: the list is looked through."""
    code = '''
from sandboxlib.kernel import conntrack
limits = conntrack._QUESTIONS, conntrack._QUESTIONS_OF_MANY
if way == "we look":
    conntrack._QUESTIONS = conntrack._QUESTIONS_OF_MANY = 0
Path("/run/zones.nft").write_text("""table inet zones {
    chain output { type filter hook output priority -300; udp dport 7251 ct zone set 5; }
    chain prerouting { type filter hook prerouting priority -300; udp sport 7251 ct zone set 5; }
}""".replace("5; }", "5\\n }"))
sh("nft", "-f", "/run/zones.nft")
places = [(host, port) for host in ("198.51.100.2", "2001:db8:2::2", "192.0.2.2") for port in (7250, 7251)]
def there():
    lines = Path("/proc/net/nf_conntrack").read_text().splitlines()
    wanted = [(f"dst={ipaddress.ip_address(host).exploded} ", f"dport={port} ") for host, port in places]
    return [any(host in line and port in line for line in lines) for host, port in wanted]
s = {family: socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)}
for host, port in places:
    s[socket.AF_INET6 if ":" in host else socket.AF_INET].sendto(b"x", (host, port))
result = [there()]
conntrack.forget(["198.51.100.2", "2001:db8:2::2"])
result.append(there())
conntrack.forget_ports([("192.0.2.2", 7251)], [], ["203.0.113.1"])
result.append(there())
conntrack._QUESTIONS, conntrack._QUESTIONS_OF_MANY = limits
sh("nft", "delete", "table", "inet", "zones")
'''
    assert lab.run(code, way=way) == [[True] * 6, [False] * 4 + [True] * 2, [False] * 4 + [True, False]]
