"""The plan of a start, once for each sandbox that is asked for again."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from sandboxlib.engine.current import program, resolve
from sandboxlib.engine.encode import Compiled, precompile
from sandboxlib.plan.start import start
from sandboxlib.plan.steps import Plan

if TYPE_CHECKING:
    from sandboxlib.host import Host
    from sandboxlib.spec import SandboxSpec

plan_start = lru_cache(64)(start)


@lru_cache(64)
def compiled(spec: SandboxSpec, host: Host) -> Compiled:
    """The launcher's program for a start, but for what is known only then."""
    return precompile(plan_start(spec, host).steps)


def asks_for_image(spec: SandboxSpec) -> bool:
    """Is an image to be looked up before this can be planned?"""
    rootfs = spec.rootfs
    return spec.image is not None or (rootfs is not None and rootfs.kind == "image" and not rootfs.lower)


def current_plan(spec: SandboxSpec) -> Plan:
    """
    The plan for this program on this machine.

    Raises:
        ImageError: It begins with an image that is not in the store.
    """
    if asks_for_image(spec):
        from sandboxlib.engine.image import planned

        spec = planned(spec, program().host)
    return plan_start(*resolve(spec))


__all__ = ["asks_for_image", "compiled", "current_plan", "plan_start"]
