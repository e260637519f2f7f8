"""The plan of one more command in a sandbox that stands."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from sandboxlib.host import Host
from sandboxlib.plan import labels, memory, streams
from sandboxlib.plan.confine import confine
from sandboxlib.plan.flags import (
    AT_FDCWD,
    CLONE_INTO_CGROUP,
    CLONE_NEWCGROUP,
    CLONE_NEWUTS,
    CLONE_PARENT,
    CLONE_VM,
    NAMESPACES,
    NOTHING,
    O_CLOEXEC,
    O_DIRECTORY,
    O_PATH,
    O_RDONLY,
    O_WRONLY,
    PR_SET_DUMPABLE,
    PR_SET_KEEPCAPS,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RLIMITS,
    TIOCSCTTY,
    Named,
)
from sandboxlib.plan.rlimits import rlimits, within
from sandboxlib.plan.root import user_of
from sandboxlib.plan.start import hosts, namespaces
from sandboxlib.plan.steps import Call, Clone, Exec, Fits, Report, Serve, Step, Watch
from sandboxlib.plan.streams import Given
from sandboxlib.spec import SandboxSpec

INIT, TERMINAL, CWD = Named(5, "<pid 1>"), Named(0, "<terminal>"), Named(8, "<cwd>")
#: An eventfd of the program's, where a command's time is kept; 6 is `sandboxlib.plan.streams.USERNS`.
CLOCK = Named(7, "<clock>")
SELF, MARK = Named(11, "</proc/self>"), Named(12, "<mark>")
#: The cgroup.procs files that a command joins stand from here on, one for each hierarchy.
GROUPS = 40

_HOW = struct.Struct("=3Q")
_LIMIT = struct.Struct("=2Q")
# Of setresuid(2).
_KEEP = -1
_LOCK_EX, _LOCK_UN = Named(2, "LOCK_EX"), Named(8, "LOCK_UN")
# CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID; _LINUX_CAPABILITY_VERSION_3.
_OVER_FILES = 0b11111
_VERSION_3 = 0x20080522


class Request(NamedTuple):
    """
    What a command is, apart from the sandbox it runs in.

    Attributes:
        paths: What to try to execute, in order.
        argv: Its arguments, the name first.
        env: Its environment as ``NAME=value``.
        cwd: Where it begins; absolute.
        tty: Descriptor 0 is a terminal, to be its controlling terminal.
        foreign: One of its standard descriptors is a file of the caller's.
        rlimits: Further resource limits, (soft, hard) by name.
        given: Which of them, as far as they are files that can be opened again by name.
        wall_time: Nanoseconds that it may take; 0 for as long as it likes.
        apart: Its memory is not the launcher's to begin with.
    """

    paths: tuple[bytes, ...]
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    cwd: str
    tty: bool = False
    foreign: bool = False
    rlimits: tuple[tuple[str, tuple[int, int]], ...] = ()
    given: tuple[Given, ...] = ()
    wall_time: int = 0
    apart: bool = False


def enter(spec: SandboxSpec, host: Host, *, cgroup: bool = True) -> tuple[Step, ...]:
    """Join all namespaces of pid 1 that are not the host's; the cgroup namespace only if *cgroup*."""
    flags = NOTHING
    for kind, value in namespaces(spec, host).items():
        if not (value is not None and value.mode == "host") and (cgroup or kind != "cgroup"):
            flags |= NAMESPACES[kind][0]
    return (Call("setns", (INIT, flags), "be where pid 1 is"),)


class Fixed(NamedTuple):
    """
    The parts of a command's plan that are the same for all commands of a kind.

    Attributes:
        before: The launcher: resource limits, and into the sandbox.
        flags: For the clone.
        child: The command's own process, up to the execve.
        report: The launcher's last word.
    """

    before: tuple[Step, ...]
    flags: Named
    child: tuple[Step, ...]
    report: Report


