"""Whose something is: a forked child has in its memory what its parent has made, and no say over it."""

from __future__ import annotations

import os

from sandboxlib.errors import StateError


class Maker:
    """The process that makes this."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_another(self) -> bool:
        """Is it the one that this process was forked from?"""
        return self._pid != os.getpid()

    def check(self, what: str) -> None:
        """Raises: StateError: *what* is not this process's."""
        if self.is_another:
            raise StateError(f"{what} belongs to the process that this one was forked from")


__all__ = ["Maker"]
