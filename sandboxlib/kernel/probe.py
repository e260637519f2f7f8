"""Reads what this machine can do into a `Host`."""

from __future__ import annotations

import os
import sys

from sandboxlib.errors import KernelError
from sandboxlib.host import Entry, Host, IDRanges
from sandboxlib.kernel import idranges, subids
from sandboxlib.kernel.calls import hidden
from sandboxlib.kernel.cgroup import probe as probe_cgroups
from sandboxlib.kernel.folders import run_folder
from sandboxlib.kernel.syscall import read_file, syscall

_FILES = {"mount": "mnt", "network": "net"}
_KINDS = ("mount", "uts", "ipc", "network", "pid", "user", "cgroup", "time")
# CHOWN, DAC_OVERRIDE, SETGID, SETUID, NET_ADMIN, SYS_ADMIN: what the launcher needs of root.
_ROOT = sum(1 << n for n in (0, 1, 6, 7, 12, 21))
_SYS_RESOURCE = 24

#: Of the host's tree: programs and libraries.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
#: Of the host's /etc, by name: what programs need and no secret. Everything else stays out.
_ETC = (
    "alternatives",
    "crypto-policies",
    "fonts",
    "java",
    "java-11-openjdk",
    "java-17-openjdk",
    "java-21-openjdk",
    "java-25-openjdk",
    "ld.so.cache",
    "localtime",
    "os-release",
    "perl",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
)


def probe() -> Host:
    """
    Look at this machine.

    Raises:
        KernelError: /proc is missing, or a file of it cannot be read.
    """
    uname = os.uname()
    major, minor = (int("".join(filter(str.isdigit, part))) for part in uname.release.split(".")[:2])
    uid, gid = os.geteuid(), os.getegid()
    privileged = uid == 0 and _capabilities() & _ROOT == _ROOT and _has_all_ids()
    present = frozenset(kind for kind in _KINDS if os.path.exists(f"/proc/self/ns/{_FILES.get(kind, kind)}"))
    ids = subids.SubIDs() if privileged else subids.probe(uid, gid)
    return Host(
        kernel=(major, minor),
        machine=uname.machine,
        uid=uid,
        gid=gid,
        privileged=privileged,
        groups=tuple(group for group in os.getgroups() if group != gid),
        namespaces=present,
        userns_hint=_userns_hint(privileged),
        landlock=_landlock(),
        labels=_labels(),
        hidden=hidden(),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        raises_limits=privileged and _keeps(_SYS_RESOURCE),
        subuids=ids.uids,
        subgids=ids.gids,
        subids_fault=ids.fault,
        ids=idranges.probe() if privileged else IDRanges(),
        cgroups=probe_cgroups(),
        view=view(),
        search_path=_search_path(),
        run_dir=run_folder(uid),
        ipv6=os.path.exists("/proc/net/if_inet6"),
        pasta=subids.tool("pasta") or "",
        slirp4netns=subids.tool("slirp4netns") or "",
        tun=os.access("/dev/net/tun", os.R_OK | os.W_OK),
    )


def _capabilities(which: bytes = b"CapEff:") -> int:
    for line in read_file("/proc/self/status").splitlines():
        if line.startswith(which):
            return int(line.split()[1], 16)
    return 0


def _keeps(capability: int) -> bool:
    """Has it this capability, and what it executes too?"""
    return bool(_capabilities() & _capabilities(b"CapBnd:") & 1 << capability)


def _has_all_ids() -> bool:
    """
    Whether the ranges that sandboxes of root's have are this root's to give.

    Root of a user namespace, as in a rootless container, has the IDs that it was given: it is a
    plain user with capabilities over what is its own. Kernel: user_namespaces(7).
    """
    return all(
        read_file(f"/proc/self/{which}_map").split() == [b"0", b"0", b"4294967295"]
        for which in ("uid", "gid")
    )


def _landlock() -> int:
    try:
        return syscall("landlock_create_ruleset", 0, 0, 1)
    except KernelError as error:
        # ENOSYS: not built in; EOPNOTSUPP: switched off at boot; EPERM: a filter refuses it.
        if error.errno in (1, 38, 95):
            return 0
        raise


