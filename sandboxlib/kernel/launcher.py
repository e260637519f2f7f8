"""Starts the launcher and hears what it says."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from typing import NamedTuple

from sandboxlib._native import ffi, lib
from sandboxlib.errors import KernelError

DONE, CHILD, READY, FAILED, NOT_FOUND = (
    int(lib.SBX_DONE),
    int(lib.SBX_CHILD),
    int(lib.SBX_READY),
    int(lib.SBX_FAILED),
    int(lib.SBX_NOT_FOUND),
)
INTERPRETER = int(lib.SBX_INTERPRETER)
LIFETIME_OVER = int(lib.SBX_LIFETIME_OVER)
#: Bytes of the longest program.
MAX_SIZE = int(lib.SBX_MAX_SIZE)
#: How much a served program may be long, see ``SBX_SERVE_SIZE``.
SERVE_SIZE = 65536


class Reported(NamedTuple):
    """
    One report: what `sbx_report` of protocol.h has, its index as `step`.

    Attributes:
        fd: A descriptor that came along, owned by the receiver, or -1.
        sender: The pid of who sent it, as the kernel tells it.
    """

    kind: int
    step: int
    error: int
    value: int
    fd: int
    sender: int


_image: dict[int, int] = {}


def _launcher() -> int:
    # One sealed memfd per process: it is close-on-exec, and a forked child shares it harmlessly.
    fd = _image.get(0, -1)
    if fd < 0:
        fd = lib.sbx_launcher_open()
        if fd < 0:
            raise KernelError(-fd, 'memfd_create("launcher")', "carry the launcher")
        _image[0] = fd
    return fd


def spawn(program: bytes, stdio: tuple[int, int, int], control: int, *further: int) -> int:
    """
    Start the launcher with *program*; returns its pid, which the caller has to reap.

    The descriptors are borrowed: they become 0, 1, 2, `CONTROL` and from `FIRST` on.

    Raises:
        KernelError: There is no memory, or a limit on processes is reached.

    Kernel: vfork(2), execveat(2), memfd_create(2).
    """
    fds = ffi.new("int[]", [*stdio, control, -1, *further])
    pid = lib.sbx_spawn(_launcher(), program, len(program), fds, 5 + len(further))
    if pid < 0:
        raise KernelError(-pid, 'execveat(<launcher>, "", AT_EMPTY_PATH)', "start the launcher")
    return int(pid)


def socketpair() -> tuple[int, int]:
    """Make two connected sockets that keep messages apart. Kernel: unix(7), SOCK_SEQPACKET."""
    fds = ffi.new("int[2]")
    rv = lib.sbx_socketpair(fds)
    if rv < 0:
        raise KernelError(-rv, "socketpair(AF_UNIX, SOCK_SEQPACKET)")
    return fds[0], fds[1]


def receive(control: int) -> Reported | None:
    """The next report, or None at the end. Waits: ask first whether the descriptor is ready."""
    report = ffi.new("struct sbx_report *")
    passed, sender = ffi.new("int *"), ffi.new("int *")
    while True:
        rv = lib.sbx_receive(control, report, passed, sender)
        if rv != -4:
            break
    if rv < 0:
        raise KernelError(-rv, f"recvmsg({control})", "hear the launcher")
    if rv == 0:
        return None
    return Reported(report.kind, report.index, report.error, report.value, passed[0], sender[0])


def pending(control: int) -> Iterator[Reported]:
    """The reports that are there already; those after an interruption, once the launcher was reaped."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while poll.poll(0) and (report := receive(control)) is not None:
        yield report


def send(control: int, program: bytes) -> None:
    """Send a program to a launcher that serves."""
    rv = lib.sbx_send(control, program, len(program))
    if rv < 0:
        raise KernelError(-rv, f"send({control}, <{len(program)} bytes>)", "ask the launcher")


def close(*fds: int) -> None:
    """Close those that are open."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def reaped(pid: int) -> int | None:
    """The exit status of a child of ours, or the negative number of a signal; None as long as it runs."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        # The program ignores SIGCHLD: the kernel has reaped it already.
        return 0
    return os.waitstatus_to_exitcode(status) if found else None


def reap_strays(namespace: str, known: set[int]) -> None:
    """
    Reap those of our children in the PID namespace *namespace*, a path, that have ended.

    Where the kernel does not tell a dead child's namespace (it was not dumpable), it is one that lies
    below our own namespace and is none of *known*, those whose status somebody waits for.
    """
    try:
        wanted = os.readlink(namespace)
    except FileNotFoundError:
        return
    for name in filter(str.isdigit, os.listdir("/proc")):
        # Gone in between, another user's, or no child of ours.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ChildProcessError):
            if f"/proc/{name}/ns/pid" == namespace:
                continue
            try:
                found = os.readlink(f"/proc/{name}/ns/pid") == wanted
            except PermissionError:
                found = int(name) not in known and _below(name)
            if found:
                os.waitpid(int(name), os.WNOHANG)


def _below(pid: str) -> bool:
    """Is a process in a PID namespace below ours? Kernel: proc_pid_status(5), NSpid, Linux 4.1."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        numbers = next(line for line in file if line.startswith("NSpid:")).split()[1:]
    # As many numbers as namespaces, from that of this /proc on.
    return len(numbers) > 1
