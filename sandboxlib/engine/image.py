"""
An image as the root of a sandbox: it is looked up, pulled where it is missing, and unpacked.

What comes of it is a plain `SandboxSpec`: its layers, and what its configuration says of
commands where the caller says nothing. A lease keeps the image in the store meanwhile.

Spec: image-spec config.md; Docker's rules for USER and for supplementary groups.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from sandboxlib.engine.current import program
from sandboxlib.errors import ImageError, UnsupportedError
from sandboxlib.host import Host
from sandboxlib.image import trees
from sandboxlib.image.locks import never
from sandboxlib.image.owner import Owner, OwnerError
from sandboxlib.image.users import Account, account
from sandboxlib.kernel.folders import state_folder
from sandboxlib.merged import Folder
from sandboxlib.mount import Mount, below
from sandboxlib.namespace import Namespace
from sandboxlib.plan import overlay
from sandboxlib.plan.ids import ID_COUNT, More, id_map
from sandboxlib.plan.overlay import keeps_in_memory
from sandboxlib.ranges import Ranges, united
from sandboxlib.reference import Reference, is_digest
from sandboxlib.security import Security
from sandboxlib.signals import number_of

if TYPE_CHECKING:
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.image.leases import Lease
    from sandboxlib.image.model import Config, Descriptor, ImageConfig, Manifest
    from sandboxlib.image.store import Store
    from sandboxlib.spec import SandboxSpec

#: Where commands are looked for in an image that says nothing.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Held(NamedTuple):
    """
    An image that a sandbox uses.

    Attributes:
        spec: The sandbox, with the image's layers and defaults.
        image: Its manifest.
        owner: Whose the files of its layers are on disk.
        command: What runs where no command is given; its first part, and the part that arguments
            take the place of.
        volumes: Paths that are not the image's own, and stay out of what is committed.
        stop_signal: What ends a command of it in good order.
    """

    spec: SandboxSpec
    image: Descriptor
    owner: Owner
    command: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    volumes: tuple[str, ...] = ()
    stop_signal: int = signal.SIGTERM


def _name(spec: SandboxSpec) -> str:
    """The image that *spec* asks for."""
    name = spec.image or (spec.rootfs.reference if spec.rootfs is not None else None)
    assert name is not None
    return name


def own_store() -> Store:
    """This user's store."""
    from sandboxlib.image.store import Store

    return Store(os.path.join(state_folder(), "images"))


async def prepare(waiter: Waiter, spec: SandboxSpec, host: Host, lease: Lease) -> Held:
    """
    Have the image of *spec* unpacked, and hold it by *lease*.

    Raises:
        ImageError: There is none of this name, it cannot be pulled, or is of another machine.
        ViolationError: A layer of it is hostile.
        UnsupportedError: It cannot be unpacked with the right owners.
    """
    return await waiter.work(lambda: hold(spec, host, waiter.check, lease))


def hold(spec: SandboxSpec, host: Host, cancelled: Callable[[], None], lease: Lease) -> Held:
    """Do the same in this thread; *cancelled* is called every now and then, and raises to give up."""
    name = _name(spec)
    store = own_store()
    found = look_up(store, name)
    if found is None:
        if is_digest(name):
            raise ImageError("there is no such image in the store", name)
        found = _pull(store, name, spec, host, cancelled)
    try:
        store.lease(found, lease)
        manifest = store.manifest(found)
        config = store.config(manifest)
        _check_layers(len(manifest.layers), spec, host)
        tree = _Tree(store, manifest, config, host, spec.namespace("user"), cancelled)
        layers = tree.unpack()
        who = _account(spec, config.config, layers, found)
        if not tree.has(who):
            layers = tree.unpack(who)
        held = _settled(spec, host, found, config.config, layers, who, tree)
        if spec.rootfs is None and held.spec.rootfs is not None and held.spec.rootfs.storage != "tmpfs":
            os.makedirs(storage_of(host), mode=0o700, exist_ok=True)
        return held
    except BaseException:
        lease.close()
        raise


def _pull(
    store: Store, name: str, spec: SandboxSpec, host: Host, cancelled: Callable[[], None]
) -> Descriptor:
    from sandboxlib.image.transfer import pull
    from sandboxlib.image.trees import unpack_to

    owner = owner_of(host, spec.namespace("user"))
    misfit = False

    def check(manifest: Manifest, _: ImageConfig) -> None:
        _check_layers(len(manifest.layers), spec, host)

    def unpack(manifest: Manifest, config: ImageConfig, number: int) -> None:
        # While the next ones are still on their way.
        nonlocal misfit
        if not misfit:
            try:
                unpack_to(store, manifest, config, owner, number, cancelled)
            except OwnerError:
                misfit = True  # who else has files in it is known when all of it is there

    return pull(store, Reference.parse(name), on_config=check, on_layer=unpack, cancelled=cancelled)


