"""
What has changed in a root file system since the sandbox started.

Where the root is made by us (`Rootfs.host`, `Rootfs.empty`) it is compared with the plan
that made it. Of an overlay the upper layer is read, which holds what was written
and marks for what was removed; the layers below say what each entry is in place of.

Kernel: Documentation/filesystems/overlayfs.rst, whiteouts and opaque directories.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from sandboxlib.bounds import ENTRIES, Bound, entries_bound
from sandboxlib.engine.copied import since
from sandboxlib.engine.files import requests
from sandboxlib.engine.image import owner_of
from sandboxlib.engine.outside import GIVEN, outside
from sandboxlib.engine.owners import Owners
from sandboxlib.engine.patience import patiently
from sandboxlib.engine.session import Session
from sandboxlib.engine.storage import lowers
from sandboxlib.engine.walk import FILE, FOLDER, TOP, Requests, at, opening
from sandboxlib.errors import UnsupportedError
from sandboxlib.image.apart import look_apart
from sandboxlib.image.lowers import WHY, Layers, Told, is_whiteout
from sandboxlib.kernel.descriptor import Fd, openat
from sandboxlib.plan import root, tree
from sandboxlib.plan.flags import AT_FDCWD, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY
from sandboxlib.plan.overlay import driver_of
from sandboxlib.plan.steps import Call, Step, Write, flatten
from sandboxlib.result import Change
from sandboxlib.rootfs import Rootfs

if TYPE_CHECKING:
    from sandboxlib.engine.mounted import OpenRootfs
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.engine.waiter import Waiter
    from sandboxlib.image.owner import Owner
    from sandboxlib.merged import Merged

Pair = Callable[[int, int], tuple[int, int]]


async def changes(
    engine: Engine, *, max_entries: int | None = ENTRIES, seconds: float | None = None
) -> list[Change]:
    """
    Return what was added, modified or deleted, sorted by path.

    What lies in mounts, in /proc and /dev is not part of the root file system.

    Raises:
        UnsupportedError: Nothing keeps what was written apart from what was there.
        TooLargeError: More was written than *max_entries*.
        TimeoutExpired: *seconds* have passed.
    """
    bound = entries_bound(max_entries, "changes()")
    engine.check()
    spec = engine.spec
    rootfs = spec.rootfs or Rootfs.host()
    if spec.namespace("mount") is not None:
        raise UnsupportedError("changes() in a mount namespace that is joined", "a file tree of its own")
    if rootfs.kind in ("host", "empty"):
        async with requests(engine, verb="changes()", seconds=seconds) as asked:
            await asked.ask(opening(AT_FDCWD, b"/", O_PATH | O_DIRECTORY, WHY, out=TOP, links=True))
            return await _against_plan(asked, TOP, engine.plan.steps, bound)
    _written_apart(rootfs)
    if rootfs.kind == "directory":
        return []
    made = {b"proc", b"dev"}
    for mount in spec.mounts:
        made |= _and_above(mount.destination)
    owners, privileged, scratch = Owners.of(engine.pid), engine.host.privileged, engine.scratch.fileno()
    with _open_upper(engine.scratch) as upper:
        async with (
            patiently(engine.waiter, "changes()", seconds) as deadline,
            _beside(engine, upper) as (asked, top),
        ):
            asked.deadline = deadline
            # Root's helper sees the numbers outside, a user's those inside; layers are seen from outside,
            # where root's have the numbers that they have inside.
            pairs = (owners.pair, _as_is) if privileged else (_as_is, owners.pair)
            view = _Upper(engine.waiter, asked, top, engine.layers, *pairs, made, bound)
            view.merged = rootfs.merged
            if driver_of(rootfs, engine.host) == "copy":
                view.copied = since(scratch)
            return await view.against(lowers(rootfs, scratch))


@asynccontextmanager
async def _beside(engine: Engine, upper: int) -> AsyncIterator[tuple[Requests, int]]:
    """
    A helper that has the upper layer, and where it has it.

    Root's stands outside: only there may it read the marks of an overlay that are root's. A user's stands
    inside, and so has the rights over subordinate users' folders.
    """
    if engine.host.privileged:
        async with outside(engine.waiter, engine.host, upper) as asked:
            yield asked, GIVEN
    else:
        async with Session(engine, upper) as session:
            yield Requests(session), Session.GIVEN


async def of_tree(waiter: Waiter, opened: OpenRootfs) -> list[Change]:
    """Return the same for a tree that is open alone."""
    rootfs, host = opened.rootfs, opened.host
    fileno = opened.fileno()
    bound = entries_bound(None, "changes()")
    _written_apart(rootfs)
    if rootfs.kind in ("host", "empty"):
        plan = root.alone(rootfs, host)
        async with outside(waiter, host, fileno) as asked:
            return await _against_plan(asked, GIVEN, plan.build, bound)
    if rootfs.kind == "directory":
        return []
    scratch = opened.scratch.fileno()
    with _open_upper(opened.scratch) as upper:
        async with outside(waiter, host, upper) as asked:
            # As above: a user's helper has the user as its root.
            below: Pair = _as_is if host.privileged else Owners.planned(host, None).pair
            view = _Upper(waiter, asked, GIVEN, owner_of(host, None), _as_is, below, set(), bound)
            if driver_of(rootfs, host) == "copy":
                view.copied = since(scratch)
            return await view.against(tuple((path, False) for path in rootfs.lower))


def _written_apart(rootfs: Rootfs) -> None:
    if rootfs.kind == "directory" and not rootfs.readonly:
        raise UnsupportedError(
            "changes() of a folder that is written to itself",
            "a layer for what is written",
            "use Rootfs.overlay(lower=[folder])",
        )


def _as_is(uid: int, gid: int) -> tuple[int, int]:
    return uid, gid


def _and_above(path: str) -> set[bytes]:
    return {os.fsencode(each.strip("/")) for each in (*tree.parents(path), path)}


def _open_upper(scratch: Fd) -> Fd:
    return openat("upper", os.O_PATH | os.O_DIRECTORY, at=scratch.fileno(), why=WHY)


# ---- a root that we made ------------------------------------------------------------------


class _Planned(NamedTuple):
    """What the plan made at one place: its type and bits, its owner, what is in it."""

    mode: int
    owner: tuple[int, int] = (0, 0)
    content: bytes = b""


def _skeleton(steps: tuple[Step, ...]) -> dict[bytes, _Planned]:
    found: dict[bytes, _Planned] = {}
    for step in flatten(steps):
        match step:
            case Call("mkdirat", (tree.ROOT, str(path), int(mode))):
                found.setdefault(os.fsencode(path), _Planned(modes.S_IFDIR | mode))
            case Call("symlinkat", (str(target), tree.ROOT, str(path))):
                link = _Planned(modes.S_IFLNK | 0o777, content=os.fsencode(target))
                found.setdefault(os.fsencode(path), link)
            case Call("fchownat", (tree.ROOT, str(path), int(uid), int(gid), _)):
                found[os.fsencode(path)] = found[os.fsencode(path)]._replace(owner=(uid, gid))
            case Write(path, data, _, tree.ROOT, _, mode):
                content = data if isinstance(data, bytes) else data.encode()
                found.setdefault(os.fsencode(path), _Planned(modes.S_IFREG | mode, content=content))
    return found


async def _against_plan(asked: Requests, top: int, steps: tuple[Step, ...], bound: Bound) -> list[Change]:
    skeleton, seen = _skeleton(steps), set[bytes]()
    found: list[tuple[bytes, str]] = []
    folders = [b""]
    device = (await asked.look(top, WHY)).st_dev
    for path in folders:
        await asked.enter(top, path, WHY)
        while batch := await asked.contents(WHY):
            for name, entry in batch:
                below = path + b"/" + name if path else name
                bound.path(below)
                # What something is mounted on shows another device.
                if entry.st_dev != device:
                    seen.add(below)
                    continue
                planned = skeleton.get(below)
                if planned is None:
                    found.append((below, "added"))
                else:
                    seen.add(below)
                    if await _differs(asked, name, entry, planned):
                        found.append((below, "modified"))
                if modes.S_ISDIR(entry.st_mode):
                    folders.append(below)
    # What lies on a mount that we made has no place in the root's own tree.
    there = set(folders)
    gone = skeleton.keys() - seen
    found += [(path, "deleted") for path in gone if path.rpartition(b"/")[0] in there]
    return _sorted(found)


async def _differs(asked: Requests, name: bytes, entry: os.stat_result, planned: _Planned) -> bool:
    if entry.st_mode != planned.mode or (entry.st_uid, entry.st_gid) != planned.owner:
        return True
    if modes.S_ISDIR(entry.st_mode):
        return False
    if entry.st_size != len(planned.content):
        return True
    if modes.S_ISLNK(entry.st_mode):
        return await asked.link(FOLDER, name, WHY) != planned.content
    await asked.ask(opening(FOLDER, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, WHY))
    return await asked.read(FILE, len(planned.content) + 1, WHY) != planned.content


def _sorted(found: list[tuple[bytes, str]]) -> list[Change]:
    return [Change(kind, "/" + os.fsdecode(path)) for path, kind in sorted(found)]


# ---- an overlay ---------------------------------------------------------------------------


class _Upper:
    """
    The upper layer of an overlay, against those below it.

    Attributes:
        layers: Whose the files of the layers are, on disk.
        top: Where the helper has it.
        owner, below: Owners in it, and in the layers below, as one and the same kind of number.
        made: Folders that were made to mount on, and are no change.
        merged: What the layers show, if it was looked at.
        copied: When it was complete, as a copy of all that is below; 0 where it has what was written alone.
    """

    copied = 0
    merged: Merged | None = None

    def __init__(
        self,
        waiter: Waiter,
        asked: Requests,
        top: int,
        layers: Owner,
        owner: Pair,
        below: Pair,
        made: set[bytes],
        bound: Bound,
    ) -> None:
        self._waiter = waiter
        self._asked = asked
        self._layers_of = layers
        privileged = layers.kind == "root"
        self._privileged = privileged
        self._mark = "trusted.overlay.opaque" if privileged else "user.overlay.opaque"
        self.top = top
        self.owner = owner
        self.below = below
        self.made = made
        self._bound = bound
        self._found: list[tuple[bytes, str]] = []
        self._own: frozenset[int] = frozenset()
        self._told: dict[str, dict[str, list[int]]] | None = None

    async def against(self, lower: tuple[tuple[str, bool], ...]) -> list[Change]:
        """Compare it with the folders *lower*, the topmost first, and whether each is the sandbox's own."""
        flags = os.O_PATH | os.O_DIRECTORY
        with ExitStack() as stack:
            fds = [stack.enter_context(openat(path, flags, why=WHY)) for path, _ in lower]
            # A user's own have the numbers that all his files have, and so have those that are copied.
            if self._privileged and not self.copied:
                self._own = frozenset(fd for fd, (_, own) in zip(fds, lower, strict=True) if own)
            await self._root()
            found = list(self._found)
            try:
                await self._folder(b"", tuple(fds))
            except PermissionError:
                if self._privileged:
                    raise
                # Layers have folders of subordinate users, and such as their own owner may not read.
                self._found, paths = found, await self._folders()
                look = partial(look_apart, fds, self._layers_of, self._mark, paths)
                self._told = await self._waiter.work(look)
                # It says who they are inside.
                self.below = _as_is
                await self._folder(b"", tuple(fds))
        return _sorted(self._found)

    async def _folders(self) -> list[bytes]:
        """All folders of the upper layer, parents first."""
        paths = [b""]
        for path in paths:
            await self._asked.enter(self.top, path, WHY)
            while batch := await self._asked.contents(WHY):
                for name, entry in batch:
                    if modes.S_ISDIR(entry.st_mode):
                        paths.append(path + b"/" + name if path else name)
        return paths

    def _layers(self, path: bytes, tops: tuple[int, ...]) -> Layers | Told:
        """The folder *path* of the layers *tops*."""
        if self._told is not None:
            return Told(self._told.get(os.fsdecode(path), {}) if tops else {}, tops)
        layers = Layers(self._mark, self._own, self.owner)
        try:
            layers.open(tops, path)
        except BaseException:
            layers.close()
            raise
        return layers

    async def _root(self) -> None:
        """The root itself, which is the upper layer's: it was made like that of the layers."""
        if self.merged is None:
            return
        now = await self._asked.look(self.top, WHY)
        before = self.merged
        if (modes.S_IMODE(now.st_mode), *self.owner(now.st_uid, now.st_gid)) != (
            before.mode,
            before.uid,
            before.gid,
        ):
            self._found.append((b"", "modified"))

    async def _folder(self, first: bytes, lowers: tuple[int, ...]) -> None:
        # Each with the numbers of the layers in which it is a folder that shows through.
        folders: list[tuple[bytes, tuple[int, ...]]] = [(first, lowers)]
        for path, tops in folders:
            with closing(self._layers(path, tops)) as layers:
                names = set()
                await self._asked.enter(self.top, path, WHY)
                while batch := await self._asked.contents(WHY):
                    for name, entry in batch:
                        names.add(name)
                        below = path + b"/" + name if path else name
                        self._bound.path(below)
                        under, folders_under = layers.look(name)
                        self._judge(below, entry, under)
                        if modes.S_ISDIR(entry.st_mode):
                            folders.append((below, folders_under))
                if tops and await self._opaque():
                    hidden = [name for name in layers.names() if name not in names]
                    self._found += [(path + b"/" + name if path else name, "deleted") for name in hidden]

    def _judge(self, path: bytes, entry: os.stat_result, under: os.stat_result | None) -> None:
        if is_whiteout(entry):
            if under is not None:
                self._found.append((path, "deleted"))
        elif under is None:
            if not (path in self.made and modes.S_ISDIR(entry.st_mode)):
                self._found.append((path, "added"))
        elif not (modes.S_ISDIR(entry.st_mode) and modes.S_ISDIR(under.st_mode)):
            if self.copied and entry.st_ctime_ns < self.copied and _same(entry, under):
                return
            self._found.append((path, "modified"))
        elif entry.st_mode != under.st_mode or self.owner(entry.st_uid, entry.st_gid) != self.below(
            under.st_uid, under.st_gid
        ):
            # A folder is here for what is in it; that alone is no change of it.
            self._found.append((path, "modified"))

    async def _opaque(self) -> bool:
        """Does the folder that is open hide what is below it?"""
        if self.copied:
            return True
        # No other value has one byte.
        call = Call(
            "fgetxattr", (FOLDER, self._mark, bytes(8), 1), WHY, ignore=(errno.ENODATA, errno.EOPNOTSUPP)
        )
        return (await self._asked.ask(call)).value == 1


def _same(entry: os.stat_result, under: os.stat_result) -> bool:
    """As they were copied: should the clock have been set back since."""
    if modes.S_IFMT(entry.st_mode) != modes.S_IFMT(under.st_mode) or entry.st_size != under.st_size:
        return False
    return entry.st_mode == under.st_mode and entry.st_mtime_ns == under.st_mtime_ns


__all__ = ["at", "changes", "of_tree"]
