"""
Tables, chains, rules and sets of the kernel's packet filter, by messages of our own.

No library and no other program: a program may have thousands of descriptors open, which libnftables does
not bear (it waits in select(2)), and nft(8) takes 5 ms. All messages of a transaction hold, or none.

Kernel: include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sandboxlib.errors import KernelError
from sandboxlib.kernel.netfilter import using
from sandboxlib.kernel.netlink import (
    ACK,
    CREATE,
    EXCL,
    NESTED,
    Message,
    answers,
    ask,
    attribute,
    attributes,
    dump,
    each_attribute,
    packed,
    refusal,
    text,
    with_words,
    words,
)
from sandboxlib.kernel.nft_expressions import be32

INET, IP, BRIDGE, IP6 = 1, 2, 7, 10
FAMILIES = {INET: "inet", IP: "ip", BRIDGE: "bridge", IP6: "ip6"}
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
_NFTABLES = 10 << 8
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN = (_NFTABLES | number for number in range(5))
_NEWRULE, _GETRULE, _NEWSET = (_NFTABLES | number for number in (6, 7, 9))
_NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN = (_NFTABLES | number for number in (12, 13, 14, 16))
_BEGIN, _END, _ERROR = 0x10, 0x11, 2
_MAP = 8
#: Of a set's elements: the key and what a map has for it.
_KEY, _DATA = 1, 2
#: Datatypes of nft(8), by which it prints what is in a set.
_TYPES = {
    "ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "inet_proto": (12, 1), "inet_service": (13, 2),
    "ifname": (41, 16),
}  # fmt: skip
HINT = (
    "load it with 'modprobe -a nf_tables nft_nat nft_masq nft_ct nft_fib_inet nft_reject_inet nft_socket', "
    "or boot a kernel with CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET and _BRIDGE, CONFIG_NFT_NAT, _MASQ, _CT, "
    "_FIB_INET, _REJECT and _SOCKET"
)
Element = tuple[str, bytes, bytes]


class Hook(NamedTuple):
    """Where a chain is asked. Attributes: kind, ``filter``, ``nat`` or ``route``; number; priority."""

    kind: str
    number: int
    priority: int


def _head(family: int, resource: int = 0) -> bytes:
    return struct.pack(">BBH", family, 0, resource)


def new_table(family: int, name: str, comment: str) -> Message:
    """Make a table, if there is none. The comment is nft(8)'s: kind 0, with its length."""
    note = comment.encode() + b"\0"
    body = _head(family) + text(1, name) + be32(2, 0) + attribute(6, bytes([0, len(note)]) + note)
    return Message(_NEWTABLE, CREATE, body, f"nft add table {FAMILIES[family]} {name}")


def alone(made: Message) -> Message:
    """The same, and an error (EEXIST) if it is there already."""
    return made._replace(flags=made.flags | EXCL)


def delete_table(family: int, name: str) -> Message:
    """Take a table away, with all in it."""
    return Message(_DELTABLE, 0, _head(family) + text(1, name), f"nft delete table {FAMILIES[family]} {name}")


def new_chain(family: int, table: str, name: str, hook: Hook | None) -> Message:
    """Make a chain; what comes to its end is let through."""
    body = _head(family) + text(1, table) + text(3, name)
    if hook is not None:
        body += attribute(4 | NESTED, be32(1, hook.number), be32(2, hook.priority))
        body += be32(5, 1) + text(7, hook.kind)
    return Message(_NEWCHAIN, CREATE, body, f"nft add chain {FAMILIES[family]} {table} {name}")


def new_rule(family: int, table: str, chain: str, expressions: bytes) -> Message:
    """Add a rule to the end of a chain; see `sandboxlib.kernel.nft_expressions`."""
    body = _head(family) + text(1, table) + text(2, chain) + attribute(4 | NESTED, expressions)
    # NLM_F_APPEND.
    return Message(_NEWRULE, CREATE | 0x800, body, f"nft add rule {FAMILIES[family]} {table} {chain}")


