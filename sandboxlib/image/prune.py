"""What leaves a store, and how much is in it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from sandboxlib.errors import ImageError, KernelError, StateError
from sandboxlib.image import locks, model, origins, reserve, trees
from sandboxlib.image.owner import Owner
from sandboxlib.image.reserve import FULL
from sandboxlib.image.store import name_of
from sandboxlib.kernel.descriptor import openat

if TYPE_CHECKING:
    from sandboxlib.image.model import Descriptor
    from sandboxlib.image.store import Store


class Pruned(NamedTuple):
    """
    What was removed.

    Attributes:
        images: How many images.
        blobs: How many manifests, configurations, compressed layers and remainders of downloads.
        layers: How many unpacked layers.
        bytes: How much room that gives.
    """

    images: int = 0
    blobs: int = 0
    layers: int = 0
    bytes: int = 0


class Usage(NamedTuple):
    """
    How many bytes are where on disk.

    Attributes:
        blobs: Manifests, configurations, and layers as they were sent.
        layers: Layers unpacked; each once, however many images share it.
        partial: Downloads that are not whole.
    """

    blobs: int
    layers: int
    partial: int


def drop(store: Store, name: str) -> bool:
    """Take a name from its image, and the image out of the store with its last one."""
    found = store.find(name)
    if found is None:
        return False
    by_name, image = found
    with store.shrinking():
        entries = store.index()
        if by_name:
            left = [each for each in entries if name_of(each) != by_name]
        else:
            left = [each for each in entries if each.digest != image.digest]
        if len(left) == len(entries):
            return False
        used = store.leased()
        if not any(each.digest == image.digest for each in left) and _reaches(store, image) & used:
            raise StateError(f"the image {name} is in use: a sandbox begins with it, or it is being sent")
        # Only what this image alone needed: what else has no name is prune's.
        gone = _leave(store, left, used, only=store.needed(image, whole=False))
    _finish(store, gone)
    return True


def _leave(store: Store, left: list[Descriptor], used: set[str], *, only: set[str] | None) -> _Gone:
    """Have these entries in the index, and what nobody needs any more out of the way; the store shrinks."""
    try:
        with store.changing() as entries:
            entries[:] = left
    except KernelError as error:
        if error.errno not in FULL:
            raise
        # A disk that is full, of an older store for which no room was kept: what goes makes some. Should it
        # end in between, the index has an image that can be removed once more.
        gone = _take_out(store, kept=_kept(store, left) | used, only=only)
        _finish(store, gone)
        with store.changing() as entries:
            entries[:] = left
    else:
        gone = _take_out(store, kept=_kept(store, left) | used, only=only)
    # There may be room for that only now.
    reserve.keep(store.path)
    return gone


def _reaches(store: Store, image: Descriptor) -> set[str]:
    """The digests of an image by which somebody who uses it can be told."""
    found = {image.digest}
    # One that is damaged can be removed too.
    with contextlib.suppress(ImageError):
        document = store.document(image)
        if isinstance(document, model.Index):
            found |= {inner.digest for inner in document.manifests}
    return found


def prune(store: Store, *, every: bool) -> Pruned:
    """Remove images without a name, or all that nobody uses, and whatever no image needs."""
    with store.shrinking():
        used = store.leased()
        entries = store.index()
        keep = [each for each in entries if (name_of(each) and not every) or _reaches(store, each) & used]
        removed = {each.digest for each in entries} - {each.digest for each in keep}
        gone = _leave(store, keep, used, only=None)
    counted = _finish(store, gone)
    return counted._replace(images=len(removed))


def _kept(store: Store, entries: tuple[Descriptor, ...] | list[Descriptor]) -> set[str]:
    found: set[str] = set()
    for entry in entries:
        # Of one that is damaged the rest stays: a pull then brings only what is missing.
        found |= store.needed(entry, whole=False)
    return found


class _Gone(NamedTuple):
    blobs: int
    layers: int
    bytes: int


def _take_out(store: Store, *, kept: set[str], only: set[str] | None) -> _Gone:
    """Move what is not *kept*, and is of *only*, out of the way."""
    blobs = layers = size = 0
    removed = os.path.join(store.path, "removed")

    def goes(digest: str) -> bool:
        return digest not in kept and (only is None or digest in only)

    for digest, path in each_blob(store):
        if goes(digest):
            size += os.stat(path).st_size
            blobs += 1
            try:
                os.rename(path, os.path.join(removed, f"blob-{os.urandom(8).hex()}"))
            except OSError as error:
                if error.errno not in FULL:
                    raise
                os.unlink(path)
    for key, chain_id, path in each_layer(store):
        if goes(chain_id):
            size += _size(path)
            layers += 1
            trees.put_away(store, path, f"{key}-{os.urandom(8).hex()}", owner_of(key, store))
    if only is None:
        for path in _remainders(store):
            size += os.stat(path).st_size if os.path.isfile(path) else 0
            blobs += 1
            os.unlink(path)
        _forget_locks(store)
        origins.forget(store)
    return _Gone(blobs, layers, size)


def _finish(store: Store, gone: _Gone) -> Pruned:
    """Remove what is out of the way, also what a program that was killed has left there."""
    folder = os.path.join(store.path, "removed")
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if name.startswith("blob-"):
                os.unlink(os.path.join(folder, name))
            else:
                trees.empty(folder, name, owner_of(name.rpartition("-")[0], store))
    return Pruned(0, *gone)


def owner_of(key: str, store: Store) -> Owner:
    """Who owns the layers in a folder of this name."""
    if not key.startswith("range-"):
        return Owner("root" if key == "root" else "single")
    with open(os.path.join(store.path, "layers", key, "owner.json"), "rb") as file:
        maps = json.loads(file.read(1 << 16))
    uids, gids = (tuple(tuple(map(int, line)) for line in maps[name]) for name in ("uid_map", "gid_map"))
    return Owner("range", uids, gids)


def each_blob(store: Store) -> Iterator[tuple[str, str]]:
    """Each blob: its digest, its file."""
    top = os.path.join(store.path, "blobs")
    for algorithm in os.listdir(top):
        for name in os.listdir(os.path.join(top, algorithm)):
            yield f"{algorithm}:{name}", os.path.join(top, algorithm, name)


def each_layer(store: Store) -> Iterator[tuple[str, str, str]]:
    """Each layer: its owner's key, its chain ID ("" for half of one), its folder."""
    top = os.path.join(store.path, "layers")
    for key in os.listdir(top):
        for name in os.listdir(os.path.join(top, key)):
            path = os.path.join(top, key, name)
            if os.path.isdir(path):
                yield key, "" if name.startswith("new-") else name.replace("-", ":", 1), path


