"""
Standard descriptors that are files of the caller's, and how a command opens them again by name.

``/dev/stdout`` and ``/proc/self/fd/1`` open the file anew, and the kernel asks for the
file's own mode then, not for how it is open already. A sandbox's users are nobody on the host, so root's
files would be closed to them. Where the command's user has the number inside that the file's owner has
outside, the command gets a mount namespace of its own, in which the file itself, ID-mapped, lies at
``/dev/stdin``, ``/dev/stdout`` or ``/dev/stderr``; for reading only if it was given so.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

from sandboxlib.plan.flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    CLONE_NEWNS,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    NOTHING,
    O_CLOEXEC,
    O_NOFOLLOW,
    O_PATH,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    Named,
)
from sandboxlib.plan.steps import ANY, Call, Step
from sandboxlib.plan.tree import setattr_

#: The sandbox's user namespace, handed in by the program.
USERNS = Named(6, "<user namespace>")
NAMES = ("stdin", "stdout", "stderr")
#: Copies of their mounts stand from here on, by their number.
_COPIES = 53
_PLACE = Named(56, "<place>")
#: The last of these.
LAST = int(_PLACE)

_WHY = "the caller's file can be opened by name"
# What was removed meanwhile or lies in another mount namespace cannot be mounted, and not each file system
# can be ID-mapped: there the file's own mode decides, as if nothing had been tried.


class Given(NamedTuple):
    """
    A file of the caller's that is a standard descriptor.

    Attributes:
        number: 0, 1 or 2.
        access: How it is open: ``r``, ``w`` or ``rw``.
        shown: It has to be mounted to be opened by name.
    """

    number: int
    access: str
    shown: bool = False


def copies(given: tuple[Given, ...]) -> Iterator[Step]:
    """Copy their mounts; the launcher does it, outside, where they are."""
    for one in _shown(given):
        flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
        yield Call("open_tree", (one.number, "", flags), _WHY, out=_copy(one), ignore=ANY)
        limits = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
        limits |= NOTHING if "w" in one.access else MOUNT_ATTR_RDONLY
        # Where there is no copy; else it may not go on without them.
        limited = setattr_(_copy(one), "no more than was given", set_=limits, recursive=False)
        yield limited._replace(ignore=(errno.EBADF,))
        mapped = setattr_(_copy(one), _WHY, set_=MOUNT_ATTR_IDMAP, userns=USERNS, recursive=False)
        yield mapped._replace(ignore=ANY)


def attached(given: tuple[Given, ...]) -> Iterator[Step]:
    """Put them in their places; the command does it, inside, as long as it has all rights there."""
    if any(_shown(given)):
        yield Call("unshare", (CLONE_NEWNS,), "mounts of the command's own")
    for one in _shown(given):
        # The link itself is what is covered.
        opened = (AT_FDCWD, f"/dev/{NAMES[one.number]}", O_PATH | O_NOFOLLOW | O_CLOEXEC, 0)
        yield Call("openat", opened, _WHY, out=_PLACE, ignore=ANY)
        args = (_copy(one), "", _PLACE, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
        yield Call("move_mount", args, _WHY, ignore=ANY)


def _shown(given: tuple[Given, ...]) -> list[Given]:
    return [one for one in given if one.shown]


def _copy(one: Given) -> Named:
    return Named(_COPIES + one.number, f"<{NAMES[one.number]}'>")


__all__ = ["LAST", "NAMES", "USERNS", "Given", "attached", "copies"]
