"""Networks without root: what a plain user's sandboxes reach by pasta or slirp4netns, and what not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netlab import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.unprivileged,
    pytest.mark.userns,
    pytest.mark.tun,
    pytest.mark.tool("ip", "unshare", "slirp4netns", "pasta"),
]
TESTS = str(Path(__file__).resolve().parent.parent)

# A plain user's program; while it waits, others are asked. It prints what it found at last.
USES = """
import threading, time
import users
def as_user(script, during="", *, subids=False):
    flag = "/tmp/.netlab-" + os.urandom(4).hex()
    head = "import json, os, sys, time; sys.path.insert(0, %r)\\nfrom sandboxlib import *\\n" % tests
    head += "from netlab import ask, serve\\nfound = []\\n"
    head += "def wait():\\n  open(%r, 'w').close()\\n" % flag
    head += "  while os.path.exists(%r): time.sleep(.01)\\n" % flag
    box = {}
    def run():
        box["done"] = users.run(head + script + "\\nprint(json.dumps(found))", subids=subids, check=False)
    thread = threading.Thread(target=run)
    thread.start()
    while not os.path.exists(flag) and thread.is_alive() and during:
        time.sleep(.01)
    outside = eval(during) if during and thread.is_alive() else None
    if os.path.exists(flag):
        os.chmod(flag, 0o666); os.unlink(flag)
    thread.join()
    done = box["done"]
    assert done.returncode == 0, done.stdout + done.stderr
    helpers = running("pasta", "passt", "slirp", uid=users.UID)
    return [json.loads(done.stdout.splitlines()[-1]), outside, helpers]
echo("7000/tcp", "7001/udp")
echo("7000/tcp", "7001/udp", at="server")
sh("ip", "-n", "server", "address", "add", "169.254.169.254/32", "dev", "eth0")
sh("ip", "route", "add", "169.254.169.254", "via", "198.51.100.2")
"""


@pytest.fixture(scope="module", params=["pasta", "slirp4netns"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab() as lab:
        if request.param == "slirp4netns":
            # What cannot be executed is not there.
            lab.run("sh('mount', '--bind', '/dev/null', '/usr/bin/pasta')")
        lab.run(USES, tests=TESTS)
        lab.run("helper = name", name=request.param)
        yield lab


def user(lab: Lab, script: str, during: str = "", *, subids: bool = False) -> Any:
    inside, outside, helpers = lab.run(
        "result = as_user(script, during, subids=subids)", script=script, during=during, subids=subids
    )
    assert helpers == []
    return (inside, outside) if during else inside


@pytest.mark.parametrize(
    "subids", [False, pytest.param(True, marks=pytest.mark.subids)], ids=["one-id", "subordinate-ids"]
)
def test_reach(lab: Lab, subids: bool) -> None:
    script = """
with Sandbox(network="user", hostname="me") as sb:
    for host in ("198.51.100.2", "127.0.0.1", "::1", "10.0.2.2", "169.254.169.254", "fd00:ec2::254"):
        found.append([ask(sb, host, 7000, "tcp")[:3], ask(sb, host, 7001, "udp")[:3]])
"""
    outside, *closed = user(lab, script, subids=subids)
    assert outside != ["no:", "no:"]
    assert closed == [["no:", "no:"]] * 5


def test_published_ports(lab: Lab) -> None:
    script = """
with Sandbox(network="user", hostname="me", ports={7080: 80, "7081/udp": 81, "127.0.0.1:7082": 80}) as sb:
    serve(sb, "80/tcp", "81/udp", "90/tcp")
    found.append(sb.port(80))
    wait()
"""
    asked = [
        ("client", "192.0.2.1", 7080, "tcp"),
        ("", "127.0.0.1", 7080, "tcp"),
        ("", "198.51.100.1", 7080, "tcp"),
        ("client", "192.0.2.1", 7081, "udp"),
        ("", "127.0.0.1", 7082, "tcp"),
        ("client", "192.0.2.1", 7082, "tcp"),
        ("client", "192.0.2.1", 90, "tcp"),
    ]
    inside, answers = user(lab, script, f"[ask(*one)[:3] for one in {asked!r}]")
    assert inside == [7080]
    assert set(answers) == {"me ", "no:"}
    assert [answer == "no:" for answer in answers] == [False] * 5 + [True] * 2


def test_a_port_that_is_taken_is_named(lab: Lab) -> None:
    script = """
