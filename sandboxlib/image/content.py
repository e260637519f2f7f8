"""
The content of files as it is packed: what is between the holes, the attributes, and bounds for both.

Spec: image-spec layer.md, "Sparse Files"; GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, final

from sandboxlib.bounds import Bound
from sandboxlib.errors import ImageError, StateError
from sandboxlib.image import attributes, sparse
from sandboxlib.image.tarstream import Entry, shown
from sandboxlib.image.tarwrite import TarWriter

_PIECE = 1 << 20
#: Holes of fewer bytes together are written as zeros: everybody can read those.
_WORTH = 1 << 20
#: Bytes of a file's extended attributes: what readers take of a header, with room for the rest of it.
_ATTRIBUTES = 1 << 19

#: Bytes of data and entries that are packed at most; None for no bound.
Bounds = tuple[int | None, int | None]
UNBOUND: Bounds = (None, None)


class How(NamedTuple):
    """What is packed, and how; as the arguments of `pack_tree` and `pack_changes`."""

    changes: bool
    sparse: bool = False
    bounds: Bounds = UNBOUND


@final
class Content:
    """
    Writes regular files.

    Args:
        out: Where to.
        bound: On the bytes.
        holes: Write large holes as holes.
        cancelled: Called often; raises to give up.
    """

    def __init__(self, out: TarWriter, bound: Bound, holes: bool, cancelled: Callable[[], None]) -> None:
        self._out = out
        self._bound = bound
        self._holes = holes
        self._cancelled = cancelled

    def add(self, entry: Entry, fd: int, found: os.stat_result) -> None:
        """
        Write an entry with what is in the open file *fd*.

        Raises:
            TooLargeError: There is more than may come.
            StateError: It became shorter meanwhile.
        """
        entry.size = found.st_size
        entry.xattrs = written(fd, entry.name)
        parts = [(0, entry.size)]
        if found.st_blocks * 512 < entry.size:
            parts = sparse.of_file(fd, entry.size, self._cancelled)
        stored = sum(length for _, length in parts)
        if self._holes and entry.size - stored >= _WORTH:
            entry.holes = parts
        else:
            stored = entry.size
        # All of it at once: nothing is written of what is too large.
        self._bound.count(stored, shown(entry.name))
        self._out.add(entry)
        self._parts(entry, fd, parts)
        self._out.pad(stored)

    def _parts(self, entry: Entry, fd: int, parts: sparse.Map) -> None:
        """Write *parts* of a file; and what is between them, unless it has holes there."""
        stands = 0
        for begin, length in parts:
            if entry.holes is None:
                self._zeros(begin - stands)
            stands, end = begin, begin + length
            while stands < end:
                self._cancelled()
                piece = os.pread(fd, min(end - stands, _PIECE), stands)
                if not piece:
                    raise StateError(f'"{shown(entry.name)}" became shorter while it was packed')
                self._out.data(piece)
                stands += len(piece)
        if entry.holes is None:
            self._zeros(entry.size - stands)

    def _zeros(self, count: int) -> None:
        while count:
            self._cancelled()
            now = min(count, _PIECE)
            self._out.data(bytes(now))
            count -= now


def written(target: int | bytes, path: bytes) -> dict[bytes, bytes]:
    """The attributes of an open file or of a path, as layers have them. Raises: ImageError: Too many."""
    try:
        found = attributes.read_all(target, most=_ATTRIBUTES)
    except OverflowError:
        message = f"{shown(path)}: extended attributes of more than {_ATTRIBUTES} bytes"
        raise ImageError(message) from None
    return {name: attributes.portable(name, value) for name, value in found.items()}


__all__ = ["UNBOUND", "Bounds", "Content", "How", "written"]
