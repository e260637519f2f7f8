"""
The protections that are on by default, as a table: name, what it answers, reason.

Every row can be switched off by its name, ``Security(without=("seccomp",))``, and
never goes by itself: what a host cannot apply is refused, or listed in the
plan's notes where another row of the table covers the same ground.
"""

from __future__ import annotations

from typing import NamedTuple

from sandboxlib.errors import SpecError


class Protection(NamedTuple):
    """
    One defence.

    Attributes:
        name: For `Security.without`.
        reason: What would be possible without it.
        fixed: It is part of how sandboxes are made and cannot be switched off.
    """

    name: str
    reason: str
    fixed: bool = False


PROTECTIONS = (
    # Namespaces and identity
    Protection(
        "namespaces",
        "processes, files, sockets, names and interfaces of the host in sight",
        fixed=True,
    ),
    Protection(
        "unmapped-ids",
        "root inside being root outside: a writable /proc/sys and the launcher's binary (CVE-2019-5736)",
        fixed=True,
    ),
    Protection(
        "no-groups", "files that the caller's supplementary groups may read (CVE-2022-2989)", fixed=True
    ),
    Protection(
        "no-capabilities",
        "root's rights over what the sandbox's namespaces own; what is inheritable stays (CVE-2022-24769)",
    ),
    Protection("no-new-privileges", "set-uid programs and file capabilities taking effect"),
    Protection(
        "no-nested-userns",
        "all capabilities in a namespace within, and the kernel code behind them (CVE-2022-0185)",
    ),
    # What comes from the caller
    Protection(
        "close-descriptors",
        "a descriptor that the program forgot: one folder is the whole host (CVE-2024-21626)",
        fixed=True,
    ),
    Protection("private-stdio", "a file given as stdin opened again for writing through /proc/self/fd/0"),
    Protection("clean-environment", "tokens, agents' sockets and LD_PRELOAD of the program", fixed=True),
    Protection("new-session", "input pushed into the caller's terminal (CVE-2017-5226)", fixed=True),
    Protection("new-keyring", "the caller's session keyring"),
    Protection("hidden-init", "looking into pid 1, which came from outside (CVE-2016-9962)", fixed=True),
    Protection(
        "sealed-launcher", "overwriting the helper's binary through /proc/1/exe (CVE-2019-5736)", fixed=True
    ),
    Protection(
        "checked-cwd", "a working directory that leads out through /proc/self/fd (CVE-2024-21626)", fixed=True
    ),
    Protection("reset-signals", "ignored and blocked signals of the program confusing what runs", fixed=True),
    Protection(
        "rlimits", "the program's limits, which may be none: open files, locked memory, real-time scheduling"
    ),
    # File system
    Protection("pivot-root", "chroot's ways out: the host's tree is unmounted, not hidden", fixed=True),
    Protection("private-mounts", "the host's later mounts showing up inside", fixed=True),
    Protection("read-only-root", "writing where nothing needs to be written"),
    Protection("sized-tmpfs", "filling the host's memory with files", fixed=True),
    Protection(
        "nosuid-nodev", "set-uid files and device nodes on folders that are shared with the host", fixed=True
    ),
    Protection(
        "mounts-by-descriptor",
        "a path changing between check and use (CVE-2021-30465, CVE-2024-45310)",
        fixed=True,
    ),
    Protection("minimal-dev", "the host's devices and terminals", fixed=True),
    # /proc and /sys
    Protection(
        "proc-subset",
        "interrupts, iomem, cmdline, config.gz, diskstats, keys and sysctl of the host in /proc",
    ),
    Protection("hidden-processes", "other users' processes inside, and pid 1, in /proc"),
    Protection("masked-paths", "the same files, where the whole of /proc is asked for"),
    Protection("no-sysfs", "the host's hardware and cgroups", fixed=True),
    # System calls and sockets
    Protection("seccomp", "the kernel's whole system call surface, and the 32-bit one too"),
    Protection("own-loopback", "services on the host's loopback, abstract sockets", fixed=True),
    # Resources and lifetime
    Protection("ceilings", "a fork bomb or memory bomb taking the host along, where no limit was asked for"),
    Protection("own-cgroup", "limits that could be written or left from inside", fixed=True),
    Protection(
        "no-core-dumps",
        "core files, and the host's crash handler, which starts even where RLIMIT_CORE is 0 (core(5))",
    ),
    Protection("dies-with-program", "containers that outlive the program, whatever ends it", fixed=True),
    Protection("nothing-left", "cgroups and folders of programs that were killed", fixed=True),
)

_NAMES = frozenset(row.name for row in PROTECTIONS)
_FIXED = frozenset(row.name for row in PROTECTIONS if row.fixed)
_ALL = _NAMES


def active(without: tuple[str, ...]) -> frozenset[str]:
    """The names that are on when those in *without* are switched off. Raises: SpecError."""
    if not without:
        return _ALL
    for name in without:
        if name not in _NAMES or name in _FIXED:
            choices = ", ".join(sorted(_NAMES - _FIXED))
            raise SpecError("security.without", name, f"one of {choices}")
    return _NAMES - frozenset(without)
