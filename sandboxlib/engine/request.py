"""
What a command is, as the arguments of ``run`` and ``popen`` say it.

Its words, its environment, its descriptors: checked, and brought into the form that plans take.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sandboxlib import quantity
from sandboxlib.engine import policy
from sandboxlib.engine.given import Handed, given, handed, let_in
from sandboxlib.errors import SpecError
from sandboxlib.kernel.descriptor import Fd, openat, pipe
from sandboxlib.plan.command import Request, environment
from sandboxlib.plan.root import WORK
from sandboxlib.quantity import encodes
from sandboxlib.spec import SandboxSpec

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.limits import Limits

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL


class Stdio(NamedTuple):
    """
    Descriptors of a command.

    Attributes:
        theirs: Its 0, 1 and 2; borrowed, or of those in `held`.
        ours: The other ends of its pipes, where it has them.
        held: To be closed when it has started.
        foreign: One of them is a file of the caller's.
        terminal: The other end of its terminal, if it has one.
        files: Which of them are files of the caller's that can be opened by name.
    """

    theirs: tuple[int, int, int]
    ours: tuple[Fd, Fd, Fd]
    held: tuple[Fd, ...]
    foreign: bool
    terminal: Fd
    files: tuple[Handed, ...] = ()

    def close(self) -> None:
        """Close all of them. Idempotent."""
        for fd in (*self.ours, *self.held, self.terminal):
            fd.close()


class Unsaid(int):
    """A default for a stream: it counts as the number that it is, and shows that nobody gave it."""


UNSAID = Unsaid(DEVNULL)


def stdio(stdin: object, stdout: object, stderr: object) -> Stdio:
    """
    Make the descriptors that `subprocess` would make.

    Each is `PIPE`, `DEVNULL`, `STDOUT` (for stderr), a descriptor, a file, or
    None for the caller's own.

    Raises:
        SpecError: It is none of these.
    """
    theirs, ours, held = [-1, -1, -1], [Fd(), Fd(), Fd()], list[Fd]()
    foreign, files = False, list[Handed]()
    try:
        for i, (name, value) in enumerate((("stdin", stdin), ("stdout", stdout), ("stderr", stderr))):
            if isinstance(value, int) and value == PIPE:
                read, write = pipe()
                theirs[i], ours[i] = (read.fileno(), write) if i == 0 else (write.fileno(), read)
                held.append(read if i == 0 else write)
                # To be opened again by name, and no other way than it is open: nobody inside is its owner.
                os.fchmod(theirs[i], 0o444 if i == 0 else 0o222)
            elif isinstance(value, int) and value == DEVNULL:
                held.append(openat("/dev/null", os.O_RDONLY if i == 0 else os.O_WRONLY))
                theirs[i] = held[-1].fileno()
            elif isinstance(value, int) and value == STDOUT and i == 2:
                theirs[i] = theirs[1]
                files += [file._replace(number=2) for file in files if file.number == 1]
            else:
                theirs[i] = i if value is None else _fileno(name, value)
                try:
                    found = os.fstat(theirs[i])
                except OSError:
                    raise SpecError(name, value, "an open descriptor") from None
                foreign |= stat.S_IFMT(found.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFBLK)
                let_in(theirs[i], found)
                if (file := handed(i, theirs[i], found)) is not None:
                    files.append(file)
    except BaseException:
        for fd in (*held, *ours):
            fd.close()
        raise
    return Stdio(
        (theirs[0], theirs[1], theirs[2]),
        (ours[0], ours[1], ours[2]),
        tuple(held),
        foreign,
        Fd(),
        tuple(files),
    )


def _fileno(name: str, value: object) -> int:
    allowed = "PIPE, DEVNULL, a file or a descriptor" + (", or STDOUT" if name == "stderr" else "")
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise SpecError(name, value, allowed)
        return value
    try:
        return value.fileno()  # type: ignore[attr-defined,no-any-return]
    except (AttributeError, OSError, ValueError):
        raise SpecError(name, value, allowed) from None


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
