"""
The rules of our networks: one nftables table of our own, ``inet sandboxlib``.

Its chains never change. What a network or a published port needs are elements of sets and maps, so
that a sandbox costs one element for each port, and none otherwise. Nothing of other tables is
touched; each change is one transaction, and with the last network the table goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sandboxlib.engine.ledger import Book, Member, Net
from sandboxlib.errors import KernelError
from sandboxlib.host import Host
from sandboxlib.kernel import netlink, nftables

TABLE = "sandboxlib"
#: Of the cloud's own services: nothing that a sandbox has business with.
_METADATA6 = "{ fe80::/10, fd00:ec2::254 }"

_CHAINS = f"""
  set bridges {{ type ifname; }}
  set internal {{ type ifname; }}
  set same {{ type ifname . ifname; }}
  set closed {{ type ifname; }}
  set sources4 {{ type ipv4_addr; flags interval; }}
  set sources6 {{ type ipv6_addr; flags interval; }}
  map at4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map at6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  map any4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map any6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  map loopback6 {{ type inet_proto . inet_service : ipv6_addr; }}

  # A published port of this host leads to its sandbox.
  chain published {{
    fib daddr type != local return
    dnat ip to ip daddr . meta l4proto . th dport map @at4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @at6
    dnat ip to meta l4proto . th dport map @any4
    dnat ip6 to meta l4proto . th dport map @any6
  }}
  chain from_outside {{
    type nat hook prerouting priority dstnat; policy accept;
    # What a host beside this one sends to the loopback's addresses the kernel drops, but later.
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    jump published
  }}
  chain from_host {{ type nat hook output priority -100; policy accept; jump published; }}

  # ::1 may not leave this host as a source, and no setting allows it: it is exchanged before
  # connections are looked at, and back again afterwards.
  chain loopback_out {{
    type route hook output priority -310; policy accept;
    ip6 daddr ::1 ip6 saddr set meta l4proto . th dport map @loopback6
  }}
  chain loopback_in {{
    type filter hook input priority 110; policy accept;
    iifname @bridges ip6 saddr ::1 ip6 daddr set ::1
  }}
  # 127.0.0.1 as a source may leave it over our bridges; the other way nothing of it comes in.
  chain martians {{
    type filter hook prerouting priority raw; policy accept;
    iifname @bridges ip daddr 127.0.0.0/8 drop
    iifname @bridges ip saddr 127.0.0.0/8 drop
    iifname @bridges ip6 daddr ::1 drop
    iifname @bridges ip6 saddr ::1 drop
  }}

  chain outgoing {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname @bridges ip saddr 127.0.0.0/8 masquerade
    oifname @bridges ct status dnat ip saddr @sources4 masquerade
    oifname @bridges ct status dnat ip6 saddr @sources6 masquerade
    oifname @internal ct status dnat masquerade
    oifname != @bridges ip saddr @sources4 masquerade
    oifname != @bridges ip6 saddr @sources6 masquerade
  }}

  chain forward {{
    type filter hook forward priority filter; policy accept;
    # Where we switched forwarding on, the host does not become a router for others by it.
    iifname @closed oifname @closed drop
    iifname != @bridges oifname != @bridges accept
    ct state established,related accept
    # Within a network, where packets on a bridge come by here at all (br_netfilter).
    iifname . oifname @same accept
    iifname @internal reject with icmpx admin-prohibited
    ct status dnat oifname @bridges accept
    iifname @bridges oifname @bridges reject with icmpx admin-prohibited
    oifname @bridges drop
    # Nobody sends by another's address, who has the right to try.
    ip saddr != @sources4 drop
    ip6 saddr != @sources6 drop
    ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited
    ip6 daddr {_METADATA6} reject with icmpx admin-prohibited
    accept
  }}

  # What sandboxes may ask of the host itself: whether it is there.
  chain host {{
    ct state established,related accept
    icmp type echo-request accept
    icmpv6 type {{ echo-request, nd-neighbor-solicit, nd-neighbor-advert }} accept
    meta pkttype != host drop
    meta l4proto tcp reject with tcp reset
    reject with icmpx port-unreachable
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname @bridges jump host
  }}
"""

Element = tuple[str, str]


def of_network(net: Net) -> list[Element]:
    """What a network puts into the sets."""
    name = f'"{net.bridge}"'
    found = [("bridges", name), ("same", f"{name} . {name}")]
    if net.internal:
        found.append(("internal", name))
    if net.v4:
        found.append(("sources4", net.v4))
    if net.v6:
        found.append(("sources6", net.v6))
    return found


def of_ports(net: Net, member: Member) -> list[Element]:
    """What the ports of a sandbox put into the maps."""
    found: list[Element] = []
    for address, port, protocol, target in member.ports:
        key = f"{protocol} . {port}"
        if member.v4 and address in ("", "0.0.0.0"):
            found.append(("any4", f"{key} : {member.v4} . {target}"))
        elif member.v4 and address and ":" not in address:
            found.append(("at4", f"{address} . {key} : {member.v4} . {target}"))
        if member.v6 and address in ("", "::"):
            found.append(("any6", f"{key} : {member.v6} . {target}"))
        elif member.v6 and ":" in address:
            found.append(("at6", f"{address} . {key} : {member.v6} . {target}"))
        if member.v6 and address in ("", "::", "::1"):
            found.append(("loopback6", f"{key} : {net.gateway6}"))
    return found


def install(book: Book, host: Host) -> None:
    """
    Load the whole table as the book says; it is not there yet.

    Raises:
        UnsupportedError: There is no nftables here.
        KernelError: The kernel refuses a rule.
    """
    elements = [element for net in book.networks.values() for element in of_network(net)]
    for member in book.members.values():
        if member.network in book.networks:
            elements += of_ports(book.networks[member.network], member)
    elements += [("closed", f'"{link}"') for links, _ in book.forwarding.values() for link in links]
    text = f"table inet {TABLE} {{{_CHAINS}}}\n"
    nftables.apply(text + _lines("add", dict.fromkeys(elements)), host.nft)


def remove_table(host: Host) -> None:
    """Take the table away, if it is there."""
    if netlink.has_table(TABLE):
        nftables.apply(f"delete table inet {TABLE}\n", host.nft)


def add(elements: Iterable[Element], host: Host) -> None:
    """Put elements into their sets; those that are there stay. Raises: KernelError."""
    if text := _lines("add", elements):
        nftables.apply(text, host.nft)


def remove(elements: Iterable[Element], host: Host) -> None:
    """Take elements out of their sets; also if others have flushed the rules meanwhile."""
    known = list(elements)
    if not known or not netlink.has_table(TABLE):
        return
    # First added: taking out what is not there is an error.
    nftables.apply(_lines("add", known) + _lines("delete", known), host.nft)


def _lines(verb: str, elements: Iterable[Element]) -> str:
    return "".join(f"{verb} element inet {TABLE} {name} {{ {value} }}\n" for name, value in elements)


def refused(error: KernelError) -> str:
    """Which expression a kernel lacks that refused the table, for the error."""
    match = re.search(r"(fib|reject|masquerade|dnat|ct|th)\b", error.hint)
    return f"a kernel with nftables and {match[1]}" if match else "a kernel with nftables"


__all__ = ["TABLE", "add", "install", "of_network", "of_ports", "refused", "remove", "remove_table"]
