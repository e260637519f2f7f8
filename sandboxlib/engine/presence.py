"""
Who is here: for as long as a program has a network of a book, it holds a socket whose name says so, and
one to the packet filter.

Such a name is of the network namespace, as bridges and rules are. So programs that do not see each other's
files or processes (each in a mount or PID namespace of its own) know whose of them have a living owner. The
kernel frees it when the program ends or executes another.

Kernel: unix(7), abstract sockets.
"""

from __future__ import annotations

import os
import socket
import threading

from sandboxlib.kernel import netfilter

_lock = threading.RLock()
#: Of this program: how many hold it, and the socket, by owner and network namespace.
_held: dict[tuple[str, int], tuple[int, socket.socket]] = {}


def _name(owner: str) -> str:
    return f"sandboxlib-{owner}-"


class Presence:
    """A program that is there for a book, once for each of its sandboxes."""

    def __init__(self, owner: str) -> None:
        self._key: tuple[str, int] | None = None
        self._kept = netfilter.keep()
        key = owner, self._kept
        try:
            with _lock:
                count, held = _held.get(key, (0, None))
                if held is None:
                    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                    held.bind(f"\0{_name(owner)}{os.urandom(6).hex()}")
                _held[key] = count + 1, held
                self._key = key
        finally:
            if self._key is None:
                netfilter.let_go(self._kept)

    def leave(self) -> None:
        """Be there once less. Idempotent."""
        with _lock:
            key, self._key = self._key, None
            if key in _held:
                count, held = _held.pop(key)
                if count > 1:
                    _held[key] = count - 1, held
                else:
                    held.close()
        if key is not None:
            netfilter.let_go(self._kept)


def exists(owner: str) -> bool:
    """Is a program there for the book *owner*, in this thread's network namespace?"""
    if not owner:
        return False
    with open("/proc/thread-self/net/unix", encoding="utf-8", errors="replace") as file:
        name = f"@{_name(owner)}"
        return any(name in line for line in file)


def _forked() -> None:
    # The parent's: a child that lives on is not there for it.
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    for _, held in _held.values():
        held.close()
    _held.clear()


os.register_at_fork(after_in_child=_forked)

__all__ = ["Presence", "exists"]
