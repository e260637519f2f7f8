"""Something that ends once, for other threads and tasks to wait for."""

from __future__ import annotations

import os
import threading

from sandboxlib.engine.waiter import BLOCKING, READ, Waiter
from sandboxlib.kernel.descriptor import Fd, eventfd

#: Seconds after which whoever waits looks by itself.
_LOOK = 0.5


class Once:
    """
    Made by whoever carries it out, in that thread; costs a descriptor only where somebody waits.

    Attributes:
        over: Set by whoever carried it out, before `end`, which may be interrupted.
    """

    def __init__(self) -> None:
        self.over = False
        self._thread = threading.get_ident()
        # A signal handler may wait, or end it, too.
        self._lock = threading.RLock()
        self._waiting: set[Fd] = set()

    def end(self) -> None:
        """It is over: all that wait go on."""
        self.over = True
        with self._lock:
            for fd in self._waiting:
                os.eventfd_write(fd.fileno(), 1)

    async def wait(self, waiter: Waiter) -> bool:
        """Wait until it is over; False for a signal handler: it cannot wait for what it has interrupted."""
        if waiter is BLOCKING and self._thread == threading.get_ident():
            return self.over
        fd = eventfd()
        try:
            with self._lock:
                self._waiting.add(fd)
            while not self.over:
                await waiter.ready({fd.fileno(): READ}, waiter.now() + _LOOK)
        finally:
            with self._lock:
                self._waiting.discard(fd)
            fd.close()
        return True


__all__ = ["Once"]
