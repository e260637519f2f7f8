"""
The host's side of a copy: files that are opened, read and written by the program itself.

What comes from inside may lie there too, so each folder is opened anew from the top of its tree, without a
link on the way.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from sandboxlib.engine.files import (
    CHUNK,
)
from sandboxlib.engine.walk import shown
from sandboxlib.errors import KernelError, SpecError, ViolationError
from sandboxlib.kernel.descriptor import Fd
from sandboxlib.kernel.syscall import failed, syscall
from sandboxlib.plan.flags import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
)

_HOW = struct.Struct("=3Q")
_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY
OPEN_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY


def host_path(field: str, path: object) -> bytes:
    """Read a path of the host. Raises: SpecError."""
    try:
        found = os.fsencode(path)  # type: ignore[arg-type]
    except (TypeError, UnicodeError):
        raise SpecError(field, path, "a path of the host: str, bytes or os.PathLike") from None
    if not found or b"\0" in found:
        raise SpecError(field, path, "a path that is not empty and has no NUL")
    return found


@contextmanager
def on_host(call: str, path: bytes) -> Iterator[None]:
    """What fails on the host is a `KernelError` that names its path."""
    try:
        yield
    except KernelError:
        raise
    except OSError as error:
        name = os.fsdecode(path)
        found = failed(error, f'{call}("{name}")', "a file of the host")
        found.filename = name
        raise found from None


@contextmanager
def without(name: bytes, folder: int) -> Iterator[None]:
    """Whatever comes within, *name* in *folder* is gone."""
    try:
        yield
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        raise


def open_below(top: int, path: bytes, flags: int) -> Fd:
    """Open *path* below *top*, on the host, with no link on the way. Kernel: openat2(2)."""
    how, fd = _HOW.pack(flags | os.O_CLOEXEC, 0, _BELOW), Fd()
    call = f"openat2({top}, {shown(path)})"
    try:
        syscall("openat2", top, (path or b".") + b"\0", how, _HOW.size, call=call, into=fd)
    except KernelError as error:
        if error.errno in (errno.ELOOP, errno.EXDEV):
            message = "a symbolic link took the place of a folder while it was copied"
            raise ViolationError(message, os.fsdecode(path)) from error
        raise
    return fd


@asynccontextmanager
async def steady(path: bytes) -> AsyncIterator[None]:
    """Within, a link on the way means that something was exchanged."""
    try:
        yield
    except KernelError as error:
        if error.errno == errno.ELOOP:
            raise ViolationError(
                "a symbolic link is where a file or folder was", os.fsdecode(path)
            ) from error
        raise


def refuse_odd(mode: int, path: bytes) -> None:
    """Raises: ViolationError: It is neither a file, nor a folder, nor a link."""
    kinds = (
        (modes.S_ISFIFO, "a FIFO"),
        (modes.S_ISSOCK, "a socket"),
        (modes.S_ISCHR, "a device"),
        (modes.S_ISBLK, "a device"),
    )
    for test, name in kinds:
        if test(mode):
            raise ViolationError(f"{name} is not copied", os.fsdecode(path))


def is_sparse(found: os.stat_result) -> bool:
    """Has a file fewer blocks, of 512 bytes, than bytes?"""
    return found.st_blocks * 512 < found.st_size


def read_piece(fd: int, at: int, path: bytes, sparse: bool) -> tuple[int, bytes]:
    """Data of a file of the host from *at* on, and where it begins: behind a hole if there is one."""
    size = CHUNK
    with on_host("read", path):
        if sparse:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
                size = min(CHUNK, os.lseek(fd, at, os.SEEK_HOLE) - at)
            except OSError as error:
                # There is nothing but a hole.
                if error.errno != errno.ENXIO:
                    raise
                return at, b""
        return at, os.pread(fd, size, at)


def write_at(fd: int, offset: int, data: bytes, path: bytes) -> None:
    """Write all of *data* at an offset. Raises: KernelError: ENOSPC, and the like."""
    view = memoryview(data)
    with on_host("write", path):
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done


__all__ = [
    "OPEN_FOLDER",
    "OPEN_READ",
    "host_path",
    "is_sparse",
    "on_host",
    "open_below",
    "read_piece",
    "refuse_odd",
    "steady",
    "without",
    "write_at",
]
