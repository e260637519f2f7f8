"""
What a sandbox is connected to, as a value.

Kernel: network_namespaces(7), Documentation/networking/vxlan.rst, ip-link(8) for interface types.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, cast

import attrs

from sandboxlib import addresses, quantity
from sandboxlib.doors import door
from sandboxlib.errors import SpecError
from sandboxlib.mount import named
from sandboxlib.namespace import Namespace, choice, flag, items

if TYPE_CHECKING:
    from sandboxlib.alone import OpenNetwork

NetworkKind = Literal["none", "host", "bridge", "user", "macvlan", "vxlan", "of"]

# Which arguments each kind has.
_FIELDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "host": (),
    "bridge": (
        *("name", "subnet", "gateway", "ipv6", "internal", "mtu", "rate"),
        *("address", "mac", "routes", "dns", "search", "hosts", "also"),
    ),
    "user": ("allow", "dns", "search", "hosts"),
    "macvlan": ("parent",),
    "vxlan": ("name", "vni", "peers", "local"),
    "of": ("namespace",),
}
# IFNAMSIZ is 16 with the NUL; the kernel takes neither a slash nor a colon nor a space.
_INTERFACE = re.compile(r"(?!\.{1,2}$)[^\s/:\0]{1,15}")


# Of these an empty one says nothing.
_LISTS = ("address", "routes", "search", "hosts", "also")


@attrs.frozen(init=False, repr=False)
class Network:
    """
    A network; made by `none`, `host`, `bridge`, `user`, `macvlan`, `vxlan` or `of`.

    Attributes:
        kind: The name of the method that made it.
        name: Of a ``bridge`` or ``vxlan``; sandboxes that name the same one see each other.
        subnet: Of a ``bridge``, such as ``10.77.0.0/24``; None to have a free one chosen.
        gateway: The bridge's own address; None for the first of *subnet*.
        ipv6: A ``bridge`` has IPv6 addresses besides.
        internal: No way out of a ``bridge``.
        mtu: Bytes of the largest packet; None for the host's.
        rate: Bytes a second, each way, for the sandbox that is on a ``bridge`` by this value.
        address: Fixed addresses of that sandbox, at most one of each family.
        mac: Fixed MAC address of that sandbox.
        routes: Further ways: (range, address that leads there).
        dns: Name servers; None for the host's.
        search: Domains in which names without a dot are looked for.
        hosts: Further names of hosts: (name, address).
        also: Further bridges that the sandbox is on.
        allow: What ``user`` may reach: ``("api.example.com", "10.0.0.0/8:5432")``; None for all.
        parent: The host's interface that ``macvlan`` shares.
        vni: Number of a ``vxlan``.
        peers: The other hosts' addresses.
        local: This host's address among them.
        namespace: The network namespace of ``host`` and ``of``.

    Raises:
        SpecError: A value makes no sense, or does not belong to this kind.

    Example:
        >>> Network.bridge("backend", subnet="10.77.0.0/24")
        Network.bridge('backend', subnet='10.77.0.0/24')
    """

    kind: NetworkKind
    name: str | None
    subnet: str | None
    gateway: str | None
    ipv6: bool
    internal: bool
    mtu: int | None
    rate: int | None
    allow: tuple[str, ...] | None
    parent: str | None
    vni: int | None
    peers: tuple[str, ...]
    local: str | None
    namespace: Namespace | None
    address: tuple[str, ...] = ()
    mac: str | None = None
    routes: tuple[tuple[str, str], ...] = ()
    dns: tuple[str, ...] | None = None
    search: tuple[str, ...] = ()
    hosts: tuple[tuple[str, str], ...] = ()
    also: tuple[Network, ...] = ()

    def __init__(
        self,
        kind: str,
        *,
        name: str | None = None,
        subnet: str | None = None,
        gateway: str | None = None,
        ipv6: bool = False,
        internal: bool = False,
        mtu: int | None = None,
        rate: int | str | None = None,
        allow: Iterable[str] | None = None,
        parent: str | None = None,
        vni: int | None = None,
        peers: Iterable[str] = (),
        local: str | None = None,
        namespace: Namespace | None = None,
        address: str | Iterable[str] = (),
        mac: str | None = None,
        routes: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        dns: Iterable[str] | None = None,
        search: Iterable[str] = (),
        hosts: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        also: Iterable[Network] = (),
    ) -> None:
        chosen = cast("NetworkKind", choice("kind", kind, _FIELDS))
        if kind == "host":
            namespace = Namespace.host("network") if namespace is None else namespace
        self.__attrs_init__(
            kind=chosen,
            name=named("name", name) if "name" in _FIELDS[kind] else name,
            subnet=None if subnet is None else addresses.subnet(subnet),
            gateway=None if gateway is None else str(addresses.address("gateway", gateway)),
            ipv6=flag("ipv6", ipv6),
            internal=flag("internal", internal),
            # 68 is the least of IPv4 (RFC 791), 65535 the most that its packets can have.
            mtu=None if mtu is None else quantity.count("mtu", mtu, minimum=68, maximum=65535),
            rate=None if rate is None else quantity.size("rate", rate, minimum=1),
            allow=None if allow is None else addresses.destinations(allow),
            parent=_interface(parent) if kind == "macvlan" else parent,
            vni=_vni(vni) if kind == "vxlan" else vni,
            peers=_peers(peers, local) if kind == "vxlan" else cast("tuple[str, ...]", peers),
            local=str(addresses.address("local", local)) if kind == "vxlan" else local,
            namespace=namespace,
            address=addresses.fixed(address),
            mac=None if mac is None else addresses.mac(mac),
            routes=addresses.ways(routes),
            dns=None if dns is None else addresses.servers(dns),
            search=addresses.domains(search),
            hosts=addresses.entries(hosts),
            also=tuple(also),
        )
        self._check()

    def _check(self) -> None:
        for field in attrs.fields(Network)[1:]:
            value = getattr(self, field.name)
            unset = value is None or value is False or value == ()
            if field.name == "namespace" and self.kind == "host":
                unset = value == Namespace.host("network")
            if field.name not in _FIELDS[self.kind] and not unset:
                raise SpecError(field.name, value, f"left out: Network.{self.kind} has none")
        if self.kind == "of":
            space = self.namespace
            if not isinstance(space, Namespace) or space.kind != "network" or space.mode != "join":
                raise SpecError("namespace", space, "a network namespace that is joined")
        if self.gateway is not None:
            addresses.check_gateway(self.gateway, self.subnet)
        # RFC 8200, section 5.
        if self.mtu is not None and self.mtu < 1280 and (self.ipv6 or ":" in (self.subnet or "")):
            raise SpecError("mtu", self.mtu, "at least 1280 where there is IPv6")
        names = [network.name for network in self.every]
        for network in self.also:
            if network.kind != "bridge" or network.also or names.count(network.name) > 1:
                raise SpecError("also", network, "bridges, each with another name")

    @property
    def every(self) -> tuple[Network, ...]:
        """This network and those that the sandbox is on besides, in order."""
        return (self, *self.also)

    @classmethod
    def several(cls, networks: Sequence[Network]) -> Network:
        """Return one value for several bridges; the first has the default route. Raises: SpecError."""
        first, *others = networks
        if others and first.kind != "bridge":
            raise SpecError("network", list(networks), "bridges, where there are several")
        return attrs.evolve(first, also=others) if others else first

    @classmethod
    def none(cls) -> Network:
        """Return no network: a loopback of its own, and nothing else. The default."""
        return cls("none")

    @classmethod
    def host(cls) -> Network:
        """Return the caller's own network: its interfaces, loopback services and abstract sockets."""
        return cls("host")

    @classmethod
    def of(cls, target: object) -> Network:
        """
        Return the network of an open sandbox, or of a process, to be shared.

        Args:
            target: As for `Namespace.of`.

        Raises:
            SpecError: There is no such process.
            StateError: The sandbox is not open.
            KernelError: EACCES, the process belongs to someone else.
        """
        return cls("of", namespace=Namespace.of(target, "network"))

    @classmethod
    def bridge(
        cls,
        name: str = "default",
        *,
        subnet: str | None = None,
        gateway: str | None = None,
        ipv6: bool = False,
        internal: bool = False,
        mtu: int | None = None,
        rate: int | str | None = None,
        address: str | Iterable[str] = (),
        mac: str | None = None,
        routes: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        dns: Iterable[str] | None = None,
        search: Iterable[str] = (),
        hosts: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ) -> Network:
        """
        Return a network of this host's sandboxes, with a way out by the host's addresses.

        Args:
            name: Sandboxes that name the same one see each other, and no one else.
            subnet: Addresses to give out, such as ``"10.77.0.0/24"``; else a free range.
            gateway: The bridge's own address; else the first of *subnet*.
            ipv6: Give out IPv6 addresses too.
            internal: Leave out the way to the outside.
            mtu: Bytes of the largest packet.
            rate: Bytes a second that the sandbox may send, and receive; also ``"10M"``.
            address: Its address, or one of each family; else a free one.
            mac: Its MAC address.
            routes: Further ways, such as ``{"192.168.7.0/24": "10.77.0.9"}``.
            dns: Name servers; else the host's.
            search: Domains in which names without a dot are looked for.
            hosts: Further names, such as ``{"db": "10.0.0.5"}``.

        The last seven are the sandbox's that is given this value, the others the network's: all
        sandboxes that name it have to agree on them, or leave them out.

        Raises:
            SpecError: A value makes no sense.
        """
        return cls(
            "bridge",
            name=name,
            subnet=subnet,
            gateway=gateway,
            ipv6=ipv6,
            internal=internal,
            mtu=mtu,
            rate=rate,
            address=address,
            mac=mac,
            routes=routes,
            dns=dns,
            search=search,
            hosts=hosts,
        )

    @classmethod
    def user(
        cls,
        *,
        allow: Iterable[str] | None = None,
        dns: Iterable[str] | None = None,
        search: Iterable[str] = (),
        hosts: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ) -> Network:
        """
        Return a network that needs no root: connections are made by a helper, as the caller.

        Args:
            allow: What can be reached, by name or address, each with a port if wanted:
                ``["api.example.com", "10.0.0.0/8:5432", "[fd00::]/8"]``. An empty list is
                nothing; None, the default, is all but the host's own loopback.
            dns: As `bridge`.
            search: As `bridge`.
            hosts: As `bridge`.

        Raises:
            SpecError: An entry is neither.
        """
        return cls("user", allow=allow, dns=dns, search=search, hosts=hosts)

    @classmethod
    def macvlan(cls, parent: str) -> Network:
        """Return an address of its own on the network that interface *parent* is on. Raises: SpecError."""
        return cls("macvlan", parent=parent)

    @classmethod
    def vxlan(cls, name: str, *, vni: int, peers: Iterable[str], local: str) -> Network:
        """
        Return a network that spans several hosts.

        Args:
            name: As for `bridge`.
            vni: Its number, the same on all hosts: 1 to 16777215.
            peers: Addresses of the other hosts.
            local: Address of this host that they reach it by.

        Raises:
            SpecError: A value makes no sense.

        Kernel: Documentation/networking/vxlan.rst.  Spec: RFC 7348.
        """
        return cls("vxlan", name=name, vni=vni, peers=peers, local=local)

    @door
    def open(self) -> OpenNetwork:
        """
        Make the network alone, without a sandbox.

        Returns:
            A context manager with ``gateway``, ``endpoints`` and ``close()``.

        Raises:
            UnsupportedError: This host cannot make it.
            NetworkError: An address is taken.
        """
        from sandboxlib.alone import open_network

        return open_network(self)

    def __repr__(self) -> str:
        if self.kind == "host":
            return "Network.host()"
        if self.kind == "of":
            return f"Network('of', namespace={self.namespace!r})"
        first = [repr(value) for value in (self.name, self.parent) if value is not None]
        given = [
            f"{name}={_shown(name, value)!r}"
            for name in _FIELDS[self.kind]
            if name not in ("name", "parent") and (value := getattr(self, name)) not in (None, False)
            if value or name not in _LISTS
        ]
        return f"Network.{self.kind}({', '.join([*first, *given])})"


def _interface(value: object) -> str:
    if not isinstance(value, str) or not _INTERFACE.fullmatch(value):
        raise SpecError("parent", value, "the name of an interface, such as 'eth0'")
    return value


def _vni(value: object) -> int:
    return quantity.count("vni", value, maximum=(1 << 24) - 1)


def _peers(value: object, local: object) -> tuple[str, ...]:
    own = addresses.address("local", local)
    peers = [addresses.address("peers", item) for item in items("peers", value, "a list of addresses")]
    for peer in peers:
        if peer.version != own.version:
            raise SpecError("peers", str(peer), f"of the same IP version as local, which is {own}")
        if peer == own:
            raise SpecError("peers", str(peer), "the other hosts' addresses, without this one's")
    # In the order of the addresses, not of their text.
    return tuple(str(peer) for peer in sorted(set(peers), key=int))


def _shown(name: str, value: object) -> object:
    if name in ("routes", "hosts"):
        return dict(cast("tuple[tuple[str, str], ...]", value))
    return list(value) if isinstance(value, tuple) else value
