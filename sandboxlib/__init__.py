"""
Containers as plain Python objects: no daemon, no root unless the job needs it.

::

    from sandboxlib import Sandbox

    with Sandbox(memory="256M", cpus=0.5, pids=64) as sb:
        done = sb.run(["python3", "-c", "print(6 * 7)"], timeout=5)

Importing this package reads nothing and starts nothing; a name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandboxlib.alone import OpenNamespace, OpenNetwork, OpenRootfs
    from sandboxlib.blocking import DEVNULL, PIPE, STDOUT, Files, Process, Sandbox
    from sandboxlib.cgroup import CGroup
    from sandboxlib.errors import (
        CommandNotExecutableError,
        CommandNotFoundError,
        ExitError,
        ImageError,
        KernelError,
        NetworkError,
        SandboxError,
        SpecError,
        StateError,
        TimeoutExpired,
        UnsupportedError,
        ViolationError,
    )
    from sandboxlib.images import Image
    from sandboxlib.limits import Limits
    from sandboxlib.mount import Mount, Volume
    from sandboxlib.namespace import IdRange, Namespace
    from sandboxlib.network import Network
    from sandboxlib.plan.steps import Plan
    from sandboxlib.result import (
        Change,
        Completed,
        CPUStats,
        IOStats,
        MemoryStats,
        NetworkStats,
        Outcome,
        PidsStats,
        Pressure,
        ProcessInfo,
        Stall,
        Stats,
        Usage,
    )
    from sandboxlib.rootfs import Rootfs
    from sandboxlib.running import run
    from sandboxlib.security import Security
    from sandboxlib.spec import SandboxSpec
    from sandboxlib.trio import AsyncProcess, AsyncSandbox
    from sandboxlib.trio_files import AsyncFiles
    from sandboxlib.trio_images import AsyncImage

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "AsyncFiles",
    "AsyncImage",
    "AsyncProcess",
    "AsyncSandbox",
    "CGroup",
    "CPUStats",
    "Change",
    "CommandNotExecutableError",
    "CommandNotFoundError",
    "Completed",
    "ExitError",
    "Files",
    "IOStats",
    "IdRange",
    "Image",
    "ImageError",
    "KernelError",
    "Limits",
    "MemoryStats",
    "Mount",
    "Namespace",
    "Network",
    "NetworkError",
    "NetworkStats",
    "OpenNamespace",
    "OpenNetwork",
    "OpenRootfs",
    "Outcome",
    "PidsStats",
    "Plan",
    "Pressure",
    "Process",
    "ProcessInfo",
    "Rootfs",
    "Sandbox",
    "SandboxError",
    "SandboxSpec",
    "Security",
    "SpecError",
    "Stall",
    "StateError",
    "Stats",
    "TimeoutExpired",
    "UnsupportedError",
    "Usage",
    "ViolationError",
    "Volume",
    "run",
]

#: Module to the names that it has; the counterpart of the imports above for when the program runs.
_MODULES = {
    "alone": ("OpenNamespace", "OpenNetwork", "OpenRootfs"),
    "blocking": ("DEVNULL", "PIPE", "STDOUT", "Files", "Process", "Sandbox"),
    "cgroup": ("CGroup",),
    "errors": (
        "CommandNotExecutableError",
        "CommandNotFoundError",
        "ExitError",
        "ImageError",
        "KernelError",
        "NetworkError",
        "SandboxError",
        "SpecError",
        "StateError",
        "TimeoutExpired",
        "UnsupportedError",
        "ViolationError",
    ),
    "images": ("Image",),
    "limits": ("Limits",),
    "mount": ("Mount", "Volume"),
    "namespace": ("IdRange", "Namespace"),
    "network": ("Network",),
    "plan.steps": ("Plan",),
    "result": (
        "CPUStats",
        "Change",
        "Completed",
        "IOStats",
        "MemoryStats",
        "NetworkStats",
        "Outcome",
        "PidsStats",
        "Pressure",
        "ProcessInfo",
        "Stall",
        "Stats",
        "Usage",
    ),
    "rootfs": ("Rootfs",),
    "running": ("run",),
    "security": ("Security",),
    "spec": ("SandboxSpec",),
    "trio": ("AsyncProcess", "AsyncSandbox"),
    "trio_files": ("AsyncFiles",),
    "trio_images": ("AsyncImage",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used (PEP 562)."""
    module = _HOMES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    # Before anything else is loaded; a program that only has the pytest plugin forks without it.
    import_module(f"{__name__}.forks")
    value: object = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names too that have not been used yet."""
    return sorted({*globals(), *__all__})
