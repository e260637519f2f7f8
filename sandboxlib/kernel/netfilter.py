"""
One socket to the packet filter and connection tracking, kept for as long as a program has networks.

To close such a socket the kernel waits until all that was deleted before is quite gone (nft_rcv_nl_event):
10 ms, where the deletion itself takes a tenth of one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

from sandboxlib.kernel.netlink import NETFILTER, answers, open_socket


class _Kept:
    """A socket of one network namespace. Attributes: count, of those who hold it."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.RLock()
        self.socket = open_socket(NETFILTER)


_lock = threading.RLock()
_kept: dict[int, _Kept] = {}


def _here() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def keep() -> int:
    """Keep one for this thread's network namespace; returns what `let_go` takes."""
    key = _here()
    with _lock:
        if key not in _kept:
            _kept[key] = _Kept()
        _kept[key].count += 1
    return key


def let_go(key: int) -> None:
    """Keep it once less."""
    with _lock:
        kept = _kept.get(key)
        if kept is None:
            return
        kept.count -= 1
        if not kept.count:
            del _kept[key]
            kept.socket.close()


@contextlib.contextmanager
def using() -> Iterator[socket.socket]:
    """The socket that is kept for this thread's network namespace, for one at a time; else one for now."""
    kept = _kept.get(_here()) if _kept else None
    if kept is None:
        with open_socket(NETFILTER) as sock:
            yield sock
        return
    with kept.lock:
        # What an interrupted question was answered with.
        for _ in answers(kept.socket):
            pass
        yield kept.socket


def _forked() -> None:
    # The parent's: what it is answered is not for a child.
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    for kept in _kept.values():
        kept.socket.close()
    _kept.clear()


os.register_at_fork(after_in_child=_forked)

__all__ = ["keep", "let_go", "using"]
