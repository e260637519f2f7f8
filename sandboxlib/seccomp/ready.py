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
    *,
    arch: str,
    capabilities: Iterable[str] = (),
    architectures: Iterable[str] = (),
    core_dumps: bool = False,
) -> bytes:
    """
    Return what `compile` returns of the `default` profile.

    Args:
        arch: The machine, as ``os.uname().machine`` says.
        capabilities: The sandbox's bounding set, by names such as ``CAP_NET_RAW``.
        architectures: Foreign ABIs to let in: ``i386``, ``x32``, ``arm``.
        core_dumps: As `default`.

    Raises:
        UnsupportedError: There are no system call tables for this machine.
    """
    return _program(arch, frozenset(capabilities), frozenset(architectures), core_dumps)


@functools.lru_cache(maxsize=16)
def _program(
    arch: str, capabilities: frozenset[str], architectures: frozenset[str], core_dumps: bool
) -> bytes:
    from sandboxlib.seccomp.programs import OPENING, PROGRAMS

    if not core_dumps and not architectures and capabilities.isdisjoint(OPENING) and arch in PROGRAMS:
        return bytes.fromhex(PROGRAMS[arch])
    from sandboxlib.seccomp.compiler import compile  # noqa: A004 - as in re.compile
    from sandboxlib.seccomp.defaults import default

    profile = default(capabilities, architectures=architectures, core_dumps=core_dumps)
    return compile(profile, arch=arch, capabilities=capabilities)
