"""
What the commands of a sandbox may do, as a value.

The defaults take everything away that code needs no permission for; each argument gives
something back, or chooses how it is taken.

Kernel: capabilities(7), seccomp(2), getrlimit(2), landlock(7), keyctl(2).
Spec: runtime-spec config.md, Process; config-linux.md, Seccomp, Masked Paths, Readonly Paths.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, cast

import attrs

from sandboxlib import quantity
from sandboxlib.errors import SpecError
from sandboxlib.mount import below
from sandboxlib.namespace import MAX_ID, choice, flag, items, pairs

if TYPE_CHECKING:
    from sandboxlib.seccomp.profile import Profile

#: Each capability's number, in the kernel's order. Kernel: linux/capability.h; all since Linux 5.9.
CAPABILITIES: Mapping[str, int] = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_LINUX_IMMUTABLE": 9,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_BROADCAST": 11,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_IPC_LOCK": 14,
    "CAP_IPC_OWNER": 15,
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_RAWIO": 17,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_PACCT": 20,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_BOOT": 22,
    "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24,
    "CAP_SYS_TIME": 25,
    "CAP_SYS_TTY_CONFIG": 26,
    "CAP_MKNOD": 27,
    "CAP_LEASE": 28,
    "CAP_AUDIT_WRITE": 29,
    "CAP_AUDIT_CONTROL": 30,
    "CAP_SETFCAP": 31,
    "CAP_MAC_OVERRIDE": 32,
    "CAP_MAC_ADMIN": 33,
    "CAP_SYSLOG": 34,
    "CAP_WAKE_ALARM": 35,
    "CAP_BLOCK_SUSPEND": 36,
    "CAP_AUDIT_READ": 37,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
    "CAP_CHECKPOINT_RESTORE": 40,
}

#: Resources of getrlimit(2), in lower case and without RLIMIT_; True where the unit is bytes.
RESOURCES: Mapping[str, bool] = {
    "as": True,
    "core": True,
    "cpu": False,
    "data": True,
    "fsize": True,
    "locks": False,
    "memlock": True,
    "msgqueue": True,
    "nice": False,
    "nofile": False,
    "nproc": False,
    "rss": True,
    "rtprio": False,
    "rttime": False,
    "sigpending": False,
    "stack": True,
}

#: ABIs that can be let in besides the machine's own.
FOREIGN_ABIS = ("arm", "i386", "x32")

#: Nodes that every sandbox has: runtime-spec, config-linux.md, Default Devices.
STANDARD_DEVICES = ("full", "null", "ptmx", "random", "tty", "urandom", "zero")

Rlimit = int | Literal["unlimited"]
_GivenRlimit = int | str | tuple[int | str, int | str]

_USER = re.compile(r"(\d{1,10})(?::(\d{1,10}))?", re.ASCII)
# AppArmor's and SELinux's labels: printable, and no space that would end them.
_LABEL = re.compile(r"[!-~]+( \([a-z]+\))?", re.ASCII)
_PROTECTION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)
_ACCESS = ("r", "w", "x")
# Below these the sandbox mounts or links what is its own.
_OWN_IN_DEV = ("fd", "mqueue", "pts", "shm", "stdin", "stdout", "stderr", "console")


@attrs.frozen(init=False, repr=False)
class Security:
    """
    Rights, filters and labels of all commands of a sandbox.

    Args:
        user: User, and group after a colon, as numbers inside: ``"1000:1000"``, ``1000``.
        groups: Supplementary group IDs inside.
        capabilities: Names such as ``"CAP_NET_RAW"`` or ``"net_raw"``, or ``"ALL"``; none by default.
        no_new_privileges: Set-uid programs and file capabilities do nothing.
        seccomp: ``"default"``, ``"unconfined"``, the absolute path of a profile in Docker's JSON,
            its content as a mapping, or a `sandboxlib.seccomp.Profile`.
        abi: Foreign ABIs whose system calls are let in: ``i386``, ``x32``, ``arm``.
        rlimits: ``{"nofile": 1024, "fsize": "1G", "nproc": (100, 200), "core": "unlimited"}``: soft
            and hard limit, or one number for both.
        landlock: ``{"/usr": "rx", "/work": "rwx"}``: with it, files can be read, written and executed
            below these paths only, whatever their permission bits.
        apparmor: Name of a profile that the host has loaded, apparmor_parser(8); commands begin in it.
        selinux: Label that commands begin in, such as ``"system_u:system_r:container_t:s0:c1,c2"``.
        masked_paths: Paths inside that show nothing; None for the OCI default.
        readonly_paths: Paths inside that cannot be written; None for the OCI default.
        devices: Devices of the host handed in by name, such as ``["/dev/net/tun"]``.
        keyring: ``"new"`` for an empty session keyring, ``"inherit"`` for the caller's.
        without: Names of default protections to go without; `plan` lists them.

    Attributes are kept in one form: capabilities by their full names in the kernel's order,
    rlimits as sorted ``(name, (soft, hard))``, a mapping for *seccomp* as its JSON text.

    Raises:
        SpecError: A value makes no sense, or two contradict each other.

    Example:
        >>> Security(user=1000, capabilities=["net_bind_service"])
        Security(user='1000', capabilities=('CAP_NET_BIND_SERVICE',))
    """

    user: str | None = None
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    no_new_privileges: bool = True
    seccomp: str | Profile = "default"
    abi: tuple[str, ...] = ()
    rlimits: tuple[tuple[str, tuple[Rlimit, Rlimit]], ...] = ()
    landlock: tuple[tuple[str, str], ...] | None = None
    apparmor: str | None = None
    selinux: str | None = None
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    devices: tuple[str, ...] = ()
    keyring: str = "new"
    without: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        user: str | int | None = None,
        groups: Iterable[int] = (),
        capabilities: Iterable[str] = (),
        no_new_privileges: bool = True,
        seccomp: str | os.PathLike[str] | Mapping[str, object] | Profile = "default",
        abi: Iterable[str] = (),
        rlimits: Mapping[str, _GivenRlimit] | None = None,
        landlock: Mapping[str, str] | None = None,
        apparmor: str | None = None,
        selinux: str | None = None,
        masked_paths: Iterable[str | os.PathLike[str]] | None = None,
        readonly_paths: Iterable[str | os.PathLike[str]] | None = None,
        devices: Iterable[str | os.PathLike[str]] = (),
        keyring: str = "new",
        without: Iterable[str] = (),
    ) -> None:
        self.__attrs_init__(
            user=None if user is None else _user(user),
            groups=_groups(groups),
            capabilities=_capabilities(capabilities),
            no_new_privileges=flag("no_new_privileges", no_new_privileges),
            seccomp=_seccomp(seccomp),
            abi=_names("abi", abi, FOREIGN_ABIS),
            rlimits=() if rlimits is None else _rlimits(rlimits),
            landlock=None if landlock is None else _landlock(landlock),
            apparmor=None if apparmor is None else _label("apparmor", apparmor),
            selinux=None if selinux is None else _label("selinux", selinux),
            masked_paths=None if masked_paths is None else _paths("masked_paths", masked_paths),
            readonly_paths=None if readonly_paths is None else _paths("readonly_paths", readonly_paths),
            devices=_devices(devices),
            keyring=choice("keyring", keyring, ("new", "inherit")),
            without=_without(without),
        )
        if self.abi and self.seccomp == "unconfined":
            raise SpecError("abi", self.abi, "left out with seccomp='unconfined', which lets all of them in")

    @property
    def ids(self) -> tuple[int, int] | None:
        """User and group inside; the group has the user's number unless it was given. None if not set."""
        if self.user is None:
            return None
        user, _, group = self.user.partition(":")
        return int(user), int(group or user)

    def __repr__(self) -> str:
        given = ((field, getattr(self, field.name)) for field in attrs.fields(Security))
        shown = ", ".join(f"{field.name}={value!r}" for field, value in given if value != field.default)
        return f"Security({shown})"


