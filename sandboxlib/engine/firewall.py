"""
The rules of our networks as they stand in the kernel, and what networks and ports put into them.

What stands is compared with the book: the kernel numbers each change of any rule
(`sandboxlib.kernel.nftables.generation`), and the book has the number after our last. Whatever others made of
our tables meanwhile, flushed, deleted, or loaded from an older list, is mended. The rules themselves are in
`sandboxlib.engine.rules`.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable
from ipaddress import ip_address

from sandboxlib.engine import presence
from sandboxlib.engine.ledger import Book, Member, Net
from sandboxlib.engine.rules import SETS, tables
from sandboxlib.errors import KernelError, UnsupportedError
from sandboxlib.kernel import nft_expressions as x
from sandboxlib.kernel import nftables as nft
from sandboxlib.kernel.netfilter import using
from sandboxlib.kernel.netlink import Message

TABLE = "sandboxlib"
_PROTOCOLS = {"tcp": x.TCP, "udp": x.UDP}
#: Tries of a change among others who change rules all the time.
_TRIES = 20
#: One for each book whose programs stand in this network namespace.
_NAMES = (TABLE, *(f"{TABLE}-{number}" for number in range(2, 100)))
_LACKING = (errno.EOPNOTSUPP, errno.ENOENT, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
_STEP = "rules of the sandboxes' networks"

Element = nft.Element


def _contents(name: str, owner: str, *, instead: bool) -> list[Message]:
    """All tables without elements; *instead* of those that are there."""
    found = []
    for table in tables():
        new = nft.new_table(table.family, name, owner)
        # To take a table away the kernel waits for all its processors: 10 ms.
        found += [new, nft.delete_table(table.family, name), new] if instead else [nft.alone(new)]
        found += [nft.new_set(table.family, name, *one) for one in table.sets]
        found += [nft.new_chain(table.family, name, chain.name, chain.hook) for chain in table.chains]
        rules = [(chain.name, rule) for chain in table.chains for rule in chain.rules]
        found += [nft.new_rule(table.family, name, chain, rule) for chain, rule in rules]
    return found


# ---- elements ---------------------------------------------------------------------------------


def of_network(net: Net) -> list[Element]:
    """What a network puts into the sets."""
    return [("same", x.interface(net.bridge) * 2, b"")]


def _place(protocol: str, port: int) -> bytes:
    return bytes([_PROTOCOLS[protocol], 0, 0, 0]) + port.to_bytes(2, "big") + b"\0\0"


def _leads_to(address: str, port: int) -> bytes:
    return ip_address(address).packed + port.to_bytes(2, "big") + b"\0\0"


def of_ports(net: Net, member: Member) -> list[Element]:
    """What the ports of a sandbox put into the maps."""
    found: list[Element] = []
    for address, port, protocol, target in member.ports:
        key = _place(protocol, port)
        if member.v4 and address in ("", "0.0.0.0"):
            found.append(("any4", key, _leads_to(member.v4, target)))
        elif member.v4 and address and ":" not in address:
            found.append(("at4", ip_address(address).packed + key, _leads_to(member.v4, target)))
        if member.v6 and address in ("", "::"):
            found.append(("any6", key, _leads_to(member.v6, target)))
        elif member.v6 and ":" in address:
            found.append(("at6", ip_address(address).packed + key, _leads_to(member.v6, target)))
        if member.v6 and address in ("", "::", "::1"):
            found.append(("loopback6", key, ip_address(net.gateway6).packed))
    return found


def of_host(book: Book) -> list[Element]:
    """What this host's own settings put into the sets: where forwarding was opened, and its name servers."""
    found: list[Element] = [
        (f"opened{family}", x.interface(link), b"")
        for family, opened in book.forwarding.items()
        for link in opened.links
    ]
    found += [("near", ip_address(server).packed, b"") for server in book.servers.near]
    if book.servers.local:
        found += [("dns", _place(kind, 53), _leads_to(book.servers.local, 53)) for kind in _PROTOCOLS]
    return found


def wanted(book: Book) -> list[Element]:
    """All elements, as the book says."""
    found = of_host(book)
    for net in book.networks.values():
        found += of_network(net)
    for member in book.members.values():
        # Who has not been connected yet, or no longer is, is not reached.
        if member.published and member.network in book.networks:
            found += of_ports(book.networks[member.network], member)
    return list(dict.fromkeys(found))


# ---- what stands ------------------------------------------------------------------------------


def stand(book: Book) -> bool:
    """
    See to it that the rules stand as the book says; returns whether they had to be mended.

    Costs one question as long as nobody but us has changed any rule of this host.

    Raises:
        UnsupportedError: This kernel has no such rules.
        KernelError: It refuses one.
    """
    if book.rules.table and _generation() == book.rules.generation:
        return False
    return reconcile(book)


