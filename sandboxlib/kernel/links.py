"""
Interfaces: bridges, pairs, their ports and neighbours.

Kernel: rtnetlink(7), include/uapi/linux/if_link.h, neighbour.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import ip_address
from typing import NamedTuple

from sandboxlib.errors import KernelError
from sandboxlib.kernel.netlink import (
    CREATE,
    EXCL,
    NESTED,
    REPLACE,
    Message,
    ask,
    attribute,
    attributes,
    dump,
    number,
    open_socket,
    text,
)

_NEWLINK, _DELLINK, _GETLINK, _SETLINK, _NEWNEIGH = 16, 17, 18, 19, 28
_ADDRESS, _NAME, _MTU, _MASTER, _PROTINFO, _LINKINFO, _NS_PID = 1, 3, 4, 10, 12, 18, 19
_ALIAS, _AF_SPEC = 20, 26
_IFF_UP = 1
_AF_BRIDGE = 7
#: NUD_STALE: to be asked about before long, and used until then.
_STALE = 4
HEAD = struct.Struct("=BxHiII")
_NEIGHBOUR = struct.Struct("=BxHiHBB")


class Link(NamedTuple):
    """
    An interface that is there.

    Attributes:
        number: Its index.
        name: Its name.
        up: It was set up.
        mtu: Bytes of its largest packet.
        mac: Its address.
        master: The number of the bridge that it is a port of, or 0.
        alias: What somebody wrote to it, ``ip link set alias``.
    """

    number: int
    name: str
    up: bool
    mtu: int
    mac: str
    master: int
    alias: str


def _mac(value: str) -> bytes:
    return attribute(_ADDRESS, bytes.fromhex(value.replace(":", "")))


def _new(name: str, kind: str, *more: bytes, data: bytes = b"", index: int = 0) -> Message:
    info = attribute(_LINKINFO, text(1, kind), *([attribute(2, data)] if data else ()))
    body = HEAD.pack(0, 0, index, 0, 0) + text(_NAME, name) + b"".join(more) + info
    return Message(_NEWLINK, CREATE | EXCL, body, f"ip link add {name} type {kind}")


def bridge(name: str, mac: str, mtu: int) -> Message:
    """Make a bridge. Kernel: IFLA_BR_MCAST_SNOOPING, which needs a querier that nobody has here."""
    return _new(name, "bridge", _mac(mac), number(_MTU, mtu), data=attribute(23, b"\0"))


def alias(link: int, value: str) -> Message:
    """Write something to an interface, for whoever looks at it."""
    body = HEAD.pack(0, 0, link, 0, 0) + text(_ALIAS, value)
    return Message(_SETLINK, 0, body, f"ip link set {link} alias '{value}'")


def ifb(name: str) -> Message:
    """Make an interface whose packets only pass a queue."""
    return _new(name, "ifb")


def veth(name: str, index: int, mtu: int, peer: tuple[str, int, str, int]) -> Message:
    """
    Make a pair: *name* here, and its peer in a process's namespace.

    Args:
        name: Of the end that stays.
        index: Of the same.
        mtu: Of both.
        peer: Its name, index, MAC address, and the process's number.

    Kernel: drivers/net/veth.c; an index that is taken is EEXIST.
    """
    other, number_there, mac, pid = peer
    inside = HEAD.pack(0, 0, number_there, 0, 0) + text(_NAME, other) + _mac(mac) + number(_MTU, mtu)
    inside += number(_NS_PID, pid)
    made = _new(name, "veth", number(_MTU, mtu), data=attribute(1, inside), index=index)
    return made._replace(text=f"ip link add {name} type veth peer {other} netns {pid}")


def fresh_index() -> int:
    """An index that hardly anybody has: the kernel's own count from 1."""
    return 1 << 24 | int.from_bytes(os.urandom(4), "big") >> 1


def delete(link: str | int) -> Message:
    """Remove an interface, by name or index, and its peer; one that has gone is no failure."""
    index, name = _named(link)
    body = HEAD.pack(0, 0, index, 0, 0) + name
    return Message(_DELLINK, 0, body, f"ip link delete {link}", (errno.ENODEV, errno.ENOENT))


def _named(link: str | int) -> tuple[int, bytes]:
    return (link, b"") if isinstance(link, int) else (0, text(_NAME, link))


def up(link: str | int) -> Message:
    """Set an interface up, by name or index."""
    index, name = _named(link)
    return Message(_SETLINK, 0, HEAD.pack(0, 0, index, _IFF_UP, _IFF_UP) + name, f"ip link set {link} up")


