"""A bridge that is there without a sandbox, for as long as a program holds it open."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandboxlib.engine import bridges
from sandboxlib.engine.alone import OpenNamespace, OpenNetwork
from sandboxlib.engine.current import program
from sandboxlib.engine.ledger import Member, locked
from sandboxlib.errors import StateError
from sandboxlib.kernel.cgroup import fresh_name
from sandboxlib.kernel.cgroup.owner import PREFIX
from sandboxlib.kernel.descriptor import openat
from sandboxlib.plan import network as planned
from sandboxlib.spec import SandboxSpec

if TYPE_CHECKING:
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.host import Host
    from sandboxlib.network import Network


class OpenBridge(OpenNetwork):
    """
    A bridge; made by `Network.open`. Sandboxes that name it come and go meanwhile.

    Attributes:
        interface: The bridge's name on this host.
        subnet: Its range of IPv4 addresses, or of IPv6 where it has no other.
        gateway: Its own address in that.
        subnet6: Its range of IPv6 addresses, or None.
        gateway6: Its own address in that, or None.
    """

    def __init__(self, network: Network, host: Host) -> None:
        # A bridge lies in this program's own.
        super().__init__(network, OpenNamespace("network", openat("/proc/thread-self/ns/net", os.O_RDONLY)))
        self._host = host
        self._token = PREFIX + fresh_name().removeprefix(PREFIX)
        self._open = False

    def make(self) -> None:
        """Make it, or find it. Raises: NetworkError, UnsupportedError, KernelError; see `hold`."""
        with locked(self._host.run_dir) as book:
            bridges.sweep(book, self._host)
            net = bridges.ensure(book, self.network, self._host)
            book.members[self._token] = Member(net.name)
            book.save()
        self._open = True
        self.interface = net.bridge
        self.subnet, self.gateway = net.v4 or net.v6, net.gateway4 or net.gateway6
        self.subnet6, self.gateway6 = net.v6 or None, net.gateway6 or None

    @property
    def endpoints(self) -> dict[str, str]:
        """
        Who is on it now: addresses by name; those without one by the name of their interface here.

        Raises:
            StateError: It is closed.
        """
        if not self._open:
            raise StateError("the network is closed")
        assert self.network.name is not None
        found: dict[str, str] = {}
        with locked(self._host.run_dir) as book:
            for member in book.on(self.network.name):
                if member.link:
                    found |= dict.fromkeys(member.names or [member.link], member.v4 or member.v6)
        return found

    def _leave(self) -> None:
        self.namespace.close()
        if self._open:
            self._open = False
            with locked(self._host.run_dir) as book:
                if self._token in book.members:
                    bridges.leave(book, self._token, self._host)

    async def aclose(self, waiter: Waiter) -> None:
        """Let go of it: it is gone when nobody is on it. Idempotent."""
        await waiter.work(self._leave)

    def close(self) -> None:
        """Let go of it: it is gone when nobody is on it. Idempotent."""
        self._leave()

    def __repr__(self) -> str:
        return f"<OpenBridge {self.network!r}{'' if self._open else ' closed'}>"


async def hold(waiter: Waiter, network: Network) -> OpenBridge:
    """
    Make the bridge *network*, or find it, and hold it.

    Raises:
        UnsupportedError: This host cannot make it.
        NetworkError: It is there and not as asked for, or its addresses are not free.
    """
    host = program().host
    planned.check(SandboxSpec(network=network), host)
    held = OpenBridge(network, host)
    await waiter.work(held.make)
    return held


__all__ = ["OpenBridge", "hold"]
