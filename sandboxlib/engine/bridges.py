"""
Networks of this host: a bridge each, made with the first who is on it and gone with the last.

All of it is done under the lock of the book (`sandboxlib.engine.ledger`), in which what is about to
be made is entered first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from sandboxlib.engine import firewall, hosts, pool
from sandboxlib.engine.ledger import Book, Member, Net, folder, locked
from sandboxlib.errors import KernelError, NetworkError, UnsupportedError
from sandboxlib.kernel import conntrack, netlink
from sandboxlib.kernel.cgroup.owner import is_dead
from sandboxlib.kernel.syscall import read_file, write_file

if TYPE_CHECKING:
    from sandboxlib.host import Host
    from sandboxlib.network import Network

_FORWARD = {"4": "/proc/sys/net/ipv4/ip_forward", "6": "/proc/sys/net/ipv6/conf/all/forwarding"}


def ensure(book: Book, network: Network, host: Host) -> Net:
    """
    Find a network, or make it.

    Raises:
        NetworkError: It is there and not as asked for, or its addresses are not free.
        UnsupportedError: This kernel cannot make it.
        KernelError: A step failed; nothing is left of it.
    """
    assert network.name is not None
    net = book.networks.get(network.name)
    if net is not None:
        _agree(net, network)
        if not netlink.index(net.bridge):
            # Somebody has taken it away under its sandboxes.
            _make(net, host)
            _attach_again(book, net)
        if not netlink.has_table(firewall.TABLE):
            firewall.install(book, host)
        return net
    net = _planned(book, network)
    book.networks[net.name] = net
    try:
        families = () if net.internal else tuple(f for f in "46" if (net.v4 if f == "4" else net.v6))
        changed = [family for family in families if _note_forwarding(book, family)]
        book.save()
        _make(net, host)
        if netlink.has_table(firewall.TABLE):
            closed = [("closed", f'"{link}"') for family in changed for link in book.forwarding[family][0]]
            firewall.add([*firewall.of_network(net), *dict.fromkeys(closed)], host)
        else:
            _install(book, host)
        # Only now, when what is not to be forwarded is not.
        for family in changed:
            _switch_on(book, family)
    except BaseException:
        remove(book, net, host)
        raise
    return net


def _install(book: Book, host: Host) -> None:
    try:
        firewall.install(book, host)
    except KernelError as error:
        raise UnsupportedError("a bridge", firewall.refused(error), error.hint) from error


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


def _planned(book: Book, network: Network) -> Net:
    assert network.name is not None
    with netlink.open_socket() as sock:
        routes = [route for route in netlink.routes(sock) if route.network.prefixlen]
    taken = [route.network for route in routes]
    others = [ip_network(text) for net in book.networks.values() for text in (net.v4, net.v6) if text]
    net = Net(network.name, _bridge_name(network.name), internal=network.internal)
    if network.subnet is not None:
        wanted = ip_network(network.subnet)
        for other in book.networks.values():
            for text in (other.v4, other.v6):
                if text and wanted.version == ip_network(text).version and wanted.overlaps(ip_network(text)):
                    raise NetworkError(
                        f"network {net.name!r}: {wanted} overlaps {text} of network {other.name!r}"
                    )
        for route in routes:
            if route.network.version == wanted.version and wanted.overlaps(route.network):
                raise NetworkError(
                    f"network {net.name!r}: {wanted} overlaps the host's route to {route.network}"
                    f"{_over(route.link)}: choose another subnet="
                )
    if network.subnet is not None and ":" in network.subnet:
        net.v6 = network.subnet
        net.gateway6 = network.gateway or pool.first_address(net.v6)
    else:
        net.v4 = network.subnet or pool.free_ipv4([*taken, *others])
        net.gateway4 = network.gateway or pool.first_address(net.v4)
        if network.ipv6:
            net.v6 = pool.free_ipv6([*taken, *others])
            net.gateway6 = pool.first_address(net.v6)
    net.mtu = network.mtu or _hosts_mtu()
    return net


def _over(link: int) -> str:
    with contextlib.suppress(OSError):
        return f" over {socket.if_indextoname(link)}"
    return ""


def _hosts_mtu() -> int:
    with netlink.open_socket() as sock:
        ways = [route.link for route in netlink.routes(sock) if not route.network.prefixlen and route.link]
    for link in ways:
        with contextlib.suppress(OSError):
            return max(1280, netlink.mtu(socket.if_indextoname(link)))
    return 1500


def _bridge_name(name: str) -> str:
    taken = netlink.names()
    number = 0
    while True:
        found = f"sbx-{hashlib.sha256(f'{name}/{number}'.encode()).hexdigest()[:10]}"
        if found not in taken:
            return found
        number += 1


def _make(net: Net, host: Host) -> None:
    mac = pool.mac_of(net.gateway4 or net.gateway6)
    with netlink.open_socket() as sock:
        try:
            netlink.carry_out(sock, [netlink.bridge(net.bridge, mac, net.mtu)], f"network {net.name!r}")
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise UnsupportedError(
                    "a bridge", "a kernel with CONFIG_BRIDGE", "load it with 'modprobe bridge'"
                ) from error
            raise
        link = netlink.index(net.bridge)
        if net.v6:
            write_file(f"/proc/sys/net/ipv6/conf/{net.bridge}/disable_ipv6", "0")
            # Nobody on it tells this host where to send things.
            write_file(f"/proc/sys/net/ipv6/conf/{net.bridge}/accept_ra", "0")
        messages = [] if net.v6 or not host.ipv6 else [netlink.without_ipv6(link)]
        messages.append(netlink.up(link))
        for address, subnet in ((net.gateway4, net.v4), (net.gateway6, net.v6)):
            if address:
                messages.append(netlink.address(link, address, ip_network(subnet).prefixlen))
        netlink.carry_out(sock, messages, f"network {net.name!r}")


def _attach_again(book: Book, net: Net) -> None:
    link = netlink.index(net.bridge)
    with netlink.open_socket() as sock:
        links = [member.link for member in book.on(net.name) if member.link]
        netlink.carry_out(sock, [netlink.enslave(name, link) for name in links])


# ---- forwarding ---------------------------------------------------------------------------


def _is_on(family: str) -> bool:
    return read_file(_FORWARD[family]).strip() != b"0"


def _note_forwarding(book: Book, family: str) -> bool:
    """Enter that forwarding will be switched on; False where it is on without us, or by us already."""
    if _is_on(family):
        return False
    ours = {net.bridge for net in book.networks.values()}
    links = sorted(
        name for name in netlink.names() - ours if name != "lo" and not name.startswith(("sbxv", "sbxi"))
    )
    accepting = []
    if family == "6":
        accepting = [link for link in links if read_file(_accept(link)).strip() == b"1"]
    book.forwarding[family] = [links, accepting]
    return True


def _accept(link: str) -> str:
    return f"/proc/sys/net/ipv6/conf/{link}/accept_ra"


def _switch_on(book: Book, family: str) -> None:
    try:
        # A router heeds no other's advertisements, unless told that it should all the same.
        for link in book.forwarding[family][1]:
            write_file(_accept(link), "2")
        write_file(_FORWARD[family], "1")
    except KernelError as error:
        raise UnsupportedError(
            "a network with a way out",
            f"a {_FORWARD[family]} that can be written",
            f"set {_FORWARD[family].removeprefix('/proc/sys/').replace('/', '.')} to 1 where this host is "
            "set up, or use internal=True",
        ) from error


def _switch_off(book: Book) -> None:
    """With the last network: forwarding as it was, unless interfaces came that may count on it."""
    now = {name for name in netlink.names() if not name.startswith("sbx")}
    for family, (links, accepting) in book.forwarding.items():
        if now <= {"lo", *links}:
            settings = [(_FORWARD[family], b"1", "0"), *((_accept(link), b"2", "1") for link in accepting)]
            for path, ours, before in settings:
                # An interface may have gone. What we did not get to set is not to be set back either.
                with contextlib.suppress(FileNotFoundError):
                    if read_file(path).strip() == ours:
                        write_file(path, before)
    book.forwarding = {}


# ---- the end ------------------------------------------------------------------------------


def remove(book: Book, net: Net, host: Host) -> None:
    """Take a network away, on which nobody is any more."""
    others = any(other is not net for other in book.networks.values())
    if others:
        firewall.remove(firewall.of_network(net), host)
    else:
        _switch_off(book)
        firewall.remove_table(host)
    with netlink.open_socket() as sock:
        netlink.carry_out(sock, [netlink.delete(net.bridge)])
    with contextlib.suppress(FileNotFoundError):
        os.unlink(book.path(f"{net.bridge}.hosts"))
    del book.networks[net.name]
    book.save()


def leave(book: Book, token: str, host: Host) -> None:
    """Take one off its network, with all that it had there; the last one takes the network along."""
    member = book.members[token]
    net = book.networks.get(member.network)
    try:
        if net is not None:
            rename(book, member, add=False)
            firewall.remove(firewall.of_ports(net, member), host)
            if any(protocol == "udp" for _, _, protocol, _ in member.ports):
                packed = [ip_address(address).packed for address in (member.v4, member.v6) if address]
                conntrack.forget(packed, socket.IPPROTO_UDP)
    finally:
        _take_off(book, token, member)
    if net is not None and not book.on(net.name):
        remove(book, net, host)


def _take_off(book: Book, token: str, member: Member) -> None:
    if member.link:
        with netlink.open_socket() as sock:
            netlink.carry_out(sock, [netlink.delete(member.link), netlink.delete(queue_of(member))])
    for kind in ("hosts", "resolv"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(book.path(f"{token}.{kind}"))
    del book.members[token]
    book.save()


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


def queue_of(member: Member) -> str:
    """The interface that its own packets wait at."""
    return "sbxi" + member.link.removeprefix("sbxv")


def rename(book: Book, member: Member, *, add: bool) -> None:
    """Let all on its network find it by its names; or no longer."""
    lines = hosts.lines(member.v4, member.v6, member.names)
    if lines:
        files = {other.hosts for other in book.on(member.network) if other.hosts}
        for path in files:
            hosts.change(path, **{"add" if add else "remove": lines})


def sweep(book: Book, host: Host) -> None:
    """Take off those whose program is dead, and networks on which nobody is."""
    # One look for each program, not for each of its sandboxes.
    owners = {token.rpartition("-")[0]: token for token in book.members}
    dead = {owner for owner, token in owners.items() if is_dead(token)}
    for token in [token for token in book.members if token.rpartition("-")[0] in dead]:
        leave(book, token, host)
    remove_empty(book, host)


def remove_empty(book: Book, host: Host) -> None:
    """Take networks away on which nobody is."""
    for net in [net for net in book.networks.values() if not book.on(net.name)]:
        remove(book, net, host)


def sweep_all(host: Host) -> None:
    """The same, if there ever was a network."""
    if os.path.isdir(folder(host.run_dir)):
        with locked(host.run_dir) as book:
            sweep(book, host)


__all__ = [
    "ensure",
    "filters_frames",
    "leave",
    "queue_of",
    "remove",
    "remove_empty",
    "rename",
    "sweep",
    "sweep_all",
]