class Group(NamedTuple):
    """
    How a command gets into its cgroup.

    Attributes:
        folder: To be born in; v2.
        namespace: The sandbox's cgroup namespace, to be joined after that.
        files: To write "0" to instead, one for each hierarchy.
        pids: The file with the number of the sandbox's processes, and how many it may be; without *folder*,
            for the kernel refuses a fork past the limit, and does not refuse to join.
        tag: Where there is no cgroup at all: hard limits by name that tell its processes from others, see
            `sandboxlib.kernel.tagged`.
        kill: The file of v2 that ends all that is in it, if it is needed.
    """

    folder: str | None = None
    namespace: str = ""
    files: tuple[str, ...] = ()
    pids: tuple[str, int] | None = None
    tag: tuple[tuple[str, int], ...] = ()
    kill: str = ""


class Kind(NamedTuple):
    """What makes commands of one kind. Attributes: as `Request` and `Group`."""

    cwd: str
    tty: bool
    foreign: bool
    rlimits: tuple[tuple[str, tuple[int, int]], ...]
    given: tuple[Given, ...]
    apart: bool
    files: int
    into: bool
    pids: int | None
    tags: int

    @property
    def opened(self) -> int:
        """How many steps `opened` takes."""
        return self.files + (self.pids is not None) + self.tags


