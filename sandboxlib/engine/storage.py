"""
What a sandbox has on the host's disks: the layer that it writes to, and its volumes.

The folder of a layer carries the owner's token, as cgroups do, and a link to it lies
in the run-time folder: what a program that was killed left behind is removed by the
next one that starts.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from sandboxlib.engine import volumes
from sandboxlib.engine.outside import GIVEN, outside, remove_below
from sandboxlib.errors import KernelError, SpecError, UnsupportedError
from sandboxlib.kernel.cgroup import fresh_name
from sandboxlib.kernel.cgroup.owner import PREFIX, is_dead
from sandboxlib.kernel.launcher import close
from sandboxlib.plan.flags import AT_EMPTY_PATH
from sandboxlib.plan.overlay import BASE, COVER, driver_of
from sandboxlib.plan.root import user_of
from sandboxlib.plan.steps import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.host import Host
    from sandboxlib.rootfs import Rootfs
    from sandboxlib.spec import SandboxSpec

_LINK = "storage-"


class Places:
    """
    What one sandbox holds.

    Attributes:
        values: What the plan's variables ``volumes`` and ``storage`` stand for.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._locks: list[int] = []
        self._folder = ""
        self.values: dict[str, int | str] = {}

    async def lock(self, waiter: Waiter, spec: SandboxSpec) -> None:
        """Make the volumes of *spec* where they are missing, and keep others from removing them."""
        uid, gid = user_of(spec)
        for mount in spec.mounts:
            if mount.kind == "volume" and mount.source is not None:
                fd, made = volumes.acquire(mount.source, mount.size)
                self._locks.append(fd)
                self.values["volumes"] = volumes.folder()
                if made and (uid or gid):
                    async with outside(waiter, self._host, fd) as asked:
                        args = (GIVEN, "", uid, gid, AT_EMPTY_PATH)
                        await asked.ask(
                            Call("fchownat", args, "the volume is the user's who it was made for")
                        )

    def make(self, storage: str) -> None:
        """Make the folder for a layer below *storage*."""
        name = PREFIX + fresh_name().removeprefix(PREFIX)
        path = os.path.join(storage, name)
        try:
            os.makedirs(self._host.run_dir, mode=0o700, exist_ok=True)
            # First the link: were it the other way round, a folder could be left that nobody finds.
            os.symlink(storage, os.path.join(self._host.run_dir, _LINK + name))
            self._folder = path
            os.mkdir(path, 0o700)
        except OSError as error:
            raise KernelError(error.errno or 0, f'mkdir("{path}")', "the layer that is written to") from None
        self.values["storage"] = path

    async def release(self, waiter: Waiter) -> None:
        """Let go of all, and remove what was written to the layer. Idempotent. Raises: KernelError."""
        locks, self._locks = self._locks, []
        close(*locks)
        folder, self._folder = self._folder, ""
        if folder:
            await _remove(waiter, self._host, *os.path.split(folder))
            os.unlink(os.path.join(self._host.run_dir, _LINK + os.path.basename(folder)))


async def prepare(
    waiter: Waiter, spec: SandboxSpec, host: Host, values: Mapping[str, object], *, alone: bool = False
) -> Places:
    """
    Make what *spec* has on disk; release it when the sandbox is gone.

    Args:
        waiter: To wait by.
        spec: What is asked for.
        host: What this machine can do.
        values: What the plan's variables stand for: the sandbox's ranges of IDs, if it has them.
        alone: It is for a file tree without a sandbox, whose owners are the program's.

    Raises:
        UnsupportedError: A limit of size that this host cannot hold.
        SpecError: The folder for what is written does not exist.
        KernelError: A folder cannot be made.
    """
    places = Places(host)
    rootfs = spec.rootfs
    storage = rootfs.storage if rootfs is not None and rootfs.storage != "tmpfs" else None
    if storage is not None and rootfs is not None:
        if not os.path.isdir(storage):  # noqa: ASYNC240 - one look, as all of a start's
            raise SpecError("rootfs.storage", storage, "a folder that exists")
        if rootfs.size is not None or rootfs.nr_inodes is not None:
            raise UnsupportedError(
                f"a limit on what is written to {storage}",
                "a file system that counts by folder",
                "leave size= and nr_inodes= out, or storage= for a layer in memory, whose size is limited",
            )
    try:
        await places.lock(waiter, spec)
        if storage is not None and rootfs is not None:
            places.make(storage)
            if driver_of(rootfs, host) == "copy":
                from sandboxlib.engine.copied import as_is, copy_layers, shifted

                shift = as_is if alone else shifted(spec, host, values)
                await copy_layers(waiter, spec, host, str(places.values["storage"]), shift)
            elif not host.privileged:
                _check_marks(str(places.values["storage"]), storage)
            # Of programs of earlier times: the links in the run-time folder do not outlive a boot.
            await sweep_folder(waiter, host, storage)
    except BaseException:
        with waiter.shield():
            await places.release(waiter)
        raise
    return places


def _check_marks(path: str, storage: str) -> None:
    """A user's overlay keeps its marks in user.*: without it, it would forget what was removed."""
    try:
        os.setxattr(path, "user.sandboxlib", b"")
        os.removexattr(path, "user.sandboxlib")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise KernelError(
                error.errno or 0, f'setxattr("{path}")', "the layer that is written to"
            ) from None
        raise UnsupportedError(
            f"an overlay that writes to {storage}",
            "a file system with user.* attributes there",
            "name a folder on another one as storage=",
        ) from None


def lowers(rootfs: Rootfs, scratch: int) -> tuple[tuple[str, bool], ...]:
    """
    The layers below what is written, the topmost first, and whether each is one of ours.

    *scratch* is the folder with these.
    """
    merged = rootfs.merged
    here = f"/proc/self/fd/{scratch}"
    cover = ((f"{here}/{COVER}", True),) if merged is not None and merged.links else ()
    base = ((f"{here}/{BASE}", True),) if merged is not None and (merged.folders or merged.files) else ()
    return (*cover, *((path, False) for path in rootfs.lower), *base)


async def _remove(waiter: Waiter, host: Host, folder: str, name: str) -> None:
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        await remove_below(waiter, host, fd, name)
    except FileNotFoundError:
        return
    finally:
        os.close(fd)


async def sweep_folder(waiter: Waiter, host: Host, folder: str) -> None:
    """Remove the layers in *folder* whose owner is dead."""
    for name in _names(folder):
        if name.startswith(PREFIX) and is_dead(name):
            await _remove(waiter, host, folder, name)


async def sweep(waiter: Waiter, host: Host) -> None:
    """Remove the layers on disk whose owner is dead, wherever they are."""
    for name in _names(host.run_dir):
        layer = name.removeprefix(_LINK)
        if layer != name and is_dead(layer):
            path = os.path.join(host.run_dir, name)
            try:
                folder = os.readlink(path)
                await _remove(waiter, host, folder, layer)
                os.unlink(path)
            except FileNotFoundError:
                continue  # another program swept it meanwhile


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


__all__ = ["Places", "lowers", "prepare", "sweep", "sweep_folder"]
