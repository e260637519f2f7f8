"""
Namespaces and networks that are opened alone, without a sandbox.

They are made by the launcher, never by the program: what a process unshares it cannot get
back. The program is handed descriptors, which keep alive what they refer to.
"""

from __future__ import annotations

import os
import struct
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sandboxlib.doors import doors
from sandboxlib.engine.current import program
from sandboxlib.engine.join import open_namespace as open_joined
from sandboxlib.engine.making import Recipe, end, make
from sandboxlib.engine.waiter import BLOCKING, Waiter, complete
from sandboxlib.errors import SpecError, StateError, UnsupportedError
from sandboxlib.host import Host
from sandboxlib.kernel.descriptor import Fd, openat, private
from sandboxlib.kernel.launcher import Launch
from sandboxlib.plan import tree
from sandboxlib.plan.flags import (
    AF_INET,
    AT_FDCWD,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_PARENT,
    NAMESPACES,
    NOTHING,
    O_CLOEXEC,
    O_RDONLY,
    SIOCSIFFLAGS,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    Named,
)
from sandboxlib.plan.start import OWNER, TIE, needs_ids
from sandboxlib.plan.steps import Call, Init, Report, Step, Write

if TYPE_CHECKING:
    from sandboxlib.engine.current import Program
    from sandboxlib.engine.ids import IdRanges
    from sandboxlib.namespace import Namespace
    from sandboxlib.network import Network

FOUND, SOCKET = Named(20, "<namespace>"), Named(21, "<socket>")

_NS_GET_NSTYPE = 0xB703
_IFREQ = struct.Struct("=16sH22x")


# ---- namespaces ---------------------------------------------------------------------------


