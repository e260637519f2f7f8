"""
What a test needs of the machine, said by marks: ``@pytest.mark.cgroup2("memory", "pids")``.

Each need is a function from one argument of the mark to the reason why it is
not met, or None. A mark with several arguments needs all of them. conftest.py
skips a test with its unmet needs as the reason, unless SANDBOXLIB_MUST_RUN
makes one of them mandatory: then the test fails.

SANDBOXLIB_MUST_RUN is a list such as ``root,cgroup2:memory,tool``: the name of a
need, or a name and one argument; ``all`` is every need; ``-name`` takes one out
again. A test that passed elsewhere (on the other version of cgroups, in the lab)
satisfies ``all`` too: SANDBOXLIB_PASSED_ELSEWHERE names files with the ids of
such tests, which a run writes when SANDBOXLIB_RECORD names a file.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import users

Check = Callable[[str], "str | None"]
NEEDS: dict[str, tuple[str, Check]] = {}


class Unmet(NamedTuple):
    """A need that this machine does not meet: the mark, one of its arguments, and why."""

    name: str
    argument: str
    reason: str

    def __str__(self) -> str:
        shown = f"{self.name}({self.argument})" if self.argument else self.name
        return f"needs {shown}: {self.reason}"


def need(usage: str) -> Callable[[Check], Check]:
    """Enter a function into the table under its own name; *usage* is how the mark is written."""

    def enter(check: Check) -> Check:
        cached = functools.cache(check)
        NEEDS[check.__name__.strip("_")] = (f"{usage}: {(check.__doc__ or '').strip()}", cached)
        return cached

    return enter


def unmet(marks: Iterable[tuple[str, tuple[object, ...]]]) -> list[Unmet]:
    """All that *marks*, each a name and its arguments, ask for and that is not here."""
    asked = [(name, arguments) for name, arguments in marks if name in NEEDS]
    found = []
    for name, arguments in asked:
        for argument in map(str, arguments or ("",)):
            reason = NEEDS[name][1](argument)
            if reason is not None:
                found.append(Unmet(name, argument, reason))
    # What root may do says nothing of the user who will do it.
    if not found and os.geteuid() == 0 and any(name == "unprivileged" for name, _ in asked):
        for name in PROBES.keys() & {name for name, _ in asked}:
            reason = probe(name, plain=True)
            if reason is not None:
                found.append(Unmet(name, "", f"as a plain user: {reason}"))
    return found


def is_mandatory(missing: Unmet, must_run: str) -> bool:
    """Tell whether *must_run*, the text of SANDBOXLIB_MUST_RUN, names this need."""
    listed = {entry.strip() for entry in must_run.split(",")} - {""}
    names = {missing.name, f"{missing.name}:{missing.argument}"}
    if any(f"-{name}" in listed for name in names):
        return False
    return "all" in listed or bool(names & listed)


def unknown(must_run: str) -> set[str]:
    """Entries of *must_run* that name no need: a misspelt one would make nothing mandatory."""
    listed = {entry.strip().removeprefix("-").split(":")[0] for entry in must_run.split(",")} - {""}
    return listed - set(NEEDS) - {"all"}


# --- who runs the tests -----------------------------------------------------------------------------


def has_capability(number: int) -> bool:
    """Tell whether this process has a capability in its effective set."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> number & 1)


CAP_SYS_ADMIN, CAP_SYS_RESOURCE, CAP_MAC_ADMIN = 21, 24, 33


@need("root")
def root(_: str) -> str | None:
    """Real root, with CAP_SYS_ADMIN."""
    if os.geteuid() != 0:
        return f"the tests run as uid {os.geteuid()}"
    return None if has_capability(CAP_SYS_ADMIN) else "this root has no CAP_SYS_ADMIN"


@need("unprivileged")
def unprivileged(_: str) -> str | None:
    """A plain user: the one who runs the tests, or one that the fixture `as_user` becomes."""
    return None if os.geteuid() != 0 else users.why_not()


@need("subids")
def subids(_: str) -> str | None:
    """A plain user has subordinate IDs, and newuidmap(1) to use them; root can give them to one."""
    reason = tool("newuidmap")
    if reason is None and os.geteuid() != 0:
        import pwd

        own = {str(os.geteuid()), pwd.getpwuid(os.geteuid()).pw_name}
        for path in ("/etc/subuid", "/etc/subgid"):
            lines = Path(path).read_text().splitlines() if Path(path).exists() else []
            if not own & {line.partition(":")[0] for line in lines}:
                return f"{path} has no range for {' or '.join(sorted(own))}"
    return reason


@need("lab")
def lab(_: str) -> str | None:
    """The virtual machine of the session `lab`, whose devices and users are known."""
    return None if os.environ.get("SANDBOXLIB_LAB") else "this is not the lab"


