"""What one sandbox has of networks: its place on each, its names, and the ports that lead to it."""

from __future__ import annotations

import contextlib
import os
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from sandboxlib.engine import bridges, firewall, hosts, pool
from sandboxlib.engine.ledger import Book, Member, Net, locked
from sandboxlib.engine.ports import Taken
from sandboxlib.errors import NetworkError
from sandboxlib.kernel import netlink, traffic
from sandboxlib.kernel.cgroup import fresh_name
from sandboxlib.kernel.cgroup.owner import PREFIX
from sandboxlib.kernel.syscall import write_file

if TYPE_CHECKING:
    import socket

    from sandboxlib.host import Host
    from sandboxlib.network import Network
    from sandboxlib.spec import SandboxSpec


class Connections:
    """
    The places of one sandbox on bridges.

    Attributes:
        values: What the plan's ``{hosts}`` and ``{resolv}`` stand for.
        ports: What is published.
        members: By token.
    """

    def __init__(self, spec: SandboxSpec, host: Host) -> None:
        assert spec.network is not None
        self._spec = spec
        self._host = host
        self._networks = spec.network.every
        self.ports = Taken()
        self.members: dict[str, Member] = {}
        self.values: dict[str, str] = {}

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Its addresses by network."""
        return {
            member.network: tuple(filter(None, (member.v4, member.v6))) for member in self.members.values()
        }

    def prepare(self) -> None:
        """
        Enter it on its networks, which are made where they are missing.

        Raises:
            NetworkError: An address, a name or a port is taken.
            UnsupportedError: This kernel cannot make a network.
            KernelError: A step failed; nothing is left of it.
        """
        with locked(self._host.run_dir) as book:
            bridges.sweep(book, self._host)
            try:
                for number, network in enumerate(self._networks):
                    self._enter(book, network, number)
                self._files(book)
                book.save()
            except BaseException:
                self._leave(book)
                raise

    def _enter(self, book: Book, network: Network, number: int) -> None:
        token = PREFIX + fresh_name().removeprefix(PREFIX)
        net = bridges.ensure(book, network, self._host)
        link = "sbxv" + os.urandom(5).hex()
        member = Member(net.name, link, f"eth{number}")
        # It keeps the network from being taken for one that nobody is on.
        self.members[token] = book.members[token] = member
        others = [other for other in book.on(net.name) if other is not member]
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
                pool.check_address(what, wanted, subnet, taken)
                found = wanted
            else:
                found, last = pool.free_address(what, subnet, taken, getattr(net, f"last{family}"))
                setattr(net, f"last{family}", last)
            setattr(member, field, found)
        member.mac = network.mac or pool.mac_of(member.v4 or member.v6)
        if member.mac in {other.mac for other in others} | {pool.mac_of(net.gateway4 or net.gateway6)}:
            raise NetworkError(f"the MAC address {member.mac} is taken on {what}")

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
        self.ports.take(self._spec.ports, ipv6=bool(member.v6))
        member.ports = self.ports.published

    def _files(self, book: Book) -> None:
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
        outside = any(not book.networks[member.network].internal for member in self.members.values())
        hosts.resolver(resolv, first.dns, first.search, reachable=outside)
        self.values = {"hosts": path, "resolv": resolv}

    def connect(self, pid: int, inside: socket.socket) -> None:
        """
        Make the interfaces of the sandbox with pid 1 *pid*.

        Args:
            pid: The peer of each pair is made in its network namespace.
            inside: A netlink socket of that.

        Raises:
            KernelError: A step failed.
        """
        pairs = list(zip(self.members.values(), self._networks, strict=True))
        with locked(self._host.run_dir) as book, netlink.open_socket() as sock:
            netlink.carry_out(sock, self._outside(book, pid), "interfaces of the sandbox")
            numbers = [netlink.index_at(inside, member.inside) for member, _ in pairs]
            netlink.carry_out(inside, self._inside(book, numbers), "addresses of the sandbox")
            for member, network in pairs:
                if network.rate is not None:
                    traffic.shape(sock, member.link, bridges.queue_of(member), network.rate)
            self._publish(book)

    def _outside(self, book: Book, pid: int) -> list[netlink.Message]:
        found = []
        for member in self.members.values():
            net = book.networks[member.network]
            peer = (member.inside, member.mac, pid)
            found.append(netlink.veth(member.link, netlink.index(net.bridge), net.mtu, peer))
            if self._host.ipv6:
                found.append(netlink.without_ipv6(member.link))
            found.append(netlink.up(member.link))
        return found

    def _inside(self, book: Book, numbers: list[int]) -> list[netlink.Message]:
        found, ways = [], []
        for index, member, network in zip(numbers, self.members.values(), self._networks, strict=True):
            net = book.networks[member.network]
            if self._host.ipv6 and not net.v6:
                found.append(netlink.without_ipv6(index))
            found.append(netlink.up(index))
            for address, subnet in ((member.v4, net.v4), (member.v6, net.v6)):
                if address:
                    found.append(netlink.address(index, address, ip_network(subnet).prefixlen))
            if not net.internal:
                ways += [(index, "0.0.0.0/0", net.gateway4)] if net.v4 else []
                ways += [(index, "::/0", net.gateway6)] if net.v6 else []
            ways += [(index, target, over) for target, over in network.routes]
        # The way to everywhere is over the first network that has one.
        first = {target: (index, target, over) for index, target, over in reversed(ways)}
        return found + [netlink.route(*way) for way in first.values()]

    def _publish(self, book: Book) -> None:
        for member in self.members.values():
            bridges.rename(book, member, add=True)
            net = book.networks[member.network]
            if any(not port[0] or port[0].startswith("127.") for port in member.ports):
                # The host's 127.0.0.1 may then be a source on this bridge, and on no other interface.
                write_file(f"/proc/sys/net/ipv4/conf/{net.bridge}/route_localnet", "1")
            if member.ports and bridges.filters_frames():
                with netlink.open_socket() as sock:
                    netlink.carry_out(sock, [netlink.hairpin(netlink.index(member.link))])
            firewall.add(firewall.of_ports(net, member), self._host)

    def release(self) -> None:
        """Take it off its networks. Idempotent."""
        try:
            if self.members:
                with locked(self._host.run_dir) as book:
                    self._leave(book)
        finally:
            self.ports.release()

    def _leave(self, book: Book) -> None:
        with contextlib.ExitStack() as left:
            # The last that is entered here goes first; what fails does not keep the others.
            left.callback(self.ports.release)
            left.callback(bridges.remove_empty, book, self._host)
            for token in list(self.members):
                left.callback(self._leave_one, book, token)

    def _leave_one(self, book: Book, token: str) -> None:
        del self.members[token]
        if token in book.members:
            bridges.leave(book, token, self._host)


def _lines(book: Book, network: str) -> list[str]:
    """What those on a network are found by, who are connected by now."""
    return [
        line
        for member in book.on(network)
        if member.hosts
        for line in hosts.lines(member.v4, member.v6, member.names)
    ]


__all__ = ["Connections"]
