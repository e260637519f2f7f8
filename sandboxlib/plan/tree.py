"""The steps that build a sandbox's file tree: its root, its mounts, /dev and /proc."""

from __future__ import annotations

import errno
import posixpath
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sandboxlib.plan.flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    MS_PRIVATE,
    NOTHING,
    O_CLOEXEC,
    O_CREAT,
    O_DIRECTORY,
    O_EXCL,
    O_NOFOLLOW,
    O_PATH,
    O_WRONLY,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    Named,
)
from sandboxlib.plan.steps import Call, Step, Write

if TYPE_CHECKING:
    from sandboxlib.rootfs import Rootfs

ROOT, WALK, TARGET, CONTEXT, MOUNT, SCRATCH = (
    Named(8, "<root>"),
    Named(9, "<folder>"),
    Named(10, "<target>"),
    Named(11, "<context>"),
    Named(12, "<mount>"),
    Named(19, "<scratch>"),
)
#: A mount that was asked for, until it is attached.
EXTRA = Named(18, "<extra>")
#: The tasks files of cgroup v1 stand from here on: one for each hierarchy, of which there are twelve at most.
JOINS = 20
#: Sources that the launcher opens before the child is cloned stand from here on, as many as there are.
SOURCES = 36

#: What every mount has that may hold what others have written.
SAFE = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV

#: What a path that this kernel does not have answers: itself, then the descriptor that was not made.
_GONE = (errno.ENOENT, errno.EBADF)
_ATTR = struct.Struct("=4Q")
_HOW = struct.Struct("=3Q")


def setattr_(
    fd: int,
    why: str,
    *,
    set_: Named = NOTHING,
    propagation: Named = NOTHING,
    userns: int = 0,
    recursive: bool = True,
    missing: bool = False,
) -> Call:
    """mount_setattr on a descriptor, or on "/" for AT_FDCWD."""
    path = "/" if fd == AT_FDCWD else ""
    flags = (AT_RECURSIVE if recursive else NOTHING) | (NOTHING if path else AT_EMPTY_PATH)
    attr = _ATTR.pack(set_, 0, propagation, userns)
    changes = "|".join(str(change) for change in (set_, propagation) if change)
    text = f'{fd}, "{path}", {flags}, {changes}'
    return Call(
        "mount_setattr", (fd, path, flags, attr, _ATTR.size), why, text=text, ignore=_GONE if missing else ()
    )


