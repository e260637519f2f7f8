"""The steps of an overlay, and what it needs of a host."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator

from sandboxlib.errors import UnsupportedError
from sandboxlib.host import Host
from sandboxlib.merged import Folder, Merged
from sandboxlib.namespace import Namespace
from sandboxlib.plan import tree
from sandboxlib.plan.flags import (
    AT_FDCWD,
    CLONE_NEWNS,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    MOVE_MOUNT_F_EMPTY_PATH,
    O_CLOEXEC,
    O_DIRECTORY,
    O_RDONLY,
)
from sandboxlib.plan.steps import Call, Step, Variable
from sandboxlib.rootfs import Rootfs

#: What a string for fsconfig(2) may hold: 256 bytes with its NUL.
_OPTION = 255
#: Two times, each in seconds and nanoseconds: utimensat(2).
_TIMES = struct.Struct("=4q")

#: Layers of our own in `tree.SCRATCH`: below all others, and above them.
BASE, COVER = "base", "cover"

#: A number as it is inside, for the one outside.
Outside = Callable[[str, int], int | Variable]


def most_layers(kernel: tuple[int, int]) -> int:
    """How many layers an overlay can have: one by one since Linux 6.7, in one string before."""
    # The first numbers have two digits, the further ones three.
    low = 100 - tree.SOURCES
    if kernel >= (6, 7):
        return 500
    return low + (_OPTION - 3 * low + 1) // 4 if 3 * low < _OPTION else _OPTION // 3


def dressed(merged: Merged, outside: Outside) -> Iterator[Step]:
    """Give the root the owner, mode, attributes and time of the layers': an overlay shows the upper one's."""
    why = "the root is as its layers have it"
    upper = (tree.SCRATCH, "upper")
    yield Call("fchownat", (*upper, outside("uid", merged.uid), outside("gid", merged.gid), 0), why)
    # After the owner, which takes bits of it.
    yield Call("fchmodat", (*upper, merged.mode), why)
    if merged.xattrs:
        yield Call("openat", (*upper, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), why, out=tree.TARGET)
        for name, value in merged.xattrs:
            # A file system may have none of this kind.
            args = (tree.TARGET, name, value, len(value), 0)
            yield Call("fsetxattr", args, why, ignore=(errno.EOPNOTSUPP, errno.EPERM))
        yield Call("close", (tree.TARGET,), why)
    if merged.mtime is not None:
        times = _TIMES.pack(*divmod(merged.mtime, 10**9), *divmod(merged.mtime, 10**9))
        yield Call("utimensat", (*upper, times, 0), why, text=f"{upper[0]}, upper, {merged.mtime} ns")


def places(merged: Merged, outside: Outside) -> Iterator[Step]:
    """
    Make what is missing to mount on, in layers of our own in `tree.SCRATCH`.

    That is no part of what is written: neither changes() nor commit() know it. What is missing lies below
    all layers, whose folders thus are as they have them; only where they have a link in place of a folder
    that a file system is mounted on a folder lies above them.
    """
    why = "places to mount on, which no layer has to bring"
    root = outside("uid", 0), outside("gid", 0)
    for layer, folders, files in (
        (BASE, merged.folders, merged.files),
        (COVER, tuple(Folder(link.path) for link in merged.links), ()),
    ):
        if not folders and not files:
            continue
        for path, owner in (
            ("", root),
            *((each.path, (outside("uid", each.uid), outside("gid", each.gid))) for each in folders),
        ):
            yield Call("mkdirat", (tree.SCRATCH, layer + path, 0o755), why)
            yield Call("fchownat", (tree.SCRATCH, layer + path, *owner, 0), why)
        for path in files:
            yield Call("mknodat", (tree.SCRATCH, layer + path, 0o100644, 0), why)
            yield Call("fchownat", (tree.SCRATCH, layer + path, *root, 0), why)


def steps(context: int, lowers: list[int], host: Host, merged: Merged) -> Iterator[Step]:
    """Set up an overlay of the mounts *lowers*, the topmost first, and of what is in `tree.SCRATCH`."""
    scratch = int(tree.SCRATCH)
    layers = [
        *([f"{scratch}/{COVER}"] if merged.links else []),
        *map(str, lowers),
        *([f"{scratch}/{BASE}"] if merged.folders or merged.files else []),
    ]
    why = "writes go to a layer of its own"

    def option(name: str, value: str) -> Call:
        return Call("fsconfig", (context, FSCONFIG_SET_STRING, name, value, 0), why)

    # Before Linux 6.15 an overlay takes mounts of its maker's own mount namespace only. In one that is
    # made for the purpose they are attached on "/", where they cover each other and nobody looks at them.
    own = (AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC, 0)
    yield Call("openat", own, "the way back", out=tree.MOUNT)
    yield Call("unshare", (CLONE_NEWNS,), "layers have to be attached somewhere")
    yield tree.private()
    for fd in (*lowers, tree.SCRATCH):
        here = (fd, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH)
        yield Call("move_mount", here, "layers have to be attached somewhere")
    yield Call("chdir", ("/proc/self/fd",), "layers are named by their descriptors")
    if host.kernel >= (6, 7):
        for layer in layers:
            yield option("lowerdir+", layer)
    else:
        yield option("lowerdir", ":".join(layers))
    yield option("upperdir", f"{scratch}/upper")
    yield option("workdir", f"{scratch}/work")
    if host.privileged:
        # What is in the upper layer is all that has changed, and no mark that a layer
        # brings along leads to another file.
        for name, value in (("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")):
            yield option(name, value)
    else:
        args = (context, FSCONFIG_SET_FLAG, "userxattr", 0, 0)
        yield Call("fsconfig", args, "a user's overlay keeps its marks in user.*")
    yield Call("fsconfig", (context, FSCONFIG_CMD_CREATE, 0, 0, 0), why)
    yield Call("setns", (tree.MOUNT, CLONE_NEWNS), "back; the overlay keeps its layers")


def driver_of(rootfs: Rootfs, host: Host) -> str:
    """
    How the layers of *rootfs* are laid over each other here.

    Raises:
        UnsupportedError: Not as was asked for, or in no way.
    """
    fault = host.overlay_fault
    chosen = rootfs.driver or ("copy" if fault else "overlay")
    if chosen == "overlay" and fault:
        hint = "leave driver= out, or take driver='copy' and storage='/a/folder'"
        raise UnsupportedError("an overlay by the kernel", f"what it refuses: {fault}", hint)
    if chosen == "copy" and rootfs.storage == "tmpfs":
        needs = f"an overlay of the kernel's ({fault})" if fault else "a folder on disk to copy the layers to"
        hint = f"let them be copied to a disk: Rootfs.{rootfs.kind}(..., storage='/a/folder')"
        raise UnsupportedError("layers in memory", needs, hint)
    return chosen


def keeps_in_memory(host: Host) -> bool:
    """Can what is written to an overlay lie in memory? A user's needs user.* on tmpfs."""
    return host.privileged or host.kernel >= (6, 6)


