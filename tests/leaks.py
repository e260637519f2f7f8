"""
What a test leaves behind: a snapshot before, one after, and what is new.

The kernel takes some things away a moment after the call that ended them (network
devices, keys, the last reference to a mount), and other programs of this machine
come and go. So what differs is looked at again for at most `PATIENCE` seconds, and
only what differs at every look, in the same way, is a leak.

Everything is read by a few system calls: both snapshots of a test cost about a
millisecond on an idle machine.
"""

from __future__ import annotations

import functools
import gc
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: Seconds in which the kernel has to be done with cleaning up.
PATIENCE = 10.0

_FIRST_GROUP = Path("/proc/self/cgroup").read_text().splitlines()
_OWN_SCOPE = re.compile(rf"/sandboxlib-\d+-{os.getpid()}-\d+\.scope(/supervisor)?$", re.ASCII | re.MULTILINE)

Snapshot = dict[str, frozenset[str]]
_WATCHED: dict[str, Callable[[], Iterator[str]]] = {}

# What stays by intention, each with its reason. Key: what is watched; value: a pattern for all of it.
LASTING = {
    # The launcher, sealed, is kept for all further starts of this program.
    "descriptors": re.compile(r"\d+ -> /memfd:sandboxlib.*"),
    # One file of locks for ranges of IDs, the same for all programs.
    "files": re.compile(r"/run/sandboxlib/ids"),
    # trio keeps idle worker threads for ten seconds.
    "threads": re.compile(r"\d+ Trio .*"),
}


def watch(function: Callable[[], Iterator[str]]) -> Callable[[], Iterator[str]]:
    """Enter *function*, which lists things as texts, into the table of what is watched."""
    _WATCHED[function.__name__] = function
    return function


def snapshot() -> Snapshot:
    """List all that is watched, now."""
    return {name: frozenset(function()) for name, function in _WATCHED.items()}


def difference(before: Snapshot, after: Snapshot) -> set[str]:
    """What is in one snapshot only, as sentences; without what may stay."""
    found = set()
    for name, old in before.items():
        lasting = LASTING.get(name)
        for item in after[name] - old:
            if lasting is None or not lasting.fullmatch(item):
                found.add(f"{name}: left behind: {item}")
        if name in MUST_STAY:
            found |= {f"{name}: gone: {item}" for item in old - after[name]}
    return found


def since(before: Snapshot) -> list[str]:
    """What has been left behind since *before* and stays; empty when all is as it was."""
    deadline = time.monotonic() + PATIENCE
    leaks = difference(before, snapshot())
    pause = 0.001
    while leaks and time.monotonic() < deadline:
        # A cycle may hold a descriptor still; its object warns by itself that it was not closed.
        gc.collect()
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
        leaks &= difference(before, snapshot())
    return sorted(leak + _name(leak) for leak in leaks)


def _name(leak: str) -> str:
    """What the process in the text of a leak is called, for who reads the text."""
    kind, _, pid = leak.rpartition(" ")
    if not kind.startswith(("children: ", "processes: ")):
        return ""
    return f" ({_stat(pid)[0]})"


def _lines(path: str) -> list[str]:
    """The lines of a file of the kernel; none where there is no such file, or no longer."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _names(folder: str) -> list[str]:
    """The names in a folder; none if it does not exist."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _below(folder: str) -> Iterator[str]:
    """All that is below *folder*; nothing if it does not exist."""
    for parent, folders, files in os.walk(folder):
        yield from (os.path.join(parent, name) for name in (*folders, *files))


# --- this process -----------------------------------------------------------------------------------


@watch
def descriptors() -> Iterator[str]:
    """Open descriptors and what they refer to."""
    for number in os.listdir("/proc/self/fd"):
        try:
            yield f"{number} -> {os.readlink('/proc/self/fd/' + number)}"
        except FileNotFoundError:
            continue  # the descriptor with which this very folder was listed


@watch
def children() -> Iterator[str]:
    """Child processes, zombies included, whatever signal they send at their end."""
    wall = 0x40000000  # __WALL: clone() without SIGCHLD is a child, too
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | wall)
    except ChildProcessError:
        return
    for task in os.listdir("/proc/self/task"):
        # By number, not by name: that changes when the process executes a program.
        yield from " ".join(_lines(f"/proc/self/task/{task}/children")).split()


