"""Plans of starts, made once for each spec; and their programs, as far as they do not vary."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from sandboxlib.engine.current import resolve
from sandboxlib.engine.encode import Compiled, precompile
from sandboxlib.plan.start import start

if TYPE_CHECKING:
    from sandboxlib.host import Host
    from sandboxlib.plan.steps import Plan
    from sandboxlib.spec import SandboxSpec

plan_start = lru_cache(64)(start)


@lru_cache(64)
def compiled(spec: SandboxSpec, host: Host) -> Compiled:
    """The program of a start, to be filled in."""
    return precompile(plan_start(spec, host).steps)


def current_plan(spec: SandboxSpec) -> Plan:
    """The plan for this program on this machine."""
    return plan_start(*resolve(spec))


__all__ = ["compiled", "current_plan", "plan_start"]
