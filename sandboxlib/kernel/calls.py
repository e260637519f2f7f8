"""
Which system calls are not to be had: the kernel is too old, or a seccomp filter hides them.

Each is made once in a way that can only fail, and has no effect: what it fails with tells.
"""

from __future__ import annotations

import errno

from sandboxlib.errors import KernelError
from sandboxlib.kernel.syscall import syscall

_NO_FD = -1
#: Each call with arguments that the kernel refuses before it looks at who asks.
_REFUSED: dict[str, tuple[int, ...]] = {
    "clone3": (0, 0),  # EINVAL: a size below the smallest
    "close_range": (1, 0, 0),  # EINVAL: an end before the beginning
    "execveat": (_NO_FD, 0, 0, 0, 0),  # EFAULT
    "memfd_create": (0, 1 << 31),  # EINVAL: an unknown flag
    "mount_setattr": (_NO_FD, 0, 0, 0, 0),  # EINVAL: a size below the smallest
    "openat2": (_NO_FD, 0, 0, 0),  # EINVAL: a size below the smallest
    "pidfd_open": (0, 0),  # EINVAL: no process has this number
    "pidfd_send_signal": (_NO_FD, 0, 0, 0),  # EBADF
    "setns": (_NO_FD, 0),  # EBADF
}
#: The same, but who may not mount is told so first: only their absence can be seen.
_MOUNTING: dict[str, tuple[int, ...]] = {
    "fsconfig": (_NO_FD, 0, 0, 0, 0),
    "fsmount": (_NO_FD, 0, 0),
    "fsopen": (0, 1 << 31),
    "move_mount": (_NO_FD, 0, _NO_FD, 0, 1 << 31),
    "open_tree": (_NO_FD, 0, 1 << 31),
}


def hidden() -> frozenset[str]:
    """The names of those that this program cannot make."""
    found = {name for name, args in _REFUSED.items() if _answer(name, args) in (errno.ENOSYS, errno.EPERM)}
    found |= {name for name, args in _MOUNTING.items() if _answer(name, args) == errno.ENOSYS}
    return frozenset(found)


def _answer(name: str, args: tuple[int, ...]) -> int:
    try:
        syscall(name, *args)
    except KernelError as error:
        return error.errno or 0
    return 0


__all__ = ["hidden"]