def _type(parts: Sequence[str]) -> tuple[int, int]:
    kind = size = 0
    for part in parts:
        number, length = _TYPES[part]
        # Each part of a key begins at a word.
        kind, size = kind << 6 | number, size + (length + 3 & ~3 if len(parts) > 1 else length)
    return kind, size


def new_set(family: int, table: str, name: str, key: Sequence[str], data: Sequence[str] = ()) -> Message:
    """Make a set, or with *data* a map; each is a list of nft(8)'s types."""
    kind, size = _type(key)
    body = _head(family) + text(1, table) + text(2, name) + be32(3, _MAP if data else 0)
    body += be32(4, kind) + be32(5, size) + be32(10, 1)
    # For nft(8): whether a single key is to be read as this machine or as the network writes numbers.
    body += attribute(13, struct.pack("=BBI", 0, 4, 1 if key == ("ifname",) else 2))
    if data:
        kind, size = _type(data)
        body += be32(6, kind) + be32(7, size)
    return Message(_NEWSET, CREATE, body, f"nft add set {FAMILIES[family]} {table} {name}")


def add_elements(family: int, table: str, elements: Iterable[Element]) -> list[Message]:
    """Put elements (set, key, data) into their sets; one that is there and the same stays."""
    return _elements(_NEWSETELEM, CREATE, family, table, elements, "add")


def delete_elements(family: int, table: str, elements: Iterable[Element]) -> list[Message]:
    """Take elements out of their sets by their keys; all have to be there."""
    bare = [(name, key, b"") for name, key, _ in elements]
    return _elements(_DELSETELEM, 0, family, table, bare, "delete")


def _elements(
    kind: int, flags: int, family: int, table: str, elements: Iterable[Element], verb: str
) -> list[Message]:
    by_set: dict[str, list[bytes]] = {}
    for name, key, data in elements:
        parts = [attribute(_KEY | NESTED, attribute(1, key))]
        if data:
            parts.append(attribute(_DATA | NESTED, attribute(1, data)))
        by_set.setdefault(name, []).append(attribute(1 | NESTED, *parts))
    found = []
    for name, listed in by_set.items():
        # A list is an attribute, whose length has 16 bits.
        for at in range(0, len(listed), 500):
            body = _head(family) + text(1, table) + text(2, name)
            body += attribute(3 | NESTED, *listed[at : at + 500])
            shown = f"nft {verb} element {FAMILIES[family]} {table} {name}"
            found.append(Message(kind, flags, body, shown))
    return found


def transact(messages: Iterable[Message], generation: int | None = None) -> bool:
    """
    Let all of *messages* hold, or none.

    Args:
        messages: In order.
        generation: Only if nothing of this namespace's rules was changed since, see `generation`.

    Returns:
        Whether it was so; False where the rules are of another generation.

    Raises:
        KernelError: One is refused; nothing of it holds.
    """
    sent = list(messages)
    condition = b"" if generation is None else be32(1, generation)
    first = Message(_BEGIN, 0, _head(socket.AF_UNSPEC, 10) + condition, "nft -f -")
    last = Message(_END, 0, _head(socket.AF_UNSPEC, 10), "nft -f -")
    sent[-1] = sent[-1]._replace(flags=sent[-1].flags | ACK)
    parts = [packed(one, at) for at, one in enumerate((first, *sent, last))]
    with using() as sock:
        with_words(sock)
        data = b"".join(parts)
        if len(data) > 1 << 16:
            # SO_SNDBUFFORCE: some thousand ports.
            sock.setsockopt(socket.SOL_SOCKET, 32, 2 * len(data))
            sock.setsockopt(socket.SOL_SOCKET, 33, 2 * len(data))
        sock.send(data)
        heard = False
        for kind, number, body in answers(sock):
            if kind != _ERROR:
                continue
            code = refusal(body)
            # What the kernel calls "start again": of another generation.
            if code == 85 and number == 0:
                return False
            if code:
                refused = sent[number - 1] if 0 < number <= len(sent) else first
                raise KernelError(code, refused.text, "rules of the sandboxes' networks", words(body))
            heard = True
    if not heard:
        raise KernelError(errno.EPROTO, "nft -f -", "rules of the sandboxes' networks", "no answer came")
    return True


