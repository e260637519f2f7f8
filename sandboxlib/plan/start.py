"""
The plan of a start: what the program, the launcher and pid 1 do until the sandbox stands.

The launcher runs with the caller's rights and prepares what needs them; its
child, in the new namespaces, builds the tree and becomes pid 1. Both are in
one list, and every step of it is a call that can be printed.
"""

from __future__ import annotations

import posixpath
import struct
from collections.abc import Iterator
from functools import lru_cache

from sandboxlib.errors import SpecError, UnsupportedError
from sandboxlib.host import Host
from sandboxlib.namespace import IdRange, Namespace
from sandboxlib.plan import ceilings, labels, memory, network, notes, rlimits
from sandboxlib.plan.flags import (
    AF_INET,
    AT_FDCWD,
    CLONE_INTO_CGROUP,
    CLONE_NEWCGROUP,
    CLONE_NEWTIME,
    CLONE_PARENT,
    NAMESPACES,
    O_CLOEXEC,
    O_DIRECTORY,
    O_PATH,
    O_RDONLY,
    PR_SET_DUMPABLE,
    PR_SET_NAME,
    PR_SET_NO_NEW_PRIVS,
    SIOCSIFFLAGS,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    Named,
)
from sandboxlib.plan.ids import id_map, more_of
from sandboxlib.plan.protections import active
from sandboxlib.plan.root import Roots, roots
from sandboxlib.plan.steps import (
    Action,
    Call,
    ChildWrite,
    Clone,
    Init,
    Join,
    Plan,
    Report,
    Step,
    Template,
    Write,
    flatten,
)
from sandboxlib.spec import SandboxSpec

#: What tells pid 1 that the program has ended, or become another one. The tie takes a place that gets free.
OWNER, TIE = Named(5, "<owner>"), Named(6, "<tie>")
SYNC_READ, SYNC_WRITE, GIVEN_TIE = Named(7, "<sync>"), Named(6, "<sync'>"), Named(8, "<tie>")
LEAF = Named(25, "<cgroup>")
SOCKET = Named(15, "<socket>")
#: Namespaces that are joined are opened by the program, and stand from here on.
JOINED = 9

_IFREQ = struct.Struct("=16sH22x")
_IFF_UP = 1


def start(spec: SandboxSpec, host: Host) -> Plan:
    """
    Plan the start of *spec* on *host*.

    Raises:
        UnsupportedError: This host cannot do it; nothing has happened.
        SpecError: Values that contradict each other on this host.
    """
    host = ceilings.with_groups(spec, host)
    modes = namespaces(spec, host)
    on = active(spec.without)
    # Refuses what was asked for and this host cannot limit, also where it has no cgroups at all.
    ceilings.limits(spec, host)
    rlimits.rlimits(spec, host)
    # A mount namespace that is joined has its tree already.
    tree_plan = Roots() if "mount" in joined(modes) else roots(spec, host, on)
    steps = (*_before(spec, host, modes), *_launcher(spec, host, modes, tree_plan, on))
    rlimits.require_descriptors(host, flatten(steps))
    return Plan(steps, tuple(notes.notes(spec, host)))


def namespaces(spec: SandboxSpec, host: Host) -> dict[str, Namespace | None]:
    """Each kind's `Namespace`, or None for a plain new one; refuses what the host lacks."""
    # Values compare by the identity of a namespace, whose number may be given to another one later:
    # the paths that lead to it are part of the question too.
    values = [*spec.namespaces, spec.namespace("network")]
    return _namespaces(spec, host, tuple(value.path for value in values if value is not None))


