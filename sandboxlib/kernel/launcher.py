"""Starts the launcher and hears what it says."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Iterator
from typing import NamedTuple

from sandboxlib._native import ffi, lib
from sandboxlib.errors import KernelError
from sandboxlib.kernel.descriptor import Fd

DONE, CHILD, READY, FAILED, NOT_FOUND, DATA = (
    int(lib.SBX_DONE),
    int(lib.SBX_CHILD),
    int(lib.SBX_READY),
    int(lib.SBX_FAILED),
    int(lib.SBX_NOT_FOUND),
    int(lib.SBX_DATA),
)
INTERPRETER = int(lib.SBX_INTERPRETER)
_SOCKET = int(lib.SBX_SOCKET)
_EINTR = -errno.EINTR
LIFETIME_OVER = int(lib.SBX_LIFETIME_OVER)
#: How many bytes come along with one report at most.
ROOM = int(lib.SBX_ROOM)
NO_ROOM = bytearray()
_REPORT = ffi.sizeof("struct sbx_report")
#: Bytes of the longest program.
MAX_SIZE = int(lib.SBX_MAX_SIZE)
#: How much a served program may be long, see ``SBX_SERVE_SIZE``.
SERVE_SIZE = 65536


class Reported(NamedTuple):
    """
    One report: what `sbx_report` of protocol.h has, its index as `step`.

    Attributes:
        fd: A descriptor that came along, or none.
        data: The bytes that stand behind it.
    """

    kind: int
    step: int
    error: int
    value: int
    fd: Fd
    data: bytes = b""


class Ended(NamedTuple):
    """
    How a child of a launcher's ended, and what it used, by the kernel's word.

    Attributes:
        status: As `os.waitstatus_to_exitcode` gives it.
        user, system: Seconds of CPU.
        read, written: Blocks of 512 bytes.
        executed: It was the command by then. Asked only of who was killed by SIGKILL.
    """

    status: int
    user: float
    system: float
    read: int
    written: int
    executed: bool = True


_images: dict[int, Fd] = {}


def _image() -> int:
    # One sealed memfd per process: it is close-on-exec, and a forked child shares it harmlessly.
    fd = _images.get(0)
    if fd is None:
        fd = Fd()
        rv = lib.sbx_launcher_open(fd.cell)
        if rv < 0:
            raise KernelError(-rv, 'memfd_create("launcher")', "carry the launcher")
        fd = _images.setdefault(0, fd)
    return fd.fileno()


class Launch:
    """
    One start of the launcher, and the child that it makes: both are the program's own children.

    It is there before it is begun, and what is begun is known to it whatever comes in between: so `close`
    finds all that there is to be ended.
    """

    __slots__ = ("__weakref__", "_at", "_owned")

    def __init__(self) -> None:
        self._at = ffi.new("struct sbx_launch *", {"control": -1, "tie": -1, "pidfd": -1})
        self._owned = ffi.gc(self._at, lib.sbx_launch_end)

    # ---- the launcher ---------------------------------------------------------------------

    def begin(self, program: bytes, *further: int, stdio: tuple[int, int, int] | None = None) -> None:
        """
        Start the launcher with *program*.

        The descriptors are borrowed: *stdio* become 0, 1, 2, which without it are its control socket, and
        *further* stand from `FIRST` on.

        Raises:
            KernelError: There is no memory, or a limit on processes or descriptors is reached.

        Kernel: vfork(2), execveat(2), memfd_create(2); unix(7), SOCK_SEQPACKET.
        """
        fds = ffi.new("int[]", [*(stdio or (_SOCKET,) * 3), _SOCKET, -1, *further])
        rv = lib.sbx_launch(self._at, _image(), program, len(program), fds, 5 + len(further))
        if rv < 0:
            raise KernelError(-rv, 'execveat(<launcher>, "", AT_EMPTY_PATH)', "start the launcher")

    @property
    def control(self) -> int:
        """Our end of its socket, or -1."""
        return self._at.control  # type: ignore[no-any-return]

    def hear(self, room: bytearray = NO_ROOM) -> Reported | None:
        """
        The next report, or None at the end. Waits: ask first whether `control` is ready.

        Args:
            room: Where bytes that come along are put for the moment; `ROOM` of them are enough.

        Raises:
            KernelError: EMFILE: a descriptor came along, and the program has as many as it may.
        """
        report, sender, fd = ffi.new("struct sbx_report *"), ffi.new("int *"), Fd()
        data = ffi.from_buffer(room)
        while (rv := lib.sbx_hear(self._at, report, data, len(room), fd.cell, sender)) == _EINTR:
            continue
        if rv < 0:
            raise KernelError(-rv, f"recvmsg({self.control})", "hear the launcher")
        if rv == 0:
            return None
        more = bytes(memoryview(room)[: rv - _REPORT]) if room else b""
        return Reported(report.kind, report.index, report.error, report.value, fd, more)

    def pending(self) -> Iterator[Reported]:
        """The reports that are there already: all there will be, once the launcher was reaped."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        while poll.poll(0):
            try:
                report = self.hear()
            except KernelError as error:
                # A descriptor that there is no room for is nobody's.
                if error.errno != errno.EMFILE:
                    raise
                continue
            if report is None:
                break
            yield report

    def send(self, program: bytes) -> None:
        """Send a program to a launcher that serves."""
        rv = lib.sbx_send(self.control, program, len(program))
        if rv < 0:
            raise KernelError(-rv, f"send({self.control}, <{len(program)} bytes>)", "ask the launcher")

    def tie(self) -> Fd:
        """
        Make a pipe whose other end the child is to watch: it ends when ours is closed, by whatever.

        That is close-on-exec, so it is closed as well by a program that executes another.
        """
        read = Fd()
        rv = lib.sbx_pipe(read.cell, ffi.addressof(self._at, "tie"))
        if rv < 0:
            raise KernelError(-rv, "pipe2(O_CLOEXEC)", "tie a child to this program")
        return read

    def close(self) -> None:
        """Close all descriptors. Idempotent."""
        for field in ("control", "tie", "pidfd"):
            lib.sbx_close(ffi.addressof(self._at, field))

    def hang_up(self) -> None:
        """Close our end of its socket; one that serves leaves at that."""
        lib.sbx_close(ffi.addressof(self._at, "control"))

    @property
    def launcher(self) -> int:
        """The launcher's pid, or 0 as long as it was not started."""
        return self._at.launcher  # type: ignore[no-any-return]

    def kill_launcher(self) -> None:
        """Kill the launcher itself, whatever it is in the middle of."""
        if self._at.launcher and not self._at.reaped and self._is_own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._at.launcher, signal.SIGKILL)

    def reap_launcher(self) -> bool:
        """See whether the launcher, if it was started, has ended; does not wait."""
        if not self._is_own:
            return True
        rv = lib.sbx_reap(self._at)
        if rv < 0:
            raise KernelError(-rv, f"wait4({self._at.launcher})", "the launcher's end")
        return bool(rv)

    @property
    def _is_own(self) -> bool:
        """Has this process begun it? One that was forked from that has no say over its parent's children."""
        return self._at.program == os.getpid()  # type: ignore[no-any-return]

    # ---- its child ------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of the child, or 0 as long as nobody has told of one."""
        return self._at.child  # type: ignore[no-any-return]

    @property
    def pidfd(self) -> int:
        """The child as a descriptor, borrowed; or -1."""
        return self._at.pidfd  # type: ignore[no-any-return]

    def pin(self) -> int:
        """
        Have the child as a descriptor.

        Raises:
            KernelError: ESRCH: it has ended, and the program ignores SIGCHLD.
        """
        if self._at.pidfd < 0:
            pid = self._at.child
            rv = lib.sbx_syscall_fd(ffi.addressof(self._at, "pidfd"), lib.SYS_pidfd_open, pid, 0, 0, 0, 0, 0)
            if rv < 0:
                raise KernelError(-rv, f"pidfd_open({pid})", "the launcher's child")
        return self._at.pidfd  # type: ignore[no-any-return]

    @property
    def lives(self) -> bool:
        """Is there a child that nobody has waited for?"""
        return bool(self._at.child) and not self._at.ended and self._is_own

    def kill(self) -> None:
        """Kill the child, if there is one."""
        if self.lives:
            # It is not waited for, so nobody else has its number.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._at.child, signal.SIGKILL)

    def wait(self) -> Ended | None:
        """
        How the child ended, or None as long as it runs; does not wait.

        Raises:
            ChildProcessError: Somebody else in the program took its status.
        """
        rv = lib.sbx_wait(self._at)
        if rv < 0:
            raise KernelError(-rv, f"wait4({self._at.child})", "the status of a child")
        return self.ended

    def reap_child(self) -> bool:
        """See whether the child, if there is one, has ended, by whoever's word; does not wait."""
        with contextlib.suppress(ChildProcessError):
            self.wait()
        return not self.lives

    @property
    def ended(self) -> Ended | None:
        """How the child ended, if it was waited for; with zeros where somebody else took its status."""
        at = self._at
        if not at.ended:
            return None
        status = os.waitstatus_to_exitcode(at.status)
        return Ended(status, at.user, at.system, at.read, at.written, bool(at.executed))

    def unpin(self) -> None:
        """Close the child's descriptor."""
        lib.sbx_close(ffi.addressof(self._at, "pidfd"))


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
