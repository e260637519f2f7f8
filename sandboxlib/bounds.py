"""How much a verb takes from inside where the caller says nothing: what is there may be made without end."""

from __future__ import annotations

from typing import Final

from sandboxlib import quantity
from sandboxlib.errors import TooLargeError

#: Bytes of a file that are read into memory.
READ: Final = "256M"
#: Bytes of data that are copied out of a sandbox, or packed.
COPIED: Final = "16G"
#: Entries of a tree, or of a folder.
ENTRIES: Final = 1_000_000
#: Bytes of a path that count as one entry.
_PATH = 256


class Bound:
    """
    What is left of a bound.

    Args:
        name: The argument that sets it.
        most: Its value; None for none.
        what: What is counted, for the error: "bytes of data", "entries".
        where: Of what, for the error.
    """

    def __init__(self, name: str, most: int | None, what: str, where: str) -> None:
        self._name = name
        self._most = most
        self._what = what
        self._where = where
        self._seen = 0

    @property
    def left(self) -> int | None:
        """How much may still come; None without a bound."""
        return None if self._most is None else max(0, self._most - self._seen)

    def count(self, number: int, where: str = "") -> None:
        """Raises: TooLargeError: With *number* more it is more than may come."""
        self._seen += number
        if self._most is not None and self._seen > self._most:
            raise TooLargeError(where or self._where, self._what, self._most, self._name)

    def path(self, path: bytes) -> None:
        """Count an entry; a long path counts for more, since it is kept."""
        self.count(1 + len(path) // _PATH)


def bytes_bound(most: object, where: str, name: str = "max_size") -> Bound:
    """A bound on bytes, as a number or such as ``"1G"``. Raises: SpecError."""
    return Bound(name, None if most is None else quantity.size(name, most), "bytes of data", where)


def entries_bound(most: object, where: str, name: str = "max_entries") -> Bound:
    """A bound on entries. Raises: SpecError."""
    return Bound(name, None if most is None else quantity.count(name, most), "entries", where)


__all__ = ["COPIED", "ENTRIES", "READ", "Bound", "bytes_bound", "entries_bound"]
