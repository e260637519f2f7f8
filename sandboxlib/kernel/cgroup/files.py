"""
Reading and writing the files of a cgroup, with as few system calls as that takes.

This is on the way of every start: a file is opened, read or written and closed by one native call. Each
function raises `KernelError` that prints the call.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterable

from sandboxlib.errors import KernelError
from sandboxlib.kernel.descriptor import openat
from sandboxlib.kernel.syscall import failed, read_file, write_file

#: Seconds after which a kernel that does not let go of a group is an error.
PATIENCE = 10.0

# What an errno means for a file where the kernel's own text misleads.
_HINTS: dict[tuple[str, int], str] = {
    ("memory.limit_in_bytes", errno.EBUSY): "the processes use more than this, and it cannot be reclaimed",
    (
        "memory.memsw.limit_in_bytes",
        errno.EBUSY,
    ): "the processes use more than this, and it cannot be reclaimed",
    ("cpu.cfs_quota_us", errno.EINVAL): "a group above allows less CPU than this",
    ("cpu.rt_runtime_us", errno.EINVAL): "the group has no real-time CPU time to give",
    (
        "cgroup.subtree_control",
        errno.EBUSY,
    ): "the group has processes of its own, which v2 forbids beside children",
    ("cgroup.subtree_control", errno.ENOENT): "the group above does not pass the controller on",
    ("cgroup.procs", errno.EACCES): "joining needs write access to the nearest group above both",
    (
        "cgroup.procs",
        errno.EBUSY,
    ): "the group passes controllers on to children, so it takes no processes itself",
    ("cgroup.procs", errno.ESRCH): "there is no such process",
    ("devices.allow", errno.EPERM): "a group above denies the device, or CAP_SYS_ADMIN is missing",
    ("io.max", errno.ENODEV): "there is no such disk, or it is a partition",
}


def _hinted(problem: KernelError, path: str) -> KernelError:
    """The same error, with what its errno means for the file *path*."""
    number = problem.errno or 0
    hint = _HINTS.get((os.path.basename(path), number), "")
    return KernelError(number, problem.call, hint=hint) if hint else problem


def read(path: str) -> str:
    """Read a file, whole. Raises: KernelError."""
    size = 16384
    while True:
        try:
            data = read_file(path, size=size)
        except KernelError as problem:
            raise _hinted(problem, path) from None
        if len(data) < size:
            return data.decode()
        size *= 16


def find(path: str) -> str | None:
    """Read a file that this kernel, or the root group, may not have: None without it. Raises: KernelError."""
    try:
        return read(path)
    except KernelError as problem:
        if problem.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return None
        raise


def write(path: str, text: str) -> None:
    """Write *text* in one call, as the kernel wants it. Raises: KernelError."""
    try:
        write_file(path, text)
    except KernelError as problem:
        raise _hinted(problem, path) from None


def mkdir(path: str) -> None:
    """Make a group. Raises: KernelError."""
    try:
        os.mkdir(path, 0o755)
    except OSError as problem:
        raise failed(problem, f'mkdir("{path}")') from None


def rmdir(path: str) -> bool:
    """Remove a group; False while the kernel holds it. One that is gone is fine. Raises: KernelError."""
    try:
        os.rmdir(path)
    except OSError as problem:
        if problem.errno == errno.EBUSY:
            return False
        if problem.errno != errno.ENOENT:
            raise failed(problem, f'rmdir("{path}")') from None
    return True


def subgroups(path: str) -> list[str]:
    """The groups directly below; none if it is gone. Raises: KernelError."""
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise failed(problem, f'scandir("{path}")') from None


def tree(path: str) -> list[str]:
    """The group and all below it, the deepest first."""
    found: list[str] = []
    for below in subgroups(path):
        found += tree(below)
    found.append(path)
    return found


def keyed(text: str) -> dict[str, int]:
    """Read a file of ``name number`` lines, such as memory.stat."""
    return {name: int(number) for name, _, number in (line.partition(" ") for line in text.splitlines())}


def nested(text: str) -> dict[str, dict[str, int]]:
    """Read a file of ``device name=number ...`` lines, such as io.stat."""
    found: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        device, *pairs = line.split()
        values = (pair.partition("=") for pair in pairs)
        found[device] = {name: int(number) for name, _, number in values if number.isdigit()}
    return found


def number(text: str) -> int | None:
    """Read a limit; None for ``max``, and for what v1 writes in its place."""
    plain = text.strip()
    # v1 rounds "no limit" down to a whole page, whose size differs by machine.
    return None if plain in ("max", "-1") or int(plain) >= (1 << 63) - (1 << 16) else int(plain)


def wait(path: str, line: str, patience: float = PATIENCE) -> bool:
    """
    Wait until a line stands in cgroup.events; False if that takes longer than *patience* seconds.

    Kernel: cgroup-v2.rst, [Un]populated Notification: a change signals POLLPRI.
    """
    deadline = time.monotonic() + patience
    try:
        with openat(path, os.O_RDONLY) as fd:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            while line not in os.pread(fd, 4096, 0).decode().splitlines():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poll.poll(left * 1000)
            return True
    except OSError as problem:
        # Removed by another program's sweep, which needs it to be empty.
        if problem.errno in (errno.ENOENT, errno.ENODEV):
            return line == "populated 0"
        raise failed(problem, f'read("{path}")') from None


def until(done: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Ask again, ever less often, until *done*; False if that takes longer than *patience* seconds."""
    deadline = time.monotonic() + patience
    pause = 0.0001
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return True


def disks(devices: Iterable[str], field: str = "io_max") -> dict[str, str]:
    """
    The ``major:minor`` of each disk, given so or by path.

    Raises:
        SpecError: It is no block device, or a partition: the kernel limits whole disks.
    """
    from sandboxlib.errors import SpecError

    found: dict[str, str] = {}
    for device in devices:
        name = device
        if device.startswith("/"):
            try:
                status = os.stat(device)
            except OSError as problem:
                raise SpecError(field, device, f"a disk ({problem.strerror})") from None
            if status.st_mode & 0o170000 != 0o060000:
                raise SpecError(field, device, "a block device")
            name = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        if not os.path.exists(f"/sys/dev/block/{name}"):
            raise SpecError(field, device, "a disk of this machine (see lsblk)")
        if os.path.exists(f"/sys/dev/block/{name}/partition"):
            raise SpecError(field, device, "a whole disk; the kernel has no limits for partitions")
        if name in found.values():
            raise SpecError(field, device, "a disk that is named once")
        found[device] = name
    return found


def has_swap() -> bool:
    """Whether the machine swaps at all. Kernel: /proc/swaps, proc_swaps(5)."""
    return len(read("/proc/swaps").splitlines()) > 1
