"""
Ports of the host that lead to a sandbox: taken for as long as they are published.

A socket is bound to each: so nobody else gets it. It has a mark by which the host's rules know that its
program lives: whatever ends that, the port leads nowhere from that moment on. Whoever finds the socket
itself, while no rule leads on, gets no answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import weakref
from time import monotonic, sleep
from typing import TYPE_CHECKING

from sandboxlib.errors import NetworkError
from sandboxlib.kernel.syscall import address as address_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandboxlib.spec import Port

#: SO_MARK, SO_ATTACH_FILTER of <asm-generic/socket.h>.
_MARK, _ATTACH_FILTER = 36, 26
#: Seconds for which a port may stay taken by who has let go of it: where another thread starts a process
#: at that moment, this has the socket too until it executes its program.
_PATIENCE, _PAUSE = 0.25, 0.001
#: All that is open in this program: a forked child lets go of it, since it is not the one that publishes.
_open: weakref.WeakSet[Taken] = weakref.WeakSet()


class Taken:
    """
    The ports of one sandbox.

    Attributes:
        published: (address, port, protocol, port inside), with the port that was found for 0.
    """

    def __init__(self) -> None:
        self.published: list[list[str | int]] = []
        self._sockets: list[socket.socket] = []
        _open.add(self)

    def take(self, ports: Sequence[Port], *, ipv6: bool, mark: int = 0) -> None:
        """
        Take all of *ports*; where no address is given, those of IPv6 too if *ipv6*.

        Args:
            ports: Which.
            ipv6: The sandbox has IPv6.
            mark: For the rules; 0 where there are none, and somebody else will listen in the socket's place.

        Raises:
            NetworkError: One is taken, or its address is not this host's.
        """
        for port in ports:
            both = ipv6 and not port.address
            address = port.address or ("::" if both else "0.0.0.0")
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
            held = socket.socket(family, kind | socket.SOCK_CLOEXEC)
            self._sockets.append(held)
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
            try:
                _bind(held, address, port.port)
                if mark:
                    _wait_silently(held, mark)
            except OSError as error:
                raise _refused(port, error) from None
            self.published.append([port.address, held.getsockname()[1], port.protocol, port.target])

    def release(self) -> None:
        """Let go of all. Idempotent."""
        while self._sockets:
            self._sockets[-1].close()
            self._sockets.pop()


def _bind(held: socket.socket, address: str, port: int) -> None:
    until = monotonic() + _PATIENCE
    while True:
        # TCP's is perhaps taken only by connections that have ended. Then it can be had, but others could
        # have it as well, unless it listens.
        for reused in (0, 1) if held.type == socket.SOCK_STREAM else (0,):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reused)
            try:
                held.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or monotonic() > until:
                    raise
            else:
                if reused:
                    held.listen(1)
                return
        sleep(_PAUSE)


def _wait_silently(held: socket.socket, mark: int) -> None:
    """Be found by rules, and by nothing else: a filter drops whatever would come in."""
    held.setsockopt(socket.SOL_SOCKET, _MARK, mark)
    # One instruction of classic BPF: return 0, keep nothing of the packet.
    code = struct.pack("=HBBI", 0x06, 0, 0, 0)
    held.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("=HxxxxxxQ", 1, address_of(code)))
    if held.type == socket.SOCK_STREAM:
        # The kernel finds a TCP socket for a packet only if it listens.
        held.listen(1)


def _refused(port: Port, error: OSError) -> NetworkError:
    address = f"[{port.address}]" if ":" in port.address else port.address
    name = f"{address}{':' if address else ''}{port.port}/{port.protocol}"
    if error.errno == errno.EADDRINUSE:
        return NetworkError(f"port {name} of this host is taken: give another one, or 0 for any")
    if error.errno == errno.EADDRNOTAVAIL:
        return NetworkError(f"port {name}: {port.address} is not an address of this host")
    return NetworkError(f"port {name} cannot be had: {error.strerror}")


def _forked() -> None:
    for taken in list(_open):
        with contextlib.suppress(OSError):
            taken.release()


os.register_at_fork(after_in_child=_forked)

__all__ = ["Taken"]
