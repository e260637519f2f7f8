"""
The caller's terminal and a command's, joined: what is typed goes in, what is shown comes out.

The caller's terminal is made raw and is as before afterwards, however it ends. There
is no signal handler: its size is looked at with every wake-up, ten times a second,
which works in every thread and takes nothing from a program with a handler of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sandboxlib.engine.terminal import Size, resize
from sandboxlib.engine.waiter import READ, WRITE, Waiter
from sandboxlib.errors import SpecError, StateError

if TYPE_CHECKING:
    from sandboxlib.engine.process import Process
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.engine.terminal import Terminal

#: Ctrl-P Ctrl-Q, as users of Docker know it.
DETACH_KEYS = b"\x10\x11"
_STDIN, _STDOUT = 0, 1
_CHUNK = 1 << 14
#: Seconds between two looks at the window.
_TICK = 0.1


class Keys:
    """
    Takes the sequence that detaches out of what is typed.

    Attributes:
        seen: The sequence was typed; what came after it is dropped.
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""
        self.seen = False

    def feed(self, data: bytes) -> bytes:
        """What goes to the command; the beginning of a sequence is held back until it is clear."""
        if not self._keys:
            return data
        passed = bytearray()
        for byte in data:
            self._held += bytes((byte,))
            if self._held == self._keys:
                self.seen = True
                break
            while not self._keys.startswith(self._held):
                passed.append(self._held[0])
                self._held = self._held[1:]
        return bytes(passed)


def check_keys(keys: object) -> bytes:
    """Raises: SpecError: They are not bytes."""
    if not isinstance(keys, bytes):
        raise SpecError("detach_keys", keys, r"bytes such as b'\x10\x11', or b'' for none")
    return keys


def check_again(**options: object) -> None:
    """Raises: SpecError: An option that only a new command can have."""
    for name, value in options.items():
        if value is not None:
            raise SpecError(name, value, "left out with a process, which runs already")


async def start(engine: Engine, args: Any, *, env: Any, cwd: Any, limits: Any, keys: object) -> Process:
    """Start a command on a terminal of its own, and give it the caller's until it exits or is detached."""
    from sandboxlib.engine import verbs
    from sandboxlib.engine.request import variables

    keys = check_keys(keys)
    size = _size()
    extra = variables(env)
    if "TERM" in os.environ:
        extra = {"TERM": os.environ["TERM"], **extra}
    process = await verbs.popen(
        engine, args, lambda process: process,
        env=extra, cwd=cwd, limits=limits, tty=True, rows=size.rows, columns=size.columns,
    )  # fmt: skip
    try:
        await _join(process, process.terminal.fileno(), keys)
    except BaseException:
        await process.abandon()
        raise
    return process


async def again(process: Process, terminal: Terminal | None, keys: object) -> None:
    """Give the caller's terminal to a process that runs on a terminal already."""
    keys = check_keys(keys)
    if terminal is None:
        raise SpecError("args", process.args, "a command, or a process that was started with tty=True")
    if terminal.closed:
        raise StateError("the process's terminal is closed")
    size = _size()
    if seen := terminal.read_ahead():
        await _show(process.engine.waiter, seen)
    # A change of size is what makes a full-screen program draw anew.
    resize(terminal.fileno(), Size(size.rows, size.columns - 1 or 2))
    await _join(process, terminal.fileno(), keys)


def _size() -> Size:
    """The caller's window. Raises: SpecError: There is none."""
    import termios

    try:
        rows, columns = termios.tcgetwinsize(_STDIN)
    except termios.error:
        raise SpecError("stdin", _STDIN, "a terminal; where there is none, use popen(tty=True)") from None
    # A serial line says 0 for what it does not know.
    return Size(rows or 24, columns or 80)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    import termios
    import tty

    before = termios.tcgetattr(_STDIN)
    try:
        # At once, not when all output is out: that may never be.
        tty.setraw(_STDIN, termios.TCSANOW)
        yield
    finally:
        try:
            termios.tcsetattr(_STDIN, termios.TCSANOW, before)
        except termios.error as error:
            # The terminal itself has gone, and its modes with it.
            if error.args[0] != errno.EIO:
                raise


@contextlib.contextmanager
def _without_waiting(fd: int) -> Iterator[None]:
    before = os.get_blocking(fd)
    os.set_blocking(fd, False)
    try:
        yield
    finally:
        os.set_blocking(fd, before)


async def _join(process: Process, master: int, keys: bytes) -> None:
    """Pass everything on until the command ends or *keys* are typed."""
    with _raw(), _without_waiting(master):
        relay = _Relay(process, master, keys)
        await relay.run()
    if process.poll() is None and not relay.detached:
        await process.ended()


class _Relay:
    """
    One time of being attached.

    Attributes:
        detached: It ended because the keys were typed, or because the caller's terminal is gone.
    """

    def __init__(self, process: Process, master: int, keys: bytes) -> None:
        self._process = process
        self._master = master
        self._keys = Keys(keys)
        self._typed = b""
        self._size: Size | None = None
        self.detached = False

    async def run(self) -> None:
        process, waiter = self._process, self._process.engine.waiter
        open_until_tick = True
        while not self.detached:
            self._follow_window()
            wanted = {process.pidfd: READ, _STDIN: READ}
            if open_until_tick:
                wanted[self._master] = READ | WRITE if self._typed else READ
            ready = await waiter.ready(wanted, waiter.now() + _TICK)
            if _STDIN in ready:
                self._read_keys()
            if self._master in ready or not ready:
                self._type()
                # Nobody has the other end open: that would wake us without end. But somebody
                # may open it again, as /dev/tty, so it is looked at with each tick.
                open_until_tick = await self._copy(waiter)
            if process.pidfd in ready:
                # When the leader of its session ends the kernel hangs up for all others.
                while await self._copy(waiter, until_empty=True):
                    continue
                return

    def _follow_window(self) -> None:
        try:
            size = _size()
        except SpecError:
            # It has gone; the read that follows says so.
            return
        if size != self._size:
            resize(self._master, size)
            self._size = size

    def _read_keys(self) -> None:
        try:
            data = os.read(_STDIN, _CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        self._typed += self._keys.feed(data)
        self.detached = self._keys.seen or not data
        self._type()

    def _type(self) -> None:
        try:
            while self._typed:
                self._typed = self._typed[os.write(self._master, self._typed) :]
        except BlockingIOError:
            # The rest goes when there is room again.
            return

    async def _copy(self, waiter: Waiter, *, until_empty: bool = False) -> bool:
        """Show what there is; False when nobody has the other end open, or nothing is left."""
        try:
            data = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return not until_empty
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        await _show(waiter, data)
        return bool(data)


async def _show(waiter: Waiter, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(_STDOUT, view) :]
        except BlockingIOError:
            # Somebody has set the caller's terminal so, for everyone who has it.
            await waiter.ready({_STDOUT: WRITE})
        except OSError as error:
            # The caller's terminal is gone; reading from it says so, too.
            if error.errno != errno.EIO:
                raise
            return


__all__ = ["DETACH_KEYS", "Keys", "again", "start"]
