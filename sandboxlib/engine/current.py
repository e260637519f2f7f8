"""The `Host` of this program, read once; and what belongs to the program as a whole."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

import attrs

from sandboxlib.engine.ids import ranges
from sandboxlib.errors import KernelError, SpecError, UnsupportedError
from sandboxlib.host import CGroupHost, Host
from sandboxlib.kernel import folders
from sandboxlib.kernel.cgroup import above, acquire, sweep
from sandboxlib.kernel.limits import Own, oom_score_adj
from sandboxlib.kernel.limits import own as own_limits
from sandboxlib.kernel.owner import Owner, remove_locks
from sandboxlib.kernel.probe import probe, view
from sandboxlib.kernel.removal import warn
from sandboxlib.mount import Mount
from sandboxlib.plan.ceilings import with_groups
from sandboxlib.spec import SandboxSpec

if TYPE_CHECKING:
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.kernel.launcher import Launch


#: Limits of groups above, by field.
_Above = tuple[tuple[str, int], ...]


class Program:
    """
    What all sandboxes of a program share.

    Attributes:
        host: What this machine can do.
        ids: Ranges of IDs.
        owner: Whose all is that they make, and the kernel does not free by itself.
        children: Pids of ours that somebody waits for: each sandbox's pid 1, and commands.
        late: Those that were killed and have not ended in time, see `sandboxlib.engine.patience`.
    """

    def __init__(self) -> None:
        self.host: Host = probe()
        self.ids = ranges(self.host.run_dir)
        self.owner = Owner(self.host.run_dir)
        self.children: set[int] = set()
        self.late: set[Launch] = set()
        self._swept = False
        # Bounded: a program may bind another file for each of its sandboxes.
        self._seen = lru_cache(64)(self._see)
        self._fault = lru_cache(64)(_try_overlay)
        # What programs left that were killed: the kernel frees all but their cgroups.
        run_folder = self.host.run_dir if folders.is_own(self.host.run_dir) else ""
        try:
            sweep(self.host.cgroups, run_folder)
        except KernelError as problem:
            warn(problem)

    async def sweep(self, waiter: Waiter) -> None:
        """Remove what programs left that were killed, but for cgroups; only the first time it is asked to."""
        if self._swept:
            return
        folder = self.host.run_dir
        # In what is not this user's alone anybody could have names that lead anywhere.
        names = os.listdir(folder) if folders.is_own(folder) else []
        if any(name.startswith("storage-") for name in names):
            from sandboxlib.engine.storage import sweep as sweep_layers

            try:
                await sweep_layers(waiter, self.host)
            except KernelError as problem:
                warn(problem)
        if self.host.privileged and any(name.startswith("networks-") for name in names):
            from sandboxlib.engine.teardown import sweep_all

            await waiter.work(lambda: sweep_all(self.host))
        if any(name.endswith((".hosts", ".resolv", ".pid")) for name in names):
            from sandboxlib.engine.usernet import sweep as sweep_helpers

            await waiter.work(lambda: sweep_helpers(self.host))
        if any(name.startswith("owner-") for name in names):
            # Last: what says that they are dead.
            remove_locks(folder)
        self._swept = True

    async def ask_for_cgroups(self, waiter: Waiter) -> CGroupHost:
        """
        Where groups are made from now on: has systemd move the program to a scope, the first time.

        Raises:
            UnsupportedError: It does not.
        """
        if not self.host.cgroups.version:
            found = await waiter.work(lambda: acquire(waiter.check))
            # What another thread or task has found meanwhile is the same, and known to caches.
            if not self.host.cgroups.version:
                self.host = attrs.evolve(self.host, cgroups=found)
                self._seen.cache_clear()
        return self.host.cgroups

    def look_again(self) -> None:
        """What the host shows may have changed since this program began: see what is there now."""
        self.host = attrs.evolve(self.host, view=view())
        self._seen.cache_clear()

    def host_for(self, files: frozenset[str] = frozenset(), fault: str = "") -> Host:
        """
        The host as it is now; the same object each time, if it is the same.

        Args:
            files: Which bind sources are files.
            fault: Why there is no overlay.
        """
        return self._seen(files, fault, own_limits(), _bounds(self.host.cgroups), oom_score_adj())

    def _see(self, files: frozenset[str], fault: str, limits: Own, bounds: _Above, score: int) -> Host:
        return attrs.evolve(
            self.host,
            files=files,
            overlay_fault=fault,
            limits=limits.hard,
            descriptors=limits.descriptors,
            oom_score_adj=score,
            cgroups=_below(self.host.cgroups, bounds),
        )

    def overlay_fault(self, storage: str) -> str:
        """
        Why the kernel gives no overlay that writes to *storage*; empty where it does.

        One is made, the first time that it matters, and gone again: 2 ms.
        """
        if storage != "tmpfs" and not os.path.isdir(storage):
            return ""  # a start will make it, or say that it is not there
        return self._fault(storage)


def _try_overlay(storage: str) -> str:
    from sandboxlib.engine.mounted import make_rootfs
    from sandboxlib.engine.waiter import BLOCKING, complete
    from sandboxlib.rootfs import Rootfs

    # A folder in which nothing is mounted.
    below = os.path.dirname(os.path.abspath(__file__))
    try:
        opened = complete(make_rootfs(BLOCKING, Rootfs.overlay([below], storage=storage, driver="overlay")))
    except (KernelError, UnsupportedError) as error:
        return str(error)
    opened.close()
    return ""


@lru_cache(1)
def _program(_pid: int, _uid: int) -> Program:
    return Program()


def program() -> Program:
    """This program's; read anew in a forked child and after a change of user."""
    return _program(os.getpid(), os.geteuid())


