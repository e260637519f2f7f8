"""
Connecting to what listens inside.

The socket is made by a helper that stands in the sandbox's network and file tree, and
handed out connected. Nothing of the host is listened on, and a UNIX path is looked up
inside.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from sandboxlib import quantity
from sandboxlib.engine.patience import PATIENCE
from sandboxlib.engine.session import Session
from sandboxlib.engine.waiter import READ, WRITE
from sandboxlib.errors import KernelError, SpecError, TimeoutExpired
from sandboxlib.kernel.descriptor import Fd, socket_of
from sandboxlib.plan.flags import (
    AT_FDCWD,
    O_CLOEXEC,
    O_DIRECTORY,
    O_PATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    Named,
)
from sandboxlib.plan.steps import Call, Connect, Report, Step

if TYPE_CHECKING:
    from socket import socket

    from sandboxlib.engine.sandbox import Engine

Address = int | str | bytes | os.PathLike[str] | tuple[str, int]

SOCKET, FOLDER, ROOT = Named(20, "<socket>"), Named(21, "<folder>"), Named(22, "<root>")
_HOW = struct.Struct("=3Q")
_UNIX_PATH_MAX = 108
_PORT = re.compile(r"(\d{1,5})(?:/(tcp|udp))?", re.ASCII)
_PORTS = 'a port from 1 to 65535, such as 8080 or "53/udp"'
#: Milliseconds that the helper goes on trying before it answers.
_ROUND = 50
#: Seconds between two rounds.
_PAUSE = 0.001

# sys/socket.h
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
_STREAM, DGRAM, _SEQPACKET = 1, 2, 5


class RefusedError(KernelError, ConnectionRefusedError):
    """Nobody listens there; also a `ConnectionRefusedError`."""


class _Target(NamedTuple):
    """
    One way to reach an address.

    Attributes:
        family, type: Of the socket.
        address: A struct sockaddr.
        text: For errors.
        folder: Where the address, a relative path, begins; empty for all but paths.
    """

    family: int
    type: int
    address: bytes
    text: str
    folder: str = ""


def _targets(address: object) -> tuple[_Target, ...]:
    """What to try, in order. Raises: SpecError."""
    allowed = f"{_PORTS}, an (IP address, port), or the absolute path of a UNIX socket"
    if isinstance(address, int) or (isinstance(address, str) and not address.startswith("/")):
        port, protocol = port_of("address", address)
        return tuple(_ip(host, port, protocol) for host in ("127.0.0.1", "::1"))
    if isinstance(address, tuple):
        try:
            host, number = address
            port, protocol = port_of("address", number)
            return (_ip(host, port, protocol),)
        except (TypeError, ValueError, OSError):
            raise SpecError("address", address, allowed) from None
    try:
        path = quantity.absolute("address", address)
    except SpecError:
        raise SpecError("address", address, allowed) from None
    folder, _, name = path.rpartition("/")
    raw = os.fsencode(name)
    if not raw or len(raw) >= _UNIX_PATH_MAX:
        raise SpecError("address", address, f"a path whose last part has 1 to {_UNIX_PATH_MAX - 1} bytes")
    packed = struct.pack("=H", AF_UNIX) + raw + b"\0"
    return tuple(
        _Target(AF_UNIX, type_, packed, path, folder or "/") for type_ in (_STREAM, DGRAM, _SEQPACKET)
    )


def port_of(field: str, value: object) -> tuple[int, str]:
    """Read a port and its protocol. Raises: SpecError."""
    match = (
        _PORT.fullmatch(str(value)) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    )
    if match is None or not 1 <= int(match[1]) <= 0xFFFF:
        raise SpecError(field, value, _PORTS)
    return int(match[1]), match[2] or "tcp"


def _ip(host: str, port: int, protocol: str) -> _Target:
    # Names are not looked up: the host's resolver knows other ones than the sandbox's.
    from socket import inet_pton

    kind = _STREAM if protocol == "tcp" else DGRAM
    if ":" in host:
        packed = (
            struct.pack("=H", AF_INET6) + struct.pack("!HI", port, 0) + inet_pton(AF_INET6, host) + bytes(4)
        )
        return _Target(AF_INET6, kind, packed, f"[{host}]:{port}/{protocol}")
    packed = struct.pack("=H", AF_INET) + struct.pack("!H", port) + inet_pton(AF_INET, host) + bytes(8)
    return _Target(AF_INET, kind, packed, f"{host}:{port}/{protocol}")


async def connect(engine: Engine, address: Address, seconds: float | None = None) -> socket:
    """
    Connect to what listens inside.

    Without *seconds* there is one attempt, which whoever listens may keep waiting for `PATIENCE` seconds. Who
    listens sees a peer that is root of the sandbox and has no number there.

    Raises:
        RefusedError: Nobody listens, and there is but one attempt.
        TimeoutExpired: Nobody did so in time.
        KernelError: Another failure. ETIMEDOUT: somebody listens, and takes nobody in.
        StateError: The sandbox has ended.
        SpecError: No such kind of address.
    """
    targets = _targets(address)
    limit = None if seconds is None else quantity.seconds("timeout", seconds)
    deadline = engine.waiter.now() + (PATIENCE if limit is None else limit)
    try:
        async with Session(engine) as session:
            connected = await _connected(engine, session, targets, deadline, patient=limit is not None)
    except KernelError as error:
        if limit is not None and engine.waiter.now() >= deadline:
            raise TimeoutExpired(f"connect({address!r})", limit) from error
        if error.errno == errno.ECONNREFUSED:
            raise RefusedError(error.errno, error.call, error.step) from None
        raise
    connected.setblocking(True)
    return connected


async def _connected(
    engine: Engine, session: Session, targets: tuple[_Target, ...], deadline: float, *, patient: bool
) -> socket:
    while True:
        errors: list[KernelError] = []
        for target in targets:
            # Only the last one waits: otherwise whoever listens at the others is found late.
            milliseconds = _ROUND if patient and target is targets[-1] else 0
            try:
                answer = await session.ask(*_steps(target, milliseconds), deadline=deadline)
                return await _taken_in(engine, answer.fds[0], target, deadline)
            except KernelError as error:
                if error.errno == errno.EAGAIN:
                    # Somebody listens, and has as many waiting as may wait: another way leads nowhere else.
                    errors = [error]
                    break
                if error.errno not in _ANOTHER:
                    raise
                errors.append(error)
        # A socket of another kind than the first says nothing; of what is left the first tells most.
        refusal = next((error for error in errors if error.errno != errno.EPROTOTYPE), errors[0])
        full = refusal.errno == errno.EAGAIN
        if engine.waiter.now() >= deadline:
            raise _kept_waiting(refusal.call, refusal.step) if full else refusal
        if not full and (not patient or refusal.errno not in _LATER):
            raise refusal
        await pause(engine, deadline, _PAUSE)


async def _taken_in(engine: Engine, fd: Fd, target: _Target, deadline: float) -> socket:
    """The socket *fd*, once its connection stands or has failed: it does not wait by itself."""
    from socket import SO_ERROR, SOL_SOCKET

    connected = socket_of(fd)
    try:
        call, why = f"connect({target.text!r})", f"connect to {target.text}"
        if not await engine.waiter.ready({connected.fileno(): WRITE, engine.pidfd: READ}, deadline):
            raise _kept_waiting(call, why)
        if problem := connected.getsockopt(SOL_SOCKET, SO_ERROR):
            raise KernelError(problem, call, why)
        if not await engine.waiter.ready({connected.fileno(): WRITE}, engine.waiter.now()):
            await engine.check_alive()
            raise _kept_waiting(call, why)
    except BaseException:
        connected.close()
        raise
    return connected


def _kept_waiting(call: str, why: str) -> KernelError:
    return KernelError(errno.ETIMEDOUT, call, why, "somebody listens inside, and takes nobody in")


#: What another way to the same address may do better, and what may be better later.
_ANOTHER = (
    errno.ECONNREFUSED,
    errno.ENOENT,
    errno.EPROTOTYPE,
    errno.EAFNOSUPPORT,
    errno.EADDRNOTAVAIL,
    errno.ENETUNREACH,
)
_LATER = (errno.ECONNREFUSED, errno.ENOENT)


def _steps(target: _Target, milliseconds: int) -> Iterator[Step]:
    why = f"connect to {target.text}"
    # Not to be held by who listens: a UNIX socket whose backlog is full keeps a connect waiting.
    kind = target.type | SOCK_CLOEXEC | SOCK_NONBLOCK
    yield Call("socket", (target.family, kind, 0), why, out=SOCKET)
    if target.folder:
        # From its folder on: a path in a socket address has no more than 107 bytes.
        yield from enter(target.folder, why)
    yield Connect(SOCKET, target.address, milliseconds, why, ignore=(errno.EINPROGRESS,))
    yield Report("ready", why, SOCKET)


def enter(folder: str, why: str) -> Iterator[Step]:
    """Stand in a folder inside."""
    yield from opened(folder, why, O_PATH | O_DIRECTORY)
    yield Call("fchdir", (FOLDER,), why)


def opened(path: str, why: str, flags: Named = O_PATH) -> Iterator[Step]:
    """Open a path inside as `FOLDER`; links cannot lead out, wherever the helper stands by now."""
    yield Call("openat", (AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0), why, out=ROOT)
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    how = _HOW.pack(flags | O_CLOEXEC, 0, resolve)
    text = f'{ROOT}, "{path}", {flags}, {resolve}'
    yield Call("openat2", (ROOT, path, how, _HOW.size), why, out=FOLDER, text=text)


async def pause(engine: Engine, deadline: float, seconds: float) -> None:
    """Let some time pass. Raises: StateError: The sandbox has ended."""
    await engine.waiter.ready({engine.pidfd: READ}, min(deadline, engine.waiter.now() + seconds))
    await engine.check_alive()


__all__ = ["Address", "RefusedError", "connect", "enter", "opened", "pause", "port_of"]
