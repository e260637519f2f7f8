"""
New images: the configuration, and the manifest that joins it to layers.

Spec: image-spec config.md and manifest.md.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image import model
from sandboxlib.image.compression import SNIFFED, Readable, compressed, sniff
from sandboxlib.image.model import Config, Descriptor, History, ImageConfig, Manifest, RootFS
from sandboxlib.image.pack import Packed
from sandboxlib.image.platform import own, parse_platform
from sandboxlib.image.source import BLOCK, inflated

if TYPE_CHECKING:
    from sandboxlib.image.archive import Archive
    from sandboxlib.image.store import Store

#: RFC 3339, as far as the OCI's schema takes it.
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_CHUNK = 1 << 20
#: Kinds of compression that layers have.
_AS_IT_IS = {"gzip": model.OCI_LAYER_GZIP, "zstd": model.OCI_LAYER_ZSTD}
_NO_TAR = "it is no tar file, nor one that gzip, zstd, xz or bzip2 has compressed"


class Added(NamedTuple):
    """A layer that was put into the store."""

    blob: Descriptor
    diff_id: str


def now(created: object) -> str:
    """Check a time, or take the clock's. Raises: SpecError."""
    if created is None:
        return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if not isinstance(created, str) or not _TIME.fullmatch(created):
        raise SpecError("created", created, "a time such as 2026-01-31T12:00:00Z")
    return created


def config_of(config: Mapping[str, Any] | None, base: Config | None = None) -> Config:
    """
    Read what a caller says of commands, in OCI's names, over what *base* says.

    Raises:
        SpecError: There is no field of this name, or it has another type.
    """
    given: object = config
    if not (given is None or isinstance(given, Mapping)):
        raise SpecError("config", config, 'a mapping with OCI\'s names, such as {"Cmd": ["sh"]}')
    known = {field.encode_name for field in msgspec.structs.fields(Config)}
    for name in config or {}:
        if name not in known:
            raise SpecError("config", name, f"one of {', '.join(sorted(known))}")
    merged = (msgspec.to_builtins(base) if base is not None else {}) | dict(config or {})
    # An image that is told what to run does not do so by what it was told before.
    if config is not None and "Entrypoint" in config and "Cmd" not in config:
        merged.pop("Cmd", None)
    try:
        return msgspec.convert(merged, Config)
    except msgspec.ValidationError as error:
        raise SpecError(
            "config", dict(config or {}), f"as OCI's image configuration has it: {error}"
        ) from None


def add_packed(store: Store, pack: Callable[[Callable[[bytes], object]], Packed]) -> Added:
    """Have *pack* write a plain tar, and put it into *store*, compressed by gzip."""
    found: list[Packed] = []

    def fill(write: Callable[[bytes], object]) -> None:
        with closing(compressed(write, "gzip")) as sink:
            found.append(pack(sink.write))

    digest, size = store.add_written(fill)
    return Added(Descriptor(model.OCI_LAYER_GZIP, digest, size), found[0].diff_id)


def add_archive(store: Store, source: Archive, cancelled: Callable[[], None]) -> Added:
    """
    Put a tar file into *store*: as it is if it is compressed as layers are, else compressed anew.

    Raises:
        ImageError: It is neither a tar file nor a compressed one.
    """
    media_type = _AS_IT_IS.get(sniff(source.peek(SNIFFED)))

    def copy(write: Callable[[bytes], object]) -> None:
        while data := source.read(_CHUNK):
            write(data)

    if media_type is not None:
        digest, size = store.add_written(copy)
        with store.open_blob(digest) as blob:
            return Added(Descriptor(media_type, digest, size), _diff_id_of(blob, cancelled))
    diff_id = ""

    def fill(write: Callable[[bytes], object]) -> None:
        nonlocal diff_id
        with closing(compressed(write, "gzip")) as sink:
            diff_id = _diff_id_of(source, cancelled, sink.write)

    digest, size = store.add_written(fill)
    return Added(Descriptor(model.OCI_LAYER_GZIP, digest, size), diff_id)


def _diff_id_of(
    blob: Readable, cancelled: Callable[[], None], write: Callable[[bytes], object] | None = None
) -> str:
    """
    The digest of what is in a layer's file, uncompressed; *write* gets that.

    Raises:
        ImageError: It is no tar file.
        ViolationError: It is a bomb.
    """
    import hashlib

    found = hashlib.sha256()
    first = b""
    for data in inflated(blob, cancelled=cancelled):
        if len(first) < BLOCK:
            first = (first + data)[:BLOCK]
            _check_tar(first)
        found.update(data)
        if write is not None:
            write(data)
    if len(first) < BLOCK:
        raise ImageError(_NO_TAR)
    return f"sha256:{found.hexdigest()}"


def _check_tar(first: bytes) -> None:
    """Raise ImageError if this is not how a tar file begins, as soon as that is known."""
    if len(first) == BLOCK and first[257:262] != b"ustar" and any(first):
        raise ImageError(_NO_TAR)


def image_of(
    store: Store, layer: Added, config: Config, platform: str | None, created: str, created_by: str
) -> Descriptor:
    """Make an image of one layer."""
    of = own() if platform is None else parse_platform(platform)
    settings = ImageConfig(
        architecture=of.architecture,
        os=of.os,
        variant=of.variant or None,
        created=created,
        config=config,
        rootfs=RootFS(type="layers", diff_ids=(layer.diff_id,)),
        history=(History(created=created, created_by=created_by),),
    )
    return join(store, settings, (layer.blob,))


def with_layer(
    store: Store,
    base: Descriptor,
    layer: Added,
    config: Config,
    *,
    created: str,
    message: str,
    author: str,
) -> Descriptor:
    """Make an image of *base* with one layer more."""
    manifest = store.manifest(base)
    below = store.config(manifest)
    step = History(
        created=created, created_by="sandboxlib commit", comment=message or None, author=author or None
    )
    settings = msgspec.structs.replace(
        below,
        created=created,
        author=author or below.author,
        config=config,
        rootfs=RootFS(type="layers", diff_ids=(*below.rootfs.diff_ids, layer.diff_id)),
        history=(*(below.history or ()), step),
    )
    layers = tuple(_as_oci(blob) for blob in manifest.layers)
    return join(store, settings, (*layers, layer.blob))


def _as_oci(layer: Descriptor) -> Descriptor:
    """The same layer, as a manifest of OCI's names it."""
    names = {
        model.DOCKER_LAYER: model.OCI_LAYER_GZIP,
        model.DOCKER_LAYER_TAR: model.OCI_LAYER,
        model.DOCKER_LAYER_ZSTD: model.OCI_LAYER_ZSTD,
    }
    return msgspec.structs.replace(layer, media_type=names.get(layer.media_type, layer.media_type))


def join(store: Store, settings: ImageConfig | bytes, layers: tuple[Descriptor, ...]) -> Descriptor:
    """Put a configuration, which may be there as bytes, and a manifest into *store*."""
    raw = settings if isinstance(settings, bytes) else model.encode(settings)
    config = Descriptor(model.OCI_CONFIG, store.add(raw), len(raw))
    raw = model.encode(
        Manifest(schema_version=2, media_type=model.OCI_MANIFEST, config=config, layers=layers)
    )
    return Descriptor(model.OCI_MANIFEST, store.add(raw), len(raw))


__all__ = ["Added", "add_archive", "add_packed", "config_of", "image_of", "now", "with_layer"]
