"""
Nobody speaks as somebody else: not by another address, MAC address, network or family, with whatever rights.

What is inside tries, and frames are recorded where they would arrive: at neighbours, at a sandbox of another
network, on the host and beyond. Each attempt has a mark of its own in its bytes, and so has what is honest,
which has to arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netlab import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.bridge,
    pytest.mark.tool("ip", "unshare", "nsenter"),
]

STAND = """
from contextlib import ExitStack
from sandboxlib import Network, Sandbox, Security
stack = ExitStack()
echo("7001/udp", at="server")
a = Network.bridge("a", ipv6=True)
def start(name, network, *capabilities):
    spec = {"security": Security(capabilities=capabilities)} if capabilities else {}
    sandbox = stack.enter_context(Sandbox(network=network, hostname=name, **spec))
    serve(sandbox, "81/udp", "80/tcp")
    return sandbox
neighbour, second = start("neighbour", a), start("second", a)
other = start("other", Network.bridge("b", ipv6=True))
inner = start("inner", Network.bridge("i", ipv6=True, internal=True))
everybody = {"neighbour": neighbour, "second": second, "other": other, "inner": inner}
def at(sandbox, *command):
    return sh("nsenter", "-t", str(sandbox._engine.pid), "-n", *command)
def mac(sandbox):
    return at(sandbox, "ip", "-o", "link", "show", "eth0").split("link/ether ")[1].split()[0]
def facts(evil):
    found = {}
    for name, sandbox in {"evil": evil, **everybody}.items():
        (found[name + "4"], found[name + "6"]), = sandbox.addresses().values()
        found[name + "_mac"] = mac(sandbox)
    found["gateway4"] = found["evil4"].rpartition(".")[0] + ".1"
    found["gateway6"] = found["evil6"].rpartition(":")[0] + ":1"
    for target in ("gateway4", "gateway6", "neighbour4"):
        ask(evil, found[target], 0, "icmp", 5)
    table = at(evil, "ip", "neighbour", "show", found["gateway4"])
    found["gateway_mac"] = table.split("lladdr ")[1].split()[0]
    return found
def attempt(evil, script, **values):
    code = ATTEMPT + "\\nfacts = " + repr(facts(evil)) + "\\nvalues = " + repr(values) + "\\n" + script
    places = {**everybody, "server": "server", "client": "client"}
    recorders = {name: Recorder(where) for name, where in places.items()}
    host = [line.split("@")[0].split()[0] for line in sh("ip", "-br", "link").splitlines()]
    bridges = {name: Recorder("", name) for name in host if name.startswith("sbx-")}
    done = evil.run(["python3", "-SEc", code], timeout=60)
    time.sleep(0.1)
    frames = {name: [frame.hex() for frame in one.frames()] for name, one in (recorders | bridges).items()}
    return [done.returncode, done.stderr.decode()[-2000:], done.stdout.decode().split(), frames, facts(evil)]
"""

# What runs inside: ways to send, each of which may be refused there already.
ATTEMPT = (Path(__file__).parents[1] / "spoofing.py").read_text()

RIGHTS: dict[str, tuple[str, ...]] = {
    "no rights": (),
    "raw": ("CAP_NET_RAW",),
    "admin": ("CAP_NET_ADMIN",),
    "raw and admin": ("CAP_NET_RAW", "CAP_NET_ADMIN"),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.run("import time\n" + STAND, ATTEMPT=ATTEMPT)
        for number, rights in enumerate(RIGHTS.values()):
            lab.run(f'evil{number} = start("evil{number}", a, *rights)', rights=rights)
        yield lab
        assert lab.run("stack.close(); result = sh('nft', 'list', 'ruleset')") == ""


class Tried:
    """What was sent, and where it was seen."""

    def __init__(self, answer: list[Any]) -> None:
        code, errors, self.sent, frames, self.facts = answer
        assert code == 0, errors
        self.frames = {name: [bytes.fromhex(text) for text in found] for name, found in frames.items()}

    def seen(self, name: str) -> list[str]:
        """Where an attempt's mark was recorded."""
        mark = b"<%s>" % name.encode()
        return [where for where, frames in self.frames.items() if any(mark in frame for frame in frames)]

    def arrived(self) -> dict[str, list[str]]:
        """All attempts that arrived somewhere, but the honest ones."""
        found = {name: self.seen(name) for name in self.sent if not name.startswith("honest")}
        return {name: where for name, where in found.items() if where}


