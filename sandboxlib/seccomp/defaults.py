"""
The default profile, put together from its two tables for a set of capabilities.

Its shape is an allow-list: what neither table knows is refused, and what is newer than both gets
ENOSYS. It lets through less than Docker's default profile with the same capabilities; docs/seccomp.md
lists the differences.

Spec: moby profiles/seccomp/default.json.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable, Iterator

from sandboxlib.seccomp.profile import Action, Profile, Rule


def default(
    capabilities: Iterable[str] = (), *, architectures: Iterable[str] = (), core_dumps: bool = False
) -> Profile:
    """
    Return the default profile for a sandbox with these capabilities.

    Args:
        capabilities: The bounding set, by names such as ``CAP_SYS_ADMIN``; each opens the calls that
            it is for.
        architectures: Foreign ABIs to let in: ``i386``, ``x32``, ``arm``.
        core_dumps: Let programs set the size of their core files.
    """
    return _default(frozenset(capabilities), frozenset(architectures), core_dumps)


@functools.lru_cache(maxsize=16)
def _default(capabilities: frozenset[str], architectures: frozenset[str], core_dumps: bool) -> Profile:
    return Profile(
        rules=tuple(_rules(capabilities, core_dumps)),
        default=Action.ERRNO,
        default_errno=errno.EPERM,
        architectures=architectures,
    )


def _rules(capabilities: frozenset[str], core_dumps: bool) -> Iterator[Rule]:
    from sandboxlib.seccomp.allowed import ALLOWED, CHECKED, REFUSED
    from sandboxlib.seccomp.denied import DENIED, Denied

    opened: list[Denied] = [row for row in DENIED if capabilities.intersection(row.opened_by)]
    names = [name for row in ALLOWED for name in row.names.split()]
    names += [name for row in opened for name in row.names.split()]
    checked = [row for row in CHECKED if capabilities.issuperset(row.needs)]
    if "CAP_SYS_ADMIN" in capabilities:
        # New namespaces are unshare's to make as well, so clone's flags need no look.
        names.append("clone")
    yield Rule(names=names, action=Action.ALLOW)
    for row in checked:
        for args in row.alternatives:
            yield Rule(names=row.names.split(), action=Action.ALLOW, args=args)
    for taken in REFUSED:
        if capabilities.intersection(taken.opened_by) or (core_dumps and taken.protection == "no-core-dumps"):
            continue
        for args in taken.alternatives:
            yield Rule(names=taken.names.split(), action=Action.ERRNO, errno=taken.errno, args=args)
    # Naming what is denied makes it known: only what is newer than all of these gets ENOSYS.
    for number in (errno.EPERM, errno.ENOSYS):
        closed = [row for row in DENIED if row not in opened and row.errno == number]
        names = [name for row in closed for name in row.names.split()]
        yield Rule(names=names, action=Action.ERRNO, errno=number)
