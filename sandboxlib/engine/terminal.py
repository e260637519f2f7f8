"""
Terminals for commands, and our ends of what they read and write.

A command's terminal is one of the sandbox's own devpts. A helper inside opens the
master by a path that is looked up there, and the slave as that master's peer, so no
mount that something inside has put over /dev/pts can make it another (ioctl_tty(2),
TIOCGPTPEER). The caller's own terminal has no part in it.
"""

from __future__ import annotations

import errno
import io
import select
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sandboxlib import quantity
from sandboxlib.engine.session import Session
from sandboxlib.engine.stdio import Stdio
from sandboxlib.kernel.descriptor import Fd
from sandboxlib.plan.flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    O_CLOEXEC,
    O_NOCTTY,
    O_RDWR,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    Named,
)
from sandboxlib.plan.root import user_of
from sandboxlib.plan.steps import Call, Report, Step

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from sandboxlib.engine.sandbox import Engine

R = TypeVar("R", bytes, bytes | None)
TIOCSPTLCK = Named(0x40045431, "TIOCSPTLCK")
TIOCGPTPEER = Named(0x5441, "TIOCGPTPEER")
_IUTF8 = 0o40000
_MASTER, _SLAVE = Named(20, "<master>"), Named(21, "<slave>")
_HOW = struct.Struct("=3Q")
_CHUNK = 1 << 16


class Size(NamedTuple):
    """A terminal's size in characters; what an old video terminal had where nothing is said."""

    rows: int = 24
    columns: int = 80

    @classmethod
    def of(cls, rows: object, columns: object) -> Size:
        """Check both. Raises: SpecError: Not between 1 and 65535, as the kernel keeps them in 16 bits."""
        return cls(
            quantity.count("rows", rows, maximum=0xFFFF), quantity.count("columns", columns, maximum=0xFFFF)
        )


class Pair(NamedTuple):
    """Both ends of a pseudo-terminal."""

    master: Fd
    slave: Fd


async def open_pair(engine: Engine, size: Size) -> Pair:
    """
    Make a pseudo-terminal inside, with *size*, for UTF-8.

    Raises:
        KernelError: ENOSPC: the sandbox has as many as it may; ENOENT: it has no /dev/pts.
        StateError: The sandbox has ended.

    Kernel: pts(4); ioctl_tty(2), TIOCGPTPEER, Linux 4.13.
    """
    async with Session(engine) as session:
        answer = await session.ask(*_steps(engine))
    pair = Pair(*answer.fds)
    resize(pair.master.fileno(), size)
    _expect_utf8(pair.master.fileno())
    return pair


async def on_terminal(engine: Engine, size: Size) -> Stdio:
    """Make a pseudo-terminal inside, and have a command's three streams on it. Raises: as `open_pair`."""
    master, slave = await open_pair(engine, size)
    return Stdio((slave.fileno(),) * 3, (Fd(), Fd(), Fd()), (slave,), foreign=False, terminal=master)


def _steps(engine: Engine) -> tuple[Step, ...]:
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
    flags = O_RDWR | O_NOCTTY | O_CLOEXEC
    path = "dev/pts/ptmx"
    how = _HOW.pack(flags, 0, resolve)
    text = f'AT_FDCWD, "{path}", {flags}, {resolve}'
    user, group = user_of(engine.spec)
    return (
        Call("openat2", (AT_FDCWD, path, how, _HOW.size), "a terminal of its own", out=_MASTER, text=text),
        Call("ioctl", (_MASTER, TIOCSPTLCK, struct.pack("=i", 0)), "its other end can be opened"),
        Call("ioctl", (_MASTER, TIOCGPTPEER, flags), "the other end, by no path", out=_SLAVE),
        # Otherwise a command of another user than root could not open its terminal by name.
        Call("fchownat", (_SLAVE, "", user, group, AT_EMPTY_PATH), "it belongs to the command's user"),
        Report("ready", "our end", _MASTER),
        Report("ready", "the command's end", _SLAVE),
    )


def resize(master: int, size: Size) -> None:
    """Set the size; whoever is in the foreground hears of it by SIGWINCH. Kernel: TIOCSWINSZ."""
    import termios

    termios.tcsetwinsize(master, size)


