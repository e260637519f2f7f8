"""Waiting until something inside is ready: a port, a path, a text, a command."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence
from functools import partial
from io import BufferedReader
from math import inf
from typing import TYPE_CHECKING, Any

from sandboxlib import quantity
from sandboxlib.engine.connect import AF_INET, AF_INET6, DGRAM, SOCKET, enter, opened, pause, port_of
from sandboxlib.engine.patience import patiently
from sandboxlib.engine.session import Session
from sandboxlib.engine.terminal import Stream
from sandboxlib.engine.waiter import READ
from sandboxlib.errors import KernelError, SpecError, StateError, TimeoutExpired
from sandboxlib.plan.flags import O_CLOEXEC, SOCK_CLOEXEC, Named
from sandboxlib.plan.steps import Call

if TYPE_CHECKING:
    from sandboxlib.engine.process import Process
    from sandboxlib.engine.sandbox import Engine

#: Seconds between two looks, at first and at most, where the kernel tells nobody of a change.
_FIRST_PAUSE, _LAST_PAUSE = 0.001, 0.02
#: Seconds until a path is looked at again without a word from inotify: some file systems have none.
_LOOK = 0.2
#: Bytes of one answer of the kernel's on sockets: the first says whether there is one.
_ANSWER = 8192
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
    (name, value), *_ = asked.items()
    shown = output[2] if output is not None else value
    async with patiently(engine.waiter, f"wait_for({name}={shown!r})", seconds) as deadline:
        if port is not None:
            done = await _listens(engine, *port_of("port", port), deadline)
        elif path is not None:
            done = await _exists(engine, quantity.absolute("path", path), deadline)
        elif output is not None:
            process, files, wanted = output
            done = await _written(engine, process, files, _text(wanted), deadline)
        else:
            done = await _succeeds(engine, command, deadline)
        if not done:
            raise KernelError(errno.ETIMEDOUT, f"wait_for({name}={shown!r})")


async def _listens(engine: Engine, port: int, protocol: str, deadline: float) -> bool:
    """
    Wait for a listening socket, by asking the kernel for those that there are.

    Not by connecting: that would be taken for a client, which some servers have only one of.

    Kernel: sock_diag(7).
    """
    rest = _FIRST_PAUSE
    async with Session(engine) as session:
        while True:
            for family in (AF_INET, AF_INET6):
                found = await _asked(session, family, port, protocol, deadline)
                if found is None:
                    # This kernel has no inet_diag.
                    path = f"/proc/{engine.pid}/net/{protocol}{'6' if family == AF_INET6 else ''}"
                    look = partial(_in_table, path, port, _WAITING[protocol], engine.waiter.check)
                    found = await engine.waiter.work(look)
                if found:
                    return True
            if engine.waiter.now() >= deadline:
                return False
            await pause(engine, deadline, rest)
            rest = min(rest * 1.5, _LAST_PAUSE)


async def _asked(session: Session, family: int, port: int, protocol: str, deadline: float) -> bool | None:
    """Is there a socket that waits at *port*? None where the kernel cannot be asked."""
    why = "which sockets listen"
    # Of all that there may be, those at this port: struct inet_diag_bc_op, INET_DIAG_BC_S_GE and _S_LE, each
    # with what to skip if it holds and if not, and the port.
    condition = struct.pack("=BBHBBHBBHBBH", 2, 8, 20, 0, 0, port, 3, 8, 12, 0, 0, port)
    # struct inet_diag_req_v2: a mask of states, and an address of zeros for all. INET_DIAG_REQ_BYTECODE.
    request = struct.pack("=BBBBI48x", family, _PROTOCOLS[protocol], 0, 0, 1 << _WAITING[protocol])
    request += struct.pack("=HH", 4 + len(condition), 1) + condition
    # SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP
    request = struct.pack("=IHHII", 16 + len(request), 20, 0x301, 1, 0) + request
    answer = await session.ask(
        # A new one each time, so that no answer is left from before.
        Call("socket", (_AF_NETLINK, DGRAM | SOCK_CLOEXEC, _SOCK_DIAG), why, out=SOCKET),
        Call("write", (SOCKET, request, len(request)), why),
        Call("read", (SOCKET, bytes(_ANSWER), _ANSWER), why, tell=1),
        deadline=deadline,
    )
    data = answer.told[0].data
    _, kind = struct.unpack_from("=IH", data)
    if kind == 2:  # NLMSG_ERROR
        (error,) = struct.unpack_from("=i", data, 16)
        if -error != errno.ENOENT:
            raise KernelError(-error, f"read({SOCKET})", why)
        return None
    return bool(kind != 3)  # NLMSG_DONE


def _in_table(path: str, port: int, state: int, cancelled: Callable[[], None]) -> bool:
    """Look for the same in /proc: slow where there are many connections."""
    with open(path, encoding="ascii") as file:
        for number, line in enumerate(file):
            fields = line.split()
            if fields[3] == f"{state:02X}" and int(fields[1].rpartition(":")[2], 16) == port:
                return True
            if number % 1000 == 0:
                cancelled()
    return False


async def _exists(engine: Engine, path: str, deadline: float) -> bool:
    """Wait for a path, told by inotify of what is made in the deepest of its folders that is there."""
    waiter = engine.waiter
    async with Session(engine) as session:
        while True:
            watched = await _watch(session, path, deadline)
            # After the watch is set: what is made from here on is told.
            if await _is_there(session, path, deadline):
                return True
            left = deadline - waiter.now()
            if left <= 0:
                return False
            if watched:
                # It is the helper who hears of it. struct pollfd, struct timespec.
                time = struct.pack("=qq", *divmod(int(min(left, _LOOK) * 1e9), 10**9))
                what = struct.pack("=ihh", SOCKET, READ, 0)
                call = Call("ppoll", (what, 1, time, 0, 8), "hear of what is made")
                await session.ask(call)
            else:
                await pause(engine, deadline, _LAST_PAUSE)
            await engine.check_alive()


async def _is_there(session: Session, path: str, deadline: float) -> bool:
    try:
        await session.ask(*opened(path, "is it there?"), deadline=deadline)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    return True


async def _watch(session: Session, path: str, deadline: float) -> bool:
    """Watch the deepest folder of *path* that is there, by inotify(7); False with too many watches."""
    why = "hear of what is made"
    folder = path
    while folder != "/":
        folder = os.path.dirname(folder)
        try:
            await session.ask(
                Call("inotify_init1", (O_CLOEXEC,), why, out=SOCKET),
                *enter(folder, why),
                Call("inotify_add_watch", (SOCKET, ".", _IN_CREATED | _IN_GONE), why),
                deadline=deadline,
            )
        except KernelError as error:
            if error.errno in (errno.EMFILE, errno.ENOSPC):
                return False
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
        else:
            return True
    return False


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
    from sandboxlib.engine.stdio import DEVNULL

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
