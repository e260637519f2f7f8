"""Labels of AppArmor and SELinux: a command begins in the one that was asked for, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

from sandboxlib.errors import UnsupportedError
from sandboxlib.host import Host
from sandboxlib.plan.flags import AT_FDCWD, O_CLOEXEC, O_DIRECTORY, O_PATH, Named
from sandboxlib.plan.steps import Call, Step, Write
from sandboxlib.security import Security

PROC = Named(13, "</proc>")

_HINTS = {
    "apparmor": "boot with AppArmor (security=apparmor, or apparmor in lsm=), or leave it out",
    "selinux": "boot with SELinux (security=selinux, or selinux in lsm=) and load a policy, or leave it out",
}


def outside(security: Security, host: Host) -> Iterator[Step]:
    """
    The launcher's part: hold on to the host's /proc, for that of the sandbox is not to be trusted.

    Raises:
        UnsupportedError: A label of a security module that is not active here.
    """
    if list(_written(security, host, "thread-self", AT_FDCWD)):
        args = (AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0)
        yield Call("openat", args, "the host's, where labels are set", out=PROC)


def inside(security: Security, host: Host) -> Iterator[Step]:
    """The command's part: from its execve on. Before Landlock and seccomp, which would be in the way."""
    yield from _written(security, host, "thread-self", PROC)


def tried(security: Security, host: Host) -> Iterator[Step]:
    """Pid 1's part, which executes nothing: a label that does not exist is known from the start."""
    yield from _written(security, host, "/proc/thread-self", AT_FDCWD)


def _written(security: Security, host: Host, task: str, folder: int) -> Iterator[Step]:
    for module, label in (("apparmor", security.apparmor), ("selinux", security.selinux)):
        if label is None:
            continue
        if module not in host.labels:
            raise UnsupportedError(
                f"security.{module}",
                f"the {module} security module, which is not active here",
                _HINTS[module],
            )
        if module == "apparmor":
            why = "an AppArmor profile from execve on; it has to be loaded"
            yield Write(f"{task}/attr/apparmor/exec", f"exec {label}", why, dir=folder)
        else:
            why = "an SELinux label from execve on; the policy has to know it, and to permit the change"
            yield Write(f"{task}/attr/exec", label, why, dir=folder)
