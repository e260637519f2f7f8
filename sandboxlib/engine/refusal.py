"""Why a command did not begin, from what the launcher reports of it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from sandboxlib.engine.current import limited
from sandboxlib.engine.encode import failure
from sandboxlib.engine.patience import left
from sandboxlib.errors import CommandNotExecutableError, CommandNotFoundError, KernelError
from sandboxlib.kernel import launcher
from sandboxlib.plan.command import Group, Request, command

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.kernel.cgroup import Leaf

#: What execve(2) says of a file that is there.
_NOT_EXECUTABLE = (errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.EPERM, errno.ELOOP)


async def refusal(
    engine: Engine, args: object, report: launcher.Reported, request: Request, group: Group
) -> Exception:
    """The error for a *report* that the command *args* was not executed, or could not come so far."""
    if report.kind == launcher.NOT_FOUND:
        return _not_executed(engine, args, report, request)
    steps = command(engine.spec, limited(engine.host), request, group)
    error = failure(steps, report.step, report.error)
    setns = error.call.startswith("setns") and report.error in (errno.ESRCH, errno.EINVAL, errno.EPERM)
    # A process that is ending gives its namespaces up before it can be waited for.
    if setns or (report.error == errno.ENOENT and f"/proc/{engine.pid}/ns/" in error.call):
        ended = await engine.has_ended()
        ended.__cause__ = error
        return ended
    return error


def _not_executed(engine: Engine, args: object, report: launcher.Reported, request: Request) -> Exception:
    interpreter = bool(report.value & launcher.INTERPRETER)
    path = os.fsdecode(request.paths[report.value & ~launcher.INTERPRETER])
    if interpreter:
        return CommandNotFoundError(path, args, report.error, "its interpreter does not exist inside")
    if report.error in (errno.ENOENT, errno.ENOTDIR):
        return CommandNotFoundError(os.fsdecode(request.argv[0]), args, report.error)
    if report.error in _NOT_EXECUTABLE:
        security = engine.spec.security
        labels = (security.apparmor, security.selinux) if security else ()
        label = " and ".join(filter(None, labels))
        detail = f"the file, or the change to {label}, is not permitted" if label else ""
        return CommandNotExecutableError(path, args, report.error, detail)
    return KernelError(report.error, f"execve({path!r})", "the command")


async def unheard(waiter: Waiter, launch: launcher.Launch, leaf: Leaf | None, request: Request) -> Request:
    """
    What to ask for once more, after a launcher that was killed before it told of its command.

    Until the execve they share their memory, and what ends one ends the other: for want of memory, that is.

    Raises:
        KernelError: EPIPE: it was for something else.
    """
    await left(waiter, launch)
    if request.apart or leaf is None or not leaf.met_memory():
        raise KernelError(errno.EPIPE, f"recvmsg({launch.control})", "the launcher ended without a word")
    return request._replace(apart=True)


def taken(pid: int) -> KernelError:
    """The error for a child whose status somebody else took."""
    hint = "someone else in this program reaped it: SIGCHLD is ignored, or a wait for any child"
    return KernelError(errno.ECHILD, f"wait4({pid})", "the command's status", hint)


__all__ = ["refusal", "taken", "unheard"]
