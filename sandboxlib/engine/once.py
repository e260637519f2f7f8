"""Something that ends once, for other threads and tasks to wait for."""

from __future__ import annotations

import os
import threading

from sandboxlib.engine.waiter import BLOCKING, READ, Waiter


class Once:
    """Made by whoever carries it out, in that thread; costs a descriptor only where somebody waits."""

    def __init__(self) -> None:
        self._over = False
        self._thread = threading.get_ident()
        # A signal handler may wait, or end it, too.
        self._lock = threading.RLock()
        self._waiting: set[int] = set()

    def end(self) -> None:
        """It is over: all that wait go on."""
        with self._lock:
            self._over = True
            for fd in self._waiting:
                os.eventfd_write(fd, 1)

    async def wait(self, waiter: Waiter) -> None:
        """Wait until it is over."""
        if waiter is BLOCKING and self._thread == threading.get_ident():
            # A signal handler cannot wait for what it has interrupted.
            return
        with self._lock:
            if self._over:
                return
            fd = os.eventfd(0, os.EFD_CLOEXEC)
            self._waiting.add(fd)
        try:
            await waiter.ready({fd: READ})
        finally:
            with self._lock:
                self._waiting.discard(fd)
            os.close(fd)


__all__ = ["Once"]
