"""
Runs inside a sandbox and reports what it finds there, as JSON.

``python -I -S -c SOURCE REQUEST`` with REQUEST the JSON text of::

    {"probes": [name, ...], "numbers": {call: number}, "facts": {...}}

Needs nothing but the standard library. Each probe is a function; what it returns,
or the name of the errno that it failed with, stands in the report under its name.
A probe that may do harm to this process runs in a child of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

REQUEST = json.loads(sys.argv[1])
NUMBERS: dict[str, int] = REQUEST["numbers"]
FACTS: dict[str, Any] = REQUEST["facts"]
PROBES: dict[str, Callable[[], Any]] = {}
HIGH = 1 << 32
X86 = os.uname().machine == "x86_64"

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def probe(function: Callable[[], Any]) -> Callable[[], Any]:
    """Enter a function into the table."""
    PROBES[function.__name__] = function
    return function


def call(name: str, *arguments: Any) -> int:
    """Make a system call; raises OSError."""
    # Each as 64 bits: ctypes would cut a plain int to 32.
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result = int(libc.syscall(ctypes.c_long(NUMBERS[name]), *wide))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def answer(function: Callable[..., Any], *arguments: Any) -> Any:
    """What *function* returns, or the name of its error."""
    try:
        return function(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))


def tried(function: Callable[..., Any], *arguments: Any) -> str:
    """``ok``, or the name of the error."""

    def attempt() -> str:
        function(*arguments)
        return "ok"

    return str(answer(attempt))


def in_child(function: Callable[[], Any]) -> Any:
    """The answer of *function* from a child process, or ``signal N``."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(answer(function)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        data = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"signal {-status}" if status < 0 else json.loads(data)


def opened(path: str, flags: int) -> None:
    """Open and close a file."""
    os.close(os.open(path, flags))


def text(path: str) -> str:
    """A file's content."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


# --- who it is ---------------------------------------------------------------------------------------


@probe
def status() -> dict[str, str]:
    """/proc/self/status."""
    return {
        key: value.strip()
        for key, _, value in (line.partition(":") for line in text("/proc/self/status").splitlines())
    }


@probe
def ids() -> list[Any]:
    """User, group and groups."""
    return [os.getresuid(), os.getresgid(), os.getgroups()]


@probe
def maps() -> dict[str, str]:
    """ID maps."""
    return {name: text(f"/proc/self/{name}") for name in ("uid_map", "gid_map", "setgroups")}


@probe
def namespaces() -> dict[str, str]:
    """Namespaces by kind."""
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in os.listdir("/proc/self/ns")}


@probe
def environment() -> dict[str, str]:
    """The environment."""
    return dict(os.environ)


@probe
def descriptors() -> list[int]:
    """Open descriptors."""
    found = []
    for number in range(4096):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return found


@probe
def rlimits() -> dict[str, list[int]]:
    """Resource limits by name."""
    import resource

    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {name[7:].lower(): list(resource.getrlimit(getattr(resource, name))) for name in names}


@probe
def session() -> dict[str, Any]:
    """The session, and whether it has a terminal."""
    return {"leader": os.getsid(0) == os.getpid(), "tty": tried(lambda: os.open("/dev/tty", os.O_RDWR))}


# --- what it sees ------------------------------------------------------------------------------------


@probe
def mounts() -> list[list[str]]:
    """Each mount as (root within its file system, place, options, type)."""
    found = []
    for line in text("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        found.append([fields[3], fields[4], fields[5], after.split()[0]])
    return found


@probe
def proc_names() -> list[str]:
    """What lies in /proc besides processes."""
    return sorted(name for name in os.listdir("/proc") if not name.isdigit())


@probe
def processes() -> dict[str, str]:
    """Processes in sight, with their names."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        # It may end at any moment.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[name] = text(f"/proc/{name}/comm").strip()
    return found


@probe
def kernel_files() -> dict[str, str]:
    """What reading the kernel's own files in /proc and /sys gives: an error, ``empty`` or ``read``."""

    def look(path: str) -> str:
        def read() -> str:
            if os.path.isdir(path):
                return "read" if os.listdir(path) else "empty"
            with open(path, "rb") as file:
                return "read" if file.read(64) else "empty"

        return str(answer(read))

    return {path: look(path) for path in FACTS["kernel_files"]}


