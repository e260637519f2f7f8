"""The time of a command, kept by its launcher where it is limited: the program may be late to see its end."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

from sandboxlib.kernel.descriptor import Fd, eventfd

if TYPE_CHECKING:
    from sandboxlib.kernel.launcher import Launch

#: Seconds that the launcher has to tell the time once its child has ended: it was woken by the same event.
_PATIENCE = 1.0
#: Seconds between two looks at whether it is there at all.
_LOOK = 0.01


class Clock:
    """One command's clock: an eventfd that its launcher adds the nanoseconds to which it lived."""

    def __init__(self) -> None:
        self._fd = Fd()

    @property
    def kept(self) -> bool:
        """Does a launcher keep it?"""
        return bool(self._fd)

    def begin(self) -> int:
        """Make it; returns the descriptor that the launcher is to have. Raises: KernelError."""
        self._fd = eventfd()
        return self._fd.fileno()

    def seconds(self, launch: Launch) -> float | None:
        """How long the child of *launch*, which has ended, lived; None where nobody kept it."""
        if not self._fd:
            return None
        poll, deadline = select.poll(), time.monotonic() + _PATIENCE
        poll.register(self._fd, select.POLLIN)
        while not poll.poll(_LOOK * 1000):
            # Whoever is out of memory ends with his launcher, as long as they share theirs.
            if (launch.reap_launcher() and not poll.poll(0)) or time.monotonic() > deadline:
                return None
        return os.eventfd_read(self._fd.fileno()) / 1e9

    def close(self) -> None:
        """Let go of it. Idempotent."""
        self._fd.close()


__all__ = ["Clock"]
