"""
What a sandbox has written, as a new layer of its image; and its whole tree, as a tar file.

Spec: image-spec layer.md.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from sandboxlib import quantity
from sandboxlib.engine import verbs
from sandboxlib.engine.image import own_store
from sandboxlib.engine.owners import Owners
from sandboxlib.engine.patience import patiently
from sandboxlib.engine.session import Session
from sandboxlib.engine.walk import FILE, Requests
from sandboxlib.errors import KernelError, SpecError, UnsupportedError
from sandboxlib.image import making
from sandboxlib.image.content import Bounds
from sandboxlib.image.facts import Facts, facts
from sandboxlib.image.pack import pack_changes, pack_tree
from sandboxlib.kernel.descriptor import Fd, openat
from sandboxlib.kernel.syscall import failed
from sandboxlib.plan import tree
from sandboxlib.plan.overlay import driver_of
from sandboxlib.reference import Reference

if TYPE_CHECKING:
    from sandboxlib.engine.image import Held
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.image.owner import Owner

Shift = Callable[[int, int], tuple[int, int]] | None
_WHY = "what the sandbox has written"


class Most(NamedTuple):
    """How much a verb packs, and for how long, as the caller says; see `sandboxlib.bounds`."""

    size: object
    entries: object
    seconds: object

    def bounds(self) -> Bounds:
        """Bytes and entries. Raises: SpecError."""
        size = None if self.size is None else quantity.size("max_size", self.size)
        return size, None if self.entries is None else quantity.count("max_entries", self.entries)


def _ends(engine: Engine, verb: str, deadline: float) -> Callable[[], None]:
    """What ends the work in another thread: that it is cancelled, or the *deadline*."""
    # The loop's own clock is not to be asked there.
    last = time.monotonic() + deadline - engine.waiter.now()

    def check() -> None:
        engine.waiter.check()
        if time.monotonic() >= last:
            raise KernelError(errno.ETIMEDOUT, verb, _WHY)

    return check


async def commit(
    engine: Engine,
    name: str,
    *,
    message: Any,
    author: Any,
    config: Any,
    created: Any,
    most: Most,
) -> Facts:
    """
    Make an image of the sandbox's own image and one layer more: exactly the changes.

    Raises:
        UnsupportedError: It did not begin with an image.
        SpecError: An argument makes no sense.
        TooLargeError: There is more than *most* lets in.
        TimeoutExpired: It takes longer.
    """
    bounds = most.bounds()
    engine.check()
    held = engine.held
    if held is None:
        raise UnsupportedError(
            "commit() of a sandbox without an image",
            "an image below what it has written",
            "begin with Sandbox(image=...), or export() it and use Image.from_rootfs",
        )
    rootfs = engine.spec.rootfs
    if rootfs is not None and driver_of(rootfs, engine.host) == "copy":
        raise UnsupportedError(
            "commit() of a copy of the layers",
            "a layer of its own for what is written",
            "export() it and use Image.from_rootfs",
        )
    wanted = Reference.parse(name, "name")
    if wanted.digest:
        raise SpecError("name", name, "a name without a digest: it says by itself what is in it")
    for field, value in (("message", message), ("author", author)):
        if not isinstance(value, str):
            raise SpecError(field, value, "a string")
    when = making.now(created)
    store = own_store()
    base = store.config(store.manifest(held.image)).config
    settings = making.config_of(config, base)
    verb = f"commit({name!r})"
    async with patiently(engine.waiter, verb, most.seconds) as deadline, _still(engine):
        with _upper(engine) as upper:
            work = partial(
                _commit,
                engine,
                held,
                upper,
                wanted,
                settings=settings,
                message=message,
                author=author,
                when=when,
                bounds=bounds,
                cancelled=_ends(engine, verb, deadline),
            )
            return await engine.waiter.work(work)


def _commit(
    engine: Engine,
    held: Held,
    upper: int,
    wanted: Reference,
    *,
    settings: Any,
    message: str,
    author: str,
    when: str,
    bounds: Bounds,
    cancelled: Callable[[], None],
) -> Facts:
    store = own_store()
    # What stands there for something to be mounted on, and what a volume holds.
    left_out = frozenset(
        os.fsencode(path.strip("/"))
        for path in (*held.volumes, *(mount.destination for mount in engine.spec.mounts))
    )
    merged = engine.spec.rootfs.merged if engine.spec.rootfs is not None else None
    root = None if merged is None else (merged.mode, merged.uid, merged.gid)
    with store.growing():
        layer = making.add_packed(
            store,
            lambda write: pack_changes(
                upper,
                write,
                held.owner,
                shift=_shift(engine),
                left_out=left_out,
                root=root,
                bounds=bounds,
                cancelled=cancelled,
            ),
        )
        image = making.with_layer(
            store, held.image, layer, settings, created=when, message=message, author=author
        )
        store.tag(wanted, image)
    return facts(store, str(wanted), image)


def _shift(engine: Engine) -> Shift:
    """Root's own sandbox has its files on disk with the numbers that they have outside."""
    return Owners.of(engine.pid).exactly if engine.host.privileged else None


