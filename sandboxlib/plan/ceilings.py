"""The limits that hold where none was asked for, and how they hold without cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import attrs

from sandboxlib.cgroup import CGroup, require
from sandboxlib.host import Host
from sandboxlib.plan.protections import active
from sandboxlib.spec import SandboxSpec

#: For code that nobody vouches for: enough for a compiler, not enough to hurt a small machine.
PIDS = 512
MEMORY = 1 << 30
#: Bytes that RLIMIT_DATA counts for a thread, whether it uses them or not: the usual stack.
STACK = 8 << 20
#: The part of the machine's memory that a Java machine begins with is a sixty-fourth, and its books as much.
RUNTIMES = 32


def asked(spec: SandboxSpec) -> CGroup:
    """What was asked for, by the short arguments and by ``cgroup=`` together."""
    short = CGroup(memory_max=spec.memory, cpu_max=spec.cpus, pids_max=spec.pids)
    return (spec.cgroup or CGroup()).merge(short)


def with_groups(spec: SandboxSpec, host: Host) -> Host:
    """
    The host as *spec* finds it: with the cgroup that systemd is asked for, if it wants one.

    A program is moved for it, so that is not done for ceilings alone: any limit, or ``cgroup=``, asks.
    """
    if host.cgroups.offer is None:
        return host
    wanted = (spec.cgroup, spec.memory, spec.cpus, spec.pids)
    return host if all(value is None for value in wanted) else _with_offer(host)


# A host is compared by identity: one is to stay one.
@lru_cache(64)
def _with_offer(host: Host) -> Host:
    return host if host.cgroups.offer is None else attrs.evolve(host, cgroups=host.cgroups.offer)


@lru_cache(64)
def limits(spec: SandboxSpec, host: Host) -> CGroup:
    """
    What the sandbox's cgroup gets: what was asked for, and ceilings for the rest.

    Raises:
        UnsupportedError: This host cannot apply what was asked for.
    """
    value = asked(spec)
    require(value, host.cgroups)
    if "ceilings" not in active(spec.without):
        return value
    above = dict(host.cgroups.above or ())
    pids = min(PIDS, above.get("pids_max", PIDS)) if "pids" in host.cgroups.bases else None
    memory = min(MEMORY, above.get("memory_max", MEMORY)) if "memory" in host.cgroups.bases else None
    return CGroup(pids_max=pids, memory_max=memory).merge(value)


def rlimits(spec: SandboxSpec, host: Host) -> dict[str, int]:
    """
    The ceilings as resource limits, for a host without the controllers; see `notes`.

    RLIMIT_DATA counts what is set aside and not what is used: besides the memory itself there has to be
    room for as many threads as there may be, and for what runtimes set aside by the size of the machine.
    """
    found = {}
    if "ceilings" in active(spec.without):
        # RLIMIT_NPROC counts per user of the sandbox's own user namespace (Linux 5.14), so it holds
        # for the sandbox as a whole as long as it runs as one user.
        if "pids" not in host.cgroups.bases:
            found["nproc"] = PIDS
        # Not RLIMIT_AS: runtimes reserve address space that they never use.
        if "memory" not in host.cgroups.bases:
            found["data"] = MEMORY + PIDS * STACK + host.memory // RUNTIMES
    return found


def notes(spec: SandboxSpec, host: Host) -> Iterator[str]:
    """What holds less tightly than it would with cgroups."""
    for name, wanted in rlimits(spec, host).items():
        value = min(wanted, host.hard(name))
        what = "processes" if name == "nproc" else "bytes that each process may set aside"
        yield f"the default ceiling holds by RLIMIT_{name.upper()} ({value} {what}): {host.cgroups.hint}"
    given = asked(spec).fields
    for field, wanted in (("memory_max", MEMORY), ("pids_max", PIDS)):
        limit = limits(spec, host).fields.get(field, wanted)
        if field not in given and limit != wanted:
            yield f"{field} is {limit} and not {wanted}: the limit of a group that the program is in"