# --- namespaces -------------------------------------------------------------------------------------

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000

# Tried in a process of its own: a namespace is entered for good, and threads forbid some.
PROBE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(call, result):
    if result:
        print(call + ": " + os.strerror(ctypes.get_errno()))
        sys.exit(1)
uid, gid = os.geteuid(), os.getegid()
flags = int(sys.argv[1])
if uid:
    flags |= 0x10000000
check("unshare", libc.unshare(flags))
if flags & 0x10000000:
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
    open("/proc/self/gid_map", "w").write(f"0 {gid} 1")
if "overlay" in sys.argv:
    check("mount private", libc.mount(b"none", b"/", None, 0x44000, None))
    check("mount tmpfs", libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, None))
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir("/mnt/" + name)
    options = b"lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work"
    options += b",userxattr" if uid else b""
    check("mount overlay", libc.mount(b"overlay", b"/mnt/merged", b"overlay", 0, options))
"""


# What each of these needs asks the kernel for.
PROBES: dict[str, tuple[int, str]] = {
    "userns": (CLONE_NEWUSER, ""),
    "netns": (CLONE_NEWNET, ""),
    "overlay": (CLONE_NEWNS, "overlay"),
}


@functools.cache
def probe(name: str, *, plain: bool = False) -> str | None:
    """Try one of `PROBES` in a process of its own; *plain*: as a plain user. The reason if it fails."""
    flags, option = PROBES[name]
    if plain:
        done = users.run(PROBE, str(flags), option, check=False)
    else:
        command = [sys.executable, "-I", "-S", "-c", PROBE, str(flags), option]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return (done.stdout + done.stderr).strip().splitlines()[-1]


@need("userns")
def userns(_: str) -> str | None:
    """A new user namespace can be made by who runs the tests."""
    return probe("userns")


@need("netns")
def netns(_: str) -> str | None:
    """A new network namespace can be made, for a plain user inside a new user namespace."""
    return probe("netns")


@need('namespace("time", ...)')
def namespace(kind: str) -> str | None:
    """The kernel has this kind of namespace, named as in /proc/self/ns."""
    return None if Path("/proc/self/ns", kind).exists() else f"this kernel has no {kind} namespace"


@need("overlay")
def overlay(_: str) -> str | None:
    """An overlay with upper and lower on a tmpfs can be mounted, for a plain user with userxattr."""
    return probe("overlay")


# --- cgroups ----------------------------------------------------------------------------------------


@functools.cache
def controllers() -> dict[int, frozenset[str]]:
    """The controllers, by version of cgroups, with which this process may make groups."""
    own: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        own |= dict.fromkeys(names.split(","), path)
    found: dict[int, set[str]] = {1: set(), 2: set()}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        mounted = Path(fields.split()[4].encode().decode("unicode_escape"))
        kind, _, options = rest.split()[:3]
        if kind == "cgroup":
            known = {name for name in options.split(",") if name in own}
            if any(writable(folder) for folder in upwards(mounted, own[min(known)] if known else "/")):
                found[1] |= known
        elif kind == "cgroup2":
            for folder in upwards(mounted, own.get("", "/")):
                if writable(folder):
                    found[2] |= set((folder / "cgroup.controllers").read_text().split())
    return {version: frozenset(names) for version, names in found.items()}


def upwards(mounted: Path, path: str) -> list[Path]:
    """The folder of the cgroup *path* and all above it, as far as they can be seen."""
    folders = [mounted / path.lstrip("/"), *(mounted / path.lstrip("/")).parents]
    return [folder for folder in folders if folder.is_relative_to(mounted) and folder.is_dir()]


def writable(folder: Path) -> bool:
    """Tell whether groups can be made in *folder* and processes be moved there."""
    return os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)


def missing_controller(versions: tuple[int, ...], name: str) -> str | None:
    """Why groups with the controller *name* cannot be made on any of *versions*."""
    usable = [
        version
        for version in versions
        if (name in controllers()[version] if name else controllers()[version])
    ]
    if usable:
        return None
    shown = "; ".join(
        f"v{version}: {' '.join(sorted(controllers()[version])) or 'none'}" for version in (1, 2)
    )
    return f"controllers that the tests may use here are {shown}"


@need('cgroup("memory", ...)')
def cgroup(name: str) -> str | None:
    """Groups with this controller can be made, on either version."""
    return missing_controller((1, 2), name)


@need('cgroup1("memory", ...)')
def cgroup1(name: str) -> str | None:
    """Groups with this controller can be made on cgroup v1."""
    return missing_controller((1,), name)


@need('cgroup2("memory", ...)')
def cgroup2(name: str) -> str | None:
    """Groups with this controller can be made on cgroup v2."""
    return missing_controller((2,), name)


@need("systemd_user")
def systemd_user(_: str) -> str | None:
    """A plain user's tests run in a login session, and his systemd answers on the user bus."""
    own = Path("/proc/self/cgroup").read_text()
    if os.geteuid() == 0 or not re.search(r"^0::\S*/session-[^/]+\.scope$", own, re.MULTILINE):
        return "the tests do not run in the session of a plain user"
    command = ["systemctl", "--user", "show", "--property=Version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    bus = Path(f"/run/user/{os.geteuid()}/bus")
    if done.returncode or not bus.is_socket():
        return f"systemd of this user: {done.stderr.strip() or f'{bus} is no socket'}"
    return None


# --- the rest of the machine --------------------------------------------------------------------------

LANDLOCK_CREATE_RULESET, LANDLOCK_CREATE_RULESET_VERSION = 444, 1


@need("landlock(ABI)")
def landlock(abi: str) -> str | None:
    """The kernel has Landlock, of this ABI at least."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    version = syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    if version < 0:
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    return None if version >= int(abi or 1) else f"Landlock here has ABI {version}"


@need('switch("kernel.unprivileged_userns_clone")')
def switch(name: str) -> str | None:
    """The kernel has this setting of sysctl(8)."""
    return None if Path("/proc/sys", *name.split(".")).exists() else f"this kernel has no {name}"


@need('rlimit("nofile=4096", ...)')
def rlimit(text: str) -> str | None:
    """The hard limit is as high, or ``unlimited``, or who runs the tests may raise it."""
    name, _, wanted = text.partition("=")
    number = getattr(resource, f"RLIMIT_{name.upper()}")
    enough = resource.RLIM_INFINITY if wanted == "unlimited" else int(wanted)
    most = resource.getrlimit(number)[1]
    if most == resource.RLIM_INFINITY or (0 <= enough <= most) or has_capability(CAP_SYS_RESOURCE):
        return None
    return f"the hard limit is {most}"


@need("hardware")
def hardware(_: str) -> str | None:
    """The kernel is no process itself: User-mode Linux touches memory at a hundredth of the speed."""
    return "this is User-mode Linux" if "User Mode Linux" in Path("/proc/cpuinfo").read_text() else None


@need("checkpoint")
def checkpoint(_: str) -> str | None:
    """A process may say where its arguments lie: CONFIG_CHECKPOINT_RESTORE. Kernel: PR_SET_MM(2const)."""
    size = ctypes.c_uint()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(35, 15, ctypes.byref(size), 0, 0) == 0:  # PR_SET_MM, PR_SET_MM_MAP_SIZE
        return None
    return f"PR_SET_MM: {os.strerror(ctypes.get_errno())}"


@need("psi")
def psi(_: str) -> str | None:
    """The kernel counts pressure, and does not only have the files."""
    try:
        Path("/proc/pressure/cpu").read_text()
    except OSError as error:
        return f"/proc/pressure/cpu: {error.strerror}"
    return None


@need("apparmor")
def apparmor(_: str) -> str | None:
    """AppArmor is active and takes profiles, and apparmor_parser is installed."""
    if not (has_capability(CAP_MAC_ADMIN) and os.path.exists("/sys/kernel/security/apparmor/.replace")):
        return "AppArmor is not active, or who runs the tests may load no profile"
    return tool("apparmor_parser")


@need("selinux")
def selinux(_: str) -> str | None:
    """SELinux is active and takes a policy, and checkpolicy is installed."""
    if not os.access("/sys/fs/selinux/load", os.W_OK):
        return "SELinux is not active, or who runs the tests may load no policy"
    return tool("checkpolicy")


#: Made in a network namespace of its own, which is gone at once.
BRIDGE = """
ip link add name br0 type bridge && ip link add name v0 type veth peer name v1 || exit
ip link set dev v0 master br0 || exit
nft add table inet t && nft add chain inet t c '{ type nat hook postrouting priority 100; }' || exit
nft add rule inet t c masquerade && nft add rule inet t c fib daddr type local return
"""


@need("bridge")
def bridge(_: str) -> str | None:
    """A bridge, veth pairs and rules of nftables can be made in a new network namespace."""
    try:
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", BRIDGE], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]


@need("tun")
def tun(_: str) -> str | None:
    """The kernel has tun devices."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    return None


@need('tool("skopeo", ...)')
def tool(name: str) -> str | None:
    """This program is installed (system-packages.txt says in which package)."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return None if shutil.which(name, path=path) else f"{name} is not installed"


@need('library("libseccomp.so.2", ...)')
def library(name: str) -> str | None:
    """This shared library is installed."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return str(error)
    return None


@need('kernel("5.12")')
def kernel(version: str) -> str | None:
    """The kernel is of this version or newer."""
    here = platform.release()
    numbers = tuple(map(int, re.findall(r"\d+", here)[:2]))
    return None if numbers >= tuple(map(int, version.split("."))) else f"this is Linux {here}"
