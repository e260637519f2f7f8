"""System calls that Python lacks, made from the program itself."""

from __future__ import annotations

import errno as _errno
import os

from sandboxlib._native import ffi, lib
from sandboxlib.errors import KernelError

_MASK = (1 << 64) - 1


def number(name: str) -> int:
    """The number of a system call on this machine."""
    return int(getattr(lib, "SYS_" + (name if name != "prlimit" else "prlimit64")))


def syscall(name: str, *args: int | bytes | bytearray, call: str = "") -> int:
    """
    Make the system call *name*; a buffer is passed as its address, `bytes` only to be read.

    Raises:
        KernelError: It failed; *call* is how the error prints it.

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
    while True:
        rv = int(lib.sbx_syscall(number(name), *numbers, *(0,) * (6 - len(numbers))))
        if rv != -_errno.EINTR:
            break
    if rv < 0:
        raise KernelError(-rv, call or f"{name}({', '.join(map(str, args))})")
    return rv


def address(buffer: bytes | bytearray) -> int:
    """The address of *buffer*'s first byte; valid for as long as the caller keeps it."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def read_file(path: str, directory: int = -100, size: int = 65536) -> bytes:
    """
    Read a small file of the kernel's in one go.

    Raises:
        KernelError: It cannot be opened or read.
    """
    buffer = ffi.new("char[]", size)
    n = lib.sbx_read_file(directory, os.fsencode(path), buffer, size)
    if n < 0:
        raise KernelError(-n, f'read("{path}")')
    return bytes(ffi.buffer(buffer, n))


def write_file(path: str, data: str, directory: int = -100) -> None:
    """
    Write a small file of the kernel's in one go.

    Raises:
        KernelError: It cannot be opened, or refuses what is written.
    """
    raw = data.encode()
    n = lib.sbx_write_file(directory, os.fsencode(path), raw, len(raw))
    if n < 0:
        raise KernelError(-n, f'write("{path}", "{data}")')
