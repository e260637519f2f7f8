"""What one sandbox has of networks: its place on each, its names, and the ports that lead to it."""

from __future__ import annotations

import contextlib
import errno
import os
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import attrs

from sandboxlib.engine import (
    announce,
    bridges,
    firewall,
    forwarding,
    hosts,
    pool,
    port_security,
    resolver,
    teardown,
)
from sandboxlib.engine.ledger import Book, Member, Net, locked
from sandboxlib.engine.ports import Taken
from sandboxlib.engine.presence import Presence
from sandboxlib.engine.ranges import Surroundings
from sandboxlib.engine.rules import MARK_PORT
from sandboxlib.errors import KernelError, NetworkError, UnsupportedError
from sandboxlib.kernel import conntrack, links, packet_filter, routes, traffic
from sandboxlib.kernel.descriptor import spare
from sandboxlib.kernel.netlink import Message, carry_out, open_socket
from sandboxlib.kernel.owner import PREFIX

if TYPE_CHECKING:
    import socket

    from sandboxlib.host import Host
    from sandboxlib.kernel.owner import Owner
    from sandboxlib.network import Network
    from sandboxlib.spec import SandboxSpec

_STEP = "interfaces of the sandbox"
#: The index of eth0 inside: behind those that some kernels give a new namespace by themselves (tunl0, sit0).
_INSIDE = 100
_TRIES = 3


