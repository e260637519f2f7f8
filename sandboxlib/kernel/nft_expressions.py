"""
The parts of a rule, as messages of the kernel's packet filter.

A rule is a list of them: values are loaded into registers, compared and looked up, and the rule goes on as
long as each agrees; the last says what becomes of the packet. nft(8) prints them back as text, which the
tests compare.

Kernel: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import socket
import struct

from sandboxlib.kernel.netlink import NESTED, attribute, text

#: Registers: the verdict's, one of 16 bytes, and where the words of 4 bytes begin, in which keys of several
#: parts are put together.
VERDICT, FIRST, _WORDS = 0, 1, 8
IPV4, IPV6 = 2, 10
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
_NETWORK, _TRANSPORT = 1, 2
_META = {"mark": 3, "iifname": 6, "oifname": 7, "nfproto": 15, "l4proto": 16, "pkttype": 19}
#: States and marks of a connection, as bits. Kernel: nf_conntrack_common.h.
INVALID, ESTABLISHED, RELATED = 1, 2, 4
NATTED_SOURCE, NATTED_DESTINATION = 0x10, 0x20


def be32(kind: int, value: int) -> bytes:
    """An attribute that is a number in the network's order."""
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def word(value: int) -> bytes:
    """A value in a register, as this machine writes numbers."""
    return struct.pack("=I", value)


def _expression(name: str, *parts: bytes) -> bytes:
    return attribute(1 | NESTED, text(1, name), attribute(2 | NESTED, *parts))


def _data(kind: int, value: bytes) -> bytes:
    return attribute(kind | NESTED, attribute(1, value))


def _register(words: int) -> int:
    """The register behind so many words; the first has two names, of which nft(8) uses this one."""
    return FIRST if words == 0 else _WORDS + words


def meta(key: str, words: int = 0) -> bytes:
    """Load what is known of a packet besides its bytes."""
    return _expression("meta", be32(2, _META[key]), be32(1, _register(words)))


def payload(base: int, offset: int, size: int, words: int = 0) -> bytes:
    """Load bytes of a packet."""
    return _expression(
        "payload", be32(1, _register(words)), be32(2, base), be32(3, offset), be32(4, size)
    )  # fmt: skip


def compare(value: bytes, *, same: bool = True) -> bytes:
    """Go on if the first register has, or has not, *value*."""
    return _expression("cmp", be32(1, FIRST), be32(2, 0 if same else 1), _data(3, value))


def bits_of(mask: bytes, xor: bytes = b"") -> bytes:
    """Keep the bits of *mask* in the first register, and turn over those of *xor*."""
    return _expression(
        "bitwise", be32(1, FIRST), be32(2, FIRST), be32(3, len(mask)), _data(4, mask),
        _data(5, xor or bytes(len(mask))),
    )  # fmt: skip


def lookup(name: str, *, into: bool = False) -> bytes:
    """Go on if a set has what the registers hold; *into* loads what a map has for it."""
    return _expression("lookup", text(1, name), be32(2, FIRST), *([be32(3, FIRST)] if into else ()))


def _verdict(code: int, chain: str = "") -> bytes:
    inner = be32(1, code) + (text(2, chain) if chain else b"")
    return _expression("immediate", be32(1, VERDICT), attribute(2 | NESTED, attribute(2 | NESTED, inner)))


DROP, ACCEPT, RETURN = _verdict(0), _verdict(1), _verdict(-5)


def jump(chain: str) -> bytes:
    """Go on in another chain, and come back at its end."""
    return _verdict(-3, chain)


def came_by(interface: str, *, not_so: bool = False) -> bytes:
    """The packet came by an interface; ``sbx-*`` is any whose name begins so."""
    return meta("iifname") + compare(_interface(interface), same=not not_so)


def leaves_by(interface: str, *, not_so: bool = False) -> bytes:
    """The packet leaves by an interface."""
    return meta("oifname") + compare(_interface(interface), same=not not_so)


def _interface(name: str) -> bytes:
    return name[:-1].encode() if name.endswith("*") else interface(name)


def interface(name: str) -> bytes:
    """The name of an interface in a set."""
    return name.encode().ljust(16, b"\0")


def version(family: int) -> bytes:
    """The packet is of `IPV4` or `IPV6`."""
    return meta("nfproto") + compare(bytes([family]))


