"""
Forgets connections: what the kernel remembers of an address outlives whoever had it.

A server that one sandbox asked could go on answering the next with its address; a client that goes on
sending would be led to where a port led before. So each address that leaves is forgotten, and each port that
comes.

Kernel: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import struct
from collections.abc import Callable, Iterable
from ipaddress import ip_address

from sandboxlib.errors import KernelError
from sandboxlib.kernel.netfilter import using
from sandboxlib.kernel.netlink import (
    NESTED,
    Message,
    attribute,
    attributes,
    carry_out,
    dump,
    number,
)

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_ORIGINAL, _REPLY = 1, 2
_IP, _PROTOCOL = 1, 2
_NUMBER, _DESTINATION_PORT = 1, 3
_ZONE = 18
_FILTER, _ORIGINAL_FLAGS, _REPLY_FLAGS = 25, 1, 2
#: CTA_FILTER_F_CTA_IP_SRC, _IP_DST, _PROTO_NUM, _PROTO_DST_PORT.
_BY_SOURCE, _BY_DESTINATION, _BY_PROTOCOL, _BY_PORT = 1, 2, 8, 32
_COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"
_STEP = "connections of addresses and ports that are given out"
#: The kernel looks at all for each question; more questions than these cost more than to look at all once
#: ourselves: where there are fewer than a thousand connections, and where there are more.
_QUESTIONS, _QUESTIONS_OF_MANY = 64, 8
_MANY = 1000

Known = dict[int, bytes]


def _family(packed: bytes) -> int:
    return socket.AF_INET if len(packed) == 4 else socket.AF_INET6


def _head(family: int) -> bytes:
    # Version 1: the kernel is to heed the family.
    return struct.pack("=BBH", family, 1, 0)


def _source(packed: bytes) -> bytes:
    return attribute(1 if len(packed) == 4 else 3, packed)


def _destination(packed: bytes) -> bytes:
    return attribute(2 if len(packed) == 4 else 4, packed)


def _flush(packed: bytes, direction: int, flags: int, *inside: bytes) -> Message:
    which = attribute(_FILTER | NESTED, *(
        number(kind, flags if kind == direction else 0) for kind in (_ORIGINAL_FLAGS, _REPLY_FLAGS)
    ))  # fmt: skip
    body = _head(_family(packed)) + attribute(direction | NESTED, *inside) + which
    return Message(_DELETE, 0, body, f"conntrack --delete ({ip_address(packed)})", (errno.ENOENT,))


def forget(addresses: Iterable[str]) -> None:
    """
    Forget all connections that *addresses* began or answer, of whatever protocol, and however translated.

    Raises:
        KernelError: The kernel lists them and forgets none.
    """
    packed = {ip_address(address).packed for address in addresses}
    messages = []
    for one in packed:
        # Its own, whose answers come to this host; and those that led to it, whatever they asked for.
        messages.append(_flush(one, _ORIGINAL, _BY_SOURCE, attribute(_IP | NESTED, _source(one))))
        messages.append(_flush(one, _REPLY, _BY_SOURCE, attribute(_IP | NESTED, _source(one))))

    def concerns(original: Known, reply: Known) -> bool:
        return any(
            attributes(side.get(_IP, b"")).get(kind) in packed
            for side in (original, reply)
            for kind in (1, 2, 3, 4)
        )

    _carry_out(messages, packed, concerns)


def forget_ports(places: Iterable[tuple[str, int]], own: Iterable[str], keep: Iterable[str]) -> None:
    """
    Forget what is sent to UDP ports of this host, but what is answered by those who have them now.

    Who began before a port was published would go on being led to the host itself. TCP begins anew by itself.

    Args:
        places: Addresses of this host, empty for all, with ports.
        own: All addresses of this host.
        keep: Who answers now.
    """
    wanted = {
        (ip_address(address).packed, port)
        for given, port in places
        for address in ((given,) if given not in ("", "0.0.0.0", "::") else own)
    }
    kept = {ip_address(address).packed for address in keep}
    messages = []
    for packed, port in wanted:
        which = attribute(_NUMBER, b"\x11"), attribute(_DESTINATION_PORT, struct.pack(">H", port))
        there = attribute(_IP | NESTED, _destination(packed)), attribute(_PROTOCOL | NESTED, *which)
        messages.append(_flush(packed, _ORIGINAL, _BY_DESTINATION | _BY_PROTOCOL | _BY_PORT, *there))

    def concerns(original: Known, reply: Known) -> bool:
        address, protocol = attributes(original.get(_IP, b"")), attributes(original.get(_PROTOCOL, b""))
        port = int.from_bytes(protocol.get(_DESTINATION_PORT, b""), "big")
        answers = attributes(reply.get(_IP, b""))
        return (
            protocol.get(_NUMBER) == b"\x11"
            and any((address.get(kind, b""), port) in wanted for kind in (2, 4))
            and not any(answers.get(kind) in kept for kind in (1, 3))
        )

    ports = {struct.pack(">H", port) for _, port in wanted}
    _carry_out(messages, ports, concerns)


def _carry_out(messages: list[Message], parts: set[bytes], concerns: Callable[[Known, Known], bool]) -> None:
    count = _count() if messages else 0
    if count == 0:
        return
    with using() as sock:
        if len(messages) <= (_QUESTIONS if count < _MANY else _QUESTIONS_OF_MANY):
            try:
                carry_out(sock, messages, _STEP)
            except KernelError as error:
                if error.errno in _NO_TRACKING:
                    return
                # A kernel before 6.9 or so heeds no such filter here: it would be to forget all.
                if error.errno != errno.EOPNOTSUPP:
                    raise
            else:
                return
        _look_at_all(sock, parts, concerns)


#: A kernel without nf_conntrack_netlink: what it remembers ends by itself.
_NO_TRACKING = (errno.EPROTONOSUPPORT, errno.EINVAL)


def _count() -> int:
    """How many connections the kernel knows of; 1 where it does not say."""
    with contextlib.suppress(OSError), open(_COUNT, encoding="ascii") as file:
        return int(file.read())
    return 1


def _look_at_all(sock: socket.socket, which: set[bytes], concerns: Callable[[Known, Known], bool]) -> None:
    """Forget what concerns somebody; *which* are bytes, some of which each such connection has in it."""
    # There may be hundreds of thousands: only what could be meant is taken apart.
    could_be = re.compile(b"|".join(map(re.escape, sorted(which)))).search
    found = []
    try:
        entries = dump(sock, _GET, _head(socket.AF_UNSPEC))
    except KernelError as error:
        if error.errno in (*_NO_TRACKING, errno.EOPNOTSUPP):
            return
        raise
    for data in filter(could_be, entries):
        parts = attributes(data[4:])
        if concerns(attributes(parts.get(_ORIGINAL, b"")), attributes(parts.get(_REPLY, b""))):
            body = data[:1] + _head(0)[1:] + attribute(_ORIGINAL | NESTED, parts[_ORIGINAL])
            if _ZONE in parts:
                body += attribute(_ZONE, parts[_ZONE])
            found.append(Message(_DELETE, 0, body, "conntrack --delete", (errno.ENOENT,)))
    for at in range(0, len(found), 200):
        carry_out(sock, found[at : at + 200], _STEP)


__all__ = ["forget", "forget_ports"]
