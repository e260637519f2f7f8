"""
Where this program may make groups.

Read-only: nothing is made or moved before the first group is. `find` is the algorithm
as a function of what /proc says, so that it can be tried on any machine's files.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import attrs

from sandboxlib.errors import SpecError
from sandboxlib.host import CGroupHost

#: The group into which a program moves that is in the very group it makes others in.
SUPERVISOR = "supervisor"

#: Names an explicit cgroup v2 folder for all groups of this program, or says `FOUND`.
VARIABLE = "SANDBOXLIB_CGROUP"
#: The value with which only what is found is used, and nobody is asked for more.
FOUND = "found"

SCOPE_HINT = "run the program by `systemd-run --user --scope -p Delegate=yes -- COMMAND`"
# Where systemd can be asked, and this sandbox has not wanted it to be.
_WANT = "give the sandbox a limit (memory=, pids=, cpus=) or cgroup=CGroup(), and systemd is asked for one"
# A scope that this library has asked for, see `sandboxlib.kernel.cgroup.scope`.
_OWN_SCOPE = re.compile(r"sandboxlib-\d+-\d+-\d+\.scope", re.ASCII)
_READ_ONLY = (
    "/sys/fs/cgroup is mounted read-only: 'mount -o remount,rw /sys/fs/cgroup'; for a container, start it "
    "with --cgroupns=private and --privileged, or hand it a delegated group"
)
_ANOTHERS = (
    "what is mounted at /sys/fs/cgroup is of another cgroup namespace: mount this program's own, "
    "`mount -t cgroup2 none /sys/fs/cgroup`"
)
_TOP = "boot a kernel that has it, without cgroup_disable=, or have it handed to the container"
_DELEGATE = "as root, put `[Service] Delegate=cpu cpuset io memory pids` into `systemctl edit user@.service`"

# v1 calls it by another name; all names here are v2's.
_NAME_OF_V1 = {"blkio": "io"}
_V1 = ("memory", "cpu", "cpuacct", "cpuset", "blkio", "pids", "devices", "freezer", "hugetlb")
# Without these there is nothing that is worth a group.
_CORE = frozenset({"memory", "pids"})


class Mount(NamedTuple):
    """A mounted hierarchy: its version, its v1 controllers, where it is, and which part of it that is."""

    version: int
    controllers: tuple[str, ...]
    folder: str
    root: str


def probe() -> CGroupHost:
    """
    Find the folders in which this program may make groups, for each controller.

    Raises:
        SpecError: The variable SANDBOXLIB_CGROUP names no usable folder.

    Kernel: /proc/pid/mountinfo in proc_pid_mountinfo(5), /proc/pid/cgroup in cgroups(7).
    """
    mounts = parse_mounts(_text("/proc/self/mountinfo"))
    own = parse_own(_text("/proc/self/cgroup"))
    explicit = os.environ.get(VARIABLE)
    if explicit and explicit != FOUND:
        return _explicit(explicit)
    unified = next((mount for mount in mounts if mount.version == 2), None)
    legacy = [mount for mount in mounts if mount.version == 1 and set(mount.controllers) & set(_V1)]
    # On hybrid machines v2 is mounted too, with the controllers that v1 does not use.
    if any(_CORE & set(mount.controllers) for mount in legacy) or (legacy and unified is None):
        return _find_v1(legacy, own)
    if unified is None:
        return CGroupHost(hint="mount the hierarchy: `mount -t cgroup2 none /sys/fs/cgroup`")
    return _find_v2(unified, own.get("", "/"))


def parse_mounts(mountinfo: str) -> list[Mount]:
    """Read the cgroup mounts from the text of mountinfo; of a hierarchy mounted twice, the first."""
    found: list[Mount] = []
    # A path in it may have what other alphabets call the end of a line or a space.
    for line in mountinfo.split("\n"):
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(), "", "", ""][:3]
        if kind in ("cgroup", "cgroup2"):
            fields = before.split(" ")
            version = 2 if kind == "cgroup2" else 1
            controllers = tuple(name for name in options.split(",") if name in _V1) if version == 1 else ()
            if not any(mount.version == version and mount.controllers == controllers for mount in found):
                found.append(Mount(version, controllers, _unescape(fields[4]), _unescape(fields[3])))
    return found


def parse_own(text: str) -> dict[str, str]:
    """Read /proc/self/cgroup: controller to path, with ``""`` for v2."""
    found: dict[str, str] = {}
    for line in filter(None, text.split("\n")):
        _, names, path = line.split(":", 2)
        found |= dict.fromkeys(names.split(","), path)
    return found


def folders(mount: Mount, path: str) -> list[str]:
    """The folder of the group *path* and all above it that the mount shows, the nearest first."""
    below = path.removeprefix(mount.root.rstrip("/")) if mount.root != "/" else path
    # A path outside of what is mounted shows as /.. : then only the mount itself can be had.
    parts = [part for part in below.split("/") if part]
    if ".." in parts or not (path + "/").startswith(mount.root.rstrip("/") + "/"):
        parts = []
    return ["/".join((mount.folder.rstrip("/"), *parts[:count])) for count in range(len(parts), -1, -1)]


def _find_v1(mounts: list[Mount], own: dict[str, str]) -> CGroupHost:
    bases: dict[str, str] = {}
    missing: list[str] = []
    for mount in mounts:
        candidates = folders(mount, own.get(mount.controllers[0], "/"))
        # Root starts at the top: its own group may have limits that are not meant for sandboxes.
        if os.geteuid() == 0:
            candidates.insert(0, mount.folder)
        base = next((folder for folder in candidates if _writable(folder, "cgroup.procs")), None)
        for name in mount.controllers:
            if base is None:
                missing.append(name)
            else:
                bases[_NAME_OF_V1.get(name, name)] = base
    hint = "use a kernel and boot options that mount the controller (see /proc/cgroups)"
    if missing and all(_is_read_only(mount.folder) for mount in mounts):
        hint = _READ_ONLY
    elif missing:
        hint = (
            f"cgroup v1 gives plain users nothing by itself: let root make folders for {', '.join(missing)}"
        )
        hint += " and chown them to this user, or boot with systemd.unified_cgroup_hierarchy=1"
    return CGroupHost(version=1 if bases else 0, bases=bases, hint=hint)


def _find_v2(mount: Mount, own: str) -> CGroupHost:
    if ".." in (*mount.root.split("/"), *own.split("/")):
        # The kernel takes nobody into a group, or out of one, that lies outside of his own namespace.
        return CGroupHost(hint=_ANOTHERS)
    candidates = folders(mount, own)
    # An earlier start, or a program that started this one, has moved aside already.
    if os.path.basename(candidates[0]) == SUPERVISOR and len(candidates) > 1:
        del candidates[0]
    usable = [folder for folder in candidates if _usable(folder) and not _is_threaded(folder)]
    # A group that was handed over whole is meant for this. In any other, whoever manages it
    # (systemd) may take a controller away from its children, and the limits with it.
    if usable and usable[0] == candidates[0] and (_delegated(usable[0]) or _has_to_itself(usable[0])):
        return _host(usable[0], _DELEGATE)
    if os.geteuid() == 0 and _usable(mount.folder):
        return _host(mount.folder, _TOP)
    if not usable and _is_read_only(mount.folder):
        return CGroupHost(hint=_READ_ONLY)
    if not usable:
        return _ask_for(mount, own)
    # Next best is one that passes the controllers on already: nothing there has to be
    # changed. In its own group the program would first have to move aside.
    for folder in usable:
        if _words(f"{folder}/cgroup.subtree_control") >= _CORE:
            return _host(folder, _DELEGATE)
    return _host(max(usable, key=lambda folder: len(_words(f"{folder}/cgroup.controllers"))), _DELEGATE)


def _ask_for(mount: Mount, own: str) -> CGroupHost:
    """No group, but perhaps a systemd of this user's that can be asked for one; nobody is asked here."""
    uid = os.geteuid()
    # Where systemd has it: user@.service(5). Inside a container another part is mounted, or none of it.
    folder = f"{mount.folder}/user.slice/user-{uid}.slice/user@{uid}.service"
    none = f"this program may write no cgroup: {SCOPE_HINT}, or as root"
    if uid == 0 or mount.root != "/" or not os.path.isdir("/run/systemd/system"):
        return CGroupHost(hint=none)
    if os.environ.get(VARIABLE) == FOUND:
        return CGroupHost(hint=f"{none}; systemd is not asked, since {VARIABLE} says {FOUND!r}")
    if not own.startswith("/user.slice/"):
        # Nobody is taken out of a service, whose limits are meant for all that it starts.
        unit = next((part for part in own.split("/") if part.endswith(".service")), "its unit")
        delegate = f"as root, put `[Service] Delegate=yes` into `systemctl edit {unit}`"
        return CGroupHost(hint=f"this program may write no cgroup, and is in none of a login's: {delegate}")
    if not _writable(folder):
        enable = f"as root, `loginctl enable-linger {uid}` starts it"
        return CGroupHost(hint=f"this program may write no cgroup, and its user has no systemd: {enable}")
    if not bus_address():
        hint = f"{none}; or set XDG_RUNTIME_DIR to /run/user/{uid}, so that systemd can be asked for one"
        return CGroupHost(hint=hint)
    offer = attrs.evolve(_host(folder, _DELEGATE), offered=True)
    return CGroupHost(hint=_WANT, offer=offer)


