"""
Ports of the host that lead to a sandbox: taken for as long as they are published.

A socket is bound to each, and does not listen where it can be had without: so nobody else gets it,
and whoever finds it while no rule leads on is refused.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from sandboxlib.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandboxlib.spec import Port


class Taken:
    """
    The ports of one sandbox.

    Attributes:
        published: (address, port, protocol, port inside), with the port that was found for 0.
    """

    def __init__(self) -> None:
        self.published: list[list[str | int]] = []
        self._sockets: list[socket.socket] = []

    def take(self, ports: Sequence[Port], *, ipv6: bool) -> None:
        """
        Take all of *ports*; where no address is given, those of IPv6 too if *ipv6*.

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
            except OSError as error:
                raise _refused(port, error) from None
            self.published.append([port.address, held.getsockname()[1], port.protocol, port.target])

    def release(self) -> None:
        """Let go of all. Idempotent."""
        sockets, self._sockets = self._sockets, []
        for held in sockets:
            held.close()


def _bind(held: socket.socket, address: str, port: int) -> None:
    try:
        held.bind((address, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE or held.type != socket.SOCK_STREAM:
            raise
        # Perhaps only by connections that have ended. Then it can be had, but others could have it as
        # well, unless it listens.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((address, port))
        held.listen(1)


def _refused(port: Port, error: OSError) -> NetworkError:
    address = f"[{port.address}]" if ":" in port.address else port.address
    name = f"{address}{':' if address else ''}{port.port}/{port.protocol}"
    if error.errno == errno.EADDRINUSE:
        return NetworkError(f"port {name} of this host is taken: give another one, or 0 for any")
    if error.errno == errno.EADDRNOTAVAIL:
        return NetworkError(f"port {name}: {port.address} is not an address of this host")
    return NetworkError(f"port {name} cannot be had: {error.strerror}")


__all__ = ["Taken"]
