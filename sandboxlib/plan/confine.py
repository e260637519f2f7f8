"""
How a command gives up all rights before it is executed, in the one order that works.

The rows of `sandboxlib.plan.protections` that a command carries itself are applied here.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from sandboxlib.errors import UnsupportedError
from sandboxlib.host import Host
from sandboxlib.plan import labels
from sandboxlib.plan.filters import compiled
from sandboxlib.plan.flags import (
    AT_FDCWD,
    CLOSE_RANGE_CLOEXEC,
    KEYCTL_JOIN_SESSION_KEYRING,
    LANDLOCK_RULE_PATH_BENEATH,
    O_CLOEXEC,
    O_PATH,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    SECCOMP_SET_MODE_FILTER,
    Named,
)
from sandboxlib.plan.protections import active
from sandboxlib.plan.root import user_of
from sandboxlib.plan.steps import Call, Pointer, Step
from sandboxlib.plan.streams import NAMES, Given
from sandboxlib.security import CAPABILITIES, Security
from sandboxlib.spec import SandboxSpec

RULESET, RULE = Named(9, "<ruleset>"), Named(10, "<path>")
LAST_CAPABILITY = max(CAPABILITIES.values())
# _LINUX_CAPABILITY_VERSION_3 of linux/capability.h: two words for each set.
_VERSION_3 = 0x20080522


@lru_cache(64)
def confine(
    spec: SandboxSpec,
    host: Host,
    foreign: bool,
    given: tuple[Given, ...] = (),
    last: tuple[Step, ...] = (),
) -> tuple[Step, ...]:
    """
    Give up all rights, in the one order that works.

    The bounding set needs a capability to be dropped, so it goes first; IDs need one
    too; the filter comes last, for it may forbid what is done before, or else as soon as may be. *last* are
    further steps, which need no rights and leave no descriptors to open.
    """
    on = active(spec.without)
    security = spec.security or Security()
    keep = sum(1 << CAPABILITIES[name] for name in security.capabilities)
    everything = (1 << (LAST_CAPABILITY + 1)) - 1
    if "no-capabilities" not in on:
        keep = everything
    steps: list[Step] = []
    if drop := everything & ~keep:
        why = "no capability can come back by execve"
        steps.append(
            Call(
                "prctl",
                (PR_CAPBSET_DROP, 0, 0, 0, 0),
                why,
                each=drop,
                ignore=(22,),
                text=f"PR_CAPBSET_DROP, {_names(drop)}",
            )
        )
    rights, steps = steps, []
    if "no-new-privileges" in on:
        steps.append(
            Call("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set-uid bits and file capabilities do nothing")
        )
    uid, gid = user_of(spec)
    groups = tuple(security.groups)
    if host.privileged or host.subgids is not None:
        buffer = struct.pack(f"={len(groups)}I", *groups) if groups else 0
        steps.append(Call("setgroups", (len(groups), buffer), "no group but its own", text=f"{groups}"))
    elif groups:
        raise UnsupportedError("supplementary groups", "subordinate group IDs", "add the user to /etc/subgid")
    steps.append(Call("setresgid", (gid, gid, gid), "its group"))
    if keep and uid:
        why = "capabilities outlive the change of user"
        steps.append(Call("prctl", (PR_SET_KEEPCAPS, 1, 0, 0, 0), why))
    steps.append(Call("setresuid", (uid, uid, uid), "its user"))
    if "new-keyring" in on:
        # As the user whose it shall be, for what a user has of keys is counted, and limited; but
        # before the filter, which has no keys.
        where = steps if "no-new-privileges" in on else rights
        where.append(Call("keyctl", (KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0), "an empty session keyring"))
    steps.extend(_capset(keep, ambient=bool(uid)))
    cage = [*labels.inside(security, host), *_landlock(security, host, on, foreign, given), *last]
    cage.append(
        Call(
            "close_range",
            (3, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC),
            "only standard descriptors go along",
            text="3, ~0, CLOSE_RANGE_CLOEXEC",
        )
    )
    if "seccomp" in on:
        cage.extend(_seccomp(security, host))
    # Who may still gain privileges needs CAP_SYS_ADMIN for it, and so has to be caged before they go.
    return (*rights, *steps, *cage) if "no-new-privileges" in on else (*rights, *cage, *steps)


def _names(mask: int) -> str:
    names = [name for name, number in CAPABILITIES.items() if mask >> number & 1]
    return f"each of {len(names)} capabilities" if len(names) > 3 else ", ".join(names)


def _capset(keep: int, *, ambient: bool) -> Iterator[Step]:
    low, high = keep & 0xFFFFFFFF, keep >> 32
    header = struct.pack("=Ii", _VERSION_3, 0)
    inheritable = keep if ambient else 0
    data = struct.pack("=6I", low, low, inheritable & 0xFFFFFFFF, high, high, inheritable >> 32)
    yield Call(
        "capset",
        (header, data),
        "the capabilities that were asked for, and no other",
        text=_names(keep) if keep else "none",
    )
    if ambient:
        # Without this a user other than root loses them at execve: capabilities(7).
        for name, number in CAPABILITIES.items():
            if keep >> number & 1:
                args = (PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0)
                yield Call(
                    "prctl",
                    args,
                    "they reach the command",
                    text=f"PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, {name}",
                )


class _Access(NamedTuple):
    """Access rights of Landlock: include/uapi/linux/landlock.h, with the ABI that brought them."""

    read: int = 1 << 2 | 1 << 3
    write: int = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12
    execute: int = 1 << 0
    refer: int = 1 << 13
    truncate: int = 1 << 14
    #: Those that a rule on a file, rather than a folder, may have.
    file: int = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14


_ACCESS = _Access()


def _landlock(
    security: Security, host: Host, on: frozenset[str], foreign: bool, given: tuple[Given, ...]
) -> Iterator[Step]:
    """
    Where a file of the caller's is a standard descriptor, no file outside of the sandbox's tree can be
    opened through /proc/self/fd, and this one for no more than it is open for. And what `Security.landlock`
    asks for.
    """
    write = _ACCESS.write | (_ACCESS.truncate if host.landlock >= 3 else 0)
    # Moving and linking between folders is refused by Landlock altogether unless it is handled.
    write |= _ACCESS.refer if host.landlock >= 2 else 0
    letters = {"r": _ACCESS.read, "w": write, "x": _ACCESS.execute}
    rules: list[tuple[str, int]] = []
    if security.landlock is not None:
        if not host.landlock:
            raise UnsupportedError(
                "security.landlock", "Landlock", "boot a kernel of 5.13 or newer with lsm=landlock,..."
            )
        rules = [(path, sum(letters[letter] for letter in access)) for path, access in security.landlock]
    elif foreign and "private-stdio" in on:
        if not host.landlock:
            raise UnsupportedError(
                "a file of the caller's as standard input or output",
                "Landlock, so that it cannot be opened again for writing",
                "hand in a pipe (input=, PIPE), or Security(without=['private-stdio'])",
            )
        rules = [("/", sum(letters.values()))]
    handled = sum(letters.values()) if rules or security.landlock is not None else 0
    if not handled:
        return
    attr = struct.pack("=Q", handled)
    yield Call(
        "landlock_create_ruleset",
        (attr, len(attr), 0),
        "what Landlock watches",
        out=RULESET,
        text=f"{handled:#x}",
    )
    for path, access in rules:
        yield Call(
            "openat", (AT_FDCWD, path, O_PATH | O_CLOEXEC, 0), "a path that Landlock lets in", out=RULE
        )
        beneath = struct.pack("=Qi", access, RULE)
        args = (RULESET, LANDLOCK_RULE_PATH_BENEATH, beneath, 0)
        yield Call(
            "landlock_add_rule", args, "what may be done below it", text=f"{RULESET}, {path}, {access:#x}"
        )
    for one in given:
        access = sum(letters[letter] for letter in one.access) & _ACCESS.file & handled
        beneath = struct.pack("=Qi", access, one.number)
        args = (RULESET, LANDLOCK_RULE_PATH_BENEATH, beneath, 0)
        text = f"{RULESET}, <{NAMES[one.number]}>, {access:#x}"
        # What has no place in any tree, such as a memfd, Landlock does not watch.
        why = "it may be opened again for what it is open for"
        yield Call("landlock_add_rule", args, why, text=text, ignore=(errno.EBADFD,))
    yield Call("landlock_restrict_self", (RULESET, 0), "in force from here on")


def _seccomp(security: Security, host: Host) -> Iterator[Step]:
    code = compiled(security, host)
    # struct sock_fprog: a count, and the address of the program that follows it.
    buffer = struct.pack("=HxxxxxxQ", len(code) // 8, 0) + code
    yield Pointer(8, 16)
    yield Call(
        "seccomp",
        (SECCOMP_SET_MODE_FILTER, 0, buffer),
        "only the system calls that are allowed",
        text=f"SECCOMP_SET_MODE_FILTER, <{len(code) // 8} instructions>",
    )
