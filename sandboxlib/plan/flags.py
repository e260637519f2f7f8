"""
The kernel's numbers that plans are made of, each with its name.

They are the kernel's ABI, the same on every architecture; those that are not
(``O_DIRECTORY``) come from `os`. A test compares each with the compiler's.
"""

from __future__ import annotations

import os
from typing import Self


class Named(int):
    """A number that prints as its name; names are joined by ``|``."""

    text: str

    def __new__(cls, number: int, text: str) -> Self:
        """A number and the name that it prints as."""
        self = super().__new__(cls, number)
        self.text = text
        return self

    def __or__(self, other: int) -> Named:
        if not isinstance(other, Named):
            other = Named(other, hex(other))
        if not self:
            return other
        return Named(int(self) | int(other), f"{self.text}|{other.text}") if other else self

    def __repr__(self) -> str:
        return self.text

    __str__ = __repr__


NOTHING = Named(0, "0")

AT_FDCWD = Named(-100, "AT_FDCWD")
AT_EMPTY_PATH = Named(0x1000, "AT_EMPTY_PATH")
AT_RECURSIVE = Named(0x8000, "AT_RECURSIVE")
AT_REMOVEDIR = Named(0x200, "AT_REMOVEDIR")
AT_SYMLINK_NOFOLLOW = Named(0x100, "AT_SYMLINK_NOFOLLOW")

O_RDONLY = Named(os.O_RDONLY, "O_RDONLY")
O_WRONLY = Named(os.O_WRONLY, "O_WRONLY")
O_RDWR = Named(os.O_RDWR, "O_RDWR")
O_CREAT = Named(os.O_CREAT, "O_CREAT")
O_EXCL = Named(os.O_EXCL, "O_EXCL")
O_TRUNC = Named(os.O_TRUNC, "O_TRUNC")
O_NONBLOCK = Named(os.O_NONBLOCK, "O_NONBLOCK")
O_NOCTTY = Named(os.O_NOCTTY, "O_NOCTTY")
O_PATH = Named(os.O_PATH, "O_PATH")
O_DIRECTORY = Named(os.O_DIRECTORY, "O_DIRECTORY")
O_NOFOLLOW = Named(os.O_NOFOLLOW, "O_NOFOLLOW")
O_CLOEXEC = Named(os.O_CLOEXEC, "O_CLOEXEC")

CLONE_VM = Named(0x100, "CLONE_VM")
CLONE_PARENT = Named(0x8000, "CLONE_PARENT")
CLONE_NEWTIME = Named(0x80, "CLONE_NEWTIME")
CLONE_NEWNS = Named(0x00020000, "CLONE_NEWNS")
CLONE_NEWCGROUP = Named(0x02000000, "CLONE_NEWCGROUP")
CLONE_NEWUTS = Named(0x04000000, "CLONE_NEWUTS")
CLONE_NEWIPC = Named(0x08000000, "CLONE_NEWIPC")
CLONE_NEWUSER = Named(0x10000000, "CLONE_NEWUSER")
CLONE_NEWPID = Named(0x20000000, "CLONE_NEWPID")
CLONE_NEWNET = Named(0x40000000, "CLONE_NEWNET")
CLONE_INTO_CGROUP = Named(0x200000000, "CLONE_INTO_CGROUP")

#: OCI's name of a namespace kind to its flag and its file in /proc/<pid>/ns.
NAMESPACES: dict[str, tuple[Named, str]] = {
    "user": (CLONE_NEWUSER, "user"),
    "mount": (CLONE_NEWNS, "mnt"),
    "pid": (CLONE_NEWPID, "pid"),
    "network": (CLONE_NEWNET, "net"),
    "ipc": (CLONE_NEWIPC, "ipc"),
    "uts": (CLONE_NEWUTS, "uts"),
    "cgroup": (CLONE_NEWCGROUP, "cgroup"),
    "time": (CLONE_NEWTIME, "time"),
}

