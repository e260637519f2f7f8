"""
How sandboxes leave their networks, and networks this host; and what dead programs left of both.

First nothing leads to who leaves, then the kernel forgets what it knew of him, and only then are his
addresses free for others. So each step is done before the book says so, and what is interrupted is found
in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
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


def strike(book: Book, tokens: Iterable[str], owner: str) -> None:
    """Take those who have left out of the book, and networks on which nobody is: *owner* removes these."""
    for token in tokens:
        for kind in ("hosts", "resolv"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(book.path(f"{token}.{kind}"))
        del book.members[token]
    empty = [net for net in book.networks.values() if not book.on(net.name)]
    if not empty:
        book.save()
        return
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


def _close_down(book: Book) -> None:
    """With the last network: settings as they were, and no rules of ours."""
    if forwarding.elsewhere(book):
        # Others' programs, with a book of their own, go on needing it.
        book.forwarding = {}
    forwarding.reset(book)
    firewall.remove_tables(book)
    book.servers = ledger.Servers()


def leave(run_dir: str, members: Mapping[str, Member], owner: str, *, at_once: bool = False) -> None:
    """
    Take sandboxes off their networks; again, after an interruption, it goes on.

    What takes long is done without the lock: their addresses are theirs until all is forgotten.

    Args:
        run_dir: The run-time folder.
        members: By token, as they are known; those that the book no longer has are gone.
        owner: Who takes networks away on which nobody is then.
        at_once: Their interfaces do not go by themselves.
    """
    unplug(members.values(), at_once=at_once)
    if any(member.published or member.names for member in members.values()):
        with locked(run_dir) as book:
            withdraw(book, [token for token in members if token in book.members])
    # Nothing leads to them any more, and nothing comes from them.
    conntrack.forget(address for member in members.values() for address in member.addresses)
    with locked(run_dir) as book:
        strike(book, [token for token in members if token in book.members], owner)
        leaving = _Leaving([net for net in book.leaving if net.leaving == owner])
    leaving.clear_away(run_dir)


class _Leaving:
    """
    Networks that `strike` has taken out of a book; made under its lock.

    Their bridges are known by their numbers, for another may have the name soon.
    """

    def __init__(self, nets: list[Net]) -> None:
        self.nets = nets
        self._bridges = [links.index(net.bridge) for net in nets]

    def clear_away(self, run_dir: str) -> None:
        """Remove the bridges; without the lock, but at the end."""
        if self.nets:
            with open_socket() as sock:
                carry_out(sock, [links.delete(bridge) for bridge in self._bridges if bridge])
            with locked(run_dir) as book:
                book.leaving = [net for net in book.leaving if net not in self.nets]
                book.save()


def is_due(book: Book) -> bool:
    """Is there something for `sweep`?"""
    gone, left = _left(book)
    return bool(gone or left) or _is_idle(book)


def _left(book: Book) -> tuple[dict[str, Member], list[Net]]:
    """Who is on a network, and which are being removed, by programs that are dead."""
    # One look for each program, not for each of its sandboxes.
    named = [*book.members, *(net.leaving for net in book.leaving)]
    owners = {owner_of(token): token for token in named}
    dead = {owner for owner, token in owners.items() if is_dead(token, os.path.dirname(book.folder))}
    gone = {token: member for token, member in book.members.items() if owner_of(token) in dead}
    return gone, [net for net in book.leaving if net.leaving == _NOBODY or owner_of(net.leaving) in dead]


def _is_idle(book: Book) -> bool:
    """Is there a network on which nobody is, or what only a network needs?"""
    if book.networks:
        return any(not book.on(name) for name in book.networks)
    return bool(book.rules.table or book.forwarding)


def sweep(run_dir: str) -> list[str]:
    """
    Take off those whose program is dead, and networks on which nobody is.

    Returns:
        What was found.
    """
    with locked(run_dir) as book:
        if not is_due(book):
            return []
        gone, _ = _left(book)
    found = [f"a place on network {member.network!r}" for member in gone.values()]
    if gone:
        leave(run_dir, gone, _NOBODY, at_once=True)
    with locked(run_dir) as book:
        if _is_idle(book):
            strike(book, [], _NOBODY)
        if _is_idle(book):
            _close_down(book)
            book.save()
        _, left = _left(book)
        leaving = _Leaving(left)
    leaving.clear_away(run_dir)
    return found + [f"network {net.name!r}" for net in left]


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
        found = sweep(host.run_dir)
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
    "is_due", "leave", "queue_of", "remove_strangers", "strike", "sweep", "sweep_all", "unplug", "withdraw",
]  # fmt: skip
