"""What a sandbox tells: outcomes, usage, statistics, changes, processes."""

from __future__ import annotations

import enum
import subprocess
from typing import Any, NamedTuple


class Outcome(enum.Enum):
    """
    How a command ended, told from kernel counters and never from an exit status.

    A limit that was hit wins over the signal that enforced it.
    """

    EXITED = "exited"
    SIGNALED = "signaled"
    WALL_TIME = "wall_time"
    CPU_TIME = "cpu_time"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    LIFETIME = "lifetime"
    KILLED = "killed"


class Usage(NamedTuple):
    """
    What a command and all its children used.

    None where this host has nothing that counts it. Bytes from and to block devices are those of
    the command and of the children that it waited for, unless cgroup v2 counts them; without any
    cgroup that goes for CPU seconds too.

    Attributes:
        wall: Seconds from start to end.
        cpu_user: CPU seconds in user mode.
        cpu_system: CPU seconds in the kernel.
        memory_peak: Highest memory use in bytes, page cache included.
        pids_peak: Most processes and threads at one time.
        io_read: Bytes read from block devices.
        io_written: Bytes written to block devices.
        oom_kills: Processes that the kernel killed for want of memory.
    """

    wall: float
    cpu_user: float | None = None
    cpu_system: float | None = None
    memory_peak: int | None = None
    pids_peak: int | None = None
    io_read: int | None = None
    io_written: int | None = None
    oom_kills: int | None = None


class MemoryStats(NamedTuple):
    """
    Memory in bytes, by kind. None where the host does not count it.

    Kernel: memory.current, memory.peak, memory.stat, memory.events of cgroup v2; the v1
    driver maps its own files to the same meaning.
    """

    current: int
    peak: int | None
    max: int | None
    anon: int
    file: int
    kernel: int | None
    active_anon: int
    inactive_anon: int
    active_file: int
    inactive_file: int
    swap: int | None
    oom: int
    oom_kill: int
    at_max: int


class CPUStats(NamedTuple):
    """CPU time in seconds; `throttled` is time spent waiting for quota. Kernel: cpu.stat."""

    usage: float
    user: float
    system: float
    periods: int
    throttled_periods: int
    throttled: float


class PidsStats(NamedTuple):
    """Processes and threads; `at_max` counts forks that were refused. Kernel: pids.*."""

    current: int
    peak: int | None
    max: int | None
    at_max: int


class IOStats(NamedTuple):
    """Bytes and operations of one block device ``"major:minor"``. Kernel: io.stat."""

    rbytes: int
    wbytes: int
    rios: int
    wios: int


class NetworkStats(NamedTuple):
    """Bytes and packets over one interface. Kernel: /proc/net/dev."""

    received: int
    sent: int
    packets_received: int
    packets_sent: int


class Stall(NamedTuple):
    """
    How much of the time processes have waited for something, by averages over the last seconds.

    Attributes:
        avg10: Of the last 10 seconds, 0 to 1.
        avg60: Of the last 60 seconds, 0 to 1.
        avg300: Of the last 300 seconds, 0 to 1.
        total: Seconds in all.
    """

    avg10: float
    avg60: float
    avg300: float
    total: float


class Pressure(NamedTuple):
    """
    How short something is. Kernel: Documentation/accounting/psi.rst; Linux 4.20.

    Attributes:
        some: Some process waited for it.
        full: All waited for it at once; None where the kernel does not tell (cpu before Linux 5.13).
    """

    some: Stall
    full: Stall | None


class Stats(NamedTuple):
    """
    What a cgroup, or a sandbox, uses now. A part is None where no controller counts it.

    Attributes:
        memory: `MemoryStats`.
        cpu: `CPUStats`.
        pids: `PidsStats`.
        io: `IOStats` by device ``"major:minor"``.
        network: `NetworkStats` by interface; only of a sandbox.
        pressure: `Pressure` by ``memory``, ``cpu`` and ``io``; cgroup v2 on a kernel with PSI (and
            ``psi=1`` where that is not its default).
    """

    memory: MemoryStats | None
    cpu: CPUStats | None
    pids: PidsStats | None
    io: dict[str, IOStats] | None
    network: dict[str, NetworkStats] | None = None
    pressure: dict[str, Pressure] | None = None


class ProcessInfo(NamedTuple):
    """
    One process of a sandbox.

    Attributes:
        pid: Its number inside.
        host_pid: Its number outside.
        command: Its argument vector, or its name in brackets.
        state: The letter of proc(5): R, S, D, T, Z, ...
        memory: Resident bytes.
        cpu: CPU seconds so far.
    """

    pid: int
    host_pid: int
    command: tuple[str, ...]
    state: str
    memory: int
    cpu: float


class Change(NamedTuple):
    """A difference to the root file system's start: kind is added, modified or deleted."""

    kind: str
    path: str


class Completed(subprocess.CompletedProcess):  # type: ignore[type-arg]
    """
    A command that has ended; also a `subprocess.CompletedProcess`.

    Attributes:
        args: The command.
        returncode: Exit status, or the negative number of the signal.
        stdout, stderr: Bytes (or str where text was asked for), or None if not captured.
        outcome: The `Outcome`.
        usage: The `Usage` of the command and its children.
        stdout_truncated, stderr_truncated: Bytes left out of the middle of each stream.
    """

    outcome: Outcome
    usage: Usage
    stdout_truncated: int
    stderr_truncated: int

    def __init__(
        self,
        args: Any,
        returncode: int,
        stdout: Any = None,
        stderr: Any = None,
        *,
        outcome: Outcome,
        usage: Usage,
        stdout_truncated: int = 0,
        stderr_truncated: int = 0,
    ) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self.outcome = outcome
        self.usage = usage
        self.stdout_truncated = stdout_truncated
        self.stderr_truncated = stderr_truncated

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, outcome={self.outcome})"

    def check_returncode(self) -> None:
        """Raise `ExitError` unless the command exited with 0."""
        from sandboxlib.errors import ExitError

        if self.returncode or self.outcome is not Outcome.EXITED:
            raise ExitError(self.returncode, self.args, self.stdout, self.stderr, self)