def _check_layers(count: int, spec: SandboxSpec, host: Host) -> None:
    """Raises: UnsupportedError: No overlay takes so many layers, and none but an overlay will do."""
    try:
        overlay.check_layers(count, host)
    except UnsupportedError:
        rootfs = spec.rootfs
        driver = None if rootfs is None else rootfs.driver
        storage = (None if rootfs is None else rootfs.storage) or "tmpfs"
        if driver == "overlay" or (driver is None and not program().overlay_fault(storage)):
            raise


class _Tree:
    """
    The layers of one image, unpacked for one host.

    Attributes:
        owner: Whose the files are.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        config: ImageConfig,
        host: Host,
        user: Namespace | None,
        cancelled: Callable[[], None],
    ) -> None:
        self._store, self._manifest, self._config = store, manifest, config
        self._host, self._user, self._cancelled = host, user, cancelled
        self.owner = owner_of(host, user)

    def unpack(self, who: Account | None = None) -> tuple[str, ...]:
        """
        Unpack what is not yet; *who* is to have a number, too. Returns the folders, the topmost first.

        Raises:
            OwnerError: Files of it belong to somebody for whom there is no number.
        """
        if who is None:
            try:
                return self._unpack()
            except OwnerError:
                if not self._may_map():
                    raise
        elif not self._may_map():
            return self._unpack()
        uids, gids = trees.owners(self._store, self._manifest, self._config, self.owner, self._cancelled)
        if who is not None:
            uids = united((*uids, (who.uid, 1)))
            gids = united((*gids, (who.gid, 1), *((group, 1) for group in who.groups)))
        self.owner = owner_of(self._host, self._user, More(uids, gids))
        return self._unpack()

    def _unpack(self) -> tuple[str, ...]:
        return self._store.unpack(self._manifest, self._config, self.owner, cancelled=self._cancelled)

    def _may_map(self) -> bool:
        """Has nobody said which numbers there are?"""
        return self._user is None or not (self._user.uid_map or self._user.gid_map)

    def has(self, who: Account) -> bool:
        """Has the one whom commands run as a number, where those are given out here?"""
        return all(self.owner.has(who.uid, group) for group in (who.gid, *who.groups))

    @property
    def maps(self) -> tuple[Namespace, ...]:
        """The user namespace that has the numbers of the layers, where it is not the one of all others."""
        if self.owner.kind != "range" or self.owner == owner_of(self._host, self._user):
            return ()
        return (Namespace("user", uid_map=self.owner.uid_map, gid_map=self.owner.gid_map),)

    def ids(self, layers: tuple[str, ...]) -> tuple[Ranges, Ranges]:
        """Owners of files that root's sandboxes have no number for anyway; none before they are unpacked."""
        if self.owner.kind != "root" or not all(map(os.path.isdir, layers)):
            return (), ()
        uids, gids = trees.owners(self._store, self._manifest, self._config, self.owner, self._cancelled)
        return united(uids, ID_COUNT), united(gids, ID_COUNT)


def planned(spec: SandboxSpec, host: Host) -> SandboxSpec:
    """
    Return *spec* as a start will plan it, without pulling or unpacking anything.

    Raises:
        ImageError: The image is not in the store: what is in it is not known.
    """
    from sandboxlib.image.model import chain_ids

    name = _name(spec)
    store = own_store()
    found = look_up(store, name)
    if found is None:
        raise ImageError("it is not in the store, so nothing can be planned: pull it first", name)
    with store.lease(found):
        manifest = store.manifest(found)
        config = store.config(manifest)
        owner = owner_of(host, spec.namespace("user"))
        chain = chain_ids(config.rootfs.diff_ids)
        layers = tuple(store.layer_folder(owner, chain_id) for chain_id in reversed(chain))
        user = (config.config.user if config.config is not None else "") or "0"
        if user.strip("0123456789:") and not all(map(os.path.isdir, layers)):
            raise ImageError(
                f"who {user!r} is in it is known when it is unpacked: start it once",
                name,
            )
        who = _account(spec, config.config, layers, found)
        tree = _Tree(store, manifest, config, host, spec.namespace("user"), never)
        return _settled(spec, host, found, config.config, layers, who, tree).spec


def look_up(store: Store, name: str) -> Descriptor | None:
    """The image of this name in *store*, for this machine; None if it is not there."""
    found = store.find(name)
    return None if found is None else store.image(found[1])