def check(rootfs: Rootfs, host: Host, user: Namespace | None, owned: bool) -> None:
    """
    Refuse what this host cannot do.

    Args:
        rootfs: The overlay.
        host: What this machine can do.
        user: The user namespace that was asked for, or None for a plain new one.
        owned: Its layers are ID-mapped.

    Raises:
        UnsupportedError: The kernel is too old, or has nothing to map the layers by.
    """
    if owned and host.kernel < (5, 19):
        raise UnsupportedError("an overlay for a sandbox of root's", "Linux 5.19, for ID-mapped layers")
    if rootfs.storage == "tmpfs" and not keeps_in_memory(host):
        hint = f"let it write to a disk: Rootfs.{rootfs.kind}(..., storage='/a/folder')"
        raise UnsupportedError("an overlay in memory without root", "Linux 6.6, for user.* on tmpfs", hint)
    check_ids(user, owned)
    merged = rootfs.merged or Merged()
    check_layers(len(rootfs.lower), host, bool(merged.folders or merged.files) + bool(merged.links))


def check_layers(count: int, host: Host, own: int = 0) -> None:
    """Raises: UnsupportedError: An overlay does not take *count* layers and *own* ones of ours."""
    # In the one string of old kernels one of ours takes the room of three.
    most = most_layers(host.kernel) - own * (1 if host.kernel >= (6, 7) else 3)
    if count > most:
        needs = f"an overlay of at most {most} layers" if host.kernel >= (6, 7) else "Linux 6.7"
        hint = f"here are {most} possible; with driver='copy' there is no limit"
        raise UnsupportedError(f"an overlay of {count} layers", needs, hint)


def check_ids(user: Namespace | None, owned: bool) -> None:
    """Raises: UnsupportedError: Layers have to get the owners of a user namespace that others made."""
    if owned and user is not None and user.mode == "join":
        raise UnsupportedError("an overlay in a user namespace that is joined", "ID maps of its own")


__all__ = [
    "BASE",
    "COVER",
    "Outside",
    "check",
    "check_ids",
    "check_layers",
    "dressed",
    "driver_of",
    "keeps_in_memory",
    "most_layers",
    "places",
    "steps",
]
