"""
Resource limits of commands: the defaults, the ceilings without cgroups, what was asked for.

Nobody but CAP_SYS_RESOURCE of the first user namespace may raise a hard limit: getrlimit(2). So of
a limit that holds because nothing was asked for, the tighter one holds: this, or the program's own hard
limit. One that was asked for by `Security.rlimits` and is above the program's own is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from sandboxlib.errors import UnsupportedError
from sandboxlib.host import UNLIMITED, Host
from sandboxlib.plan import ceilings
from sandboxlib.plan.protections import active
from sandboxlib.plan.steps import Call, Join, OpenChild, Step
from sandboxlib.plan.streams import LAST as LAST_OF_COMMAND
from sandboxlib.plan.tree import JOINS
from sandboxlib.spec import SandboxSpec

#: (soft, hard)
Pair = tuple[int, int]
Limits = tuple[tuple[str, Pair], ...]

#: Where core_pattern is a pipe the kernel starts the host's crash handler whatever the limit, but
#: for the one byte that marks a handler's own crash; for a file one byte is too little as well.
NO_CORE = (1, 1)

#: Not the caller's: they bound what the kernel keeps for a process.
DEFAULTS: dict[str, Pair] = {
    "nofile": (1024, 4096),
    "memlock": (8 << 20, 8 << 20),
    "msgqueue": (819200, 819200),
    "sigpending": (4096, 4096),
    "rtprio": (0, 0),
    "nice": (0, 0),
    "stack": (8 << 20, 64 << 20),
}


@lru_cache(64)
def rlimits(spec: SandboxSpec, host: Host) -> Limits:
    """
    What holds for every command.

    Raises:
        UnsupportedError: One that was asked for is above the program's own hard limit.
    """
    found = {name: within(pair, name, host) for name, pair in _wanted(spec, host)}
    for name, (soft, hard) in spec.security.rlimits if spec.security else ():
        pair = tuple(UNLIMITED if value == "unlimited" else value for value in (soft, hard))
        most = host.hard(name)
        if pair[1] > most and not host.raises_limits:
            raise UnsupportedError(
                f"security.rlimits[{name!r}] of {hard}",
                f"a hard limit of the program's own that is as high; it is {most}",
                "raise it where the program is started: ulimit -H, LimitNOFILE= and its like of systemd, "
                "--ulimit of a container",
            )
        found[name] = pair  # type: ignore[assignment]
    return tuple(found.items())


def _wanted(spec: SandboxSpec, host: Host) -> Iterator[tuple[str, Pair]]:
    on = active(spec.without)
    if "rlimits" in on:
        yield from DEFAULTS.items()
    if "no-core-dumps" in on:
        yield "core", NO_CORE
    for name, value in ceilings.rlimits(spec, host).items():
        yield name, (value, value)


def within(pair: Pair, name: str, host: Host) -> Pair:
    """The tighter one of *pair* and the program's own hard limit."""
    # The one byte is more than none, and the protection: whoever may sets it all the same.
    most = UNLIMITED if name == "core" and host.raises_limits else host.hard(name)
    return min(pair[0], most), min(pair[1], most)


def notes(spec: SandboxSpec, host: Host) -> Iterator[str]:
    """Where a limit is not what it would be elsewhere."""
    given = {name for name, _ in spec.security.rlimits} if spec.security else set()
    for name, pair in _wanted(spec, host):
        held = within(pair, name, host)
        if held == pair or name in given or name in ceilings.rlimits(spec, host):
            continue
        if name == "core":
            yield (
                "RLIMIT_CORE is 0, the program's own hard limit, and only 1 keeps the host's crash handler "
                "away where kernel.core_pattern is a pipe: core(5)"
            )
        else:
            yield f"RLIMIT_{name.upper()} is {held[1]} and not {pair[1]}: the program's own hard limit"


def require_descriptors(host: Host, steps: Iterable[Step]) -> None:
    """
    See to it that the launcher can have all descriptors of *steps*: each stands at a number of its own.

    Raises:
        UnsupportedError: The program's soft limit, which is the launcher's too, does not reach that far.
    """
    needed = 1 + max(max(_numbers(step), default=0) for step in steps)
    needed = max(needed, LAST_OF_COMMAND + 1)
    if needed > host.descriptors:
        raise UnsupportedError(
            "a sandbox like this one",
            f"{needed} descriptors, and the program may have {host.descriptors} (RLIMIT_NOFILE)",
            "raise it: resource.setrlimit() in the program as far as its hard limit goes, ulimit -n before",
        )


def _numbers(step: Step) -> Iterator[int]:
    match step:
        case Call() | OpenChild():
            yield step.out
        case Join():
            # One for each hierarchy of v1.
            yield JOINS + 12


__all__ = ["DEFAULTS", "NO_CORE", "notes", "require_descriptors", "rlimits", "within"]
