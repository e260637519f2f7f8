"""Waiting until something inside is ready: a port, a path, a text, a command."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from io import BufferedReader
from math import inf
from typing import TYPE_CHECKING, Any

from sandboxlib import quantity
from sandboxlib.engine.connect import AF_INET, AF_INET6, DGRAM, SOCKET, enter, opened, pause, port_of
from sandboxlib.engine.session import Session
from sandboxlib.engine.terminal import Stream
from sandboxlib.engine.waiter import READ
from sandboxlib.errors import KernelError, SpecError, StateError, TimeoutExpired
from sandboxlib.kernel.descriptor import Fd, socket_of
from sandboxlib.plan.flags import O_CLOEXEC, SOCK_CLOEXEC, Named
from sandboxlib.plan.steps import Call, Report

if TYPE_CHECKING:
    from socket import socket

    from sandboxlib.engine.process import Process
    from sandboxlib.engine.sandbox import Engine

#: Seconds between two looks, at first and at most, where the kernel tells nobody of a change.
_FIRST_PAUSE, _LAST_PAUSE = 0.001, 0.02
#: Seconds until a path is looked at again without a word from inotify: some file systems have none.
_LOOK = 0.2
#: Seconds between two runs of a command, at first and at most.
_FIRST_REST, _LAST_REST = 0.01, 0.5
#: Bytes that are kept of an output in which something is looked for.
_MOST = 16 << 20

# sys/socket.h, linux/netlink.h, linux/in.h
_AF_NETLINK = 16
_SOCK_DIAG = 4
_PROTOCOLS = {"tcp": 6, "udp": 17}
#: The states of a socket that waits for others: TCP_LISTEN, and for UDP, TCP_CLOSE.
_WAITING = {"tcp": 10, "udp": 7}

# linux/inotify.h
_IN_CREATED = Named(0x100 | 0x80, "IN_CREATE|IN_MOVED_TO")
_IN_GONE = Named(0x400 | 0x800, "IN_DELETE_SELF|IN_MOVE_SELF")


async def wait_for(
    engine: Engine,
    *,
    port: object = None,
    path: object = None,
    output: tuple[Process, Sequence[Any], object] | None = None,
    command: Any = None,
    seconds: float | None = None,
) -> None:
    """
    Wait until something inside is ready.

    Exactly one is asked for, as in `Sandbox.wait_for`; *output* is a process, our files for
    what it writes, and the text.

    Raises:
        TimeoutExpired: It was not ready in time.
        StateError: What is waited for can no longer come.
        SpecError: Not exactly one of them, or one that makes no sense.
    """
    given = {"port": port, "path": path, "output": output, "command": command}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        raise SpecError("wait_for", sorted(asked), "exactly one of port=, path=, output= and command=")
    limit = None if seconds is None else quantity.seconds("timeout", seconds)
    deadline = inf if limit is None else engine.waiter.now() + limit
    if port is not None:
        number, protocol = port_of("port", port)
        text, done = f"port={port!r}", await _listens(engine, number, protocol, deadline)
    elif path is not None:
        where = quantity.absolute("path", path)
        text, done = f"path={where!r}", await _exists(engine, where, deadline)
    elif output is not None:
        process, files, wanted = output
        text, done = f"output={wanted!r}", await _written(engine, process, files, _text(wanted), deadline)
    else:
        text, done = f"command={command!r}", await _succeeds(engine, command, deadline)
    if not done:
        assert limit is not None
        raise TimeoutExpired(f"wait_for({text})", limit)


async def _listens(engine: Engine, port: int, protocol: str, deadline: float) -> bool:
    """
    Wait for a listening socket, by asking the kernel for those that there are.

    Not by connecting: that would be taken for a client, which some servers have only one of.

    Kernel: sock_diag(7).
    """
    async with Session(engine) as session:
        why = "which sockets listen"
        made = Call("socket", (_AF_NETLINK, DGRAM | SOCK_CLOEXEC, _SOCK_DIAG), why, out=SOCKET)
        answer = await session.ask(made, Report("ready", why, SOCKET), deadline=deadline)
    rest = _FIRST_PAUSE
    with socket_of(answer.fds[0]) as diag:
        while True:
            if port in _listening(diag, engine.pid, protocol):
                return True
            if engine.waiter.now() >= deadline:
                return False
            await pause(engine, deadline, rest)
            rest = min(rest * 1.5, _LAST_PAUSE)


def _listening(diag: socket, pid: int, protocol: str) -> set[int]:
    """The ports that somebody waits at, by IPv4 or IPv6."""
    found: set[int] = set()
    for family in (AF_INET, AF_INET6):
        # struct inet_diag_req_v2: a mask of states, and an address of zeros for all.
        request = struct.pack("=BBBBI48x", family, _PROTOCOLS[protocol], 0, 0, 1 << _WAITING[protocol])
        # SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP
        diag.send(struct.pack("=IHHII", 16 + len(request), 20, 0x301, 1, 0) + request)
        ports = _answers(diag)
        found |= _from_proc(pid, family, protocol) if ports is None else ports
    return found


def _answers(diag: socket) -> set[int] | None:
    """Local ports of the sockets of one answer; None where the kernel has no inet_diag."""
    ports: set[int] = set()
    while True:
        data = diag.recv(1 << 16)
        at = 0
        while at < len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind == 3:  # NLMSG_DONE
                return ports
            if kind == 2:  # NLMSG_ERROR
                (error,) = struct.unpack_from("=i", data, at + 16)
                if -error == errno.ENOENT:
                    return None
                raise KernelError(-error, f"recvmsg({diag.fileno()})", "which sockets listen")
            # struct inet_diag_msg: four bytes, then the source port in network order.
            ports.add(struct.unpack_from("!H", data, at + 20)[0])
            at += (length + 3) & ~3


def _from_proc(pid: int, family: int, protocol: str) -> set[int]:
    """The same from /proc: slow on machines with large tables of connections."""
    found = set()
    with open(f"/proc/{pid}/net/{protocol}{'6' if family == AF_INET6 else ''}", encoding="ascii") as file:
        for line in file:
            fields = line.split()
            if fields[3] == f"{_WAITING[protocol]:02X}":
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


async def _exists(engine: Engine, path: str, deadline: float) -> bool:
    """Wait for a path, told by inotify of what is made in the deepest of its folders that is there."""
    waiter = engine.waiter
    async with Session(engine) as session:
        while True:
            with await _watch(session, path) as watch:
                # After the watch is set: what is made from here on is told.
                if await _is_there(session, path):
                    return True
                now = waiter.now()
                if now >= deadline:
                    return False
                wanted = {fd: READ for fd in (watch, engine.pidfd) if fd >= 0}
                patience = _LOOK if watch >= 0 else _LAST_PAUSE
                await waiter.ready(wanted, min(deadline, now + patience))
                await engine.check_alive()


async def _is_there(session: Session, path: str) -> bool:
    try:
        await session.ask(*opened(path, "is it there?"))
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    return True


async def _watch(session: Session, path: str) -> Fd:
    """An inotify descriptor, made inside, that watches the deepest folder; none if there are too many."""
    why = "hear of what is made"
    folder = path
    while folder != "/":
        folder = os.path.dirname(folder)
        try:
            answer = await session.ask(
                Call("inotify_init1", (O_CLOEXEC,), why, out=SOCKET),
                *enter(folder, why),
                Call("inotify_add_watch", (SOCKET, ".", _IN_CREATED | _IN_GONE), why),
                Report("ready", why, SOCKET),
            )
        except KernelError as error:
            if error.errno in (errno.EMFILE, errno.ENOSPC):
                return Fd()
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
        else:
            return answer.fds[0]
    return Fd()


def _text(value: object) -> bytes:
    wanted = value.encode() if isinstance(value, str) else value
    if not isinstance(wanted, bytes) or not wanted:
        raise SpecError("output", value, "a process of this sandbox and the text to wait for, not empty")
    return wanted


async def _written(
    engine: Engine, process: Process, files: Sequence[Any], wanted: bytes, deadline: float
) -> bool:
    """Look for *wanted* in what a process writes, and leave it all to be read."""
    if process.engine is not engine:
        raise SpecError("output", process.args, "a process of this sandbox")
    streams = {}
    for file in files:
        raw = file.raw if isinstance(file, BufferedReader) else file
        if not isinstance(raw, Stream):
            raise SpecError("output", process.args, "a process whose output is bytes, without text=True")
        if not raw.closed:
            streams[raw.fileno()] = (raw, bytearray(raw.seen(file if raw is not file else None)))
    if not streams:
        raise SpecError("output", process.args, "a process with stdout=PIPE, stderr=PIPE or tty=True")
    if any(wanted in seen for _, seen in streams.values()):
        return True
    while streams:
        waiting = dict.fromkeys((*streams, process.pidfd), READ)
        ready = await engine.waiter.ready(waiting, deadline)
        if not ready:
            return False
        if not ready & streams.keys():
            break
        for fd in ready & streams.keys():
            raw, seen = streams[fd]
            if not (data := raw.look()):
                del streams[fd]
            begin = max(0, len(seen) - len(wanted))
            seen += data
            if seen.find(wanted, begin) >= 0:
                return True
            if len(seen) > _MOST:
                raise StateError(f"the process has written {len(seen)} bytes without {wanted!r}")
    raise StateError(f"the process has ended, or closed its output, without {wanted!r}")


async def _succeeds(engine: Engine, command: Any, deadline: float) -> bool:
    """Run a command again and again until it exits with 0."""
    from sandboxlib.engine import verbs
    from sandboxlib.engine.request import DEVNULL

    rest = _FIRST_REST
    while True:
        left = deadline - engine.waiter.now()
        if left <= 0:
            return False
        try:
            done = await verbs.run(
                engine, command, stdout=DEVNULL, stderr=DEVNULL, timeout=None if left == inf else left
            )
        except TimeoutExpired:
            return False
        if done.returncode == 0:
            return True
        await pause(engine, deadline, rest)
        rest = min(rest * 2, _LAST_REST)


__all__ = ["wait_for"]
