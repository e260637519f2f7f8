"""
Which numbers outside the users and groups inside have.

A sandbox has the numbers of 16 bits, which is all that most trees have. What its image, or who commands run
as, has besides gets lines of its own in the map: the kernel takes a few hundred, and every number outside has
to be nobody else's.

Kernel: user_namespaces(7), "User and group ID mappings".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sandboxlib.errors import UnsupportedError
from sandboxlib.host import Host
from sandboxlib.namespace import Namespace
from sandboxlib.plan.steps import Template, Variable
from sandboxlib.ranges import Ranges, joined, united
from sandboxlib.spec import SandboxSpec

#: How many IDs a sandbox of root's has: enough for every 16-bit user of an image.
ID_COUNT = 65536
#: Root inside, and what a map of a user's begins with: the number outside is the user's own.
_NOBODY = 65534
#: Lines of a map besides the first few. The kernel reads less than a page, and a line has up to 33 bytes.
_MOST_LINES = 100

Line = tuple[int, int, int]


class More(NamedTuple):
    """
    Numbers inside that a sandbox has not anyway.

    Attributes:
        uids, gids: Users and groups.
    """

    uids: Ranges = ()
    gids: Ranges = ()

    def __bool__(self) -> bool:
        return bool(self.uids or self.gids)

    def of(self, which: str) -> Ranges:
        """For ``uid`` or ``gid``."""
        return self.uids if which == "uid" else self.gids


def more_of(spec: SandboxSpec) -> More:
    """What the image of *spec*, and who its commands run as, has above the numbers of 16 bits."""
    uids, gids = spec.rootfs.ids if spec.rootfs is not None else ((), ())
    security = spec.security
    if security is not None and (security.ids or security.groups):
        user, group = security.ids or (0, 0)
        uids = united((*uids, (user, 1)), ID_COUNT)
        gids = united((*gids, (group, 1), *((number, 1) for number in security.groups)), ID_COUNT)
    return More(uids, gids)


def fitted(given: Ranges, most: int, what: str) -> Ranges:
    """
    Ranges that hold all of *given*, no more than a map has lines for.

    Raises:
        UnsupportedError: They hold more than *most* numbers then.
    """
    found = joined(given, _MOST_LINES)
    total = sum(count for _, count in found)
    if total > most:
        raise UnsupportedError(
            f"{what} with {sum(count for _, count in given)} numbers above {ID_COUNT - 1}",
            f"{total} more IDs, and here are {most}",
            "let fewer of its files belong to such numbers, or to ones that are nearer to each other",
        )
    return found


def id_map(host: Host, user: Namespace | None, which: str, more: Ranges = ()) -> str:
    """
    The text of uid_map or gid_map.

    ``{ids}`` stands for the range that is assigned, ``{more_ids}`` for a second one.

    Raises:
        UnsupportedError: There are too few IDs for *more*.
    """
    if user is not None and (chosen := getattr(user, f"{which}_map")):
        return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in chosen)
    what = "users" if which == "uid" else "groups"
    if host.privileged:
        lines = [f"0 {{ids}} {ID_COUNT}\n"]
        offset = 0
        for first, count in fitted(more, ID_COUNT, what):
            lines.append(f"{first} {{more_ids+{offset}}} {count}\n")
            offset += count
        return Template("".join(lines))
    own = host.uid if which == "uid" else host.gid
    subordinate = host.subuids if which == "uid" else host.subgids
    if not subordinate:
        return f"0 {own} 1\n"
    lines = [f"0 {own} 1\n"]
    lines += (
        f"{inside} {outside} {count}\n" for inside, outside, count in _of_user(*subordinate, more, what)
    )
    return "".join(lines)


def _of_user(start: int, count: int, more: Ranges, what: str) -> Iterator[Line]:
    """
    The lines for subordinate IDs.

    Those that are left over go to what *more* has above the numbers of 16 bits; then some of the highest
    below nobody's that *more* has not, and so hardly any tree: systemd gives them to what runs for a while.
    """
    linear = min(count, ID_COUNT - 1)
    wanted = fitted(united(more, ID_COUNT), count // 2 + 1, what)
    lacking = max(sum(number for _, number in wanted) - (count - linear), 0)
    taken = min(_NOBODY, linear + 1) - lacking
    for first, number in reversed(more):
        if first < taken + lacking and first + number > taken:
            taken = first - lacking
    if taken < 1:
        raise UnsupportedError(
            f"{what} with numbers above {ID_COUNT - 1}",
            "more subordinate IDs",
            "see /etc/subuid and /etc/subgid",
        )
    for first, end in ((1, taken), (taken + lacking, linear + 1)) if lacking else ((1, linear + 1),):
        if first < end:
            yield first, start + first - 1, end - first
    # (outside, count) of what is free.
    free = [(start + linear, count - linear), (start + taken - 1, lacking)]
    for first, number in wanted:
        inside, left = first, number
        while left:
            outside, there = free.pop(0)
            part = min(left, there)
            if part:
                yield inside, outside, part
            inside, left = inside + part, left - part
            if part < there:
                free.insert(0, (outside + part, there - part))


def outside_of(user: Namespace | None, more: Ranges, which: str, number: int) -> int | Variable:
    """The number outside of root's sandbox that *number* has; root's for one that it has not."""
    if user is not None and (chosen := getattr(user, f"{which}_map")):
        for inside, outside, count in chosen:
            if inside <= number < inside + count:
                return int(outside + number - inside)
        return int(chosen[0].outside)
    if number < ID_COUNT:
        return Variable("ids", number)
    offset = 0
    for first, count in fitted(more, ID_COUNT, "owners"):
        if first <= number < first + count:
            return Variable("more_ids", offset + number - first)
        offset += count
    return Variable("ids")


__all__ = ["ID_COUNT", "More", "fitted", "id_map", "more_of", "outside_of"]
