"""
What each port of a bridge lets through: what its sandbox's own addresses allow, in and out.

The filter is at the port itself, on the host's side, and goes with it. So it holds for whatever is inside,
with whatever rights, also while the host's rules are flushed. A bridge has one besides: it takes nothing up
to the host that the host's rules have not marked, so without them nothing gets further than to neighbours.

Spec: RFC 826 (ARP), RFC 4861 (neighbour discovery), RFC 7113 (where extension headers hide it).
"""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import ip_address

from sandboxlib.engine.ledger import Member, Net
from sandboxlib.kernel.packet_filter import COMES, GOES, Hole, Program, Template

#: Set by the host's rules on what they take from a sandbox, and on what they let go to one.
MARK_FROM, MARK_TO = 0x1000, 0x0100_0000
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
#: Where things are in a frame: Ethernet, then ARP, IPv4, IPv6, ICMPv6.
_SOURCE_MAC, _TYPE = 6, 12
_SENDER_MAC, _SENDER, _TARGET = 22, 28, 38
_PROTOCOL4, _SOURCE4, _DESTINATION4 = 23, 26, 30
_LENGTH6, _NEXT, _HOPS, _SOURCE6, _DESTINATION6 = 18, 20, 21, 22, 38
_ICMP6, _ND_TARGET, _ND_OPTION = 54, 62, 78
_RS_OPTION = 62
_ICMPV6 = 58
_OWN6 = ("v6", "link local")
#: IPv6's extension headers, before which a filter would have to look for what follows.
_EXTENSIONS = (0, 43, 44, 51, 60, 135, 139, 140)


def link_local(mac: str) -> str:
    """The address that an interface makes itself of its MAC address. Spec: RFC 4291, appendix A."""
    return str(ip_address(_link_local(_mac(mac))))


def _mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _link_local(raw: bytes) -> bytes:
    return b"\xfe\x80" + bytes(6) + bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]


def sides(link: int, net: Net, member: Member) -> list[tuple[int, int, bytes]]:
    """The filters of a port, see `sandboxlib.kernel.packet_filter.guarded`."""
    mac = _mac(member.mac)
    values = {"mac": mac, "link local": _link_local(mac)}
    if member.v4:
        values["v4"] = socket.inet_aton(member.v4)
        values["net4"], values["mask4"], values["all4"] = _bounds(net.v4, socket.AF_INET)
    if member.v6:
        values["v6"] = socket.inet_pton(socket.AF_INET6, member.v6)
        values["net6"], values["mask6"], _ = _bounds(net.v6, socket.AF_INET6)
    comes, goes = templates(v4=bool(member.v4), v6=bool(member.v6))
    return [(link, COMES, comes.fill(values)), (link, GOES, goes.fill(values))]


def _bounds(subnet: str, family: int) -> tuple[bytes, bytes, bytes]:
    """The first address of a range, its mask, and its last."""
    text, _, prefix = subnet.partition("/")
    first = socket.inet_pton(family, text)
    size, number = len(first), int.from_bytes(first, "big")
    rest = (1 << 8 * size - int(prefix)) - 1
    mask = (1 << 8 * size) - 1 ^ rest
    return first, mask.to_bytes(size, "big"), (number | rest).to_bytes(size, "big")


@lru_cache(1)
def gate_program() -> bytes:
    """What a bridge takes up to the host: what the host's rules have marked."""
    program = Program()
    program.marked(MARK_FROM, yes="pass", no="drop")
    return program.template().fill({})


def gate(link: int) -> tuple[int, int, bytes]:
    """The filter of the bridge with index *link*."""
    return link, COMES, gate_program()


@lru_cache(3)
def templates(*, v4: bool, v6: bool) -> tuple[Template, Template]:
    """What may come from a sandbox that has addresses of these families, and what may go to it."""
    return _from_sandbox(v4=v4, v6=v6), _to_sandbox(v4=v4, v6=v6)


def _by_type(program: Program, *, v4: bool, v6: bool) -> None:
    program.load(_TYPE, 2)
    if v4:
        program.equal(_IPV4, yes="ipv4")
        program.equal(_ARP, yes="arp")
    if v6:
        program.equal(_IPV6, yes="ipv6")
    program.go("drop")


def _from_sandbox(*, v4: bool, v6: bool) -> Template:
    """What has its own addresses as source, and promises no others."""
    program = Program()
    program.untagged()
    program.bytes_are(_SOURCE_MAC, "mac", "drop", 6)
    _by_type(program, v4=v4, v6=v6)
    if v4:
        _ipv4_from(program)
    if v6:
        _ipv6_from(program)
    return program.template()


def _ipv4_from(program: Program) -> None:
    program.label("arp")
    program.length(42)
    program.bytes_are(14, bytes.fromhex("000108000604"), "drop")
    program.bytes_are(_SENDER_MAC, "mac", "drop", 6)
    program.load(_SENDER, 4)
    # 0.0.0.0 asks whether somebody has an address (RFC 5227).
    program.equal(0, yes="pass")
    program.equal(Hole("v4"), yes="pass", no="drop")
    program.label("ipv4")
    program.length(34)
    program.load(_SOURCE4, 4)
    program.equal(Hole("v4"), no="unnamed")
    program.load(_DESTINATION4, 1)
    program.equal(127, yes="drop", no="pass")
    program.label("unnamed")
    # Who has no address yet may ask for one: DHCP's client, all of its network (RFC 2131).
    program.equal(0, no="drop")
    program.length(42)
    program.bytes_are(14, b"\x45", "drop")
    program.bytes_are(_PROTOCOL4, b"\x11", "drop")
    program.bytes_are(_DESTINATION4, b"\xff\xff\xff\xff\0\x44\0\x43", "drop")
    program.go("pass")