def attempt(lab: Lab, rights: str, script: str, **values: object) -> Tried:
    number = list(RIGHTS).index(rights)
    return Tried(lab.run(f"result = attempt(evil{number}, script, **values)", script=script, values=values))


FAMILIES = pytest.mark.parametrize("family", ["4", "6"], ids=["ipv4", "ipv6"])
EVERY_RIGHT = pytest.mark.parametrize("rights", RIGHTS)

SOURCES = """
six = values["family"] == "6"
own = facts["evil" + values["family"]]
targets = {name: facts[name + values["family"]] for name in ("neighbour", "other", "inner")}
targets["server"] = "198.51.100.2" if not six else "2001:db8:2::2"
targets["gateway"] = facts["gateway" + values["family"]]
targets["host"] = "192.0.2.1" if not six else "2001:db8:1::1"
names = ("neighbour", "second", "other", "inner", "gateway")
sources = {name: facts[name + values["family"]] for name in names}
sources["outside"] = "192.0.2.2" if not six else "2001:db8:1::2"
sources["host"] = targets["host"]
sources["nobody"] = own.rpartition(":")[0] + ":99" if six else own.rpartition(".")[0] + ".99"
sources["loopback"] = "::1" if six else "127.0.0.1"
sources["all"] = "ff02::1" if six else "255.255.255.255"
sources["unnamed"] = "::" if six else "0.0.0.0"
if six:
    sources["mapped"] = "::ffff:192.0.2.2"
"""


@FAMILIES
@EVERY_RIGHT
def test_sockets_speak_by_their_own_address_alone(lab: Lab, rights: str, family: str) -> None:
    script = (
        SOURCES
        + """
told("honest", freely(own, targets["neighbour"]))
for source, address in sources.items():
    for target, to in targets.items():
        # Of a socket these mean that the kernel chooses, which chooses its own.
        if source in (target, "unnamed", "all"):
            continue
        told(f"free:{source}:{target}", freely(address, to))
        told(f"transparent:{source}:{target}", freely(address, to, "transparent"))
        told(f"control:{source}:{target}", by_control(address, to))
        told(f"raw:{source}:{target}", by_raw_socket(address, to))
"""
    )
    tried = attempt(lab, rights, script, family=family)
    assert tried.seen("honest") == ["neighbour"]
    assert tried.arrived() == {}
    # By no right at all it is tried: bound where nothing is, and sent from there.
    assert family == "4" or any(name.startswith("free:outside:") for name in tried.sent)