class Connections:
    """
    The places of one sandbox on bridges.

    Attributes:
        values: What the plan's ``{hosts}`` and ``{resolv}`` stand for.
        ports: What is published.
        members: By token.
    """

    def __init__(self, spec: SandboxSpec, host: Host, owner: Owner) -> None:
        assert spec.network is not None
        self._spec = spec
        self._host = host
        self._owner = owner
        self._networks = spec.network.every
        self._token = ""
        self._nets: dict[str, Net] = {}
        self._used_before: list[str] = []
        self._present: Presence | None = None
        # Something may be there that is ours: a folder; and once the book was read, what it tells of.
        self._begun = self._entered = False
        self.ports = Taken()
        self.members: dict[str, Member] = {}
        self.values: dict[str, str] = {}

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Its addresses by network."""
        return {member.network: tuple(member.addresses) for member in self.members.values()}

    # ---- before the start -------------------------------------------------------------------

    def prepare(self) -> None:
        """
        Enter it on its networks, which are made where they are missing.

        Raises:
            NetworkError: An address, a name or a port is taken.
            UnsupportedError: This kernel cannot make a network.
            KernelError: A step failed; `release` takes back what was done.
        """
        servers = resolver.of_host() if self._networks[0].dns is None else resolver.NameServers()
        self._owner.hold(self)
        self._token = PREFIX + self._owner.name()
        self._begun = True
        around: Surroundings | None = None
        with spare():
            while not self._prepared(servers, around):
                # Without the lock: it takes as long as the host has connections and routes.
                teardown.sweep(self._host.run_dir)
                around = Surroundings.look(resolver.of_host().every)

    def _prepared(self, servers: resolver.NameServers, around: Surroundings | None) -> bool:
        with locked(self._host.run_dir) as book:
            new = any(network.name not in book.networks for network in self._networks)
            if teardown.is_due(book) or (new and around is None):
                return False
            if self._present is None:
                book.rules.owner = book.rules.owner or os.urandom(8).hex()
                self._present = Presence(book.rules.owner)
            self._entered = True
            for number, network in enumerate(self._networks):
                self._enter(book, network, number, around)
            self._servers(book, servers)
            self._files(book, servers)
            book.save()
            self._nets = {
                token: attrs.evolve(book.networks[member.network]) for token, member in self.members.items()
            }  # fmt: skip
        return True

    def _enter(self, book: Book, network: Network, number: int, around: Surroundings | None) -> None:
        net = bridges.ensure(book, network, self._host, around)
        token = PREFIX + self._owner.name()
        link = "sbxv" + os.urandom(5).hex()
        member = Member(net.name, link, f"eth{number}", rate=network.rate is not None)
        others = book.on(net.name)
        # It keeps the network from being taken for one that nobody is on.
        self.members[token] = book.members[token] = member
        self._addresses(net, member, others, network)
        self._names(net, member, others)
        if not number:
            self._ports(net, member)

    def _addresses(self, net: Net, member: Member, others: list[Member], network: Network) -> None:
        what = f"network {net.name!r}"
        for family, subnet, gateway in ((4, net.v4, net.gateway4), (6, net.v6, net.gateway6)):
            wanted = next((text for text in network.address if ip_address(text).version == family), None)
            if not subnet:
                if wanted:
                    raise NetworkError(f"{what} has no IPv{family}, and so not {wanted}")
                continue
            field = f"v{family}"
            taken = {gateway, *(getattr(other, field) for other in others)} - {""}
            if wanted:
                found, place = wanted, pool.check_address(what, wanted, subnet, taken)
            else:
                found, place = pool.free_address(what, subnet, taken, getattr(net, f"last{family}"))
                setattr(net, f"last{family}", place)
            if net.give(family, place):
                self._used_before.append(found)
            setattr(member, field, found)
        macs = {other.mac for other in others} | {pool.mac_of(net.gateway4 or net.gateway6)}
        if network.mac in macs:
            raise NetworkError(f"the MAC address {network.mac} is taken on {what}")
        member.mac = network.mac or pool.mac_of(member.v4 or member.v6, macs)

    def _names(self, net: Net, member: Member, others: list[Member]) -> None:
        spec = self._spec
        names = [spec.hostname] if spec.hostname else []
        if spec.hostname and spec.domainname:
            names.append(f"{spec.hostname}.{spec.domainname}")
        member.names = list(dict.fromkeys([*names, *spec.aliases]))
        taken = {name.lower() for other in others for name in other.names}
        for name in member.names:
            if name.lower() in taken:
                raise NetworkError(f"the name {name!r} is taken on network {net.name!r}")

    def _ports(self, net: Net, member: Member) -> None:
        for port in self._spec.ports:
            if not (member.v6 if ":" in port.address else member.v4 or not port.address):
                family = 6 if ":" in port.address else 4
                raise NetworkError(
                    f"port {port.address}:{port.port} needs a network with IPv{family}: {net.name!r} has none"
                )
        self.ports.take(self._spec.ports, ipv6=bool(member.v6), mark=MARK_PORT)
        member.ports = self.ports.published

    def _servers(self, book: Book, servers: resolver.NameServers) -> None:
        """Let sandboxes ask name servers that they cannot reach as others are reached."""
        if self._networks[0].dns is not None:
            return
        first = next((net for net in self._with_way_out(book) if net.v4), None)
        changed = firewall.of_host(book)
        if first is not None:
            book.servers.near = sorted({*book.servers.near, *servers.near})
            if servers.local and not servers.every:
                # Where /proc/sys cannot be written to, there is none, and the file says so.
                with contextlib.suppress(UnsupportedError):
                    forwarding.allow_localnet(first)
                    book.servers.local = servers.local
        before, now = set(changed), set(firewall.of_host(book))
        firewall.change(book, add=now - before, remove=before - now)

    def _with_way_out(self, book: Book) -> list[Net]:
        nets = [book.networks[member.network] for member in self.members.values()]
        return [net for net in nets if not net.internal]

    def _files(self, book: Book, servers: resolver.NameServers) -> None:
        first = self._networks[0]
        token = next(iter(self.members))
        if len(self.members) == 1 and not first.hosts:
            # The one that all have who are on this network alone.
            net = book.networks[self.members[token].network]
            path = book.path(f"{net.bridge}.hosts")
            if not os.path.exists(path):
                hosts.create(path, _lines(book, net.name))
        else:
            path = book.path(f"{token}.hosts")
            extra = [f"{address} {name}" for one in self._networks for name, address in one.hosts]
            mine = {member.network for member in self.members.values()}
            hosts.create(path, [*extra, *(line for name in sorted(mine) for line in _lines(book, name))])
        for member in self.members.values():
            member.hosts = path
        resolv = book.path(f"{token}.resolv")
        outside = self._with_way_out(book)
        versions = tuple(
            version for version in (4, 6) if any(net.v4 if version == 4 else net.v6 for net in outside)
        )
        gateway = next((net.gateway4 for net in outside if net.v4), "")
        resolver.resolver(
            resolv, first.dns, first.search, reachable=bool(outside), servers=servers, versions=versions,
            gateway=gateway if book.servers.local else "",
        )  # fmt: skip
        self.values = {"hosts": path, "resolv": resolv}

    # ---- pid 1 is there -----------------------------------------------------------------------

    def connect(self, pid: int, inside: socket.socket) -> None:
        """
        Make the interfaces of the sandbox with pid 1 *pid*.

        Args:
            pid: The peer of each pair is made in its network namespace.
            inside: A netlink socket of that.

        Raises:
            KernelError: A step failed.
        """
        # Whoever had them before is gone, and all that was known of him; once more, for what came since.
        conntrack.forget(self._used_before)
        with open_socket() as sock:
            self._plug(sock, pid)
            carry_out(inside, self._inside(), "addresses of the sandbox")
            for member, network in zip(self.members.values(), self._networks, strict=True):
                if network.rate is not None:
                    traffic.shape(sock, member.link, teardown.queue_of(member), network.rate)
            for token, member in self.members.items():
                announce.announce(sock, self._nets[token], member, self._used_before)
        if any(member.ports or member.names for member in self.members.values()):
            with locked(self._host.run_dir) as book:
                places = self._publish(book)
            if places:
                self._forget(places)

    def _plug(self, sock: socket.socket, pid: int) -> None:
        """Make the pairs; no end is a port of a bridge before it has its filters."""
        for attempt in range(_TRIES):
            try:
                carry_out(sock, self._ports_of_bridges(pid), _STEP)
            except KernelError as error:
                if packet_filter.is_filter(error.call) and links.is_missing(error):
                    raise packet_filter.refused("a place on a bridge") from error
                # Its number is taken, which nobody else should have.
                if error.errno != errno.EEXIST or attempt == _TRIES - 1:
                    raise
                teardown.unplug(self.members.values(), at_once=True)
            else:
                return

    def _ports_of_bridges(self, pid: int) -> list[Message]:
        made: list[Message] = []
        after: list[Message] = []
        sides = []
        for number, (token, member) in enumerate(self.members.items()):
            net, index = self._nets[token], links.fresh_index()
            peer = (member.inside, _INSIDE + number, member.mac, pid)
            made.append(links.veth(member.link, index, net.mtu, peer))
            sides += port_security.sides(index, net, member)
            if self._host.ipv6:
                after.append(links.own_ipv6(member.link, wanted=False))
            # By its name: if it could not be made, nobody else's is meant.
            after.append(links.enslave(member.link, links.index(net.bridge)))
            if member.ports and bridges.filters_frames():
                after.append(links.hairpin(index))
        return made + packet_filter.guarded(sides) + after

    def _inside(self) -> list[Message]:
        found, ways = [], []
        for number, ((token, member), network) in enumerate(
            zip(self.members.items(), self._networks, strict=True)
        ):
            net, index = self._nets[token], _INSIDE + number
            if self._host.ipv6:
                # By its MAC address, which the filter at its port knows.
                found.append(links.own_ipv6(index, wanted=bool(net.v6)))
            found.append(links.up(index))
            for address, subnet in ((member.v4, net.v4), (member.v6, net.v6)):
                if address:
                    found.append(routes.address(index, address, ip_network(subnet).prefixlen))
            if not net.internal:
                ways += [(index, "0.0.0.0/0", net.gateway4)] if net.v4 else []
                ways += [(index, "::/0", net.gateway6)] if net.v6 else []
            ways += [(index, target, over) for target, over in network.routes]
        # The way to everywhere is over the first network that has one.
        first = {target: (index, target, over) for index, target, over in reversed(ways)}
        return found + [routes.route(*way) for way in first.values()]

    def _publish(self, book: Book) -> list[tuple[str, int]]:
        """Let others find it; returns its places of UDP on this host."""
        added, forgotten = [], []
        for token in self.members:
            # As it stands there: others may have changed the network meanwhile.
            member = book.members[token]
            hosts.rename(book, member, add=True)
            net = book.networks[member.network]
            if any(port[0] in ("", "0.0.0.0") or port[0].startswith("127.") for port in member.ports):
                # The host's 127.0.0.1 may then be a source on this bridge, and on no other interface.
                forwarding.allow_localnet(net)
            if not net.forwards and any(not _is_loopback(port[0]) for port in member.ports):
                # Nothing gets out by itself, but answers do to who asked from outside.
                bridges.forward(book, net)
            added += firewall.of_ports(net, member)
            member.published = bool(member.ports)
            self.members[token] = member
            forgotten += [(port[0], port[1]) for port in member.ports if port[2] == "udp"]
        firewall.change(book, add=added)
        book.save()
        return forgotten

    def _forget(self, places: list[tuple[str, int]]) -> None:
        """Let those who spoke to its ports before meet it from now on."""
        keep = [address for member in self.members.values() for address in member.addresses]
        with open_socket() as sock:
            own = {one.text for one in routes.addresses(sock)}
        conntrack.forget_ports(places, own, keep)

    # ---- the end --------------------------------------------------------------------------------

    def release(self) -> None:
        """Take it off its networks. Idempotent: what was interrupted is carried on with."""
        if self._begun:
            try:
                teardown.leave(self._host.run_dir, self.members, self._token)
            except (NetworkError, OSError):
                # In a book that could not be read from the first is nothing of ours.
                if self._entered:
                    raise
            self._begun = False
        self.members.clear()
        self.ports.release()
        if self._present is not None:
            self._present.leave()
        self._owner.drop(self)


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _lines(book: Book, network: str) -> list[str]:
    """What those on a network are found by, who are connected by now."""
    return [
        line
        for member in book.on(network)
        if member.hosts
        for line in hosts.lines(member.v4, member.v6, member.names)
    ]


__all__ = ["Connections"]