def _ipv6_from(program: Program) -> None:
    program.label("ipv6")
    program.length(54)
    for own in _OWN6:
        program.bytes_are(_SOURCE6, own, f"not {own}", 16)
        program.go("ours")
        program.label(f"not {own}")
    # No address yet: only to ask whether somebody has one of these.
    program.bytes_are(_SOURCE6, bytes(16), "drop")
    program.bytes_are(_NEXT, b"\x3a\xff", "drop")
    program.length(78)
    program.bytes_are(_ICMP6, b"\x87", "drop")
    program.load(_LENGTH6, 2)
    program.equal(24, yes="asked for")
    program.equal(32, no="drop")
    program.length(86)
    # A nonce, by which it knows its own question again (RFC 7527).
    program.bytes_are(_ND_OPTION, b"\x0e", "drop")
    program.label("asked for")
    _own_target(program, "pass", "asked for")

    program.label("ours")
    program.load(_NEXT, 1)
    program.equal(_ICMPV6, yes="icmpv6")
    # What looks for neighbours is heeded only with 255 hops left: behind another header it would pass unseen.
    for extension in _EXTENSIONS:
        program.equal(extension, yes="extended")
    program.go("pass")
    program.label("extended")
    program.load(_HOPS, 1)
    program.equal(255, yes="drop", no="pass")
    program.label("icmpv6")
    program.length(58)
    program.load(_ICMP6, 1)
    program.equal(133, yes="router asked for")
    program.equal(135, yes="neighbour asked for")
    program.equal(136, yes="neighbour told")
    # It is no router: it neither says so nor sends others elsewhere.
    program.equal(134, yes="drop")
    program.equal(137, yes="drop", no="pass")
    program.label("neighbour told")
    program.length(78)
    _own_target(program, "target is own", "told")
    program.label("target is own")
    _one_option(program, _ND_OPTION, 24, 2)
    program.label("neighbour asked for")
    _one_option(program, _ND_OPTION, 24, 1)
    program.label("router asked for")
    _one_option(program, _RS_OPTION, 8, 1)


def _own_target(program: Program, then: str, which: str) -> None:
    first, second = _OWN6
    program.bytes_are(_ND_TARGET, first, f"{which}: not {first}", 16)
    program.go(then)
    program.label(f"{which}: not {first}")
    program.bytes_are(_ND_TARGET, second, "drop", 16)
    program.go(then)


def _one_option(program: Program, offset: int, bare: int, kind: int) -> None:
    """Nothing follows the message, or one option with the MAC address alone."""
    program.load(_LENGTH6, 2)
    program.equal(bare, yes="pass")
    program.equal(bare + 8, no="drop")
    program.length(offset + 8)
    program.bytes_are(offset, bytes([kind, 1]), "drop")
    program.bytes_are(offset + 2, "mac", "drop", 6)
    program.go("pass")


def _to_sandbox(*, v4: bool, v6: bool) -> Template:
    """What is for it or for all, from its network or let through by the host."""
    program = Program()
    program.untagged()
    program.load(0, 1)
    program.any_bit(1, yes="for it")
    program.bytes_are(0, "mac", "drop", 6)
    program.label("for it")
    _by_type(program, v4=v4, v6=v6)
    if v4:
        _ipv4_to(program)
    if v6:
        _ipv6_to(program)
    program.label("from elsewhere")
    program.marked(MARK_TO, yes="pass", no="drop")
    return program.template()


def _ipv4_to(program: Program) -> None:
    program.label("arp")
    program.length(42)
    program.load(_TARGET, 4)
    program.equal(Hole("v4"), yes="pass")
    # Somebody says which address he has: sender and target are the same.
    program.same_words(_SENDER, _TARGET, yes="pass", no="drop")
    program.label("ipv4")
    program.length(34)
    program.load(_DESTINATION4, 4)
    program.equal(Hole("v4"), yes="source of ipv4")
    program.equal(Hole("all4"), yes="source of ipv4")
    # 224.0.0.0/4, and all of this network.
    program.at_least(0xE0000000, no="drop")
    program.label("source of ipv4")
    program.load(_SOURCE4, 4)
    program.equal(0, yes="unnamed to all")
    program.keep(Hole("mask4"))
    program.equal(Hole("net4"), yes="pass", no="from elsewhere")
    program.label("unnamed to all")
    program.load(_DESTINATION4, 4)
    program.equal(0xFFFFFFFF, yes="pass", no="drop")


def _ipv6_to(program: Program) -> None:
    first, second = _OWN6
    program.label("ipv6")
    program.length(54)
    program.load(_DESTINATION6, 1)
    program.equal(0xFF, yes="source of ipv6")
    program.bytes_are(_DESTINATION6, first, f"not for {first}", 16)
    program.go("source of ipv6")
    program.label(f"not for {first}")
    program.bytes_are(_DESTINATION6, second, "drop", 16)
    program.label("source of ipv6")
    program.load(_SOURCE6, 2)
    program.keep(0xFFC0)
    program.equal(0xFE80, yes="pass")
    program.bytes_are(_SOURCE6, "net6", "not of it", 16, mask="mask6")
    program.go("pass")
    program.label("not of it")
    # Who asks whether somebody has an address has none yet.
    program.bytes_are(_SOURCE6, bytes(16), "from elsewhere")
    program.go("pass")


__all__ = ["MARK_FROM", "MARK_TO", "gate", "link_local", "sides", "templates"]
