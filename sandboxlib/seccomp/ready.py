"""
The default profile's program, as quickly as it can be had.

To compile it takes a millisecond, to load what compiles it takes several: too much before the first
sandbox of a short program. So the usual case is kept as bytes, and a test holds them against the
compiler.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable


def default_program(
    *, arch: str, capabilities: Iterable[str] = (), architectures: Iterable[str] = ()
) -> bytes:
    """
    Return what ``compile(default(capabilities, architectures=architectures), arch=arch)`` returns.

    Args:
        arch: The machine, as ``os.uname().machine`` says.
        capabilities: The sandbox's bounding set, by names such as ``CAP_NET_RAW``.
        architectures: Foreign ABIs to let in: ``i386``, ``x32``, ``arm``.

    Raises:
        UnsupportedError: There are no system call tables for this machine.
    """
    return _program(arch, frozenset(capabilities), frozenset(architectures))


@functools.lru_cache(maxsize=16)
def _program(arch: str, capabilities: frozenset[str], architectures: frozenset[str]) -> bytes:
    from sandboxlib.seccomp.programs import OPENING, PROGRAMS

    if not architectures and capabilities.isdisjoint(OPENING) and arch in PROGRAMS:
        return bytes.fromhex(PROGRAMS[arch])
    from sandboxlib.seccomp.compiler import compile  # noqa: A004 - as in re.compile
    from sandboxlib.seccomp.defaults import default

    return compile(default(capabilities, architectures=architectures), arch=arch, capabilities=capabilities)
