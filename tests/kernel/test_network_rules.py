"""Whatever others do to the host's rules opens nothing, and the next start or the doctor puts it right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from netlab import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.bridge,
    pytest.mark.tool("ip", "unshare", "nft"),
]

STAND = """
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from sandboxlib import Network, NetworkError, Sandbox
stack = ExitStack()
# Rules see what passes between networks, and not what stays on one bridge.
for path in Path("/proc/sys/net/bridge").glob("bridge-nf-call-ip*"):
    path.write_text("0")
for at in ("", "client", "server"):
    echo("7000/tcp", "7001/udp", at=at)
sh("ip", "-n", "server", "address", "add", "169.254.169.254/32", "dev", "eth0")
sh("ip", "route", "add", "169.254.169.254", "via", "198.51.100.2")
# Others know the way to sandboxes.
for net in ("10.64.0.0/10",):
    sh("ip", "-n", "client", "route", "add", net, "via", "192.0.2.1")
    sh("ip", "-n", "server", "route", "add", net, "via", "198.51.100.1")
a = Network.bridge("a", ipv6=True)
who = {
    "a1": Sandbox(network=a, hostname="a1"),
    "a2": Sandbox(network=a, hostname="a2", ports={8080: 80, "8081/udp": 81, "127.0.0.1:8090": 80}),
    "b1": Sandbox(network=Network.bridge("b", ipv6=True), hostname="b1"),
    "i1": Sandbox(network=Network.bridge("i", ipv6=True, internal=True), hostname="i1"),
    "i2": Sandbox(network=Network.bridge("i"), hostname="i2"),
}
place = {"client": "client", "server": "server", "host": ""}
address = {
    "client4": "192.0.2.2", "client6": "2001:db8:1::2",
    "server4": "198.51.100.2", "server6": "2001:db8:2::2",
    "host4": "192.0.2.1", "host6": "2001:db8:1::1",
    "metadata4": "169.254.169.254", "metadata6": "fd00:ec2::254",
}
for name, sandbox in who.items():
    place[name] = stack.enter_context(sandbox)
    (address[name + "4"], address[name + "6"]), = sandbox.addresses().values()
    serve(sandbox, "80/tcp", "81/udp")
address["gateway4"] = address["a14"].rpartition(".")[0] + ".1"
address["gateway6"] = address["a16"].rpartition(":")[0] + ":1"
address["inner4"] = address["i14"].rpartition(".")[0] + ".1"
address["inner6"] = address["i16"].rpartition(":")[0] + ":1"
six = address["a16"].rpartition("::")[0] + "::/64"
sh("ip", "-n", "server", "-6", "route", "add", six, "via", "2001:db8:2::1")
def tried(pairs, patience):
    by_source = {}
    for source, target, *ports in pairs:
        for version in "46":
            for kind, port in zip(("tcp", "udp"), ports):
                asked = (address[target + version], port, kind)
                by_source.setdefault(source, {})[f"{source} {target} {kind}{version}"] = asked
    found = {}
    with ThreadPoolExecutor() as pool:
        of_one = lambda one: ask_all(place[one[0]], list(one[1].values()), patience)
        said = pool.map(of_one, by_source.items())
        for asked, answers in zip(by_source.values(), said):
            found |= zip(asked, answers, strict=True)
    return found
saved = sh("nft", "list", "ruleset")
def load(text):
    Path("/run/loaded.nft").write_text(text)
    sh("nft", "-f", "/run/loaded.nft")
"""

# From, to, TCP port, UDP port: what nobody was given.
CLOSED = [
    ("a1", "b1", 80, 81),
    ("b1", "a2", 80, 81),
    ("a1", "i1", 80, 81),
    ("i1", "a1", 80, 81),
    ("i1", "server", 7000, 7001),
    ("i1", "client", 7000, 7001),
    ("a1", "host", 7000, 7001),
    ("i1", "host", 7000, 7001),
    ("a1", "gateway", 7000, 7001),
    ("i1", "inner", 7000, 7001),
    ("a1", "metadata", 7000, 7001),
    ("client", "a1", 80, 81),
    ("server", "a2", 80, 81),
    ("server", "i1", 80, 81),
]
# What stays, whatever becomes of rules; and what everybody has when they stand.
KEPT = [("a1", "a2", 80, 81, "a2"), ("i1", "i2", 80, 81, "i2")]
OPEN = [
    ("a1", "server", 7000, 7001, "any"),
    ("client", "host", 8080, 8081, "a2"),
    ("host", "host", 8080, 8081, "a2"),
]

DONE = {
    "flush ruleset": 'sh("nft", "flush", "ruleset")',
    "flush ruleset inet": 'sh("nft", "flush", "ruleset", "inet")',
    "flush ruleset ip": 'sh("nft", "flush", "ruleset", "ip"); sh("nft", "flush", "ruleset", "ip6")',
    "flush ruleset bridge": 'sh("nft", "flush", "ruleset", "bridge")',
    "flush table": 'sh("nft", "flush", "table", "inet", "sandboxlib")',
    "delete table": 'sh("nft", "delete", "table", "inet", "sandboxlib")',
    "flush each table": """
