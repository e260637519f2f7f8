"""The steps of an overlay, and what it needs of a host."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from sandboxlib.errors import UnsupportedError
from sandboxlib.host import Host
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
    O_CREAT,
    O_EXCL,
    O_RDONLY,
    O_WRONLY,
)
from sandboxlib.plan.steps import Call, Step, Variable, Write
from sandboxlib.rootfs import Rootfs

#: What a string for fsconfig(2) may hold: 256 bytes with its NUL.
_OPTION = 255

#: Folders that every sandbox has, whatever its image has.
BASE = ("/dev", "/etc", "/proc", "/sys")


def most_layers(kernel: tuple[int, int]) -> int:
    """How many layers an overlay can have: one by one since Linux 6.7, in one string before."""
    # The first numbers have two digits, the further ones three.
    low = 100 - tree.SOURCES
    if kernel >= (6, 7):
        return 500
    return low + (_OPTION - 3 * low + 1) // 4 if 3 * low < _OPTION else _OPTION // 3


def base(files: dict[str, str], owner: tuple[int | Variable, int | Variable] | None) -> Iterator[Step]:
    """
    Make the layer on top of an image's, in `tree.SCRATCH`: what each sandbox has of its own.

    It is no part of what is written: neither changes() nor commit() know it.

    Args:
        files: Texts by their paths.
        owner: Root's IDs outside, where the steps are not taken by root of the sandbox.
    """
    why = "places of the sandbox's own, which no image has to bring"
    made = ["base"]
    yield Call("mkdirat", (tree.SCRATCH, "base", 0o755), why)
    for folder in dict.fromkeys([*BASE, *(posixpath.dirname(path) for path in files)]):
        made.append(f"base{folder}")
        yield Call("mkdirat", (tree.SCRATCH, f"base{folder}", 0o755), why)
    for path, text in files.items():
        made.append(f"base{path}")
        yield Write(f"base{path}", text, why, tree.SCRATCH, O_WRONLY | O_CREAT | O_EXCL, 0o644)
    if owner is not None:
        for name in made:
            yield Call("fchownat", (tree.SCRATCH, name, *owner, 0), "root of the sandbox owns it")


def steps(context: int, lowers: list[int], host: Host, *, on_image: bool = False) -> Iterator[Step]:
    """
    Set up an overlay of the mounts *lowers*, the topmost first, and of what is in `tree.SCRATCH`.

    With *on_image* there is a `base` in it, which comes before them.
    """
    layers = [*([f"{int(tree.SCRATCH)}/base"] if on_image else []), *map(str, lowers)]
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
    yield option("upperdir", f"{int(tree.SCRATCH)}/upper")
    yield option("workdir", f"{int(tree.SCRATCH)}/work")
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
    # An image's base takes the room of three in the one string of old kernels.
    most = most_layers(host.kernel) - (3 if rootfs.kind == "image" else 0)
    if len(rootfs.lower) > most:
        raise UnsupportedError(
            f"an overlay of {len(rootfs.lower)} layers", "Linux 6.7", f"here are {most} possible"
        )


def check_ids(user: Namespace | None, owned: bool) -> None:
    """Raises: UnsupportedError: Layers have to get the owners of a user namespace that others made."""
    if owned and user is not None and user.mode == "join":
        raise UnsupportedError("an overlay in a user namespace that is joined", "ID maps of its own")


def first_ids(user: Namespace | None) -> tuple[int | Variable, int | Variable]:
    """The numbers outside of root inside a new user namespace."""
    if user is None or not user.uid_map:
        return Variable("ids"), Variable("ids")
    return user.uid_map[0].outside, user.gid_map[0].outside


__all__ = [
    "BASE",
    "base",
    "check",
    "check_ids",
    "driver_of",
    "first_ids",
    "keeps_in_memory",
    "most_layers",
    "steps",
]
