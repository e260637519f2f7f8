"""What of a tree is not packed: what it has only so that something could be mounted on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

#: A symbolic link by its path: its target, user, group, and time in nanoseconds.
Links = Mapping[bytes, tuple[bytes, int, int, int]]
NO_LINKS: Links = {}


class Omitted(NamedTuple):
    """
    What is not packed; as the arguments of `pack_tree` and `pack_changes`.

    Attributes:
        paths, ways, links, root: As there.
    """

    paths: frozenset[bytes] = frozenset()
    ways: frozenset[bytes] = frozenset()
    links: Links = NO_LINKS
    root: tuple[int, int, int] | None = None

    def as_words(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "paths": sorted(map(os.fsdecode, self.paths)),
            "ways": sorted(map(os.fsdecode, self.ways)),
            "links": {
                os.fsdecode(path): [os.fsdecode(target), *rest]
                for path, (target, *rest) in self.links.items()
            },
            "root": self.root,
        }

    @classmethod
    def of_words(cls, found: Mapping[str, Any]) -> Omitted:
        """The same, read again."""
        return cls(
            frozenset(map(os.fsencode, found["paths"])),
            frozenset(map(os.fsencode, found["ways"])),
            {
                os.fsencode(path): (os.fsencode(target), uid, gid, mtime)
                for path, (target, uid, gid, mtime) in found["links"].items()
            },
            None if found["root"] is None else tuple(found["root"]),
        )


__all__ = ["NO_LINKS", "Links", "Omitted"]
