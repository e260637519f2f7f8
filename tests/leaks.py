"""
What a test leaves behind: a snapshot before, one after, and what is new.

The kernel takes some things away a moment after the call that ended them (network
devices, keys, the last reference to a mount). So what differs is looked at again for
at most `PATIENCE` seconds, and only what differs at every look, in the same way, is a leak.

Only what belongs to this run counts, since others are at work on this machine: Docker,
podman, programs that use sandboxlib, another run of this suite. Mounts, interfaces, IPC
objects and abstract sockets are the run's own by its namespaces (namespaces.py); a plain
user can make no mounts and no interfaces. What is common to all has its owner's number in its
name, and is looked at if that is this program, or one that it started and that has ended. Of
keys those count that this program holds.

Everything is read by a few system calls: both snapshots of a test cost about a
millisecond on an idle machine.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import namespaces
import users

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
            gone = old - after[name]
            if name == "mounts":
                # With the folder that they are on they go from every copy of the table, whoever removes it.
                gone = frozenset(filter(namespaces.machine_has, gone))
            found |= {f"{name}: gone: {item}" for item in gone}
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


# --- whose it is ------------------------------------------------------------------------------------

#: Programs that this one started: PID and start time, as the library writes them into names.
_STARTED: set[tuple[str, str]] = set()
#: Of all that has been started below this program, see `follow`.
_mark = ""
_USUAL_SLACK, _PR_SET_TIMERSLACK = 50_000, 29
#: <PID namespace>-<PID>-<start time>-<number> is in the name of whatever the library puts where others do.
_OWNED = re.compile(r"(?:^|-)\d+-(\d+)-(\d+)-\d+(?=$|\.)", re.ASCII)
#: The same for what tests put there.
_OWNED_BY_TEST = re.compile(r"sandboxlib-test-(\d+)-", re.ASCII)


def follow() -> None:
    """
    Mark all that this program starts from now on, and take note of it.

    What has ended cannot be asked whose it was.

    Kernel: PR_SET_TIMERSLACK(2const): by how many nanoseconds a wait may take longer. Whatever is started
    below this program inherits it, and none of it cares.
    """
    global _mark  # noqa: PLW0603 - a program has one
    _mark = str(_USUAL_SLACK + os.getpid() % _USUAL_SLACK)
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(int(_mark)))
    popen, fork = subprocess.Popen.__init__, os.fork

    @functools.wraps(popen)
    def noted_popen(self: subprocess.Popen[Any], *arguments: Any, **options: Any) -> None:
        popen(self, *arguments, **options)
        _STARTED.add((str(self.pid), _started(self.pid)))

    @functools.wraps(fork)
    def noted_fork() -> int:
        pid = fork()
        if pid:
            _STARTED.add((str(pid), _started(pid)))
        return pid

    subprocess.Popen.__init__ = noted_popen  # type: ignore[method-assign]
    os.fork = noted_fork


def _started(pid: int) -> str:
    """When a process that nobody has reaped yet was started, in ticks: proc_pid_stat(5), field 22."""
    return " ".join(_lines(f"/proc/{pid}/stat")).rpartition(")")[2].split()[19]


def _anothers(name: str) -> bool:
    """
    Tell whether a name says that what has it is another program's.

    Not of this one, and not left by one that this one started: while such a one is
    alive, what it has is none of a leak.
    """
    if match := _OWNED.search(name):
        if match[1] == str(os.getpid()):
            return False
        return match.groups() not in _STARTED or os.path.exists(f"/proc/{match[1]}")
    match = _OWNED_BY_TEST.match(name)
    return match is not None and match[1] != str(os.getpid())


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
    if namespaces.may_leave():
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
    """Groups of this program's, and of those that it started and that have ended, in all hierarchies."""
    for root in _cgroup_roots():
        for name in _names(root):
            if name.startswith("sandboxlib-") and not _anothers(name):
                yield f"{root}/{name}"


@watch
def interfaces() -> Iterator[str]:
    """Network interfaces, and network namespaces that have a name."""
    # Not /sys/class/net, which is of the network namespace in which sysfs was mounted.
    if namespaces.may_leave():
        yield from (line.partition(":")[0].strip() for line in _lines("/proc/net/dev")[2:])
        yield from (f"netns {name}" for name in _names("/run/netns"))


