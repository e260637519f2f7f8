"""The program's ends of pipes, and how much is read from one at once."""

from __future__ import annotations

import contextlib
import fcntl

from sandboxlib.kernel.descriptor import Fd, dup

#: Bytes that a pipe holds as it is made: pipe(7).
CHUNK = 1 << 16
#: Bytes that one which is always full is made to hold, where all is kept: each read costs a wake-up. More
#: gains nothing, for the memory of a larger read is the kernel's to give each time.
MUCH = 1 << 18


def grow(fd: int) -> int:
    """
    Let a pipe hold `MUCH`; how much to read at once from now on.

    It works as it is where the user has as much in pipes as he may (pipe(7), pipe-user-pages-soft).
    """
    with contextlib.suppress(PermissionError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, MUCH)
    return MUCH


__all__ = ["CHUNK", "MUCH", "Fd", "dup", "grow"]