@probe
def sysctl() -> dict[str, str]:
    """Opening the host's settings for writing."""
    paths = (
        "kernel/core_pattern",
        "kernel/hostname",
        "vm/drop_caches",
        "net/ipv4/ip_forward",
        "user/max_user_namespaces",
    )
    found = {path: tried(opened, f"/proc/sys/{path}", os.O_WRONLY) for path in paths}
    found["sysrq"] = tried(lambda: os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY)))
    return found


@probe
def init_session() -> list[int]:
    """Process group, session and terminal of pid 1, as they are numbered here: 0 is one of outside."""
    return [int(field) for field in text("/proc/1/stat").rpartition(")")[2].split()[2:5]]


@probe
def init() -> dict[str, str]:
    """What can be read of pid 1, and done to it."""
    found = {}
    there = os.listdir("/proc/self")
    for name in {"environ", "maps", "mem", "auxv", "stack", "syscall"}.intersection(there):
        found[name] = tried(text, f"/proc/1/{name}")
    for name in {"map_files", "fdinfo"}.intersection(there):
        found[name] = tried(os.listdir, f"/proc/1/{name}")
    # Its owner may count a process's descriptors; what they are is another question.
    found["fd"] = tried(
        lambda: [
            os.readlink(f"/proc/1/fd/{number}")
            for number in range(16)
            if number == 5 or os.path.lexists(f"/proc/1/fd/{number}")
        ]
    )
    for name in ("exe", "root", "cwd", "ns/mnt"):
        found[name] = tried(os.readlink, f"/proc/1/{name}")
    found["cmdline"] = str(answer(lambda: text("/proc/1/cmdline")))
    found["comm"] = str(answer(lambda: text("/proc/1/comm").strip()))
    found["exe for writing"] = tried(lambda: os.close(os.open("/proc/1/exe", os.O_RDWR)))
    found["mem for writing"] = tried(lambda: os.close(os.open("/proc/1/mem", os.O_RDWR)))
    found["ptrace"] = tried(lambda: call("ptrace", 0x4206, 1, 0, 0))  # PTRACE_SEIZE
    found["pidfd_getfd"] = tried(lambda: call("pidfd_getfd", os.pidfd_open(1), 5, 0))
    buffer = ctypes.create_string_buffer(8)
    iovec = struct.pack("PN", ctypes.addressof(buffer), 8)
    remote = struct.pack("PN", 0x400000, 8)
    found["process_vm_readv"] = tried(lambda: call("process_vm_readv", 1, iovec, 1, remote, 1, 0))
    return found


@probe
def init_signals() -> str:
    """Killing pid 1."""
    return tried(lambda: os.kill(1, 9))


@probe
def devices() -> dict[str, str]:
    """What lies in /dev: type and number."""
    found = {}
    for name in os.listdir("/dev"):
        status_ = os.lstat(f"/dev/{name}")
        kind = stat.filemode(status_.st_mode)[0]
        found[name] = (
            f"{kind} {os.major(status_.st_rdev)}:{os.minor(status_.st_rdev)}" if kind in "cb" else kind
        )
    return found


@probe
def cgroups() -> dict[str, str]:
    """The cgroups that it is in, as it sees them."""
    return {line.split(":")[1]: line.split(":", 2)[2] for line in text("/proc/self/cgroup").splitlines()}


@probe
def interfaces() -> list[str]:
    """Network interfaces."""
    return [name for _, name in socket.if_nameindex()]


