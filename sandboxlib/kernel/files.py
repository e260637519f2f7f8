"""Files below a folder that is not trusted."""

from __future__ import annotations

import errno
import os
import struct

from sandboxlib.errors import KernelError
from sandboxlib.kernel.syscall import syscall

#: include/uapi/linux/openat2.h
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x02, 0x04, 0x08, 0x10
_HOW = struct.Struct("=3Q")
# Somebody's rename or mount unsettles the look at "..": openat2(2), EAGAIN.
_TRIES = 100


def open_in_root(
    top: int,
    path: str | bytes,
    flags: int,
    mode: int = 0,
    resolve: int = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
) -> int:
    """
    Open *path* as if the folder *top* were the root: no link leads out of it.

    Returns:
        A descriptor, owned by the caller and closed on exec.

    Raises:
        KernelError: It cannot be opened.

    Kernel: openat2(2), Linux 5.6.
    """
    raw = os.fsencode(path)
    how = _HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_TRIES):
        try:
            return syscall("openat2", top, raw + b"\0", how, _HOW.size, call=f"openat2({top}, {raw!r})")
        except KernelError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise KernelError(errno.EAGAIN, f"openat2({top}, {raw!r})")


def sync_filesystem(fd: int) -> None:
    """Have all that was written to the file system of *fd* on disk. Kernel: syncfs(2)."""
    syscall("syncfs", fd)


__all__ = [
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "open_in_root",
    "sync_filesystem",
]
