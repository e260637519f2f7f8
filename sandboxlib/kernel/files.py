"""Files below a folder that is open, opened without a way to leave it."""

from __future__ import annotations

import errno
import os
import struct

from sandboxlib.errors import KernelError
from sandboxlib.kernel.syscall import syscall

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_HOW = struct.Struct("=3Q")
_AGAIN = 64


def openat2(
    folder: int, path: bytes, flags: int, resolve: int = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
) -> int:
    """
    Open *path* below the open *folder*; the descriptor is the caller's.

    Never through a link such as those in /proc/self/fd, whatever *resolve* says.

    Raises:
        KernelError: ELOOP: there is a symbolic link in the path; EXDEV: it leaves the folder.

    Kernel: openat2(2), Linux 5.6.
    """
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, resolve | RESOLVE_NO_MAGICLINKS)
    name = path + b"\0"
    shown = f'openat2({folder}, "{os.fsdecode(path)}", {flags:#o}, {resolve:#x})'
    for _ in range(_AGAIN):
        try:
            return syscall("openat2", folder, name, how, _HOW.size, call=shown)
        except KernelError as error:
            # Something was renamed anywhere on the machine while ".." was looked up.
            if error.errno != errno.EAGAIN:
                raise
    return syscall("openat2", folder, name, how, _HOW.size, call=shown)


def open_in_root(folder: int, path: str | bytes, flags: int) -> int:
    """
    Open *path* as if the open *folder* were the root: links are followed, and none leads out.

    Raises:
        KernelError: It cannot be opened.
    """
    return openat2(folder, os.fsencode(path), flags, RESOLVE_IN_ROOT)


def sync_filesystem(fd: int) -> None:
    """Have all that was written to the file system of *fd* on disk. Kernel: syncfs(2)."""
    syscall("syncfs", fd)


__all__ = [
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "open_in_root",
    "openat2",
    "sync_filesystem",
]