@probe
def routes() -> str:
    """Whether there is a way to an address outside."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        return tried(lambda: udp.connect(("192.0.2.1", 9)))


@probe
def host_services() -> dict[str, str]:
    """Sockets, shared memory and queues that the program outside has made."""

    def connect(family: int, address: Any) -> str:
        with socket.socket(family, socket.SOCK_STREAM) as stream:
            return tried(lambda: stream.connect(address))

    found = {}
    if "port" in FACTS:
        found["loopback"] = connect(socket.AF_INET, ("127.0.0.1", FACTS["port"]))
    if "abstract" in FACTS:
        found["abstract"] = connect(socket.AF_UNIX, "\0" + FACTS["abstract"])
    if "shm" in FACTS:
        found["shm"] = tried(lambda: call("shmget", FACTS["shm"], 1, 0))
    if "queue" in FACTS:
        found["queue"] = tried(
            lambda: os.close(call("mq_open", FACTS["queue"].encode(), os.O_RDONLY, 0, None))
        )
    if "pid" in FACTS:
        found["signal"] = tried(lambda: os.kill(FACTS["pid"], 0))
        found["process"] = tried(lambda: os.listdir(f"/proc/{FACTS['pid']}"))
    if "file" in FACTS:
        found["file"] = tried(lambda: os.stat(FACTS["file"]))
    return found


@probe
def unseen_paths() -> dict[str, str]:
    """Files of the host that must not be there."""
    return {path: tried(os.stat, path) for path in FACTS["unseen"]}


# --- what it may call --------------------------------------------------------------------------------

NULL = None
CLONE_NEWUSER, CLONE_NEWNS, SIGCHLD = 0x10000000, 0x00020000, 17


def clone_new_user() -> int:
    """clone(CLONE_NEWUSER): a process that ends at once."""
    order = (CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)
    pid = call("clone", *order)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def key() -> bytes:
    """A buffer that is long enough for anything."""
    return bytes(128)


#: Calls which the kernel would answer otherwise if the filter let them pass, for anyone without rights.
REFUSED: dict[str, Callable[[], Any]] = {
    "unshare(0)": lambda: call("unshare", 0),
    "unshare(user)": lambda: call("unshare", CLONE_NEWUSER),
    "setns": lambda: call("setns", -1, 0),
    "clone(user)": clone_new_user,
    "clone3": lambda: call("clone3", NULL, 0),
    "open_tree": lambda: os.close(call("open_tree", -100, b"/", 0)),
    "open_tree_attr": lambda: call("open_tree_attr", -1, NULL, 0, NULL, 0),
    "statmount": lambda: call("statmount", NULL, NULL, 0, 0),
    "listmount": lambda: call("listmount", NULL, NULL, 0, 0),
    "name_to_handle_at": lambda: call("name_to_handle_at", -1, b"x", key(), key(), 0),
    "keyctl": lambda: call("keyctl", 0, -3, 0, 0, 0),
    "add_key": lambda: call("add_key", b"user", b"sbx", b"v", 1, -2),
    "request_key": lambda: call("request_key", b"user", b"sbx-none", NULL, 0),
    "userfaultfd": lambda: os.close(call("userfaultfd", 1)),
    "io_uring_setup": lambda: call("io_uring_setup", 0, NULL),
    "io_uring_enter": lambda: call("io_uring_enter", -1, 0, 0, 0, NULL, 0),
    "perf_event_open": lambda: call("perf_event_open", NULL, 0, -1, -1, 0),
    "ptrace": lambda: in_child_raising(lambda: call("ptrace", 0, 0, 0, 0)),
    "process_vm_readv": lambda: call("process_vm_readv", os.getpid(), NULL, 0, NULL, 0, 0),
    "process_vm_writev": lambda: call("process_vm_writev", os.getpid(), NULL, 0, NULL, 0, 0),
    "process_madvise": lambda: call("process_madvise", -1, NULL, 0, 0, 0),
    "process_mrelease": lambda: call("process_mrelease", -1, 0),
    "pidfd_getfd": lambda: call("pidfd_getfd", -1, 0, 0),
    "kcmp": lambda: call("kcmp", os.getpid(), os.getpid(), 0, 0, 0),
    "personality": lambda: call("personality", 0x0040000),
    "personality, high bits": lambda: call("personality", HIGH | 0x0040000),
    "vmsplice": lambda: call("vmsplice", -1, NULL, 0, 0),
    "get_mempolicy": lambda: call("get_mempolicy", NULL, NULL, 0, 0, 0),
    "set_mempolicy": lambda: call("set_mempolicy", 0, NULL, 0),
    "move_pages": lambda: call("move_pages", 0, 0, NULL, NULL, NULL, 0),
    "quotactl": lambda: call("quotactl", 0x80000700, b"/none", 0, NULL),
    "adjtimex": lambda: call("adjtimex", bytes(512)),
    "fanotify_init": lambda: os.close(call("fanotify_init", 0x200, 0)),
    "cachestat": lambda: call("cachestat", -1, NULL, NULL, 0),
    "lsm_list_modules": lambda: call("lsm_list_modules", NULL, NULL, 0),
    "memfd_secret": lambda: call("memfd_secret", 0x40000000),
    "socket(vsock)": lambda: os.close(call("socket", 40, 1, 0)),
    "socket(vsock, high bits)": lambda: os.close(call("socket", HIGH | 40, 1, 0)),
    "socket(alg)": lambda: os.close(call("socket", 38, 5, 0)),
    "socket(netlink audit)": lambda: os.close(call("socket", 16, 3, 9)),
    "socket(netlink netfilter)": lambda: os.close(call("socket", 16, 3, 12)),
    "socket(netlink uevent)": lambda: os.close(call("socket", 16, 2, 15)),
    "socket(netlink generic)": lambda: os.close(call("socket", 16, 3, 16)),
    "socket(netlink diag)": lambda: os.close(call("socket", 16, 2, 4)),
    "ioctl(TIOCSTI)": lambda: call("ioctl", -1, 0x5412, NULL),
    "ioctl(TIOCSTI, high bits)": lambda: call("ioctl", -1, HIGH | 0x5412, NULL),
    "ioctl(TIOCLINUX)": lambda: call("ioctl", -1, 0x541C, NULL),
    "ioctl(TIOCLINUX, high bits)": lambda: call("ioctl", -1, 0xFFFFFFFF << 32 | 0x541C, NULL),
    "ioctl(TIOCSETD)": lambda: call("ioctl", -1, 0x5423, NULL),
    "fchmod(set-user-ID)": lambda: call("fchmod", -1, 0o4755),
    "fchmodat(set-group-ID)": lambda: call("fchmodat", -1, b"none", 0o2755),
    "openat(set-user-ID)": lambda: call("openat", -1, b"none", os.O_CREAT | os.O_WRONLY, 0o4755),
    "mkdirat(set-group-ID)": lambda: call("mkdirat", -1, b"none", 0o2755),
    "mknodat(device)": lambda: call("mknodat", -1, b"none", stat.S_IFCHR | 0o600, 0x103),
    "openat2": lambda: call("openat2", -1, b"none", NULL, 0),
}
if X86:
    REFUSED |= {
        "modify_ldt": lambda: call("modify_ldt", 0, NULL, 0),
        "iopl": lambda: call("iopl", 0),
        "ioperm": lambda: call("ioperm", 0, 1, 0),
        "sysfs": lambda: call("sysfs", 3),
        "chmod(set-user-ID)": lambda: call("chmod", b"/none", 0o4755),
    }

#: Calls which the kernel itself refuses to who has no rights, so that no difference can be seen.
TWICE: dict[str, Callable[[], Any]] = {
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, NULL),
    "umount2": lambda: call("umount2", b"/tmp", 2),
    "fsopen": lambda: call("fsopen", b"tmpfs", 0),
    "fsmount": lambda: call("fsmount", -1, 0, 0),
    "move_mount": lambda: call("move_mount", -1, b"", -1, b"", 0),
    "mount_setattr": lambda: call("mount_setattr", -100, b"/usr", 0, struct.pack("=4Q", 0, 1, 0, 0), 32),
    "pivot_root": lambda: call("pivot_root", b"/", b"/"),
    "chroot": lambda: call("chroot", b"/tmp"),
    "unshare(mount)": lambda: call("unshare", CLONE_NEWNS),
    "sethostname": lambda: call("sethostname", b"x", 1),
    "bpf": lambda: call("bpf", 0, bytes(128), 128),
    "open_by_handle_at": lambda: call("open_by_handle_at", -100, key(), 0),
    "acct": lambda: call("acct", NULL),
    "swapon": lambda: call("swapon", b"/none", 0),
    "swapoff": lambda: call("swapoff", b"/none"),
    "reboot": lambda: call("reboot", 0xFEE1DEAD, 672274793, 0, NULL),  # CAD off, which does nothing here
    "kexec_load": lambda: call("kexec_load", 0, 0, NULL, 0),
    "init_module": lambda: call("init_module", NULL, 0, b""),
    "delete_module": lambda: call("delete_module", b"none", 0),
    "settimeofday": lambda: call("settimeofday", bytes(16), NULL),
    "clock_settime": lambda: call("clock_settime", 0, bytes(16)),
    "syslog": lambda: call("syslog", 5, NULL, 0),
    "socket(packet)": lambda: call("socket", 17, 3, 0),
    "socket(raw)": lambda: call("socket", 2, 3, 1),
    "socket(raw, IPv6)": lambda: call("socket", 10, 3, 58),
    "vhangup": lambda: call("vhangup"),
    "mknod(device)": lambda: call("mknodat", -100, b"/tmp/device", stat.S_IFBLK | 0o600, 0x800),
}


def in_child_raising(function: Callable[[], Any]) -> Any:
    """As `in_child`, with an error raised again."""
    result = in_child(function)
    if isinstance(result, str) and result.startswith("E"):
        raise OSError(getattr(errno, result), result)
    return result


@probe
def refused() -> dict[str, str]:
    """The answer to each of `REFUSED` that this machine has."""
    return {name: tried(function) for name, function in REFUSED.items()}


@probe
def refused_twice() -> dict[str, str]:
    """The answer to each of `TWICE`."""
    return {name: tried(function) for name, function in TWICE.items()}


@probe
def sockets() -> dict[str, str]:
    """Sockets that ordinary programs use."""
    kinds = {"unix": (1, 1, 0), "tcp": (2, 1, 0), "udp": (2, 2, 0), "tcp6": (10, 1, 6), "route": (16, 3, 0)}
    return {name: tried(lambda *kind: os.close(call("socket", *kind)), *kind) for name, kind in kinds.items()}


def machine_code(code: bytes) -> int:
    """Run machine code that returns a number, in this process."""
    import mmap

    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


@probe
def i386_entry() -> Any:
    """getpid by the 32-bit entry: mov eax, 20; int 0x80; ret."""
    return in_child(lambda: "ok" if machine_code(b"\xb8\x14\0\0\0\xcd\x80\xc3") > 0 else "no answer")


@probe
def x32_entry() -> Any:
    """getpid by x32's number."""
    return in_child(
        lambda: "ok" if libc.syscall(ctypes.c_long(0x40000000 | 39)) > 0 else os.strerror(ctypes.get_errno())
    )


