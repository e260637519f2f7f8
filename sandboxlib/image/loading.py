"""
Images read from files: OCI layouts, as a folder or a tar, and what ``docker save`` makes.

Spec: image-spec image-layout.md; Docker's image specification 1.2, "Combined Image JSON + Filesystem
Changeset Format".
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable
from contextlib import closing, contextmanager
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol

import msgspec

from sandboxlib.errors import ImageError, SpecError, ViolationError
from sandboxlib.image import model
from sandboxlib.image.archive import Archive, Given, opened
from sandboxlib.image.compression import SNIFFED, compressed, sniff
from sandboxlib.image.making import join
from sandboxlib.image.model import Descriptor, DockerImage, Index, Manifest
from sandboxlib.image.saving import copy
from sandboxlib.image.source import inflated
from sandboxlib.image.store import name_of
from sandboxlib.kernel.syscall import failed
from sandboxlib.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandboxlib.image.locks import Cancelled
    from sandboxlib.image.store import Store

_CHUNK = 1 << 20
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
#: Names in an archive; an image has a few dozen.
_MOST_MEMBERS = 100_000
#: Bytes that tarfile may want at once: for headers, since files are read by pieces of a megabyte.
_MOST_AT_ONCE = 4 << 20
_KINDS = {"none": model.OCI_LAYER, "gzip": model.OCI_LAYER_GZIP, "zstd": model.OCI_LAYER_ZSTD}
#: What tarfile raises where a tar file is damaged or hostile.
_NOT_A_TAR = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)


# ---- loading ----------------------------------------------------------------------------------------


class Source(Protocol):
    """An archive to read from."""

    def has(self, name: str) -> bool:
        """Is there a file of this name?"""

    def open(self, name: str) -> IO[bytes]:
        """Open it. Raises: ImageError: It is not there."""


class _Folder:
    def __init__(self, path: str) -> None:
        self._path = path

    def has(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self._path, name))

    def open(self, name: str) -> BinaryIO:
        try:
            # A link may lead elsewhere: what is read is checked against its digest, or is the index.
            return open(os.path.join(self._path, name), "rb")
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror}", self._path) from None


class _Tar:
    def __init__(self, tar: tarfile.TarFile, path: str) -> None:
        self._tar = tar
        self._path = path
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            for number, member in enumerate(tar):
                if number > _MOST_MEMBERS:
                    raise ViolationError(f"it has more than {_MOST_MEMBERS} names", path)
                self._members[os.path.normpath(member.name)] = member
        except _NOT_A_TAR as error:
            raise ImageError(f"it is not a tar file as it has to be: {error}", path) from None

    def _find(self, name: str) -> tarfile.TarInfo | None:
        member = self._members.get(os.path.normpath(name))
        # docker save of old links layers that several images share.
        for _ in range(8):
            if member is None or not (member.issym() or member.islnk()):
                break
            target = member.linkname
            if member.issym():
                target = os.path.join(os.path.dirname(member.name), target)
            member = self._members.get(os.path.normpath(target))
        if member is not None and member.issparse():
            raise ViolationError(f"{name[:200]!r} has holes, which fill the disk out of nothing", self._path)
        return member if member is not None and member.isfile() else None

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def open(self, name: str) -> IO[bytes]:
        member = self._find(name)
        file = None if member is None else self._tar.extractfile(member)
        if file is None:
            raise ImageError(f"{name[:200]!r} is not in it", self._path)
        return file


def load(store: Store, source: Given, cancelled: Cancelled) -> list[tuple[str, Descriptor]]:
    """
    Bring the images of an archive into a store.

    Args:
        store: Where to.
        source: A folder or an archive, as `sandboxlib.image.archive.opened` takes it.
        cancelled: Called now and then; raises to give up.

    Returns:
        The name, or "", and the manifest of each.

    Raises:
        ImageError: It is no archive of images, or not whole; no name was given to anything.
        ViolationError: It is hostile.
    """
    path = ""
    try:
        with opened(source, "path", cancelled) as given:
            if isinstance(given, str):
                path = given
                with store.growing():
                    return _load(store, _Folder(path), path, cancelled)
            path = given.name
            with _plain_tar(store, given, cancelled) as tar, store.growing():
                return _load(store, _Tar(tar, path), path, cancelled)
    except OSError as error:
        raise failed(error, f'open("{path}")', "load an image") from None


@contextmanager
def _plain_tar(store: Store, given: Archive, cancelled: Cancelled) -> Iterator[tarfile.TarFile]:
    """A tar file whose members can be read in any order."""
    path = given.name
    if sniff(given.peek(SNIFFED)) == "none" and (file := given.whole()) is not None:
        with _tar(file, path) as tar:
            yield tar
        return
    # Compressed as a whole, or from a pipe: what is in it cannot be gone to and fro in.
    with store.spooled(inflated(given, path, cancelled)) as plain, _tar(plain, path) as tar:
        yield tar


def _tar(file: IO[bytes], path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=_Careful(file, path), mode="r:")  # type: ignore[call-overload,no-any-return]
    except _NOT_A_TAR as error:
        raise ImageError(f"it is neither a folder nor a tar file of images: {error}", path) from None


class _Careful:
    """A file of which nobody reads much at once, whatever a header says."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file = file
        self._path = path
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Read *size* bytes."""
        if not 0 <= size <= _MOST_AT_ONCE:
            raise ViolationError("it has a header that is larger than any header is", self._path)
        return self._file.read(size)


def _load(store: Store, source: Source, path: str, cancelled: Cancelled) -> list[tuple[str, Descriptor]]:
    # What newer Dockers save is both; the layout has more in it.
    if source.has("index.json"):
        found = _load_layout(store, source, path, cancelled)
    elif source.has("manifest.json"):
        found = _load_docker(store, source, path, cancelled)
    else:
        raise ImageError("it has neither an index.json, as OCI's, nor a manifest.json, as Docker's", path)
    for name, image in found:
        store.tag(name, image)
    return found


def _read(source: Source, name: str, limit: int, path: str) -> bytes:
    try:
        with source.open(name) as file:
            raw = b""
            while len(raw) <= limit and (piece := file.read(min(_CHUNK, limit + 1 - len(raw)))):
                raw += piece
    except _NOT_A_TAR as error:
        raise ImageError(f"{name[:200]!r} cannot be read: {error}", path) from None
    if len(raw) > limit:
        raise ImageError(f"{name} has more than {limit} bytes", path)
    return raw


def _load_layout(
    store: Store, source: Source, path: str, cancelled: Cancelled
) -> list[tuple[str, Descriptor]]:
    index = model.decode_manifest(
        _read(source, "index.json", model.MAX_MANIFEST, path), model.OCI_INDEX, f"{path}: index.json"
    )
    if not isinstance(index, Index):
        raise ImageError("its index.json is none", path)
    found = []
    brought: set[str] = set()
    for entry in index.manifests:
        image = msgspec.structs.replace(entry, annotations=None)
        _bring(store, source, image, path, cancelled, brought)
        found.append((_name(entry), image))
    if not found:
        raise ImageError("there is no image in it", path)
    return found


def _name(entry: Descriptor) -> str:
    """The name of an entry: whole if it is one, "" if it is but a tag of something."""
    for text in ((entry.annotations or {}).get("io.containerd.image.name", ""), name_of(entry)):
        if not text:
            continue
        try:
            reference = Reference.parse(text)
        except SpecError:
            continue
        # A layout of one image has its tag there alone.
        if "/" in text or ":" in text or text == reference.familiar != "latest":
            return str(reference)
    return ""


def _bring(
    store: Store,
    source: Source,
    found: Descriptor,
    path: str,
    cancelled: Cancelled,
    brought: set[str],
    depth: int = 0,
) -> None:
    """Bring a manifest or an index with all that it needs, once; of an index, what is there."""
    if depth > 4:
        raise ImageError("it has an index of indexes without an end", path)
    if found.digest in brought:
        return
    brought.add(found.digest)
    cancelled()
    _blob(store, source, found, path, cancelled)
    document = store.document(found)
    if isinstance(document, Manifest):
        for blob in (document.config, *document.layers):
            _blob(store, source, blob, path, cancelled)
        if document.config.media_type in model.CONFIGS:
            store.config(document)
        return
    here = [inner for inner in document.manifests if source.has(_file(inner))]
    if not here:
        raise ImageError(f"of {found.digest} no image is in it", path)
    for inner in here:
        _bring(store, source, inner, path, cancelled, brought, depth + 1)


def _file(blob: Descriptor) -> str:
    return f"blobs/{model.check_digest(blob.digest, 'blob').replace(':', '/')}"


def _blob(store: Store, source: Source, blob: Descriptor, path: str, cancelled: Cancelled) -> None:
    name = _file(blob)

    def append(sink: Any, offset: int) -> None:
        try:
            with source.open(name) as file:
                file.seek(offset)
                copy(file, sink.write, cancelled)
        except _NOT_A_TAR as error:
            raise ImageError(f"{name} cannot be read: {error}", path) from None

    store.fetch(blob, append, cancelled=cancelled)


def _load_docker(
    store: Store, source: Source, path: str, cancelled: Cancelled
) -> list[tuple[str, Descriptor]]:
    raw = _read(source, "manifest.json", model.MAX_MANIFEST, path)
    images = model.decode(raw, tuple[DockerImage, ...], f"{path}: manifest.json")
    found: list[tuple[str, Descriptor]] = []
    # Images share layers, each of which is read once.
    known: dict[tuple[str, str], Descriptor] = {}
    for image in images:
        raw = _read(source, image.config, model.MAX_CONFIG, path)
        config = model.decode_config(raw, f"{path}: {image.config[:200]}")
        if len(config.rootfs.diff_ids) != len(image.layers):
            raise ImageError(
                f"{image.config[:200]!r} has {len(config.rootfs.diff_ids)} layers, and manifest.json "
                f"{len(image.layers)}",
                path,
            )
        layers = tuple(zip(image.layers, config.rootfs.diff_ids, strict=True))
        for name, diff_id in layers:
            if (name, diff_id) not in known:
                known[name, diff_id] = _layer(store, source, name, diff_id, path, cancelled)
        made = join(store, raw, tuple(known[each] for each in layers))
        for tag in image.repo_tags or ():
            try:
                found.append((str(Reference.parse(tag)), made))
            except SpecError as error:
                raise ImageError(f"a name in it is none: {error}", path) from None
        if not image.repo_tags:
            found.append(("", made))
    if not found:
        raise ImageError("there is no image in it", path)
    return found


def _layer(
    store: Store, source: Source, name: str, diff_id: str, path: str, cancelled: Cancelled
) -> Descriptor:
    """Put a layer there as it comes; it is plain almost always. What is in it has to be *diff_id*."""
    found = hashlib.new(diff_id.partition(":")[0])
    try:
        with source.open(name) as file:
            kind = sniff(file.read(SNIFFED))

        def fill(write: Callable[[bytes], object]) -> None:
            with source.open(name) as file:
                if kind in _KINDS:
                    copy(file, write, cancelled)
                    return
                # No layer may be compressed so.
                with closing(compressed(write, "gzip")) as sink:
                    for piece in inflated(file, f"{path}: {name[:200]}", cancelled):
                        sink.write(piece)

        digest, size = store.add_written(fill)
    except _NOT_A_TAR as error:
        raise ImageError(f"{name[:200]!r} cannot be read: {error}", path) from None
    if digest == diff_id:
        return Descriptor(model.OCI_LAYER, digest, size)
    with store.open_blob(digest) as blob:
        for piece in inflated(blob, f"{path}: {name[:200]}", cancelled):
            found.update(piece)
    if found.hexdigest() != diff_id.partition(":")[2]:
        raise ImageError(f"{name[:200]!r} is not the layer that its configuration says", path)
    return Descriptor(_KINDS.get(kind, model.OCI_LAYER_GZIP), digest, size)


__all__ = ["load"]
