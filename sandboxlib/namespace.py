"""
One namespace of a sandbox, as a value: new, joined, or the host's.

Kernel: namespaces(7), user_namespaces(7), time_namespaces(7).
Spec: runtime-spec config-linux.md, Namespaces, User namespace mappings, Offset for Time Namespace.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import attrs

from sandboxlib import quantity
from sandboxlib.doors import door
from sandboxlib.errors import KernelError, SpecError, StateError, UnsupportedError

if TYPE_CHECKING:
    from sandboxlib.alone import OpenNamespace

Kind = Literal["mount", "uts", "ipc", "network", "pid", "user", "cgroup", "time"]
Mode = Literal["new", "join", "host"]

#: OCI's name of each kind, and the kernel's in ``/proc/<pid>/ns``.
KINDS: Mapping[str, str] = {
    "mount": "mnt",
    "uts": "uts",
    "ipc": "ipc",
    "network": "net",
    "pid": "pid",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}

#: The largest user or group ID; one more, (uid_t) -1, means "none" to the kernel.
MAX_ID = (1 << 32) - 2

# Linux takes at most 340 lines since 4.15: user_namespaces(7).
_MAX_RANGES = 340
# Half of what a clock of the kernel can hold in seconds (KTIME_SEC_MAX): time_namespaces(7), ERANGE.
_MAX_OFFSET = ((1 << 63) - 1) // 10**9 // 2


class IdRange(NamedTuple):
    """
    One line of an ID map.

    Attributes:
        inside: First ID inside the user namespace.
        outside: First ID in the namespace of the program that makes it.
        size: How many IDs follow each other.

    Kernel: user_namespaces(7), User and group ID mappings.
    """

    inside: int
    outside: int
    size: int


@attrs.frozen(init=False, eq=False, repr=False)
class Namespace:
    """
    One namespace: made anew, joined by a path or process, or the caller's own.

    Two that came from `of` are equal exactly when they are the same namespace; others
    when they were asked for in the same way.

    Args:
        kind: ``mount``, ``uts``, ``ipc``, ``network``, ``pid``, ``user``, ``cgroup`` or ``time``.
        path: The namespace file to join, such as ``/run/netns/lab``.
        pid: Join that of this process; short for its path in /proc.
        uid_map: ``[(inside, outside, count), …]``, for a new user namespace; without, IDs are assigned.
        gid_map: The same for groups; given together with *uid_map*.
        monotonic_offset: Seconds added to CLOCK_MONOTONIC in a new time namespace; may be negative.
        boottime_offset: Seconds added to CLOCK_BOOTTIME.
        mode: ``host`` for the caller's own; else it follows from the rest.
        identity: Device and inode that *path* has to lead to; `of` sets it.
        owner: What has to stay alive as long as this value; `of` sets it.

    Raises:
        SpecError: A value makes no sense, or two contradict each other.

    Example:
        >>> Namespace("network", pid=4242)
        Namespace('network', path='/proc/4242/ns/net')
        >>> Namespace("time", boottime_offset=3600).mode
        'new'
    """

    kind: Kind
    path: str | None
    uid_map: tuple[IdRange, ...]
    gid_map: tuple[IdRange, ...]
    monotonic_offset: float
    boottime_offset: float
    mode: Mode
    identity: tuple[int, int] | None
    owner: object

    def __init__(
        self,
        kind: str,
        *,
        path: str | os.PathLike[str] | None = None,
        pid: int | None = None,
        uid_map: Iterable[tuple[int, int, int]] = (),
        gid_map: Iterable[tuple[int, int, int]] = (),
        monotonic_offset: float = 0,
        boottime_offset: float = 0,
        mode: Mode | None = None,
        identity: tuple[int, int] | None = None,
        owner: object = None,
    ) -> None:
        name = _kind(kind)
        if path is not None and pid is not None:
            raise SpecError("pid", pid, "left out where path= is given")
        if pid is not None:
            path = f"/proc/{quantity.count('pid', pid, maximum=1 << 22)}/ns/{KINDS[name]}"
        self.__attrs_init__(
            kind=name,
            path=None if path is None else quantity.absolute("path", path),
            uid_map=_id_map("uid_map", uid_map),
            gid_map=_id_map("gid_map", gid_map),
            monotonic_offset=_offset("monotonic_offset", monotonic_offset),
            boottime_offset=_offset("boottime_offset", boottime_offset),
            mode=_mode(mode, path),
            identity=_identity(identity, path),
            owner=owner,
        )
        self._check()

    def _check(self) -> None:
        for field, only in (
            ("uid_map", "user"),
            ("gid_map", "user"),
            ("monotonic_offset", "time"),
            ("boottime_offset", "time"),
        ):
            value = getattr(self, field)
            if value and self.kind != only:
                raise SpecError(field, value, f"left out: it is for a {only} namespace, not for {self.kind}")
            if value and self.mode != "new":
                raise SpecError(field, value, "left out where a namespace is joined: it has its own already")
        if bool(self.uid_map) != bool(self.gid_map):
            missing = "gid_map" if self.uid_map else "uid_map"
            raise SpecError(missing, (), "given together with the other map")

    @classmethod
    def host(cls, kind: str) -> Namespace:
        """Return the caller's own namespace: nothing is isolated in this respect. Raises: SpecError."""
        return cls(kind, mode="host")

    @classmethod
    @door
    def of(cls, target: object, kind: str) -> Namespace:
        """
        Return the namespace that *target* is in now, to be joined or compared.

        Args:
            target: A process ID, ``"self"``, or an open sandbox.
            kind: As for `Namespace`.

        Raises:
            SpecError: There is no such process or kind.
            StateError: The sandbox is not open.
            UnsupportedError: This kernel has no namespaces of this kind.
            KernelError: EACCES, the process belongs to someone else.

        Kernel: ioctl_ns(2) and namespaces(7): device and inode of the file are the namespace's identity.
        """
        name = _kind(kind)
        owner: object = None
        if hasattr(target, "_engine"):
            # Sandboxes of all faces have it, and no face may be imported from here.
            engine = target._engine  # noqa: SLF001
            if engine is None:
                raise StateError("the sandbox is not open: it has no namespaces to join")
            owner = target
            path = quantity.absolute("path", engine.namespace_path(name))
        elif target == "self":
            path = f"/proc/self/ns/{KINDS[name]}"
        elif isinstance(target, int) and not isinstance(target, bool) and target > 0:
            path = f"/proc/{target}/ns/{KINDS[name]}"
        else:
            raise SpecError("target", target, 'a process ID, "self" or an open sandbox')
        return cls(name, path=path, identity=_look_up(path, target, name), owner=owner)

    @property
    def inode(self) -> int | None:
        """The number of the namespace, as ``readlink /proc/<pid>/ns/<kind>`` shows it; None if not known."""
        return None if self.identity is None else self.identity[1]

    @door
    def open(self) -> OpenNamespace:
        """
        Make or join the namespace alone, without a sandbox.

        Returns:
            A context manager with ``inode``, ``path``, ``fileno()`` and ``close()``; the
            namespace lives at least until it is closed.

        Raises:
            UnsupportedError: This host cannot make it.
            KernelError: A system call failed.
        """
        from sandboxlib.alone import open_namespace

        return open_namespace(self)

    def _key(self) -> tuple[object, ...]:
        if self.identity is not None:
            return self.kind, self.identity
        offsets = self.monotonic_offset, self.boottime_offset
        return self.kind, self.mode, self.path, self.uid_map, self.gid_map, offsets

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Namespace) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        if self.mode == "host":
            return f"Namespace.host({self.kind!r})"
        given = [f"path={self.path!r}"] if self.path else []
        if self.identity:
            given.append(f"identity={self.identity}")
        given.extend(
            f"{field}={[tuple(line) for line in lines]}"
            for field, lines in (("uid_map", self.uid_map), ("gid_map", self.gid_map))
            if lines
        )
        given.extend(
            f"{field}={getattr(self, field)}"
            for field in ("monotonic_offset", "boottime_offset")
            if getattr(self, field)
        )
        return f"Namespace({', '.join([repr(self.kind), *given])})"


