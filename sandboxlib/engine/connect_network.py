"""Connects a sandbox: what its start and its end ask for, whatever kind of network it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sandboxlib.engine.connections import Connections
from sandboxlib.errors import SandboxError
from sandboxlib.kernel.descriptor import Fd, socket_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandboxlib.engine.ports import Taken
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.host import Host
    from sandboxlib.kernel.owner import Owner
    from sandboxlib.spec import SandboxSpec


class Connected(Protocol):
    """
    What a sandbox has of networks.

    Attributes:
        values: For the plan.
        published: (address, port, protocol, port inside) of each port.
        addresses: By network.
    """

    values: Mapping[str, str]

    @property
    def published(self) -> list[list[str | int]]:
        """What leads to it."""

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        """By network."""

    async def prepare(self, waiter: Waiter) -> None:
        """
        Make what is needed outside.

        Raises:
            NetworkError: An address, a name or a port is taken.
            UnsupportedError: This kernel cannot make it.
            KernelError: A step failed.
        """

    async def connect(self, waiter: Waiter, pid: int, fd: Fd) -> SandboxError | None:
        """Pid 1 is there, and *fd*, a netlink socket of its, came along. Returns what went wrong, or None."""

    async def release(self, waiter: Waiter) -> None:
        """Let go of all. Idempotent."""


class Bridged:
    """On bridges. All waiting for the lock of their book is done where it stops nobody else."""

    def __init__(self, spec: SandboxSpec, host: Host, owner: Owner) -> None:
        self._connections = Connections(spec, host, owner)
        self.values: Mapping[str, str] = {}

    @property
    def published(self) -> list[list[str | int]]:
        """What leads to it."""
        taken: Taken = self._connections.ports
        return taken.published

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        """By network."""
        return self._connections.addresses

    async def prepare(self, waiter: Waiter) -> None:
        """Enter it on its networks."""
        await waiter.work(self._connections.prepare)
        self.values = self._connections.values

    async def connect(self, waiter: Waiter, pid: int, fd: Fd) -> SandboxError | None:
        """Make its interfaces."""
        with socket_of(fd) as inside:
            try:
                await waiter.work(lambda: self._connections.connect(pid, inside))
            except SandboxError as problem:
                return problem
        return None

    async def release(self, waiter: Waiter) -> None:
        """Take it off."""
        await waiter.work(self._connections.release)


def connector(spec: SandboxSpec, host: Host, owner: Owner) -> Connected:
    """What is to connect a sandbox of *spec*: it is there, to be released, before anything of it is made."""
    if spec.network is not None and spec.network.kind == "user":
        from sandboxlib.engine.usernet import Userland

        return Userland(spec, host, owner)
    return Bridged(spec, host, owner)


__all__ = ["Connected", "connector"]