def _user(value: object) -> str:
    allowed = f'a user and perhaps a group as numbers up to {MAX_ID}, such as "1000:1000" or 1000'
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    match = _USER.fullmatch(value) if isinstance(value, str) else None
    numbers = [int(part) for part in match.groups() if part is not None] if match else []
    if not numbers or max(numbers) > MAX_ID:
        raise SpecError("user", value, allowed)
    return ":".join(str(number) for number in numbers)


def _groups(value: object) -> tuple[int, ...]:
    found = {
        quantity.count("groups", item, minimum=0, maximum=MAX_ID)
        for item in items("groups", value, "a list of group IDs")
    }
    # NGROUPS_MAX: setgroups(2).
    if len(found) > 65536:
        raise SpecError("groups", len(found), "at most 65536 groups")
    return tuple(sorted(found))


def _capabilities(value: object) -> tuple[str, ...]:
    found: set[str] = set()
    for item in items("capabilities", value, "a list of names such as 'CAP_NET_RAW'"):
        name = item.upper() if isinstance(item, str) else ""
        if name in ("ALL", "CAP_ALL"):
            found.update(CAPABILITIES)
            continue
        name = name if name.startswith("CAP_") else f"CAP_{name}"
        if name not in CAPABILITIES:
            raise SpecError(
                "capabilities", item, near(name, CAPABILITIES, "a capability such as CAP_NET_RAW")
            )
        found.add(name)
    return tuple(sorted(found, key=CAPABILITIES.__getitem__))


def near(name: str, names: Iterable[str], allowed: str) -> str:
    """Return *allowed*, with those of *names* that *name* may have been meant to be."""
    import difflib

    close = difflib.get_close_matches(name[:64], list(names), n=3)
    return f"{allowed}; did you mean {' or '.join(close)}?" if close else allowed


