"""
How sandboxes leave their networks, and networks this host; and what dead programs left of both.

First nothing leads to who leaves, then the kernel forgets what it knew of him, and only then are his
addresses free for others. So each step is done before the book says so, and what is interrupted is found
in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from time import monotonic, sleep
from typing import TYPE_CHECKING

import attrs

from sandboxlib.engine import firewall, forwarding, hosts, ledger, presence
from sandboxlib.engine.ledger import Book, Member, Net, folder, locked
from sandboxlib.errors import NetworkError
from sandboxlib.kernel import conntrack, links
from sandboxlib.kernel.netlink import carry_out, open_socket
from sandboxlib.kernel.owner import is_dead, owner_of

if TYPE_CHECKING:
    from sandboxlib.host import Host

#: Seconds in which a namespace that has ended takes its interfaces along.
_PATIENCE = 0.05
#: Who removes what nobody removes any more: whoever sweeps.
_NOBODY = "-"


def unplug(members: Iterable[Member], *, at_once: bool = False) -> None:
    """
    Remove the interfaces of sandboxes, if they do not go by themselves.

    That is what they do with their namespace, in half a millisecond: to remove one takes 20. Where the
    namespace stays (another sandbox is in it) that has to be done.
    """
    names = [name for member in members if member.link for name in _interfaces(member)]
    until = monotonic() + (0 if at_once else _PATIENCE)
    while names and (left := [name for name in names if links.index(name)]):
        names = left
        queues = [name for name in names if name.startswith("sbxi")]
        if monotonic() > until or queues == names:
            break
        sleep(0.0002)
    else:
        return
    with open_socket() as sock:
        carry_out(sock, [links.delete(name) for name in names])


def _interfaces(member: Member) -> list[str]:
    return [member.link, queue_of(member)] if member.rate else [member.link]


def queue_of(member: Member) -> str:
    """The interface that its own packets wait at."""
    return "sbxi" + member.link.removeprefix("sbxv")


def withdraw(book: Book, tokens: Iterable[str]) -> None:
    """Let nobody find those who leave: their names, their ports. The kernel's rules first, then the book."""
    gone = []
    for token in tokens:
        member = book.members[token]
        net = book.networks.get(member.network)
        hosts.rename(book, member, add=False)
        if member.ports and net is not None:
            gone += firewall.of_ports(net, member)
        member.published = False
        member.hosts, member.names = "", []
    firewall.change(book, remove=gone)
    book.save()


def strike(book: Book, tokens: Iterable[str], owner: str) -> list[Net]:
    """
    Take those who have left out of the book, and networks on which nobody is any more.

    Returns:
        Networks whose bridges are to be removed, by `clear_away`.
    """
    for token in tokens:
        for kind in ("hosts", "resolv"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(book.path(f"{token}.{kind}"))
        del book.members[token]
    empty = [net for net in book.networks.values() if not book.on(net.name)]
    if not empty:
        book.save()
        return []
    with open_socket() as sock:
        # At once nothing is sent over it any more; to be removed it needs long.
        carry_out(sock, [links.down(net.bridge) for net in empty])
    for net in empty:
        del book.networks[net.name]
        book.leaving.append(attrs.evolve(net, leaving=owner))
        for subnet, given in ((net.v4, [net.last4, net.top4]), (net.v6, [net.last6, net.top6])):
            if subnet:
                # What goes last is forgotten last.
                book.past.pop(subnet, None)
                book.past[subnet] = given
        with contextlib.suppress(FileNotFoundError):
            os.unlink(book.path(f"{net.bridge}.hosts"))
    book.save()
    if book.networks:
        firewall.change(book, remove=[one for net in empty for one in firewall.of_network(net)])
    else:
        _close_down(book)
    book.save()
    return [net for net in book.leaving if net.leaving == owner]


def _close_down(book: Book) -> None:
    """With the last network: settings as they were, and no rules of ours."""
    if forwarding.elsewhere(book):
        # Others' programs, with a book of their own, go on needing it.
        book.forwarding = {}
    forwarding.reset(book)
    firewall.remove_tables(book)
    book.servers = ledger.Servers()


def clear_away(run_dir: str, leaving: list[Net]) -> None:
    """Remove bridges that `strike` has taken out of the book's networks; without the lock, but at the end."""
    if not leaving:
        return
    with open_socket() as sock:
        carry_out(sock, [links.delete(net.bridge) for net in leaving])
    with locked(run_dir) as book:
        gone = {net.bridge for net in leaving}
        book.leaving = [net for net in book.leaving if net.bridge not in gone]
        book.save()


def sweep(book: Book) -> list[str]:
    """
    Take off those whose program is dead, and networks on which nobody is.

    Returns:
        What was found.
    """
    # One look for each program, not for each of its sandboxes.
    named = [*book.members, *(net.leaving for net in book.leaving)]
    owners = {owner_of(token): token for token in named}
    dead = {owner for owner, token in owners.items() if is_dead(token, os.path.dirname(book.folder))}
    tokens = [token for token in book.members if owner_of(token) in dead]
    found = [f"a place on network {book.members[token].network!r}" for token in tokens]
    if tokens:
        members = [book.members[token] for token in tokens]
        unplug(members, at_once=True)
        withdraw(book, tokens)
        conntrack.forget(address for member in members for address in member.addresses)
    if tokens or any(not book.on(name) for name in book.networks):
        strike(book, tokens, _NOBODY)
    left = [net for net in book.leaving if net.leaving == _NOBODY or owner_of(net.leaving) in dead]
    if left:
        with open_socket() as sock:
            carry_out(sock, [links.delete(net.bridge) for net in left])
        book.leaving = [net for net in book.leaving if net not in left]
        found += [f"network {net.name!r}" for net in left]
        book.save()
    if not book.networks and (book.rules.table or book.forwarding):
        _close_down(book)
        book.save()
    return found


def remove_strangers(book: Book) -> None:
    """Remove bridges of ours that no living program's book names: their /run is gone, with what it told."""
    known = {net.bridge for net in (*book.networks.values(), *book.leaving)}
    with open_socket() as sock:
        gone = [
            link.name
            for link in links.every(sock)
            if link.name.startswith("sbx-")
            and link.name not in known
            and link.alias.startswith("sandboxlib ")
            and not presence.exists(link.alias.partition(" ")[2])
        ]
        carry_out(sock, [links.delete(name) for name in gone])


def sweep_all(host: Host) -> list[str]:
    """The same for this network namespace, if it ever had one; and the books of namespaces that are gone."""
    found = []
    if os.path.isdir(folder(host.run_dir)):
        with locked(host.run_dir) as book:
            found = sweep(book)
    sweep_books(host)
    return found


def sweep_books(host: Host) -> None:
    """Remove the books of network namespaces that are gone: with one all goes that its book names."""
    candidates = ledger.others(host.run_dir)
    if not candidates:
        return
    living = _namespaces()
    for where, inode in candidates:
        if inode not in living:
            with contextlib.suppress(NetworkError), locked(host.run_dir, where) as book:
                if all(is_dead(token, host.run_dir) for token in book.members):
                    ledger.clear(where)


def _namespaces() -> set[int]:
    """Network namespaces in which somebody is, or that are mounted somewhere: by their inodes."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if " - nsfs " in line and "net:[" in line:
                found.add(int(line.partition("net:[")[2].partition("]")[0]))
    return found


__all__ = [
    "clear_away", "queue_of", "remove_strangers", "strike", "sweep", "sweep_all", "unplug", "withdraw",
]  # fmt: skip
