"""
Interfaces, addresses and routes by messages of our own.

One request carries many messages, so that what a sandbox needs is made in one call.
The socket decides whose network it is: it is given, and may come from another namespace.

Kernel: netlink(7), rtnetlink(7), include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from sandboxlib.errors import KernelError

if TYPE_CHECKING:
    from ipaddress import IPv4Network

ROUTE, NETFILTER = 0, 12
_ACK, _REQUEST, _DUMP, _EXCL, _CREATE = 0x4, 0x1, 0x300, 0x200, 0x400
_ERROR, _DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _NEWROUTE, _GETROUTE = 20, 24, 26
_IFF_UP = 1
_NESTED = 0x8000
_AF_BRIDGE = 7
#: nfnetlink's NFNL_SUBSYS_NFTABLES with NFT_MSG_GETTABLE, and NFPROTO_INET.
_GETTABLE, _INET = 10 << 8 | 1, 1

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")


class Message(NamedTuple):
    """
    One request.

    Attributes:
        kind: Its number.
        flags: Besides that it is a request.
        body: What follows the header.
        text: For errors, as ip(8) would write it.
        ignore: Errnos that are no failure here.
    """

    kind: int
    flags: int
    body: bytes
    text: str
    ignore: tuple[int, ...] = ()


class Route(NamedTuple):
    """A route. Attributes: network, its destination; link, the index of its interface."""

    network: IPv4Network | IPv6Network
    link: int


def attribute(kind: int, *parts: bytes) -> bytes:
    """One attribute, or with *parts* that are attributes, one that holds them."""
    data = b"".join(parts)
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _mac(value: str) -> bytes:
    return attribute(1, bytes.fromhex(value.replace(":", "")))


def bridge(name: str, mac: str, mtu: int) -> Message:
    """Make a bridge. Kernel: IFLA_BR_MCAST_SNOOPING, which needs a querier that nobody has here."""
    info = attribute(18, _text(1, "bridge"), attribute(2, attribute(23, b"\0")))
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name) + _mac(mac) + _number(4, mtu) + info
    return Message(_NEWLINK, _CREATE | _EXCL, body, f"ip link add {name} type bridge")


def ifb(name: str) -> Message:
    """Make an interface whose packets only pass a queue."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name) + attribute(18, _text(1, "ifb"))
    return Message(_NEWLINK, _CREATE | _EXCL, body, f"ip link add {name} type ifb")


def veth(name: str, master: int, mtu: int, peer: tuple[str, str, int]) -> Message:
    """
    Make a pair: *name* here, on the bridge *master*, and its peer in a process's namespace.

    Args:
        name: Of the end that stays.
        master: The index of the bridge.
        mtu: Of both.
        peer: Its name, its MAC address, and the process's number.

    Kernel: drivers/net/veth.c.
    """
    other, mac, pid = peer
    inside = _LINK.pack(0, 0, 0, 0, 0) + _text(3, other) + _mac(mac) + _number(4, mtu) + _number(19, pid)
    info = attribute(18, _text(1, "veth"), attribute(2, attribute(1, inside)))
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name) + _number(4, mtu) + _number(10, master) + info
    return Message(_NEWLINK, _CREATE | _EXCL, body, f"ip link add {name} type veth peer {other} netns {pid}")


def delete(name: str) -> Message:
    """Remove an interface, and its peer; one that has gone is no failure."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name)
    return Message(_DELLINK, 0, body, f"ip link delete {name}", (errno.ENODEV, errno.ENOENT))


def up(link: str | int) -> Message:
    """Set an interface up, by name or index."""
    index, name = (link, b"") if isinstance(link, int) else (0, _text(3, link))
    return Message(_SETLINK, 0, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP) + name, f"ip link set {link} up")


def enslave(name: str, master: int) -> Message:
    """Put an interface on the bridge with index *master*; one that has gone is no failure."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name) + _number(10, master)
    return Message(_SETLINK, 0, body, f"ip link set {name} master {master}", (errno.ENODEV,))


def hairpin(link: int) -> Message:
    """Let a bridge send packets back through the port that they came by. Kernel: IFLA_BRPORT_MODE."""
    body = _LINK.pack(_AF_BRIDGE, 0, link, 0, 0) + attribute(12 | _NESTED, attribute(4, b"\1"))
    return Message(_SETLINK, 0, body, f"bridge link set dev {link} hairpin on")


def without_ipv6(link: str | int) -> Message:
    """Let an interface have no IPv6 address that it makes itself. Kernel: IN6_ADDR_GEN_MODE_NONE."""
    index, name = (link, b"") if isinstance(link, int) else (0, _text(3, link))
    mode = attribute(26, attribute(socket.AF_INET6, attribute(8, b"\1")))
    ignore = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
    text = f"ip link set {link} addrgenmode none"
    return Message(_SETLINK, 0, _LINK.pack(0, 0, index, 0, 0) + name + mode, text, ignore)


def address(link: int, value: str, prefix: int) -> Message:
    """Give the interface with index *link* an address; an IPv6 one needs no test for duplicates."""
    found = ip_address(value)
    family, flags = (socket.AF_INET, 0) if found.version == 4 else (socket.AF_INET6, 2)
    body = _ADDRESS.pack(family, prefix, flags, 0, link)
    body += attribute(1, found.packed) + (attribute(2, found.packed) if found.version == 4 else b"")
    return Message(_NEWADDR, _CREATE | _EXCL, body, f"ip address add {value}/{prefix} dev {link}")


