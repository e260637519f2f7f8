"""
The default profile, first half: what a sandboxed program may call, and why.

Every row is a topic. Names are those of all ABIs that we have tables for; a machine takes those it
has. `checked` rows look at arguments, and only at what the kernel takes from them: an ``int`` or a
mode is compared by its low 32 bits, since whatever stands above them is dropped after the filter has
seen it (CVE-2019-10063).
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from sandboxlib.seccomp.profile import MASK32, Arg, Op

# bits/socket.h, linux/netlink.h, linux/in.h; the same numbers on all our machines.
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17
SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET = 1, 2, 3, 5
#: The two flags that socket(2) takes together with the type: SOCK_CLOEXEC and SOCK_NONBLOCK.
SOCK_FLAGS = 0o2000000 | 0o4000
NETLINK_ROUTE, NETLINK_AUDIT = 0, 9
IPPROTO_IP, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMPV6, IPPROTO_MPTCP = 0, 1, 6, 17, 58, 262

# fcntl.h: each of these two makes open(2) read its mode argument.
O_CREAT, O_TMPFILE_BIT = 0o100, 0o20000000

# sys/stat.h
S_IFMT, S_IFREG, S_IFIFO, S_IFSOCK = 0o170000, 0o100000, 0o010000, 0o140000
SET_ID = 0o6000

#: CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} of linux/sched.h. NEWTIME is a signal number to clone(2).
CLONE_NEW = 0x7E020000

#: What personality(2) takes to tell the present one.
PERSONALITY_QUERY = MASK32

#: CLONE_PARENT: what it makes is the child of who started the command.
CLONE_PARENT = 0x8000

# linux/fcntl.h: F_SETDELEG came with Linux 6.19. linux/prctl.h. asm-generic/resource.h.
F_SETLEASE, F_SETDELEG = 1024, 1040
PR_SET_MM = 35
RLIMIT_CORE = 4

# asm/ioctls.h
TIOCSTI, TIOCLINUX, TIOCSETD = 0x5412, 0x541C, 0x5423


class Allowed(NamedTuple):
    """Calls that need no look at their arguments."""

    names: str
    reason: str


class Checked(NamedTuple):
    """
    Calls whose arguments decide.

    Attributes:
        alternatives: Tuples of conditions; the call is allowed when all of one tuple hold.
        needs: Capabilities that must all be there for the row to count.
    """

    names: str
    reason: str
    alternatives: tuple[tuple[Arg, ...], ...]
    needs: tuple[str, ...] = ()


class Refused(NamedTuple):
    """
    What is taken away again from an allowed call, when all conditions of one tuple hold.

    Attributes:
        opened_by: Capabilities; any one of them in the bounding set leaves the calls as they are.
        errno: What the program sees; 0 is a call that succeeds and does nothing.
        protection: The row of the protections that it is a part of, and goes with.
    """

    names: str
    reason: str
    alternatives: tuple[tuple[Arg, ...], ...]
    opened_by: tuple[str, ...] = ()
    errno: int = errno.EPERM
    protection: str = "seccomp"


ALLOWED = (
    Allowed(
        "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek close "
        "close_range dup dup2 dup3 fcntl fcntl64 ioctl sendfile sendfile64 splice tee copy_file_range "
        "fadvise64 fadvise64_64 arm_fadvise64_64 readahead",
        "reading and writing what is open already",
    ),
    Allowed(
        "access faccessat faccessat2 stat stat64 lstat lstat64 fstat fstat64 newfstatat fstatat64 statx "
        "statfs statfs64 fstatfs fstatfs64 getdents getdents64 readlink readlinkat getcwd chdir fchdir "
        "umask",
        "looking at files that the mount namespace shows",
    ),
    Allowed(
        "rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat rmdir truncate truncate64 "
        "ftruncate ftruncate64 fallocate chown chown32 fchown fchown32 lchown lchown32 fchownat utime "
        "utimes utimensat utimensat_time64 futimesat flock",
        "changing files; what is not the sandbox's is read-only or not there",
    ),
    Allowed("sync syncfs fsync fdatasync sync_file_range arm_sync_file_range sync_file_range2", "durability"),
    Allowed(
        "getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat setxattr "
        "lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat",
        "extended attributes; the kernel guards the trusted and security ones by capabilities",
    ),
    Allowed(
        "pipe pipe2 poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create "
        "epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4 "
        "timerfd_create timerfd_settime timerfd_settime64 timerfd_gettime timerfd_gettime64 inotify_init "
        "inotify_init1 inotify_add_watch inotify_rm_watch",
        "waiting for events: every event loop",
    ),
    Allowed(
        "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64",
        "the old asynchronous I/O, which databases use; each operation is checked like the plain call",
    ),
    Allowed(
        "brk mmap mmap2 munmap mremap mprotect madvise msync mincore mlock mlock2 mlockall munlock "
        "munlockall memfd_create membarrier mseal map_shadow_stack pkey_alloc pkey_free pkey_mprotect",
        "the program's own memory; its cgroup and RLIMIT_MEMLOCK bound it",
    ),
    Allowed(
        "fork vfork execve execveat exit exit_group wait4 waitid waitpid getpid getppid gettid getpgid "
        "getpgrp setpgid getsid setsid kill tkill tgkill pidfd_open pidfd_send_signal prctl arch_prctl "
        "set_tid_address set_thread_area get_thread_area set_tls cacheflush breakpoint rseq set_robust_list "
        "get_robust_list",
        "processes and threads; the PID namespace bounds whom a signal reaches, the pids limit how many",
    ),
    Allowed(
        "futex futex_time64 futex_waitv futex_wake futex_wait futex_requeue restart_syscall sched_yield",
        "locks",
    ),
    Allowed(
        "rt_sigaction rt_sigprocmask rt_sigpending rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn "
        "rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 sigaltstack sigprocmask sigreturn pause",
        "signals; the last of 32-bit ABIs are still what their C libraries return by",
    ),
    Allowed(
        "time times gettimeofday nanosleep clock_gettime clock_gettime64 clock_getres clock_getres_time64 "
        "clock_nanosleep clock_nanosleep_time64 alarm getitimer setitimer timer_create timer_delete "
        "timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64",
        "reading clocks and setting timers",
    ),
    Allowed(
        "getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 "
        "getresgid getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 "
        "setregid setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid "
        "setfsgid32 setgroups setgroups32 capget capset",
        "identity; the user namespace and the empty capability sets bound what it can become",
    ),
    Allowed(
        "getrlimit ugetrlimit setrlimit prlimit64 getrusage getpriority setpriority ioprio_get ioprio_set "
        "sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam "
        "sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min "
        "sched_rr_get_interval sched_rr_get_interval_time64 getcpu",
        "limits and scheduling of itself, downwards only without capabilities; cgroups hold the ceiling",
    ),
    Allowed("uname sysinfo getrandom", "facts about the system that a program cannot do without"),
    Allowed(
        "bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt send sendto "
        "sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64 shutdown",
        "using sockets; which can be made is decided at socket(), where they reach by the network namespace",
    ),
    Allowed(
        "shmget shmat shmctl shmdt semget semop semtimedop semtimedop_time64 semctl msgget msgsnd msgrcv "
        "msgctl ipc mq_open mq_unlink mq_timedsend mq_timedsend_time64 mq_timedreceive "
        "mq_timedreceive_time64 mq_notify mq_getsetattr",
        "System V and POSIX IPC, inside the IPC namespace",
    ),
    Allowed(
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
        "a program may restrict itself further; it cannot take back what is in force",
    ),
    Allowed(
        "uretprobe uprobe",
        "not for programs: the kernel's trampoline calls them when the host traces a function, and a refusal "
        "would kill the traced program; called from elsewhere they fail",
    ),
)

_PLAIN_TYPE = MASK32 & ~SOCK_FLAGS


def _socket(domain: int, kind: int, *protocol: int) -> tuple[Arg, ...]:
    args = (Arg.int32(0, domain), Arg.int32(1, kind, _PLAIN_TYPE))
    return (*args, Arg.int32(2, protocol[0])) if protocol else args


def _no_set_id(index: int) -> tuple[Arg, ...]:
    return (Arg(index, Op.MASKED_EQ, 0, SET_ID),)


def _no_device(index: int, looked_at: int) -> tuple[tuple[Arg, ...], ...]:
    """Return one alternative for each kind of file that is no device; no kind at all means a plain file."""
    kinds = (0, S_IFREG, S_IFIFO, S_IFSOCK)
    return tuple((Arg(index, Op.MASKED_EQ, kind, looked_at),) for kind in kinds)


_SET_ID = "no set-user-ID or set-group-ID file may appear: on a shared folder it would outlive the sandbox"

CHECKED = (
    Checked(
        "socket",
        "UNIX and internet sockets of the usual kinds; a rare protocol would load its kernel module "
        "(CVE-2017-6074 DCCP, CVE-2021-3772 SCTP); netlink for addresses and routes, which libc asks for",
        (
            *(_socket(AF_UNIX, kind) for kind in (SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET)),
            *(
                _socket(domain, SOCK_STREAM, protocol)
                for domain in (AF_INET, AF_INET6)
                for protocol in (IPPROTO_IP, IPPROTO_TCP, IPPROTO_MPTCP)
            ),
            *(
                _socket(domain, SOCK_DGRAM, protocol)
                for domain in (AF_INET, AF_INET6)
                for protocol in (IPPROTO_IP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_ICMPV6)
            ),
            *(_socket(AF_NETLINK, kind, NETLINK_ROUTE) for kind in (SOCK_RAW, SOCK_DGRAM)),
        ),
    ),
    Checked(
        "socket",
        "packets as they are on the wire",
        (_socket(AF_INET, SOCK_RAW), _socket(AF_INET6, SOCK_RAW), (Arg.int32(0, AF_PACKET),)),
        ("CAP_NET_RAW",),
    ),
    Checked(
        "socket",
        "the other netlink families: firewall, IPsec, generic",
        tuple(_socket(AF_NETLINK, kind) for kind in (SOCK_RAW, SOCK_DGRAM)),
        ("CAP_NET_ADMIN",),
    ),
    Checked(
        "socket",
        "writing audit records, as login programs do",
        tuple(_socket(AF_NETLINK, kind, NETLINK_AUDIT) for kind in (SOCK_RAW, SOCK_DGRAM)),
        ("CAP_AUDIT_WRITE",),
    ),
    Checked(
        "socketpair",
        "UNIX only; TIPC would load its module",
        tuple(_socket(AF_UNIX, kind) for kind in (SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET)),
    ),
    Checked(
        "clone",
        "threads and processes, no new namespace: a user namespace inside opens kernel code that expects "
        "root (CVE-2022-0185, CVE-2022-0492); and no child of who is outside, who would have to reap it",
        ((Arg(0, Op.MASKED_EQ, 0, CLONE_NEW | CLONE_PARENT),),),
    ),
    Checked(
        "personality",
        "the usual one, and asking which; others take protections off (ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC)",
        ((Arg.int32(0, 0),), (Arg.int32(0, PERSONALITY_QUERY),)),
    ),
    Checked("chmod fchmod mkdir creat", _SET_ID, (_no_set_id(1),)),
    Checked("fchmodat fchmodat2 mkdirat", _SET_ID, (_no_set_id(2),)),
    Checked(
        "open",
        f"{_SET_ID}; the mode counts only where a file is made",
        ((Arg(1, Op.MASKED_EQ, 0, O_CREAT | O_TMPFILE_BIT),), _no_set_id(2)),
    ),
    Checked(
        "openat",
        f"{_SET_ID}; the mode counts only where a file is made",
        ((Arg(2, Op.MASKED_EQ, 0, O_CREAT | O_TMPFILE_BIT),), _no_set_id(3)),
    ),
    Checked(
        "mknod",
        f"files, pipes and sockets, no device; {_SET_ID}",
        _no_device(1, S_IFMT | SET_ID),
    ),
    Checked(
        "mknodat",
        f"files, pipes and sockets, no device; {_SET_ID}",
        _no_device(2, S_IFMT | SET_ID),
    ),
    Checked("mknod", "devices, where they are asked for", (_no_set_id(1),), ("CAP_MKNOD",)),
    Checked("mknodat", "devices, where they are asked for", (_no_set_id(2),), ("CAP_MKNOD",)),
    Checked(
        "chmod fchmod fchmodat fchmodat2 mkdir mkdirat creat open openat",
        "set-ID bits, where they are asked for: package managers set them",
        ((),),
        ("CAP_FSETID",),
    ),
    Checked("mknod", "the same for pipes and sockets", _no_device(1, S_IFMT), ("CAP_FSETID",)),
    Checked("mknodat", "the same for pipes and sockets", _no_device(2, S_IFMT), ("CAP_FSETID",)),
    Checked("mknod mknodat", "both of the above", ((),), ("CAP_MKNOD", "CAP_FSETID")),
)

_CORE = (
    "the size of core files: the one byte that it is set to keeps the host's crash handler from starting, "
    "and zero would not (core(5))"
)

REFUSED = (
    Refused(
        "ioctl",
        "keystrokes put into a terminal (CVE-2017-5226), the console's selection, another line discipline; "
        "the kernel takes 32 bits of the request",
        tuple((Arg.int32(1, request),) for request in (TIOCSTI, TIOCLINUX, TIOCSETD)),
    ),
    Refused(
        "fcntl fcntl64",
        "a lease, or a delegation, on a file: whoever opens it, outside too, waits 45 seconds for it",
        tuple((Arg.int32(1, command),) for command in (F_SETLEASE, F_SETDELEG)),
        ("CAP_LEASE",),
    ),
    Refused(
        "prctl",
        "what its memory is said to be: a command line of a gigabyte, which others read",
        ((Arg.int32(0, PR_SET_MM),),),
        ("CAP_SYS_RESOURCE",),
    ),
    Refused(
        "prlimit64",
        f"{_CORE}; nor can a filter tell what it was",
        ((Arg.int32(1, RLIMIT_CORE), Arg(2, Op.NE, 0), Arg(3, Op.NE, 0)),),
        protection="no-core-dumps",
    ),
    Refused(
        "prlimit64",
        f"{_CORE}; who asks for none has none",
        ((Arg.int32(1, RLIMIT_CORE), Arg(2, Op.NE, 0)),),
        errno=0,
        protection="no-core-dumps",
    ),
    Refused(
        "setrlimit",
        f"{_CORE}; who asks for none has none",
        ((Arg.int32(0, RLIMIT_CORE),),),
        errno=0,
        protection="no-core-dumps",
    ),
)