def _expect_utf8(master: int) -> None:
    """Let the kernel's line editing erase whole characters: the sandbox's LANG is a UTF-8 one."""
    import termios

    modes = termios.tcgetattr(master)
    modes[0] |= _IUTF8
    termios.tcsetattr(master, termios.TCSANOW, modes)


class Stream(io.FileIO):
    """Our end of a command's pipe, taken from *fd*: what was looked at is still to be read."""

    def __init__(self, fd: Fd, name: str, mode: str = "rb") -> None:
        super().__init__(name, mode, opener=fd.opener)
        self._ahead = bytearray()
        self._sealed = False

    def look(self) -> bytes:
        """Read what is there and keep it for the next reader; waits for something, ``b""`` at the end."""
        data = super().read(_CHUNK) or b""
        self._ahead += data
        return data

    def receive(self, size: int) -> bytes | None:
        """Take at most *size* bytes of what is there; None where there is nothing just now."""
        if self._ahead:
            return self.read(size)
        return super().read(size)

    def seen(self, reader: io.BufferedReader | None = None) -> bytes:
        """What is kept for the next reader, by this file and by *reader* on top of it; reads nothing."""
        self._sealed = True
        try:
            return (reader.peek() if reader is not None else b"") + self._ahead
        finally:
            self._sealed = False

    def read_ahead(self) -> bytes:
        """Take what is kept for the next reader."""
        data = bytes(self._ahead)
        self._ahead.clear()
        return data

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        """Read into *buffer*; 0 at the end."""
        if self._sealed:
            # None is how a raw file says that it has nothing just now.
            return None
        if not self._ahead:
            return super().readinto(buffer)
        view = memoryview(buffer).cast("B")
        data = self._ahead[: len(view)]
        del self._ahead[: len(view)]
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most *size* bytes, as soon as there are any; all up to the end if it is negative."""
        if size is None or size < 0:
            return self.readall()
        if not self._ahead:
            return super().read(size) or b""
        data = bytes(self._ahead[:size])
        del self._ahead[:size]
        return data

    def readall(self) -> bytes:
        """Read up to the end."""
        return self.read_ahead() + (super().readall() or b"")


class Terminal(Stream):
    r"""
    Our end of a command's pseudo-terminal: a raw binary file, without buffer.

    What is written is what a keyboard would send; what is read is what a screen would
    show, with ``\r\n`` as line ends, and with what was typed unless the command has
    switched the echo off. Closing it hangs up: the command gets SIGHUP.
    """

    def __init__(self, fd: Fd) -> None:
        super().__init__(fd, "<terminal>", "r+b")

    def look(self) -> bytes:
        """Read what is there and keep it for the next reader."""
        return self._until_closed(super().look)

    def receive(self, size: int) -> bytes | None:
        """Take what is there; ``b""`` when nobody has the other end open any more."""
        return self._until_closed(super().receive, size)

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        """Read into *buffer*; 0 when nobody has the other end open any more."""
        try:
            return super().readinto(buffer)
        except OSError as error:
            if error.errno == errno.EIO:
                return 0
            raise

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most *size* bytes; ``b""`` when nobody has the other end open any more."""
        if size is None or size < 0:
            return self.readall()
        return self._until_closed(super().read, size)

    def readall(self) -> bytes:
        """Read until nobody has the other end open any more."""
        return b"".join(iter(lambda: self.read(_CHUNK), b""))

    def _until_closed(self, read: Callable[..., R], *args: int) -> R | bytes:
        try:
            return read(*args)
        except OSError as error:
            # What Linux answers when the other end is closed: a terminal has no end of file.
            if error.errno == errno.EIO:
                return b""
            raise

    def write(self, data: ReadableBuffer, /) -> int:
        """
        Write all of *data*; waits while the command does not read.

        Raises:
            BrokenPipeError: Nobody has the other end open any more.
        """
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            # The kernel would take it, for whoever opens the other end next: mostly nobody.
            if self._is_abandoned():
                raise BrokenPipeError(errno.EPIPE, "nobody has the command's end of the terminal open")
            done += super().write(view[done:]) or 0
        return done

    def _is_abandoned(self) -> bool:
        poll = select.poll()
        poll.register(self, 0)
        return bool(poll.poll(0))


__all__ = ["Pair", "Size", "Stream", "Terminal", "on_terminal", "open_pair", "resize"]
