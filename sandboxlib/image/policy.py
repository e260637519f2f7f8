"""What is made of the entries of a layer that could do harm, or nothing."""

from __future__ import annotations

from typing import Literal

import attrs

from sandboxlib.errors import SpecError


@attrs.frozen(kw_only=True)
class Policy:
    """
    What is made of entries that give power.

    Attributes:
        setuid: Keep the setuid and setgid bits of files.
        devices: What to do with a device node: leave it out, refuse the layer, or make it (root only).
        whiteouts: Make all of them, or those alone that hide something, of the layers that are given.
    """

    setuid: bool = True
    devices: Literal["skip", "refuse", "make"] = "skip"
    whiteouts: Literal["all", "useful"] = "all"

    def __attrs_post_init__(self) -> None:
        """Check the words."""
        if self.devices not in ("skip", "refuse", "make"):
            raise SpecError("devices", self.devices, "'skip', 'refuse' or 'make'")
        if self.whiteouts not in ("all", "useful"):
            raise SpecError("whiteouts", self.whiteouts, "'all' or 'useful'")


__all__ = ["Policy"]
