"""
How threads that wait in sockets are ended: one `Stop` for all threads of a piece of work.

The thread that asked for the work looks after its own reasons to give up, and tells all others by
`Stop.now`. That sets an event, which they look at between two chunks, and shuts down the sockets that they
wait in. What is shut down is a duplicate: the descriptor that a thread reads from may be closed, and its
number be another file's, at any moment.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from socket import socket


class StoppedError(Exception):
    """The work was given up; never seen outside, for the reason to give up is raised there."""


class Stop:
    """Tells threads to end; each of them has at most one socket that it waits in."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._sockets: dict[int, socket] = {}

    def check(self) -> None:
        """Raise `StoppedError` if the work was given up."""
        if self._event.is_set():
            raise StoppedError

    def wait(self, seconds: float) -> None:
        """Wait, but not any longer than the work goes on."""
        if self._event.wait(seconds):
            raise StoppedError

    def enter(self, sock: socket) -> None:
        """From now on this thread waits in *sock*, which it borrows."""
        from socket import socket

        # Not sock.dup(), which TLS sockets refuse.
        twin = socket(fileno=os.dup(sock.fileno()))
        with self._lock:
            stopped = self._event.is_set()
            old = twin if stopped else self._sockets.pop(threading.get_ident(), None)
            if not stopped:
                self._sockets[threading.get_ident()] = twin
        if old is not None:
            old.close()
        self.check()

    def leave(self) -> None:
        """This thread does not wait in a socket any more."""
        with self._lock:
            old = self._sockets.pop(threading.get_ident(), None)
        if old is not None:
            old.close()

    def now(self) -> None:
        """Give up: wake all threads."""
        from socket import SHUT_RDWR

        with self._lock:
            self._event.set()
            for sock in self._sockets.values():
                # It may have ended by itself.
                with contextlib.suppress(OSError):
                    sock.shutdown(SHUT_RDWR)

    def again(self) -> None:
        """Allow new work, once all threads have ended."""
        self._event.clear()


__all__ = ["Stop", "StoppedError"]