@watch
def files() -> Iterator[str]:
    """Files in the library's run-time folders, and what lies in shared folders under its name."""
    # The folder itself may stay, and the file whose bytes are locked for ranges of ids: there is one of
    # each, and the next program uses it again.
    yield from (path for path in _below("/run/sandboxlib") if path != "/run/sandboxlib/ids" and _counts(path))
    own = f"sandboxlib-{os.getuid()}"
    for folder in filter(None, (os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp", "/dev/shm")):
        yield from filter(_counts, _below(f"{folder}/{own}"))
        names = (name for name in _names(folder) if name != own and _is_ours(name))
        yield from filter(_counts, (f"{folder}/{name}" for name in names))


def _is_ours(name: str) -> bool:
    """
    Tell by its name whether a file is the library's, or a test's.

    Whatever the library puts into a shared folder has its owner's number in its name. Who has a
    name as long as this in common with it is somebody else.
    """
    return name.startswith("sandboxlib-test-") or ("sandboxlib" in name and bool(_OWNED.search(name)))


def _counts(path: str) -> bool:
    """Tell whether a file of the library's may have been made by this run: by its name and its owner."""
    if namespaces.entered and path.startswith(f"{namespaces.RUN}/"):
        return True  # nobody else sees this folder
    try:
        owner = os.lstat(path).st_uid
    except FileNotFoundError:
        return False
    return owner in (os.getuid(), users.UID) and not _anothers(os.path.basename(path))


@watch
def sockets() -> Iterator[str]:
    """UNIX sockets with an abstract name, in this network namespace; a plain user shares it with others."""
    held = set() if namespaces.may_leave() else _open_sockets()
    for line in _lines("/proc/net/unix"):
        fields, mark, name = line.partition(" @")
        if mark and (namespaces.may_leave() or fields.split()[6] in held):
            yield f"@{name}"


def _open_sockets() -> set[str]:
    """The inode numbers of the sockets that this program, or one below it, has open."""
    found = set()
    below = ["self"]
    while below:
        pid = below.pop()
        for task in _names(f"/proc/{pid}/task"):
            below += " ".join(_lines(f"/proc/{pid}/task/{task}/children")).split()
        for number in _names(f"/proc/{pid}/fd"):
            try:
                kind, _, inode = os.readlink(f"/proc/{pid}/fd/{number}").partition(":[")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if kind == "socket":
                found.add(inode.rstrip("]"))
    return found


@watch
def ipc() -> Iterator[str]:
    """System V shared memory, semaphores and message queues, by key and id."""
    for kind in ("shm", "sem", "msg"):
        yield from (f"{kind} {' '.join(line.split()[:2])}" for line in _lines(f"/proc/sysvipc/{kind}")[1:])


@watch
def keys() -> Iterator[str]:
    """The keyrings of this thread, process and session, and the keys in them; what is the user's, by name."""
    # Others may be the same user, and come and go.
    for name, ring in (("thread", -1), ("process", -2), ("session", -3)):
        serial = _keyctl(_GET_KEYRING_ID, ring, 0)
        if serial > 0:
            yield f"{name} keyring {serial}"
            yield from (f"{name} key {key}" for key in _keys_in(serial))
    for name, ring in (("user", -4), ("user session", -5)):
        for key in _keys_in(ring):
            text = ctypes.create_string_buffer(4096)
            _keyctl(_DESCRIBE, key, text, len(text))
            if b"sandboxlib" in text.value:
                yield f"{name} key {key}"


_NR_KEYCTL = {"x86_64": 250, "aarch64": 219}.get(platform.machine())
_GET_KEYRING_ID, _DESCRIBE, _READ = 0, 6, 11


def _keyctl(*arguments: Any) -> int:
    """Call keyctl(2); -1 where it is refused, as in containers, or there is no such key."""
    libc = ctypes.CDLL(None)
    result: int = libc.syscall(_NR_KEYCTL, *arguments) if _NR_KEYCTL else -1
    return result


def _keys_in(ring: int) -> list[int]:
    numbers = (ctypes.c_int32 * 1024)()
    size = _keyctl(_READ, ring, numbers, ctypes.sizeof(numbers))
    return list(numbers[: max(0, min(size // 4, len(numbers)))])


#: Where a test must not take anything away either.
MUST_STAY = {"identity", "mounts", "interfaces"}


# --- the whole run ----------------------------------------------------------------------------------


def orphans() -> frozenset[str]:
    """
    Processes in another PID namespace than this one whose parent has ended.

    Looked at once for a whole run: such a one is nobody's child here. While the
    program that started a sandbox lives, its own parent is that program. Those of others
    on this machine do not have the mark of `follow`.
    """
    found = set()
    own = os.readlink("/proc/self/ns/pid")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/pid") == own or _lines(f"/proc/{pid}/timerslack_ns") != [_mark]:
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
