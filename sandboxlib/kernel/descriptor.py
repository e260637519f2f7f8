"""
Descriptors that cannot be lost.

An exception of a signal handler's may come between any two steps of a program: after `os.open` has
returned and before its result is stored, too, and then nobody knows the number. So a descriptor is
entered by the very call that makes it into memory that an `Fd` owns already, and that is freed by C,
where no handler runs. In the rest of the library nothing else makes one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from sandboxlib._native import ffi, lib
from sandboxlib.errors import KernelError

if TYPE_CHECKING:
    from socket import socket

_EINTR = -errno.EINTR
_F_DUPFD_CLOEXEC = 1030
AT_FDCWD = -100
#: Pipes whose descriptors are enough for a helper and what it takes to begin one, or for a book.
_SPARE = 6

T = TypeVar("T")
Path = str | bytes | os.PathLike[str]


class _Exit:
    """
    The end of a `with` block in C.

    At the begin of a function in Python an exception of a handler's can come, and the block's would be over
    with nothing closed.
    """

    def __get__(self, fd: Fd | None, _: object) -> Any:
        return self if fd is None else fd._owned.__exit__  # noqa: SLF001 - of this module

    def __call__(self, fd: Fd, *_: object) -> None:
        # As `contextlib.ExitStack` asks for it.
        fd.close()


class Fd:
    """
    Owns one descriptor, or none; close-on-exec. A context manager that gives the number and closes it.

    Its number is -1 where it has none, and after it was closed.
    """

    __slots__ = ("__weakref__", "_at", "_owned")

    def __init__(self) -> None:
        self._at = ffi.new("int *", -1)
        self._owned = ffi.gc(self._at, lib.sbx_close)

    def fileno(self) -> int:
        """Its number, borrowed."""
        return self._at[0]  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return self._at[0] >= 0  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close it. Idempotent."""
        lib.sbx_close(self._at)

    def take(self) -> int:
        """Hand it over: from here on the number is the caller's to close, and this has none."""
        # No call in here: nothing can come in between.
        number = self._at[0]
        self._at[0] = -1
        return number  # type: ignore[no-any-return]

    def opener(self, _path: str, _flags: int) -> int:
        """
        Hand it over to a file, as its *opener*.

        Example:
            >>> with open("<null>", "wb", opener=openat("/dev/null", os.O_WRONLY).opener) as file:
            ...     file.write(b"gone")
            4
        """
        number = self._at[0]
        self._at[0] = -1
        return number  # type: ignore[no-any-return]

    @property
    def cell(self) -> Any:
        """For `sandboxlib.kernel` alone: where C enters the number."""
        return self._at

    def __enter__(self) -> int:
        return self._at[0]  # type: ignore[no-any-return]

    if TYPE_CHECKING:

        def __exit__(self, *_: object) -> None: ...

    else:
        __exit__ = _Exit()

    def __repr__(self) -> str:
        return f"<Fd {self.fileno()}>"


# What forked children are not to have: they have parts of their own, or none.
_private: weakref.WeakSet[Any] = weakref.WeakSet()


def private(thing: T) -> T:
    """
    Have *thing*, which is an `Fd` or has a method ``close``, closed in each child that is forked.

    What a lock belongs to, or a port, is otherwise kept by a child for as long as it lives.
    """
    _private.add(thing)
    return thing


def _close_private() -> None:
    for thing in list(_private):
        thing.close()


os.register_at_fork(after_in_child=_close_private)


def openat(
    path: Path, flags: int, mode: int = 0o600, *, at: int = AT_FDCWD, why: str = "", into: Fd | None = None
) -> Fd:
    """
    Open *path*, below the descriptor *at* if it is relative.

    Args:
        path: What to open.
        flags: Of open(2); O_CLOEXEC goes without saying.
        mode: Of a file that is made.
        at: The folder.
        why: What it is for, for errors.
        into: What is to own it, where somebody knows that already.

    Raises:
        KernelError: It cannot be opened.

    Kernel: openat(2).
    """
    fd = Fd() if into is None else into
    raw = os.fsencode(path)
    while (rv := lib.sbx_openat(fd.cell, at, raw, flags, mode)) == _EINTR:
        continue
    if rv < 0:
        raise KernelError(-rv, f'openat("{os.fsdecode(path)}")', why)
    return fd


def pidfd_open(pid: int, why: str = "") -> Fd:
    """
    A descriptor of the process *pid*. Raises: KernelError: ESRCH: it has ended.

    Kernel: pidfd_open(2), Linux 5.3.
    """
    return _made(int(lib.SYS_pidfd_open), pid, 0, call=f"pidfd_open({pid})", why=why)


def eventfd(flags: int = 0) -> Fd:
    """
    Make a counter that can be waited for.

    Kernel: eventfd(2).
    """
    return _made(int(lib.SYS_eventfd2), 0, flags | os.EFD_CLOEXEC, call="eventfd(0)")


def dup(fd: int) -> Fd:
    """One more descriptor of what *fd*, borrowed, is. Kernel: fcntl(2), F_DUPFD_CLOEXEC."""
    return _made(int(lib.SYS_fcntl), fd, _F_DUPFD_CLOEXEC, 0, call=f"fcntl({fd}, F_DUPFD_CLOEXEC)")


def pipe() -> tuple[Fd, Fd]:
    """The two ends of a pipe: what is read from, and what is written to. Kernel: pipe2(2)."""
    read, write = Fd(), Fd()
    rv = lib.sbx_pipe(read.cell, write.cell)
    if rv < 0:
        raise KernelError(-rv, "pipe2(O_CLOEXEC)")
    return read, write


def go_on(fd: Fd) -> None:
    """
    Let whoever reads from the pipe whose other end is *fd* go on.

    Raises:
        KernelError: EPIPE: there is nobody any more.
    """
    try:
        os.write(fd.fileno(), b"!")
    except BrokenPipeError:
        raise KernelError(errno.EPIPE, f"write({fd})", hint="whoever was to read it has ended") from None


@contextlib.contextmanager
def spare() -> Iterator[None]:
    """
    Within it, as many descriptors are kept back as it takes to take back what is made.

    Where the program has too few, nothing has been made.

    Raises:
        KernelError: EMFILE.
    """
    kept = [fd for _ in range(_SPARE) for fd in pipe()]
    try:
        yield
    finally:
        for fd in kept:
            fd.close()


def _made(nr: int, *args: int, call: str, why: str = "") -> Fd:
    fd = Fd()
    while (rv := lib.sbx_syscall_fd(fd.cell, nr, *args, *(0,) * (6 - len(args)))) == _EINTR:
        continue
    if rv < 0:
        raise KernelError(-rv, call, why)
    return fd


class _Handover:
    """Stands for an `Fd`'s number, and takes it when it is asked for."""

    def __init__(self, fd: Fd) -> None:
        self._fd = fd

    def __index__(self) -> int:
        return self._fd.take()


def socket_of(fd: Fd) -> socket:
    """A socket that owns what *fd* had. Raises: OSError: It is none."""
    from socket import socket

    return socket(fileno=_Handover(fd))  # type: ignore[arg-type]


__all__ = [
    "AT_FDCWD",
    "Fd",
    "dup",
    "eventfd",
    "go_on",
    "openat",
    "pidfd_open",
    "pipe",
    "private",
    "socket_of",
    "spare",
]