def owner_of(host: Host, user: Namespace | None, more: More | None = None) -> Owner:
    """
    Whose the files of layers are, on disk, for sandboxes in *user*.

    *more*: Numbers that a user's map has to have, if that is possible.
    """
    if host.privileged:
        # Mounts map them, whatever the sandbox's IDs are.
        return Owner("root")
    maps = [id_map(host, user, which, more.of(which) if more else ()) for which in ("uid", "gid")]
    uids, gids = (_ranges(text) for text in maps)
    if sum(count for _, _, count in uids) == 1:
        return Owner("single")
    return Owner("range", uids, gids)


def _ranges(text: str) -> tuple[tuple[int, int, int], ...]:
    lines = (line.split() for line in text.splitlines())
    return tuple((int(inside), int(outside), int(count)) for inside, outside, count in lines)


# ---- the configuration --------------------------------------------------------------------


def storage_of(host: Host) -> str:
    """Where what is written goes, where nobody says so: to memory, or where a kernel cannot, to disk."""
    if keeps_in_memory(host) and not program().overlay_fault("tmpfs"):
        return "tmpfs"
    return os.path.join(state_folder(), "written")


def _account(spec: SandboxSpec, config: Config | None, layers: tuple[str, ...], image: Descriptor) -> Account:
    """Who commands run as."""
    user = (config.user if config is not None else "") or ""
    if spec.security is not None and spec.security.user is not None:
        user = spec.security.user
    return account(user, layers, image.digest)


def _settled(
    spec: SandboxSpec,
    host: Host,
    image: Descriptor,
    config: Config | None,
    layers: tuple[str, ...],
    who: Account,
    tree: _Tree,
) -> Held:
    if not layers:
        raise ImageError("it has no layers, so there is nothing to run", image.digest)
    rootfs = spec.rootfs
    changes: dict[str, Any] = {"image": None}
    if rootfs is None:
        from sandboxlib.rootfs import Rootfs

        rootfs = Rootfs.image(image.digest, storage=storage_of(host))
    if who.uid or who.gid or who.groups:
        changes["security"] = _as(spec.security, who)
    env = {"PATH": PATH, "HOME": who.home}
    volumes = sorted(_path(path, "Volumes", image.digest) for path in (config and config.volumes) or ())
    wanted = {path: Folder(path, who.uid, who.gid, kept=True) for path in volumes}
    if config is not None:
        env.update(_variables(config.env or (), image.digest))
        if spec.cwd is None and config.working_dir:
            changes["cwd"] = path = _path(config.working_dir, "WorkingDir", image.digest)
            wanted[path] = Folder(path, who.uid, who.gid, kept=True)
    changes["env"] = env | dict(spec.env)
    changes["rootfs"] = attrs.evolve(
        rootfs, lower=layers, wanted=tuple(wanted[path] for path in sorted(wanted)), ids=tree.ids(layers)
    )
    if maps := tree.maps:
        changes["namespaces"] = (*(each for each in spec.namespaces if each.kind != "user"), *maps)
    if rootfs.readonly:
        # They can be written whatever the root is.
        taken = {mount.destination for mount in spec.mounts}
        added = [Mount.tmpfs(path) for path in volumes if not any(below(path, each) for each in taken)]
        changes["mounts"] = (*spec.mounts, *added)
    held = Held(attrs.evolve(spec, **changes), image, tree.owner, volumes=tuple(volumes))
    if config is None:
        return held
    return held._replace(
        command=(tuple(config.entrypoint or ()), tuple(config.cmd or ())),
        stop_signal=_signal(config.stop_signal or "SIGTERM", image.digest),
    )


def _as(security: Security | None, who: Account) -> Security:
    security = security or Security()
    groups = who.groups if security.user is None else security.groups
    return attrs.evolve(security, user=f"{who.uid}:{who.gid}", groups=groups)


def _variables(lines: tuple[str, ...], image: str) -> Mapping[str, str]:
    found = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if "\0" in line or (equals and not name):
            raise ImageError(f"its configuration has a variable that is none: {line[:100]!r}", image)
        # One without a value others take from their own environment, which is nobody's business inside.
        if equals:
            found[name] = value
    return found


def _path(path: str, what: str, image: str) -> str:
    # Docker takes what is relative from the root.
    found = os.path.normpath(os.path.join("/", path))
    if "\0" in path:
        raise ImageError(f"its configuration has a NUL in {what}", image)
    return "/" + found.lstrip("/")


def _signal(name: str, image: str) -> int:
    number = number_of(name)
    if number is None:
        raise ImageError(f"its configuration has a StopSignal that is none: {name[:100]!r}", image)
    return number


__all__ = ["Held", "hold", "look_up", "own_store", "owner_of", "planned", "prepare"]
