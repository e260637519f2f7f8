"""One command in a sandbox of its own."""

from __future__ import annotations

from typing import Any

from sandboxlib.blocking import Args, Sandbox
from sandboxlib.doors import door
from sandboxlib.result import Completed


@door
def run(args: Args, **options: Any) -> Completed:
    """
    Run one command in a sandbox of its own.

    Options are those of `Sandbox.run` and of `Sandbox` together.

    Example:
        >>> run(["echo", "42"], memory="64M", text=True).stdout.strip()
        '42'
    """
    mine = {name: options.pop(name) for name in tuple(options) if name in _RUN_OPTIONS}
    with Sandbox(**options) as sandbox:
        return sandbox.run(args, **mine)


_RUN_OPTIONS = frozenset(name for name in Sandbox.run.__annotations__ if name not in ("args", "return"))

__all__ = ["run"]