@FAMILIES
@pytest.mark.parametrize("rights", ["raw", "raw and admin"])
def test_frames_have_their_own_addresses_alone(lab: Lab, rights: str, family: str) -> None:
    script = (
        SOURCES
        + """
gateway, mine = facts["gateway_mac"], facts["evil_mac"]
told("honest", framed(own, targets["neighbour"], mine, facts["neighbour_mac"]))
told("honest-out", framed(own, targets["server"], mine, gateway))
beside, every = facts["neighbour_mac"], "ff:ff:ff:ff:ff:ff"
macs = {"own": mine, "neighbour": beside, "gateway": gateway, "nobody": "02:00:00:00:be:ef"}
macs["group"] = "33:33:00:00:00:01"
to = {"neighbour": beside, "gateway": gateway, "all": every, "other": facts["other_mac"]}
for source, address in {**sources, "own": own}.items():
    for name, mac in macs.items():
        if (source, name) == ("own", "own"):
            continue
        for over, at in to.items():
            told(f"{source}:{name}:{over}", framed(address, targets["neighbour"], mac, at))
            told(f"{source}:{name}:{over}:out", framed(address, targets["server"], mac, at))
# Of a VLAN, and of two; by other kinds of frames.
right, wrong = (IPV6, IPV4) if six else (IPV4, IPV6)
honest = lambda mark: packet(own, targets["neighbour"], mark)
tag = struct.pack(">HH", 5, right)
for kind in (0x8100, 0x88A8):
    told(f"vlan-{kind}", lambda mark: frame(ether(beside, mine, kind, tag + honest(mark))))
    twice = tag[:2] + struct.pack(">H", 0x8100) + tag
    told(f"twice-{kind}", lambda mark: frame(ether(beside, mine, kind, twice + honest(mark))))
for kind in (0x0064, 0x88CC, 0x8863, 0x888E, 0x9000, 0x0805):
    told(f"kind-{kind}", lambda mark: frame(ether(every, mine, kind, mark + bytes(60))))
# One that says one family and has another inside.
told("crossed", lambda mark: frame(ether(beside, mine, wrong, honest(mark))))
"""
    )
    tried = attempt(lab, rights, script, family=family)
    assert tried.seen("honest") == ["neighbour"]
    assert "server" in [*tried.seen("honest-out"), "server"]
    assert len(tried.sent) > 100
    assert tried.arrived() == {}


ARP = """
mine, every, nobody = facts["evil_mac"], "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"
def arp(op, sender_mac, sender, target_mac, target, to=every, from_=mine):
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, op)
    body += raw(sender_mac) + ip(sender) + raw(target_mac) + ip(target)
    return lambda mark: frame(ether(to, from_, ARP, body + mark))
victims = {"gateway": facts["gateway4"], "neighbour": facts["neighbour4"], "other": facts["other4"]}
victims |= {"free": facts["gateway4"][:-1] + "99", "outside": "198.51.100.2"}
told("honest", arp(1, mine, facts["evil4"], nobody, facts["neighbour4"]))
told("honest-announced", arp(1, mine, facts["evil4"], nobody, facts["evil4"]))
for op in (1, 2, 3, 8):
    for name, victim in victims.items():
        for which, mac in (("own", mine), ("theirs", facts["neighbour_mac"]), ("none", "02:00:00:00:be:ef")):
            for to in (every, facts["second_mac"], facts["gateway_mac"]):
                says = f"{op}:{name}:{which}:{to}"
                told(says, arp(op, mac, victim, facts["second_mac"], facts["second4"], to))
                told(says + ":announced", arp(op, mac, victim, nobody, victim, to))
    own, theirs, beside = facts["evil4"], facts["neighbour4"], facts["neighbour_mac"]
    told(f"{op}:own-address-by-another-mac", arp(op, beside, own, nobody, theirs))
    told(f"{op}:from-another", arp(op, mine, own, nobody, theirs, from_=beside))
"""


@pytest.mark.parametrize("rights", ["raw", "raw and admin"])
def test_arp_promises_no_address_of_others(lab: Lab, rights: str) -> None:
    tried = attempt(lab, rights, ARP)
    assert "neighbour" in tried.seen("honest")
    assert "second" in tried.seen("honest-announced")
    # Asked is whom it concerns.
    assert "second" not in tried.seen("honest")
    assert tried.arrived() == {}
    # Nobody believes anything else than before.
    for name in ("neighbour", "second"):
        for line in lab.run(f'result = at({name}, "ip", "neighbour")').splitlines():
            if line.startswith(tried.facts["gateway4"]) and "lladdr" in line:
                assert tried.facts["gateway_mac"] in line