@watch
def threads() -> Iterator[str]:
    """Threads of this process, with the names that Python knows."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    for task in os.listdir("/proc/self/task"):
        yield f"{task} {names.get(int(task), 'not started by Python')}"


@watch
def identity() -> Iterator[str]:
    """Who this process is, where it stands, in which namespaces: the library must not change its host."""
    fields = (
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "NoNewPrivs",
        "Seccomp",
        "CapInh",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "SigBlk",
    )
    yield from (line for line in _lines("/proc/self/status") if line.split(":")[0] in fields)
    yield f"cwd {os.getcwd()}"
    # By intention systemd moves a program that asks it for a cgroup, for good.
    group = _lines("/proc/self/cgroup")
    yield from _FIRST_GROUP if _OWN_SCOPE.search("\n".join(group)) else group
    for kind in os.listdir("/proc/self/ns"):
        yield os.readlink(f"/proc/self/ns/{kind}")


# --- this machine -----------------------------------------------------------------------------------


@watch
def mounts() -> Iterator[str]:
    """Mounts in the mount namespace of this process."""
    yield from _lines("/proc/self/mountinfo")


@functools.cache
def _cgroup_roots() -> list[str]:
    """The folders in which this process, or one above it, might make a folder for the library's groups."""
    own: dict[str, str] = {}
    for line in _lines("/proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        own |= dict.fromkeys(names.split(","), path)
    roots = set()
    for line in _lines("/proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ")[:3]
        if kind in {"cgroup", "cgroup2"}:
            mounted = fields.split(" ")[4]
            known = [name for name in options.split(",") if name in own] if kind == "cgroup" else [""]
            folder = mounted + own.get(known[0] if known else "", "/")
            while folder.startswith(mounted):
                roots.add(folder.rstrip("/"))
                folder = os.path.dirname(folder.rstrip("/"))
    return sorted(roots)


@watch
def cgroups() -> Iterator[str]:
    """Groups of this program's, and of programs that have ended, in all hierarchies."""
    for root in _cgroup_roots():
        for name in _names(root):
            owner = _GROUP.fullmatch(name)
            # Others that are at work on this machine have groups of their own.
            if owner and (owner[1] == str(os.getpid()) or not os.path.exists(f"/proc/{owner[1]}")):
                yield f"{root}/{name}"


#: sandboxlib-<PID namespace>-<PID>-<start time>-<number>, as the library names them.
_GROUP = re.compile(r"sandboxlib-\d+-(\d+)-\d+-\d+", re.ASCII)


@watch
def interfaces() -> Iterator[str]:
    """Network interfaces, and network namespaces that have a name."""
    # Not /sys/class/net, which is of the network namespace in which sysfs was mounted.
    yield from (line.partition(":")[0].strip() for line in _lines("/proc/net/dev")[2:])
    yield from (f"netns {name}" for name in _names("/run/netns"))


@watch
def files() -> Iterator[str]:
    """Files in the library's run-time folders, and what lies in shared folders under its name."""
    # The folder itself may stay, and the file whose bytes are locked for ranges of ids: there is one of
    # each, and the next program uses it again.
    yield from (path for path in _below("/run/sandboxlib") if path != "/run/sandboxlib/ids")
    own = f"sandboxlib-{os.getuid()}"
    for folder in filter(None, (os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp", "/dev/shm")):
        yield from _below(f"{folder}/{own}")
        yield from (f"{folder}/{name}" for name in _names(folder) if name != own and _is_ours(name))


def _is_ours(name: str) -> bool:
    """Tell by its name whether a file is the library's: whatever it puts into a shared folder says so."""
    return ("sandboxlib" in name or name.startswith("sbx")) and not name.startswith("sandboxlib-records-")


@watch
def sockets() -> Iterator[str]:
    """UNIX sockets with an abstract name, in this network namespace."""
    for line in _lines("/proc/net/unix"):
        _, mark, name = line.partition(" @")
        if mark:
            yield f"@{name}"


@watch
def ipc() -> Iterator[str]:
    """System V shared memory, semaphores and message queues, by key and id."""
    for kind in ("shm", "sem", "msg"):
        yield from (f"{kind} {' '.join(line.split()[:2])}" for line in _lines(f"/proc/sysvipc/{kind}")[1:])


@watch
def keys() -> Iterator[str]:
    """How many keys the user who runs the tests has, up to the number that is there."""
    for line in _lines("/proc/key-users"):
        user, _, rest = line.strip().partition(":")
        if int(user) == os.getuid():
            # Counted, not named: as many entries as keys, so that one more is one entry more.
            yield from (f"key {number}" for number in range(int(rest.split()[1].split("/")[0])))


#: Where a test must not take anything away either.
MUST_STAY = {"identity", "mounts", "interfaces"}


# --- the whole run ----------------------------------------------------------------------------------


def orphans() -> frozenset[str]:
    """
    Processes in another PID namespace than this one whose parent has ended.

    Looked at once for a whole run: such a one is nobody's child here. While the
    program that started a sandbox lives, its own parent is that program; so the
    sandboxes and machines of others on this machine do not count.
    """
    found = set()
    own = os.readlink("/proc/self/ns/pid")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/pid") == own:
                continue
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or it is another user's: a test of ours leaves none such
        parent = _stat(pid)[2]
        # An orphan's new parent is init, or the systemd of the user.
        if parent == "1" or _stat(parent)[0] == "systemd":
            found.add(pid)
    return frozenset(found)


def _stat(pid: str) -> list[str]:
    """The name of a process, its state and its parent's number; three empty texts if it has ended."""
    before, _, after = " ".join(_lines(f"/proc/{pid}/stat")).rpartition(") ")
    return [before.partition(" (")[2], *after.split()[:2]] if before else ["", "", ""]


def orphans_since(before: frozenset[str]) -> list[str]:
    """Which orphans of sandboxes have been left behind since *before*."""
    deadline = time.monotonic() + PATIENCE
    left = orphans() - before
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= orphans()
    leaks = (f"processes: left behind: {pid}" for pid in left)
    return sorted(leak + _name(leak) for leak in leaks)
