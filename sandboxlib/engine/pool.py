"""
Which ranges and addresses are given out: free ones, clear of the host's own routes.

Spec: RFC 1918 (private addresses), RFC 4193 (unique local addresses of IPv6).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from sandboxlib.errors import NetworkError

#: Where ranges are taken from, in order: what companies and homes use least comes first.
POOLS = tuple(map(IPv4Network, ("10.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/8")))
PREFIX = 24

Range = IPv4Network | IPv6Network


def free_ipv4(taken: Iterable[Range]) -> str:
    """A range that overlaps none of *taken*. Raises: NetworkError: There is none left."""
    used = [net for net in taken if isinstance(net, IPv4Network)]
    for pool in POOLS:
        near = [net for net in used if net.overlaps(pool)]
        for candidate in pool.subnets(new_prefix=PREFIX):
            if not any(candidate.overlaps(net) for net in near):
                return str(candidate)
    pools = ", ".join(map(str, POOLS))
    raise NetworkError(f"no range of addresses is free: the host's routes cover {pools}; give a subnet=")


def free_ipv6(taken: Sequence[Range]) -> str:
    """A range of our own that overlaps none of *taken*."""
    while True:
        candidate = IPv6Network((b"\xfd" + os.urandom(7) + bytes(8), 64))
        if not any(net.version == 6 and candidate.overlaps(net) for net in taken):
            return str(candidate)


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


def check_address(what: str, wanted: str, subnet: str, taken: Iterable[str]) -> None:
    """Raises: NetworkError: *wanted* is in use, or is not the address of a host in *subnet*."""
    net, found = ip_network(subnet), ip_address(wanted)
    if found not in net or found in (net.network_address, net.broadcast_address):
        raise NetworkError(f"{what} is {subnet}: {wanted} is not the address of a host in it")
    if wanted in taken:
        raise NetworkError(f"{wanted} is taken on {what}")


def mac_of(address: str) -> str:
    """A MAC address that belongs to an address, so that no neighbour ever remembers another's."""
    packed = ip_address(address).packed
    if len(packed) == 16:
        # The last three bytes, and one that says of which family it is.
        packed = b"\x66" + packed[-3:]
    return ":".join(f"{byte:02x}" for byte in b"\x02\x5b" + packed)


__all__ = ["check_address", "first_address", "free_address", "free_ipv4", "free_ipv6", "mac_of"]