def choice(field: str, value: object, choices: Iterable[str]) -> str:
    """Read one of some words. Raises: SpecError."""
    if not isinstance(value, str) or value not in choices:
        raise SpecError(field, value, f"one of {', '.join(choices)}")
    return value


def flag(field: str, value: object) -> bool:
    """Read True or False; nothing else counts as either. Raises: SpecError."""
    if not isinstance(value, bool):
        raise SpecError(field, value, "True or False")
    return value


def items(field: str, value: object, allowed: str) -> list[object]:
    """Read a list, tuple, set or other collection; a string or mapping is none. Raises: SpecError."""
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, Iterable):
        raise SpecError(field, value, allowed)
    return list(value)


def pairs(field: str, value: object, allowed: str) -> list[tuple[object, object]]:
    """Read a mapping, or pairs of key and value. Raises: SpecError."""
    found = list(value.items()) if isinstance(value, Mapping) else items(field, value, allowed)
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in found):
        raise SpecError(field, value, allowed)
    return [(key, item) for key, item in cast("list[tuple[object, object]]", found)]


def _kind(value: object) -> Kind:
    for name, kernel in KINDS.items():
        if name != kernel == value:
            raise SpecError("kind", value, f"{name!r}, which is the OCI's name for it")
    return cast("Kind", choice("kind", value, KINDS))


