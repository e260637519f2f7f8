"""Images for tests: small, and made without any tool."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandboxlib.image import model
from sandboxlib.image.model import Descriptor
from sandboxlib.image.platform import own
from sandboxlib.image.store import Store

from tars import diff_id, entry, tar, zipped

WHEN = "2026-01-02T03:04:05Z"


def layer(number: int, size: int = 2000) -> bytes:
    """A plain tar, another one for each number."""
    return tar(entry(f"file{number}", bytes([number % 251]) * size), entry("shared", b"%d" % number))


def put(
    store: Store,
    name: str = "",
    layers: Sequence[bytes] = (),
    *,
    config: dict[str, Any] | None = None,
    platform: str = "",
    docker: bool = False,
) -> Descriptor:
    """Put an image into *store*, of plain layers, compressed; returns its manifest."""
    plain = list(layers) or [layer(0)]
    architecture, variant = ([*platform.split("/"), ""])[1:3] if platform else (own().architecture, "")
    raw = json.dumps(
        {
            "architecture": architecture,
            **({"variant": variant} if variant else {}),
            "os": "linux",
            "created": WHEN,
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id(each) for each in plain]},
            "history": [{"created_by": "a test"} for _ in plain],
        }
    ).encode()
    kinds = (
        (model.DOCKER_MANIFEST, model.DOCKER_CONFIG, model.DOCKER_LAYER)
        if docker
        else (model.OCI_MANIFEST, model.OCI_CONFIG, model.OCI_LAYER_GZIP)
    )
    blobs = [zipped(each) for each in plain]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": kinds[0],
            "config": {"mediaType": kinds[1], "digest": store.add(raw), "size": len(raw)},
            "layers": [
                {"mediaType": kinds[2], "digest": store.add(blob), "size": len(blob)} for blob in blobs
            ],
        }
    ).encode()
    made = Descriptor(kinds[0], store.add(manifest), len(manifest))
    if name is not None:
        store.tag(name, made)
    return made


def put_index(store: Store, name: str, platforms: Sequence[str]) -> Descriptor:
    """Put an index with an image for each of *platforms*."""
    entries = []
    for number, platform in enumerate(platforms):
        os_, architecture, *variant = platform.split("/")
        made = put(store, "", [layer(number + 10)], platform=platform)
        with store.changing() as known:
            known[:] = [each for each in known if each.digest != made.digest]
        entries.append(
            {
                "mediaType": made.media_type,
                "digest": made.digest,
                "size": made.size,
                "platform": {
                    "os": os_,
                    "architecture": architecture,
                    **({"variant": variant[0]} if variant else {}),
                },
            }
        )
    raw = json.dumps({"schemaVersion": 2, "mediaType": model.OCI_INDEX, "manifests": entries}).encode()
    index = Descriptor(model.OCI_INDEX, store.add(raw), len(raw))
    store.tag(name, index)
    return index


def tree_of(path: Path) -> dict[str, bytes]:
    """All files below *path* by name, with what is in them."""
    return {
        str(Path(top, name).relative_to(path)): Path(top, name).read_bytes()
        for top, _, files in os.walk(path)
        for name in files
        if not Path(top, name).is_symlink()
    }
