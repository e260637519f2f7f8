"""
A host of the tests' own, with others around it: network namespaces, so that this machine's stays as it is.

::

    client ─────────────── host ─────────────── server
    192.0.2.2   192.0.2.1        198.51.100.1   198.51.100.2
    2001:db8:1::2   ::1          2001:db8:2::1  2001:db8:2::2

A program stands in the host, in network and mount namespaces of its own with a /run of its own, and
carries out pieces of Python that tests hand to it; sandboxes live in it. With it all that it made
is gone. This file is also that program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CLIENT, SERVER = "192.0.2.2", "198.51.100.2"
CLIENT6, SERVER6 = "2001:db8:1::2", "2001:db8:2::2"
HOST, HOST6 = "192.0.2.1", "2001:db8:1::1"

#: What a new namespace takes over from this machine's own, as the kernel has it before anybody changes it:
#: Documentation/admin-guide/sysctl/net.rst, devconf_inherit_init_net.
SETTINGS = {
    "ip_forward": "0",
    **{
        f"conf/{which}/{name}": value
        for which in ("all", "default")
        for name, value in (
            ("rp_filter", "0"),
            ("accept_local", "0"),
            ("route_localnet", "0"),
            ("accept_redirects", "1"),
            ("send_redirects", "1"),
            ("arp_ignore", "0"),
            ("arp_announce", "0"),
        )
    },
}

#: Answers whoever asks, on TCP and UDP ports of both families, until it is killed.
ECHO = """
import selectors, socket, sys
poll = selectors.DefaultSelector()
for text in sys.argv[1:]:
    port, kind = text.split("/")
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((address, int(port)))
        except OSError:
            continue
        if kind == "tcp":
            s.listen(64)
        poll.register(s, 1, kind)
name = socket.gethostname()
print("ready", flush=True)
while True:
    for key, _ in poll.select():
        if key.data == "tcp":
            c, peer = key.fileobj.accept()
            c.settimeout(1)
            # Whoever asks speaks first: the pasta of 2023 tells of a connection only then.
            try:
                c.recv(1)
            except OSError:
                pass
            c.sendall(f"{name} {peer[0]}".encode())
            c.close()
        else:
            _, peer = key.fileobj.recvfrom(1000)
            key.fileobj.sendto(f"{name} {peer[0]}".encode(), peer)
"""

#: Prints what such a one answers, or why nobody does.
ASK = """
import socket, sys
host, port, kind, patience = sys.argv[1:]
def ask():
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if kind == "icmp":
        six = ":" in host
        s = socket.socket(family, socket.SOCK_DGRAM, 58 if six else 1)
        s.settimeout(float(patience))
        s.connect((host, 0))
        s.send(bytes([128 if six else 8, 0, 0, 0, 0, 1, 0, 1]) + b"ping")
        answer = s.recv(1000)
        return "pong" if answer[0] in (0, 129) else "icmp %d" % answer[0]
    s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.settimeout(float(patience))
    s.connect((host, int(port)))
    s.send(b"x")
    return s.recv(1000).decode()
try:
    print(ask())
except OSError as error:
    print("no:", type(error).__name__, error)
"""


#: Prints every frame that comes or goes by an interface, until its input ends.
RECORD = """
import select, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
s.bind((sys.argv[1], 0))
print("ready", file=sys.stderr, flush=True)
while True:
    ready, _, _ = select.select([s, 0], [], [])
    if s in ready:
        data, (_, _, kind, *_) = s.recvfrom(65536)
        print("out" if kind == 4 else "in", data.hex())
    elif 0 in ready:
        break
sys.stdout.flush()
"""


#: The same for many at once: one line for each, in order.
ASK_ALL = """
import select, socket, sys, time
patience, *asked = sys.argv[1:]
found, waiting = {}, {}
poll = select.poll()
for number, text in enumerate(asked):
    host, port, kind = text.split()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.setblocking(False)
    try:
        error = s.connect_ex((host, int(port)))
        if error not in (0, 115):
            raise OSError(error, "connect")
        if kind == "udp":
            s.send(b"x")
        waiting[s.fileno()] = [number, s, kind == "udp"]
        poll.register(s, select.POLLIN if kind == "udp" else select.POLLOUT)
    except OSError as problem:
        found[number] = f"no: {problem}"
until = time.monotonic() + float(patience)
while waiting and (left := until - time.monotonic()) > 0:
    for fd, event in poll.poll(left * 1000):
        number, s, connected = waiting[fd]
        try:
            if connected:
                said = s.recv(1000).decode()
            else:
                s.send(b"x")
                waiting[fd][2] = True
                poll.modify(fd, select.POLLIN)
                continue
        except OSError as problem:
            said = f"no: {problem}"
        found[number] = said or "no: closed"
        poll.unregister(fd)
        del waiting[fd]
for number in range(len(asked)):
    print(found.get(number, "no: timeout"))
"""


class Lab:
    """The program, from outside; a context manager."""

    def __init__(self) -> None:
        command = ["unshare", "--net", "--mount", sys.executable, os.path.abspath(__file__)]
        self._number = 0
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)

    def run(self, code: str, **values: Any) -> Any:
        """Carry out *code* there, with *values* as variables; returns what it puts into `result`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._number += 1
        self._process.stdin.write(json.dumps([self._number, code, values]) + "\n")
        self._process.stdin.flush()
        number, result, problem = 0, None, None
        while number != self._number:
            # Of an earlier test whose patience had ended.
            line = self._process.stdout.readline()
            assert line, "the lab has ended"
            number, result, problem = json.loads(line)
        assert problem is None, problem
        return result


# --- what runs as a program -----------------------------------------------------------------------------


