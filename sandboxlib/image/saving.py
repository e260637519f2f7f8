"""
Images written to files: OCI layouts, as a folder or a tar, and what ``docker load`` reads.

Spec: image-spec image-layout.md; Docker's image specification 1.2, "Combined Image JSON + Filesystem
Changeset Format".
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING

import msgspec

from sandboxlib.errors import SpecError
from sandboxlib.image import model
from sandboxlib.image.compression import decompressed
from sandboxlib.image.model import Descriptor, DockerImage, Index
from sandboxlib.kernel.syscall import failed
from sandboxlib.reference import Reference

if TYPE_CHECKING:
    from sandboxlib.image.locks import Cancelled
    from sandboxlib.image.store import Store

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


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
        with ExitStack() as kept:
            # Nobody removes what is being written.
            for _, image in chosen:
                kept.enter_context(store.lease(image))
            write(store, chosen, path.rstrip("/"), cancelled)
    except OSError as error:
        raise failed(error, f'open("{path}")', "save an image") from None


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
    made = f"{path}.{os.getpid()}-{os.urandom(4).hex()}"
    os.mkdir(made)
    try:
        _fill_folder(store, chosen, made, cancelled)
        os.rename(made, path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _fill_folder(
    store: Store, chosen: Sequence[tuple[str, Descriptor]], path: str, cancelled: Cancelled
) -> None:
    for digest in _blobs_of(store, chosen):
        algorithm, _, value = digest.partition(":")
        os.makedirs(os.path.join(path, "blobs", algorithm), exist_ok=True)
        with (
            store.open_blob(digest) as source,
            open(os.path.join(path, "blobs", algorithm, value), "wb") as file,
        ):
            copy(source, file.write, cancelled)
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
    digests = _blobs_of(store, chosen)
    with _new_tar(path) as tar:
        # skopeo gives folders that are not in it to root, which it can only as root.
        for name in ("blobs", *sorted({f"blobs/{digest.partition(':')[0]}" for digest in digests})):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for digest in digests:
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
        while piece := stream.read(1 << 20):
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


def copy(source: IO[bytes], write: Callable[[bytes], object], cancelled: Cancelled) -> None:
    """Write all of *source*, piece by piece."""
    while data := source.read(1 << 20):
        cancelled()
        write(data)


__all__ = ["copy", "save"]
