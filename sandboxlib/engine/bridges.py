"""
Networks of this host: a bridge each, made with the first who is on it and gone with the last.

What is decided is decided under the lock of the book (`sandboxlib.engine.ledger`), in which what is about
to be made is entered first. What takes the kernel long, and what this host has to be asked about, is done
before or after: see `sandboxlib.engine.ranges` and `sandboxlib.engine.teardown`.
"""

from __future__ import annotations

import errno
import os
from ipaddress import ip_network
from typing import TYPE_CHECKING

from sandboxlib.engine import firewall, forwarding, pool, port_security, ranges, teardown
from sandboxlib.engine.ledger import Book, Net, folder, locked
from sandboxlib.errors import KernelError, NetworkError, UnsupportedError
from sandboxlib.kernel import links, packet_filter, routes
from sandboxlib.kernel.netlink import Message, carry_out, open_socket
from sandboxlib.kernel.syscall import read_file

if TYPE_CHECKING:
    import socket

    from sandboxlib.engine.ranges import Surroundings
    from sandboxlib.host import Host
    from sandboxlib.network import Network


def ensure(book: Book, network: Network, host: Host, around: Surroundings | None) -> Net:
    """
    Find a network, or make it; what is wrong with one that is there is mended.

    Raises:
        NetworkError: It is there and not as asked for, or its addresses are not free.
        UnsupportedError: This kernel cannot make it.
        KernelError: A step failed.
    """
    assert network.name is not None
    net = book.networks.get(network.name)
    if net is not None:
        _agree(net, network)
        mend(book, net, host)
        return net
    assert around is not None
    net = ranges.planned(book, network, around)
    book.networks[net.name] = net
    firewall.remove_strangers(book)
    teardown.remove_strangers(book)
    forwarding.note(book, net)
    book.save()
    _make(book, net, host)
    if book.rules.table and not firewall.stand(book):
        firewall.change(book, add=[*firewall.of_host(book), *firewall.of_network(net)])
    elif not book.rules.table:
        firewall.install(book)
    book.save()
    # Only now, when what is not to be forwarded is not.
    forwarding.switch_on(book)
    return net


def _agree(net: Net, network: Network) -> None:
    for field, wanted, there in (
        ("subnet", network.subnet, net.v6 if ":" in (network.subnet or "") else net.v4),
        ("gateway", network.gateway, net.gateway6 if ":" in (network.gateway or "") else net.gateway4),
        ("ipv6", network.ipv6 or None, bool(net.v6)),
        ("internal", network.internal or None, net.internal),
        ("mtu", network.mtu, net.mtu),
    ):
        if wanted is not None and wanted != there:
            raise NetworkError(
                f"network {net.name!r} is there already, with {field}={there!r} and not {wanted!r}: "
                f"leave {field}= out, or use another name"
            )


def _make(book: Book, net: Net, host: Host) -> None:
    mac = pool.mac_of(net.gateway4 or net.gateway6)
    with open_socket() as sock:
        try:
            carry_out(sock, [links.bridge(net.bridge, mac, net.mtu)], f"network {net.name!r}")
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise UnsupportedError(
                    "a bridge", "a kernel with CONFIG_BRIDGE", "load it with 'modprobe bridge'"
                ) from error
            raise
        link = links.index(net.bridge)
        try:
            # Whose it is, for programs that have another book.
            owner = links.alias(link, f"sandboxlib {book.rules.owner}")
            messages = [*packet_filter.guarded([port_security.gate(link)]), owner]
            carry_out(sock, messages, f"network {net.name!r}")
        except KernelError as error:
            raise packet_filter.refused("a bridge") from error
        forwarding.settle(net)
        carry_out(sock, _addressed(net, link, host), f"network {net.name!r}")


def _addressed(net: Net, link: int, host: Host) -> list[Message]:
    messages = [links.own_ipv6(link, wanted=bool(net.v6))] if host.ipv6 else []
    messages.append(links.up(link))
    for address, subnet in ((net.gateway4, net.v4), (net.gateway6, net.v6)):
        if address:
            messages.append(routes.address(link, address, ip_network(subnet).prefixlen))
    return messages