def _upper(engine: Engine) -> Fd:
    # A place alone: who packs it may read what the program may not.
    return openat("upper", os.O_PATH | os.O_DIRECTORY, at=engine.scratch.fileno(), why=_WHY)


@asynccontextmanager
async def _still(engine: Engine) -> AsyncIterator[None]:
    """Nothing in the sandbox runs meanwhile, where it can be paused: what is written half is not seen."""
    if engine.group is None or engine.frozen:
        yield
        return
    try:
        await verbs.pause(engine)
    except UnsupportedError:
        yield
        return
    try:
        yield
    finally:
        with engine.waiter.shield():
            await verbs.resume(engine)


async def export(engine: Engine, target: str | os.PathLike[str] | IO[bytes], most: Most) -> None:
    """
    Write the whole file tree, without what is mounted in it, as a plain tar.

    Args:
        engine: Whose.
        target: A path, whose file is made or replaced, or a file that is open for writing.
        most: How much, and for how long.

    Raises:
        TooLargeError: There is more than *most* lets in.
        TimeoutExpired: It takes longer.
        SpecError: *target* is none of these.
        KernelError: It cannot be made.
    """
    engine.check()
    owner = engine.layers
    if not (hasattr(target, "write") or isinstance(target, (str, os.PathLike))):
        raise SpecError("target", target, "a path, or a file that is open for writing")
    options = _omitted(engine) | {"bounds": most.bounds(), "sparse": True}
    async with patiently(engine.waiter, "export()", most.seconds) as deadline:
        async with Session(engine) as session:
            call = tree.open_tree("/", FILE, "the tree alone, without its mounts", recursive=False)
            opened = await Requests(session, deadline).descriptor(call)
        with opened as top:
            async with _still(engine):
                options["cancelled"] = _ends(engine, "export()", deadline)
                await engine.waiter.work(partial(_export, top, target, owner, _shift(engine), options))


def _omitted(engine: Engine) -> dict[str, Any]:
    """What is there only to be mounted on, as arguments of `pack_tree`."""
    merged = engine.spec.rootfs.merged if engine.spec.rootfs is not None else None
    if merged is None:
        return {}

    def names(paths: Iterable[str]) -> set[bytes]:
        return {os.fsencode(path.strip("/")) for path in paths}

    return {
        "left_out": names((*merged.files, *(link.path for link in merged.links))),
        "ways": names(each.path for each in merged.folders if not (each.kept or each.shown)),
        "links": {
            os.fsencode(link.path.strip("/")): (link.target, link.uid, link.gid, link.mtime)
            for link in merged.links
        },
    }


def _export(top: int, target: Any, owner: Owner, shift: Shift, options: dict[str, Any]) -> None:
    if hasattr(target, "write"):
        pack_tree(top, target.write, owner, shift=shift, **options)
        return
    path = os.fspath(target)
    partial_path = f"{path}.{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with open(partial_path, "xb") as file:
            pack_tree(top, file.write, owner, shift=shift, **options)
        os.replace(partial_path, path)
    except BaseException as error:
        if os.path.exists(partial_path):
            os.unlink(partial_path)
        if isinstance(error, OSError) and not isinstance(error, KernelError):
            raise failed(error, f'open("{path}")', "the tar file") from None
        raise


__all__ = ["Most", "commit", "export"]