def _size(path: str) -> int:
    found = trees.known(path).get("size")
    return found if isinstance(found, int) else 0


def _remainders(store: Store) -> Iterator[str]:
    """What downloads and writers have left that nobody goes on with just now; removed by the caller."""
    top = os.path.join(store.path, "partial")
    for name in os.listdir(top):
        path = os.path.join(top, name)
        with contextlib.suppress(FileNotFoundError), openat(path, os.O_RDONLY) as fd:
            if locks.try_(fd) and locks.is_(path, fd):
                yield path


def _forget_locks(store: Store) -> None:
    """Remove the files of layers' locks that nobody has; the store's own stay."""
    top = os.path.join(store.path, "locks")
    for name in set(os.listdir(top)) - {"store", "index"}:
        path = os.path.join(top, name)
        with openat(path, os.O_RDONLY) as fd:
            # Whoever waits for it sees that it is gone, and makes it anew.
            if locks.try_(fd):
                os.unlink(path)


def usage(store: Store) -> Usage:
    """How much is where; others may add and remove meanwhile."""
    blobs = sum(_length(path) for _, path in each_blob(store))
    layers = sum(_size(path) for _, _, path in each_layer(store))
    top = os.path.join(store.path, "partial")
    return Usage(blobs, layers, sum(_length(os.path.join(top, name)) for name in os.listdir(top)))


def _length(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


__all__ = ["Pruned", "Usage", "drop", "each_blob", "each_layer", "owner_of", "prune", "usage"]