def reconcile(book: Book) -> bool:
    """The same, by looking at each rule."""
    for _ in range(_TRIES):
        number = _generation()
        digest, found = _stands(book) if book.rules.digest else ("", {})
        if not digest or digest != book.rules.digest:
            install(book)
            _remember(book)
            return True
        expected = {(name, key): data for name, key, data in wanted(book)}
        there = {(name, key): data for name, one in found.items() for key, data in one.items()}
        wrong = [(*place, data) for place, data in there.items() if expected.get(place) != data]
        missing = [(*place, data) for place, data in expected.items() if there.get(place) != data]
        if not (wrong or missing):
            book.rules.generation = number
            return False
        if _transact(book, wrong, missing, number):
            return True
    raise _busy()


def change(book: Book, *, add: Iterable[Element] = (), remove: Iterable[Element] = ()) -> None:
    """
    Put elements into their sets, and take others out; the book already says so, and is to be saved after.

    Where the rules are not as the book had them, whatever is wrong is mended.

    Raises:
        KernelError: The kernel refuses one.
    """
    added, removed = list(dict.fromkeys(add)), list(dict.fromkeys(remove))
    if not book.rules.table or not (added or removed):
        return
    try:
        if _transact(book, removed, added, book.rules.generation):
            return
    except KernelError as error:
        # There already and with another aim, or not there: not as the book has it, by nobody's change.
        if error.errno not in (errno.EEXIST, errno.ENOENT, errno.EBUSY):
            raise
    reconcile(book)


def _transact(book: Book, remove: list[Element], add: list[Element], number: int) -> bool:
    name = book.rules.table
    messages = nft.delete_elements(nft.INET, name, remove) + nft.add_elements(nft.INET, name, add)
    done = nft.transact(messages, number)
    if done:
        book.rules.generation = nft.following(number)
    return done


def install(book: Book) -> None:
    """
    Load all tables as the book says, in place of what is there.

    Raises:
        UnsupportedError: This kernel has no such rules.
    """
    if not book.rules.table:
        book.rules.table = _free_name()
    name, instead = book.rules.table, False
    for _ in range(_TRIES):
        number = _generation()
        messages = _contents(name, book.rules.owner, instead=instead)
        try:
            done = nft.transact(messages + nft.add_elements(nft.INET, name, wanted(book)), number)
        except KernelError as error:
            if error.errno == errno.EEXIST and not instead:
                instead = True
                continue
            if error.errno in _LACKING:
                raise _missing(error) from error
            raise
        if done:
            book.rules.generation = nft.following(number)
            # How the kernel tells of them is looked at when they are first to be compared.
            book.rules.digest = ""
            return
    raise _busy()


def remove_tables(book: Book) -> None:
    """Take all tables away that are there."""
    if book.rules.table:
        _remove(book.rules.table)
    book.rules.table = book.rules.digest = ""


def _remove(name: str) -> None:
    # First made: taking away what is not there is an error.
    messages = [
        one
        for table in tables()
        for one in (nft.new_table(table.family, name, ""), nft.delete_table(table.family, name))
    ]
    nft.transact(messages)


def remove_strangers(book: Book) -> None:
    """Take away tables of ours that no living program's book names."""
    for name in _NAMES:
        owner = nft.comment(nft.INET, name)
        if owner is not None and name != book.rules.table and not presence.exists(owner):
            _remove(name)


def _free_name() -> str:
    """``sandboxlib``, unless living programs that have another book (a /run of their own) have that."""
    for name in _NAMES:
        owner = nft.comment(nft.INET, name)
        if owner is None or not presence.exists(owner):
            return name
    raise KernelError(errno.EEXIST, f"nft add table inet {TABLE}", _STEP)


def _stands(book: Book) -> tuple[str, dict[str, dict[bytes, bytes]]]:
    """What the rules are, in short, or nothing where a table is missing; and all elements."""
    name = book.rules.table
    with using() as sock:
        parts = [
            nft.rules(sock, table.family, name, [chain.name for chain in table.chains]) for table in tables()
        ]
        found = {one: nft.elements(sock, nft.INET, name, one) for one, _, _ in SETS}
    return hashlib.sha256(b"\1".join(parts)).hexdigest() if all(parts) else "", found


def _remember(book: Book) -> None:
    digest, _ = _stands(book)
    # Unless somebody has changed them meanwhile.
    if nft.generation() == book.rules.generation:
        book.rules.digest = digest


def _generation() -> int:
    try:
        return nft.generation()
    except KernelError as error:
        raise _missing(error) from error


def _missing(error: KernelError) -> UnsupportedError:
    why = f"{error.call}: {error.hint}" if error.hint else error.call
    return UnsupportedError("a bridge", f"a kernel with nf_tables ({why})", nft.HINT)


def _busy() -> KernelError:
    return KernelError(errno.EBUSY, "nft -f -", _STEP, "others change this host's rules all the time")


__all__ = [
    "TABLE",
    "change",
    "install",
    "of_host",
    "of_network",
    "of_ports",
    "reconcile",
    "remove_strangers",
    "remove_tables",
    "stand",
    "wanted",
]
