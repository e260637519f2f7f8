"""
The namespaces that a run of the tests stands in, so that it and this machine do not disturb each other.

Who may leaves the machine's mount, network and IPC namespaces when the run begins. Mounts, interfaces,
rules, settings of the network, abstract sockets and IPC objects are then this run's alone: what is there
afterwards and was not before has been left by it, whatever Docker, podman or another run of this suite
does meanwhile; and what a test does to a network it does not do to this machine's.

What is left of the machine in them is what a sandbox meets elsewhere as well: each mount is shared with
those who copy it, as systemd has it, so that a copy which is not made private shows here; of the network
there is the loopback, and the settings that Linux hands to new namespaces.

Cgroups, processes, keys and files in /tmp are one for all: leaks.py says how it tells whose they are.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import socket
import struct
from pathlib import Path

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWNET = 0x20000, 0x08000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 0x1000, 0x4000, 1 << 18, 1 << 20
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
CAP_SYS_ADMIN = 21

RUN, NAMES = Path("/run/sandboxlib"), Path("/run/netns")
#: Locks that say which ranges of IDs are in use: these must not be two runs' at the same time.
IDS = RUN / "ids"

#: Whether this program has left the machine's.
entered = False
#: The table of the machine's mounts, of which this program's are a copy; it goes on being that table.
_machine = -1


def may_leave() -> bool:
    """Tell whether who runs the tests may make namespaces, and so mounts and interfaces at all."""
    match = re.search(r"^CapEff:\s*(\S+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> CAP_SYS_ADMIN & 1)


def leave() -> None:
    """Have namespaces of one's own from now on; nothing happens where that is not allowed."""
    global entered, _machine  # noqa: PLW0603 - a program can do it once
    if entered or not may_leave():
        return
    _machine = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    _call("unshare", CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET)
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    _call("mount", b"none", b"/", None, MS_REC | MS_SHARED, None)
    _own_folders()
    entered = True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def machine_has(mount: str) -> bool:
    """Tell whether the machine still has the mount of which one here, a line of mountinfo, is a copy."""
    if _machine < 0:
        return True
    os.lseek(_machine, 0, os.SEEK_SET)
    with open(_machine, encoding="utf-8", errors="replace", closefd=False) as table:
        # The number of a mount and its parent's are another's in each copy.
        return any(line.split()[2:5] == mount.split()[2:5] for line in table)


def _own_folders() -> None:
    """Folders for this run that say what is in its network namespace, and what other namespaces there are."""
    # The names of network namespaces are one folder, whoever made them.
    NAMES.mkdir(mode=0o755, exist_ok=True)
    _call("mount", b"tmpfs", os.fsencode(NAMES), b"tmpfs", 0, b"mode=755")
    RUN.mkdir(mode=0o700, exist_ok=True)
    ids = os.open(IDS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _call("mount", b"tmpfs", os.fsencode(RUN), b"tmpfs", 0, b"mode=700")
    IDS.touch(mode=0o600)
    _call("mount", f"/proc/self/fd/{ids}".encode(), os.fsencode(IDS), None, MS_BIND, None)
    os.close(ids)


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}{arguments}: {os.strerror(ctypes.get_errno())}")
