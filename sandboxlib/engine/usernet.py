"""
Networks without root: a helper that speaks for the sandbox, with the caller's own sockets.

pasta(1) comes first, slirp4netns(1) where it is missing. What either would open by itself (the host's
loopback by the gateway's address, ports of both sides) is closed by options; link-local addresses,
and the services of clouds that lie there, by routes that lead nowhere.

A helper outlives a program that is killed. Its name is that of its files in the run-time folder,
so the next program that starts one finds it and ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

from sandboxlib.engine import helpers, hosts
from sandboxlib.engine.ports import Taken
from sandboxlib.errors import NetworkError, SandboxError
from sandboxlib.kernel import routes
from sandboxlib.kernel.descriptor import Fd, pidfd_open, socket_of
from sandboxlib.kernel.netlink import carry_out
from sandboxlib.kernel.owner import PREFIX, is_dead
from sandboxlib.kernel.syscall import failed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.host import Host
    from sandboxlib.kernel.owner import Owner
    from sandboxlib.spec import SandboxSpec

#: Link-local addresses, and those of clouds' own services beside them.
CLOSED = ("169.254.0.0/16", "fd00:ec2::254/128")
_KINDS = ("hosts", "resolv", "pid")


class Userland:
    """
    One sandbox's helper.

    Attributes:
        values: For the plan: the files of names and name servers.
    """

    def __init__(self, spec: SandboxSpec, host: Host, owner: Owner) -> None:
        self._spec = spec
        self._host = host
        self._owner = owner
        self._token = ""
        self._ports = Taken()
        self._helper: helpers.Helper | None = None
        self.values: Mapping[str, str] = {}

    @property
    def published(self) -> list[list[str | int]]:
        """What leads to it."""
        return self._ports.published

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        """None that others could use."""
        return {}

    def _path(self, kind: str) -> str:
        return os.path.join(self._host.run_dir, f"{self._token}.{kind}")

    async def prepare(self, waiter: Waiter) -> None:
        """Make its files, and look whether its ports can be had. Raises: NetworkError, KernelError."""
        await waiter.work(self._prepare)

    def _prepare(self) -> None:
        network = self._spec.network
        assert network is not None
        try:
            self._owner.hold(self)
            self._token = PREFIX + self._owner.name()
            names = filter(None, [self._spec.hostname])
            lines = [f"127.0.0.1 {name}" for name in names]
            hosts.create(
                self._path("hosts"), lines + [f"{address} {name}" for name, address in network.hosts]
            )
            self._resolver(helpers.programs(self._host)[0])
        except OSError as error:
            raise failed(error, f'open("{self._path("hosts")}")', "files of the network") from None
        self._ports.take(self._spec.ports, ipv6=False)
        self.values = {"hosts": self._path("hosts"), "resolv": self._path("resolv")}

    async def connect(self, waiter: Waiter, pid: int, fd: Fd) -> SandboxError | None:
        """Start the helper; returns when it has connected the sandbox, with what went wrong or None."""
        with socket_of(fd) as inside:
            try:
                self._helper = await waiter.work(lambda: self._connect(pid, inside))
            except SandboxError as problem:
                return problem
        return None

    def _connect(self, pid: int, inside: socket.socket) -> helpers.Helper:
        closed = [routes.unreachable(target) for target in CLOSED if self._host.ipv6 or ":" not in target]
        carry_out(inside, closed, "addresses that are closed")
        # From here on they are the helper's: only one can listen.
        self._ports.release()
        refusals = []
        for program in helpers.programs(self._host):
            try:
                helper = helpers.start(program, pid, self._path("pid"), self._ports.published)
            except NetworkError as problem:
                # Such as pasta's where the host has no way out itself.
                refusals.append(problem)
            else:
                if refusals:
                    self._resolver(program)
                return helper
        raise refusals[0]

    def _resolver(self, program: str) -> None:
        network = self._spec.network
        assert network is not None
        dns = network.dns if network.dns is not None else (helpers.dns_of(program),)
        hosts.resolver(self._path("resolv"), dns, network.search, reachable=True)

    async def release(self, waiter: Waiter) -> None:
        """End the helper, and remove its files. Idempotent."""
        self._ports.release()
        if self._helper is not None:
            await self._helper.end(waiter)
        else:
            # Interrupted while it started.
            _end(self._path("pid"))
        for kind in _KINDS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(kind))
        self._owner.drop(self)


def look_after(host: Host) -> list[str]:
    """The same, if there ever was a helper; returns what was found, in words."""
    return sweep(host) if os.path.isdir(host.run_dir) else []


def sweep(host: Host) -> list[str]:
    """End the helpers of programs that are dead, and remove their files; returns what was found, in words."""
    found = []
    for name in os.listdir(host.run_dir):
        token, _, kind = name.rpartition(".")
        if kind not in _KINDS or not is_dead(token, host.run_dir):
            continue
        path = os.path.join(host.run_dir, name)
        if kind == "pid":
            _end(path)
            found.append("the helper of a program that is dead")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return found


def _end(path: str) -> None:
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read().split()[0])
        opened = pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
        return
    with (
        opened as fd,
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        open(f"/proc/{pid}/cmdline", "rb") as file,
    ):
        # The number may be another's by now: a helper has been given this very path.
        if path.encode() in file.read().split(b"\0"):
            signal.pidfd_send_signal(fd, signal.SIGKILL)


__all__ = ["Userland", "sweep"]