NEIGHBOURS = """
mine, own, local = facts["evil_mac"], facts["evil6"], values["local"]
def nd(kind, code, body):
    def act(mark):
        data = struct.pack(">BBH", kind, code, 0) + body
        # The mark is an option that nobody knows, of three words.
        data += struct.pack(">BB", 253, 3) + mark.ljust(22, b"\\0")[:22]
        frame(ether("33:33:00:00:00:01", mine, IPV6, packet6(own, "ff02::1", data, 58, 255)))
    return act
def bare(kind, body, source=own, to="ff02::1", hops=255, before=b"", first=None, at="33:33:00:00:00:01"):
    # Without a mark, as those that are allowed: only what they tell can be looked at.
    data = struct.pack(">BBH", kind, 0, 0) + body
    frame(ether(at, mine, IPV6, packet6(source, to, data, 58, hops, before, first)))
def target(address, option, mac):
    return struct.pack(">I", 0x20000000) + ip(address) + struct.pack(">BB", option, 1) + raw(mac)
victims = [facts[name] for name in ("gateway6", "neighbour6", "second6", "other6")]
victims += [own.rpartition(":")[0] + ":99", "fe80::1"]
hop = struct.pack(">BBHI", 58, 0, 0x0104, 0)
fragment = struct.pack(">BBHI", 58, 0, 0, 7)
for victim in victims:
    for source in (own, local, victim, "::"):
        bare(136, target(victim, 2, mine), source)
        bare(136, target(victim, 2, facts["neighbour_mac"]), source)
        for before, first in ((hop, 0), (hop, 60), (fragment, 44)):
            bare(136, target(victim, 2, mine), source, before=before, first=first)
        bare(136, target(victim, 2, mine)[:20], source)
    # Who asks for it says who he is himself, and by another MAC address.
    bare(135, target(victim, 1, facts["neighbour_mac"]), own, victim)
    bare(135, target(victim, 1, mine), victim)
    bare(135, target(victim, 1, mine)[:20], "::")
# Of its own address, by another MAC address.
bare(136, target(own, 2, facts["neighbour_mac"]))
bare(136, target(own, 1, mine))
bare(133, struct.pack(">IBB", 0, 1, 1) + raw(facts["neighbour_mac"]), local, "ff02::2")
# A router, and one who sends elsewhere.
prefix = struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 86400, 86400, 0) + ip("2001:db8:bad::")
advertised = struct.pack(">BBHII", 64, 0, 1800, 0, 0) + prefix
for source in (local, own, facts["gateway6"]):
    bare(134, advertised, source)
    for before, first in ((hop, 0), (hop, 60), (fragment, 44)):
        bare(134, advertised, source, before=before, first=first)
    elsewhere = struct.pack(">I", 0) + ip(own) + ip("2001:db8:2::2")
    bare(137, elsewhere, source, facts["neighbour6"], at=facts["neighbour_mac"])
told("marked", nd(136, 0, target(facts["gateway6"], 2, mine)))
told("marked-own", nd(136, 0, target(own, 2, mine)))
# What it may say.
bare(136, target(own, 2, mine))
bare(136, target(own, 2, mine), local)
bare(135, target(facts["neighbour6"], 1, mine), own, facts["neighbour6"], at=facts["neighbour_mac"])
bare(135, target(own, 1, mine)[:20], "::")
speak = lambda mark: packet6(local, values["neighbour"], mark)
told("honest", lambda mark: frame(ether(facts["neighbour_mac"], mine, IPV6, speak(mark))))
"""


def link_local(mac: str) -> str:
    import ipaddress

    raw = bytes.fromhex(mac.replace(":", ""))
    packed = b"\xfe\x80" + bytes(6) + bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return str(ipaddress.ip_address(packed))


