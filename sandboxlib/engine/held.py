"""A bridge that is there without a sandbox, for as long as a program holds it open."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandboxlib.doors import doors
from sandboxlib.engine import bridges, resolver, teardown
from sandboxlib.engine.alone import OpenNamespace, OpenNetwork
from sandboxlib.engine.current import program
from sandboxlib.engine.ledger import Member, Net, locked
from sandboxlib.engine.presence import Presence
from sandboxlib.engine.ranges import Surroundings
from sandboxlib.errors import StateError
from sandboxlib.kernel.descriptor import openat, spare
from sandboxlib.kernel.owner import PREFIX
from sandboxlib.plan import network as planned
from sandboxlib.spec import SandboxSpec

if TYPE_CHECKING:
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.host import Host
    from sandboxlib.kernel.owner import Owner
    from sandboxlib.network import Network


@doors
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

    def __init__(self, network: Network, host: Host, owner: Owner) -> None:
        # A bridge lies in this program's own.
        space = OpenNamespace("network").know(openat("/proc/thread-self/ns/net", os.O_RDONLY))
        super().__init__(network, space)
        self._host = host
        self._owner = owner
        self._pid = os.getpid()
        self._token = ""
        self._open = False
        self._present: Presence | None = None

    def make(self) -> None:
        """Make it, or find it. Raises: NetworkError, UnsupportedError, KernelError; see `hold`."""
        self._owner.hold(self)
        self._token = PREFIX + self._owner.name()
        around: Surroundings | None = None
        with spare():
            self._open = True
            while (net := self._made(around)) is None:
                teardown.sweep(self._host.run_dir)
                around = Surroundings.look(resolver.of_host().every)
        self.interface = net.bridge
        self.subnet, self.gateway = net.v4 or net.v6, net.gateway4 or net.gateway6
        self.subnet6, self.gateway6 = net.v6 or None, net.gateway6 or None

    def _made(self, around: Surroundings | None) -> Net | None:
        with locked(self._host.run_dir) as book:
            new = self.network.name not in book.networks
            if teardown.is_due(book) or (new and around is None):
                return None
            if self._present is None:
                book.rules.owner = book.rules.owner or os.urandom(8).hex()
                self._present = Presence(book.rules.owner)
            net = bridges.ensure(book, self.network, self._host, around)
            book.members[self._token] = Member(net.name)
            book.save()
        return net

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
        if self._pid != os.getpid():
            # Of the process that this one was forked from, which is on it still.
            return
        if self._open:
            teardown.leave(self._host.run_dir, {self._token: Member(self.network.name or "")}, self._token)
            self._open = False
        if self._present is not None:
            self._present.leave()
        self._owner.drop(self)

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
    await program().sweep(waiter)
    held = OpenBridge(network, host, program().owner)
    try:
        await waiter.work(held.make)
    except BaseException:
        with waiter.shield():
            await held.aclose(waiter)
        raise
    return held


__all__ = ["OpenBridge", "hold"]
