"""Policy for one command, as a value."""

from __future__ import annotations

from typing import Any

import attrs

from sandboxlib import quantity
from sandboxlib.cgroup import CGroup


@attrs.frozen(init=False, repr=False)
class Limits:
    """
    What one command and its children may use; None is "no limit of its own".

    Reaching a limit of time, memory or output ends the command with the `Outcome` of that
    name and raises nothing; the caller's patience is ``timeout=`` instead. The sandbox's
    own limits hold besides.

    Args:
        cpu_time: Seconds of CPU, user and system, of all its processes together.
        wall_time: Seconds from start to end.
        memory: Bytes, or a string such as ``"64M"``; page cache included.
        pids: Processes and threads.
        cpus: How many CPUs' worth of time it may use at once, such as 0.5.
        file_size: Bytes of the largest file that it may write (RLIMIT_FSIZE).
        open_files: Descriptors that each process may have (RLIMIT_NOFILE).
        output: Bytes that it may write to stdout and stderr together, where they are captured.

    Raises:
        SpecError: A value makes no sense.

    Example:
        >>> Limits(cpu_time=2, memory="64M")
        Limits(cpu_time=2.0, memory=67108864)
    """

    cpu_time: float | None = None
    wall_time: float | None = None
    memory: int | None = None
    pids: int | None = None
    cpus: float | None = None
    file_size: int | None = None
    open_files: int | None = None
    output: int | None = None

    def __init__(
        self,
        *,
        cpu_time: float | None = None,
        wall_time: float | None = None,
        memory: int | str | None = None,
        pids: int | None = None,
        cpus: float | None = None,
        file_size: int | str | None = None,
        open_files: int | None = None,
        output: int | str | None = None,
    ) -> None:
        self.__attrs_init__(
            cpu_time=None if cpu_time is None else quantity.seconds("cpu_time", cpu_time),
            wall_time=None if wall_time is None else quantity.seconds("wall_time", wall_time),
            # The kernel counts in pages; a limit below one page is a limit of nothing at all.
            memory=None if memory is None else quantity.size("memory", memory, minimum=4096),
            # Linux has no pid above 2**22.
            pids=None if pids is None else quantity.count("pids", pids, maximum=1 << 22),
            cpus=None if cpus is None else quantity.cpus("cpus", cpus),
            file_size=None if file_size is None else quantity.size("file_size", file_size),
            # Standard input, output and error are three.
            open_files=None if open_files is None else quantity.count("open_files", open_files, minimum=3),
            output=None if output is None else quantity.size("output", output),
        )

    def cgroup(self) -> CGroup | None:
        """Return what the command's own cgroup has to limit; None for nothing."""
        limits = {"memory_max": self.memory, "cpu_max": self.cpus, "pids_max": self.pids}
        given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
        return CGroup(**given) if given else None

    def __repr__(self) -> str:
        set_ = ((field.name, getattr(self, field.name)) for field in attrs.fields(Limits))
        return f"Limits({', '.join(f'{name}={value!r}' for name, value in set_ if value is not None)})"
