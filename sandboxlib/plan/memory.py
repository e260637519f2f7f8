"""
Who goes first when memory runs out.

The kernel chooses by what a process uses and by its ``oom_score_adj``, which is inherited: under a
program at -1000, as systemd and sshd have it, nothing inside would ever be chosen, and what asks for more
than its limit would hang. And where a sandbox is full, of files for instance, pid 1 may well be the largest
that is left in it.

Kernel: proc_pid_oom_score_adj(5); mm/oom_kill.c, oom_badness.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import lru_cache
from math import ceil

from sandboxlib.host import Host
from sandboxlib.plan import ceilings
from sandboxlib.plan.steps import ChildWrite, Step, Write
from sandboxlib.spec import SandboxSpec

#: Never chosen.
NEVER = -1000
#: How far commands stand above pid 1, in thousandths of the limit: more than pid 1 itself ever uses.
_ABOVE = 100
_INIT_SIZE = 256 << 10
_MOST = 1000


def of_init(host: Host) -> Iterator[Step]:
    """Pid 1 is not chosen, where the program may say so; the launcher does it, outside."""
    if host.raises_limits and host.oom_score_adj > NEVER:
        yield ChildWrite("oom_score_adj", str(NEVER), "pid 1 is the last to go when memory runs out")


def of_command(spec: SandboxSpec, host: Host) -> Iterator[Step]:
    """Commands are chosen before pid 1; the launcher does it for itself and so for its child, outside."""
    why = "it goes before pid 1 when memory runs out"
    # EACCES: it is higher already, and was made so by somebody who may.
    yield Write("/proc/self/oom_score_adj", str(score(spec, host)), why, ignore=(errno.EACCES,))


@lru_cache(64)
def score(spec: SandboxSpec, host: Host) -> int:
    """The ``oom_score_adj`` of commands."""
    limit = ceilings.limits(spec, host).memory_max if host.cgroups.version else None
    above = max(_ABOVE, ceil(1000 * _INIT_SIZE / limit)) if isinstance(limit, int) else _ABOVE
    # Pid 1 has the program's own, if it could not be set.
    return min(max(host.oom_score_adj, 0) + above, _MOST)


__all__ = ["NEVER", "of_command", "of_init", "score"]
