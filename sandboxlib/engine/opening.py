"""The start of a sandbox, again where a file of the host's was replaced in the middle of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs

from sandboxlib.engine.current import program
from sandboxlib.engine.sandbox import Engine
from sandboxlib.errors import KernelError

if TYPE_CHECKING:
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.host import Entry, Host
    from sandboxlib.spec import SandboxSpec

#: How often a start is tried where the host's files do not keep still.
TRIES = 5
#: What a file that was replaced between two looks answers: it is gone, or is now of another kind.
_CHANGED = frozenset({errno.ENOENT, errno.ENOTDIR})
#: The calls that bring files of the host's in.
_SHOWING = ("open_tree(", "move_mount(")
#: Bytes of the longest file that is copied in place of being shown.
_LONGEST = 4 << 20


async def start(spec: SandboxSpec, waiter: Waiter, tell: Callable[[Engine], None]) -> None:
    """
    Start a sandbox; *tell* hears of each engine before it begins, so that it can be closed whatever comes.

    The kernel mounts nothing that was removed, also if it was open when it was: a file that is replaced by
    another while a sandbox starts is looked for again. Those of the host's view are read then, and
    copied, for some are replaced again and again.

    Raises:
        KernelError: A step failed; it says which. Nothing is left.
    """
    await waiter.turn()
    engine = Engine(spec, waiter)
    for left in range(TRIES - 1, -1, -1):
        tell(engine)
        try:
            await engine.open()
        except KernelError as error:
            replaced = error.errno in _CHANGED and error.call.startswith(_SHOWING)
            if not left or not replaced or not engine.finished:
                raise
            program().look_again()
            engine = Engine(spec, waiter, view=_copied)
        else:
            return


def _copied(host: Host) -> Host:
    """The host, with what its files hold now in place of the files."""
    return attrs.evolve(host, view=tuple(_entries(host)))


def _entries(host: Host) -> Iterator[Entry]:
    for entry in host.view:
        if entry.kind == "file":
            try:
                with open(entry.path, "rb") as file:
                    data = file.read(_LONGEST + 1)
            except OSError:
                # Gone meanwhile, as if it had never been there.
                continue
            if len(data) <= _LONGEST:
                yield attrs.evolve(entry, kind="copy", content=data)
                continue
        if entry.kind != "dir" or os.path.isdir(entry.path):
            yield entry


__all__ = ["TRIES", "start"]