for line in sh("nft", "list", "tables").splitlines():
    sh("nft", "flush", *line.split())
""",
    "delete bridge": 'sh("nft", "delete", "table", "bridge", "sandboxlib")',
    "dormant": """
load("add table inet sandboxlib { flags dormant; }")
""",
    "sets flushed": """
for name in ("same", "any4", "any6", "opened4"):
    sh("nft", "flush", "set" if name in ("same", "opened4") else "map", "inet", "sandboxlib", name)
""",
    "let through by others": """
load("flush ruleset\\ntable inet filter {\\n"
     "chain forward { type filter hook forward priority 0; policy accept; }\\n"
     "chain input { type filter hook input priority 0; policy accept; accept; }\\n }")
""",
    "replaced by others": """
load("flush ruleset\\ntable inet sandboxlib {\\n"
     "chain forward { type filter hook forward priority 0; accept; }\\n"
     "chain input { type filter hook input priority 0; accept; }\\n"
     "chain outgoing { type nat hook postrouting priority 100; masquerade; }\\n }")
""",
    "marked by others": """
load("flush ruleset\\ntable inet mangle {\\n"
     "chain p { type filter hook prerouting priority -150; meta mark set 1; }\\n"
     "chain f { type filter hook forward priority 0; meta mark set 2; }\\n }")
""",
    "restored": 'load("flush ruleset\\n" + saved)',
    "restored beside": "load(saved)",
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.run(STAND)
        yield lab
        assert lab.run("stack.close(); result = sh('nft', 'list', 'ruleset')") == ""


def check_closed(lab: Lab) -> None:
    found = lab.run("result = tried(pairs, 0.5)", pairs=CLOSED)
    assert {what: said for what, said in found.items() if not said.startswith("no:")} == {}


def check_open(lab: Lab, pairs: list[tuple[str, str, int, int, str]]) -> None:
    found = lab.run("result = tried(pairs, 10)", pairs=[pair[:4] for pair in pairs])
    for source, target, _, _, who in pairs:
        for kind in ("tcp4", "tcp6", "udp4", "udp6"):
            said = found[f"{source} {target} {kind}"]
            assert not said.startswith("no:"), (source, target, kind, said)
            assert who in ("any", said.split()[0])


def test_before_anything_is_done(lab: Lab) -> None:
    check_open(lab, KEPT + OPEN)
    check_closed(lab)


@pytest.mark.parametrize("by", ["start", "doctor"])
@pytest.mark.parametrize("done", DONE)
def test_nothing_opens_and_all_is_put_right(lab: Lab, done: str, by: str) -> None:
    lab.run(DONE[done])
    check_closed(lab)
    check_open(lab, KEPT)
    if by == "start":
        lab.run("with Sandbox(network=a):\n    pass")
    else:
        said = lab.run(
            "from sandboxlib.doctor import put_right\n"
            "from sandboxlib.engine.current import program\n"
            "result = [str(one) for one in put_right(program().host)]"
        )
        # What is loaded once more as it stands is no fault.
        assert done.startswith("restored") or "the rules" in said[0]
    check_open(lab, KEPT + OPEN)
    check_closed(lab)
    # What others loaded stays theirs.
    lab.run(
        "for line in sh('nft', 'list', 'tables').splitlines():\n"
        "    if 'sandboxlib' not in line: sh('nft', 'delete', *line.split())"
    )


def test_older_rules_lead_nobody_to_who_has_an_address_now(lab: Lab) -> None:
    """Whoever saved rules led to ends, and they are loaded again: with ports that nobody publishes."""
    code = """