@lru_cache(256)
def fixed(spec: SandboxSpec, host: Host, kind: Kind) -> Fixed:
    """Plan what does not depend on the command itself."""
    how = _HOW.pack(O_PATH | O_DIRECTORY | O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    text = f'"{kind.cwd}", {O_PATH | O_DIRECTORY}, {RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS}'
    steps: list[Step] = [Call("setsid", (), "a session of its own: no terminal of the caller's")]
    if kind.tty:
        steps.append(Call("ioctl", (TERMINAL, TIOCSCTTY, 0), "its terminal controls its session"))
    # The launcher does not wait for it, see launcher.c: what is inside may stop it at any moment.
    flags = CLONE_PARENT if kind.apart else CLONE_PARENT | CLONE_VM
    if not kind.into:
        steps += _joined(kind)
        entering = enter(spec, host) if kind.files else tuple(_marked(spec, host))
    else:
        # Who is in the cgroup namespace cannot clone into a group that lies outside of it.
        flags |= CLONE_INTO_CGROUP
        entering = enter(spec, host, cgroup=False)
        if not hosts(namespaces(spec, host), "cgroup"):
            steps.append(
                Call("setns", (GROUPS + 1, CLONE_NEWCGROUP), "its group is the top of all that it sees")
            )
    steps += streams.attached(kind.given)
    steps += [
        Call(
            "openat2",
            (AT_FDCWD, kind.cwd, how, _HOW.size),
            "the working directory, looked up inside",
            out=CWD,
            text=text,
        ),
        Call("fchdir", (CWD,), "enter the working directory"),
        Call("getcwd", (bytes(4096), 4096), "it lies below the root", absolute=True),
    ]
    child = (*steps, *confine(spec, host, kind.foreign, kind.given, (lowered(spec, host, kind),)))
    before = (
        *(labels.outside(spec.security, host) if spec.security else ()),
        *raised(spec, host, kind),
        *memory.of_command(spec, host),
        *streams.copies(kind.given),
        # Before it can be seen from inside, and before it gives up the rights that protect it as
        # well: the memory is the launcher's too. execve sets it back.
        Call("prctl", (PR_SET_DUMPABLE, 0, 0, 0, 0), "until execve nobody inside may look into it"),
        *entering,
    )
    return Fixed(before, flags, child, Report("child", "the program may now wait for it"))


def _joined(kind: Kind) -> Iterator[Step]:
    counted, why = GROUPS + kind.files, "one at a time, so that the last one that fits is not refused"
    if kind.pids is not None:
        yield Call("flock", (counted, _LOCK_EX), why)
    for i in range(kind.files):
        yield Call("write", (GROUPS + i, b"0", 1), "the launcher itself is not counted")
    if kind.pids is not None:
        yield Fits(counted, kind.pids, "there is room for one more process")
        yield Call("flock", (counted, _LOCK_UN), why)


def _marked(spec: SandboxSpec, host: Host) -> Iterator[Step]:
    """
    Enter with a UTS namespace of the command's own.

    It tells the command's processes from others where no cgroup does, see
    `sandboxlib.kernel.tagged`. The program gets its descriptor, which also keeps its
    inode from being used again.
    """
    why = "a mark that children inherit and none can take off"
    yield Call("openat", (AT_FDCWD, "/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC, 0), why, out=SELF)
    yield from enter(spec, host)
    yield Call("unshare", (CLONE_NEWUTS,), why)
    yield Call("openat", (SELF, "ns/uts", O_CLOEXEC, 0), why, out=MARK)
    yield Report("ready", "the program knows it by that", MARK)


def opened(group: Group) -> tuple[Step, ...]:
    """Open the cgroup from outside: it cannot be reached from inside. Or set the limits that stand for it."""
    why = "the command's own cgroup"
    if group.folder is not None:
        flags = O_PATH | O_DIRECTORY | O_CLOEXEC
        kill = (AT_FDCWD, group.kill, O_WRONLY | O_CLOEXEC, 0)
        return (
            Call("openat", (AT_FDCWD, group.folder, flags, 0), why, out=GROUPS),
            Call("openat", (AT_FDCWD, group.namespace, O_CLOEXEC, 0), "and its namespace", out=GROUPS + 1),
            *([Call("openat", kill, "and its end", out=GROUPS + 2)] if group.kill else ()),
        )
    flags = O_WRONLY | O_CLOEXEC
    files = [
        Call("openat", (AT_FDCWD, path, flags, 0), why, out=GROUPS + i) for i, path in enumerate(group.files)
    ]
    if group.pids is not None:
        args = (AT_FDCWD, group.pids[0], O_RDONLY | O_CLOEXEC, 0)
        files.append(Call("openat", args, "the sandbox's processes, counted", out=GROUPS + len(files)))
    return (*files, *(_tag(name, value) for name, value in group.tag))


def _tag(name: str, value: int) -> Step:
    return Call(
        "prlimit",
        (0, RLIMITS[name], _LIMIT.pack(value, value), 0),
        "a mark that is seen also where the kernel shows no namespaces; the limit itself is none",
        text=f"RLIMIT_{name.upper()}, {value}",
    )


def executed(request: Request) -> Exec:
    """The end of it."""
    return Exec(request.paths, request.argv, request.env, "the command")


def command(spec: SandboxSpec, host: Host, request: Request, group: Group) -> tuple[Step, ...]:
    """
    Plan a command: the launcher enters the sandbox, its child drops all rights and executes it.

    The child is a child of the program, not of pid 1: its status and usage come
    from the kernel, to the program, by no one's word.
    """
    kind = kind_of(request, group)
    parts = fixed(spec, host, kind)
    child = (*parts.child, executed(request))
    cgroup, timed = GROUPS if kind.into else -1, bool(request.wall_time)
    clone = Clone(parts.flags, child, "the command, a child of the program", cgroup, timed)
    return (*opened(group), *parts.before, clone, parts.report, *watched(request, kind))


def watched(request: Request, kind: Kind) -> tuple[Step, ...]:
    """The launcher stays where there is a limit on time: the program may be late to see it."""
    if not request.wall_time:
        return ()
    why = "its time is kept, whatever the program is busy with"
    return (Watch(request.wall_time, CLOCK, why, GROUPS + 2 if kind.files > 2 and kind.into else -1),)


def kind_of(request: Request, group: Group) -> Kind:
    """The kind of a command."""
    into = group.folder is not None
    files = (3 if group.kill else 2) if into else len(group.files)
    most = None if into or group.pids is None else group.pids[1]
    own = request.cwd, request.tty, request.foreign, request.rlimits, request.given, request.apart
    return Kind(*own, files, into, most, len(group.tag))


def serve(spec: SandboxSpec, host: Host, *, files: bool = False) -> tuple[Step, ...]:
    """
    Plan a helper for sockets and the like, which has root's rights inside, and none outside; or for *files*.

    One for files keeps the rights over files only, and what it makes is the sandbox's user's: it is he whom
    commands run as, but no permission bit stops it: as a copy from outside, which a sandbox's owner may make.
    """
    user = not hosts(namespaces(spec, host), "user")
    return (
        Call("prctl", (PR_SET_DUMPABLE, 0, 0, 0, 0), "nothing inside may look into it"),
        *enter(spec, host),
        *(
            (
                *(
                    (Call("setgroups", (0, 0), "no group of the caller's stays effective"),)
                    if host.privileged or host.subgids is not None
                    else ()
                ),
                Call("setresgid", (0, 0, 0), "files are root's of the sandbox"),
                # Its real user stays the program's: what is counted for a user it shares with nothing inside
                # of root's, and it takes no signal from there.
                Call("setresuid", (_KEEP, 0, _KEEP), "files are root's of the sandbox"),
            )
            if user
            else ()
        ),
        *(_rights_over_files(spec) if files else (Call("umask", (0o022,), "modes as given"),)),
        Serve("open, make, rename and remove inside"),
    )


def _rights_over_files(spec: SandboxSpec) -> Iterator[Step]:
    uid, gid = user_of(spec)
    yield Call("setgroups", (0, 0), "no group of the program's", ignore=(errno.EPERM,))
    if uid or gid:
        # None of its users is root of the sandbox then: the kernel would take what it may, too.
        yield Call("prctl", (PR_SET_KEEPCAPS, 1, 0, 0, 0), "rights over files outlast the change of user")
        yield Call("setresgid", (_KEEP, gid, _KEEP), "new files are the user's")
        yield Call("setresuid", (_KEEP, uid, _KEEP), "new files are the user's")
    header = struct.pack("=Ii", _VERSION_3, 0)
    sets = struct.pack("=6I", _OVER_FILES, _OVER_FILES, 0, 0, 0, 0)
    yield Call("capset", (header, sets), "rights over files, and no other", text="CAP_DAC_OVERRIDE, ...")
    yield Call("umask", (0,), "modes as given")


def raised(spec: SandboxSpec, host: Host, kind: Kind) -> Iterator[Step]:
    """Resource limits; set while the launcher still has the caller's rights, which raising one may need."""
    for name, (soft, hard) in _limits(spec, host, kind).items():
        if name != "nofile":
            yield _limit(name, (soft, hard))
        elif hard > host.hard(name):
            yield _limit(name, (hard, hard))


def lowered(spec: SandboxSpec, host: Host, kind: Kind) -> Step:
    """
    Set what the command's own steps still need more of: the last of them does it.

    Descriptors, that is: those they open, and those on their way to the program, which are
    counted for a user and held against the sender's own limit.
    """
    return _limit("nofile", _limits(spec, host, kind)["nofile"])


def _limits(spec: SandboxSpec, host: Host, kind: Kind) -> dict[str, tuple[int, int]]:
    # Each once, for what has been lowered is not to be raised again; and no more than the program may have.
    # The launcher has raised its own number of descriptors.
    found = {"nofile": (min(host.descriptors, host.hard("nofile")), host.hard("nofile"))}
    found |= dict(rlimits(spec, host))
    return found | {name: within(pair, name, host) for name, pair in kind.rlimits}


def _limit(name: str, pair: tuple[int, int]) -> Step:
    args = (0, RLIMITS[name], _LIMIT.pack(*pair), 0)
    return Call("prlimit", args, "resource limits", text=f"RLIMIT_{name.upper()}, {pair}")


def environment(spec: SandboxSpec, host: Host, extra: Mapping[str, str | None]) -> tuple[bytes, ...]:
    """The environment: ours, the sandbox's, the command's; a value of None takes a name out."""
    uid, _ = user_of(spec)
    merged: dict[str, str | None] = {
        "PATH": ":".join(host.search_path),
        "HOME": "/work" if uid else "/root",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
    }
    merged.update(spec.env or ())
    merged.update(extra)
    return tuple(
        f"{name}={value}".encode(errors="surrogateescape")
        for name, value in merged.items()
        if value is not None
    )


__all__ = ["Request", "command", "confine", "enter", "environment", "serve"]
