"""
Which ranges and addresses are given out: free ones, clear of what the host uses.

What counts is what would be broken: the host's own addresses and those beside them, its name servers, and
routes to a part of the range or to the whole of it. A route to more than the range (a VPN's halves of
everything, a blackhole for all private addresses) is exact about nothing in it: such ranges are taken only
where there are no others.

Spec: RFC 1918 (private addresses), RFC 4193 (unique local addresses of IPv6).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from sandboxlib.errors import NetworkError

#: Where ranges are taken from, in order: what companies and homes use least comes first.
POOLS = tuple(map(IPv4Network, ("10.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/8")))
PREFIX, PREFIX6 = 24, 64
_SIZE = 1 << 32 - PREFIX
_TRIES = 64

Range = IPv4Network | IPv6Network
_SPANS = {
    4: [(int(pool.network_address), int(pool.broadcast_address)) for pool in POOLS],
    6: [(0xFD << 120, (0xFE << 120) - 1)],
}


def is_near(version: int, first: int, last: int) -> bool:
    """Does a span of addresses touch any from which ranges are taken?"""
    return any(first <= high and last >= low for low, high in _SPANS[version])


def _merged(spans: Iterable[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(span for span in spans if span[0] <= high and span[1] >= low):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found


def _gap(spans: list[tuple[int, int]], low: int, high: int) -> int | None:
    """The first aligned range between *low* and *high* that touches none of *spans*, which are in order."""
    at = low
    for first, last in spans:
        if at + _SIZE - 1 < first:
            break
        at = max(at, (last + _SIZE) & ~(_SIZE - 1))
    return at if at + _SIZE - 1 <= high else None


def _spans(version: int, ranges: Iterable[Range]) -> list[tuple[int, int]]:
    return [
        (int(one.network_address), int(one.broadcast_address)) for one in ranges if one.version == version
    ]  # fmt: skip


def free_ipv4(taken: Iterable[Range], loose: Iterable[Range] = (), last: str = "") -> str:
    """
    Choose a range.

    Args:
        taken: What it may not touch.
        loose: What it should not touch either, as long as there is something else.
        last: The one that was chosen last: the next is behind it, for as long as there are such.

    Raises:
        NetworkError: There is none left.
    """
    start = int(ip_network(last).network_address) + _SIZE if last else 0
    firm = _spans(4, taken)
    for spans in (firm + _spans(4, loose), firm):
        for low, high in _SPANS[4]:
            merged = _merged(spans, low, high)
            for begin in (start, low) if low <= start <= high else (low,):
                found = _gap([span for span in merged if span[1] >= begin], begin, high)
                if found is not None:
                    return str(IPv4Network((found, PREFIX)))
    pools = ", ".join(map(str, POOLS))
    raise NetworkError(f"no range of addresses is free: what the host uses covers {pools}; give a subnet=")


def free_ipv6(taken: Iterable[Range], loose: Iterable[Range] = ()) -> str:
    """
    A range of our own; as `free_ipv4`.

    Raises:
        NetworkError: Wherever one was looked for, the host has something.
    """
    firm = _spans(6, taken)
    for spans in (firm + _spans(6, loose), firm):
        for _ in range(_TRIES):
            first = int.from_bytes(b"\xfd" + os.urandom(7) + bytes(8), "big")
            last = first + (1 << 64) - 1
            if not any(begin <= last and end >= first for begin, end in spans):
                return str(IPv6Network((first, PREFIX6)))
    raise NetworkError("no range of IPv6 addresses is free: the host uses all of fd00::/8; give a subnet=")


def first_address(subnet: str) -> str:
    """The first address of a host in a range."""
    return str(ip_network(subnet)[1])


def free_address(what: str, subnet: str, taken: Iterable[str], last: int) -> tuple[str, int]:
    """
    Choose the address that was not given out for longest.

    Args:
        what: For the error.
        subnet: The range.
        taken: Addresses in it that are in use, the gateway's included.
        last: Where in the range the last one was.

    Returns:
        The address, and where in the range it is.

    Raises:
        NetworkError: All are in use.
    """
    net = ip_network(subnet)
    used = {int(ip_address(item)) - int(net.network_address) for item in taken}
    # The last address of IPv4 is for all hosts of the range.
    count = net.num_addresses - 1
    for step in range(1, len(used) + 3):
        place = (last + step) % count
        if place and place not in used:
            return str(net[place]), place
    free = count - 1
    if len(used) < free:
        for place in range(1, count):
            if place not in used:
                return str(net[place]), place
    raise NetworkError(f"{what} has no free address in {subnet}: all {free} are taken; use a larger subnet=")


def check_address(what: str, wanted: str, subnet: str, taken: Iterable[str]) -> int:
    """
    See whether an address can be had; returns where in the range it is.

    Raises:
        NetworkError: *wanted* is in use, or is not the address of a host in *subnet*.
    """
    net, found = ip_network(subnet), ip_address(wanted)
    if found not in net or found in (net.network_address, net.broadcast_address):
        raise NetworkError(f"{what} is {subnet}: {wanted} is not the address of a host in it")
    if wanted in taken:
        raise NetworkError(f"{wanted} is taken on {what}")
    return int(found) - int(net.network_address)


def mac_of(address: str, taken: Collection[str] = ()) -> str:
    """
    A MAC address that belongs to an address, so that no neighbour ever remembers another's.

    Args:
        address: Of either family.
        taken: Those that somebody on the same network has: then it is another one.
    """
    packed = ip_address(address).packed
    if len(packed) == 16:
        # The last three bytes, and one that says of which family it is.
        packed = b"\x66" + packed[-3:]
    found = (b"\x02\x5b" + packed).hex(":")
    while found in taken:
        found = (b"\x02\x5c" + os.urandom(4)).hex(":")
    return found


__all__ = [
    "POOLS", "PREFIX", "Range", "check_address", "first_address", "free_address", "free_ipv4", "free_ipv6",
    "is_near", "mac_of",
]  # fmt: skip
