"""
Subordinate IDs: which this user has been given, or what is wrong with what stands there.

Kernel: user_namespaces(7). Files: subuid(5), subgid(5), newuidmap(1), nsswitch.conf(5).
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

_FOLDERS = ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin")
_INSTALL = "install the package uidmap (or shadow-utils)"
#: The number that the kernel keeps for "no change": chown(2).
_NONE = (1 << 32) - 1

Range = tuple[int, int]


class SubIDs(NamedTuple):
    """
    What a user has.

    Attributes:
        uids, gids: (start, count) of subordinate users and groups; both, or neither.
        fault: Why what stands in the files cannot be used, and what to do; empty where nothing does.
    """

    uids: Range | None = None
    gids: Range | None = None
    fault: str = ""


def probe(uid: int, gid: int) -> SubIDs:
    """Read what user *uid* with group *gid* has been given; nothing is tried yet."""
    try:
        import pwd

        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        # newuidmap(1) refuses a user without a name.
        return SubIDs()
    uids, why_uids = _found("/etc/subuid", name, uid, uid)
    gids, why_gids = _found("/etc/subgid", name, uid, gid)
    if not (uids or gids or why_uids or why_gids):
        return SubIDs()
    fault = why_uids or why_gids or _tools()
    if not fault and not (uids and gids):
        has, lacks, option = ("subuid", "subgid", "gids") if uids else ("subgid", "subuid", "uids")
        fault = (
            f"/etc/{has} has a range for {name} and /etc/{lacks} has none; "
            f"as root: usermod --add-sub{option} 100000-165535 {name}"
        )
    return SubIDs(fault=fault) if fault else SubIDs(uids, gids)


def tool(name: str) -> str | None:
    """Where newuidmap(1) or its like is; None if it is not installed."""
    for folder in _FOLDERS:
        if os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    return None


def parse(lines: Iterable[str], names: Iterable[str], own: int) -> tuple[Range | None, str]:
    """
    The largest range for one of *names*, or what is wrong with all that stand there.

    Args:
        lines: Of the file.
        names: The user's name and number.
        own: The user's own ID, or that of his group: it is mapped besides, and may not be in the range.
    """
    found: list[Range] = []
    fault = ""
    for number, line in enumerate(lines, 1):
        parts = [part.strip() for part in line.split(":")]
        if parts[0] not in names or line.lstrip().startswith("#"):
            continue
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts[1:]):
            fault = f"line {number} is not NAME:START:COUNT: {line.strip()!r}"
            continue
        start, count = int(parts[1]), int(parts[2])
        if not count or start + count > _NONE:
            fault = f"line {number} has no usable range: {line.strip()!r}"
        elif start == 0:
            fault = f"line {number} hands out root's own ID: {line.strip()!r}"
        elif start <= own < start + count:
            fault = f"line {number} has the user's own ID {own} in its range: {line.strip()!r}"
        else:
            found.append((start, count))
    return (max(found, key=lambda pair: pair[1]), "") if found else (None, fault)


def _found(path: str, name: str, uid: int, own: int) -> tuple[Range | None, str]:
    mend = f"as root, put {name}:100000:65536 there"
    if (source := _source()) != "files":
        return _asked(path, name, own, source)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{path} cannot be read: {error.strerror}; as root: chmod 644 {path}"
    found, fault = parse(lines, (name, str(uid)), own)
    return found, fault and f"{path}: {fault}; {mend}"


def _source() -> str:
    """Who is asked for subordinate IDs: ``files``, or what nsswitch.conf names in their place."""
    try:
        with open("/etc/nsswitch.conf", encoding="utf-8", errors="replace") as file:
            words = [line.split() for line in file if line.startswith("subid:")]
    except OSError:
        return "files"
    return words[0][1] if words and len(words[0]) > 1 else "files"


def _asked(path: str, name: str, own: int, source: str) -> tuple[Range | None, str]:
    """Ask getsubids(1), which knows the plugins of nsswitch.conf; it answers ``0: NAME START COUNT``."""
    program = tool("getsubids")
    if program is None:
        return None, f"nsswitch.conf has subordinate IDs from {source}, which getsubids(1) reads; {_INSTALL}"
    command = [program, *(["-g"] if path.endswith("gid") else []), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        return None, f"getsubids(1) has no answer from {source} within ten seconds"
    lines = [":".join(line.partition(":")[2].split()) for line in done.stdout.splitlines()]
    found, fault = parse(lines, (name,), own)
    return found, fault and f"getsubids {name}, from {source}: {fault}"


def _tools() -> str:
    """Why newuidmap(1) and newgidmap(1) cannot do their work; empty if they can."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        if "\nNoNewPrivs:\t1\n" in file.read():
            return "this program has no_new_privs set, so that newuidmap(1) gets no rights; start it without"
    for name in ("newuidmap", "newgidmap"):
        path = tool(name)
        if path is None:
            return f"{name}(1) is not installed; {_INSTALL}"
        status = os.stat(path)
        if not ((status.st_mode & stat.S_ISUID and status.st_uid == 0) or _has_capability(path)):
            return f"{path} is neither set-uid root nor has it file capabilities; reinstall uidmap"
        if os.statvfs(path).f_flag & os.ST_NOSUID:
            return f"{path} lies on a file system that is mounted nosuid; as root, remount it with suid"
    return ""


def _has_capability(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        # None, or a file system that keeps none: then it has no rights.
        return False


__all__ = ["SubIDs", "parse", "probe", "tool"]