def _namespace(value: Namespace, host: Host) -> Recipe:
    kind = value.kind
    flag, file = NAMESPACES[kind]
    flags = CLONE_PARENT | (NOTHING if kind == "time" else flag)
    if not host.privileged and kind != "user":
        flags |= CLONE_NEWUSER
    child: list[Step] = []
    if kind == "time":
        file = "time_for_children"
        child.append(Call("unshare", (CLONE_NEWTIME,), "clocks of its own"))
        lines = [
            f"{clock} {int(offset // 1)} {round(offset % 1 * 1e9)}\n"
            for clock, offset in (("monotonic", value.monotonic_offset), ("boottime", value.boottime_offset))
            if offset
        ]
        if lines:
            child.append(Write("/proc/self/timens_offsets", "".join(lines), "set before anyone is in it"))
    elif kind == "mount":
        child.append(tree.private())
    elif kind == "network":
        # As in a sandbox: a network that is joined is expected to have a loopback.
        child.append(Call("socket", (AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "loopback", out=SOCKET))
        child.append(Call("ioctl", (SOCKET, SIOCSIFFLAGS, _IFREQ.pack(b"lo", 1)), "loopback is up"))
    args = (AT_FDCWD, f"/proc/self/ns/{file}", O_RDONLY | O_CLOEXEC, 0)
    child.append(Call("openat", args, "the namespace", out=FOUND))
    child.append(Report("ready", "hand it out", FOUND))
    child.append(Call("close_range", (0, OWNER - 1, 0), "keep two descriptors"))
    child.append(Call("close_range", (TIE + 1, 0xFFFFFFFF, 0), "those that tell when the program ends"))
    why = "be there until it is known, or for as long as a PID namespace is to live"
    child.append(Init(OWNER, TIE, why))
    if kind == "user":
        return Recipe(flags, tuple(child), user=value, own=True)
    return Recipe(flags, tuple(child))


@doors
class OpenNamespace:
    """
    A namespace that exists for as long as this is open; made by `Namespace.open`.

    Attributes:
        kind: As `Namespace.kind`.
        inode: Its number.
        launch: What has made it, where it lives by a process.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.inode = 0
        self.launch = private(Launch())
        self._pid = os.getpid()
        self._fd = Fd()
        self._ids: IdRanges | None = None

    def know(self, fd: Fd) -> Self:
        """It is there now: *fd* keeps it alive."""
        self._fd = fd
        self.inode = os.fstat(fd.fileno()).st_ino
        return self

    def take_ids(self, program: Program) -> int:
        """A range of IDs that is its own until it is closed."""
        self._ids = program.ids
        return self._ids.take(program.host.ids, self)

    def fileno(self) -> int:
        """Its descriptor, for setns(2) and the like. Raises: StateError: It is closed."""
        if not self._fd:
            raise StateError("the namespace is closed")
        return self._fd.fileno()

    @property
    def path(self) -> str:
        """A path by which it can be joined: ``Namespace(kind, path=...)``."""
        return f"/proc/{os.getpid()}/fd/{self.fileno()}"

    async def aclose(self, waiter: Waiter) -> None:
        """Let go of it; a forked child's parent keeps it. Idempotent."""
        self._fd.close()
        if self._pid == os.getpid():
            await end(waiter, self.launch)
            if self._ids is not None:
                self._ids.release(self)

    def close(self) -> None:
        """Let go of it; what has joined it keeps it alive, but for a PID namespace. Idempotent."""
        complete(self.aclose(BLOCKING))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OpenNamespace {self.kind} {self.inode if self._fd else 'closed'}>"


async def make_namespace(waiter: Waiter, value: Namespace) -> OpenNamespace:
    """
    Make, or open, the namespace *value* names.

    Raises:
        UnsupportedError: This kernel has none of the kind, or lets nobody make one.
        SpecError: What is to be joined is not a namespace of this kind.
        KernelError: A system call failed.
    """
    owner = program()
    host, kind = owner.host, value.kind
    if kind not in host.namespaces:
        raise UnsupportedError(f"a {kind} namespace", f"a kernel with {kind} namespaces")
    if value.mode != "new":
        return OpenNamespace(kind).know(_existing(value))
    if host.userns_hint and (kind == "user" or not host.privileged):
        raise UnsupportedError(f"a {kind} namespace", "leave to make a user namespace", host.userns_hint)
    values: dict[str, int | str] = {}
    # It is there before anything of it is.
    space = OpenNamespace(kind)
    try:
        if kind == "user" and needs_ids(host, {"user": value}):
            values["ids"] = space.take_ids(owner)
        (found,) = await make(waiter, host, _namespace(value, host), values, space.launch)
        if kind != "pid":
            # Without its pid 1 nobody could be born in it any more; others live by their descriptor.
            await end(waiter, space.launch)
        return space.know(found)
    except BaseException:
        with waiter.shield():
            await space.aclose(waiter)
        raise


def _existing(value: Namespace) -> Fd:
    import fcntl

    flag, file = NAMESPACES[value.kind]
    if value.mode == "host":
        return openat(f"/proc/self/ns/{file}", os.O_RDONLY)
    fd = open_joined(value)
    try:
        found = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        if error.errno is None:
            raise
        found = 0
    if found != flag:
        raise SpecError("path", value.path, f"the file of a {value.kind} namespace")
    return fd


# ---- networks -----------------------------------------------------------------------------


@doors
class OpenNetwork:
    """
    A network that exists for as long as this is open; made by `Network.open`.

    Attributes:
        namespace: The network namespace, open as well; of a bridge, the host's.
        gateway: A bridge's own address, else None.
    """

    def __init__(self, network: Network, namespace: OpenNamespace) -> None:
        self.network = network
        self.namespace = namespace
        self.gateway: str | None = None

    @property
    def endpoints(self) -> dict[str, str]:
        """Addresses by name of who is on it; here nobody."""
        return {}

    def close(self) -> None:
        """Let go of it. Idempotent."""
        self.namespace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OpenNetwork {self.network!r}>"


async def make_network(waiter: Waiter, network: Network) -> OpenNetwork:
    """
    Make the bridge *network*; or make, or open, the network namespace of another kind.

    Raises:
        UnsupportedError: It is of a kind that cannot be made alone.
    """
    from sandboxlib.namespace import Namespace

    if network.kind == "bridge":
        from sandboxlib.engine.held import hold

        return await hold(waiter, network)
    if network.kind == "user":
        raise UnsupportedError("Network.user() alone", "a sandbox, whose network it is")
    if network.kind not in ("none", "host", "of"):
        raise UnsupportedError(
            f"a network of kind {network.kind!r}", "a part of sandboxlib that is not there yet"
        )
    space = network.namespace or Namespace("network")
    return OpenNetwork(network, await make_namespace(waiter, space))


# ---- the blocking face, and helpers -------------------------------------------------------


def open_namespace(value: Namespace) -> OpenNamespace:
    """Make or join the namespace alone; see `Namespace.open`."""
    return complete(make_namespace(BLOCKING, value))


def open_network(value: Network) -> OpenNetwork:
    """Make the network alone; see `Network.open`."""
    return complete(make_network(BLOCKING, value))


__all__ = [
    "OpenNamespace",
    "OpenNetwork",
    "make_namespace",
    "make_network",
    "open_namespace",
    "open_network",
]
