"""What of the caller's a command has as a standard descriptor, and how far it can be opened again by name."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from sandboxlib.kernel.descriptor import openat
from sandboxlib.plan.root import user_of
from sandboxlib.plan.start import hosts, joined, namespaces
from sandboxlib.plan.streams import Given

if TYPE_CHECKING:
    from sandboxlib.engine.clock import Clock
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.host import Host
    from sandboxlib.plan.command import Request
    from sandboxlib.spec import SandboxSpec

_ACCESS = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}
#: The bits of a mode for all who are neither owner nor of the group.
_OTHERS = {"r": 0o004, "w": 0o002, "rw": 0o006}


class Handed(NamedTuple):
    """
    A regular file of the caller's that is handed in.

    Attributes:
        number: 0, 1 or 2.
        access: How it is open: ``r``, ``w`` or ``rw``.
        owner: Outside.
        open_to_all: Its mode lets everybody do that.
        fresh: Nothing is in it that was not given to be read.
        removed: It has no name any more.
    """

    number: int
    access: str
    owner: int
    open_to_all: bool
    fresh: bool
    removed: bool


def handed(number: int, fd: int, found: os.stat_result) -> Handed | None:
    """Look at the open file *fd* of the caller's; None for what is no regular file."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    access = _ACCESS.get(flags & os.O_ACCMODE)
    if access is None or flags & os.O_PATH or not stat.S_ISREG(found.st_mode):
        return None
    bits = _OTHERS[access]
    fresh = "r" in access or found.st_size == 0
    return Handed(number, access, found.st_uid, found.st_mode & bits == bits, fresh, not found.st_nlink)


def let_in(fd: int, found: os.stat_result) -> None:
    """
    Let a command open what has no name, a pipe or a removed file, again as it is open already.

    The kernel asks for the mode when ``/dev/stdout`` is opened, and inside nobody is the owner. Whoever can
    reach it has it open, or may look into a process that has: the mode is nobody else's matter.
    """
    removed = stat.S_ISREG(found.st_mode) and not found.st_nlink
    # A FIFO with a name is a file like others.
    pipe = stat.S_ISFIFO(found.st_mode) and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
    if not removed and not pipe:
        return
    bits = _OTHERS.get(_ACCESS.get(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE, ""), 0)
    if found.st_mode & bits != bits:
        # Another user's: then it is as it would be for the caller himself.
        with contextlib.suppress(OSError):
            os.fchmod(fd, stat.S_IMODE(found.st_mode) | bits)


def given(files: tuple[Handed, ...], spec: SandboxSpec, host: Host) -> tuple[Given, ...]:
    """What a sandbox's command is to do about *files*."""
    if not files:
        return ()
    modes = namespaces(spec, host)
    # On mounts of somebody else's nothing is mounted, and root of the host needs no help.
    can = host.privileged and not hosts(modes, "user") and "mount" not in joined(modes)
    user = user_of(spec)[0]
    return tuple(
        Given(
            file.number,
            file.access,
            # What is mounted can be read as well: so no file that is to be written only, and holds something.
            can and not file.open_to_all and not file.removed and file.owner == user and file.fresh,
        )
        for file in files
    )


@contextlib.contextmanager
def further(engine: Engine, request: Request, clock: Clock) -> Iterator[tuple[int, ...]]:
    """
    What a command's launcher has besides its streams.

    Pid 1, and where they are needed the user namespace by which files are mapped, and the *clock*. Each has a
    number of its own, whether or not those before it are there.
    """
    with contextlib.ExitStack() as stack:
        users = engine.pidfd
        if any(one.shown for one in request.given):
            opened = openat(engine.namespace_path("user"), os.O_RDONLY, why="files are mapped by it")
            users = stack.enter_context(opened)
        yield (engine.pidfd, users, clock.begin()) if request.wall_time else (engine.pidfd, users)


__all__ = ["Handed", "further", "given", "handed", "let_in"]
