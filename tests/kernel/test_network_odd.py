"""What is odd around networks: stray packets, near name servers, bridges that others change, the dead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from netlab import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.bridge,
    pytest.mark.tool("ip", "unshare", "nft", "tc"),
]

STAND = '''
import contextlib, socket, struct, time
from sandboxlib import Network, NetworkError, Sandbox
from sandboxlib.doctor import put_right
from sandboxlib.engine.current import program
def doctor():
    return [str(one) for one in put_right(program().host)]
def servers(text):
    Path("/run/resolv.conf").write_text(text)
def inside(sandbox):
    return sandbox.sh("cat /etc/resolv.conf", text=True).stdout
def listen(address, *ports, at=""):
    """Answer there alone."""
    made = ECHO.replace("0.0.0.0", address).replace("(socket.AF_INET6, \\"::\\")", "")
    where = ["ip", "netns", "exec", at] if at else []
    p = subprocess.Popen([*where, sys.executable, "-c", made, *ports], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "ready\\n"
    return p
def end(*processes):
    for process in processes:
        process.kill(); process.communicate()
def another():
    """A program that has one sandbox, with no network at all."""
    sh(sys.executable, "-c", "from sandboxlib import *; Sandbox().open().close()")
def left():
    for _ in range(200):
        links = [line.split()[0] for line in sh("ip", "-br", "link").splitlines()]
        links = [link for link in links if link.startswith("sbx")]
        files = [path.name for path in Path("/run/sandboxlib").glob("networks-*")]
        if not links and not files:
            break
        time.sleep(0.02)
    return [links, files, sh("nft", "list", "tables")]
echo("7000/tcp", "7001/udp", at="server")
'''


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.run(STAND)
        yield lab


@pytest.fixture(autouse=True)
def _nothing_is_left(lab: Lab) -> Iterator[None]:
    yield
    assert lab.run("result = left()") == [[], [], ""]


# Sees one frame of a connection that goes out, sends it once more with another sequence number, which is
# far out of the window, and says whether the connection still carries what is said.
STRAY = """
import socket, struct, sys
host, port, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
six = ":" in host
seen = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
seen.bind(("eth0", 0))
seen.settimeout(5)
family = socket.AF_INET6 if six else socket.AF_INET
if way == "asks":
    s = socket.create_connection((host, port), 5)
else:
    l = socket.socket(family, socket.SOCK_STREAM)
    l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    l.bind(("", port)); l.listen(); print("ready", flush=True)
    s, _ = l.accept()
s.settimeout(5)
def said():
    s.send(b"say"); return s.recv(10) == b"say"
def total(data):
    found = sum(struct.unpack(f">{len(data) // 2}H", data))
    while found >> 16: found = (found & 0xffff) + (found >> 16)
    return ~found & 0xffff
if way == "asks": said()
else: s.send(s.recv(10))
own = s.getsockname()[1]
at = 14 + (40 if six else 20)
while True:
    frame, (_, _, kind, *_) = seen.recvfrom(65536)
    tcp = frame[12:14] == (b"\\x86\\xdd" if six else b"\\x08\\x00") and frame[20 if six else 23] == 6
    # What goes out of the connection, with an answer to what came.
    if kind == 4 and tcp and frame[at:at + 2] == struct.pack(">H", own) and frame[at + 13] == 0x10:
        break
frame = bytearray(frame[:at + (frame[at + 12] >> 4) * 4])
number, = struct.unpack_from(">I", frame, at + 4)
struct.pack_into(">I", frame, at + 4, (number + 0x40000000) % (1 << 32))
frame[at + 16:at + 18] = bytes(2)
size = len(frame) - at
addresses = frame[22:54] if six else frame[26:34]
pseudo = bytes(addresses) + (struct.pack(">II", size, 6) if six else struct.pack(">HH", 6, size))
struct.pack_into(">H", frame, at + 16, total(pseudo + bytes(frame[at:])))
if not six:
    # The length of the packet without what it carried.
    struct.pack_into(">H", frame, 16, len(frame) - 14)
    frame[24:26] = bytes(2)
    struct.pack_into(">H", frame, 24, total(bytes(frame[14:34])))
else:
    struct.pack_into(">H", frame, 18, size)
for _ in range(3): seen.send(bytes(frame))
try:
    print(said() if way == "asks" else (s.send(s.recv(10)) == 3))
except OSError as error:
    print(error)
"""
ANSWERS = """
import socket, sys
family = socket.AF_INET6 if sys.argv[1] == "6" else socket.AF_INET
l = socket.socket(family, socket.SOCK_STREAM); l.bind(("", 80)); l.listen(); print("ready", flush=True)
while True:
    s, _ = l.accept()
    while data := s.recv(10): s.send(data)