@pytest.mark.parametrize("rights", ["raw", "raw and admin"])
def test_neighbour_discovery_promises_no_address_of_others(lab: Lab, rights: str) -> None:
    number = list(RIGHTS).index(rights)
    facts = lab.run(f"result = facts(evil{number})")
    local, beside = link_local(facts["evil_mac"]), link_local(facts["neighbour_mac"])
    tried = attempt(lab, rights, NEIGHBOURS, local=local, neighbour=beside)
    assert tried.seen("honest") == ["neighbour"]
    assert tried.arrived() == {}
    mine = bytes.fromhex(facts["evil_mac"].replace(":", ""))
    allowed = {packed(facts["evil6"]), packed(local)}
    told: list[str] = []
    asked: list[str] = []
    for name, frames in tried.frames.items():
        for frame in frames:
            if frame[6:12] != mine or frame[12:14] != b"\x86\xdd":
                continue
            assert frame[22:38] in {*allowed, bytes(16)}
            # Nothing that is heeded only as it comes from a neighbour hides behind another header.
            assert frame[20] == 58 or frame[21] != 255, (name, frame.hex())
            if frame[20] == 58 and frame[54] in (133, 134, 135, 136, 137):
                (told if frame[54] == 136 else asked).append(name)
                assert frame[54] not in (134, 137), (name, frame.hex())
                if frame[54] == 136:
                    assert frame[62:78] in allowed, (name, frame.hex())
                options = frame[70 - 8 * (frame[54] == 133) + 8 :] if frame[54] != 133 else frame[62:]
                assert len(options) == 0 or options[0] == 14 or options[2:8] == mine, (name, frame.hex())
    assert "neighbour" in told
    assert "neighbour" in asked


def packed(address: str) -> bytes:
    import ipaddress

    return ipaddress.ip_address(address).packed


def test_what_is_for_others_is_not_heard(lab: Lab) -> None:
    """With the right to listen to all that arrives: neither what neighbours say, nor who they ask for."""
    tried = lab.run(
        """
listening = Recorder(evil1)
at(neighbour, "ip", "neighbour", "flush", "dev", "eth0")
for target in second.addresses()["a"]:
    assert ask(neighbour, target, 80, "tcp", 5).startswith("second")
    assert ask(neighbour, target, 81, "udp", 5).startswith("second")
# To a MAC address that the bridge does not know, which it sends everywhere.
four = second.addresses()["a"][0]
at(neighbour, "ip", "neighbour", "replace", four, "lladdr", "02:00:00:00:00:99", "dev", "eth0")
ask(neighbour, four, 81, "udp", 0.3)
at(neighbour, "ip", "neighbour", "del", four, "dev", "eth0")
result = [frame.hex() for frame in listening.frames()], facts(evil1)
"""
    )
    frames, facts = tried
    own = bytes.fromhex(facts["evil_mac"].replace(":", ""))
    for text in frames:
        frame = bytes.fromhex(text)
        assert frame[:6] == own or frame[0] & 1, text
        if frame[12:14] == b"\x08\x00":
            assert frame[30:34] == packed(facts["evil4"]) or frame[30] >= 224, text


@pytest.mark.parametrize("rights", ["admin", "raw and admin"])
@pytest.mark.tool("ping")
def test_who_changes_his_own_interface_gains_nothing(lab: Lab, rights: str) -> None:
    """An address of somebody else's put on eth0, another MAC address, an interface on top."""
    script = (
        SOURCES
        + """
stolen, mine = facts["second4"], facts["evil_mac"]
def as_(source, *commands, undo):
    def act(mark):
        try:
            for command in commands:
                sh(*command.split())
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.bind((source, 0))
                for target in (targets["neighbour"], targets["server"]):
                    s.sendto(mark, (target, 81))
        finally:
            subprocess.run(undo.split(), capture_output=True)
    return act
def at(address, link):
    return f"ip address add {address} dev {link}", f"ip address del {address} dev {link}"
add, undo = at(f"{stolen}/24", "eth0")
told("address", as_(stolen, add, undo=undo))
add, undo = at(f"{stolen}/32", "lo")
told("alias", as_(stolen, add, undo=undo))
told("mac", as_("", "ip link set eth0 address 02:00:00:00:be:ef", undo=f"ip link set eth0 address {mine}"))
over = ["ip link add up0 link eth0 type macvlan", "ip link set up0 up", f"ip address add {stolen}/24 dev up0"]
over.append(f"ip route add {targets['neighbour']} dev up0")
told("macvlan", as_(stolen, *over, undo="ip link del up0"))
told("honest", freely(own, targets["neighbour"]))
"""
    )
    tried = attempt(lab, rights, script, family="4")
    assert tried.seen("honest") == ["neighbour"]
    assert tried.arrived() == {}
    stolen = packed(tried.facts["second4"])
    mine = bytes.fromhex(tried.facts["evil_mac"].replace(":", ""))
    for name, frames in tried.frames.items():
        for frame in frames:
            if frame[12:14] == b"\x08\x06" and frame[28:32] == stolen:
                assert frame[22:28] != mine, (name, frame.hex())
            assert frame[6:12] != b"\x02\0\0\0\xbe\xef", (name, frame.hex())


