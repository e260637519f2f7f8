"""What a start needs before pid 1 is made: the program makes it outside, and the engine owns it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandboxlib.errors import StateError
from sandboxlib.kernel import cgroup
from sandboxlib.plan import ceilings
from sandboxlib.plan.ids import more_of
from sandboxlib.plan.network import is_made
from sandboxlib.plan.start import namespaces, needs_ids

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine

Values = dict[str, int | str | tuple[str, ...]]


async def gather(engine: Engine) -> Values:
    """
    Look the image up, and make IDs, cgroup, layers and networks; each is the engine's from then on.

    Returns:
        What the plan's variables stand for.
    """
    if not engine.plan.steps:
        from sandboxlib.engine.image import prepare as look_up

        engine.held = await look_up(engine.waiter, engine.spec, engine.host, engine.lease)
        # Many may have waited for the same image.
        await engine.waiter.turn()
        engine.settle(engine.held.spec)
        if engine.closed:
            raise StateError("the sandbox was closed while it started")
    spec, host = engine.spec, engine.host
    values: Values = {}
    if needs_ids(host, namespaces(spec, host)):
        engine.ids.append(engine.program.ids.take(host.ids, engine))
        values["ids"] = engine.ids[0]
        if more_of(spec):
            engine.ids.append(engine.program.ids.take(host.ids, engine))
            values["more_ids"] = engine.ids[1]
    if host.cgroups.version:
        place = host.cgroups
        if place.offered:
            place = await engine.program.ask_for_cgroups(engine.waiter)
            if engine.closed:
                raise StateError("the sandbox was closed while it started")
        engine.owner.hold(engine)
        group = engine.group = cgroup.prepare(place, ceilings.limits(spec, host), engine.owner.name())
        group.make()
        first = group.init_files()
        values["join"] = first if host.cgroups.version == 2 else group.join_files()
        for path in first:
            values["leaf"] = os.path.dirname(path)
        group.enable_leaves()
    await engine.program.sweep(engine.waiter)
    if spec.mounts or spec.rootfs is not None:
        from sandboxlib.engine.storage import Places

        engine.places = Places(host, engine.owner)
        await engine.places.prepare(engine.waiter, spec, values)
        values.update(engine.places.values)
    if is_made(spec):
        from sandboxlib.engine.connect_network import connector

        engine.connections = connector(spec, host, engine.owner)
        await engine.connections.prepare(engine.waiter)
        values.update(engine.connections.values)
    return values


__all__ = ["gather"]
