"""The steps of an overlay, and what it needs of a host."""

from __future__ import annotations

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
    O_RDONLY,
)
from sandboxlib.plan.steps import Call, Step, Variable
from sandboxlib.rootfs import Rootfs

#: What a string for fsconfig(2) may hold: 256 bytes with its NUL.
_OPTION = 255


def most_layers(kernel: tuple[int, int]) -> int:
    """How many layers an overlay can have: one by one since Linux 6.7, in one string before."""
    # The first numbers have two digits, the further ones three.
    low = 100 - tree.SOURCES
    if kernel >= (6, 7):
        return 500
    return low + (_OPTION - 3 * low + 1) // 4 if 3 * low < _OPTION else _OPTION // 3


def steps(context: int, lowers: list[int], host: Host) -> Iterator[Step]:
    """Set up an overlay of the mounts *lowers*, the topmost first, and of what is in `tree.SCRATCH`."""
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
        for fd in lowers:
            yield option("lowerdir+", str(fd))
    else:
        yield option("lowerdir", ":".join(map(str, lowers)))
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
    if not host.privileged and rootfs.storage == "tmpfs" and host.kernel < (6, 6):
        hint = "let it write to a disk: Rootfs.overlay(..., storage='/a/folder')"
        raise UnsupportedError("an overlay in memory without root", "Linux 6.6, for user.* on tmpfs", hint)
    if owned and user is not None and user.mode == "join":
        raise UnsupportedError("an overlay in a user namespace that is joined", "ID maps of its own")
    most = most_layers(host.kernel)
    if len(rootfs.lower) > most:
        raise UnsupportedError(
            f"an overlay of {len(rootfs.lower)} layers", "Linux 6.7", f"here are {most} possible"
        )


def first_ids(user: Namespace | None) -> tuple[int | Variable, int | Variable]:
    """The numbers outside of root inside a new user namespace."""
    if user is None or not user.uid_map:
        return Variable("ids"), Variable("ids")
    return user.uid_map[0].outside, user.gid_map[0].outside


__all__ = ["check", "first_ids", "most_layers", "steps"]