"""


@pytest.mark.parametrize("family", ["4", "6"], ids=["ipv4", "ipv6"])
def test_a_packet_that_fits_no_connection_ends_none_to_a_published_port(lab: Lab, family: str) -> None:
    code = """
host = "192.0.2.1" if family == "4" else "2001:db8:1::1"
with Sandbox(network=Network.bridge("a", ipv6=True), ports={7300: 80}) as sb:
    p = sb.popen(["python3", "-c", answers, family], stdout=subprocess.PIPE)
    p.stdout.readline()
    result = sh("ip", "netns", "exec", "client", sys.executable, "-c", stray, host, "7300", "asks").strip()
"""
    assert lab.run(code, family=family, stray=STRAY, answers=ANSWERS) == "True"


@pytest.mark.parametrize("family", ["4", "6"], ids=["ipv4", "ipv6"])
def test_a_packet_that_fits_no_connection_ends_none_of_a_sandboxs_own(lab: Lab, family: str) -> None:
    code = """
host = "198.51.100.2" if family == "4" else "2001:db8:2::2"
command = ["ip", "netns", "exec", "server", sys.executable, "-c", stray, "::" if family == "6" else "0.0.0.0"]
p = subprocess.Popen([*command, "7301", "answers"], stdout=subprocess.PIPE, text=True)
assert p.stdout.readline() == "ready\\n"
script = '''
import socket, sys, time
s = socket.create_connection((sys.argv[1], 7301), 5)
for _ in range(2):
    s.send(b"say"); s.recv(10); time.sleep(0.5)
'''
with Sandbox(network=Network.bridge("a", ipv6=True)) as sb:
    sb.run(["python3", "-c", script, host])
result = p.communicate(timeout=10)[0].strip()
"""
    assert lab.run(code, family=family, stray=STRAY) == "True"


def test_a_port_of_every_address_of_a_family_is_one_of_the_loopback_too(lab: Lab) -> None:
    code = """
asked = [("", "127.0.0.1", 7302), ("", "192.0.2.1", 7302), ("client", "192.0.2.1", 7302),
         ("", "::1", 7303), ("client", "2001:db8:1::1", 7303)]
with Sandbox(network=Network.bridge("a", ipv6=True), ports={"0.0.0.0:7302": 80, "[::]:7303": 80}) as sb:
    serve(sb, "80/tcp")
    result = [ask(at, host, port, "tcp", 5 if port == right else 0.3)[:2]
              for at, host, right in asked for port in (7302, 7303)]
"""
    assert lab.run(code) == ["sa", "no"] * 3 + ["no", "sa"] * 2


def test_a_name_server_with_a_link_local_address_is_asked_and_nothing_else_there(lab: Lab) -> None:
    """As Google's and Amazon's are, where the same address has the cloud's keys on another port."""
    code = """
near, other = "169.254.169.253", "169.254.169.254"
for one in (near, other):
    sh("ip", "-n", "server", "address", "add", f"{one}/32", "dev", "eth0")
    sh("ip", "route", "add", one, "via", "198.51.100.2")
p = listen(near, "53/tcp", "53/udp", "7000/tcp", at="server")
q = listen(other, "53/tcp", "53/udp", at="server")
servers(f"nameserver {near}\\nsearch corp.example\\n")
with Sandbox(network=Network.bridge("a")) as sb, Sandbox(network=Network.bridge("i", internal=True)) as shut:
    result = [inside(sb), *(ask(sb, near, 53, kind, 5)[:2] for kind in ("tcp", "udp"))]
    tried = [(sb, near, 7000, "tcp"), (sb, other, 53, "tcp"), (sb, other, 53, "udp")]
    tried.append((shut, near, 53, "udp"))
    result += [ask(*one, 0.3)[:2] for one in tried]
    sh("nft", "delete", "table", "inet", "sandboxlib")
    result.append(ask(sb, near, 7000, "tcp", 0.3)[:2])
end(p, q)
for one in (near, other):
    sh("ip", "-n", "server", "address", "del", f"{one}/32", "dev", "eth0")
    sh("ip", "route", "del", one)
servers("nameserver 198.51.100.2\\nsearch example.org\\n")
"""
    text, tcp, udp, *closed = lab.run(code)
    assert text == "nameserver 169.254.169.253\nsearch corp.example\n"
    assert "no" not in (tcp, udp)
    assert closed == ["no"] * 5


