"""Why a command did not begin, from what the launcher reports of it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from sandboxlib.engine.current import limited
from sandboxlib.engine.encode import failure
from sandboxlib.errors import CommandNotExecutableError, CommandNotFoundError, KernelError
from sandboxlib.kernel import launcher
from sandboxlib.plan.command import Group, Request, command

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine

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


__all__ = ["refusal"]
