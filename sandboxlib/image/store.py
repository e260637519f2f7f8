"""
The store: an OCI image layout, and beside it what is unpacked, what is used, and what is half done.

Several programs use one at once. What is added is safe from `prune` while `growing` or a lease is
held; names change under a lock; everything is written under another name and renamed.

Spec: image-spec image-layout.md.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from sandboxlib.errors import ImageError, KernelError, StateError
from sandboxlib.image import layout, locks, model, platform, reserve, trees
from sandboxlib.image.blobs import Blobs
from sandboxlib.image.leases import Lease, is_leased, lease, lease_blob, leased
from sandboxlib.image.locks import Cancelled, never
from sandboxlib.image.model import Descriptor, ImageConfig, Index, Manifest, Platform
from sandboxlib.reference import Reference, is_digest

if TYPE_CHECKING:
    from sandboxlib.image.fsck import Fault
    from sandboxlib.image.owner import Owner
    from sandboxlib.image.progress import Progress
    from sandboxlib.image.prune import Pruned, Usage

_ID = re.compile(r"(?:sha256:)?[0-9a-f]{4,64}", re.ASCII)
#: Bytes of index.json: some hundred thousand names.
_MAX_INDEX = 64 << 20


class Store(Blobs):
    """
    A store below the folder *path*, which is made where it is missing.

    Raises:
        ImageError: It is a layout of another version, or something else.
        OSError: It cannot be made.
    """

    def __init__(self, path: str) -> None:
        super().__init__(os.path.abspath(path))
        layout.prepare(self.path)

    # ---- against each other ---------------------------------------------------------------

    def growing(self, cancelled: Cancelled = never) -> AbstractContextManager[object]:
        """Nothing is pruned while the block runs: what was added is about to be named."""
        return locks.take(os.path.join(self.path, "locks/store"), shared=True, cancelled=cancelled)

    def shrinking(self, cancelled: Cancelled = never) -> AbstractContextManager[object]:
        """Nobody adds anything, or begins to use it, while the block runs."""
        return locks.take(os.path.join(self.path, "locks/store"), cancelled=cancelled)

    def lease(self, image: Descriptor, into: Lease | None = None) -> Lease:
        """
        Keep an image, its blobs and its unpacked layers, until the lease is closed or this program ends.

        The lease is *into*, where somebody has one already.

        Raises:
            ImageError: It is not in the store, or not whole.
        """
        with self.growing():
            needed = self.needed(image)
            leases = os.path.join(self.path, "leases")
            try:
                return lease(leases, needed, into)
            except KernelError as error:
                if error.errno not in reserve.FULL:
                    raise
                return lease_blob(self.file(image.digest), into)

    def lease_of(self, digests: Iterable[str]) -> Lease:
        """Keep what has these digests, whether it is there or still to come."""
        with self.growing():
            return lease(os.path.join(self.path, "leases"), digests)

    def leased(self) -> set[str]:
        """All digests that somebody uses; to be asked while the store is `shrinking`."""
        found = leased(os.path.join(self.path, "leases"))
        for entry in self.index():
            for each in (entry, *(self._inner(entry) if entry.media_type in model.INDEXES else ())):
                if self.holds(each) and is_leased(self.file(each.digest)):
                    found |= self.needed(each, whole=False)
        return found

    # ---- names ----------------------------------------------------------------------------

    def index(self) -> tuple[Descriptor, ...]:
        """
        What the store has, each name once, and what has none.

        Raises:
            ImageError: index.json cannot be read.
        """
        path = os.path.join(self.path, "index.json")
        try:
            with open(path, "rb") as file:
                raw = file.read(_MAX_INDEX)
        except FileNotFoundError:
            return ()
        return model.decode(raw, Index, path).manifests

    @contextmanager
    def changing(self) -> Iterator[list[Descriptor]]:
        """Change the index: the list is what will be in it."""
        with locks.take(os.path.join(self.path, "locks/index")):
            entries = list(self.index())
            before = tuple(entries)
            yield entries
            if tuple(entries) != before or not os.path.exists(os.path.join(self.path, "index.json")):
                raw = model.encode(Index(2, tuple(entries), media_type=model.OCI_INDEX))
                reserve.replace(self.path, raw, self._partial)
                reserve.keep(self.path)

    def names(self) -> list[tuple[str, Descriptor]]:
        """Each name with its image, which may be an index; "" for an image that has none."""
        return [(name_of(entry), entry) for entry in self.index()]

    def tag(self, reference: Reference | str, image: Descriptor) -> None:
        """
        Give an image a name, taken from whatever had it; "" for none at all.

        Raises:
            ImageError: It is not in the store; somebody may just have removed it.
        """
        name = str(reference)
        entry = msgspec.structs.replace(image, annotations={model.REF_NAME: name} if name else None)
        with self.growing(), self.changing() as entries:
            if not self.has(image.digest):
                raise ImageError("it is not in the store", image.digest)
            kept = [
                each
                for each in entries
                # One without a name is there for its content: a name makes that more.
                if (name_of(each) != name if name else True)
                and (name_of(each) or each.digest != image.digest)
            ]
            moved = [
                each for each in entries if name and name_of(each) == name and each.digest != image.digest
            ]
            for each in moved:
                if not any(other.digest == each.digest for other in kept):
                    kept.append(msgspec.structs.replace(each, annotations=None))
            entries[:] = [*kept, entry]

    def remove(self, name: str) -> bool:
        """
        Take a name, or with a digest or an ID all names, from an image; with its last one it goes.

        Raises:
            StateError: It would go, and somebody uses it.

        Returns:
            Whether there was one.
        """
        from sandboxlib.image.prune import drop

        return drop(self, name)

    def find(self, name: str) -> tuple[str, Descriptor] | None:
        """
        Look an image up by its name, its digest, its ID, or the first characters of that.

        Returns:
            Its name, or "" if it was not by that; and the image, which may be an index.

        Raises:
            ImageError: Several have IDs that begin so.
            SpecError: It is none of these.
        """
        if not is_digest(name):
            reference = Reference.parse(name, "name") if not _bare(name) else None
            if reference is not None and (found := self.resolve(reference)) is not None:
                return str(reference), found
        if _ID.fullmatch(name):
            found = self._by_id(name.removeprefix("sha256:"))
            return None if found is None else ("", found)
        return None

    def resolve(self, reference: Reference | str) -> Descriptor | None:
        """What has this name, or the digest in it; None if nothing has."""
        if isinstance(reference, str):
            if is_digest(reference):
                return self._by_digest(reference)
            reference = Reference.parse(reference)
        name = str(reference)
        # With a digest too: it may be an index's, whose image for this machine has the name.
        found = next((entry for entry in self.index() if name_of(entry) == name), None)
        return self._by_digest(reference.digest) if found is None and reference.digest else found

    def _by_digest(self, digest: str) -> Descriptor | None:
        for entry in self.index():
            if entry.digest == digest:
                return entry
            if entry.media_type in model.INDEXES:
                for inner in self._inner(entry):
                    if inner.digest == digest and self.has(digest):
                        return inner
        return None

    def _by_id(self, start: str) -> Descriptor | None:
        found: dict[str, Descriptor] = {}
        for entry in self.index():
            for each in (entry, *(self._inner(entry) if entry.media_type in model.INDEXES else ())):
                if not self.holds(each):
                    continue
                digests = [each.digest]
                # One that is damaged keeps nobody from the others.
                with contextlib.suppress(ImageError):
                    digests.append(self.manifest(each).config.digest)
                if any(digest.partition(":")[2].startswith(start) for digest in digests):
                    found.setdefault(each.digest, each)
        if len(found) > 1:
            raise ImageError(f"{len(found)} images have an ID that begins so", start)
        return next(iter(found.values()), None)

    # ---- documents ------------------------------------------------------------------------

    def document(self, found: Descriptor) -> Manifest | Index:
        """
        Read a manifest or an index.

        Raises:
            ImageError: It is not there, or not as it has to be.
        """
        raw = self.read(found.digest, model.MAX_MANIFEST)
        return model.decode_manifest(raw, found.media_type, found.digest)

    def _inner(self, index: Descriptor) -> tuple[Descriptor, ...]:
        try:
            document = self.document(index)
        except ImageError:
            return ()
        return document.manifests if isinstance(document, Index) else ()

    def holds(self, entry: Descriptor) -> bool:
        """Is what an entry of the index, which others may have written, speaks of there?"""
        try:
            return self.has(entry.digest)
        except ImageError:
            return False

    def image(self, found: Descriptor, wanted: Platform | None = None) -> Descriptor:
        """
        Return the image for one platform: *found* itself, or what it lists for that.

        Raises:
            ImageError: There is none for it.
        """
        for _ in range(4):
            document = self.document(found)
            if isinstance(document, Manifest):
                return found
            found = platform.choose(document, wanted or platform.own(), found.digest)
        raise ImageError("it is an index of indexes without an end", found.digest)

    def manifest(self, image: Descriptor) -> Manifest:
        """
        Read the manifest of an image.

        Raises:
            ImageError: It is not there, or not an image's.
        """
        document = self.document(image)
        if not isinstance(document, Manifest):
            raise ImageError("it is an index, not one image", image.digest)
        return document

    def config(self, manifest: Manifest) -> ImageConfig:
        """
        Read the configuration of an image.

        Raises:
            ImageError: It is not there, or not an image's.
        """
        wanted = manifest.config
        if wanted.media_type not in model.CONFIGS:
            kind = manifest.artifact_type or wanted.media_type
            raise ImageError(f"it is no image but an artifact of type {kind!r}", wanted.digest)
        config = model.decode_config(self.read(wanted.digest, model.MAX_CONFIG), wanted.digest)
        if len(config.rootfs.diff_ids) != len(manifest.layers):
            raise ImageError(
                f"it lists {len(config.rootfs.diff_ids)} layers, and its manifest {len(manifest.layers)}",
                wanted.digest,
            )
        return config

    def needed(self, found: Descriptor, *, whole: bool = True) -> set[str]:
        """
        The digests of all that an image or an index needs: documents, blobs, layers with those below them.

        Of an index only what is there counts; with *whole* false, of all that can be read.

        Raises:
            ImageError: A document is missing, or damaged.
        """
        digests: set[str] = set()
        read: set[str] = set()
        waiting = [found]
        while waiting:
            each = waiting.pop()
            if each.digest in read:
                continue
            read.add(each.digest)
            digests.add(each.digest)
            try:
                document = self.document(each)
                if isinstance(document, Index):
                    waiting += [inner for inner in document.manifests if self.has(inner.digest)]
                    continue
                digests |= {document.config.digest, *(layer.digest for layer in document.layers)}
                if document.config.media_type in model.CONFIGS and self.has(document.config.digest):
                    digests |= set(model.chain_ids(self.config(document).rootfs.diff_ids))
            except ImageError:
                if whole:
                    raise
        return digests

    # ---- layers ---------------------------------------------------------------------------

    def layer_folder(self, owner: Owner, chain_id: str) -> str:
        """Where the files of a layer are, or would be."""
        return os.path.join(trees.folder(self, owner, chain_id), "fs")

    def unpack(
        self,
        manifest: Manifest,
        config: ImageConfig,
        owner: Owner,
        *,
        progress: Callable[[Progress], object] | None = None,
        cancelled: Cancelled = never,
    ) -> tuple[str, ...]:
        """
        Unpack the layers of an image that are not yet.

        Returns:
            The folders with their files, the topmost layer first.

        Raises:
            ImageError: A layer is missing, or not what the configuration says.
            ViolationError: One is hostile.
        """
        return trees.unpack_all(self, manifest, config, owner, progress=progress, cancelled=cancelled)

    # ---- upkeep ---------------------------------------------------------------------------

    def prune(self, *, all: bool = False) -> Pruned:  # noqa: A002 - as in docker image prune
        """Remove images without a name, or *all* that nobody uses, and whatever no image needs."""
        from sandboxlib.image.prune import prune

        return prune(self, every=all)

    def usage(self) -> Usage:
        """How much is where on disk."""
        from sandboxlib.image.prune import usage

        return usage(self)

    def fsck(self, *, repair: bool = False) -> tuple[Fault, ...]:
        """Check that all is as it has to be; with *repair*, take away what is not."""
        from sandboxlib.image.fsck import fsck

        return fsck(self, repair=repair)

    def __repr__(self) -> str:
        return f"<Store {self.path}>"


def name_of(entry: Descriptor) -> str:
    """The name of an entry of the index; "" if it has none."""
    return (entry.annotations or {}).get(model.REF_NAME, "")


def _bare(name: str) -> bool:
    """Is it 64 characters that can only be an ID?"""
    return re.fullmatch(r"[0-9a-f]{64}", name, re.ASCII) is not None


__all__ = ["StateError", "Store", "name_of", "partial"]