def test_a_name_server_of_the_hosts_own_is_asked_by_the_bridges_address(lab: Lab) -> None:
    """Without systemd-resolved, which tells whom it asks; nothing else of the loopback is reached by that."""
    code = """
p = listen("127.0.0.1", "53/tcp", "53/udp", "7304/tcp")
servers("nameserver 127.0.0.1\\n")
with Sandbox(network=Network.bridge("a")) as sb, Sandbox(network=Network.bridge("i", internal=True)) as shut:
    gateway = sb.addresses()["a"][0].rpartition(".")[0] + ".1"
    inner = shut.addresses()["i"][0].rpartition(".")[0] + ".1"
    result = [inside(sb) == f"nameserver {gateway}\\n", inside(shut)]
    result += [ask(sb, gateway, 53, kind, 5)[:2] for kind in ("tcp", "udp")]
    tried = [(sb, gateway, 7304), (sb, "127.0.0.1", 53), (shut, inner, 53), (shut, gateway, 53),
             ("client", "192.0.2.1", 53)]
    result += [ask(at, host, port, kind, 0.3)[:2] for at, host, port in tried for kind in ("tcp", "udp")]
end(p)
servers("nameserver 198.51.100.2\\nsearch example.org\\n")
"""
    own, shut, tcp, udp, *closed = lab.run(code)
    assert own
    assert "nameserver" not in shut.replace("# no name server", "")
    assert "no" not in (tcp, udp)
    assert closed == ["no"] * 10


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "# no name server: this host has none: give dns="),
        ("nameserver fe80::1%to-server\n", "fe80::1%to-server"),
        ("nameserver ::1\n", "give dns="),
        ("nameserver nobody\n", "this host has none"),
    ],
)
def test_where_there_is_no_name_server_to_ask_the_file_says_so(lab: Lab, text: str, words: str) -> None:
    code = """
servers(text)
with Sandbox(network=Network.bridge("a")) as sb:
    result = inside(sb)
servers("nameserver 198.51.100.2\\nsearch example.org\\n")
"""
    found = lab.run(code, text=text)
    assert words in found
    assert not [line for line in found.splitlines() if not line.startswith("#")]


def test_mac_addresses_are_one_sandboxs_each(lab: Lab) -> None:
    """A fixed one that is taken is refused, the bridge's own too; others keep clear of fixed ones."""
    code = """
def mac(sandbox):
    return sandbox.run(["ip", "-br", "link", "show", "eth0"], text=True, check=True).stdout.split()[2]
def refused(text):
    try:
        with Sandbox(network=Network.bridge("a", mac=text)):
            return ""
    except NetworkError as error:
        return str(error)
with Sandbox(network=Network.bridge("a", subnet="10.9.0.0/24"), hostname="one") as one:
    bridge = sh("ip", "-br", "link", "show", "type", "bridge").split()[2]
    result = [refused(mac(one)), refused(bridge)]
    # What the next would have by itself.
    theirs = Network.bridge("a", address="10.9.0.77", mac="02:5b:0a:09:00:03")
    with (Sandbox(network=theirs, hostname="two") as two,
          Sandbox(network=Network.bridge("a"), hostname="three") as three):
        serve(two, "80/tcp"); serve(three, "80/tcp")
        result.append([three.addresses()["a"][0], len({mac(one), mac(two), mac(three), bridge})])
        result.append([ask(one, target, 80, "tcp", 5).split()[0] for target in ("10.9.0.77", "10.9.0.3")])
"""
    taken, bridge, macs, answers = lab.run(code)
    assert "is taken" in taken
    assert "is taken" in bridge
    assert macs == ["10.9.0.3", 4]
    assert answers == ["two", "three"]


DAMAGE = {
    "down": 'sh("ip", "link", "set", bridge, "down")',
    "address gone": 'sh("ip", "address", "flush", "dev", bridge)',
    "ipv6 address gone": 'sh("ip", "-6", "address", "flush", "dev", bridge)',
    "routes gone": 'sh("ip", "route", "flush", "dev", bridge)',
    "ipv6 routes gone": 'sh("ip", "-6", "route", "flush", "dev", bridge)',
    "port let go": 'sh("ip", "link", "set", port, "nomaster")',
    "port down": 'sh("ip", "link", "set", port, "down")',
    "bridge gone": 'sh("ip", "link", "delete", bridge)',
    "gate gone": 'sh("tc", "qdisc", "del", "dev", bridge, "clsact")',
    "not forwarding": 'Path(f"/proc/sys/net/ipv4/conf/{bridge}/forwarding").write_text("0")',
    "forwarding reset": """
for value in "10":
    Path("/proc/sys/net/ipv4/ip_forward").write_text(value)
""",
    "ipv6 forwarding reset": 'Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("0")',
    "loopback shut": 'Path(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet").write_text("0")',
}


