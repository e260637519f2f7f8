"""From `Security.seccomp` to the bytes of a filter."""

from __future__ import annotations

from functools import lru_cache

import attrs

from sandboxlib.errors import SpecError
from sandboxlib.host import Host
from sandboxlib.security import Security


@lru_cache(16)
def compiled(security: Security, host: Host) -> bytes:
    """
    The filter as classic BPF.

    Raises:
        SpecError: The profile makes no sense, or is still a path: the engine reads files, plans do not.
    """
    from sandboxlib import seccomp

    chosen = security.seccomp
    capabilities = frozenset(security.capabilities)
    if chosen == "default":
        return seccomp.default_program(
            arch=host.machine,
            capabilities=capabilities,
            architectures=security.abi,
            # Who asks for another size of core files may set it inside, too.
            core_dumps="no-core-dumps" in security.without or "core" in dict(security.rlimits),
        )
    if isinstance(chosen, seccomp.Profile):
        profile = chosen
    elif chosen.startswith("{"):
        profile = seccomp.Profile.from_json(chosen)
    else:
        raise SpecError("security.seccomp", chosen, "a profile that has been read")
    if security.abi:
        profile = attrs.evolve(profile, architectures=profile.architectures | set(security.abi))
    return seccomp.compile(profile, arch=host.machine, capabilities=capabilities, kernel=host.kernel)
