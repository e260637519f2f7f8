"""
The default profile, second half: what a sandboxed program may not call, why, and what opens it.

A call that is in neither half does not exist: a test holds every table against both. A denied call
gets EPERM, as from a kernel that refuses; ENOSYS is for calls that are younger than the programs that
use them and that those programs replace by an older call when told so.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

EPERM, ENOSYS = errno.EPERM, errno.ENOSYS


class Denied(NamedTuple):
    """
    Calls that are refused.

    Attributes:
        opened_by: Capabilities; any one of them in the bounding set allows the calls.
        errno: What the program sees.
    """

    names: str
    reason: str
    opened_by: tuple[str, ...] = ()
    errno: int = EPERM


DENIED = (
    # Namespaces and mounts
    Denied("unshare setns", "new namespaces and other processes' (CVE-2022-0185)", ("CAP_SYS_ADMIN",)),
    Denied(
        "clone3",
        "its flags are in memory, where a filter cannot look; libc falls back to clone, whose are filtered",
        ("CAP_SYS_ADMIN",),
        ENOSYS,
    ),
    Denied(
        "mount umount umount2 fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr",
        "the mount table is part of the boundary",
        ("CAP_SYS_ADMIN",),
    ),
    Denied("open_tree_attr", "open_tree and mount_setattr in one; too new to be relied on", (), ENOSYS),
    Denied("statmount listmount listns", "they show mounts and namespaces with host paths", (), ENOSYS),
    Denied("pivot_root", "changes the root; Docker opens it for nobody"),
    Denied("chroot", "a second root is a way around checks of paths", ("CAP_SYS_CHROOT",)),
    Denied("sethostname setdomainname", "names are given from outside", ("CAP_SYS_ADMIN",)),
    # Files
    Denied(
        "openat2",
        "its mode is in memory, where no filter looks: it could make a set-user-ID file; callers fall back",
        ("CAP_FSETID",),
        ENOSYS,
    ),
    Denied(
        "name_to_handle_at open_by_handle_at",
        "files by handle, past the mount namespace (the 'shocker' escape of 2014)",
        ("CAP_DAC_READ_SEARCH",),
    ),
    Denied("fanotify_init fanotify_mark", "watches whole mounts, of others too", ("CAP_SYS_ADMIN",)),
    Denied("quotactl quotactl_fd", "quotas belong to the host", ("CAP_SYS_ADMIN",)),
    Denied("lookup_dcookie", "paths of others; for profilers, gone since Linux 6.7", ("CAP_SYS_ADMIN",)),
    Denied("swapon swapoff", "swap belongs to the host"),
    Denied("file_getattr file_setattr", "inode flags and project ids; too new to be relied on", (), ENOSYS),
    Denied("cachestat", "tells which pages of shared files others have read", (), ENOSYS),
    Denied("ustat sysfs", "file system types and devices of the host; obsolete"),
    Denied(
        "vmsplice", "maps memory into pipes; the first half of several kernel exploits (CVE-2022-0847's kin)"
    ),
    # Other processes
    Denied(
        "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp",
        "memory, descriptors and layout of other processes",
        ("CAP_SYS_PTRACE",),
    ),
    Denied(
        "perf_event_open",
        "large attack surface; counters see other processes",
        ("CAP_PERFMON", "CAP_SYS_ADMIN"),
    ),
    Denied("bpf", "programs in the kernel (CVE-2021-3490, CVE-2022-23222)", ("CAP_BPF", "CAP_SYS_ADMIN")),
    Denied("acct", "process accounting of the whole machine", ("CAP_SYS_PACCT",)),
    Denied(
        "lsm_get_self_attr lsm_set_self_attr lsm_list_modules", "labels are given from outside", (), ENOSYS
    ),
    # Kernel surface that no ordinary program needs
    Denied(
        "io_uring_setup io_uring_enter io_uring_register",
        "operations that no filter sees, and a long list of exploits; callers fall back",
    ),
    Denied("userfaultfd", "holds the kernel in a page fault as long as an exploit likes"),
    Denied("keyctl add_key request_key", "keyrings are not in any namespace (CVE-2016-0728)"),
    Denied("memfd_secret", "memory that the host cannot look into"),
    Denied(
        "mbind set_mempolicy set_mempolicy_home_node get_mempolicy",
        "memory nodes are set from outside; they show the machine's layout",
        ("CAP_SYS_NICE",),
    ),
    Denied("migrate_pages move_pages", "move memory, and tell where that of others is"),
    Denied("remap_file_pages", "emulated since Linux 4.0, for nobody"),
    Denied("modify_ldt", "segments for 16-bit programs (CVE-2015-5157, CVE-2017-17053)"),
    # The machine
    Denied(
        "settimeofday clock_settime clock_settime64 stime adjtimex clock_adjtime clock_adjtime64",
        "the clock is the machine's",
        ("CAP_SYS_TIME",),
    ),
    Denied("reboot", "the machine is the host's", ("CAP_SYS_BOOT",)),
    Denied("kexec_load kexec_file_load", "another kernel"),
    Denied("init_module finit_module delete_module", "kernel modules", ("CAP_SYS_MODULE",)),
    Denied("iopl ioperm", "the machine's ports", ("CAP_SYS_RAWIO",)),
    Denied("pciconfig_read pciconfig_write pciconfig_iobase", "the machine's buses"),
    Denied(
        "syslog",
        "the kernel's log tells addresses and other sandboxes' doings",
        ("CAP_SYSLOG", "CAP_SYS_ADMIN"),
    ),
    Denied("vhangup", "takes terminals away from their sessions", ("CAP_SYS_TTY_CONFIG",)),
    Denied("vm86 vm86old", "real mode; i386 only"),
    # Old ways that would go around the rest
    Denied(
        "socketcall",
        "i386: its arguments are in memory, so the kinds of sockets could not be checked; libc has called "
        "socket itself since Linux 4.3",
    ),
    Denied("uselib", "loads code by path as executables of 1995 did"),
    Denied(
        "oldfstat oldlstat oldstat oldolduname olduname readdir nice signal sigaction sigpending sigsuspend "
        "sgetmask ssetmask",
        "32-bit calls that have been replaced; no C library of this century makes them",
    ),
    Denied(
        "usr26 usr32 get_tls", "arm: modes of processors of the nineties, and a helper of the kernel's own"
    ),
    Denied(
        "_sysctl afs_syscall bdflush break create_module epoll_ctl_old epoll_wait_old ftime get_kernel_syms "
        "getpmsg gtty idle lock mpx nfsservctl prof profil putpmsg query_module security stty tuxcall "
        "ulimit vserver",
        "numbers without a call behind them, or none any more",
    ),
)
