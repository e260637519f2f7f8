"""
Images in files: OCI layouts, as a folder or a tar, and what ``docker save`` makes.

Spec: image-spec image-layout.md; Docker's image specification 1.2, "Combined Image JSON + Filesystem
Changeset Format".
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol

import msgspec

from sandboxlib.errors import ImageError, KernelError, SpecError, ViolationError
from sandboxlib.image import model
from sandboxlib.image.compression import decompressed
from sandboxlib.image.making import join
from sandboxlib.image.model import Descriptor, Index, Manifest
from sandboxlib.image.store import name_of
from sandboxlib.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandboxlib.image.locks import Cancelled
    from sandboxlib.image.store import Store

_CHUNK = 1 << 20
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
#: Names in an archive; an image has a few dozen.
_MOST_MEMBERS = 100_000


class DockerImage(msgspec.Struct, rename="pascal"):
    """An entry of manifest.json."""

    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


# ---- saving -----------------------------------------------------------------------------------------


def save(
    store: Store, chosen: Sequence[tuple[str, Descriptor]], path: str, format_: str, cancelled: Cancelled
) -> None:
    """
    Write images to a file, or a folder for ``oci-dir``.

    Args:
        store: Where they are.
        chosen: Each a name, or "" for none, and its manifest.
        path: What is made; it must not be there if it is to be a folder.
        format_: ``oci``, ``oci-dir`` or ``docker``.
        cancelled: Called every now and then; raises to give up.

    Raises:
        ImageError: An image is not whole.
        SpecError: The folder is there.
        KernelError: It cannot be written.
    """
    write = {"oci": _save_oci, "oci-dir": _save_folder, "docker": _save_docker}[format_]
    try:
        write(store, chosen, path, cancelled)
    except OSError as error:
        if isinstance(error, KernelError):
            raise
        raise KernelError(error.errno or 0, f'open("{path}")', "save an image") from None


def _index(chosen: Sequence[tuple[str, Descriptor]]) -> bytes:
    entries = []
    for name, image in chosen:
        annotations = None
        if name:
            # Two keys: what the specification wants, and the whole name that containerd reads.
            tag = Reference.parse(name).tag or name
            annotations = {"io.containerd.image.name": name, model.REF_NAME: name if len(chosen) > 1 else tag}
        entries.append(msgspec.structs.replace(image, annotations=annotations))
    return model.encode(Index(2, tuple(entries), media_type=model.OCI_INDEX))


def _blobs_of(store: Store, chosen: Sequence[tuple[str, Descriptor]]) -> list[str]:
    found: set[str] = set()
    for _, image in chosen:
        manifest = store.manifest(image)
        found |= {image.digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)}
    return sorted(found)


def _save_folder(
    store: Store, chosen: Sequence[tuple[str, Descriptor]], path: str, cancelled: Cancelled
) -> None:
    if os.path.lexists(path):
        raise SpecError("path", path, "a folder that is not there yet")
    os.mkdir(path)
    for digest in _blobs_of(store, chosen):
        algorithm, _, value = digest.partition(":")
        os.makedirs(os.path.join(path, "blobs", algorithm), exist_ok=True)
        with (
            store.open_blob(digest) as source,
            open(os.path.join(path, "blobs", algorithm, value), "wb") as file,
        ):
            _copy(source, file.write, cancelled)
    for name, raw in (("oci-layout", _LAYOUT), ("index.json", _index(chosen))):
        with open(os.path.join(path, name), "wb") as file:
            file.write(raw)


@contextmanager
def _new_tar(path: str) -> Iterator[tarfile.TarFile]:
    """A tar file that is there when it is whole."""
    made = f"{path}.{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with tarfile.open(made, "w", format=tarfile.PAX_FORMAT) as tar:
            yield tar
        os.replace(made, path)
    except BaseException:
        if os.path.exists(made):
            os.unlink(made)
        raise


def _put(tar: tarfile.TarFile, name: str, size: int, source: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, source)


def _put_raw(tar: tarfile.TarFile, name: str, raw: bytes) -> None:
    _put(tar, name, len(raw), io.BytesIO(raw))


def _save_oci(
    store: Store, chosen: Sequence[tuple[str, Descriptor]], path: str, cancelled: Cancelled
) -> None:
    with _new_tar(path) as tar:
        for digest in _blobs_of(store, chosen):
            cancelled()
            with store.open_blob(digest) as source:
                _put(tar, f"blobs/{digest.replace(':', '/')}", os.fstat(source.fileno()).st_size, source)
        _put_raw(tar, "index.json", _index(chosen))
        _put_raw(tar, "oci-layout", _LAYOUT)


def _save_docker(
    store: Store, chosen: Sequence[tuple[str, Descriptor]], path: str, cancelled: Cancelled
) -> None:
    images: dict[str, DockerImage] = {}
    written: set[str] = set()
    with _new_tar(path) as tar:
        for name, image in chosen:
            manifest = store.manifest(image)
            config = store.config(manifest)
            value = manifest.config.digest.partition(":")[2]
            if name and not Reference.parse(name).digest:
                tags: tuple[str, ...] = (_tagged(name),)
            else:
                tags = ()
            if value in images:
                images[value].repo_tags = (*(images[value].repo_tags or ()), *tags)
                continue
            _put_raw(tar, f"{value}.json", store.read(manifest.config.digest, model.MAX_CONFIG))
            layers = []
            for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True):
                cancelled()
                layers.append(f"{diff_id.partition(':')[2]}/layer.tar")
                if layers[-1] not in written:
                    written.add(layers[-1])
                    _put_plain(tar, layers[-1], store, layer, cancelled)
            images[value] = DockerImage(f"{value}.json", tuple(layers), tags)
        _put_raw(tar, "manifest.json", msgspec.json.encode(list(images.values())))


def _tagged(name: str) -> str:
    """A name as Docker writes it there: short, but with its tag."""
    reference = Reference.parse(name)
    familiar = reference.familiar
    return familiar if familiar.endswith(f":{reference.tag}") else f"{familiar}:{reference.tag}"


def _put_plain(
    tar: tarfile.TarFile, name: str, store: Store, layer: Descriptor, cancelled: Cancelled
) -> None:
    """Put a layer there, uncompressed: how long it is has to be known before."""
    size = 0
    with store.open_blob(layer.digest) as blob, decompressed(blob) as stream:
        while piece := stream.read():
            cancelled()
            size += len(piece)
    with store.open_blob(layer.digest) as blob, decompressed(blob) as stream:
        _put(tar, name, size, _Pieces(stream.read))  # type: ignore[arg-type]


class _Pieces:
    """A file to read from, of what a function returns piece by piece."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._next = read
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Read *size* bytes; fewer at the end."""
        parts = []
        while size and (piece := self._rest or self._next()):
            parts.append(piece[:size])
            self._rest = piece[size:]
            size -= len(parts[-1])
        return b"".join(parts)


def _copy(source: IO[bytes], write: Callable[[bytes], object], cancelled: Cancelled) -> None:
    while data := source.read(_CHUNK):
        cancelled()
        write(data)


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
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
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
        return member if member is not None and member.isfile() else None

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def open(self, name: str) -> IO[bytes]:
        member = self._find(name)
        file = None if member is None else self._tar.extractfile(member)
        if file is None:
            raise ImageError(f"{name[:200]!r} is not in it", self._path)
        return file


def load(store: Store, path: str, cancelled: Cancelled) -> list[tuple[str, Descriptor]]:
    """
    Bring the images of an archive into a store.

    Returns:
        The name, or "", and the manifest of each.

    Raises:
        ImageError: It is no archive of images, or not whole; no name was given to anything.
        ViolationError: It is hostile.
    """
    try:
        if os.path.isdir(path):
            with store.growing():
                return _load(store, _Folder(path), path, cancelled)
        with _plain_tar(path, cancelled) as tar, store.growing():
            return _load(store, _Tar(tar, path), path, cancelled)
    except OSError as error:
        if isinstance(error, KernelError):
            raise
        raise KernelError(error.errno or 0, f'open("{path}")', "load an image") from None


@contextmanager
def _plain_tar(path: str, cancelled: Cancelled) -> Iterator[tarfile.TarFile]:
    """A tar file whose members can be read in any order."""
    import tempfile

    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(0)
        if not head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            with _tar(file, path) as tar:
                yield tar
            return
        # Whole images, compressed once more: what is in it cannot be gone to and fro in.
        with tempfile.TemporaryFile(prefix="sandboxlib-") as plain, decompressed(file) as stream:
            while piece := stream.read():
                cancelled()
                plain.write(piece)
            plain.seek(0)
            with _tar(plain, path) as tar:
                yield tar


def _tar(file: IO[bytes], path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ImageError(f"it is neither a folder nor a tar file of images: {error}", path) from None


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
            raw = file.read(limit + 1)
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(f"{name} cannot be read: {error}", path) from None
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
    for entry in index.manifests:
        image = msgspec.structs.replace(entry, annotations=None)
        _bring(store, source, image, path, cancelled, 0)
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
    store: Store, source: Source, found: Descriptor, path: str, cancelled: Cancelled, depth: int
) -> None:
    """Bring a manifest or an index with all that it needs; of an index, what is there."""
    if depth > 4:
        raise ImageError("it has an index of indexes without an end", path)
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
        _bring(store, source, inner, path, cancelled, depth + 1)


def _file(blob: Descriptor) -> str:
    return f"blobs/{model.check_digest(blob.digest, 'blob').replace(':', '/')}"


def _blob(store: Store, source: Source, blob: Descriptor, path: str, cancelled: Cancelled) -> None:
    name = _file(blob)

    def copy(sink: Any, offset: int) -> None:
        try:
            with source.open(name) as file:
                file.seek(offset)
                _copy(file, sink.write, cancelled)
        except (tarfile.TarError, EOFError) as error:
            raise ImageError(f"{name} cannot be read: {error}", path) from None

    store.fetch(blob, copy, cancelled=cancelled)


def _load_docker(
    store: Store, source: Source, path: str, cancelled: Cancelled
) -> list[tuple[str, Descriptor]]:
    raw = _read(source, "manifest.json", model.MAX_MANIFEST, path)
    images = model.decode(raw, tuple[DockerImage, ...], f"{path}: manifest.json")
    found: list[tuple[str, Descriptor]] = []
    for image in images:
        raw = _read(source, image.config, model.MAX_CONFIG, path)
        config = model.decode_config(raw, f"{path}: {image.config[:200]}")
        if len(config.rootfs.diff_ids) != len(image.layers):
            raise ImageError(
                f"{image.config[:200]!r} has {len(config.rootfs.diff_ids)} layers, and manifest.json "
                f"{len(image.layers)}",
                path,
            )
        layers = [
            _layer(store, source, name, diff_id, path, cancelled)
            for name, diff_id in zip(image.layers, config.rootfs.diff_ids, strict=True)
        ]
        made = join(store, raw, tuple(layers))
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
    plain = hashlib.new(diff_id.partition(":")[0])

    def copy(write: Callable[[bytes], object]) -> None:
        with source.open(name) as file:
            _copy(file, write, cancelled)

    try:
        digest, size = store.add_written(copy)
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(f"{name} cannot be read: {error}", path) from None
    if digest == diff_id:
        return Descriptor(model.OCI_LAYER, digest, size)
    with store.open_blob(digest) as blob:
        head = blob.read(4)
        blob.seek(0)
        with decompressed(blob) as stream:
            while piece := stream.read():
                cancelled()
                plain.update(piece)
    if plain.hexdigest() != diff_id.partition(":")[2]:
        raise ImageError(f"{name[:200]!r} is not the layer that its configuration says", path)
    kind = model.OCI_LAYER_GZIP if head.startswith(b"\x1f\x8b") else model.OCI_LAYER_ZSTD
    return Descriptor(kind, digest, size)


__all__ = ["load", "save"]
