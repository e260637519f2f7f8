"""
Ways to send what is not one's own, from inside a sandbox: the text of this file runs there, before a test's.

Each attempt has a name, which stands in its bytes; what is refused inside already is not printed.
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable

Act = Callable[[bytes], None]
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
#: IP_FREEBIND and IP_TRANSPARENT, IPV6_FREEBIND and IPV6_TRANSPARENT, with their levels.
OPTIONS = {("free", 4): (0, 15), ("transparent", 4): (0, 19)}
OPTIONS |= {("free", 6): (41, 78), ("transparent", 6): (41, 75)}


def told(name: str, act: Act) -> None:
    """Do it; what is refused inside has not been sent."""
    try:
        act(b"<%s>" % name.encode())
        print(name, flush=True)
    except OSError:
        pass


def raw(text: str) -> bytes:
    """A MAC address."""
    return bytes.fromhex(text.replace(":", ""))


def version(address: str) -> int:
    """Of IP."""
    return 6 if ":" in address else 4


def family(address: str) -> int:
    """The same, as a socket wants it."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def ip(address: str) -> bytes:
    """An address."""
    return socket.inet_pton(family(address), address)


def total(data: bytes) -> int:
    """The checksum of the Internet."""
    data += bytes(len(data) % 2)
    found: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return ~found & 0xFFFF


def packet4(source: str, target: str, data: bytes, ports: tuple[int, int] = (81, 81)) -> bytes:
    """A datagram of UDP in a packet of IPv4."""
    inner = struct.pack(">HHHH", *ports, 8 + len(data), 0) + data
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(inner), 0, 0, 64, 17, 0) + ip(source) + ip(target)
    return head[:10] + struct.pack(">H", total(head)) + head[12:] + inner


def sum6(source: str, target: str, kind: int, data: bytes) -> bytes:
    """The checksum of what is in a packet of IPv6."""
    pseudo = ip(source) + ip(target) + struct.pack(">IHBB", len(data), 0, 0, kind)
    return struct.pack(">H", total(pseudo + data))


def packet6(
    source: str,
    target: str,
    data: bytes,
    kind: int = 17,
    hops: int = 64,
    before: bytes = b"",
    first: int | None = None,
) -> bytes:
    """A packet of IPv6 with a datagram of UDP, or a message of ICMPv6, behind further headers."""
    if kind == 17:
        data = struct.pack(">HHHH", 81, 81, 8 + len(data), 0) + data
        data = data[:6] + sum6(source, target, 17, data) + data[8:]
    elif kind == 58:
        data = data[:2] + sum6(source, target, 58, data) + data[4:]
    head = struct.pack(">IHBB", 6 << 28, len(before + data), kind if first is None else first, hops)
    return head + ip(source) + ip(target) + before + data


def packet(source: str, target: str, data: bytes) -> bytes:
    """A datagram of UDP in a packet."""
    return packet6(source, target, data) if ":" in source else packet4(source, target, data)


def ether(to: str, from_: str, kind: int, data: bytes) -> bytes:
    """A frame."""
    return raw(to) + raw(from_) + struct.pack(">H", kind) + data


_packets: list[socket.socket] = []


def frame(data: bytes) -> None:
    """Send a frame."""
    if not _packets:
        # One for all: to close such a socket the kernel takes 20 ms.
        _packets.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        _packets[0].bind(("eth0", 0))
    _packets[0].send(data)


def framed(source: str, target: str, mac: str, to: str) -> Act:
    """A packet in a frame, with whatever addresses."""
    kind = IPV6 if ":" in source else IPV4
    return lambda mark: frame(ether(to, mac, kind, packet(source, target, mark)))


def freely(source: str, target: str, option: str = "free") -> Act:
    """By a socket that is bound to an address which is not there."""

    def act(mark: bytes) -> None:
        with socket.socket(family(source), socket.SOCK_DGRAM) as s:
            s.setsockopt(*OPTIONS[option, version(source)], 1)
            s.bind((source, 0))
            s.sendto(mark, (target, 81))

    return act


def by_raw_socket(source: str, target: str) -> Act:
    """By a socket that is given whole packets: IPPROTO_RAW, IPV6_HDRINCL."""

    def act(mark: bytes) -> None:
        with socket.socket(family(source), socket.SOCK_RAW, 255) as s:
            if ":" in source:
                s.setsockopt(41, 36, 1)
            s.sendto(packet(source, target, mark), (target, 0))

    return act


def by_control(source: str, target: str) -> Act:
    """By a source that is given with each datagram: IP_PKTINFO, IPV6_PKTINFO."""

    def act(mark: bytes) -> None:
        with socket.socket(family(source), socket.SOCK_DGRAM) as s:
            s.setsockopt(*OPTIONS["free", version(source)], 1)
            if ":" in source:
                told = (41, 50, ip(source) + struct.pack("=i", 0))
            else:
                told = (0, 8, struct.pack("=i", 0) + ip(source) + bytes(4))
            s.sendmsg([mark], [told], 0, (target, 81))

    return act


def sh(*command: str) -> None:
    """Run a command of the sandbox's."""
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise OSError(command)