net, same = Network.bridge("n", subnet="10.9.0.0/24"), Network.bridge("n", address="10.9.0.9")
with net.open():
    with Sandbox(network=same, ports={7711: 80, "7712/udp": 81}, hostname="one") as one:
        serve(one, "80/tcp", "81/udp")
        older = sh("nft", "list", "ruleset")
        result = [ask("client", "192.0.2.1", 7711, "tcp", 5)[:3]]
    with Sandbox(network=same, ports={7713: 80}, hostname="two") as two:
        serve(two, "80/tcp", "81/udp")
        load("flush ruleset\\n" + older)
        # Nobody holds these ports any more, so from outside they lead nowhere before anything is put right.
        for port, kind in ((7711, "tcp"), (7712, "udp")):
            result.append(ask("client", "192.0.2.1", port, kind, 1)[:3])
        with Sandbox(network=net):
            for where in ("client", ""):
                result += [ask(where, "192.0.2.1", port, kind, patience)[:3]
                           for port, kind, patience in ((7711, "tcp", 1), (7712, "udp", 1), (7713, "tcp", 5))]
"""
    assert lab.run(code) == ["one", "no:", "no:", "no:", "no:", "two", "no:", "no:", "two"]


def test_rules_that_come_back_when_nobody_is_there_are_taken_away(lab: Lab) -> None:
    code = '''
script = """
from netlab import sh, ask, serve
from pathlib import Path
from sandboxlib import *
def load(text):
    Path("/run/loaded.nft").write_text(text)
    sh("nft", "-f", "/run/loaded.nft")
with Sandbox(network=Network.bridge("n", subnet="10.9.0.0/24"), ports={7711: 80}) as one:
    older = sh("nft", "list", "ruleset")
    address = one.addresses()
load("flush ruleset" + chr(10) + older)
with Sandbox(network=Network.bridge("n", subnet="10.9.0.0/24"), ports={7714: 80}, hostname="two") as two:
    assert two.addresses() == address
    serve(two, "80/tcp")
    print([ask("", "127.0.0.1", port, "tcp", patience)[:3] for port, patience in ((7711, 1), (7714, 5))])
print(sh("nft", "list", "tables"))
"""
tests = os.path.dirname(os.path.abspath(__file__))
own = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && ip link set lo up && exec \\"$@\\""
path = f"PYTHONPATH={os.pathsep.join([tests, *sys.path])}"
command = ["unshare", "--net", "--mount", "sh", "-c", own, "sh", "env", path, sys.executable, "-c", script]
result = sh(*command).split("\\n")
'''
    answers, tables, *_ = lab.run("import os, sys\n" + code)
    assert answers == "['no:', 'two']"
    assert tables == ""


def test_a_program_with_a_run_of_its_own_takes_nothing_from_others(lab: Lab) -> None:
    """It has another book: when it ends, and when it is killed, all go on, and what it left is found."""
    code = '''
script = """
import sys, time
from netlab import ask, serve
from sandboxlib import *
with Sandbox(network=Network.bridge("a", ipv6=True), ports={7721: 80}, hostname="stranger") as sb:
    serve(sb, "80/tcp")
    print(sb.addresses()["a"][0], ask("", "127.0.0.1", 7721, "tcp", 5).split()[0],
          ask(sb, "198.51.100.2", 7000, "tcp", 5)[:2], flush=True)
    sys.stdin.readline()
