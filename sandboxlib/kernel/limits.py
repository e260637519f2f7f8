"""Resource limits of the program itself."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from sandboxlib._native import ffi, lib
from sandboxlib.kernel.syscall import read_file

#: By number, the same on x86_64 and aarch64: asm-generic/resource.h.
_NAMES = (
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending",
    "msgqueue", "nice", "rtprio", "rttime",
)  # fmt: skip
_UNLIMITED = (1 << 64) - 1


class Own(NamedTuple):
    """
    The program's own limits.

    Attributes:
        hard: Hard limits by name, those that are finite.
        descriptors: The soft limit on descriptors.
    """

    hard: tuple[tuple[str, int], ...]
    descriptors: int


def own() -> Own:
    """
    Read them; they may have changed since the last time.

    Kernel: getrlimit(2).
    """
    found = ffi.new("uint64_t[]", len(_NAMES) + 1)
    lib.sbx_limits(found, len(_NAMES))
    return _own(bytes(ffi.buffer(found)))


def oom_score_adj() -> int:
    """
    How likely the program is chosen when memory runs out, from -1000, never, to 1000.

    Kernel: proc_pid_oom_score_adj(5).
    """
    return int(read_file("/proc/self/oom_score_adj"))


# One object for the same limits: it is a key of caches on the way of every command.
@lru_cache(16)
def _own(data: bytes) -> Own:
    *hard, descriptors = memoryview(data).cast("Q")
    pairs = zip(_NAMES, hard, strict=True)
    return Own(tuple((name, value) for name, value in pairs if value != _UNLIMITED), descriptors)


__all__ = ["Own", "oom_score_adj", "own"]