def _bounds(groups: CGroupHost) -> _Above:
    # Where there is nothing yet, but systemd has something to offer: that will lie below the same.
    return above(groups.offer or groups)


def _below(groups: CGroupHost, bounds: _Above) -> CGroupHost:
    if groups.offer is not None:
        return attrs.evolve(groups, offer=attrs.evolve(groups.offer, above=bounds))
    return attrs.evolve(groups, above=bounds)


def limited(host: Host) -> Host:
    """*host* with the resource limits that the program has by now; they can change at any time."""
    limits = own_limits()
    return host if (host.limits, host.descriptors) == limits else _limited(host, limits)


@lru_cache(64)
def _limited(host: Host, limits: Own) -> Host:
    return attrs.evolve(host, limits=limits.hard, descriptors=limits.descriptors)


def resolve(spec: SandboxSpec) -> tuple[SandboxSpec, Host]:
    """
    Look at the files that *spec* names, so that the planner need not; and the host as it finds it.

    Raises:
        SpecError: One does not exist, or is not what it has to be.
    """
    spec, host = _looked_at(spec)
    if spec.rootfs is not None and spec.rootfs.lower:
        from sandboxlib.engine.lower import looked_at

        spec = looked_at(spec, host)
    return spec, with_groups(spec, host)


def _looked_at(spec: SandboxSpec) -> tuple[SandboxSpec, Host]:
    owner = program()
    spec = _shared_names(spec)
    if spec.rootfs is None and not spec.mounts and spec.security is None:
        return spec, owner.host_for()
    rootfs = spec.rootfs
    # Those of an image are the store's, which a plan may name before they are unpacked.
    lower = rootfs.lower if rootfs and rootfs.kind != "image" else ()
    for field, paths in (("rootfs.path", (rootfs.path,)), ("rootfs.lower", lower)) if rootfs else ():
        for path in paths:
            if path is not None and not os.path.isdir(path):
                raise SpecError(field, path, "a folder that exists")
    files, mounts = [], []
    for path in rootfs.paths if rootfs else ():
        if not os.path.lexists(path):
            raise SpecError("rootfs.paths", path, "a path that exists")
        if not os.path.isdir(path):
            files.append(path)
    for mount in spec.mounts:
        if mount.kind == "bind" and mount.source is not None:
            if not os.path.exists(mount.source):
                if mount.optional:
                    continue
                raise SpecError(
                    "mounts", mount.source, "a source that exists, or Mount.bind(..., optional=True)"
                )
            if not os.path.isdir(mount.source):
                files.append(mount.source)
        mounts.append(mount)
    if len(mounts) != len(spec.mounts):
        spec = attrs.evolve(spec, mounts=mounts)
    fault = ""
    if rootfs is not None and rootfs.storage is not None and rootfs.driver is None:
        fault = owner.overlay_fault(rootfs.storage)
    return _security(spec), owner.host_for(frozenset(files), fault)


def _shared_names(spec: SandboxSpec) -> SandboxSpec:
    """Whoever shares another sandbox's network has its names and name servers, too."""
    space = spec.network.namespace if spec.network is not None and spec.network.kind == "of" else None
    connections = getattr(getattr(getattr(space, "owner", None), "_engine", None), "connections", None)
    rootfs = spec.rootfs
    tree = spec.namespace("mount")
    if connections is None or (tree is not None and tree.mode != "new"):
        return spec
    if rootfs is not None and rootfs.kind == "directory" and rootfs.readonly:
        return spec  # they may have no place there
    there = {mount.destination for mount in spec.mounts}
    files = {"/etc/hosts": connections.values["hosts"], "/etc/resolv.conf": connections.values["resolv"]}
    more = [
        Mount.bind(source, path, readonly=True)
        for path, source in files.items()
        if path not in there and not (rootfs and path in rootfs.paths)
    ]
    return attrs.evolve(spec, mounts=[*spec.mounts, *more])


def _security(spec: SandboxSpec) -> SandboxSpec:
    security = spec.security
    if security is None:
        return spec
    for path in security.devices:
        if not os.path.exists(path):
            raise SpecError("security.devices", path, "a device that exists")
    if isinstance(security.seccomp, str) and security.seccomp.startswith("/"):
        from sandboxlib.seccomp import Profile

        profile = Profile.from_file(security.seccomp)
        return attrs.evolve(spec, security=attrs.evolve(security, seccomp=profile))
    return spec