@probe
def nested_user_namespace() -> str:
    """A user namespace within."""
    return str(in_child(lambda: tried(lambda: call("unshare", CLONE_NEWUSER))))


@probe
def keyring() -> str:
    """Searching the session keyring for the key that the program has in its own."""
    return tried(lambda: call("keyctl", 10, -3, b"user", FACTS["key"].encode(), 0))


# --- files -------------------------------------------------------------------------------------------


@probe
def written() -> dict[str, str]:
    """Where files can be made."""

    def make(folder: str) -> str:
        def attempt() -> None:
            path = f"{folder}/sbx-probe"
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.unlink(path)

        return tried(attempt)

    return {folder: make(folder) for folder in FACTS["folders"]}


@probe
def sizes() -> dict[str, list[int]]:
    """Bytes and inodes of the writable file systems."""
    found = {}
    for folder in FACTS["folders"]:
        values = os.statvfs(folder)
        found[folder] = [values.f_blocks * values.f_frsize, values.f_files]
    return found


@probe
def filled() -> str:
    """Filling /tmp: 2 GB, without touching the pages."""
    with open("/tmp/full", "wb") as file:
        result = tried(lambda: os.posix_fallocate(file.fileno(), 0, 2 << 30))
    os.unlink("/tmp/full")
    return result


