"""
Forgets connections: what the kernel remembers of a published port outlives its rule.

A UDP client that goes on sending would be led to where the port led before.

Kernel: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection

from sandboxlib.errors import KernelError
from sandboxlib.kernel.netlink import NETFILTER, Message, attribute, attributes, carry_out, dump, open_socket

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_TUPLE_ORIG, _TUPLE_REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTO, _PROTO_NUM = 1, 2, 1
_SOURCE = {socket.AF_INET: 1, socket.AF_INET6: 3}
_NESTED = 0x8000


def forget(addresses: Collection[bytes], protocol: int) -> int:
    """
    Forget all connections of *protocol* that are answered by one of *addresses*, in packed form.

    Returns:
        How many.

    Raises:
        KernelError: The kernel lists them and forgets none.
    """
    found = []
    with open_socket(NETFILTER) as sock:
        for family in {socket.AF_INET if len(packed) == 4 else socket.AF_INET6 for packed in addresses}:
            head = struct.pack("=BBH", family, 0, 0)
            try:
                entries = list(dump(sock, _GET, head))
            except KernelError as error:
                # A kernel without nf_conntrack_netlink: what it remembers ends by itself.
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                    return 0
                raise
            for data in entries:
                parts = attributes(data[4:])
                answer = attributes(parts.get(_TUPLE_REPLY, b""))
                source = attributes(answer.get(_TUPLE_IP, b"")).get(_SOURCE[family])
                kind = attributes(answer.get(_TUPLE_PROTO, b"")).get(_PROTO_NUM, b"\0")
                if source in addresses and kind[0] == protocol:
                    body = head + attribute(_TUPLE_ORIG | _NESTED, parts[_TUPLE_ORIG])
                    found.append(Message(_DELETE, 0, body, "conntrack --delete", (errno.ENOENT,)))
        if found:
            carry_out(sock, found, "connections of a port that is no longer published")
    return len(found)


__all__ = ["forget"]