"""
tests = os.path.dirname(os.path.abspath(__file__))
def stranger():
    own = "mount --make-rprivate / && mount -t tmpfs -o mode=700 tmpfs /run/sandboxlib && exec \\"$@\\""
    path = f"PYTHONPATH={os.pathsep.join([tests, *sys.path])}"
    command = ["unshare", "--mount", "sh", "-c", own, "sh", "env", path, sys.executable, "-c", script]
    p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return p, p.stdout.readline().split()
def state():
    with Sandbox(network=a):
        pass
    links = [line.split()[0] for line in sh("ip", "-br", "link").splitlines()]
    tables = sh("nft", "list", "tables").splitlines()
    return [sorted(link for link in links if link.startswith("sbx-")), sorted(tables)]
before = state()
p, said = stranger()
result = [said[1:], said[0] != address["a14"]]
result.append([ask(place["a1"], said[0], 80, "tcp", 0.3)[:3],
               ask("client", "192.0.2.1", 8080, "tcp", 5)[:2]])
during = state()
result.append([len(during[0]) - len(before[0]), set(before[1]) < set(during[1])])
p.communicate("\\n")
result.append(state() == before)
p, said = stranger()
p.kill(); p.communicate()
# Whoever makes a network next sees that nobody is there any more.
with Network.bridge("z").open():
    pass
result.append([state(), before])
# And any program, what else it left.
sh(sys.executable, "-c", "from sandboxlib import *; Sandbox().open().close()")
'''
    said, other, reach, during, after, killed = lab.run("import os, sys\n" + code)
    assert said[0] == "stranger"
    assert said[1] != "no"
    assert other
    assert reach == ["no:", "a2"]
    assert during == [1, True]
    assert after
    assert killed[0] == killed[1]
    check_open(lab, KEPT + OPEN)
    check_closed(lab)


def test_as_nft_prints_them(lab: Lab) -> None:
    """Our own messages mean what nft(8) takes them for; loaded again by it, they stay the same."""
    code = """
result = {}
for line in sh("nft", "list", "tables").splitlines():
    result[line.removeprefix("table ")] = sh("nft", "list", *line.split())
load("".join(f"delete table {name}\\n" for name in result) + "".join(result.values()))
again = {name: sh("nft", "list", "table", *name.split()) for name in result}
same = again == result
with Sandbox(network=a):
    pass
result = [same, result]
"""
    same, tables = lab.run(code)
    assert same
    assert set(tables) == {"inet sandboxlib", "ip sandboxlib", "ip6 sandboxlib", "bridge sandboxlib"}
    opened = tables["inet sandboxlib"]
    for line in (
        "fib daddr type != local return",
        "socket mark 0x73627800 jump published",
        "dnat ip to ip daddr . meta l4proto . th dport map @at4",
        "dnat ip6 to ip6 daddr . meta l4proto . th dport map @at6",
        'iifname "sbx-*" oifname != "sbx-*" masquerade',
        'oifname "sbx-*" ip saddr 127.0.0.0/8 masquerade',
        "ct state invalid drop",
        "ct state established,related accept",
        "iifname . oifname @same accept",
        'iifname "sbx-i*" reject with icmpx admin-prohibited',
        'oifname "sbx-*" ct status dnat accept',
        'iifname "sbx-*" oifname "sbx-*" reject with icmpx admin-prohibited',
        'oifname "sbx-*" drop',
        "ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited",
        "ip6 daddr fe80::/10 reject with icmpx admin-prohibited",
        "ip6 daddr fd00:ec2::254 reject with icmpx admin-prohibited",
        "ip6 daddr ::1 ip6 saddr set meta l4proto . th dport map @loopback6",
        'iifname "sbx-*" ip6 saddr ::1 ip6 daddr set ::1',
        "tcp . 8080 : ",
        'elements = { "to-client",' if '"to-client",' in opened else 'elements = { "to-server",',
    ):
        assert line in opened, line
    unknown = 'iifname "sbx-*" oifname != "sbx-*" ct state invalid,untracked drop'
    for family, message in (("ip", "icmp type echo-request"), ("ip6", "icmpv6 type nd-neighbor-solicit")):
        assert f"{message} accept" in tables[f"{family} sandboxlib"]
        assert unknown in tables[f"{family} sandboxlib"]
    assert 'iifname "sbxv*" meta mark set meta mark | 0x00001000' in tables["bridge sandboxlib"]


def test_others_who_change_their_rules_all_the_time_keep_no_start_from_publishing(lab: Lab) -> None:
    code = """
import threading
done = threading.Event()
def change(table):
    while not done.is_set():
        sh("nft", "add", "table", "ip", table); sh("nft", "delete", "table", "ip", table)
threads = [threading.Thread(target=change, args=(table,)) for table in ("theirs", "others")]
for thread in threads: thread.start()
result = []
try:
    for number in range(8):
        with Sandbox(network=a, ports={7730: 80}, hostname=f"n{number}") as sb:
            serve(sb, "80/tcp")
            result.append(ask("client", "192.0.2.1", 7730, "tcp", 5).split()[0])
finally:
    done.set()
    for thread in threads: thread.join()
"""
    assert lab.run(code) == [f"n{number}" for number in range(8)]