def open_tree(
    source: str,
    out: Named,
    why: str,
    *,
    directory: int = AT_FDCWD,
    recursive: bool = True,
    missing: bool = False,
) -> Call:
    """A detached copy of the mounts at *source*, which with *missing* need not be there."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else NOTHING)
    if not source:
        flags |= AT_EMPTY_PATH
    return Call("open_tree", (directory, source, flags), why, out=out, ignore=_GONE if missing else ())


def openat2(
    path: str, out: Named, why: str, *, flags: Named = O_PATH | O_DIRECTORY, resolve: Named | None = None
) -> Call:
    """Open a path below the root; links cannot lead out of it."""
    resolve = resolve or (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    how = _HOW.pack(flags | O_CLOEXEC, 0, resolve)
    return Call(
        "openat2", (ROOT, path, how, _HOW.size), why, out=out, text=f'{ROOT}, "{path}", {flags}, {resolve}'
    )


def attach(mount: int, path: str, why: str, *, missing: bool = False) -> Call:
    """Attach a detached mount at a path of the tree that we made ourselves."""
    args = (mount, "", ROOT, path.lstrip("/"), MOVE_MOUNT_F_EMPTY_PATH)
    return Call("move_mount", args, why, ignore=_GONE if missing else ())


def attach_fd(mount: int, target: int, why: str) -> Call:
    """Attach a detached mount where *target* points: nothing is looked up again."""
    return Call("move_mount", (mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH), why)


def filesystem(
    kind: str, options: dict[str, str], attributes: Named, why: str, out: Named = MOUNT
) -> Iterator[Step]:
    """A new file system, as a detached mount. Kernel: fsopen(2), Linux 5.2."""
    yield Call("fsopen", (kind, FSOPEN_CLOEXEC), why, out=CONTEXT)
    for name, value in options.items():
        yield Call("fsconfig", (CONTEXT, FSCONFIG_SET_STRING, name, value, 0), why)
    yield Call("fsconfig", (CONTEXT, FSCONFIG_CMD_CREATE, 0, 0, 0), why)
    yield Call("fsmount", (CONTEXT, FSMOUNT_CLOEXEC, attributes), why, out=out)


def tmpfs_options(size: int, inodes: int, mode: int = 0o755) -> dict[str, str]:
    """Every writable memory file system has a size and a number of inodes."""
    return {"size": str(size), "nr_inodes": str(inodes), "mode": f"{mode:o}"}


def limits(rootfs: Rootfs) -> dict[str, str]:
    """The options of the tmpfs that what is written to a root lies in."""
    assert rootfs.size is not None
    assert rootfs.nr_inodes is not None
    return tmpfs_options(rootfs.size, rootfs.nr_inodes)


def mkdir(path: str, why: str, mode: int = 0o755) -> Call:
    """A folder in a tree that we made ourselves."""
    return Call("mkdirat", (ROOT, path.lstrip("/"), mode), why, ignore=(errno.EEXIST,))


def symlink(target: str, path: str, why: str) -> Call:
    """A link in a tree that we made ourselves."""
    return Call("symlinkat", (target, ROOT, path.lstrip("/")), why, ignore=(errno.EEXIST,))


def touch(path: str, why: str) -> Call:
    """An empty file to mount on, in a tree that we made ourselves."""
    return Call("mknodat", (ROOT, path.lstrip("/"), 0o100644, 0), why)


def file(path: str, content: str | bytes, why: str, mode: int = 0o644) -> Write:
    """A file in a tree that we made ourselves."""
    return Write(path.lstrip("/"), content, why, dir=ROOT, flags=O_WRONLY | O_CREAT | O_EXCL, mode=mode)


def make_target(path: str, why: str, *, folder: bool, follow: bool) -> Iterator[Step]:
    """
    Make *path* in a root that we do not trust, and open it as `TARGET`.

    Each part is made below a descriptor and opened by openat2 from the root, so
    a link that the root contains leads nowhere outside (CVE-2019-19921,
    CVE-2021-30465). Without *follow* no link is followed at all: /dev and /proc
    have to be folders (an image whose /dev is a link has made other engines
    create files in the host's own folders).
    """
    resolve = (RESOLVE_IN_ROOT if follow else RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS) | RESOLVE_NO_MAGICLINKS
    parts = path.strip("/").split("/")
    yield openat2(".", WALK, why)
    for i, part in enumerate(parts):
        below = "/".join(parts[: i + 1])
        last = i == len(parts) - 1
        # A read-only root may already have what is needed.
        ignore = (errno.EEXIST, errno.EROFS)
        if folder or not last:
            yield Call("mkdirat", (WALK, part, 0o755), why, ignore=ignore)
        else:
            yield Call("mknodat", (WALK, part, 0o100644, 0), why, ignore=ignore)
        flags = (
            O_PATH | (O_DIRECTORY if folder or not last else NOTHING) | (NOTHING if follow else O_NOFOLLOW)
        )
        yield openat2(below, TARGET if last else WALK, why, flags=flags, resolve=resolve)


def _look(path: str, why: str) -> Iterator[Step]:
    """Open *path* as `TARGET`; where it does not exist, `TARGET` is closed afterwards."""
    yield Call("close", (TARGET,), why, ignore=(errno.EBADF,))
    how = _HOW.pack(O_PATH | O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    text = f'{ROOT}, "{path}", {O_PATH}, {RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS}'
    gone = (errno.ENOENT, errno.ENOTDIR)
    yield Call("openat2", (ROOT, path, how, _HOW.size), why, out=TARGET, ignore=gone, text=text)


def _onto(why: str, *ignore: int) -> Call:
    args = (MOUNT, "", TARGET, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    return Call("move_mount", args, why, ignore=(errno.EBADF, *ignore))


def mask(path: str) -> Iterator[Step]:
    """
    Put /dev/null over a file, or an empty folder over a folder, whichever it turns out to be.

    Looked up inside, so that a link does not lead the mask away; a path that does not exist
    shows nothing anyway.
    """
    why = f"{path} is masked"
    yield from _look(path, why)
    # Each of the two kinds fits one kind of path only, and the other one's attempt is let go.
    yield Call("open_tree", (ROOT, "dev/null", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), why, out=MOUNT)
    yield _onto(why, errno.EINVAL)
    yield from filesystem("tmpfs", tmpfs_options(4096, 2, 0o555), MOUNT_ATTR_RDONLY, why)
    yield _onto(why, errno.EINVAL)
    # But one of them has to be there now: only of a mount's root can the attributes be set.
    yield from _look(path, why)
    yield setattr_(TARGET, why, set_=MOUNT_ATTR_RDONLY, recursive=False, missing=True)


def readonly(path: str) -> Iterator[Step]:
    """Mount *path*, if it exists, onto itself so that it can only be read."""
    why = f"{path} can be read only"
    yield Call("close", (MOUNT,), why, ignore=(errno.EBADF,))
    yield from _look(path, why)
    args = (TARGET, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH)
    yield Call("open_tree", args, why, out=MOUNT, ignore=(errno.EBADF,))
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    yield setattr_(MOUNT, why, set_=attributes, missing=True)
    yield _onto(why)


DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
#: Links that programs expect in /dev. Spec: runtime-spec config-linux.md#dev-symbolic-links.
DEV_LINKS = (
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("pts/ptmx", "dev/ptmx"),
)
#: The OCI default paths, and those that came later: kallsyms and the like leak the host's state.
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/schedstat",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/softirqs",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/proc/zoneinfo",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def private(why: str = "nothing that is mounted here reaches the host, nor the other way") -> Call:
    """Cut mount propagation."""
    return setattr_(AT_FDCWD, why, propagation=MS_PRIVATE)


def enter(readonly: bool) -> Iterator[Step]:
    """Make the tree at `ROOT` the root, and drop the host's."""
    yield Call("fchdir", (ROOT,), "enter the new root")
    yield Call("pivot_root", (".", "."), "the new root takes the place of the host's")
    yield Call("umount2", (".", MNT_DETACH), "the host's tree is gone from here")
    if readonly:
        yield setattr_(ROOT, "the root is read-only", set_=MOUNT_ATTR_RDONLY, recursive=False)
    yield Call("chdir", ("/",), "stand in the new root")


def parents(path: str) -> Iterator[str]:
    """The folders above *path*, from the top, without the root."""
    parts = path.strip("/").split("/")[:-1]
    for i in range(len(parts)):
        yield posixpath.join("/", *parts[: i + 1])