@lru_cache(64)
def _namespaces(spec: SandboxSpec, host: Host, _paths: tuple[str | None, ...]) -> dict[str, Namespace | None]:
    require_calls(host)
    modes = {kind: spec.namespace(kind) for kind in NAMESPACES}
    if modes["user"] is None:
        modes["user"] = _owner_of(modes, host)
    network.check(spec, host)
    for kind, value in list(modes.items()):
        if kind in host.namespaces:
            continue
        if value is None and kind == "time":
            del modes[kind]  # free where the kernel has it; what it hides is the boot time
        elif value is None or value.mode == "new":
            raise UnsupportedError(f"a {kind} namespace", f"a kernel with {kind} namespaces")
    user = modes["user"]
    if user is None or user.mode == "new":
        if host.userns_hint:
            raise UnsupportedError("a user namespace", "leave to make one", host.userns_hint)
        if user is not None and not (_maps_root(user.uid_map) and _maps_root(user.gid_map)):
            raise SpecError(
                "uid_map", user.uid_map or (), "a map that has ID 0 inside, which builds the sandbox"
            )
    elif user.mode == "host" and not host.privileged:
        raise UnsupportedError(
            "a sandbox in the host's user namespace", "root", "leave Namespace.host('user') out"
        )
    return modes


def require_calls(host: Host) -> None:
    """Raises: UnsupportedError: A system call that nothing can be done without is not to be had."""
    # Without clone3 there is clone.
    if missing := sorted(host.hidden - {"clone3"}):
        raise UnsupportedError(
            "a sandbox",
            f"the system call{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            "use Linux 5.14 or newer; inside a container, start that with a seccomp profile that allows it",
        )


def _owner_of(modes: dict[str, Namespace | None], host: Host) -> Namespace | None:
    """
    The user namespace that has to be joined along with others, or None.

    Its rights are needed to mount the /proc of a PID namespace, to use a mount namespace, and without root
    to join anything of it.
    """
    for kind in NAMESPACES if not host.privileged else ("pid", "mount"):
        value = modes[kind]
        if value is not None and value.path is not None and value.path.startswith("/proc/"):
            return Namespace("user", path=f"{posixpath.dirname(value.path)}/user", owner=value.owner)
    return None


def _maps_root(ranges: tuple[IdRange, ...]) -> bool:
    return not ranges or ranges[0].inside == 0


def joined(modes: dict[str, Namespace | None]) -> set[str]:
    """The kinds that are not made anew: joined, or the host's."""
    return {kind for kind, value in modes.items() if value is not None and value.mode != "new"}


def hosts(modes: dict[str, Namespace | None], kind: str) -> bool:
    """Is the namespace of this kind the host's?"""
    value = modes.get(kind)
    return value is not None and value.mode == "host"


def to_join(modes: dict[str, Namespace | None]) -> list[Namespace]:
    """The namespaces that are joined, in the order of `NAMESPACES`."""
    return [value for value in modes.values() if value is not None and value.mode == "join"]


def needs_ids(host: Host, modes: dict[str, Namespace | None]) -> bool:
    """Is a range of IDs to be assigned?"""
    user = modes["user"]
    return host.privileged and (user is None or (user.mode == "new" and not user.uid_map))


def maps_by_tool(host: Host, modes: dict[str, Namespace | None]) -> bool:
    """Do newuidmap(1) and newgidmap(1) have to write the maps?"""
    if "user" in joined(modes) or host.privileged:
        return False
    user = modes["user"]
    return bool(host.subuids and host.subgids) or bool(user is not None and user.uid_map)


def _before(spec: SandboxSpec, host: Host, modes: dict[str, Namespace | None]) -> Iterator[Step]:
    if needs_ids(host, modes):
        text = f"fcntl({host.run_dir}/ids, F_SETLK)"
        yield Action("ids", text, "a range of IDs that no other sandbox has")
        if more_of(spec):
            yield Action("ids", text, "a second one, for numbers above those of 16 bits")
    if host.cgroups.offered:
        text = 'StartTransientUnit("sandboxlib-....scope", PIDs=[<program>], Delegate=yes)'
        yield Action("scope", text, "systemd moves the program to where it may make groups, once")
    if host.cgroups.version:
        text = f"mkdir(<cgroup>); {limits_text(spec, host)}"
        yield Action("cgroup", text, "limits are set before anything is in it")
    yield from network.announced(spec, host)
    text = 'vfork(); execveat(<launcher>, "", AT_EMPTY_PATH)'
    yield Action("spawn", text, "nothing of the program's memory goes along")


def limits_text(spec: SandboxSpec, host: Host) -> str:
    """What is written into the cgroup, for printing."""
    fields = ceilings.limits(spec, host).fields
    return "; ".join(f"{name.replace('_', '.', 1)} = {value}" for name, value in fields.items())