@probe
def shared_folder() -> dict[str, str]:
    """Making what must not be made in a folder that is shared with the host."""
    folder = FACTS["shared"]
    plain = f"{folder}/plain"
    os.close(os.open(plain, os.O_CREAT | os.O_WRONLY, 0o755))
    found = {
        "chmod": tried(lambda: os.chmod(plain, 0o4755)),
        "fchmod": tried(lambda: os.fchmod(os.open(plain, os.O_RDONLY), 0o6755)),
        "fchmodat2": tried(lambda: call("fchmodat2", -100, plain.encode(), 0o4755, 0)),
        "open": tried(lambda: os.close(os.open(f"{folder}/made", os.O_CREAT | os.O_WRONLY, 0o4755))),
        "mkdir": tried(lambda: call("mkdirat", -100, f"{folder}/made-folder".encode(), 0o2755)),
        "character device": tried(lambda: os.mknod(f"{folder}/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))),
        "block device": tried(lambda: os.mknod(f"{folder}/disk", 0o666 | stat.S_IFBLK, os.makedev(254, 0))),
        "whiteout": tried(lambda: os.mknod(f"{folder}/whiteout", 0o666 | stat.S_IFCHR, 0)),
        "file capabilities": tried(
            lambda: os.setxattr(plain, "security.capability", struct.pack("<5I", 0x02000001, 0x2000, 0, 0, 0))
        ),
    }
    found["mode"] = oct(os.stat(plain).st_mode & 0o7777)
    return found


@probe
def device_node() -> str:
    """Making the one device node that an unprivileged user may make: a whiteout."""
    return tried(lambda: os.mknod("/tmp/whiteout", 0o600 | stat.S_IFCHR, 0))


@probe
def stdin_for_writing() -> dict[str, str]:
    """Opening standard input once more, for writing."""
    return {
        "write": tried(lambda: os.close(os.open("/proc/self/fd/0", os.O_RDWR))),
        "truncate": tried(lambda: os.truncate("/proc/self/fd/0", 0)),
        "read": tried(lambda: os.read(0, 1)),
    }


@probe
def escape_by_chroot() -> list[str]:
    """The classical way out of a chroot: what lies at the top afterwards."""

    def climb() -> list[str]:
        os.mkdir("/tmp/cell")
        call("chroot", b"/tmp/cell")
        for _ in range(64):
            os.chdir("..")
        call("chroot", b".")
        return sorted(os.listdir("/"))

    return in_child(climb)  # type: ignore[no-any-return]


@probe
def remount() -> dict[str, str]:
    """Taking read-only and nodev off again, with all capabilities."""
    clear = struct.pack("=4Q", 0, 1 | 2 | 4, 0, 0)  # RDONLY, NOSUID, NODEV
    return {
        path: tried(call, "mount_setattr", -100, path.encode(), 0, clear, 32) for path in FACTS["folders"]
    }


# --- limits ------------------------------------------------------------------------------------------


@probe
def forks() -> Any:
    """How many children there can be at once, up to the number that is asked for."""
    pids: list[int] = []
    read, write = os.pipe()
    try:
        while len(pids) < FACTS["forks"]:
            pid = os.fork()
            if pid == 0:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            pids.append(pid)
    except OSError as error:
        return [errno.errorcode[error.errno or 0], len(pids)]
    finally:
        os.close(write)
        for pid in pids:
            os.waitpid(pid, 0)
    return ["ok", len(pids)]


@probe
def cgroup_escape() -> dict[str, str]:
    """With all capabilities: mounting cgroups, writing a limit, leaving."""
    found = {}
    os.makedirs("/tmp/cg", exist_ok=True)
    for kind, options in (("cgroup2", b""), ("cgroup", b"memory"), ("cgroup", b"pids")):
        name = f"{kind} {options.decode()}".strip()
        found[f"mount {name}"] = tried(call, "mount", b"none", b"/tmp/cg", kind.encode(), 0, options)
        if found[f"mount {name}"] == "ok":
            for file in (
                "memory.max",
                "memory.limit_in_bytes",
                "pids.max",
                "cgroup.procs",
                "release_agent",
                "cgroup.subtree_control",
                "../cgroup.procs",
            ):
                if os.path.exists(f"/tmp/cg/{file}"):
                    found[f"{name}: {file}"] = tried(write_to, f"/tmp/cg/{file}", b"max")
            found[f"{name}: mkdir"] = tried(lambda: os.mkdir("/tmp/cg/mine"))
            call("umount2", b"/tmp/cg", 2)
    return found


def write_to(path: str, data: bytes) -> None:
    """Write in one go."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


@probe
def clocks() -> dict[str, float]:
    """Clocks in seconds."""
    return {"boottime": time.clock_gettime(time.CLOCK_BOOTTIME), "monotonic": time.monotonic()}


if __name__ == "__main__":
    print(json.dumps({name: answer(PROBES[name]) for name in REQUEST["probes"]}))
