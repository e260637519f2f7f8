"""
The rules of our networks: nftables tables of our own, named ``sandboxlib``.

- ``inet sandboxlib`` says what is open: the way out, published ports, what a sandbox may ask of the host.
- ``ip`` and ``ip6 sandboxlib`` say what stays closed if somebody takes that away: the host's services, the
  way out of an internal network, the wire for whatever has no address of the host's.
- ``bridge sandboxlib`` marks what comes from sandboxes. A bridge hands nothing to the host that is not marked
  (`sandboxlib.engine.port_security`): without any of these tables, everything is closed.

Their rules never change, and know no network by name: bridges are ``sbx-*``, internal ones ``sbx-i*``. What a
network or a published port needs are elements of sets and maps. Nothing of other tables is touched, each
change is one transaction, and with the last network the tables go.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from sandboxlib.engine.port_security import MARK_FROM, MARK_TO
from sandboxlib.kernel import nft_expressions as x
from sandboxlib.kernel import nftables as nft

#: SO_MARK of the sockets that hold published ports: from outside a port leads on while its socket is there.
MARK_PORT = 0x73627800
_OURS, _INTERNAL, _PORTS = "sbx-*", "sbx-i*", "sbxv*"
#: Of the cloud's own services, besides what is link-local: nothing that a sandbox has business with.
_LINK_LOCAL, _METADATA6 = "169.254.0.0/16", ("fe80::/10", "fd00:ec2::254")
_UNTRACKED = 0x40


class Chain(NamedTuple):
    """A chain. Attributes: name; hook, None for one that is jumped to; rules."""

    name: str
    hook: nft.Hook | None
    rules: tuple[bytes, ...]


class Table(NamedTuple):
    """A table. Attributes: family; chains; sets, with their types, and for maps those of the data."""

    family: int
    chains: tuple[Chain, ...]
    sets: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = ()


_PLACE = ("inet_proto", "inet_service")
SETS = (
    ("same", ("ifname", "ifname"), ()),
    ("opened4", ("ifname",), ()),
    ("opened6", ("ifname",), ()),
    ("near", ("ipv4_addr",), ()),
    ("dns", _PLACE, ("ipv4_addr", "inet_service")),
    ("at4", ("ipv4_addr", *_PLACE), ("ipv4_addr", "inet_service")),
    ("at6", ("ipv6_addr", *_PLACE), ("ipv6_addr", "inet_service")),
    ("any4", _PLACE, ("ipv4_addr", "inet_service")),
    ("any6", _PLACE, ("ipv6_addr", "inet_service")),
    ("loopback6", _PLACE, ("ipv6_addr",)),
)
_LOOPBACK6 = ip_address("::1").packed
_DNS_PORTS = tuple(x.protocol(number) + x.port(53) for number in (x.TCP, x.UDP))


def _leads_on(name: str, family: int) -> bytes:
    asked = x.which_address(family) if name.startswith("at") else x.version(family) + x.WHICH_PORT
    return asked + x.lookup(name, into=True) + x.lead_to(family)


def _open() -> Table:
    """What is open: ``inet``."""
    ours, not_ours = x.came_by(_OURS), x.came_by(_OURS, not_so=True)
    to_ours, not_to_ours = x.leaves_by(_OURS), x.leaves_by(_OURS, not_so=True)
    return Table(
        nft.INET,
        (
            # A published port of this host leads to its sandbox.
            Chain("published", None, (
                x.for_this_host(not_so=True) + x.RETURN,
                _leads_on("at4", x.IPV4), _leads_on("at6", x.IPV6),
                _leads_on("any4", x.IPV4), _leads_on("any6", x.IPV6),
            )),
            # 127.0.0.1 as a source may leave this host over our bridges; nothing of it comes in.
            Chain("martians", nft.Hook("filter", nft.PREROUTING, -300), (
                not_ours + x.ACCEPT,
                *(ours + way(own) + x.DROP for own in ("127.0.0.0/8", "::1/128") for way in (x.to, x.from_)),
                # Of use before, at the bridge; others may have rules for marks.
                x.clear_mark(MARK_FROM),
            )),
            Chain("from_outside", nft.Hook("nat", nft.PREROUTING, -100), (
                # What a host beside this one sends to the loopback's addresses the kernel drops, but later.
                x.to("127.0.0.0/8") + x.RETURN,
                x.to("::1/128") + x.RETURN,
                # It leads on for as long as the program that publishes it has its socket.
                x.socket_mark() + x.compare(x.word(MARK_PORT)) + x.jump("published"),
                # A name server that this host has for itself alone is asked by the bridge's own address.
                x.came_by(_INTERNAL) + x.RETURN,
                ours + x.version(x.IPV4) + x.for_this_host() + x.WHICH_PORT
                + x.lookup("dns", into=True) + x.lead_to(x.IPV4),
            )),
            Chain("from_host", nft.Hook("nat", nft.OUTPUT, -100), (x.jump("published"),)),
            # ::1 may not leave this host as a source, and no setting allows it: it is exchanged before
            # connections are looked at, and back again afterwards.
            Chain("loopback_out", nft.Hook("route", nft.OUTPUT, -310), (
                x.to("::1/128") + x.WHICH_PORT + x.lookup("loopback6", into=True) + x.put_address(8),
            )),
            Chain("loopback_in", nft.Hook("filter", nft.INPUT, 110), (
                ours + x.from_("::1/128") + x.put_address(24, _LOOPBACK6),
            )),
            Chain("local_dns", nft.Hook("nat", nft.INPUT, 100), (
                ours + x.to("127.0.0.0/8") + x.come_from("127.0.0.1"),
            )),
            Chain("outgoing", nft.Hook("nat", nft.POSTROUTING, 100), (
                to_ours + x.from_("127.0.0.0/8") + x.MASQUERADE,
                # From a sandbox to a port that another has published; marked below, in forward.
                to_ours + x.marked(MARK_FROM) + x.natted(x.NATTED_DESTINATION) + x.MASQUERADE,
                x.leaves_by(_INTERNAL) + x.natted(x.NATTED_DESTINATION) + x.MASQUERADE,
                ours + not_to_ours + x.MASQUERADE,
            )),
            # Seen by the filter at the sandbox's port: the host has let it through.
            Chain("allowed", nft.Hook("filter", nft.POSTROUTING, 300), (to_ours + x.set_mark(MARK_TO),)),
            Chain("forward", nft.Hook("filter", nft.FORWARD, 0), (
                # Where we switched forwarding on, the host does not become a router for others by it.
                *(
                    x.version(family) + x.meta("iifname") + x.lookup(one)
                    + x.meta("oifname") + x.lookup(one) + x.DROP
                    for family, one in ((x.IPV4, "opened4"), (x.IPV6, "opened6"))
                ),
                not_ours + not_to_ours + x.ACCEPT,
                ours + to_ours + x.natted(x.NATTED_DESTINATION) + x.set_mark(MARK_FROM),
                # Within a network, where packets on a bridge come by here at all (br_netfilter).
                x.meta("iifname") + x.meta("oifname", 4) + x.lookup("same") + x.ACCEPT,
                x.connection(x.INVALID) + x.DROP,
                x.connection(x.ESTABLISHED, x.RELATED) + x.ACCEPT,
                x.came_by(_INTERNAL) + x.REJECT_FORBIDDEN,
                to_ours + x.natted(x.NATTED_DESTINATION) + x.ACCEPT,
                ours + to_ours + x.REJECT_FORBIDDEN,
                to_ours + x.DROP,
                *(
                    x.version(x.IPV4) + x.payload(1, 16, 4) + x.lookup("near") + asked + x.ACCEPT
                    for asked in _DNS_PORTS
                ),
                *(x.to(target) + x.REJECT_FORBIDDEN for target in (_LINK_LOCAL, *_METADATA6)),
            )),
            # What sandboxes may ask of the host itself: whether it is there.
            Chain("host", None, (
                *_asked_of_host(nft.INET),
                x.meta("pkttype") + x.compare(b"\0", same=False) + x.DROP,
                x.protocol(x.TCP) + x.REJECT_TCP,
                x.REJECT_PORT,
            )),
            Chain("input", nft.Hook("filter", nft.INPUT, 0), (ours + x.jump("host"),)),
            # What belongs to a connection, and does not fit it, keeps the address that it was sent to, this
            # host's. To say that nobody is there, as the kernel would, ends the connection.
            Chain("strays", nft.Hook("filter", nft.INPUT, -1), (
                x.connection(x.INVALID, not_so=True) + x.ACCEPT,
                x.protocol(x.TCP, not_so=True) + x.ACCEPT,
                x.socket_mark() + x.compare(x.word(MARK_PORT), same=False) + x.ACCEPT,
                x.DROP,
            )),
        ),
        SETS,
    )  # fmt: skip


def _asked_of_host(family: int) -> tuple[bytes, ...]:
    inet = family == nft.INET
    v4, v6 = (x.version(number) if inet else b"" for number in (x.IPV4, x.IPV6))
    ping4 = v4 + x.protocol(x.ICMP) + x.message(8) + x.ACCEPT
    local = x.to("127.0.0.0/8", inet=inet)
    dns = [local + asked + x.natted(x.NATTED_DESTINATION) + x.ACCEPT for asked in _DNS_PORTS]
    # Is it there, and who has an address.
    pings6 = [v6 + x.protocol(x.ICMPV6) + x.message(kind) + x.ACCEPT for kind in (128, 135, 136)]
    return (
        x.connection(x.ESTABLISHED, x.RELATED) + x.ACCEPT,
        *((ping4, *dns) if family != nft.IP6 else ()),
        *(pings6 if family != nft.IP else ()),
    )


def _closed(family: int) -> Table:
    """What stays closed without the other: ``ip``, ``ip6``. After its chains, which say why."""
    ours, elsewhere = x.came_by(_OURS), x.leaves_by(_OURS, not_so=True)
    near = [x.to(target, inet=False) for target in ((_LINK_LOCAL,) if family == nft.IP else _METADATA6)]
    return Table(
        family,
        (
            Chain("input", nft.Hook("filter", nft.INPUT, 10), (
                x.came_by(_OURS, not_so=True) + x.ACCEPT,
                *_asked_of_host(family),
                x.DROP,
            )),
            Chain("forward", nft.Hook("filter", nft.FORWARD, 10), (
                x.came_by(_OURS, not_so=True) + x.ACCEPT,
                x.came_by(_INTERNAL) + elsewhere
                + x.connection(x.ESTABLISHED, x.RELATED, not_so=True) + x.DROP,
                *(elsewhere + asked + x.ACCEPT for asked in _DNS_PORTS),
                *(target + elsewhere + x.DROP for target in near),
            )),
            # Connections that are there go on being translated, as long as some chain may ask for it.
            Chain("translated", nft.Hook("nat", nft.POSTROUTING, 101), ()),
            # No address of a sandbox's is on the wire.
            Chain("outgoing", nft.Hook("filter", nft.POSTROUTING, 110), (
                ours + elsewhere + x.connection(x.INVALID, _UNTRACKED) + x.DROP,
                ours + elsewhere + x.natted(x.NATTED_SOURCE | x.NATTED_DESTINATION, not_so=True) + x.DROP,
            )),
        ),
    )  # fmt: skip


def _marks() -> Table:
    """What comes from sandboxes is marked as it is handed to the host: ``bridge``."""
    hook = nft.Hook("filter", nft.INPUT, -300)
    return Table(nft.BRIDGE, (Chain("from_sandbox", hook, (x.came_by(_PORTS) + x.set_mark(MARK_FROM),)),))


@lru_cache(1)
def tables() -> tuple[Table, ...]:
    """All tables; what closes comes first, what opens last."""
    return (_closed(nft.IP), _closed(nft.IP6), _open(), _marks())


__all__ = ["MARK_PORT", "SETS", "Chain", "Table", "tables"]