def _launcher(
    spec: SandboxSpec, host: Host, modes: dict[str, Namespace | None], plan: Roots, on: frozenset[str]
) -> Iterator[Step]:
    fixed = joined(modes)
    numbers: dict[str, Named] = {
        space.kind: Named(JOINED + i, f"<{space.kind}>") for i, space in enumerate(to_join(modes))
    }
    for space in to_join(modes):
        yield Action(
            "namespace",
            f'openat("{space.path}") = {numbers[space.kind]}',
            "the namespace to join, and no other",
        )
    # As long as the host's files can be reached by their paths.
    if _joins(host):
        yield Join("open", "the sandbox's cgroup")
    elif host.cgroups.version == 2:
        args = (AT_FDCWD, Template("{leaf}"), O_PATH | O_DIRECTORY | O_CLOEXEC, 0)
        yield Call("openat", args, "the sandbox's cgroup", out=LEAF)
    yield from plan.sources
    # Root's rights over the machine end with the user namespace: it is joined last. A user's rights
    # over the others begin with it.
    for kind in sorted(numbers, key=lambda kind: (kind == "user") == host.privileged):
        yield Call("setns", (numbers[kind], NAMESPACES[kind][0]), f"join the {kind} namespace")
    flags = CLONE_PARENT
    for kind, (flag, _) in NAMESPACES.items():
        later = kind == "cgroup" or (kind == "time" and _unshares_time(modes, host))
        if kind in modes and kind not in fixed and not later:
            flags |= flag
    child = tuple(_init(spec, host, modes, plan, on))
    cgroup = -1
    if host.cgroups.version == 2 and not _joins(host):
        cgroup, flags = LEAF, flags | CLONE_INTO_CGROUP
    yield Clone(flags, child, "pid 1 of the sandbox, a child of the program", cgroup)
    yield Report("child", "the program may now wait for pid 1")
    if "user" not in fixed and not maps_by_tool(host, modes):
        yield from _maps(spec, host, modes)
        # After the maps: where /proc shows other processes under these numbers they are refused.
        yield from memory.of_init(host)
    yield from plan.with_user_namespace
    if maps_by_tool(host, modes):
        yield Action(
            "maps",
            "newuidmap(<pid 1>, ...); newgidmap(<pid 1>, ...)",
            "IDs of the user's own, and subordinate ones",
        )
        yield Action("sync", "write(<sync'>)", "pid 1 may go on")
    else:
        yield Call("write", (SYNC_WRITE, b"!", 1), "pid 1 may go on")


def _joins(host: Host) -> bool:
    """Does pid 1 join its cgroup by itself, before anything else? On v1, and where clone does for clone3."""
    return host.cgroups.version == 1 or (host.cgroups.version == 2 and "clone3" in host.hidden)


def _maps(spec: SandboxSpec, host: Host, modes: dict[str, Namespace | None]) -> Iterator[Step]:
    if not host.privileged:
        yield ChildWrite("setgroups", "deny", "without it the kernel lets no one but root write gid_map")
    more = more_of(spec)
    for which, who in (("uid", "users"), ("gid", "groups")):
        text = id_map(host, modes["user"], which, more.of(which))
        yield ChildWrite(f"{which}_map", text, f"{who} inside are nobody outside")


def _offsets(modes: dict[str, Namespace | None]) -> dict[str, float]:
    """The clocks that are to be set, with seconds."""
    value = modes.get("time")
    if value is None:
        return {}
    clocks = {"monotonic": value.monotonic_offset, "boottime": value.boottime_offset}
    return {clock: offset for clock, offset in clocks.items() if offset}


def _unshares_time(modes: dict[str, Namespace | None], host: Host) -> bool:
    """
    Does pid 1 make its time namespace itself?

    Its clocks can only be set before anyone is in it; and clone(2) has no flag for it.
    """
    value = modes.get("time")
    new = "time" in modes and (value is None or value.mode == "new")
    return new and bool(_offsets(modes) or "clone3" in host.hidden)


