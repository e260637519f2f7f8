"""
All that a sandbox is asked to be, as one value, and the rules between its parts.

Here is what the parts alone can know to contradict each other. What this host cannot do is
refused by the planner, which also has the ceilings for what was not asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import attrs

from sandboxlib import quantity
from sandboxlib.cgroup import CGroup
from sandboxlib.errors import SpecError
from sandboxlib.mount import Mount
from sandboxlib.namespace import IdRange, Namespace, items, pairs
from sandboxlib.network import Network
from sandboxlib.rootfs import Rootfs, image_reference
from sandboxlib.security import Security, near

if TYPE_CHECKING:
    from sandboxlib.images import AnyImage

T = TypeVar("T")

# The short arguments, and what they are short for.
_SHORT = {"memory": "memory_max", "cpus": "cpu_max", "pids": "pids_max"}
# Names that the kernel would take but /etc/hosts and name servers would not are refused.
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9])?", re.ASCII)
_PORT = re.compile(
    r"(?:(?P<address>\[[^\]]+\]|[^:/\[\]]+):)?(?P<port>\d{1,5})(?:/(?P<protocol>tcp|udp))?", re.ASCII
)
_RANGE = re.compile(r"(?P<before>.*?)(?P<first>\d{1,5})-(?P<last>\d{1,5})(?P<after>(/\w+)?)", re.ASCII)
_ENDS = re.compile(r"(\d{1,5})-(\d{1,5})", re.ASCII)
# Networks on which a sandbox has an address that others can reach.
_REACHABLE = ("bridge", "user", "macvlan", "vxlan")
_NAMED = ("bridge", "vxlan")


class Port(NamedTuple):
    """
    A port of the host that leads to one inside.

    Attributes:
        address: The host's address that it listens on; empty for all.
        port: The host's port; 0 for any that is free.
        protocol: ``tcp`` or ``udp``.
        target: The port inside.
    """

    address: str
    port: int
    protocol: str
    target: int


@attrs.frozen(init=False, repr=False)
class SandboxSpec:
    """
    The arguments of a sandbox; None and () are "not asked for".

    Args:
        image: Name of an image to start from, its digest, or an `Image`; instead of *rootfs*. It is
            pulled if it is not in the store.
        rootfs: The file tree; `Rootfs.host()` where neither is given.
        memory: Bytes, or a string such as ``"256M"``; short for ``CGroup(memory_max=)``.
        cpus: CPUs such as 0.5; short for ``CGroup(cpu_max=)``.
        pids: Processes and threads; short for ``CGroup(pids_max=)``.
        lifetime: Seconds after which the sandbox is ended, with all that runs in it.
        namespaces: At most one of each kind; the others are new.
        cgroup: Further limits.
        mounts: What is mounted besides the root; sorted, so that parents come first.
        network: A `Network`, a list of bridges, or ``"none"``, ``"host"``, ``"bridge"``, ``"user"``.
        ports: ``{8080: 80, "127.0.0.1:5353/udp": 53, "8000-8009": "90-99"}``: the host's side, then
            the port inside; 0 for any port of the host that is free.
        hostname: Its name, and on a network the name that neighbours find it by.
        domainname: Its NIS domain name.
        aliases: Further names on its network.
        security: Rights, filters and labels.
        env: Environment of every command, besides the defaults.
        cwd: Where commands begin.

    Raises:
        SpecError: A value makes no sense, or two contradict each other.

    Example:
        >>> SandboxSpec(memory="256M", ports={8080: 80}, network=Network.bridge("backend"))
        SandboxSpec(memory=268435456, network=Network.bridge('backend'), ports={'8080/tcp': 80})
    """

    image: str | None = None
    rootfs: Rootfs | None = None
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    lifetime: float | None = None
    namespaces: tuple[Namespace, ...] = ()
    cgroup: CGroup | None = None
    mounts: tuple[Mount, ...] = ()
    network: Network | None = None
    ports: tuple[Port, ...] = ()
    hostname: str | None = None
    domainname: str | None = None
    aliases: tuple[str, ...] = ()
    security: Security | None = None
    env: tuple[tuple[str, str], ...] = ()
    cwd: str | None = None

    def __init__(
        self,
        *,
        image: str | AnyImage | None = None,
        rootfs: Rootfs | None = None,
        memory: int | str | None = None,
        cpus: float | None = None,
        pids: int | None = None,
        lifetime: float | None = None,
        namespaces: Iterable[Namespace] = (),
        cgroup: CGroup | None = None,
        mounts: Iterable[Mount] = (),
        network: Network | Sequence[Network] | str | None = None,
        ports: Mapping[int | str, int | str] | None = None,
        hostname: str | None = None,
        domainname: str | None = None,
        aliases: Iterable[str] = (),
        security: Security | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        self.__attrs_init__(
            image=None if image is None else image_reference("image", image),
            rootfs=_a("rootfs", rootfs, Rootfs),
            memory=None if memory is None else quantity.size("memory", memory, minimum=4096),
            cpus=None if cpus is None else quantity.cpus("cpus", cpus),
            pids=None if pids is None else quantity.count("pids", pids, maximum=1 << 22),
            lifetime=None if lifetime is None else quantity.seconds("lifetime", lifetime),
            namespaces=_unique("namespaces", namespaces, Namespace, lambda value: value.kind),
            cgroup=_a("cgroup", cgroup, CGroup),
            mounts=_unique("mounts", mounts, Mount, lambda value: value.destination),
            network=_network(network),
            ports=() if ports is None else _ports(ports),
            hostname=None if hostname is None else _hostname("hostname", hostname),
            domainname=None if domainname is None else _hostname("domainname", domainname),
            aliases=_aliases(aliases),
            security=_a("security", security, Security),
            env=() if env is None else environment("env", env),
            cwd=None if cwd is None else quantity.absolute("cwd", cwd),
        )
        self._check_tree()
        self._check_limits()
        self._check_network()
        self._check_ids()

    @classmethod
    def of(cls, **arguments: Any) -> SandboxSpec:
        """
        Return the value for the arguments of ``Sandbox(...)``.

        Raises:
            SpecError: A value makes no sense, or two contradict each other.
            TypeError: There is no argument of that name.
        """
        names = [field.name for field in attrs.fields(cls)]
        for name in arguments.keys() - names:
            raise TypeError(near(name, names, f"Sandbox() got an unexpected keyword argument {name!r}"))
        return cls(**arguments)

    @property
    def without(self) -> tuple[str, ...]:
        """The protections to go without, however it was said. See `Security.without`."""
        if self.security is None:
            return ()
        names = set(self.security.without)
        if self.security.keyring == "inherit":
            names.add("new-keyring")
        if not self.security.no_new_privileges:
            names.add("no-new-privileges")
        if self.security.seccomp == "unconfined":
            names.add("seccomp")
        return tuple(sorted(names))

    def namespace(self, kind: str) -> Namespace | None:
        """Return the namespace of this kind that was asked for, also by *network*; None for a new one."""
        if kind == "network" and self.network is not None and self.network.namespace is not None:
            return self.network.namespace
        return next((value for value in self.namespaces if value.kind == kind), None)

    def _shared(self, kind: str) -> Namespace | None:
        value = self.namespace(kind)
        return value if value is not None and value.mode != "new" else None

    def _check_tree(self) -> None:
        if self.image is not None and self.rootfs is not None:
            raise SpecError("rootfs", self.rootfs, f"left out where image= is given, which is {self.image!r}")
        tree = self._shared("mount")
        if tree is None:
            return
        security = self.security or Security()
        for field, value in {
            "image": self.image,
            "rootfs": self.rootfs,
            "mounts": self.mounts or None,
            "security.devices": security.devices or None,
            "security.masked_paths": security.masked_paths,
            "security.readonly_paths": security.readonly_paths,
        }.items():
            if value is not None:
                raise SpecError(field, value, f"left out with {tree!r}, whose file tree is there already")

    def _check_limits(self) -> None:
        for short, field in _SHORT.items():
            value = getattr(self, short)
            other = None if self.cgroup is None else getattr(self.cgroup, field)
            if value is not None and other is not None:
                raise SpecError(short, value, f"left out where cgroup.{field} is given, which is {other!r}")

    def _check_network(self) -> None:
        kind = "none" if self.network is None else self.network.kind
        own = next((value for value in self.namespaces if value.kind == "network"), None)
        if own is not None and (kind in ("host", "of") or (self._is_none() and own.mode != "new")):
            raise SpecError("network", self.network, f"left out with {own!r}")
        if self.ports and kind not in _REACHABLE:
            allowed = f"left out, or with a network that has addresses: {', '.join(_REACHABLE)}"
            raise SpecError("ports", self._shown("ports"), allowed)
        if self.aliases and kind not in _NAMED:
            allowed = f"left out, or with a network that has names: {', '.join(_NAMED)}"
            raise SpecError("aliases", self.aliases, allowed)
        uts = self._shared("uts")
        if uts is not None:
            # On a network with names the hostname is one of them, whatever uname(2) says.
            for field in ("domainname",) if kind in _NAMED else ("hostname", "domainname"):
                if getattr(self, field) is not None:
                    raise SpecError(
                        field, getattr(self, field), f"left out with {uts!r}, which has one already"
                    )

    def _is_none(self) -> bool:
        return self.network is not None and self.network.kind == "none"

    def _check_ids(self) -> None:
        user = self.namespace("user")
        if user is None or not user.uid_map or self.security is None:
            return
        ids = self.security.ids
        wanted = [("security.groups", group, user.gid_map) for group in self.security.groups]
        if ids is not None:
            wanted += [("security.user", ids[0], user.uid_map), ("security.user", ids[1], user.gid_map)]
        for field, number, ranges in wanted:
            if not _holds(ranges, number):
                raise SpecError(field, number, f"an ID inside that {user!r} maps")

    def _shown(self, field: str) -> object:
        value = getattr(self, field)
        if field == "ports":
            return {_side(port): port.target for port in value}
        return dict(value) if field == "env" else list(value) if isinstance(value, tuple) else value

    def __repr__(self) -> str:
        given = ", ".join(
            f"{field.name}={self._shown(field.name)!r}"
            for field in attrs.fields(SandboxSpec)
            if getattr(self, field.name) not in (None, ())
        )
        return f"SandboxSpec({given})"


def environment(field: str, value: object) -> tuple[tuple[str, str], ...]:
    """Read environment variables: a mapping of names to texts. Raises: SpecError."""
    found: dict[str, str] = {}
    for name, text in pairs(field, value, 'names and texts, such as {"LANG": "C"}'):
        if not isinstance(name, str) or not name or "=" in name or "\0" in name or not quantity.encodes(name):
            allowed = "names that are strings, not empty, without '=', NUL and lone surrogates"
            raise SpecError(field, name, allowed)
        if name in found:
            raise SpecError(field, name, "a name that is given once")
        found[name] = quantity.text(f"{field}[{name!r}]", text, empty=True)
    return tuple(sorted(found.items()))


def _a(field: str, value: object, kind: type[T]) -> T | None:
    if value is None or isinstance(value, kind):
        return value
    raise SpecError(field, value, f"a {kind.__name__}")


def _unique(field: str, value: object, kind: type[T], key: Callable[[T], str]) -> tuple[T, ...]:
    found: dict[str, T] = {}
    for item in items(field, value, f"a list of {kind.__name__} values"):
        if not isinstance(item, kind):
            hint = "; Volume.at(destination) gives one" if type(item).__name__ == "Volume" else ""
            raise SpecError(field, item, f"{kind.__name__} values{hint}")
        if key(item) in found:
            raise SpecError(field, [found[key(item)], item], f"at most one for {key(item)!r}")
        found[key(item)] = item
    # In this order a folder comes before what is mounted in it.
    return tuple(found[name] for name in sorted(found))


def _network(value: object) -> Network | None:
    if value is None or isinstance(value, Network):
        return value
    if isinstance(value, str) and value in ("none", "host", "bridge", "user"):
        return Network(value, name="default" if value == "bridge" else None)
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, Network) for one in value):
        return Network.several(value)
    raise SpecError("network", value, 'a Network, a list of bridges, "none", "host", "bridge" or "user"')


def _hostname(field: str, value: object) -> str:
    if not isinstance(value, str) or not _HOSTNAME.fullmatch(value) or ".." in value:
        # __NEW_UTS_LEN of linux/utsname.h is 64.
        raise SpecError(field, value, "a name of at most 64 letters, digits, '-', '_' and '.'")
    return value


def _aliases(value: object) -> tuple[str, ...]:
    found = {_hostname("aliases", item) for item in items("aliases", value, "a list of names")}
    return tuple(sorted(found))


def _ports(value: object) -> tuple[Port, ...]:
    allowed = 'ports of the host and inside, such as {8080: 80, "127.0.0.1:5353/udp": 53}'
    if not isinstance(value, Mapping):
        given = items("ports", value, allowed)
        # What was read before may come back, as from attrs.evolve.
        if not all(isinstance(port, Port) for port in given):
            raise SpecError("ports", value, allowed)
        value = {_side(port): port.target for port in cast("list[Port]", given)}
    found: list[Port] = []
    for key, target in (pair for item in value.items() for pair in _spread(*item)):
        port = _port(key, target, allowed)
        for other in found:
            same = port.port and (port.port, port.protocol) == (other.port, other.protocol)
            if same and (port.address == other.address or "" in (port.address, other.address)):
                raise SpecError("ports", [_side(other), _side(port)], "ports of the host that are taken once")
        found.append(port)
    return tuple(sorted(found))


def _spread(key: object, target: object) -> Iterator[tuple[object, object]]:
    """Each port of a range such as ``"8000-8009/udp"`` with the one inside; what is no range as it is."""
    match = _RANGE.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        yield key, target
        return
    inside = _ENDS.fullmatch(target) if isinstance(target, str) else None
    first, last = int(match["first"]), int(match["last"])
    if inside is None or int(inside[2]) - int(inside[1]) != last - first or not first <= last < first + 1024:
        raise SpecError("ports", {key: target}, "two ranges of one length, of at most 1024 ports")
    for number in range(last - first + 1):
        yield f"{match['before']}{first + number}{match['after']}", int(inside[1]) + number


def _port(key: object, target: object, allowed: str) -> Port:
    text = str(key) if isinstance(key, int) and not isinstance(key, bool) else key
    match = _PORT.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match["port"]) > 65535:
        raise SpecError("ports", key, allowed)
    address = match["address"] or ""
    if address:
        import ipaddress

        try:
            # Behind a % any text is the scope of an IPv6 address (RFC 4007).
            address = str(ipaddress.ip_address(address.strip("[]").replace("%", " ")))
        except ValueError:
            raise SpecError("ports", key, f"{allowed}; an IPv6 address stands in brackets") from None
        if (":" in address) != match["address"].startswith("["):
            raise SpecError("ports", key, f"{allowed}; an IPv6 address stands in brackets")
    inside = quantity.count(f"ports[{key!r}]", target, maximum=65535)
    return Port(address, int(match["port"]), match["protocol"] or "tcp", inside)


def _side(port: Port) -> str:
    """The host's side of a port, as it may be written."""
    address = f"[{port.address}]" if ":" in port.address else port.address
    return f"{address}{':' if address else ''}{port.port}/{port.protocol}"


def _holds(ranges: tuple[IdRange, ...], number: int) -> bool:
    return any(line.inside <= number < line.inside + line.size for line in ranges)