def _labels() -> frozenset[str]:
    """The security modules that label programs: asked of the kernel itself, for /sys may be hidden."""
    found = set()
    try:
        # EINVAL where it is built in and not active: proc_pid_attr(5).
        if read_file("/proc/self/attr/apparmor/current"):
            found.add("apparmor")
    except KernelError as error:
        if error.errno not in (2, 22):
            raise
    try:
        # Registered only if SELinux is switched on.
        if b"\tselinuxfs\n" in read_file("/proc/filesystems"):
            found.add("selinux")
    except KernelError as error:
        # ENOENT within a sandbox, whose /proc has nothing of the kernel's: no label can be asked for.
        if error.errno != 2:
            raise
    return frozenset(found)


def _number(path: str) -> int | None:
    return int(read_file(path)) if os.path.exists(path) else None


def _userns_hint(privileged: bool) -> str:
    if not os.path.exists("/proc/self/ns/user"):
        return "the kernel is built without CONFIG_USER_NS"
    if _number("/proc/sys/user/max_user_namespaces") == 0:
        return "set user.max_user_namespaces above 0 with sysctl(8)"
    if not privileged and _number("/proc/sys/kernel/unprivileged_userns_clone") == 0:
        return "set kernel.unprivileged_userns_clone to 1 with sysctl(8)"
    if not privileged and _number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1:
        return (
            "give the interpreter an AppArmor profile with 'userns,', "
            "or set kernel.apparmor_restrict_unprivileged_userns to 0 with sysctl(8)"
        )
    return ""


def _entry(path: str) -> Entry | None:
    if os.path.islink(path):
        return Entry(kind="link", path=path, target=os.readlink(path))
    if os.path.isdir(path):
        return Entry(kind="dir", path=path)
    return Entry(kind="file", path=path) if os.path.isfile(path) else None


def view() -> tuple[Entry, ...]:
    """What `Rootfs.host` shows, as it is there now."""
    return (*_system(), *_etc(), *_python())


def _system() -> list[Entry]:
    return [entry for path in _SYSTEM if (entry := _entry(path)) is not None]


def _etc() -> list[Entry]:
    return [entry for name in _ETC if (entry := _entry(f"/etc/{name}")) is not None]


def _python() -> list[Entry]:
    """The interpreter's prefix, its virtual environment, and what both import from elsewhere."""
    folders = [sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix]
    folders += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # What `pip install -e` put there: folders named in .pth files, and the finders of setuptools.
    for folder in [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]:
        folders += _pth(folder)
    for finder in sys.meta_path:
        mapping = getattr(sys.modules.get(getattr(finder, "__module__", "")), "MAPPING", None)
        if isinstance(mapping, dict):
            folders += [path for path in mapping.values() if isinstance(path, str)]
    found: list[str] = []
    for path in sorted(
        {os.path.realpath(folder) for folder in folders} | {os.path.abspath(folder) for folder in folders}
    ):
        shown = any(path == other or path.startswith(f"{other}/") for other in (*found, *_SYSTEM))
        if not shown and path != "/" and os.path.isdir(path):
            found.append(path)
    return [Entry(kind="dir", path=path) for path in found]


def _pth(folder: str) -> list[str]:
    found = []
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".pth")]
    except FileNotFoundError:
        return []
    for name in names:
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            for line in file:
                path = os.path.join(folder, line.strip())
                if line.strip() and not line.startswith(("#", "import ", "import\t")) and path in sys.path:
                    found.append(path)
    return found


def _search_path() -> tuple[str, ...]:
    """The running interpreter's folder first, so that ``python3`` is this one."""
    own = [os.path.dirname(os.path.abspath(sys.executable))] if sys.executable else []
    own += [os.path.join(prefix, "bin") for prefix in (sys.prefix, sys.base_prefix)]
    standard = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return tuple(dict.fromkeys([path for path in own if path not in standard] + standard))