def sh(*command: str, check: bool = True) -> str:
    """Run a command; what it wrote."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _neighbour(name: str, nets: tuple[str, str], near: str, far: str) -> None:
    sh("ip", "netns", "add", name)
    # No name server listens there, and each one who asks is told so at once.
    settings = {**SETTINGS, "ping_group_range": "0 65535", "icmp_ratelimit": "0"}
    lines = [f"echo {value} > /proc/sys/net/ipv4/{setting}" for setting, value in settings.items()]
    sh("ip", "netns", "exec", name, "sh", "-ec", "\n".join(lines))
    sh("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "eth0", "netns", name)
    for net, prefix in zip(nets, ("24", "64"), strict=True):
        flags = ["nodad"] if ":" in net else []
        sh("ip", "address", "add", f"{net}{near}/{prefix}", "dev", f"to-{name}", *flags)
        sh("ip", "-n", name, "address", "add", f"{net}{far}/{prefix}", "dev", "eth0", *flags)
    for where, link in (((), f"to-{name}"), (("-n", name), "eth0"), (("-n", name), "lo")):
        sh("ip", *where, "link", "set", link, "up")
    for net in nets:
        sh("ip", "-n", name, "route", "add", "default", "via", f"{net}{near}")


def build() -> None:
    """Make the host and those around it."""
    sh("mount", "--make-rprivate", "/")
    sh("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/resolv.conf").write_text(f"nameserver {SERVER}\nsearch example.org\n")
    sh("mount", "--bind", "/run/resolv.conf", "/etc/resolv.conf")
    # A device for helpers of plain users; here and there only root may open it.
    os.mknod("/run/tun", 0o20666, os.makedev(10, 200))
    os.chmod("/run/tun", 0o666)
    sh("mount", "--bind", "/run/tun", "/dev/net/tun")
    for setting, value in {**SETTINGS, "ping_group_range": "0 65535"}.items():
        Path("/proc/sys/net/ipv4", setting).write_text(value)
    sh("ip", "link", "set", "lo", "up")
    _neighbour("client", ("192.0.2.", "2001:db8:1::"), "1", "2")
    _neighbour("server", ("198.51.100.", "2001:db8:2::"), "1", "2")
    for net in ("198.51.100.", "2001:db8:2::"):
        sh("ip", "route", "add", "default", "via", f"{net}2")


_STARTED: list[subprocess.Popen[str]] = []


def echo(*ports: str, at: str = "") -> subprocess.Popen[str]:
    """Let a server answer on *ports*, on the host or at a neighbour; it ends with the lab."""
    where = ["ip", "netns", "exec", at] if at else []
    command = [*where, sys.executable, "-c", ECHO, *ports]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    _STARTED.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def serve(sandbox: Any, *ports: str) -> Any:
    """The same in a sandbox."""
    process = sandbox.popen(["python3", "-c", ECHO, *ports], stdout=subprocess.PIPE)
    sandbox.wait_for(output=(process, b"ready"), timeout=10)
    return process


def ask(where: Any, host: str, port: int, kind: str, patience: float = 1) -> str:
    """Ask from *where*, a sandbox, the name of a neighbour or "" for the host."""
    arguments = ["-c", ASK, host, str(port), kind, str(patience)]
    if isinstance(where, str):
        inside = ["ip", "netns", "exec", where] if where else []
        return sh(*inside, sys.executable, *arguments).strip()
    return str(where.run(["python3", *arguments], text=True).stdout).strip()


def ask_all(where: Any, asked: list[tuple[str, int, str]], patience: float = 1) -> list[str]:
    """The same of many (host, port, kind) at once."""
    arguments = ["-SEc", ASK_ALL, str(patience), *(f"{host} {port} {kind}" for host, port, kind in asked)]
    if isinstance(where, str):
        inside = ["ip", "netns", "exec", where] if where else []
        return sh(*inside, sys.executable, *arguments).splitlines()
    return str(where.run(["python3", *arguments], text=True, check=True).stdout).splitlines()


class Recorder:
    """What comes in by an interface: of a sandbox, of a neighbour by name, or of the host ("")."""

    def __init__(self, where: Any, link: str = "eth0") -> None:
        if isinstance(where, str):
            inside = ["ip", "netns", "exec", where] if where else []
        else:
            inside = ["nsenter", "--target", str(where._engine.pid), "--net"]
        command = [*inside, sys.executable, "-SEc", RECORD, link]
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when it is read
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._said, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        assert self._process.stderr.readline() == "ready\n"

    def frames(self, way: str = "in") -> list[bytes]:
        """End it, and give what came in, or went "out"."""
        # What was sent before this has arrived: a frame crosses a bridge within the call that sends it.
        self._process.communicate(timeout=30)
        with self._said as said:
            said.seek(0)
            return [bytes.fromhex(line.split()[1]) for line in said if line.split()[0] == way]


def running(*names: str, uid: int) -> list[str]:
    """The processes of a user whose names begin with one of *names*."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            comm = (folder / "comm").read_text().strip()
            # An orphan that has ended may wait for a while for init to look after it.
            ended = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if comm.startswith(names) and folder.stat().st_uid == uid and not ended:
                found.append(f"{folder.name} {comm}")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def main() -> None:
    """Build it, and carry out what comes by stdin."""
    # What is printed by others is not to be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    build()
    known: dict[str, Any] = dict(globals())
    for line in sys.stdin:
        number, code, values = json.loads(line)
        known.pop("result", None)
        known.update(values)
        problem = None
        try:
            exec(compile(code, "<test>", "exec"), known)
        except BaseException:
            problem = traceback.format_exc()
        answers.write(json.dumps([number, known.get("result"), problem], default=str) + "\n")
        answers.flush()
    for process in _STARTED:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
