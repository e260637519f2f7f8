"""Whose the files of unpacked layers are, on disk."""

from __future__ import annotations

import hashlib
from typing import Literal

import attrs

Ranges = tuple[tuple[int, int, int], ...]


@attrs.frozen
class Owner:
    """
    Who unpacks, and with which IDs.

    Attributes:
        kind: ``root`` keeps the numbers of the image, which is for mounts that map them; ``range``
            works in a user namespace with the maps below; ``single`` has one ID, and all files have it.
        uid_map, gid_map: (inside, outside, count), of ``range``.
    """

    kind: Literal["root", "range", "single"]
    uid_map: Ranges = ()
    gid_map: Ranges = ()

    @property
    def key(self) -> str:
        """A name for the folder of layers that are unpacked so."""
        if self.kind != "range":
            return self.kind
        text = repr((self.uid_map, self.gid_map)).encode()
        return f"range-{hashlib.sha256(text).hexdigest()[:16]}"

    @property
    def marks(self) -> str:
        """The prefix of the extended attributes in which overlayfs keeps its marks for this owner."""
        return "trusted.overlay." if self.kind == "root" else "user.overlay."


__all__ = ["Owner", "Ranges"]