def _init(
    spec: SandboxSpec, host: Host, modes: dict[str, Namespace | None], plan: Roots, on: frozenset[str]
) -> Iterator[Step]:
    fixed = joined(modes)
    yield Call("dup3", (GIVEN_TIE, TIE, O_CLOEXEC), "so that the end of the launcher is noticed")
    yield Call("read", (SYNC_READ, bytes(8), 1), "wait for the ID maps", positive=True)
    if _joins(host):
        yield Join("enter", "nothing of it happens outside of its limits")
    if "cgroup" in modes and "cgroup" not in fixed:
        # Not with the clone: the namespace's root is the group that its maker is in.
        yield Call("unshare", (CLONE_NEWCGROUP,), "its group is the top of all that it sees")
    if not hosts(modes, "user"):
        yield Call("setresgid", (0, 0, 0), "be root of the sandbox, nobody outside")
        if host.privileged or maps_by_tool(host, modes):
            yield Call("setgroups", (0, 0), "no group of the caller's stays effective")
        yield Call("setresuid", (0, 0, 0), "be root of the sandbox, nobody outside")
    if _unshares_time(modes, host):
        yield from _time(_offsets(modes))
    # Root's own launcher has the host's user namespace as its memory's owner: nobody inside may look
    # at it. A user's has to let its owner in, and is protected by having more capabilities.
    dumpable = 0 if host.privileged else 1
    yield Call("prctl", (PR_SET_DUMPABLE, dumpable, 0, 0, 0), "what runs inside cannot look into pid 1")
    yield Call(
        "prctl",
        (PR_SET_NAME, b"sandbox-init\0\0\0\0", 0, 0, 0),
        "a name without a path of the host's",
        text='PR_SET_NAME, "sandbox-init"',
    )
    yield Call("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "pid 1 gains nothing by execve either")
    yield Call("setsid", (), "no terminal of the caller's")
    if spec.security is not None:
        yield from labels.tried(spec.security, host)
    if "uts" not in fixed:
        name = (spec.hostname or "sandbox").encode()
        yield Call("sethostname", (name, len(name)), "the sandbox's own name", text=f'"{name.decode()}"')
        domain = (spec.domainname or "(none)").encode()
        yield Call("setdomainname", (domain, len(domain)), "and domain", text=f'"{domain.decode()}"')
    if "network" not in fixed:
        yield Call("socket", (AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "loopback", out=SOCKET)
        ifreq = _IFREQ.pack(b"lo", _IFF_UP)
        yield Call(
            "ioctl",
            (SOCKET, SIOCSIFFLAGS, ifreq),
            "the sandbox's own loopback is up",
            text='<socket>, SIOCSIFFLAGS, "lo" UP',
        )
        yield from network.handed_out(spec)
    if "no-nested-userns" in on and "user" not in fixed:
        yield Write(
            "/proc/sys/user/max_user_namespaces",
            "0",
            "no user namespace within: their kernel surface stays closed",
        )
    yield from plan.build
    yield Report("ready", "the sandbox stands", plan.keep)
    yield Call("close_range", (0, OWNER - 1, 0), "pid 1 keeps two descriptors")
    yield Call("close_range", (TIE + 1, 0xFFFFFFFF, 0), "those that tell it when the program ends")
    yield Init(OWNER, TIE, "reap, and end with the program", round((spec.lifetime or 0) * 1000))


def _time(offsets: dict[str, float]) -> Iterator[Step]:
    lines = []
    for clock, offset in offsets.items():
        whole = int(offset // 1)
        lines.append(f"{clock} {whole} {round((offset - whole) * 1e9)}\n")
    # The change of user has taken this process's own files in /proc away from it.
    yield Call("prctl", (PR_SET_DUMPABLE, 1, 0, 0, 0), "so that it can write its own files in /proc")
    yield Call("unshare", (CLONE_NEWTIME,), "clocks of its own")
    if lines:
        yield Write("/proc/self/timens_offsets", "".join(lines), "set before anyone is in it")
    yield Call(
        "openat",
        (AT_FDCWD, "/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC, 0),
        "enter it",
        out=SOCKET,
    )
    yield Call("setns", (SOCKET, CLONE_NEWTIME), "enter it")
