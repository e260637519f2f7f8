"""Whether all in a store is as it has to be."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING, NamedTuple

from sandboxlib.errors import ImageError
from sandboxlib.image import model, trees
from sandboxlib.image.prune import each_blob, each_layer, owner_of

if TYPE_CHECKING:
    from sandboxlib.image.model import Descriptor
    from sandboxlib.image.store import Store

_CHUNK = 1 << 20


class Fault(NamedTuple):
    """
    Something that is not as it has to be.

    Attributes:
        kind: ``index``, ``missing``, ``damaged``, ``layer``.
        about: A digest, a name, or a path.
        text: What is wrong with it.
        repaired: It was taken away, so that a pull gets it again.
    """

    kind: str
    about: str
    text: str
    repaired: bool = False

    def __str__(self) -> str:
        return f"{self.about}: {self.text}{' (taken away)' if self.repaired else ''}"


def fsck(store: Store, *, repair: bool) -> tuple[Fault, ...]:
    """
    Read all of it: each blob is what its name says, each image is whole, each layer is.

    With *repair*, blobs and layers that are not are taken away; so are names of images whose
    manifest is. Nobody may use the store otherwise meanwhile.
    """
    with store.shrinking():
        try:
            entries = store.index()
        except ImageError as error:
            return (_index(store, error, repair=repair),)
        faults = [
            *_damaged(store, repair=repair),
            *_images(store, entries, repair=repair),
            *_unpacked(store, repair=repair),
        ]
        if repair:
            with store.changing() as kept:
                kept[:] = [entry for entry in kept if _readable(store, entry)]
    return tuple(dict.fromkeys(faults))


def _readable(store: Store, entry: Descriptor) -> bool:
    try:
        store.document(entry)
    except ImageError:
        return False
    return True


def _index(store: Store, error: ImageError, *, repair: bool) -> Fault:
    path = os.path.join(store.path, "index.json")
    if repair:
        os.rename(path, f"{path}.damaged")
    return Fault("index", path, str(error), repair)


def _damaged(store: Store, *, repair: bool) -> list[Fault]:
    found = []
    for digest, path in each_blob(store):
        try:
            model.check_digest(digest, path)
        except ImageError:
            found.append(Fault("damaged", path, "it is not named by a digest", repair))
        else:
            check = hashlib.new(digest.partition(":")[0])
            with open(path, "rb") as file:
                while data := file.read(_CHUNK):
                    check.update(data)
            if check.hexdigest() == digest.partition(":")[2]:
                continue
            found.append(Fault("damaged", digest, "what is in it is not what its digest says", repair))
        if repair:
            os.rename(path, os.path.join(store.path, "removed", f"blob-{os.urandom(8).hex()}"))
    return found


def _images(store: Store, entries: tuple[Descriptor, ...], *, repair: bool) -> list[Fault]:
    """Look at each image, and at those that an index lists, once."""
    found: list[Fault] = []
    seen: set[str] = set()
    waiting = list(reversed(entries))
    while waiting:
        entry = waiting.pop()
        if entry.digest in seen:
            continue
        seen.add(entry.digest)
        if not store.holds(entry):
            text = "the index has it, and the store has not"
            found.append(Fault("missing", entry.digest[:150], text, repair))
            continue
        try:
            document = store.document(entry)
        except ImageError as error:
            found.append(Fault("damaged", entry.digest, str(error), repair and entry in entries))
            continue
        if isinstance(document, model.Index):
            # Of other platforms nothing need be there.
            waiting += [inner for inner in document.manifests if store.has(inner.digest)]
        else:
            found += _image(store, entry, document)
    return found


def _image(store: Store, entry: Descriptor, document: model.Manifest) -> list[Fault]:
    found = []
    try:
        for blob in (document.config, *document.layers):
            if not store.has(blob.digest):
                found.append(Fault("missing", blob.digest, f"the image {entry.digest} needs it"))
            elif os.stat(store.file(blob.digest)).st_size != blob.size:
                found.append(Fault("damaged", blob.digest, f"it has not the {blob.size} bytes that are said"))
        if not found and document.config.media_type in model.CONFIGS:
            store.config(document)
    except ImageError as error:
        return [Fault("damaged", entry.digest, str(error))]
    return found


def _unpacked(store: Store, *, repair: bool) -> list[Fault]:
    found = []
    for key, chain_id, path in each_layer(store):
        whole = (
            chain_id
            and trees.known(path).get("chain_id") == chain_id
            and os.path.isdir(os.path.join(path, "fs"))
        )
        if whole:
            continue
        found.append(Fault("layer", path, "it is not whole", repair))
        if repair:
            with contextlib.suppress(FileNotFoundError):
                trees.discard(store, path, owner_of(key, store))
    return found


__all__ = ["Fault", "fsck"]
