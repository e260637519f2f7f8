"""
What this host's network has already, and what a new network of ours is to have.

Looking takes as long as the host has routes, so it is done before the lock of the book is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import attrs

from sandboxlib.engine import pool
from sandboxlib.engine.ledger import Book, Net
from sandboxlib.errors import KernelError, NetworkError
from sandboxlib.kernel import links, routes
from sandboxlib.kernel.netlink import open_socket

if TYPE_CHECKING:
    from sandboxlib.network import Network

# The last range of IPv4 that this program chose: a book is forgotten with its last network.
_last = ""
#: Somewhere outside, to which nobody has a route of its own (RFC 5737, RFC 3849).
_ELSEWHERE = ("203.0.113.1", "2001:db8:ffff::1")


@attrs.frozen
class Surroundings:
    """
    What this host uses already, looked at before the lock is taken.

    Attributes:
        own: Its addresses: (network, address, index of the interface).
        taken: What ranges that are chosen must not touch.
        loose: What they should not touch.
        mtu: Of the way out.
    """

    own: tuple[tuple[pool.Range, str, int], ...]
    taken: tuple[pool.Range, ...]
    loose: tuple[pool.Range, ...]
    mtu: int

    @classmethod
    def look(cls, servers: Iterable[str]) -> Surroundings:
        """Look. *servers* are this host's name servers, of whatever kind."""
        own: list[tuple[pool.Range, str, int]] = []
        taken: list[pool.Range] = []
        loose: list[pool.Range] = []
        with open_socket() as sock:
            for one in routes.addresses(sock):
                bits = 32 if one.version == 4 else 128
                # An address that is said to be of a network of (nearly) everything is its own alone.
                prefix = one.prefix if one.prefix >= 8 else bits
                network = _range(one.version, one.number, prefix)
                own.append((network, str(network.network_address + _within(one.number, network)), one.link))
                taken.append(network)
            for route in routes.every(sock):
                size = 1 << (32 if route.version == 4 else 128) - route.prefix
                if pool.is_near(route.version, route.first, route.first + size - 1):
                    exact = route.prefix >= (pool.PREFIX if route.version == 4 else pool.PREFIX6)
                    (taken if exact else loose).append(_range(route.version, route.first, route.prefix))
            mtu = _mtu_of_way_out(sock)
        taken += [ip_network(server) for server in servers]
        return cls(tuple(own), tuple(taken), tuple(loose), mtu)


def _range(version: int, number: int, prefix: int) -> pool.Range:
    address = ip_address(number.to_bytes(4 if version == 4 else 16, "big"))
    return ip_network((address.packed, prefix), strict=False)


def _within(number: int, network: pool.Range) -> int:
    return number - int(network.network_address)


def _mtu_of_way_out(sock: socket.socket) -> int:
    for target in _ELSEWHERE:
        link = routes.way(sock, target)
        if link:
            with contextlib.suppress(KernelError):
                return max(1280, links.find(sock, link).mtu)
    return 1500


def planned(book: Book, network: Network, around: Surroundings) -> Net:
    """
    What a network will be that is not there yet.

    Raises:
        NetworkError: Its addresses are not free.
    """
    global _last  # noqa: PLW0603 - as above
    assert network.name is not None
    net = Net(network.name, _bridge_name(network), internal=network.internal, forwards=not network.internal)
    others = [ip_network(text) for net in book.networks.values() for text in (net.v4, net.v6) if text]
    if network.subnet is not None:
        _check_subnet(book, net, network.subnet, around)
    if network.subnet is not None and ":" in network.subnet:
        net.v6 = network.subnet
        net.gateway6 = network.gateway or pool.first_address(net.v6)
    else:
        taken = [*around.taken, *others]
        if network.subnet is None:
            book.range = _last = net.v4 = pool.free_ipv4(taken, around.loose, book.range or _last)
        else:
            net.v4 = network.subnet
        net.gateway4 = network.gateway or pool.first_address(net.v4)
        if network.ipv6:
            net.v6 = pool.free_ipv6(taken, around.loose)
            net.gateway6 = pool.first_address(net.v6)
    both = ((net.v4, net.gateway4), (net.v6, net.gateway6))
    net.someone = [_someone(subnet, gateway) for subnet, gateway in both if subnet]
    net.mtu = network.mtu or around.mtu
    net.last4, net.top4 = book.past.get(net.v4, (0, 0))
    net.last6, net.top6 = book.past.get(net.v6, (0, 0))
    return net


def _someone(subnet: str, gateway: str) -> str:
    network = ip_network(subnet)
    return next(str(network[at]) for at in (-2, -3) if str(network[at]) != gateway)


def _check_subnet(book: Book, net: Net, subnet: str, around: Surroundings) -> None:
    """A range that is named is taken, but where this host or another network would lose its own."""
    wanted = ip_network(subnet)
    for other in book.networks.values():
        for text in (other.v4, other.v6):
            if text and wanted.version == ip_network(text).version and wanted.overlaps(ip_network(text)):
                raise NetworkError(
                    f"network {net.name!r}: {wanted} overlaps {text} of network {other.name!r}"
                )  # fmt: skip
    for network, address, link in around.own:
        if network.version == wanted.version and ip_address(address) in wanted:
            raise NetworkError(
                f"network {net.name!r}: {wanted} has this host's own address {address}, of {network}"
                f"{_over(link)}: choose another subnet="
            )


def _over(link: int) -> str:
    with contextlib.suppress(OSError):
        return f" over {socket.if_indextoname(link)}"
    return ""


def _bridge_name(network: Network) -> str:
    """``sbx-`` and ten digits of a hash; an internal one has an ``i`` before, by which the rules know it."""
    taken = links.names()
    number = 0
    while True:
        digits = hashlib.sha256(f"{network.name}/{number}".encode()).hexdigest()[:10]
        found = f"sbx-{'i' if network.internal else ''}{digits}"
        if found not in taken:
            return found
        number += 1


__all__ = ["Surroundings", "planned"]