def _address(target: str, offsets: tuple[int, int], *, inet: bool) -> bytes:
    text, _, bits = target.partition("/")
    kind, family, offset = (
        (socket.AF_INET6, IPV6, offsets[1]) if ":" in text else (socket.AF_INET, IPV4, offsets[0])
    )  # fmt: skip
    value = socket.inet_pton(kind, text)
    prefix = int(bits) if bits else 8 * len(value)
    known = version(family) if inet else b""
    if prefix % 8 == 0:
        return known + payload(_NETWORK, offset, prefix // 8) + compare(value[: prefix // 8])
    mask = (((1 << prefix) - 1) << 8 * len(value) - prefix).to_bytes(len(value), "big")
    return known + payload(_NETWORK, offset, len(value)) + bits_of(mask) + compare(value)


def to(target: str, *, inet: bool = True) -> bytes:
    """The packet goes to a range of addresses; a table that is not *inet* knows the family by itself."""
    return _address(target, (16, 24), inet=inet)


def from_(source: str) -> bytes:
    """The packet says that it comes from a range of addresses."""
    return _address(source, (12, 8), inet=True)


def protocol(number: int, *, not_so: bool = False) -> bytes:
    """It is `TCP`, `UDP`, `ICMP` or `ICMPV6`."""
    return meta("l4proto") + compare(bytes([number]), same=not not_so)


def port(number: int) -> bytes:
    """Of TCP or UDP, it goes to this port."""
    return payload(_TRANSPORT, 2, 2) + compare(struct.pack(">H", number))


def message(kind: int) -> bytes:
    """Of ICMP, it is of this kind."""
    return payload(_TRANSPORT, 0, 1) + compare(bytes([kind]))


def for_this_host(*, not_so: bool = False) -> bytes:
    """It goes to an address of this host's. Kernel: NFT_FIB_RESULT_ADDRTYPE, RTN_LOCAL."""
    asked = _expression("fib", be32(2, 3), be32(3, 2), be32(1, FIRST))
    return asked + compare(word(2), same=not not_so)


def connection(*states: int, not_so: bool = False) -> bytes:
    """Its connection is in one of these states."""
    return _expression("ct", be32(2, 0), be32(1, FIRST)) + _any_of(sum(states), not_so=not_so)


def natted(what: int, *, not_so: bool = False) -> bytes:
    """Its connection has another source or destination than its first packet said."""
    return _expression("ct", be32(2, 2), be32(1, FIRST)) + _any_of(what, not_so=not_so)


def _any_of(mask: int, *, not_so: bool) -> bytes:
    return bits_of(word(mask)) + compare(bytes(4), same=not_so)


def marked(mark: int) -> bytes:
    """All bits of *mark* are set in its mark."""
    return meta("mark") + bits_of(word(mark)) + compare(word(mark))


def set_mark(mark: int) -> bytes:
    """Set these bits in its mark, and leave the others."""
    return meta("mark") + bits_of(word(~mark & 0xFFFFFFFF), word(mark)) + _put("mark")


def clear_mark(mark: int) -> bytes:
    """Take these bits out of its mark."""
    return meta("mark") + bits_of(word(~mark & 0xFFFFFFFF)) + _put("mark")


def _put(key: str) -> bytes:
    return _expression("meta", be32(2, _META[key]), be32(3, FIRST))


def socket_mark() -> bytes:
    """Go on if a socket of this host waits for it; loads its SO_MARK. Kernel: nft_socket.c."""
    return _expression("socket", be32(1, 1), be32(2, FIRST))


#: What the maps of ports are asked: a protocol and a port, of TCP, UDP and the like alike.
WHICH_PORT = meta("l4proto") + payload(_TRANSPORT, 2, 2, 1)


def which_address(family: int) -> bytes:
    """The same with the address before."""
    offset, size = (16, 4) if family == IPV4 else (24, 16)
    words = size // 4
    return (
        version(family)
        + payload(_NETWORK, offset, size)
        + meta("l4proto", words)
        + payload(_TRANSPORT, 2, 2, words + 1)
    )


def lead_to(family: int) -> bytes:
    """Exchange the destination, for the address and port that a map had."""
    port_at = _register(1 if family == IPV4 else 4)
    return _expression("nat", be32(1, 1), be32(2, family), be32(3, FIRST), be32(5, port_at))


def come_from(address: str) -> bytes:
    """Exchange the source for an IPv4 address."""
    loaded = _expression("immediate", be32(1, FIRST), _data(2, socket.inet_aton(address)))
    return loaded + _expression("nat", be32(1, 0), be32(2, IPV4), be32(3, FIRST))


MASQUERADE = _expression("masq")


def put_address(offset: int, value: bytes = b"") -> bytes:
    """Write an IPv6 address, or what the first register holds, into the packet at *offset*, and mend sums."""
    loaded = _expression("immediate", be32(1, FIRST), _data(2, value)) if value else b""
    # The pseudo header of what is inside: NFT_PAYLOAD_L4CSUM_PSEUDOHDR.
    return loaded + _expression(
        "payload", be32(5, FIRST), be32(2, _NETWORK), be32(3, offset), be32(4, 16),
        be32(6, 0), be32(7, 0), be32(8, 1),
    )  # fmt: skip


#: As ``reject with icmpx``: of either family, with the kind that says why.
REJECT_FORBIDDEN = _expression("reject", be32(1, 2), attribute(2, b"\3"))
REJECT_PORT = _expression("reject", be32(1, 2), attribute(2, b"\1"))
REJECT_TCP = _expression("reject", be32(1, 1), attribute(2, b"\0"))