def _seccomp(value: object) -> str | Profile:
    # A profile can only exist when its module has been loaded, which takes a while and is not done here.
    module = sys.modules.get("sandboxlib.seccomp.profile")
    if module is not None and isinstance(value, module.Profile):
        return cast("Profile", value)
    allowed = (
        '"default", "unconfined", the absolute path of a profile, its content as a mapping, or a Profile'
    )
    if isinstance(value, Mapping):
        return _json(value, allowed)
    if isinstance(value, str) and value in ("default", "unconfined"):
        return value
    # What a mapping has become above may come back, as from attrs.evolve.
    if isinstance(value, str) and value.startswith("{"):
        return value
    try:
        return quantity.absolute("seccomp", value)
    except SpecError:
        raise SpecError("seccomp", value, allowed) from None


def _json(value: Mapping[object, object], allowed: str) -> str:
    import json

    def check(part: object, depth: int = 0) -> None:
        # json writes other keys as text, which would make two different mappings one.
        if depth > 32:
            raise SpecError("seccomp", value, allowed)
        if isinstance(part, Mapping):
            if not all(isinstance(key, str) for key in part):
                raise SpecError("seccomp", value, allowed)
            for item in part.values():
                check(item, depth + 1)
        elif isinstance(part, (list, tuple)):
            for item in part:
                check(item, depth + 1)
        elif part is not None and not isinstance(part, (str, int, bool)):
            raise SpecError("seccomp", value, allowed)

    check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=dict)


def _names(field: str, value: object, choices: tuple[str, ...]) -> tuple[str, ...]:
    given = items(field, value, f"a list of some of {', '.join(choices)}")
    return tuple(sorted({choice(field, item, choices) for item in given}))


def _rlimits(value: object) -> tuple[tuple[str, tuple[Rlimit, Rlimit]], ...]:
    allowed = 'limits by name, such as {"nofile": 1024, "core": (0, "unlimited")}'
    found: dict[str, tuple[Rlimit, Rlimit]] = {}
    for name, limit in pairs("rlimits", value, allowed):
        if not isinstance(name, str) or name not in RESOURCES:
            text = name.lower().removeprefix("rlimit_") if isinstance(name, str) else ""
            raise SpecError("rlimits", name, near(text, RESOURCES, f"one of {', '.join(RESOURCES)}"))
        if name in found:
            raise SpecError("rlimits", name, "a limit that is named once")
        both = tuple(limit) if isinstance(limit, (tuple, list)) else (limit, limit)
        field = f"rlimits[{name!r}]"
        if len(both) != 2:
            raise SpecError(field, limit, "one limit, or a soft and a hard one")
        soft, hard = (_rlimit(field, part, RESOURCES[name]) for part in both)
        if hard != "unlimited" and (soft == "unlimited" or soft > hard):
            raise SpecError(field, limit, "a soft limit that is not above the hard one")
        found[name] = soft, hard
    return tuple(sorted(found.items()))


def _rlimit(field: str, value: object, in_bytes: bool) -> Rlimit:
    if isinstance(value, str) and value == "unlimited":
        return "unlimited"
    try:
        return quantity.size(field, value) if in_bytes else quantity.count(field, value, minimum=0)
    except SpecError as error:
        raise SpecError(field, value, f'{error.allowed}, or "unlimited"') from None


def _landlock(value: object) -> tuple[tuple[str, str], ...]:
    allowed = 'paths with some of "r", "w" and "x", such as {"/usr": "rx", "/work": "rwx"}'
    found: dict[str, str] = {}
    for path, access in pairs("landlock", value, allowed):
        plain = quantity.absolute("landlock", path)
        letters = set(access) if isinstance(access, str) else set()
        if not letters or not letters <= set(_ACCESS):
            raise SpecError("landlock", access, allowed)
        if plain in found:
            raise SpecError("landlock", plain, "a path that is named once")
        found[plain] = "".join(letter for letter in _ACCESS if letter in letters)
    return tuple(sorted(found.items()))


def _label(field: str, value: object) -> str:
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise SpecError(field, value, "a label of printable characters without spaces")
    return value


def _paths(field: str, value: object) -> tuple[str, ...]:
    found = {quantity.absolute(field, item) for item in items(field, value, "a list of absolute paths")}
    if "/" in found:
        raise SpecError(field, "/", "paths below '/'")
    return tuple(sorted(found))


def _devices(value: object) -> tuple[str, ...]:
    found: set[str] = set()
    for item in items("devices", value, 'a list of paths such as "/dev/net/tun"'):
        path = quantity.absolute("devices", item)
        name = path.removeprefix("/dev/")
        if not below(path, "/dev") or path == "/dev" or name.partition("/")[0] in _OWN_IN_DEV:
            raise SpecError("devices", item, 'devices such as "/dev/net/tun", by their paths below /dev')
        # Every sandbox has these already.
        if name not in STANDARD_DEVICES:
            found.add(path)
    for path in found:
        if any(path != other and below(other, path) for other in found):
            raise SpecError("devices", path, "devices, of which none is a folder of others")
    return tuple(sorted(found))


def _without(value: object) -> tuple[str, ...]:
    allowed = "a list of names of protections, such as 'seccomp'"
    found: set[str] = set()
    for item in items("without", value, allowed):
        if not isinstance(item, str) or not _PROTECTION.fullmatch(item):
            raise SpecError("without", item, allowed)
        found.add(item)
    return tuple(sorted(found))
