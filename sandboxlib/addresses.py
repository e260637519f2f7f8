"""
Addresses, ranges, names and the like, as arguments of networks.

Spec: RFC 1123 (names of hosts), RFC 4291 (IPv6 addresses), IEEE 802 (MAC addresses).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sandboxlib import quantity
from sandboxlib.errors import SpecError
from sandboxlib.namespace import items, pairs

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*\.?", re.ASCII | re.IGNORECASE)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_NAME = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]*[a-zA-Z0-9_])?", re.ASCII)
_DESTINATION = re.compile(
    r"(?:\[(?P<v6>[^\]]+)\](?P<prefix>/\d+)?|(?P<plain>[^:\[\]]+))(?::(?P<port>\d{1,5}))?", re.ASCII
)


def _unscoped(text: str) -> str:
    """*text*, without a scope: behind a % ipaddress takes any text for one, also several lines (RFC 4007)."""
    if "%" in text:
        raise ValueError(text)
    return text


def subnet(value: object) -> str:
    """Read a range of addresses with room for a gateway and a sandbox. Raises: SpecError."""
    import ipaddress

    allowed = 'a range of addresses such as "10.77.0.0/24", with room for a gateway and a sandbox'
    try:
        # Only text: ipaddress reads a number as an address, which nobody means.
        net = ipaddress.ip_network(_unscoped(quantity.text("subnet", value)))
    except ValueError:
        raise SpecError("subnet", value, allowed) from None
    if (
        net.num_addresses < 4
        or net.is_multicast
        or net.is_loopback
        or net.is_unspecified
        or net.prefixlen == 0
    ):
        raise SpecError("subnet", value, allowed)
    return str(net)


def address(field: str, value: object) -> IPv4Address | IPv6Address:
    """Read the address of one host. Raises: SpecError."""
    import ipaddress

    try:
        found = ipaddress.ip_address(_unscoped(quantity.text(field, value)))
    except ValueError:
        raise SpecError(field, value, 'an address such as "10.0.0.1", without a scope') from None
    if found.is_multicast or found.is_unspecified:
        raise SpecError(field, value, "the address of one host")
    return found


def check_gateway(gateway: str, within: str | None) -> None:
    """Raises: SpecError: *gateway* is not the address of a host in *within*."""
    import ipaddress

    if within is None:
        raise SpecError("gateway", gateway, "given together with subnet=")
    net = ipaddress.ip_network(within)
    found = ipaddress.ip_address(gateway)
    if found not in net or found in (net.network_address, net.broadcast_address):
        raise SpecError("gateway", gateway, f"an address of a host in {within}")


def destinations(value: object) -> tuple[str, ...]:
    """Read the destinations of `Network.allow`, in order. Raises: SpecError."""
    allowed = 'a list of names and addresses such as ["api.example.com", "10.0.0.0/8:5432", "[fd00::]/8"]'
    return tuple(sorted({_destination(item, allowed) for item in items("allow", value, allowed)}))


def _destination(value: object, allowed: str) -> str:
    """One entry of `Network.allow` in its plain form: lower case, and ranges as ranges."""
    import ipaddress

    match = _DESTINATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise SpecError("allow", value, allowed)
    host = match["plain"] or match["v6"] + (match["prefix"] or "")
    port = ""
    if match["port"] is not None:
        number = int(match["port"])
        if not 1 <= number <= 65535:
            raise SpecError("allow", value, "with a port from 1 to 65535")
        port = f":{number}"
    try:
        net = ipaddress.ip_network(_unscoped(host))
    except ValueError:
        # Digits and dots alone are a misspelt address: no such name exists (RFC 3696, section 2).
        last = host.rstrip(".").rpartition(".")[2]
        if match["v6"] or not _HOST.fullmatch(host) or len(host) > 253 or last.isdigit():
            raise SpecError("allow", value, allowed) from None
        return host.lower().rstrip(".") + port
    if net.version == 4:
        text = str(net.network_address) if net.prefixlen == 32 else str(net)
        return text + port
    prefix = "" if net.prefixlen == 128 else f"/{net.prefixlen}"
    return f"[{net.network_address}]{prefix}{port}"


def fixed(value: object) -> tuple[str, ...]:
    """Read the addresses that a sandbox is to have: one, or one of each family. Raises: SpecError."""
    given = (
        [value] if isinstance(value, str) else items("address", value, "an address, or one of each family")
    )
    found = [address("address", item) for item in given]
    if len({item.version for item in found}) < len(found):
        raise SpecError("address", value, "at most one address of each family")
    return tuple(str(item) for item in sorted(found, key=lambda item: item.version))


def mac(value: object) -> str:
    """Read a MAC address of one interface. Raises: SpecError."""
    text = value.lower().replace("-", ":") if isinstance(value, str) else ""
    if not _MAC.fullmatch(text) or int(text[:2], 16) & 1 or not int(text.replace(":", ""), 16):
        raise SpecError("mac", value, 'the address of one interface, such as "02:00:5e:10:00:01"')
    return text


def servers(value: object) -> tuple[str, ...]:
    """Read addresses of name servers, in order. Raises: SpecError."""
    found = tuple(str(address("dns", item)) for item in items("dns", value, "a list of addresses"))
    # MAXNS of resolv.h.
    if len(found) > 3:
        raise SpecError("dns", list(found), "at most three addresses: more are not asked")
    return found


def domains(value: object) -> tuple[str, ...]:
    """Read the domains that names without a dot are looked for in. Raises: SpecError."""
    found: list[str] = []
    for item in items("search", value, "a list of domains"):
        if not isinstance(item, str) or not _HOST.fullmatch(item) or "*" in item or len(item) > 253:
            raise SpecError("search", item, 'the name of a domain, such as "example.com"')
        found.append(item)
    return tuple(found)


def entries(value: object) -> tuple[tuple[str, str], ...]:
    """Read names of hosts with their addresses. Raises: SpecError."""
    found = []
    for name, item in pairs("hosts", value, 'names and addresses, such as {"db": "10.0.0.5"}'):
        if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 253:
            raise SpecError("hosts", name, "names of hosts")
        found.append((name, str(address("hosts", item))))
    return tuple(sorted(found))


def ways(value: object) -> tuple[tuple[str, str], ...]:
    """Read routes: ranges, with the address that leads there. Raises: SpecError."""
    allowed = 'ranges and addresses, such as {"192.168.7.0/24": "10.77.0.9"}'
    found = []
    for target, over in pairs("routes", value, allowed):
        # Not before there is one: most sandboxes have none, and it takes milliseconds to load.
        import ipaddress

        try:
            network = ipaddress.ip_network(_unscoped(quantity.text("routes", target)))
        except ValueError:
            raise SpecError("routes", target, allowed) from None
        way = address("routes", over)
        if way.version != network.version:
            raise SpecError("routes", {target: over}, "a range and an address of one family")
        found.append((str(network), str(way)))
    return tuple(sorted(found))
