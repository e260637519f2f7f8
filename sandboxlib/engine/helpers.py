"""
Starts pasta(1) or slirp4netns(1) for a sandbox, with all closed that either opens by itself.

Spec: pasta(1), slirp4netns(1); for the latter's ports its API socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

from sandboxlib.engine.waiter import READ
from sandboxlib.errors import NetworkError
from sandboxlib.kernel.descriptor import Fd, openat, pidfd_open, pipe, private

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.host import Host

#: Where the sandbox asks for names: pasta hands it on to the host's first name server. Of a range that
#: is never routed (RFC 6890).
PASTA_DNS = "192.0.0.11"
PASTA_ADDRESS, PASTA_GATEWAY = "10.0.2.100", "10.0.2.2"
#: slirp4netns has its own.
SLIRP_DNS = "10.0.2.3"
_PATIENCE = 10.0


class Helper:
    """
    A helper that runs.

    Attributes:
        pidfd: Of its process.
        child: That, where it is ours to be reaped.
        held: It ends when this is closed, if it is that kind.
    """

    def __init__(self, pidfd: Fd | None = None, held: Fd | None = None) -> None:
        self.pidfd = pidfd or Fd()
        self.child: subprocess.Popen[bytes] | None = None
        # A forked child is not to keep it alive.
        self.held = private(held or Fd())

    async def end(self, waiter: Waiter) -> None:
        """Kill it, and wait until it has ended. Idempotent."""
        if self.pidfd:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd.fileno(), signal.SIGKILL)
            await waiter.ready({self.pidfd.fileno(): READ})
        if self.child is not None:
            self.child.wait()
        self.close()

    def close(self) -> None:
        """Close its descriptors."""
        self.pidfd.close()
        self.held.close()


def programs(host: Host) -> list[str]:
    """The helpers that there are, by path, in the order in which they are tried."""
    return [path for path in (host.pasta, host.slirp4netns) if path]


def dns_of(program: str) -> str:
    """The address at which a helper answers for the host's name servers."""
    return SLIRP_DNS if program.endswith("slirp4netns") else PASTA_DNS


def start(program: str, pid: int, pid_file: str, ports: Sequence[Sequence[str | int]]) -> Helper:
    """
    Connect the network namespace of *pid*; returns when it is.

    Args:
        program: One of `programs`.
        pid: Of the sandbox's pid 1.
        pid_file: Where the helper's own is written.
        ports: What is published.

    Raises:
        NetworkError: The helper refuses; with its words.
    """
    begin = _slirp if program.endswith("slirp4netns") else _pasta
    return begin(program, pid, pid_file, ports)


def pasta_options(ports: Sequence[Sequence[str | int]]) -> list[str]:
    """How pasta is called: what is published, and nothing else of the host."""
    options = ["--quiet", "--config-net", "--ns-ifname", "eth0"]
    # Not the host's own address, by which else nobody on the host would be answered.
    options += ["--address", PASTA_ADDRESS, "--netmask", "24", "--gateway", PASTA_GATEWAY]
    # By itself it maps the gateway's address to the host's loopback, and ports both ways.
    options += ["--no-map-gw", "--tcp-ns", "none", "--udp-ns", "none", "--dns-forward", PASTA_DNS]
    for protocol in ("tcp", "udp"):
        mine = [port for port in ports if port[2] == protocol]
        for address, outside, _, inside in mine:
            options += [f"--{protocol}-ports", f"{address}{'/' if address else ''}{outside}:{inside}"]
        if not mine:
            options += [f"--{protocol}-ports", "none"]
    return options


def _pasta(program: str, pid: int, pid_file: str, ports: Sequence[Sequence[str | int]]) -> Helper:
    # It goes into the background when all is set up.
    command = [program, *pasta_options(ports), "--pid", pid_file, str(pid)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            timeout=_PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NetworkError(f"pasta has not connected the sandbox within {_PATIENCE:g} seconds") from None
    if done.returncode:
        words = [line for line in done.stdout.decode(errors="replace").splitlines() if "syslog" not in line]
        raise NetworkError(f"pasta cannot connect the sandbox: {'; '.join(words) or 'it gives no reason'}")
    with open(pid_file, encoding="ascii") as file:
        return Helper(pidfd_open(int(file.read().split()[0])))


def _slirp(program: str, pid: int, pid_file: str, ports: Sequence[Sequence[str | int]]) -> Helper:
    ready, told = pipe()
    # It ends when the other side of this is closed: also when this program is killed.
    exits, held = pipe()
    # By a name in its folder: a path of more than 107 bytes is none for a socket.
    folder, name = os.path.split(f"{pid_file}.socket")
    command = [program, "--configure", "--mtu=65520", "--disable-host-loopback"]
    command += ["--enable-sandbox", "--enable-seccomp"]
    command += [f"--ready-fd={told.fileno()}", f"--exit-fd={exits.fileno()}", "--api-socket", name]
    helper = Helper(held=held)
    try:
        with open(pid_file, "w", encoding="ascii") as log, told, exits:
            helper.child = subprocess.Popen(
                [*command, str(pid), "eth0"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=(told.fileno(), exits.fileno()), cwd=folder,
            )  # fmt: skip
        with ready as fd:
            connected = os.read(fd, 1)
        helper.pidfd = pidfd_open(helper.child.pid)
        if not connected:
            with open(pid_file, encoding="utf-8", errors="replace") as file:
                raise NetworkError(f"slirp4netns cannot connect the sandbox: {file.read().strip()[-500:]}")
        with openat(folder, os.O_PATH | os.O_DIRECTORY) as above:
            for port in ports:
                _forward(f"/proc/self/fd/{above}/{name}", port)
    except BaseException:
        if helper.child is not None:
            helper.child.kill()
            helper.child.wait()
        helper.close()
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    return helper


def _forward(api: str, port: Sequence[str | int]) -> None:
    address, outside, protocol, inside = port
    arguments = {"proto": protocol, "host_port": outside, "guest_port": inside}
    arguments["host_addr"] = address or "0.0.0.0"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asked:
        asked.connect(api)
        asked.sendall(json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode())
        asked.shutdown(socket.SHUT_WR)
        answer = json.loads(asked.makefile("rb").read() or b"{}")
    if "error" in answer:
        raise NetworkError(f"port {outside}/{protocol} cannot be had: {answer['error'].get('desc', answer)}")


__all__ = ["Helper", "dns_of", "pasta_options", "programs", "start"]