def down(link: str | int) -> Message:
    """Set an interface down; one that has gone is no failure."""
    index, name = _named(link)
    body = HEAD.pack(0, 0, index, 0, _IFF_UP) + name
    return Message(_SETLINK, 0, body, f"ip link set {link} down", (errno.ENODEV,))


def enslave(link: str | int, master: int) -> Message:
    """Put an interface on the bridge with index *master*, and set it up; one that has gone is no failure."""
    index, name = _named(link)
    body = HEAD.pack(0, 0, index, _IFF_UP, _IFF_UP) + name + number(_MASTER, master)
    return Message(_SETLINK, 0, body, f"ip link set {link} master {master} up", (errno.ENODEV,))


def hairpin(link: int) -> Message:
    """Let a bridge send packets back through the port that they came by. Kernel: IFLA_BRPORT_MODE."""
    body = HEAD.pack(_AF_BRIDGE, 0, link, 0, 0) + attribute(_PROTINFO | NESTED, attribute(4, b"\1"))
    return Message(_SETLINK, 0, body, f"bridge link set dev {link} hairpin on")


def own_ipv6(link: str | int, *, wanted: bool) -> Message:
    """
    Let an interface make its link-local address of its MAC address, or make none.

    Kernel: IN6_ADDR_GEN_MODE_EUI64, IN6_ADDR_GEN_MODE_NONE.
    """
    index, name = _named(link)
    mode = attribute(_AF_SPEC, attribute(socket.AF_INET6, attribute(8, b"\0" if wanted else b"\1")))
    ignore = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
    shown = f"ip link set {link} addrgenmode {'eui64' if wanted else 'none'}"
    return Message(_SETLINK, 0, HEAD.pack(0, 0, index, 0, 0) + name + mode, shown, ignore)


def neighbour(link: int, address: str, mac: str) -> Message:
    """Let it be known which MAC address an address has."""
    packed = ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    body = _NEIGHBOUR.pack(family, 0, link, _STALE, 0, 0)
    body += attribute(1, packed) + attribute(2, bytes.fromhex(mac.replace(":", "")))
    shown = f"ip neighbour replace {address} lladdr {mac} dev {link}"
    return Message(_NEWNEIGH, CREATE | REPLACE, body, shown)


def _read(data: bytes) -> Link:
    _, _, index, flags, _ = HEAD.unpack_from(data)
    known = attributes(data[HEAD.size :])
    name, alias = (known.get(kind, b"").rstrip(b"\0").decode(errors="replace") for kind in (_NAME, _ALIAS))
    master = struct.unpack("=I", known.get(_MASTER, bytes(4)))[0]
    mtu = struct.unpack("=I", known.get(_MTU, bytes(4)))[0]
    return Link(index, name, bool(flags & _IFF_UP), mtu, known.get(_ADDRESS, b"").hex(":"), master, alias)


def find(sock: socket.socket, link: str | int) -> Link:
    """An interface of *sock*'s namespace, by name or index. Raises: KernelError: There is none such."""
    index, name = _named(link)
    return _read(ask(sock, Message(_GETLINK, 0, HEAD.pack(0, 0, index, 0, 0) + name, f"ip link show {link}")))


def every(sock: socket.socket) -> list[Link]:
    """All interfaces of *sock*'s namespace."""
    return [_read(data) for data in dump(sock, _GETLINK, HEAD.pack(0, 0, 0, 0, 0))]


def mtu(name: str) -> int:
    """The largest packet of an interface. Raises: KernelError: There is none of that name."""
    with open_socket() as sock:
        return find(sock, name).mtu


def index(name: str) -> int:
    """The number of an interface of this thread's namespace; 0 if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def names() -> set[str]:
    """All interfaces of this thread's namespace."""
    return {name for _, name in socket.if_nameindex()}


def gone(links: list[str]) -> list[str]:
    """Which of *links* are there no more."""
    return [link for link in links if not index(link)]


def is_missing(error: KernelError) -> bool:
    """Does the kernel lack what it was asked to make?"""
    return error.errno in (errno.EOPNOTSUPP, errno.ENOENT, errno.EAFNOSUPPORT)


__all__ = [
    "HEAD",
    "Link",
    "alias",
    "bridge",
    "delete",
    "down",
    "enslave",
    "every",
    "find",
    "fresh_index",
    "gone",
    "hairpin",
    "ifb",
    "index",
    "is_missing",
    "mtu",
    "names",
    "neighbour",
    "own_ipv6",
    "up",
    "veth",
]
