"""A group that a program has opened by itself: what ``CGroup.open`` returns."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from sandboxlib.cgroup import CGroup
from sandboxlib.doors import doors
from sandboxlib.errors import KernelError
from sandboxlib.kernel.cgroup.drivers import prepare
from sandboxlib.kernel.cgroup.interface import Events, Group
from sandboxlib.kernel.cgroup.owner import sweep
from sandboxlib.kernel.cgroup.scope import acquire
from sandboxlib.kernel.folders import run_folder
from sandboxlib.kernel.owner import Owner
from sandboxlib.kernel.removal import warn
from sandboxlib.result import Stats


@doors
class OpenCGroup:
    """
    A group that exists, with its limits in force; closing it kills what is in it.

    Example:
        >>> import os, subprocess
        >>> with CGroup(pids_max=10).open() as group, subprocess.Popen(["sleep", "60"]) as sleeper:
        ...     group.add(sleeper.pid)
        ...     group.kill()
        ...     sleeper.wait()
        -9
    """

    def __init__(self, group: Group, owner: Owner) -> None:
        self._group = group
        self._owner = owner
        self._pid = os.getpid()

    @classmethod
    def make(cls, spec: CGroup) -> Self:
        """Make a group for *spec* where this program may. Raises: as `CGroup.open`."""
        host, folder = acquire(), run_folder(os.geteuid())
        try:
            sweep(host, folder)
        except KernelError as problem:
            warn(problem)
        owner = Owner(folder)
        try:
            owner.hold(owner)
            made = cls(prepare(host, spec, owner.name()), owner)
        except BaseException:
            owner.drop(owner)
            raise
        try:
            made._group.make()
        except BaseException:
            made.close()
            raise
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<cgroup {self._group.name} {self._group.spec}>"

    @property
    def spec(self) -> CGroup:
        """The limits in force."""
        return self._group.spec

    @property
    def paths(self) -> dict[str, str]:
        """Folder by controller; on v2 all are the same."""
        return dict(self._group.paths)

    @property
    def path(self) -> str:
        """The folder; on v1 that of the first hierarchy."""
        return next(iter(self._group.paths.values()))

    @property
    def events(self) -> Events:
        """How often limits were hit until now. Raises: KernelError."""
        return self._group.events()

    def add(self, pid: int) -> None:
        """Move a process in, with all its threads; its children are born there. Raises: KernelError."""
        self._group.add(pid)

    def pids(self) -> list[int]:
        """The processes in it. Raises: StateError, KernelError."""
        self._group.check_open()
        return self._group.pids()

    def stats(self) -> Stats:
        """What it uses now, by kind. Raises: KernelError."""
        return self._group.stats()

    def update(
        self,
        *,
        memory_max: int | str | None = None,
        memory_high: int | str | None = None,
        memory_low: int | str | None = None,
        memory_min: int | str | None = None,
        memory_swap_max: int | str | None = None,
        memory_oom_group: bool | None = None,
        cpu_max: float | tuple[int, int] | str | None = None,
        cpu_weight: int | None = None,
        cpu_idle: bool | None = None,
        pids_max: int | str | None = None,
        **others: object,
    ) -> None:
        """
        Change limits while the processes run; the fields of `CGroup`, ``"max"`` lifts one.

        On v2 a memory_max below what is in use reclaims, and then kills; on v1 the
        kernel refuses it with EBUSY.

        Raises:
            SpecError: A value makes no sense, or is above the parent's.
            UnsupportedError: This host cannot do it.
            KernelError: The kernel refused; nothing has changed.
        """
        given = {
            "memory_max": memory_max,
            "memory_high": memory_high,
            "memory_low": memory_low,
            "memory_min": memory_min,
            "memory_swap_max": memory_swap_max,
            "memory_oom_group": memory_oom_group,
            "cpu_max": cpu_max,
            "cpu_weight": cpu_weight,
            "cpu_idle": cpu_idle,
            "pids_max": pids_max,
        }
        self._group.update(CGroup(**given, **others))  # type: ignore[arg-type]

    def freeze(self) -> None:
        """Stop every process, and return when all have stopped. Raises: KernelError."""
        self._group.freeze()

    def thaw(self) -> None:
        """Let them go on. Raises: KernelError."""
        self._group.thaw()

    def kill(self) -> None:
        """Kill every process, and return when none of them runs. Raises: StateError, KernelError."""
        self._group.check_open()
        self._group.kill()

    def close(self) -> None:
        """
        Kill what is left and remove it; closing again carries on. A forked child only lets go of it.

        Raises:
            KernelError: Who is left.
        """
        if self._pid == os.getpid():
            self._group.close()
            self._owner.drop(self._owner)