def generation() -> int:
    """
    A number that every change of this namespace's rules makes another.

    Raises:
        KernelError: The kernel has no nf_tables.

    Kernel: NFT_MSG_GETGEN.
    """
    with using() as sock:
        body = ask(sock, Message(_GETGEN, 0, _head(socket.AF_UNSPEC), "nft list ruleset"))
    return int.from_bytes(attributes(body[4:])[1], "big")


def following(number: int) -> int:
    """The generation after one. Kernel: it counts, and leaves 0 out."""
    return (number + 1) & 0xFFFFFFFF or 1


def comment(family: int, table: str) -> str | None:
    """What is written to a table, see `new_table`; None if there is no such table."""
    with using() as sock:
        try:
            body = ask(sock, Message(_GETTABLE, 0, _head(family) + text(1, table), "nft list table"))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
    note = attributes(body[4:]).get(6, b"")
    return note[2:].rstrip(b"\0").decode(errors="replace") if note[:1] == b"\0" else ""


def rules(sock: socket.socket, family: int, table: str, chains: Iterable[str]) -> bytes:
    """
    What stands in a table, without what the kernel counts: the same text as long as it is the same.

    Args:
        sock: Of the namespace, see `open_socket`.
        family: Of the table.
        table: Its name.
        chains: Those whose hooks belong to it.
    """
    found = []
    try:
        body = ask(sock, Message(_GETTABLE, 0, _head(family) + text(1, table), "nft list table"))
        found.append(attributes(body[4:]).get(2, b""))
        for chain in chains:
            asked = _head(family) + text(1, table) + text(3, chain)
            known = attributes(ask(sock, Message(_GETCHAIN, 0, asked, "nft list chain"))[4:])
            found += [chain.encode(), *(known.get(kind, b"") for kind in (4, 5, 7, 10))]
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return b""
    for data in dump(sock, _GETRULE, _head(family) + text(1, table)):
        known = attributes(data[4:])
        # Not its handle, nor that of the one before it.
        found += [known.get(kind, b"") for kind in (2, 4)]
    return b"\0".join(found)


def elements(sock: socket.socket, family: int, table: str, name: str) -> dict[bytes, bytes]:
    """What is in a set or map: keys, with their data."""
    found = {}
    try:
        listed = dump(sock, _GETSETELEM, _head(family) + text(1, table) + text(2, name))
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return {}
        raise
    for data in listed:
        for _, one in each_attribute(attributes(data[4:]).get(3, b"")):
            known = attributes(one)
            key, value = (attributes(known.get(kind, b"")).get(1, b"") for kind in (_KEY, _DATA))
            found[key] = value
    return found


def dropping() -> list[str]:
    """
    Chains of all tables that drop what is forwarded unless one of their rules allows it.

    Raises:
        KernelError: The kernel has no nftables, or does not tell.

    Kernel: NFT_MSG_GETCHAIN.
    """
    found = []
    with using() as sock:
        for data in dump(sock, _GETCHAIN, _head(socket.AF_UNSPEC)):
            known = attributes(data[4:])
            hook = attributes(known.get(4, b"")).get(1)
            policy = known.get(5)
            if hook is not None and policy is not None and data[0] in (INET, IP, IP6):
                number, verdict = (int.from_bytes(part, "big") for part in (hook, policy))
                if (number, verdict) == (FORWARD, 0):
                    table, chain = (known[kind].rstrip(b"\0").decode(errors="replace") for kind in (1, 3))
                    found.append(f"{FAMILIES[data[0]]} {table} {chain}")
    return found


__all__ = [
    "BRIDGE", "FAMILIES", "FORWARD", "HINT", "INET", "INPUT", "IP", "IP6", "OUTPUT", "POSTROUTING",
    "PREROUTING", "Element", "Hook", "add_elements", "alone", "comment", "delete_elements", "delete_table",
    "dropping", "elements", "following", "generation", "new_chain", "new_rule", "new_set", "new_table",
    "rules", "transact",
]  # fmt: skip
