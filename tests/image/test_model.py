"""Manifests, indexes and configurations: what is read, what is not, and with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxlib.errors import ImageError
from sandboxlib.image import model
from sandboxlib.image.model import Config, Index, Manifest, decode_config, decode_manifest, digest_of, encode

ZEROS, ONES = "sha256:" + "0" * 64, "sha256:" + "1" * 64
CONFIG = {"mediaType": model.OCI_CONFIG, "digest": ZEROS, "size": 7}
LAYER = {"mediaType": model.OCI_LAYER_GZIP, "digest": ONES, "size": 9}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}
INDEX: dict[str, Any] = {"schemaVersion": 2, "manifests": [LAYER | {"mediaType": model.OCI_MANIFEST}]}
IMAGE: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": [ONES]},
}


def raw(document: object) -> bytes:
    return json.dumps(document).encode()


# ---- what is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", [None, *model.MANIFESTS])
@pytest.mark.parametrize("said", ["", *model.MANIFESTS, "application/json"])
def test_a_manifest_is_read_as_either_of_its_kinds(media_type: str | None, said: str) -> None:
    found = decode_manifest(raw(MANIFEST | ({"mediaType": media_type} if media_type else {})), said)
    assert isinstance(found, Manifest)
    assert (found.config.digest, [layer.digest for layer in found.layers]) == (ZEROS, [ONES])
    assert found.media_type == media_type


@pytest.mark.parametrize("media_type", model.INDEXES)
def test_an_index_is_told_from_a_manifest_by_what_is_in_it(media_type: str) -> None:
    for document, said in ((INDEX, ""), (INDEX, media_type), (INDEX | {"mediaType": media_type}, "")):
        assert isinstance(decode_manifest(raw(document), said), Index)


def test_fields_that_are_not_known_do_no_harm() -> None:
    found = decode_manifest(raw(MANIFEST | {"future": {"a": [1]}, "config": CONFIG | {"also": True}}))
    assert isinstance(found, Manifest)
    config = decode_config(
        raw(IMAGE | {"config": {"User": "me", "StopTimeout": 3}, "container_config": {"Cmd": "x"}})
    )
    assert config.config == Config(user="me")


@pytest.mark.parametrize(
    ("document", "size"),
    [(MANIFEST | {"layers": None}, 0), (MANIFEST | {"layers": [], "annotations": None}, 0)],
)
def test_a_list_may_be_null_where_it_is_empty(document: object, size: int) -> None:
    found = decode_manifest(raw(document))
    assert isinstance(found, Manifest)
    assert len(found.layers) == size


def test_an_empty_layout_is_one_that_umoci_has_made() -> None:
    found = decode_manifest(b'{"schemaVersion":2,"manifests":null}')
    assert found == Index(schema_version=2, manifests=())
    config = decode_config(raw(IMAGE | {"rootfs": {"type": "layers", "diff_ids": None}, "history": None}))
    assert config.rootfs.diff_ids == ()


def test_dockers_names_of_a_configuration_are_pythons_here() -> None:
    config = decode_config(
        raw(
            IMAGE
            | {
                "os.version": "10",
                "config": {
                    "Env": ["A=b"],
                    "Cmd": None,
                    "ExposedPorts": {"80/tcp": {}},
                    "OnBuild": ["RUN x"],
                    "Healthcheck": {"Test": ["CMD", "x"], "Interval": 30_000_000_000},
                },
            }
        )
    )
    assert config.os_version == "10"
    assert config.config is not None
    assert (config.config.env, config.config.cmd, config.config.on_build) == (("A=b",), None, ("RUN x",))
    assert config.config.exposed_ports == {"80/tcp": {}}
    assert config.config.healthcheck is not None
    assert config.config.healthcheck.interval == 30_000_000_000
    # Written again it has the same names, and none that were not there.
    assert json.loads(encode(config))["config"]["Healthcheck"] == {
        "Test": ["CMD", "x"],
        "Interval": 30_000_000_000,
    }
    assert "User" not in json.loads(encode(config))["config"]


def test_chain_ids_are_those_of_the_specification() -> None:
    first, second = model.chain_ids([ZEROS, ONES])
    assert first == ZEROS
    assert second == digest_of(f"{ZEROS} {ONES}".encode())
    assert model.chain_ids([]) == ()


def test_the_same_value_is_the_same_bytes() -> None:
    found = decode_manifest(raw(MANIFEST))
    assert encode(found) == encode(decode_manifest(encode(found)))


# ---- what is not ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "said", "text"),
    [
        ({"schemaVersion": 1, "fsLayers": [], "name": "a"}, "", "schema 1"),
        ({"schemaVersion": 2, "fsLayers": []}, "", "schema 1"),
        (MANIFEST, "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        (MANIFEST | {"schemaVersion": 3}, "", "schemaVersion is 3"),
        ({}, "", "schemaVersion is 0"),
        ({"schemaVersion": 2}, "", "config"),
        ({"schemaVersion": 2, "config": CONFIG}, "", "layers"),
        ([], "", "Expected `object`"),
        (MANIFEST | {"layers": [LAYER | {"size": -1}]}, "", "negative"),
        (MANIFEST | {"layers": [LAYER | {"size": "9"}]}, "", "size"),
        (MANIFEST | {"layers": [LAYER | {"digest": "sha256:../../etc/passwd"}]}, "", "digest"),
        (MANIFEST | {"layers": [LAYER | {"digest": "md5:" + "0" * 32}]}, "", "digest"),
        (MANIFEST | {"layers": [LAYER | {"digest": ZEROS.upper()}]}, "", "digest"),
        (MANIFEST | {"layers": [LAYER | {"digest": ZEROS + "\n"}]}, "", "digest"),
        (INDEX | {"manifests": [LAYER | {"digest": ""}]}, "", "digest"),
    ],
)
def test_what_is_no_manifest_says_why(document: object, said: str, text: str) -> None:
    with pytest.raises(ImageError, match=text):
        decode_manifest(raw(document), said, "the manifest")


@pytest.mark.parametrize("media_type", ["", *model.MANIFESTS, *model.INDEXES])
def test_nothing_is_read_as_a_manifest_by_some_and_as_an_index_by_others(media_type: str) -> None:
    # CVE-2021-41190: what is checked as one would be run as the other.
    lists: tuple[object, ...] = ([], None, INDEX["manifests"])
    for manifests in lists:
        with pytest.raises(ImageError, match="as a manifest and as an index"):
            decode_manifest(raw(MANIFEST | {"manifests": manifests}), media_type)
    for document in (INDEX | {"layers": []}, INDEX | {"config": None}):
        with pytest.raises(ImageError, match="as a manifest and as an index"):
            decode_manifest(raw(document), media_type)


def test_a_document_is_what_it_says_and_what_is_said_of_it() -> None:
    for manifest, index in zip(model.MANIFESTS, model.INDEXES, strict=True):
        for document, said in (
            (MANIFEST | {"mediaType": index}, ""),
            (MANIFEST | {"mediaType": manifest}, index),
        ):
            with pytest.raises(ImageError, match="says that it is an index, and is none"):
                decode_manifest(raw(document), said)
        for document, said in (
            (INDEX | {"mediaType": manifest}, ""),
            (INDEX | {"mediaType": index}, manifest),
        ):
            with pytest.raises(ImageError, match="says that it is a manifest, and is an index"):
                decode_manifest(raw(document), said)


@pytest.mark.parametrize(
    "wrong",
    [b"", b"\xff", b"{", b"null", b"[" * 100_000, b'{"a":' * 100_000, b'{"schemaVersion":1e999}'],
)
def test_what_is_no_document_is_an_error_of_ours(wrong: bytes) -> None:
    for read in (decode_manifest, decode_config):
        with pytest.raises(ImageError):
            read(wrong)


def test_documents_have_a_largest_size() -> None:
    padding = {"annotations": {"a": "x" * model.MAX_MANIFEST}}
    with pytest.raises(ImageError, match="at most 4194304"):
        decode_manifest(raw(MANIFEST | padding))
    with pytest.raises(ImageError, match="at most 8388608"):
        decode_config(raw(IMAGE | {"author": "x" * model.MAX_CONFIG}))


def test_a_configuration_with_digests_that_are_none_is_refused() -> None:
    with pytest.raises(ImageError, match="digest that is none"):
        decode_config(raw(IMAGE | {"rootfs": {"type": "layers", "diff_ids": ["sha256:0/../0"]}}))
    with pytest.raises(ImageError, match="rootfs"):
        decode_config(raw({"architecture": "amd64", "os": "linux"}))
