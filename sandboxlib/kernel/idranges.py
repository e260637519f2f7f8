"""
Ranges of IDs that root may give to sandboxes: clear of all that is known to give IDs out.

An administrator chooses by lines for `NAME` in both files of subordinate IDs, as podman's ``containers``
has them.

Files: subuid(5), subgid(5), passwd(5), group(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sandboxlib.host import UNCLAIMED, IDRanges

NAME = "sandboxlib"
#: What a sandbox needs: every 16-bit user of an image.
COUNT = 65536
#: No change, for chown(2); and what the kernel's own types can hold.
_MOST = (1 << 32) - 1

Range = tuple[int, int]


def probe() -> IDRanges:
    """What this machine's files leave."""
    return choose(*(_lines(f"/etc/{name}") for name in ("subuid", "subgid", "passwd", "group")))


def choose(subuid: list[str], subgid: list[str], passwd: list[str], group: list[str]) -> IDRanges:
    """What is to be given out, from the lines of the four files."""
    uids, gids = list(_subordinate(subuid)), list(_subordinate(subgid))
    mine = [[given for name, given in found if name == NAME] for found in (uids, gids)]
    if any(mine):
        free = [part for part in _both(*mine) if part[1] >= COUNT]
        source = f"by the lines for {NAME} in /etc/subuid and /etc/subgid"
        if free:
            return IDRanges(tuple(sorted(free)), source)
        fault = f"have one line for {NAME} in /etc/subuid and the same in /etc/subgid, of {COUNT} or more IDs"
        return IDRanges((), source, fault)
    taken = [given for _, given in (*uids, *gids)]
    taken += [(number, 1) for number in (*_numbers(passwd), *_numbers(group))]
    free = [part for part in _without(UNCLAIMED, taken) if part[1] >= COUNT]
    source = "which systemd, SSSD and the users of this machine leave"
    if free:
        return IDRanges(tuple(free), source)
    fault = f"give {NAME} a range: usermod has no user for it, so put {NAME}:START:COUNT into both files"
    return IDRanges((), source, fault)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError as error:
        if error.errno is None:
            raise
        # Where there is none, or it is not to be read, nobody has been given anything by it.
        return []


def _subordinate(lines: Iterable[str]) -> Iterator[tuple[str, Range]]:
    for line in lines:
        parts = [part.strip() for part in line.split(":")]
        if len(parts) == 3 and all(part.isascii() and part.isdigit() for part in parts[1:]):
            start, count = int(parts[1]), int(parts[2])
            if start > 0 and 0 < count <= _MOST - start:
                yield parts[0], (start, count)


def _numbers(lines: Iterable[str]) -> Iterator[int]:
    """The users of passwd(5), or the groups of group(5)."""
    for line in lines:
        parts = line.split(":")
        if len(parts) > 2 and parts[2].isascii() and parts[2].isdigit():
            yield int(parts[2])


def _both(one: Iterable[Range], other: Iterable[Range]) -> Iterator[Range]:
    """What is in a range of *one* and in one of *other*: a user and his group have one number."""
    others = list(other)
    for first, count in one:
        for second, size in others:
            start, end = max(first, second), min(first + count, second + size)
            if start < end:
                yield start, end - start


def _without(whole: Range, taken: Iterable[Range]) -> Iterator[Range]:
    at, end = whole[0], whole[0] + whole[1]
    for start, count in sorted(taken):
        if start + count <= at or start >= end:
            continue
        if start > at:
            yield at, start - at
        at = max(at, start + count)
    if at < end:
        yield at, end - at


__all__ = ["COUNT", "NAME", "choose", "probe"]