#: What only the doctor looks for: a start asks nothing that takes long.
THOROUGH = ("port let go", "port down", "gate gone")


@pytest.mark.parametrize("by", ["start", "doctor"])
def test_a_bridge_that_others_changed_is_put_right(lab: Lab, by: str) -> None:
    code = """
net = Network.bridge("a", subnet="10.9.0.0/24", ipv6=True)
result = {}
with (Sandbox(network=net, hostname="one", ports={7305: 80}) as one,
      Sandbox(network=Network.bridge("a")) as two):
    serve(one, "80/tcp")
    links = [line.split()[0].split("@")[0] for line in sh("ip", "-br", "link").splitlines()]
    bridge = next(link for link in links if link.startswith("sbx-"))
    ports = [link for link in links if link.startswith("sbxv")]
    within = [(address, 80, "tcp") for address in one.addresses()["a"]]
    within += [(address, 7000, "tcp") for address in ("198.51.100.2", "2001:db8:2::2")]
    asked = {two: within, "": [(address, 7305, "tcp") for address in ("127.0.0.1", "::1")],
             "client": [(address, 7305, "tcp") for address in ("192.0.2.1", "2001:db8:1::1")]}
    for name, damage in damages.items():
        for port in ports[:1]:
            exec(damage)
        said = doctor() if by == "doctor" else []
        if by == "start":
            with Sandbox(network=Network.bridge("a")):
                pass
        answers = [said for at, those in asked.items() for said in ask_all(at, those, 10)]
        gate = "bpf" in sh("tc", "filter", "show", "dev", bridge, "ingress")
        result[name] = [[answer.split()[0] for answer in answers], said, gate]
Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
"""
    damages = {name: code for name, code in DAMAGE.items() if by == "doctor" or name not in THOROUGH}
    result = lab.run(code, damages=damages, by=by)
    assert set(result) == set(damages)
    for name, (answers, said, gate) in result.items():
        assert answers[:2] + answers[4:] == ["one"] * 6, name
        assert "no:" not in answers, name
        assert gate, name
        assert by == "start" or name == "gate gone" or [line for line in said if "network 'a'" in line], name


@pytest.mark.parametrize("by", ["start", "doctor"])
def test_a_killed_programs_port_is_free_and_the_host_is_no_router(lab: Lab, by: str) -> None:
    """For who asks from outside at once; for the host's own programs as soon as anybody looks."""
    code = '''
script = """
from sandboxlib import *
import time
sb = Sandbox(network=Network.bridge("k", ipv6=True), ports={7306: 80, "7307/udp": 80}).open()
print("up", flush=True)
time.sleep(60)
"""
p = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
assert p.stdout.readline() == "up\\n"
end(p)
q = listen("0.0.0.0", "7306/tcp", "7307/udp")
asked = [("192.0.2.1", 7306, "tcp"), ("192.0.2.1", 7307, "udp")]
result = [[ask("client", *one)[:2] for one in asked]]
result += [Path("/proc/sys/net/ipv4/ip_forward").read_text()]
if by == "doctor":
    doctor()
else:
    another()
result += [[ask(at, *one, 5)[:2] for one in asked for at in ("client", "")], left()]
result += [Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text()]
end(q)
'''
    outside, forward, both, left, forward6 = lab.run(code, by=by)
    assert "no" not in outside
    assert "no" not in both
    assert (forward, forward6) == ("0\n", "0\n")
    assert left == [[], [], ""]


def test_books_of_namespaces_that_are_gone_are_removed_and_no_others(lab: Lab) -> None:
    code = '''
script = """
from sandboxlib import *
import time
sb = Sandbox(network=Network.bridge("k"), ports={7308: 80}).open()
print("up", flush=True)
time.sleep(60)
"""
def stranger(*where):
    p = subprocess.Popen([*where, sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "up\\n"
    return p
def books():
    return len(list(Path("/run/sandboxlib").glob("networks-*")))
sh("ip", "netns", "add", "kept")
gone, lives = stranger("unshare", "--net"), stranger("unshare", "--net")
kept = stranger("ip", "netns", "exec", "kept")
result = [books()]
end(gone, kept)
another()
result.append(books())
end(lives)
sh("ip", "netns", "delete", "kept")
for _ in range(100):
    # The namespaces go a moment after the last that is in them.
    doctor()
    if not books():
        break
    time.sleep(0.05)
result.append(books())
'''
    assert lab.run(code) == [3, 2, 0]