def route(link: int, destination: str, gateway: str) -> Message:
    """Make a route over *gateway*; *destination* is a range."""
    network, over = ip_network(destination), ip_address(gateway)
    family = socket.AF_INET if over.version == 4 else socket.AF_INET6
    # RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST.
    body = _ROUTE.pack(family, network.prefixlen, 0, 0, 254, 4, 0, 1, 0)
    if network.prefixlen:
        body += attribute(1, network.network_address.packed)
    body += attribute(5, over.packed) + _number(4, link)
    return Message(_NEWROUTE, _CREATE | _EXCL, body, f"ip route add {destination} via {gateway}")


def unreachable(destination: str) -> Message:
    """Let a range lead nowhere. Kernel: RTN_UNREACHABLE."""
    network = ip_network(destination)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, network.prefixlen, 0, 0, 254, 4, 0, 7, 0)
    body += attribute(1, network.network_address.packed)
    return Message(_NEWROUTE, _CREATE | _EXCL, body, f"ip route add unreachable {destination}")


def open_socket(protocol: int = ROUTE) -> socket.socket:
    """A socket in this thread's network namespace; the caller closes it."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)


def carry_out(sock: socket.socket, messages: Iterable[Message], step: str = "") -> None:
    """
    Send *messages* in one go, and hear how each fared; the kernel goes on after one that failed.

    Raises:
        KernelError: The first that failed.
    """
    sent = list(messages)
    parts = [
        _HEADER.pack(_HEADER.size + len(one.body), one.kind, one.flags | _REQUEST | _ACK, number, 0)
        + one.body
        for number, one in enumerate(sent)
    ]
    sock.send(b"".join(part + bytes(-len(part) % 4) for part in parts))
    failed: KernelError | None = None
    waiting = set(range(len(sent)))
    while waiting:
        for kind, number, body in _received(sock):
            if kind != _ERROR or number not in waiting:
                continue
            waiting.discard(number)
            code = -struct.unpack_from("=i", body)[0]
            if code and code not in sent[number].ignore and failed is None:
                failed = KernelError(code, sent[number].text, step)
    if failed is not None:
        raise failed


def _received(sock: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    data = sock.recv(1 << 17)
    at = 0
    while at < len(data):
        size, kind, _, number, _ = _HEADER.unpack_from(data, at)
        yield kind, number, data[at + _HEADER.size : at + size]
        at += size + -size % 4


def dump(sock: socket.socket, kind: int, body: bytes) -> Iterator[bytes]:
    """Ask for a list, and give what each answer holds. Raises: KernelError."""
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _DUMP, 1, 0) + body)
    while True:
        for found, _, data in _received(sock):
            if found == _DONE:
                return
            if found == _ERROR:
                raise KernelError(
                    -struct.unpack_from("=i", data)[0], "recvmsg(<netlink>)", "a list of the kernel's"
                )
            yield data


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message, or of one that holds others, by number."""
    found, at = {}, 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += size + -size % 4
    return found


def routes(sock: socket.socket) -> list[Route]:
    """All routes of all tables, of both families, that lead over an interface."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            answers = list(dump(sock, _GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)))
        except KernelError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                continue
            raise
        for data in answers:
            if data[0] != family:
                continue  # where a family is missing, the kernel answers for all
            known = attributes(data[_ROUTE.size :])
            packed = known.get(1, bytes(4 if family == socket.AF_INET else 16))
            made = IPv4Address(packed) if family == socket.AF_INET else IPv6Address(packed)
            link = int.from_bytes(known.get(4, b"\0"), "little" if struct.pack("=H", 1)[0] else "big")
            found.append(Route(ip_network((made, data[1]), strict=False), link))
    return found


def _link(sock: socket.socket, name: str) -> bytes:
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name)
    sock.send(_HEADER.pack(_HEADER.size + len(body), _GETLINK, _REQUEST, 1, 0) + body)
    for kind, _, data in _received(sock):
        if kind == _NEWLINK:
            return data
    raise KernelError(errno.ENODEV, f"ip link show {name}")


def mtu(name: str) -> int:
    """The largest packet of an interface. Raises: KernelError: There is none of that name."""
    with open_socket() as sock:
        return int(struct.unpack("=I", attributes(_link(sock, name)[_LINK.size :])[4])[0])


def index_at(sock: socket.socket, name: str) -> int:
    """The number of an interface of *sock*'s namespace. Raises: KernelError: There is none."""
    return int(_LINK.unpack_from(_link(sock, name))[2])


def index(name: str) -> int:
    """The number of an interface of this thread's namespace; 0 if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def names() -> set[str]:
    """All interfaces of this thread's namespace."""
    return {name for _, name in socket.if_nameindex()}


def has_table(name: str) -> bool:
    """Is there an nftables table ``inet`` *name*? Kernel: NFT_MSG_GETTABLE."""
    with open_socket(NETFILTER) as sock:
        body = struct.pack("=BBH", _INET, 0, 0) + _text(1, name)
        sock.send(_HEADER.pack(_HEADER.size + len(body), _GETTABLE, _REQUEST, os.getpid(), 0) + body)
        return any(kind == _GETTABLE - 1 for kind, _, _ in _received(sock))


__all__ = [
    "Message",
    "Route",
    "address",
    "attribute",
    "attributes",
    "bridge",
    "carry_out",
    "delete",
    "dump",
    "enslave",
    "hairpin",
    "has_table",
    "ifb",
    "index",
    "index_at",
    "mtu",
    "names",
    "open_socket",
    "route",
    "routes",
    "unreachable",
    "up",
    "veth",
    "without_ipv6",
]