def bus_address() -> str:
    """
    The user bus, as D-Bus writes addresses; empty where the environment does not lead to it.

    Spec: D-Bus Specification; sd_bus_default_user(3).
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # What separates the parts of an address stands as a number in it.
    path = re.sub("[%,;=]", lambda match: f"%{ord(match[0]):02x}", f"{runtime}/bus")
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS") or (f"unix:path={path}" if runtime else "")


def _explicit(folder: str) -> CGroupHost:
    allowed = f"a cgroup v2 folder by its absolute path, not threaded, which may be written; or {FOUND!r}"
    if (
        not folder.startswith("/")
        or not os.path.exists(f"{folder}/cgroup.controllers")
        or not _usable(folder)
        or _is_threaded(folder)
    ):
        raise SpecError(VARIABLE, folder, allowed)
    return _host(folder.rstrip("/"), f"the folder in {VARIABLE} does not have the controller")


def _host(folder: str, hint: str) -> CGroupHost:
    bases = dict.fromkeys(sorted(_words(f"{folder}/cgroup.controllers")), folder)
    # These come with every v2 group; they count and freeze without a controller.
    bases |= {"cpuacct": folder, "freezer": folder}
    if _may_load_bpf():
        bases["devices"] = folder
    return CGroupHost(version=2, bases=bases, hint=hint)


def _usable(folder: str) -> bool:
    return _writable(folder, "cgroup.procs", "cgroup.subtree_control")


def _is_read_only(folder: str) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _is_threaded(folder: str) -> bool:
    """Whether no group below can have a limit on memory or a process of its own: cgroup-v2.rst, Threads."""
    try:
        with open(f"{folder}/cgroup.type") as file:
            return file.read().strip() != "domain"
    except FileNotFoundError:
        # The top of the hierarchy, which is a domain always.
        return False


def _writable(folder: str, *names: str) -> bool:
    effective = os.access in os.supports_effective_ids
    return all(
        os.access(path, os.W_OK, effective_ids=effective)
        for path in (folder, *(f"{folder}/{name}" for name in names))
    )


def _delegated(folder: str) -> bool:
    if _OWN_SCOPE.fullmatch(os.path.basename(folder)):
        return True
    # Set by systemd ≥ 251 on units with Delegate=, readable by everybody.
    try:
        return os.getxattr(folder, "user.delegate") == b"1"
    except OSError:
        # No such attribute, or a kernel that keeps none on cgroups: not known to be delegated.
        return False


def _has_to_itself(folder: str) -> bool:
    """Whether a plain user's program is alone in its group, as `systemd-run --scope` starts it."""
    with open(f"{folder}/cgroup.procs") as file:
        pids = file.read().split()
    return os.geteuid() != 0 and bool(pids) and all(_is_below(pid) for pid in pids)


def _is_below(pid: str) -> bool:
    """Whether a process is this one or a descendant of it."""
    while pid not in ("0", "1"):
        if pid == str(os.getpid()):
            return True
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                pid = file.read().rpartition(")")[2].split()[1]
        except FileNotFoundError:
            # It has ended since it was listed.
            return True
    return False


def _may_load_bpf() -> bool:
    """CAP_SYS_ADMIN in the first user namespace, which is what device programs need."""
    with open("/proc/self/status") as file:
        effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", file.read(), re.MULTILINE)
    with open("/proc/self/uid_map") as file:
        first = file.read().split() == ["0", "0", "4294967295"]
    return first and effective is not None and bool(int(effective[1], 16) >> 21 & 1)


def _text(path: str) -> str:
    # A name in it may be of any bytes.
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _words(path: str) -> set[str]:
    with open(path) as file:
        return set(file.read().split())


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
