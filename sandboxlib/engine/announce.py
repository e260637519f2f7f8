"""
Says on a bridge which MAC address an address has: whoever had it before may have had another.

Neighbours, and this host, would go on sending there for as long as they remember. What is sent is what the
sandbox itself would send, by the host, so that nothing inside has to be waited for.

Spec: RFC 5227, section 3 (ARP announcements); RFC 4861, section 7.2.6 (unsolicited neighbour advertisements).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from ipaddress import ip_address

from sandboxlib.engine.ledger import Member, Net
from sandboxlib.kernel import links
from sandboxlib.kernel.netlink import carry_out

_ARP, _IPV6 = 0x0806, 0x86DD
_ALL_MAC = b"\xff" * 6
_ALL_NODES, _ALL_NODES_MAC = ip_address("ff02::1").packed, bytes.fromhex("333300000001")


def _sum(data: bytes) -> int:
    """The checksum of the Internet. Spec: RFC 1071."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def arp(mac: bytes, address: bytes) -> bytes:
    """A frame that tells all who has an IPv4 address."""
    told = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address
    return _ALL_MAC + mac + struct.pack(">H", _ARP) + told


def advertisement(mac: bytes, address: bytes) -> bytes:
    """A frame that tells all who has an IPv6 address, in place of who had it."""
    # The override flag, and as the option the MAC address.
    told = struct.pack(">BBHI", 136, 0, 0, 0x2000_0000) + address + b"\2\1" + mac
    pseudo = address + _ALL_NODES + struct.pack(">IHBB", len(told), 0, 0, 58)
    told = told[:2] + struct.pack(">H", _sum(pseudo + told)) + told[4:]
    head = struct.pack(">IHBB", 6 << 28, len(told), 58, 255) + address + _ALL_NODES
    return _ALL_NODES_MAC + mac + struct.pack(">H", _IPV6) + head + told


def announce(sock: socket.socket, net: Net, member: Member, had: Collection[str]) -> None:
    """
    Tell this host and all neighbours that a sandbox has addresses now that others *had*.

    Args:
        sock: For this host.
        net: Where they are.
        member: Who has them.
        had: All such addresses; those of other networks do not count.
    """
    told = [address for address in member.addresses if address in had]
    if not told:
        return
    bridge, mac = links.index(net.bridge), bytes.fromhex(member.mac.replace(":", ""))
    carry_out(sock, [links.neighbour(bridge, address, member.mac) for address in told])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as out:
        out.bind((net.bridge, 0))
        for address in map(ip_address, told):
            out.send((arp if address.version == 4 else advertisement)(mac, address.packed))


__all__ = ["advertisement", "announce", "arp"]