def _mode(value: object, path: object) -> Mode:
    implied: Mode = "new" if path is None else "join"
    if value is None or value == implied:
        return implied
    if value == "host" and path is None:
        return "host"
    allowed = (
        "left out, or 'join', where path= or pid= is given"
        if path
        else "'new' or 'host' without path= or pid="
    )
    raise SpecError("mode", value, allowed)


def _identity(value: object, path: object) -> tuple[int, int] | None:
    if value is None:
        return None
    allowed = "(device, inode) of the namespace's file, together with path="
    if path is None or not isinstance(value, (tuple, list)) or len(value) != 2:
        raise SpecError("identity", value, allowed)
    device, inode = value
    return (
        quantity.count("identity", device, minimum=0, maximum=(1 << 64) - 1),
        quantity.count("identity", inode, minimum=0, maximum=(1 << 64) - 1),
    )


def _id_map(field: str, value: object) -> tuple[IdRange, ...]:
    allowed = "a list of (inside, outside, count), such as [(0, 100000, 65536)]"
    lines: list[IdRange] = []
    for line in items(field, value, allowed):
        if not isinstance(line, (tuple, list)) or len(line) != 3:
            raise SpecError(field, value, allowed)
        inside, outside = (quantity.count(field, first, minimum=0, maximum=MAX_ID) for first in line[:2])
        size = quantity.count(field, line[2], maximum=MAX_ID + 1)
        if max(inside, outside) + size - 1 > MAX_ID:
            raise SpecError(field, tuple(line), f"ranges that end at {MAX_ID} or below")
        lines.append(IdRange(inside, outside, size))
    if len(lines) > _MAX_RANGES:
        raise SpecError(field, len(lines), f"at most {_MAX_RANGES} ranges")
    for side in (0, 1):
        lines.sort(key=lambda line, side=side: line[side])  # type: ignore[misc]
        for below, above in pairwise(lines):
            if below[side] + below.size > above[side]:
                where = IdRange._fields[side]
                raise SpecError(field, [tuple(below), tuple(above)], f"ranges that do not overlap {where}")
    return tuple(sorted(lines))


def _offset(field: str, value: object) -> float:
    allowed = f"a number of seconds from -{_MAX_OFFSET} to {_MAX_OFFSET}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecError(field, value, allowed)
    # Compared before anything converts it: a whole number may be too large for a float.
    if not -_MAX_OFFSET <= value <= _MAX_OFFSET or math.isnan(value):
        raise SpecError(field, value, allowed)
    # The kernel counts in nanoseconds. A whole number stays one, for it prints without ".0".
    exact = round(value, 9)
    return int(exact) if exact == int(exact) else exact


def _look_up(path: str, target: object, kind: Kind) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists(os.path.dirname(path)):
            raise UnsupportedError(f"a {kind} namespace", f"a kernel with {kind} namespaces") from None
        raise SpecError("target", target, "a process that exists") from None
    except OSError as error:
        raise KernelError(
            error.errno or 0,
            f'stat("{path}")',
            f"look up the {kind} namespace of {target!r}",
            "only the process's owner and root may look (ptrace(2), PTRACE_MODE_READ)",
        ) from None
    return found.st_dev, found.st_ino
