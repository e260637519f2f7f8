"""
The documents of an image, as OCI's specification and Docker's schema 2 have them.

Whatever is read stays as it came: its digest is that of its bytes. Fields that are not known here
are passed over.

Spec: image-spec descriptor.md, manifest.md, image-index.md, config.md; Docker's image manifest
version 2, schema 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from sandboxlib.errors import ImageError

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"

MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_LIST)
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)

#: Bytes of a manifest or an index: what registries take.
MAX_MANIFEST = 4 << 20
#: Bytes of a configuration.
MAX_CONFIG = 8 << 20
#: The annotation that names an image in a layout.
REF_NAME = "org.opencontainers.image.ref.name"

T = TypeVar("T")


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """The machine that an image is for."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: tuple[str, ...] | None = msgspec.field(default=None, name="os.features")

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What a document says of another one, or of a blob."""

    media_type: str
    digest: str
    size: int
    urls: tuple[str, ...] | None = None
    annotations: dict[str, str] | None = None
    data: str | None = None
    artifact_type: str | None = None
    platform: Platform | None = None

    def __hash__(self) -> int:
        return hash(self.digest)


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One image for one platform."""

    schema_version: int
    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Images for several platforms, or what is in a layout."""

    schema_version: int
    manifests: tuple[Descriptor, ...]
    media_type: str | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Health(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """How Docker asks whether what runs is well."""

    test: tuple[str, ...] | None = None
    interval: int | None = None
    timeout: int | None = None
    start_period: int | None = None
    start_interval: int | None = None
    retries: int | None = None


class Config(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """What an image says of the commands that run in it."""

    user: str | None = None
    exposed_ports: dict[str, Any] | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    args_escaped: bool | None = None
    healthcheck: Health | None = None
    shell: tuple[str, ...] | None = None
    on_build: tuple[str, ...] | None = None


class RootFS(msgspec.Struct, frozen=True):
    """The layers, by what is in them uncompressed, from the lowest."""

    type: str
    diff_ids: tuple[str, ...]


class History(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step of how an image was made."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class ImageConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """The configuration of an image."""

    architecture: str
    os: str
    rootfs: RootFS
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: tuple[str, ...] | None = msgspec.field(default=None, name="os.features")
    created: str | None = None
    author: str | None = None
    config: Config | None = None
    history: tuple[History, ...] | None = None


class DockerImage(msgspec.Struct, rename="pascal"):
    """An entry of the manifest.json in what ``docker save`` makes."""

    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


class _Kind(msgspec.Struct, rename="camel"):
    """What tells the kinds of documents apart."""

    schema_version: int = 0
    media_type: str | None = None
    manifests: Any = msgspec.UNSET
    config: Any = msgspec.UNSET
    layers: Any = msgspec.UNSET
    fs_layers: Any = None


#: Lists that may be null: what is written in Go has it so where a list is empty.
_LISTS = frozenset({"manifests", "layers", "diff_ids", "Layers"})


def decode(raw: bytes, kind: type[T], what: str) -> T:
    """
    Read a document.

    Raises:
        ImageError: It is not JSON, or not of this kind; says where.
    """
    try:
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.ValidationError:
            if b"null" not in raw:
                raise
            return msgspec.convert(_listed(msgspec.json.decode(raw)), kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ImageError(f"it is not as it has to be: {error}", what) from None


def _listed(value: Any) -> Any:
    """The same, with empty lists where a list is null."""
    if isinstance(value, list):
        return [_listed(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: [] if each is None and name in _LISTS else _listed(each) for name, each in value.items()}


def decode_manifest(raw: bytes, media_type: str = "", what: str = "manifest") -> Manifest | Index:
    """
    Read a manifest or an index.

    Args:
        raw: Its bytes.
        media_type: What the sender calls it; may be empty.
        what: What errors call it.

    Raises:
        ImageError: It is neither, or could be read as both; of schema 1, which has been out of use
            since 2017; or too large.

    Spec: image-spec manifest.md and image-index.md, mediaType; CVE-2021-41190 for what is both.
    """
    if len(raw) > MAX_MANIFEST:
        raise ImageError(f"it has {len(raw)} bytes, and a manifest at most {MAX_MANIFEST}", what)
    kind = decode(raw, _Kind, what)
    if kind.schema_version == 1 or kind.fs_layers is not None or media_type.startswith(_SCHEMA_1):
        raise ImageError(
            "it is of Docker's old schema 1, which nothing makes any more: push the image anew with a "
            "current Docker or skopeo",
            what,
        )
    if kind.schema_version != 2:
        raise ImageError(f"its schemaVersion is {kind.schema_version}, and only 2 is known", what)
    said = {kind.media_type, media_type}
    is_index, is_manifest = (
        any(field is not msgspec.UNSET for field in fields)
        for fields in ((kind.manifests,), (kind.config, kind.layers))
    )
    if is_index and is_manifest:
        raise ImageError("it can be read as a manifest and as an index: whoever made it wants both", what)
    if is_index:
        if said.intersection(MANIFESTS):
            raise ImageError("it says that it is a manifest, and is an index", what)
        return _checked(decode(raw, Index, what), what)
    if said.intersection(INDEXES):
        raise ImageError("it says that it is an index, and is none", what)
    return _checked(decode(raw, Manifest, what), what)


def _checked(document: Manifest | Index, what: str) -> Manifest | Index:
    found = document.manifests if isinstance(document, Index) else (document.config, *document.layers)
    for descriptor in found:
        check_digest(descriptor.digest, what)
        if descriptor.size < 0:
            raise ImageError(f"a size in it is negative: {descriptor.size}", what)
    return document


def check_digest(digest: str, what: str) -> str:
    """
    Check that *digest* is one that can be checked: by SHA-256 or SHA-512.

    Raises:
        ImageError: It is not.
    """
    algorithm, _, value = digest.partition(":")
    lengths = {"sha256": 64, "sha512": 128}
    if len(value) != lengths.get(algorithm) or value.strip("0123456789abcdef"):
        raise ImageError(f"it has a digest that is none: {digest[:150]!r}", what)
    return digest


def decode_config(raw: bytes, what: str = "configuration") -> ImageConfig:
    """
    Read the configuration of an image.

    Raises:
        ImageError: It is none.
    """
    if len(raw) > MAX_CONFIG:
        raise ImageError(f"it has {len(raw)} bytes, and a configuration at most {MAX_CONFIG}", what)
    config = decode(raw, ImageConfig, what)
    for digest in config.rootfs.diff_ids:
        check_digest(digest, what)
    return config


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """
    What each layer is together with those below it: on others it might unpack to another tree.

    Spec: image-spec config.md, "Layer ChainID".
    """
    found: list[str] = []
    for diff_id in diff_ids:
        found.append(digest_of(f"{found[-1]} {diff_id}".encode()) if found else diff_id)
    return tuple(found)


def encode(value: msgspec.Struct) -> bytes:
    """A document as bytes: the same for the same value."""
    return msgspec.json.encode(value)


def digest_of(raw: bytes) -> str:
    """The digest of some bytes."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


__all__ = [
    "CONFIGS",
    "INDEXES",
    "MANIFESTS",
    "Config",
    "Descriptor",
    "DockerImage",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "Platform",
    "RootFS",
    "chain_ids",
    "check_digest",
    "decode",
    "decode_config",
    "decode_manifest",
    "digest_of",
    "encode",
]
