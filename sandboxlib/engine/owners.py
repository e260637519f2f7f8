"""Users and groups of a sandbox, as numbers inside and outside. Kernel: user_namespaces(7)."""

from __future__ import annotations

from collections.abc import Iterable

from sandboxlib.host import Host
from sandboxlib.namespace import Namespace
from sandboxlib.plan.ids import id_map

#: (inside, outside, count) of each range.
Map = list[tuple[int, int, int]]


class Owners:
    """
    Users and groups as a user namespace sees them.

    Args:
        uids: The lines of its uid_map.
        gids: The lines of its gid_map.
    """

    #: What the kernel shows for an ID that has no counterpart inside: overflowuid of proc(5).
    NOBODY = 65534

    def __init__(self, uids: Iterable[str], gids: Iterable[str]) -> None:
        self._maps: list[Map] = []
        for lines in (uids, gids):
            ranges = (tuple(map(int, line.split())) for line in lines)
            self._maps.append([(inside, outside, count) for inside, outside, count in ranges])

    @classmethod
    def of(cls, pid: int) -> Owners:
        """Those that a process of ours has."""
        with (
            open(f"/proc/{pid}/uid_map", encoding="ascii") as uids,
            open(f"/proc/{pid}/gid_map", encoding="ascii") as gids,
        ):
            return cls(uids, gids)

    @classmethod
    def planned(cls, host: Host, user: Namespace | None) -> Owners:
        """Those of a user namespace that a user makes. See `id_map`."""
        return cls(*(id_map(host, user, which).splitlines() for which in ("uid", "gid")))

    def _inside(self, which: int, number: int) -> int | None:
        for inside, outside, count in self._maps[which]:
            if outside <= number < outside + count:
                return inside + number - outside
        return None

    def pair(self, uid: int, gid: int) -> tuple[int, int]:
        """A user and a group, as numbers inside; nobody's for those that are none there."""
        found = self._inside(0, uid), self._inside(1, gid)
        return self.NOBODY if found[0] is None else found[0], self.NOBODY if found[1] is None else found[1]

    def exactly(self, uid: int, gid: int) -> tuple[int, int]:
        """The same. Raises: LookupError: One is none there."""
        found = self._inside(0, uid), self._inside(1, gid)
        if found[0] is None or found[1] is None:
            raise LookupError(uid, gid)
        return found[0], found[1]


__all__ = ["Owners"]
