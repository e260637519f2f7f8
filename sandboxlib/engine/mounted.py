"""
File trees that are opened alone, without a sandbox.

They are mounted by the launcher, never by the program, which is handed descriptors of them.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sandboxlib.doors import doors
from sandboxlib.engine.current import program, resolve
from sandboxlib.engine.making import Recipe, end, make
from sandboxlib.engine.planning import asks_for_image
from sandboxlib.engine.storage import Places
from sandboxlib.engine.undo import Undo
from sandboxlib.engine.waiter import BLOCKING, Waiter, complete
from sandboxlib.errors import StateError, UnsupportedError
from sandboxlib.host import Host
from sandboxlib.image.leases import Lease
from sandboxlib.kernel.descriptor import Fd
from sandboxlib.kernel.launcher import Launch
from sandboxlib.plan import root, tree
from sandboxlib.plan.flags import CLONE_NEWNS, CLONE_NEWUSER, CLONE_PARENT, NOTHING
from sandboxlib.plan.steps import Report, Step
from sandboxlib.spec import SandboxSpec

if TYPE_CHECKING:
    from sandboxlib.result import Change
    from sandboxlib.rootfs import Rootfs


@doors
class OpenRootfs:
    """
    A file tree that is mounted for as long as this is open; made by `Rootfs.open`.

    It is attached nowhere, so no other program comes across it. Its owners and rights are the
    calling program's.
    """

    def __init__(self, rootfs: Rootfs, host: Host, places: Places, lease: Lease) -> None:
        self.rootfs = rootfs
        self.host = host
        self.places = places
        self.launch = Launch()
        # What is written to, where there is such a layer.
        self.scratch = Fd()
        self._fd = Fd()
        self._lease = lease
        self._pid = os.getpid()
        self._undo = Undo(self._unmount, self._remove, self._let_go)
        self._waiter: Waiter = BLOCKING

    def fileno(self) -> int:
        """Its descriptor, to be used as ``dir_fd=``. Raises: StateError: It is closed."""
        if not self._fd:
            raise StateError("the file tree is closed")
        return self._fd.fileno()

    @property
    def path(self) -> str:
        """Where this program, and its children for as long as it runs, find the tree."""
        return f"/proc/{os.getpid()}/fd/{self.fileno()}"

    def changes(self) -> list[Change]:
        """
        Return what was added, modified or deleted since it was opened, by path.

        Raises:
            UnsupportedError: What is written to a `Rootfs.directory` is not kept apart.
        """
        from sandboxlib.engine.changes import of_tree

        return complete(of_tree(BLOCKING, self))

    async def aclose(self, waiter: Waiter) -> None:
        """
        Unmount it, and remove what was written; closing again carries on where it was left.

        A forked child only lets go of it.
        """
        self._waiter = waiter
        if self._pid != os.getpid():
            self._fd.close()
            self.scratch.close()
            return
        with waiter.shield():
            await self._undo.carry_out()

    async def _unmount(self) -> None:
        self._fd.close()
        self.scratch.close()
        await end(self._waiter, self.launch)

    async def _remove(self) -> None:
        await self.places.release(self._waiter)

    async def _let_go(self) -> None:
        self._lease.close()

    def know(self, *scratch: Fd, tree: Fd) -> Self:
        """It is there now: what is written to comes first, where there is such a layer."""
        for found in scratch:
            self.scratch = found
        self._fd = tree
        return self

    def close(self) -> None:
        """Unmount it, and remove what was written; closing again carries on where it was left."""
        complete(self.aclose(BLOCKING))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OpenRootfs {self.rootfs!r}{'' if self._fd else ' closed'}>"


async def make_rootfs(waiter: Waiter, rootfs: Rootfs) -> OpenRootfs:
    """
    Mount *rootfs* alone.

    Raises:
        SpecError: A folder of it does not exist.
        UnsupportedError: This host cannot make it.
        KernelError: A system call failed; nothing is left behind.
    """
    owner, asked, lease = program(), SandboxSpec(rootfs=rootfs), Lease()
    await owner.sweep(waiter)
    # It is there before anything of it is, so that all of it can be taken back.
    opened = OpenRootfs(rootfs, owner.host, Places(owner.host, owner.owner), lease)
    try:
        if asks_for_image(asked):
            from sandboxlib.engine.image import prepare as look_up

            asked = (await look_up(waiter, asked, owner.host, lease)).spec
            assert asked.rootfs is not None
        return await _mount(waiter, opened, asked)
    except BaseException:
        with waiter.shield():
            await opened.aclose(waiter)
        raise


async def _mount(waiter: Waiter, opened: OpenRootfs, asked: SandboxSpec) -> OpenRootfs:
    spec, host = resolve(asked)
    assert spec.rootfs is not None
    opened.rootfs, opened.host = spec.rootfs, host
    if not host.privileged and host.userns_hint:
        raise UnsupportedError("a mount", "root, or leave to make a user namespace", host.userns_hint)
    plan = root.alone(spec.rootfs, host)
    child: list[Step] = [*plan.build]
    if plan.keep >= 0:
        child.append(Report("ready", "where the changes are", plan.keep))
    child.append(Report("ready", "the tree", tree.MOUNT))
    flags = CLONE_PARENT | CLONE_NEWNS | (NOTHING if host.privileged else CLONE_NEWUSER)
    recipe = Recipe(flags, tuple(child), plan.sources, plan.with_user_namespace)
    await opened.places.prepare(waiter, spec, {}, alone=True)
    *scratch, found = await make(waiter, host, recipe, opened.places.values, opened.launch)
    opened.know(*scratch, tree=found)
    await end(waiter, opened.launch)
    return opened


def open_rootfs(value: Rootfs) -> OpenRootfs:
    """Mount the tree alone; see `Rootfs.open`."""
    return complete(make_rootfs(BLOCKING, value))


__all__ = ["OpenRootfs", "make_rootfs", "open_rootfs"]