def mend(book: Book, net: Net, host: Host, *, thorough: bool = False) -> list[str]:
    """
    See to it that a network stands as it was made.

    Args:
        book: Saved by who calls.
        net: The network.
        host: For its kernel.
        thorough: Look at each port, and at each rule, too.

    Returns:
        What was mended.

    Raises:
        KernelError: It cannot be.
    """
    mended = []
    link = links.index(net.bridge)
    if not link:
        # Somebody has taken it away under its sandboxes.
        _make(book, net, host)
        _attach(book, net)
        mended.append(f"the bridge of network {net.name!r}, which was gone")
    with open_socket() as sock:
        # No question here waits for the kernel's lock of all interfaces, which is had for long at times.
        if link and (thorough or not _stands(sock, net, link)):
            mended += _mend_bridge(book, net, link, host)
        settled = forwarding.settle(net)
        if settled:
            mended.append(f"settings of the bridge of network {net.name!r}")
        reset = settled or not _forwards(net) or forwarding.has_new_way(book, sock)
    if (firewall.reconcile if thorough else firewall.stand)(book):
        mended.append("the rules")
    if reset and net.forwards:
        forward(book, net)
        if not settled:
            mended.append(f"forwarding from network {net.name!r}")
    return mended


def forward(book: Book, net: Net) -> None:
    """
    Let the host hand packets on from a network.

    Raises:
        UnsupportedError: /proc/sys cannot be written to.
    """
    net.forwards = True
    before = set(firewall.of_host(book))
    forwarding.note(book, net)
    now = set(firewall.of_host(book))
    firewall.change(book, add=now - before, remove=before - now)
    book.save()
    forwarding.settle(net)
    forwarding.switch_on(book)


def _forwards(net: Net) -> bool:
    return "6" not in forwarding.families(net) or forwarding.value("net/ipv6/conf/all/forwarding") == "1"


def _stands(sock: socket.socket, net: Net, link: int) -> bool:
    """Is the bridge up, with its addresses and the routes that go with them? Asks the kernel for a way."""
    return all(routes.way(sock, someone) == link for someone in net.someone)


def _mend_bridge(book: Book, net: Net, link: int, host: Host) -> list[str]:
    step, there = f"network {net.name!r}", (errno.EEXIST,)
    mended = []
    with open_socket() as sock:
        messages = packet_filter.guarded([port_security.gate(link)]) + _addressed(net, link, host)
        stood = _stands(sock, net, link)
        carry_out(sock, [one._replace(ignore=(*one.ignore, *there)) for one in messages], step)
        if not stood:
            mended.append(f"the bridge of {step}, which was down or had lost its addresses")
        if not _stands(sock, net, link):
            # The addresses are there, and the routes that came with them are not.
            for address, subnet in ((net.gateway4, net.v4), (net.gateway6, net.v6)):
                if address:
                    prefix = ip_network(subnet).prefixlen
                    again = [routes.no_address(link, address, prefix), routes.address(link, address, prefix)]
                    carry_out(sock, again, step)
    return mended + [f"{off}, which was no port of {step}" for off in _attach(book, net)]


def _attach(book: Book, net: Net) -> list[str]:
    """Put all who are on a network on its bridge; returns the links that were not."""
    bridge = links.index(net.bridge)
    with open_socket() as sock:
        there = {link.name: link for link in links.every(sock)}
        off = [
            there[member.link]
            for member in book.on(net.name)
            if member.link in there and (there[member.link].master != bridge or not there[member.link].up)
        ]
        carry_out(sock, [links.enslave(link.number, bridge) for link in off], f"network {net.name!r}")
    return [link.name for link in off]


def filters_frames() -> bool:
    """
    Do rules see frames that only cross a bridge?

    Then what a sandbox sends to a port of the host that leads back to itself never leaves the
    bridge. Kernel: br_netfilter.
    """
    try:
        return any(
            read_file(f"/proc/sys/net/bridge/bridge-nf-call-{name}").strip() != b"0"
            for name in ("iptables", "ip6tables")
        )
    except FileNotFoundError:
        return False


def look_after(host: Host) -> list[str]:
    """
    Put all networks of this namespace right: what dead programs left, and what others did to what stands.

    Returns:
        What was put right, in words.
    """
    found = teardown.sweep_all(host)
    if not os.path.isdir(folder(host.run_dir)):
        return found
    with locked(host.run_dir) as book:
        for net in list(book.networks.values()):
            found += mend(book, net, host, thorough=True)
        firewall.remove_strangers(book)
        teardown.remove_strangers(book)
        book.save()
    return found


__all__ = ["ensure", "filters_frames", "forward", "look_after", "mend"]