import socket
mine = socket.socket()
mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
mine.bind(("0.0.0.0", 7080))
mine.listen()
try:
    Sandbox(network="user", ports={7080: 80}).open()
except NetworkError as error:
    found.append(str(error))
with Sandbox(network="user", ports={0: 80}) as sb:
    found.append(sb.port(80) > 0)
"""
    text, free = user(lab, script)
    assert "port 7080/tcp" in text
    assert free


def test_a_second_sandbox_shares_it(lab: Lab) -> None:
    script = """
with Sandbox(network="user") as one, Sandbox(network=Network.of(one)) as two:
    serve(two, "80/tcp")
    found += [ask(one, "127.0.0.1", 80, "tcp")[:3], ask(two, "198.51.100.2", 7000, "tcp")[:3]]
"""
    answers = user(lab, script)
    assert "no:" not in answers


def test_files(lab: Lab) -> None:
    script = """
with Sandbox(network=Network.user(dns=["198.51.100.9"], search=["corp.example"], hosts={"db": "10.1.2.3"}),
             hostname="me") as sb:
    found += [sb.sh("cat /etc/resolv.conf", text=True).stdout, sb.sh("cat /etc/hosts", text=True).stdout]
run = os.path.join(os.environ["XDG_RUNTIME_DIR"])
found.append([name for _, _, names in os.walk(run) for name in names])
"""
    resolver, names, left = user(lab, script)
    assert resolver == "nameserver 198.51.100.9\nsearch corp.example\n"
    assert "127.0.0.1 me\n" in names
    assert "10.1.2.3 db\n" in names
    assert left == []


def test_the_helper_of_a_killed_program_is_ended_by_the_next(lab: Lab) -> None:
    script = """
import subprocess, signal
from netlab import running
def helpers():
    return len(running("pasta", "passt", "slirp", uid=os.getuid()))
code = "from sandboxlib import *; sb = Sandbox(network='user').open(); print('up', flush=True); input()"
p = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
p.stdout.readline()
found.append(helpers())
p.kill(); p.wait()
with Sandbox(network="user"):
    for _ in range(100):
        if helpers() == 1: break
        time.sleep(.02)
    found.append(helpers())
"""
    assert user(lab, script) == [1, 1]


def test_without_a_helper_it_says_what_to_install(lab: Lab) -> None:
    script = """
import attrs
from sandboxlib.engine.current import program
program().host = attrs.evolve(program().host, pasta="", slirp4netns="")
program()._seen.cache_clear()
for network in ("user", "bridge"):
    try:
        Sandbox(network=network).open()
    except UnsupportedError as error:
        found.append(str(error))
"""
    helper, bridge = user(lab, script)
    assert "install the package passt" in helper
    assert "Network.user()" in bridge


def test_on_a_host_without_a_way_out_ports_are_published_all_the_same(lab: Lab) -> None:
    script = """
with Sandbox(network="user", hostname="me", ports={7080: 80}) as sb:
    serve(sb, "80/tcp")
    found.append(sb.sh("cat /etc/resolv.conf", text=True).stdout)
    wait()
"""
    ways = [["ip", "route", "del", "default"], ["ip", "-6", "route", "del", "default"]]
    lab.run("for way in ways: sh(*way)", ways=ways)
    try:
        (resolver,), answer = user(lab, script, "ask('', '127.0.0.1', 7080, 'tcp')[:2]")
    finally:
        ways = [
            ["ip", "route", "add", "default", "via", f"{net}2"] for net in ("198.51.100.", "2001:db8:2::")
        ]
        lab.run("for way in ways: sh(*way)", ways=ways)
    assert answer == "me"
    # The pasta of 2023 refuses; then slirp4netns does it, with a name server of its own.
    assert resolver in ("nameserver 10.0.2.3\n", "nameserver 192.0.0.11\n")
