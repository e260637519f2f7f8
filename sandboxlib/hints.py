"""What an errno means for a call where the kernel's own text misleads."""

from __future__ import annotations

import errno

#: By the call and the errno; what writes to a file is known by both.
HINTS: dict[tuple[str, int], str] = {
    (
        "clone3",
        errno.EPERM,
    ): "user namespaces are forbidden here, a filter refuses it, or this is a chroot",
    ("clone3", errno.ENOSPC): "a limit in /proc/sys/user (max_user_namespaces and its siblings) is reached",
    ("clone3", errno.EAGAIN): "a pids limit, RLIMIT_NPROC or kernel.pid_max is reached",
    ("clone3", errno.ENOMEM): "no memory, or the PID namespace that was joined has ended",
    ("clone3", errno.ENOSYS): "the kernel is older than 5.3, or a seccomp filter hides the call",
    (
        "execve",
        errno.E2BIG,
    ): "arguments and variables take at most a quarter of RLIMIT_STACK together (2 MiB by default), and "
    "128 KiB each",
    ("execve", errno.EAGAIN): "the program's RLIMIT_NPROC is reached",
    ("execveat", errno.EAGAIN): "the program's RLIMIT_NPROC, a pids limit or kernel.pid_max is reached",
    ("execveat", errno.EFBIG): "the program's RLIMIT_FSIZE does not let it write the launcher's steps",
    ("execveat", errno.EMFILE): "the program's RLIMIT_NOFILE is reached",
    ("execveat", errno.EINVAL): "the program's RLIMIT_NOFILE is too low for what the launcher is handed",
    ("memfd_create", errno.EFBIG): "the program's RLIMIT_FSIZE does not let it write the launcher",
    ("prlimit", errno.EPERM): "the program's own hard limit, or fs.nr_open, is lower",
    ("execveat", errno.EACCES): "vm.memfd_noexec forbids running from a memfd; set it to 0 or 1",
    ("fsopen", errno.EPERM): "mounting needs CAP_SYS_ADMIN in the mount namespace's user namespace",
    ("fsmount", errno.EPERM): "the host's /proc or /sys is partly masked, so the kernel refuses a fresh one "
    "(as inside an unprivileged container)",
    ("fsconfig", errno.EINVAL): "the file system refused an option or a combination of them",
    ("mount_setattr", errno.ENOSYS): "the kernel is older than 5.12",
    ("mount_setattr", errno.EPERM): "the flag is locked: the mount comes from a more privileged namespace",
    (
        "mount_setattr",
        errno.EINVAL,
    ): "the file system does not support ID-mapped mounts, or the flags conflict",
    ("openat2", errno.EXDEV): "the path leaves the root",
    ("openat2", errno.ELOOP): "the path crosses a magic link, or too many symbolic links",
    ("setns", errno.EPERM): "joining needs CAP_SYS_ADMIN in the namespace's user namespace",
    ("setns", errno.ESRCH): "the sandbox has ended",
    ("setns", errno.EINVAL): "a multi-threaded process, or a namespace of another kind",
    (
        "write /proc/self/uid_map",
        errno.EPERM,
    ): "the range is not the caller's: see /etc/subuid and newuidmap(1)",
    (
        "write /proc/<child>/uid_map",
        errno.EPERM,
    ): "the program lacks CAP_SETUID, CAP_SETGID or CAP_SETFCAP, or /proc is another PID namespace's",
    ("write /proc/<child>/uid_map", errno.EROFS): "/proc is mounted read-only here",
    ("seccomp", errno.EINVAL): "the kernel refused the filter program",
    ("seccomp", errno.EACCES): "a filter needs no_new_privs or CAP_SYS_ADMIN",
    ("pids.current", errno.EAGAIN): "as many processes as its pids limit lets are in the sandbox",
    (
        "sendmsg",
        errno.ETOOMANYREFS,
    ): "this user has as many descriptors on their way in UNIX sockets as RLIMIT_NOFILE lets: unix(7)",
    ("openat2", errno.EAGAIN): "somebody has a lease on it (fcntl(2), F_SETLEASE), or renames without end",
    (
        "write",
        errno.EBUSY,
    ): "the cgroup has processes of its own (the no-internal-process rule of cgroup v2)",
}

__all__ = ["HINTS"]
