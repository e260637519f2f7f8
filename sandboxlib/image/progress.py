"""How far long work on images is, as events."""

from __future__ import annotations

import attrs


@attrs.frozen
class Progress:
    """
    One event; ``print`` of it is a line for people.

    Attributes:
        kind: ``resolving``, ``exists``, ``downloading``, ``unpacking``, ``pushing``, ``mounted``, ``done``.
        reference: The image that it is about.
        digest: The blob that it is about; empty where it is the image as a whole.
        current: Bytes that are done.
        total: Bytes in all, as far as that is known; else 0.
    """

    kind: str
    reference: str
    digest: str = ""
    current: int = 0
    total: int = 0

    def __str__(self) -> str:
        about = self.digest.partition(":")[2][:12] or self.reference
        if not self.total:
            return f"{about}: {self.kind}"
        return f"{about}: {self.kind} {self.current / 1e6:.1f} of {self.total / 1e6:.1f} MB"


__all__ = ["Progress"]
