"""
What a sandbox has on the host's disks: the layer that it writes to, and its volumes.

The folder of a layer carries the owner's token, as cgroups do, and a link to it lies
in the run-time folder: what a program that was killed left behind is removed by the
next one that starts.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from sandboxlib.engine import volumes
from sandboxlib.engine.outside import GIVEN, outside, remove_below
from sandboxlib.errors import KernelError, SpecError, UnsupportedError
from sandboxlib.kernel import folders
from sandboxlib.kernel.descriptor import Fd, openat, private, spare
from sandboxlib.kernel.owner import PREFIX, is_dead
from sandboxlib.kernel.removal import each_awaited, warn
from sandboxlib.kernel.syscall import failed
from sandboxlib.plan.flags import AT_EMPTY_PATH
from sandboxlib.plan.overlay import BASE, COVER, driver_of
from sandboxlib.plan.root import user_of
from sandboxlib.plan.steps import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.host import Host
    from sandboxlib.kernel.owner import Owner
    from sandboxlib.rootfs import Rootfs
    from sandboxlib.spec import SandboxSpec

_LINK = "storage-"


class Places:
    """
    What one sandbox holds.

    Attributes:
        values: What the plan's variables ``volumes`` and ``storage`` stand for.
    """

    def __init__(self, host: Host, owner: Owner) -> None:
        self._host = host
        self._owner = owner
        # Volumes, and the locks that keep them.
        self._volumes: list[tuple[str, Fd]] = []
        self._folder = ""
        self.values: dict[str, int | str] = {}

    async def prepare(
        self, waiter: Waiter, spec: SandboxSpec, values: Mapping[str, object], *, alone: bool = False
    ) -> None:
        """
        Make what *spec* has on disk. Whatever comes, `release` takes it back.

        Args:
            waiter: To wait by.
            spec: What is asked for.
            values: What the plan's variables stand for: the sandbox's ranges of IDs, if it has them.
            alone: It is for a file tree without a sandbox, whose owners are the program's.

        Raises:
            UnsupportedError: A limit of size that this host cannot hold.
            SpecError: The folder for what is written does not exist.
            KernelError: A folder cannot be made.
        """
        rootfs = spec.rootfs
        storage = rootfs.storage if rootfs is not None and rootfs.storage != "tmpfs" else None
        if storage is not None and rootfs is not None:
            if not os.path.isdir(storage):  # noqa: ASYNC240 - one look, as all of a start's
                raise SpecError("rootfs.storage", storage, "a folder that exists")
            if rootfs.size is not None or rootfs.nr_inodes is not None:
                hint = "leave size= and nr_inodes= out, or storage= for a layer in memory, which has a size"
                what = f"a limit on what is written to {storage}"
                raise UnsupportedError(what, "a file system that counts by folder", hint)
        await self._lock(waiter, spec)
        if storage is not None and rootfs is not None:
            self._make(storage)
            if driver_of(rootfs, self._host) == "copy":
                from sandboxlib.engine.copied import as_is, copy_layers, shifted

                shift = as_is if alone else shifted(spec, self._host, values)
                with spare():
                    await copy_layers(waiter, spec, self._host, str(self.values["storage"]), shift)
            elif not self._host.privileged:
                _check_marks(str(self.values["storage"]), storage)
            # Of programs of earlier times: the links in the run-time folder do not outlive a boot.
            try:
                await sweep_folder(waiter, self._host, storage)
            except KernelError as problem:
                warn(problem)

    async def _lock(self, waiter: Waiter, spec: SandboxSpec) -> None:
        """Make the volumes of *spec* where they are missing, and keep others from removing them."""
        uid, gid = user_of(spec)
        for mount in spec.mounts:
            if mount.kind == "volume" and mount.source is not None:
                lock = private(Fd())
                self._volumes.append((mount.source, lock))
                made, volume = volumes.acquire(mount.source, mount.size, lock)
                self.values["volumes"] = volumes.folder()
                with volume as fd:
                    if made and (uid or gid):
                        async with outside(waiter, self._host, fd) as asked:
                            args = (GIVEN, "", uid, gid, AT_EMPTY_PATH)
                            why = "the volume is the user's who it was made for"
                            await asked.ask(Call("fchownat", args, why))
        if self._volumes:
            try:
                await volumes.remove_remains(waiter)
            except KernelError as problem:
                warn(problem)

    def _make(self, storage: str) -> None:
        """Make the folder for a layer below *storage*."""
        self._owner.hold(self)
        name = PREFIX + self._owner.name()
        path = self._folder = os.path.join(storage, name)
        try:
            # First the link: were it the other way round, a folder could be left that nobody finds.
            os.symlink(storage, os.path.join(self._host.run_dir, _LINK + name))
            os.mkdir(path, 0o700)
        except OSError as error:
            raise failed(error, f'mkdir("{path}")', "the layer that is written to") from None
        self.values["storage"] = path

    async def release(self, waiter: Waiter) -> None:
        """Let go of all, and remove what was written to the layer. Idempotent. Raises: KernelError."""
        for name, lock in self._volumes:
            volumes.release(name, lock)
        if self._folder:
            await self._remove(waiter)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._host.run_dir, _LINK + os.path.basename(self._folder)))
            self._folder = ""
        self._owner.drop(self)

    async def _remove(self, waiter: Waiter) -> None:
        try:
            # What holds nothing yet takes no helper, and no descriptor: there may be none left.
            os.rmdir(self._folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno is None:
                raise
            await _remove(waiter, self._host, *os.path.split(self._folder))


def _check_marks(path: str, storage: str) -> None:
    """A user's overlay keeps its marks in user.*: without it, it would forget what was removed."""
    try:
        os.setxattr(path, "user.sandboxlib", b"")
        os.removexattr(path, "user.sandboxlib")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise failed(error, f'setxattr("{path}")', "the layer that is written to") from None
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
        with openat(folder, os.O_PATH | os.O_DIRECTORY) as fd:
            await remove_below(waiter, host, fd, name)
    except FileNotFoundError:
        return


async def sweep_folder(waiter: Waiter, host: Host, folder: str) -> None:
    """Remove the layers in *folder* whose owner is dead."""
    run_folder = host.run_dir if folders.is_own(host.run_dir) else ""
    dead = [name for name in _names(folder) if name.startswith(PREFIX) and is_dead(name, run_folder)]
    await each_awaited(lambda name: _remove(waiter, host, folder, name), dead)


async def sweep(waiter: Waiter, host: Host) -> None:
    """Remove the layers on disk whose owner is dead, wherever they are."""

    async def remove(layer: str) -> None:
        path = os.path.join(host.run_dir, _LINK + layer)
        with contextlib.suppress(FileNotFoundError):  # another program swept it meanwhile
            folder = os.readlink(path)
            await _remove(waiter, host, folder, layer)
            os.unlink(path)

    layers = [name.removeprefix(_LINK) for name in _names(host.run_dir) if name.startswith(_LINK)]
    await each_awaited(remove, [layer for layer in layers if is_dead(layer, host.run_dir)])


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


__all__ = ["Places", "lowers", "sweep", "sweep_folder"]
