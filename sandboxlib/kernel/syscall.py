"""System calls that Python lacks, made from the program itself."""

from __future__ import annotations

import errno as _errno
import io
import os

from sandboxlib._native import ffi, lib
from sandboxlib.errors import KernelError, SandboxError
from sandboxlib.kernel.descriptor import Fd

_MASK = (1 << 64) - 1
# What is read into it overwrites it: the zeros of ffi.new take longer than most reads.
_buffer = ffi.new_allocator(should_clear_after_alloc=False)


def number(name: str) -> int:
    """The number of a system call on this machine."""
    return int(getattr(lib, "SYS_" + (name if name != "prlimit" else "prlimit64")))


def syscall(name: str, *args: int | bytes | bytearray, call: str = "", into: Fd | None = None) -> int:
    """
    Make the system call *name*; a buffer is passed as its address, `bytes` only to be read.

    Args:
        name: Of the call.
        args: Its arguments.
        call: How an error prints it.
        into: Gets the result of one that makes a descriptor.

    Raises:
        KernelError: It failed.

    Kernel: syscall(2).
    """
    keep = []
    numbers = []
    for arg in args:
        if isinstance(arg, int):
            numbers.append(arg & _MASK)
        else:
            buffer = ffi.from_buffer(arg)
            keep.append(buffer)
            numbers.append(int(ffi.cast("uintptr_t", buffer)))
    numbers += [0] * (6 - len(numbers))
    while True:
        if into is None:
            rv = lib.sbx_syscall(number(name), *numbers)
        else:
            rv = lib.sbx_syscall_fd(into.cell, number(name), *numbers)
        if rv != -_errno.EINTR:
            break
    if rv < 0:
        raise KernelError(-rv, call or f"{name}({', '.join(map(str, args))})")
    return int(rv)


def failed(error: OSError, call: str, step: str = "", hint: str = "") -> OSError:
    """
    The `KernelError` for a call of `os` that failed with *error*.

    One that no system call has raised is handed back as it is, such as the TimeoutError of a signal handler.
    """
    # A file of Python's that is open the other way: no call is made, and this is what it would have given.
    number = _errno.EBADF if isinstance(error, io.UnsupportedOperation) else error.errno
    if number is None or isinstance(error, SandboxError):
        return error
    return KernelError(number, call, step, hint)


def address(buffer: bytes | bytearray) -> int:
    """The address of *buffer*'s first byte; valid for as long as the caller keeps it."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def read_file(path: str, directory: int = -100, size: int = 65536) -> bytes:
    """
    Read a file of the kernel's, at most *size* bytes of it.

    Raises:
        KernelError: It cannot be opened or read.
    """
    buffer, raw = _buffer("char[]", size), os.fsencode(path)
    while (n := lib.sbx_read_file(directory, raw, buffer, size)) == -_errno.EINTR:
        continue
    if n < 0:
        raise KernelError(-n, f'read("{path}")')
    return bytes(ffi.buffer(buffer, n))


def write_file(path: str, data: str, directory: int = -100) -> None:
    """
    Write a small file of the kernel's in one go.

    Raises:
        KernelError: It cannot be opened, or refuses what is written.
    """
    name, raw = os.fsencode(path), data.encode()
    while (n := lib.sbx_write_file(directory, name, raw, len(raw))) == -_errno.EINTR:
        continue
    if n < 0:
        raise KernelError(-n, f'write("{path}", "{data}")')
