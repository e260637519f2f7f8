"""A copy of the layers, where an overlay of them cannot be had: made before the sandbox starts."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sandboxlib.errors import KernelError
from sandboxlib.image.merge import Shift, merge
from sandboxlib.plan.identity import OF_IMAGES, identity
from sandboxlib.plan.overlay import BASE
from sandboxlib.plan.start import id_map

if TYPE_CHECKING:
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.host import Host
    from sandboxlib.spec import SandboxSpec

#: Written when the copy was complete: what has changed since is younger.
MARKER = "copied"
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
    lowers = list(rootfs.lower)
    fds: list[int] = []
    try:
        if rootfs.kind == "image":
            _base(spec, f"{folder}/base")
            lowers.insert(0, f"{folder}/base")
        os.mkdir(f"{folder}/upper", 0o755)
        os.chmod(f"{folder}/upper", 0o755)
        for path in (f"{folder}/upper", *lowers):
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))  # noqa: PERF401
        if host.privileged:
            os.fchown(fds[0], *shift(0, 0))
            merge(fds[1:], fds[0], "trusted.overlay.opaque", shift, cancelled)
        else:
            from sandboxlib.engine.image import owner_of
            from sandboxlib.image.apart import merge_apart

            owner = owner_of(host, spec.namespace("user"))
            merge_apart(fds[1:], fds[0], owner, "user.overlay.opaque", cancelled)
        time.sleep(_TICK)
        os.close(os.open(f"{folder}/{MARKER}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        time.sleep(_TICK)
    except OSError as error:
        if isinstance(error, KernelError):
            raise
        raise KernelError(error.errno or 0, f'copy("{folder}")', "copy the layers") from None
    finally:
        for fd in fds:
            os.close(fd)


def _base(spec: SandboxSpec, base: str) -> None:
    """What each sandbox of an image has of its own, as `sandboxlib.plan.overlay.base` makes it."""
    files = {path: text for path, text in identity(spec).items() if path in OF_IMAGES}
    for path in ("", *dict.fromkeys([*BASE, *(posixpath.dirname(path) for path in files)])):
        os.mkdir(base + path, 0o755)
        os.chmod(base + path, 0o755)
    for path, text in files.items():
        with open(base + path, "x", encoding="utf-8") as file:
            file.write(text)
        os.chmod(base + path, 0o644)


def as_is(uid: int, gid: int) -> tuple[int, int]:
    """The owner that a file has."""
    return uid, gid


def shifted(spec: SandboxSpec, host: Host, ids: int | None) -> Shift:
    """
    From the IDs of the layers to those that the sandbox's have outside.

    *ids* is the first of its range, if it has one.
    """
    user = spec.namespace("user")
    if user is not None and user.mode == "host":
        return as_is
    maps = [
        [tuple(map(int, line.format(ids=ids).split())) for line in id_map(host, user, which).splitlines()]
        for which in ("uid", "gid")
    ]

    def outside(number: int, ranges: list[tuple[int, ...]]) -> int:
        for inside, first, count in ranges:
            if inside <= number < inside + count:
                return first + number - inside
        # Nobody's inside: it is root's of the sandbox.
        return outside(0, ranges)

    return lambda uid, gid: (outside(uid, maps[0]), outside(gid, maps[1]))


def since(folder: int) -> int:
    """When the copy was complete, in the kernel's nanoseconds. *folder*: with the copy."""
    try:
        return os.stat(MARKER, dir_fd=folder).st_ctime_ns
    except OSError as error:
        raise KernelError(
            error.errno or 0, f'fstatat({folder}, "{MARKER}")', "see what has changed"
        ) from None


__all__ = ["as_is", "copy_layers", "shifted", "since"]