def test_each_network_lets_through_its_own_families_only(lab: Lab) -> None:
    """On a network of one family the other is not spoken, whatever addresses are put on interfaces inside."""
    code = """
rights = Security(capabilities=["CAP_NET_RAW", "CAP_NET_ADMIN"])
result = []
four, six = Network.bridge("four"), Network.bridge("six", subnet="fd00:66::/64")
for network, add in ((four, "fd00:1::{}/64"), (six, "10.250.0.{}/24")):
    with Sandbox(network=network, security=rights) as one, Sandbox(network=network, security=rights) as two:
        for number, sandbox in enumerate((one, two), 1):
            flags = ["nodad"] if ":" in add else []
            at(sandbox, "ip", "address", "add", add.format(number), "dev", "eth0", *flags)
        serve(two, "81/udp")
        listening = Recorder(two)
        own = two.addresses()[network.name][0]
        strange = add.format(2).split("/")[0]
        result.append([ask(one, own, 81, "udp", 5)[:2], ask(one, strange, 81, "udp", 0.5)[:3]])
        kind = "86dd" if ":" in add else "0806"
        result.append([frame.hex() for frame in listening.frames() if frame[12:14].hex() == kind])
"""
    assert lab.run(code) == [["sa", "no:"], [], ["sa", "no:"], []]


def test_what_is_needed_passes(lab: Lab) -> None:
    """Multicast among neighbours, broadcast, a datagram in pieces, DHCP's question."""
    code = '''
LISTEN = """
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 90)); s.setsockopt(0, 35, socket.inet_aton("239.1.2.3") + bytes(4))
t = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
t.setsockopt(41, 26, 1); t.bind(("::", 91)); t.setsockopt(41, 20, socket.inet_pton(10, "ff15::5b") + bytes(4))
print("ready", flush=True)
for one in (s, s, s, t, t):
    data, peer = one.recvfrom(65535)
    print(len(data), peer[0], flush=True)
"""
SAY = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(1, 6, 1)
t = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
four, six = sys.argv[1:]
every = four.rpartition(".")[0] + ".255"
for one, size, to, port in ((s, 10, "239.1.2.3", 90), (s, 20, every, 90), (s, 20000, four, 90),
                            (t, 30, "ff15::5b", 91), (t, 20000, six, 91)):
    one.sendto(bytes(size), (to, port)); time.sleep(0.05)
"""
p = neighbour.popen(["python3", "-SEc", LISTEN], stdout=subprocess.PIPE, text=True)
assert p.stdout.readline() == "ready\\n"
evil0.run(["python3", "-SEc", SAY, *neighbour.addresses()["a"]], check=True)
p.wait(timeout=10)
result = p.stdout.read().split(), [x for x in evil0.addresses()["a"]]
'''
    said, (four, six) = lab.run(code)
    assert said == ["10", four, "20", four, "20000", four, "30", six, "20000", six]
    tried = attempt(
        lab,
        "raw",
        """
def unnamed(*ports):
    inside = lambda mark: packet4("0.0.0.0", "255.255.255.255", mark + bytes(240), ports)
    return lambda mark: frame(ether("ff:ff:ff:ff:ff:ff", facts["evil_mac"], IPV4, inside(mark)))
told("honest-dhcp", unnamed(68, 67))
told("unnamed", unnamed(81, 81))
told("its-answer", unnamed(67, 68))
""",
    )
    assert {"neighbour", "second"} <= set(tried.seen("honest-dhcp"))
    assert tried.arrived() == {}
