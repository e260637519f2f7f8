"""
What a command is, as the arguments of ``run`` and ``popen`` say it.

Its words and its environment: checked, and brought into the form that plans take.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sandboxlib import quantity
from sandboxlib.engine import policy
from sandboxlib.engine.given import given
from sandboxlib.errors import SpecError
from sandboxlib.plan.command import Request, environment
from sandboxlib.plan.root import WORK
from sandboxlib.quantity import encodes
from sandboxlib.spec import SandboxSpec

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.engine.stdio import Stdio
    from sandboxlib.limits import Limits


def arguments(args: object) -> tuple[bytes, ...]:
    """A command as bytes. Raises: SpecError: It is empty, a plain string, or has a NUL."""
    allowed = 'a list of strings, bytes or paths, such as ["sort", "-u"]; a shell line is for sh()'
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence) or not args:
        raise SpecError("args", args, allowed)
    try:
        found = tuple(os.fsencode(arg) for arg in args)
    except (TypeError, UnicodeError):
        raise SpecError("args", args, allowed) from None
    if any(b"\0" in arg for arg in found) or not found[0]:
        raise SpecError("args", args, "without NUL, and not an empty name")
    return found


def variables(env: object) -> dict[str, str | None]:
    """Check an environment. Raises: SpecError."""
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise SpecError("env", env, "a mapping of names to strings")
    for name, value in env.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name or not encodes(name):
            raise SpecError("env", name, "names without '=', NUL and lone surrogates")
        if value is not None and (not isinstance(value, str) or "\0" in value or not encodes(value)):
            allowed = "strings without NUL and lone surrogates, or None to leave the name out"
            raise SpecError("env", value, allowed)
    return dict(env)


def candidates(name: bytes, env: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """What execvp(3) would try, in order."""
    if b"/" in name:
        return (name,)
    path = next((item[5:] for item in env if item.startswith(b"PATH=")), b"")
    folders = path.split(b":") if path else [b"/usr/bin", b"/bin"]
    return tuple((folder or b".") + b"/" + name for folder in folders)


def default_cwd(spec: SandboxSpec) -> str:
    """Where commands begin when nothing is said."""
    return WORK if spec.rootfs is None or spec.rootfs.kind == "host" else "/"


def requested(
    engine: Engine,
    args: object,
    env: object,
    cwd: object,
    limits: Limits | None,
    io: Stdio | None,
) -> Request:
    """
    The command *args* as plans take it; without *io* on a terminal of its own.

    Raises:
        SpecError: Something of it makes no sense.
    """
    spec = engine.spec
    where = quantity.absolute("cwd", cwd) if cwd is not None else spec.cwd or default_cwd(spec)
    argv, extra = arguments(args), variables(env)
    if io is None and "TERM" not in dict(spec.env):
        extra = {"TERM": "xterm", **extra}
    environ = environment(spec, engine.host, extra)
    rlimits = policy.rlimits(limits)
    paths = candidates(argv[0], environ)
    if io is None:
        return Request(paths, argv, environ, where, tty=True, rlimits=rlimits)
    mine = given(io.files, spec, engine.host)
    return Request(paths, argv, environ, where, foreign=io.foreign, rlimits=rlimits, given=mine)
