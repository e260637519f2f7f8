"""The verbs of images, once for all faces: each runs in a thread that may wait."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sandboxlib import quantity
from sandboxlib.engine.current import program
from sandboxlib.engine.image import own_store, owner_of
from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image.archive import Given, opened
from sandboxlib.image.facts import Facts, facts
from sandboxlib.reference import Reference

if TYPE_CHECKING:
    from sandboxlib.image.model import Descriptor
    from sandboxlib.image.progress import Progress
    from sandboxlib.image.prune import Pruned
    from sandboxlib.image.store import Store

Cancelled = Callable[[], None]
OnProgress = Callable[["Progress"], object] | None
Path = str | os.PathLike[str]


def pull(
    reference: object,
    *,
    platform: str | None,
    on_progress: OnProgress,
    insecure: bool,
    ca: Path | None,
    credentials: tuple[str, str] | None,
    cancelled: Cancelled,
) -> Facts:
    """Fetch an image from its registry."""
    from sandboxlib.image import transfer
    from sandboxlib.image.platform import parse_platform

    name = Reference.parse(reference, "reference")
    wanted = None if platform is None else parse_platform(platform)
    store = own_store()
    found = transfer.pull(
        store,
        name,
        platform=wanted,
        on_progress=on_progress,
        cancelled=cancelled,
        insecure=insecure,
        ca=None if ca is None else os.fspath(ca),
        credentials=credentials,
    )
    return facts(store, str(name), found)


def push(
    digest: str,
    target: object,
    *,
    on_progress: OnProgress,
    insecure: bool,
    ca: Path | None,
    credentials: tuple[str, str] | None,
    cancelled: Cancelled,
) -> str:
    """Send an image to a registry."""
    from sandboxlib.image.push import push as send

    name = Reference.parse(target, "target")
    store = own_store()
    image = _found(store, digest)
    with store.lease(image):
        return send(
            store,
            image,
            name,
            on_progress=on_progress,
            cancelled=cancelled,
            insecure=insecure,
            ca=None if ca is None else os.fspath(ca),
            credentials=credentials,
        )


def from_rootfs(
    source: Given,
    *,
    name: str,
    config: Mapping[str, Any] | None,
    platform: str | None,
    created: str | None,
    cancelled: Cancelled,
) -> Facts:
    """Make an image of one layer."""
    from sandboxlib.image import making
    from sandboxlib.image.pack import pack_tree

    wanted = Reference.parse(name, "name")
    settings = making.config_of(config)
    when = making.now(created)
    if platform is not None:
        from sandboxlib.image.platform import parse_platform

        parse_platform(platform)
    store = own_store()
    with opened(source, "source", cancelled) as given, store.growing():
        if isinstance(given, str):
            origin = given
            fd = os.open(given, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                owner = owner_of(program().host, None)
                pack = partial(pack_tree, cancelled=cancelled)
                layer = making.add_packed(store, lambda write: pack(fd, write, owner))
            finally:
                os.close(fd)
        else:
            origin = given.name
            layer = making.add_archive(store, given, cancelled)
        image = making.image_of(
            store, layer, settings, platform, when, f"from {os.path.basename(origin.rstrip('/'))}"
        )
        store.tag(wanted, image)
    return facts(store, str(wanted), image)


def load(source: Given, *, cancelled: Cancelled) -> list[Facts]:
    """Bring in the images of an archive."""
    from sandboxlib.image.loading import load as bring

    store = own_store()
    return [facts(store, name, store.image(found)) for name, found in bring(store, source, cancelled)]


def save(chosen: Sequence[tuple[str, str]], path: Path, format: str, cancelled: Cancelled) -> None:
    """Write images, each a name or nothing and a digest, to an archive."""
    from sandboxlib.image.saving import save as write

    formats = ("oci", "oci-dir", "docker")
    if format not in formats:
        raise SpecError("format", format, f"one of {', '.join(formats)}")
    store = own_store()
    write(
        store, [(name, _found(store, digest)) for name, digest in chosen], os.fspath(path), format, cancelled
    )


def get(name: str) -> Facts:
    """The image of this name, digest or ID."""
    store = own_store()
    known, image = _named(store, name)
    return facts(store, known, image)


def every() -> list[Facts]:
    """All images, one for each name."""
    store = own_store()
    found = []
    for name, image in store.names():
        try:
            found.append(facts(store, name, store.image(image)))
        except ImageError:
            # An index of which no part was fetched, or that is for other machines.
            continue
    return sorted(found, key=lambda one: (not one.reference, one.reference, one.digest))


def remove(name: str) -> None:
    """Take a name from its image, and the image with its last one."""
    if not own_store().remove(quantity.text("name", name)):
        raise ImageError("there is no such image", name)


def prune(*, all: bool) -> Pruned:
    """Remove what nothing needs."""
    return own_store().prune(all=all)


def tag(digest: str, name: str) -> Facts:
    """Give an image one more name."""
    store = own_store()
    image = _found(store, digest)
    wanted = Reference.parse(name, "name")
    if wanted.digest:
        raise SpecError("name", name, "a name without a digest: it says by itself what is in it")
    store.tag(wanted, image)
    return facts(store, str(wanted), image)


def _named(store: Store, name: str) -> tuple[str, Descriptor]:
    found = store.find(quantity.text("name", name))
    if found is None:
        raise ImageError("there is no such image", name)
    known, image = found
    return known, store.image(image)


def _found(store: Store, name: str) -> Descriptor:
    return _named(store, name)[1]


__all__ = [
    "every",
    "from_rootfs",
    "get",
    "load",
    "prune",
    "pull",
    "push",
    "remove",
    "save",
    "tag",
]
