"""
What a command is, as the arguments of ``run`` and ``popen`` say it.

Its words and its environment: checked, and brought into the form that plans take.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sandboxlib import quantity
from sandboxlib.engine import policy
from sandboxlib.engine.current import limited
from sandboxlib.engine.encode import encode_command
from sandboxlib.engine.given import given
from sandboxlib.errors import KernelError, SpecError
from sandboxlib.kernel import launcher
from sandboxlib.plan.command import Group, Request, environment
from sandboxlib.plan.root import WORK
from sandboxlib.quantity import encodes
from sandboxlib.spec import SandboxSpec

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.engine.stdio import Stdio
    from sandboxlib.kernel.cgroup import Leaf
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
    request = Request(
        candidates(argv[0], environ),
        argv,
        environ,
        where,
        rlimits=rlimits,
        wall_time=policy.nanoseconds(limits),
        apart=policy.is_tight(limits, spec, engine.host),
    )
    if io is None:
        return request._replace(tty=True)
    return request._replace(foreign=io.foreign, given=given(io.files, spec, engine.host))


def encoded(
    engine: Engine, leaf: Leaf | None, request: Request, tag: tuple[tuple[str, int], ...]
) -> tuple[bytes, Group]:
    """
    The launcher's program for *request*, and how the command gets into its *leaf*, or what stands for one.

    Raises:
        KernelError: E2BIG: it is more than the kernel takes in any case, whatever the limit on the stack is.
    """
    group = Group(tag=tag)
    if leaf is not None:
        # Without clone3 it joins by itself, before it does anything else.
        folder = None if "clone3" in engine.host.hidden else leaf.clone_folder
        kill = f"{folder}/cgroup.kill" if folder and request.wall_time else ""
        namespace = f"/proc/{engine.pid}/ns/cgroup"
        group = Group(folder, namespace, leaf.join_files(), leaf.pids_bound, kill=kill)
    code = encode_command(engine.spec, limited(engine.host), request, group)
    if len(code) > launcher.MAX_SIZE:
        raise KernelError(errno.E2BIG, f"execve({os.fsdecode(request.argv[0])!r})", "the command")
    return code, group