OPEN_TREE_CLONE = Named(1, "OPEN_TREE_CLONE")
OPEN_TREE_CLOEXEC = Named(os.O_CLOEXEC, "OPEN_TREE_CLOEXEC")
MOVE_MOUNT_F_EMPTY_PATH = Named(0x4, "MOVE_MOUNT_F_EMPTY_PATH")
MOVE_MOUNT_T_EMPTY_PATH = Named(0x40, "MOVE_MOUNT_T_EMPTY_PATH")
FSOPEN_CLOEXEC = Named(1, "FSOPEN_CLOEXEC")
FSCONFIG_SET_FLAG = Named(0, "FSCONFIG_SET_FLAG")
FSCONFIG_SET_STRING = Named(1, "FSCONFIG_SET_STRING")
FSCONFIG_SET_FD = Named(5, "FSCONFIG_SET_FD")
FSCONFIG_CMD_CREATE = Named(6, "FSCONFIG_CMD_CREATE")
FSMOUNT_CLOEXEC = Named(1, "FSMOUNT_CLOEXEC")
MOUNT_ATTR_RDONLY = Named(0x1, "MOUNT_ATTR_RDONLY")
MOUNT_ATTR_NOSUID = Named(0x2, "MOUNT_ATTR_NOSUID")
MOUNT_ATTR_NODEV = Named(0x4, "MOUNT_ATTR_NODEV")
MOUNT_ATTR_NOEXEC = Named(0x8, "MOUNT_ATTR_NOEXEC")
MOUNT_ATTR_IDMAP = Named(0x00100000, "MOUNT_ATTR_IDMAP")
MS_PRIVATE = Named(1 << 18, "MS_PRIVATE")
MNT_DETACH = Named(2, "MNT_DETACH")

RESOLVE_NO_MAGICLINKS = Named(0x02, "RESOLVE_NO_MAGICLINKS")
RESOLVE_NO_SYMLINKS = Named(0x04, "RESOLVE_NO_SYMLINKS")
RESOLVE_BENEATH = Named(0x08, "RESOLVE_BENEATH")
RESOLVE_IN_ROOT = Named(0x10, "RESOLVE_IN_ROOT")

CLOSE_RANGE_CLOEXEC = Named(4, "CLOSE_RANGE_CLOEXEC")

PR_SET_DUMPABLE = Named(4, "PR_SET_DUMPABLE")
PR_SET_KEEPCAPS = Named(8, "PR_SET_KEEPCAPS")
PR_SET_NAME = Named(15, "PR_SET_NAME")
PR_CAPBSET_DROP = Named(24, "PR_CAPBSET_DROP")
PR_SET_NO_NEW_PRIVS = Named(38, "PR_SET_NO_NEW_PRIVS")
PR_CAP_AMBIENT = Named(47, "PR_CAP_AMBIENT")
PR_CAP_AMBIENT_RAISE = Named(2, "PR_CAP_AMBIENT_RAISE")

SECCOMP_SET_MODE_FILTER = Named(1, "SECCOMP_SET_MODE_FILTER")
KEYCTL_JOIN_SESSION_KEYRING = Named(1, "KEYCTL_JOIN_SESSION_KEYRING")
LANDLOCK_RULE_PATH_BENEATH = Named(1, "LANDLOCK_RULE_PATH_BENEATH")

SIOCSIFFLAGS = Named(0x8914, "SIOCSIFFLAGS")
TIOCSCTTY = Named(0x540E, "TIOCSCTTY")
AF_INET = Named(2, "AF_INET")
AF_NETLINK = Named(16, "AF_NETLINK")
SOCK_DGRAM = Named(2, "SOCK_DGRAM")
SOCK_RAW = Named(3, "SOCK_RAW")
SOCK_NONBLOCK = Named(os.O_NONBLOCK, "SOCK_NONBLOCK")
SOCK_CLOEXEC = Named(0o2000000, "SOCK_CLOEXEC")

#: getrlimit(2) resources as the generic ABI numbers them; x86_64 and aarch64 agree.
RLIMITS: dict[str, int] = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}
