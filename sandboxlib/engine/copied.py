"""A copy of the layers, where an overlay of them cannot be had: made before the sandbox starts."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from sandboxlib.errors import UnsupportedError
from sandboxlib.image.merge import Shift, dress, merge
from sandboxlib.kernel.syscall import failed
from sandboxlib.merged import Folder, Merged
from sandboxlib.plan.ids import id_map, more_of
from sandboxlib.plan.overlay import BASE, COVER
from sandboxlib.plan.steps import Template

if TYPE_CHECKING:
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.host import Host
    from sandboxlib.spec import SandboxSpec

#: Written when the copy was complete: what has changed since is younger.
MARKER = "copied"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
#: Longer than the kernel's clock for files stands still.
_TICK = 0.02


async def copy_layers(waiter: Waiter, spec: SandboxSpec, host: Host, folder: str, shift: Shift) -> None:
    """
    Fill ``upper`` in *folder* with what the layers of *spec* show together.

    Args:
        waiter: To wait by.
        spec: Its rootfs has the layers.
        host: What this machine can do.
        folder: Empty, on disk, the program's own.
        shift: Root's copies get these owners.

    Raises:
        KernelError: A layer cannot be read, or the disk is full.
    """
    await waiter.work(partial(_copy, spec, host, folder, shift, waiter.check))


def _copy(spec: SandboxSpec, host: Host, folder: str, shift: Shift, cancelled: Callable[[], None]) -> None:
    rootfs = spec.rootfs
    assert rootfs is not None
    merged = rootfs.merged or Merged()
    lowers = list(rootfs.lower)
    fds: list[int] = []
    try:
        if merged.links:
            _places(f"{folder}/{COVER}", [Folder(link.path) for link in merged.links], ())
            lowers.insert(0, f"{folder}/{COVER}")
        if merged.folders or merged.files:
            _places(f"{folder}/{BASE}", merged.folders, merged.files)
            lowers.append(f"{folder}/{BASE}")
        os.mkdir(f"{folder}/upper", 0o755)
        os.chmod(f"{folder}/upper", 0o755)
        fds.append(os.open(f"{folder}/upper", _FOLDER))
        for path in lowers:
            # The worker may read what the program may not.
            fds.append(os.open(path, _FOLDER if host.privileged else _PLACE))  # noqa: PERF401
        if host.privileged:
            merge(fds[1:], fds[0], "trusted.overlay.opaque", shift, cancelled)
            os.fchown(fds[0], *shift(merged.uid, merged.gid))
            _attributes(fds[0], merged)
            dress(fds[0], merged.mode, merged.mtime)
        else:
            from sandboxlib.engine.image import owner_of
            from sandboxlib.image.apart import merge_apart

            owner = owner_of(host, spec.namespace("user"))
            _attributes(fds[0], merged)
            wanted = [(each.path.lstrip("/"), each.uid, each.gid) for each in merged.folders if each.uid]
            merge_apart(
                fds[1:],
                fds[0],
                owner,
                "user.overlay.opaque",
                cancelled,
                owners=[*wanted, (".", merged.uid, merged.gid)],
                mode=merged.mode,
                mtime=merged.mtime,
            )
        time.sleep(_TICK)
        os.close(os.open(f"{folder}/{MARKER}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        time.sleep(_TICK)
    except OSError as error:
        raise failed(error, f'copy("{folder}")', "copy the layers") from None
    finally:
        for fd in fds:
            os.close(fd)


def _places(path: str, folders: Iterable[Folder], files: Iterable[str]) -> None:
    """What is missing to mount on, as `sandboxlib.plan.overlay.places` makes it, with a layer's owners."""
    for name, uid, gid in (("", 0, 0), *((each.path, each.uid, each.gid) for each in folders)):
        os.mkdir(path + name, 0o755)
        os.chmod(path + name, 0o755)
        if os.geteuid() == 0:
            os.chown(path + name, uid, gid)
    for name in files:
        with open(path + name, "x") as file:
            os.fchmod(file.fileno(), 0o644)


def _attributes(fd: int, merged: Merged) -> None:
    """Give the root the attributes of the layers', where its file system has any."""
    for name, value in merged.xattrs:
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise


def as_is(uid: int, gid: int) -> tuple[int, int]:
    """The owner that a file has."""
    return uid, gid


def shifted(spec: SandboxSpec, host: Host, values: Mapping[str, object]) -> Shift:
    """
    From the IDs of the layers to those that the sandbox's have outside.

    *values* are what the plan's variables stand for.
    """
    user = spec.namespace("user")
    if user is not None and user.mode == "host":
        return as_is
    maps = []
    for which in ("uid", "gid"):
        text = Template(id_map(host, user, which, more_of(spec).of(which))).fill(values)
        maps.append([tuple(map(int, line.split())) for line in text.splitlines()])

    def outside(number: int, ranges: list[tuple[int, ...]], what: str) -> int:
        for inside, first, count in ranges:
            if inside <= number < inside + count:
                return first + number - inside
        raise UnsupportedError(
            f"a copy of a file of {what} {number}",
            "a number outside for it",
            "leave the user namespace's maps out, or name it there",
        )

    return lambda uid, gid: (outside(uid, maps[0], "user"), outside(gid, maps[1], "group"))


def since(folder: int) -> int:
    """When the copy was complete, in the kernel's nanoseconds. *folder*: with the copy."""
    try:
        return os.stat(MARKER, dir_fd=folder).st_ctime_ns
    except OSError as error:
        raise failed(error, f'fstatat({folder}, "{MARKER}")', "see what has changed") from None


__all__ = ["as_is", "copy_layers", "shifted", "since"]
