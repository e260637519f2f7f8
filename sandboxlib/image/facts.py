"""What is known of an image, gathered from its manifest and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from sandboxlib.image.model import Descriptor
    from sandboxlib.image.store import Store


class Layer(NamedTuple):
    """
    A layer.

    Attributes:
        digest: Of the file that is sent.
        diff_id: Of what is in it, uncompressed.
        size: Bytes that are sent.
        media_type: Such as ``application/vnd.oci.image.layer.v1.tar+gzip``.
    """

    digest: str
    diff_id: str
    size: int
    media_type: str


class History(NamedTuple):
    """
    One step of how an image was made.

    Attributes:
        created: When, as RFC 3339 has it, or empty.
        created_by: The command, or empty.
        author: Who, or empty.
        comment: Why, or empty.
        empty_layer: It changed no file, and so has no layer.
    """

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class Facts(NamedTuple):
    """What an image is. Attributes: as `sandboxlib.images.AnyImage`."""

    reference: str
    digest: str
    id: str
    size: int
    layers: tuple[Layer, ...]
    config: Mapping[str, Any]
    history: tuple[History, ...]
    platform: str
    created: str


def facts(store: Store, reference: str, image: Descriptor) -> Facts:
    """
    Gather them.

    Args:
        store: Where it is.
        reference: The name to show.
        image: Its manifest, for one platform.

    Raises:
        ImageError: It is not whole, or not an image.
    """
    manifest = store.manifest(image)
    config = store.config(manifest)
    layers = tuple(
        Layer(layer.digest, diff_id, layer.size, layer.media_type)
        for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True)
    )
    history = tuple(
        History(
            step.created or "",
            step.created_by or "",
            step.author or "",
            step.comment or "",
            bool(step.empty_layer),
        )
        for step in config.history or ()
    )
    platform = "/".join(filter(None, (config.os, config.architecture, config.variant)))
    # As plain lists and mappings.
    shown = {} if config.config is None else msgspec.json.decode(msgspec.json.encode(config.config))
    return Facts(
        reference,
        image.digest,
        manifest.config.digest,
        sum(layer.size for layer in layers),
        layers,
        shown,
        history,
        platform,
        config.created or "",
    )


__all__ = ["Facts", "History", "Layer", "facts"]
