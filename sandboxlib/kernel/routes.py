"""
Addresses and routes.

Kernel: rtnetlink(7), include/uapi/linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from sandboxlib.errors import KernelError
from sandboxlib.kernel.netlink import CREATE, EXCL, Message, ask, attribute, attributes, dump, number

_NEWADDR, _DELADDR, _GETADDR, _NEWROUTE, _GETROUTE, _NEWRULE = 20, 21, 22, 24, 26, 32
_HEAD_ADDRESS = struct.Struct("=BBBBi")
_HEAD = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_DESTINATION, _OUT, _GATEWAY = 1, 4, 5
#: RT_TABLE_MAIN, RTPROT_STATIC; RTN_UNICAST, RTN_UNREACHABLE; FR_ACT_UNREACHABLE.
_MAIN, _STATIC, _UNICAST, _UNREACHABLE = 254, 4, 1, 7
_CLONED = 0x200


class Route(NamedTuple):
    """
    A route.

    Attributes:
        version: 4 or 6.
        first: The first address of its range, as a number.
        prefix: How many bits all in it have in common.
        link: The index of its interface, or 0.
    """

    version: int
    first: int
    prefix: int
    link: int


class Address(NamedTuple):
    """An address of this host. Attributes: version; number; prefix, of its network; link, its interface."""

    version: int
    number: int
    prefix: int
    link: int

    @property
    def text(self) -> str:
        """As it is written."""
        return str(ip_address(self.number.to_bytes(4 if self.version == 4 else 16, "big")))


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def address(link: int, value: str, prefix: int) -> Message:
    """Give the interface with index *link* an address; an IPv6 one needs no test for duplicates."""
    found = ip_address(value)
    flags = 0 if found.version == 4 else 2
    body = _HEAD_ADDRESS.pack(_family(found.version), prefix, flags, 0, link)
    body += attribute(1, found.packed) + (attribute(2, found.packed) if found.version == 4 else b"")
    return Message(_NEWADDR, CREATE | EXCL, body, f"ip address add {value}/{prefix} dev {link}")


def no_address(link: int, value: str, prefix: int) -> Message:
    """Take an address from an interface; one that it has not is no failure."""
    found = ip_address(value)
    body = _HEAD_ADDRESS.pack(_family(found.version), prefix, 0, 0, link) + attribute(2, found.packed)
    shown = f"ip address delete {value}/{prefix} dev {link}"
    return Message(_DELADDR, 0, body, shown, (errno.EADDRNOTAVAIL,))


def route(link: int, destination: str, gateway: str) -> Message:
    """Make a route over *gateway*; *destination* is a range."""
    network, over = ip_network(destination), ip_address(gateway)
    body = _HEAD.pack(_family(over.version), network.prefixlen, 0, 0, _MAIN, _STATIC, 0, _UNICAST, 0)
    if network.prefixlen:
        body += attribute(_DESTINATION, network.network_address.packed)
    body += attribute(_GATEWAY, over.packed) + number(_OUT, link)
    return Message(_NEWROUTE, CREATE | EXCL, body, f"ip route add {destination} via {gateway}")


def unreachable(destination: str) -> Message:
    """Let a range lead nowhere. Kernel: RTN_UNREACHABLE."""
    network = ip_network(destination)
    body = _HEAD.pack(_family(network.version), network.prefixlen, 0, 0, _MAIN, _STATIC, 0, _UNREACHABLE, 0)
    body += attribute(_DESTINATION, network.network_address.packed)
    return Message(_NEWROUTE, CREATE | EXCL, body, f"ip route add unreachable {destination}")


def every(sock: socket.socket) -> list[Route]:
    """
    All routes of all tables, of both families, but the default ones.

    A router may have a million: as little is done for each as can be.
    """
    found = []
    for version in (4, 6):
        family = _family(version)
        for data in _dump(sock, _GETROUTE, _HEAD.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            # Where a family is missing, the kernel answers for all.
            if data[0] == family and data[1] and not _HEAD.unpack_from(data)[8] & _CLONED:
                found.append(_read(version, data))  # noqa: PERF401 - a million of them
    return found


def _read(version: int, data: bytes) -> Route:
    first, link, at = 0, 0, _HEAD.size
    while at + 4 <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind == _DESTINATION:
            first = int.from_bytes(data[at + 4 : at + size], "big")
        elif kind == _OUT:
            link = struct.unpack_from("=I", data, at + 4)[0]
        at += max(4, size + -size % 4)
    return Route(version, first, data[1], link)


def _dump(sock: socket.socket, kind: int, body: bytes) -> list[bytes]:
    try:
        return dump(sock, kind, body)
    except KernelError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            return []
        raise


def addresses(sock: socket.socket) -> Iterator[Address]:
    """All addresses of this host, of both families."""
    for version in (4, 6):
        family = _family(version)
        for data in _dump(sock, _GETADDR, _HEAD_ADDRESS.pack(family, 0, 0, 0, 0)):
            if data[0] == family:
                known = attributes(data[_HEAD_ADDRESS.size :])
                # IFA_LOCAL differs from IFA_ADDRESS at the end of a tunnel: that is the other side.
                packed = int.from_bytes(known.get(2) or known.get(1, b""), "big")
                yield Address(version, packed, data[1], _HEAD_ADDRESS.unpack_from(data)[4])


def way(sock: socket.socket, target: str) -> int:
    """
    By which interface this host reaches *target*: its index; 0 if it does not, or is itself the target.

    Kernel: RTM_GETROUTE, as ``ip route get``.
    """
    kind = socket.AF_INET6 if ":" in target else socket.AF_INET
    packed = socket.inet_pton(kind, target)
    body = _HEAD.pack(kind, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0) + attribute(_DESTINATION, packed)
    try:
        data = ask(sock, Message(_GETROUTE, 0, body, f"ip route get {target}"))
    except KernelError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAGAIN):
            return 0
        raise
    return _read(4, data).link if data[7] == _UNICAST else 0


__all__ = ["Address", "Route", "address", "addresses", "every", "no_address", "route", "unreachable", "way"]
