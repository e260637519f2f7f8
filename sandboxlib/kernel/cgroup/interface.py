"""What the two drivers have in common: the shape that the engine sees."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from sandboxlib.cgroup import CGroup
from sandboxlib.result import Stats, Usage


class Events(NamedTuple):
    """
    How often limits were hit since the group was made.

    Attributes:
        oom: Times that the limit could not be met; on v1, where only kills are counted, `oom_kill`.
        oom_kill: Processes that were killed for it.
        memory_max: Times that memory_max was hit; most were met by reclaim. On v1 with
            memory_swap_max only those that ended with a kill are counted.
        memory_high: Times that memory_high slowed a process down; 0 on v1.
        pids_max: Forks that pids_max refused.

    Kernel: memory.events, pids.events; on v1 memory.oom_control and memory.failcnt.
    """

    oom: int = 0
    oom_kill: int = 0
    memory_max: int = 0
    memory_high: int = 0
    pids_max: int = 0


class Leaf(Protocol):
    """The group of one command, below a `Group`; belongs to one caller until it is released."""

    def join_files(self) -> tuple[str, ...]:
        """Files into which a single-threaded process writes ``0`` to join, in this order."""

    def joined(self, files: tuple[str, ...]) -> None:
        """
        Say that a process has joined through *files*.

        An `update` meanwhile may have put the group under one more controller of v1,
        whose file was not among them: then what is in the leaf is brought there too.

        Raises: KernelError.
        """

    @property
    def clone_folder(self) -> str | None:
        """On v2 the folder for CLONE_INTO_CGROUP, which joins without any write; None on v1."""

    @property
    def pids_bound(self) -> tuple[str, int] | None:
        """
        The file with the number of the whole group's processes, and how many it may be; None for no limit.

        For who joins: the kernel refuses forks past the limit, and lets everybody join.
        """

    def usage(self, wall: float) -> Usage:
        """What the command has used; *wall* seconds are handed through. Raises: KernelError."""

    def oom_kills(self) -> int:
        """Processes of it that were killed for want of memory. Raises: KernelError."""

    def met_memory(self) -> bool:
        """Has a limit on memory, its own or the group's, ever been met? Raises: KernelError."""

    def cpu_seconds(self) -> float:
        """CPU seconds so far. Raises: KernelError."""

    def oom_fd(self) -> tuple[int, int]:
        """
        A descriptor that signals OOM kills while they happen, and the poll(2) event it signals with.

        It is the leaf's, and closed with it. Counters tell the same at the end, so it
        is only for who has to act at once.

        Raises: KernelError.
        """

    def pids(self) -> list[int]:
        """Its processes, as the caller numbers them. Raises: KernelError."""

    def kill(self) -> None:
        """Kill the whole tree, and return when none of it runs. Raises: KernelError."""

    def release(self) -> None:
        """Give it back; idempotent. What runs in it goes on until the group closes. Raises: KernelError."""


class Group(Protocol):
    """
    A group of processes with limits, and the groups below it.

    Attributes:
        name: Its name, of `Owner.name`.
        spec: The limits in force.
        paths: Folder by controller; on v2 all are the same.
        closed: Nothing begins in it any more.
    """

    name: str
    spec: CGroup
    paths: dict[str, str]
    closed: bool

    def make(self) -> None:
        """Make it, with its limits in force before any process is in it. Raises: as `prepare`."""

    def join_files(self) -> tuple[str, ...]:
        """Files into which a single-threaded process writes ``0`` to join, in this order."""

    def init_oom_kills(self) -> int:
        """How often a process in none of the leaves was killed for want of memory. Raises: KernelError."""

    def init_files(self) -> tuple[str, ...]:
        """
        Files into which the first process writes ``0`` after it has unshared its cgroup namespace.

        Not sooner: the namespace's root is where the process is when it is made. Empty on v1.
        """

    @property
    def clone_folder(self) -> str | None:
        """On v2 the folder for CLONE_INTO_CGROUP, which joins without any write; None on v1."""

    def enable_leaves(self) -> None:
        """Pass the controllers on, once no process is left in the group itself. Raises: KernelError."""

    def check_open(self) -> None:
        """Raises: StateError: It is closed."""

    def leaf(self, limits: CGroup | None = None) -> Leaf:
        """
        A group for one command, used again where that cannot be told from a new one.

        Raises:
            SpecError: A limit is above the group's own.
            UnsupportedError: A limit that this host cannot set.
            KernelError: A file could not be written; nothing is left behind.
        """

    def add(self, pid: int) -> None:
        """Move a process into the group, with all its threads. Raises: KernelError."""

    def pids(self) -> list[int]:
        """All processes in it and below, as the caller numbers them. Raises: KernelError."""

    def stats(self) -> Stats:
        """What it uses now. Raises: KernelError."""

    def events(self) -> Events:
        """How often limits were hit. Raises: KernelError."""

    def update(self, limits: CGroup) -> None:
        """
        Change the limits that *limits* sets, with the processes running.

        A field that fails leaves those before it changed, in the order of the
        `CGroup` fields; `spec` says what is in force.

        Raises: SpecError, UnsupportedError, KernelError as at creation.
        """

    def freeze(self) -> None:
        """Stop every process, and return when all have stopped. Raises: KernelError."""

    def thaw(self) -> None:
        """Let them go on. Raises: KernelError."""

    def kill(self) -> None:
        """Kill every process in it and below, and return when none of them runs. Raises: KernelError."""

    def close(self) -> None:
        """
        Kill what is left and remove the group; closing again carries on with what is left.

        Raises: KernelError naming the pids left.
        """
