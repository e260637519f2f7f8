"""Whatever an archive or a document of an image holds: errors are ours, and what is there stays whole."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxlib.errors import ImageError, SandboxError, ViolationError
from sandboxlib.image import model
from sandboxlib.image.loading import load
from sandboxlib.image.locks import never
from sandboxlib.image.saving import save
from sandboxlib.image.store import Store

from images import layer, put, put_index, tree_of

A = "docker.io/library/a:1"
#: In memory, where there is such a place: a store waits for the disk at each step.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
#: What is put in the place of something else.
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1 << 63,
        1 << 70,
        1.5,
        "",
        "a",
        "../../etc/passwd",
        "\0",
        "é" * 300,
        "sha256:" + "0" * 64,
        "sha512:" + "0" * 128,
        model.OCI_INDEX,
        model.DOCKER_MANIFEST,
        [],
        {},
        [None],
        [[]],
        {"a": None},
    ]
).map(deepcopy)


def _documents() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=FAST) as top:
        store = Store(f"{top}/store")
        image = put(
            store, A, [layer(1), layer(2)], config={"Cmd": ["x"], "Env": ["A=b"], "Labels": {"a": "b"}}
        )
        index = put_index(store, "docker.io/library/b:1", ["linux/amd64", "linux/arm64/v8"])
        config = store.manifest(image).config.digest
        manifest, listed, settings_ = (
            json.loads(store.read(digest, 10_000)) for digest in (image.digest, index.digest, config)
        )
    return manifest, listed, settings_


def _archives() -> dict[str, bytes]:
    found = {}
    with tempfile.TemporaryDirectory(dir=FAST) as top:
        store = Store(f"{top}/store")
        image = put(store, A, [layer(1), layer(2)])
        for format_ in ("oci", "docker"):
            save(store, [(A, image)], f"{top}/{format_}", format_, never)
            found[format_] = Path(top, format_).read_bytes()
    return found


DOCUMENTS = _documents()
ARCHIVES = _archives()


def places(document: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all that is in a document."""
    found = [way] if way else []
    if not isinstance(document, (dict, list)):
        return found
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        found += places(value, (*way, key))
    return found


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """The same with up to three changes: something in the place of another, or gone, or there twice."""
    whole = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        ways = places(whole)
        if not ways:
            break
        *above, last = draw(st.sampled_from(ways))
        parent = whole
        for step in above:
            parent = parent[step]
        how = draw(st.sampled_from(["odd", "gone", "more", "twice"]))
        if how == "odd":
            parent[last] = draw(ODD)
        elif how == "gone":
            del parent[last]
        elif how == "more" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["layers", "manifests", "config", "fsLayers", "mediaType"]))] = draw(
                ODD
            )
        elif isinstance(parent, list):
            parent.append(parent[last])
    return whole


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(DOCUMENTS).flatmap(changed), st.sampled_from(["", *model.MANIFESTS, *model.INDEXES]))
def test_documents_are_read_or_refused(document: Any, said: str) -> None:
    raw = json.dumps(document).encode()
    try:
        found = model.decode_manifest(raw, said)
    except ImageError:
        pass
    else:
        # What is read is read the same again from what is written of it.
        assert model.decode_manifest(model.encode(found), said) == found
    try:
        config = model.decode_config(raw)
    except ImageError:
        return
    assert model.decode_config(model.encode(config)) == config


def lease_all(store: Store) -> None:
    """Use each image for a moment."""
    for _, entry in store.names():
        store.lease(entry).close()


def _whole_after(raw: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=FAST) as top:
        store = Store(f"{top}/store")
        kept = put(store, "docker.io/library/kept:1", [layer(9)])
        before = tree_of(Path(top, "store/blobs"))
        Path(top, "archive").write_bytes(raw)
        try:
            found = load(store, f"{top}/archive", never)
        except (ImageError, ViolationError):
            assert [name for name, _ in store.names()] == ["docker.io/library/kept:1"]
            store.prune()
            assert tree_of(Path(top, "store/blobs")) == before
        else:
            for name, image in found:
                if name:
                    assert store.resolve(name) is not None
                assert store.has(image.digest)
        assert store.has(kept.digest)
        assert store.fsck() == ()
        assert sorted(path.name for path in Path(top).iterdir()) == ["archive", "store"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_archives_with_wrong_bytes_bring_all_or_nothing(data: st.DataObject) -> None:
    raw = bytearray(ARCHIVES[data.draw(st.sampled_from(sorted(ARCHIVES)))])
    # Most of it is content: headers are where it matters.
    headers = [start for start in range(0, len(raw), 512) if raw[start + 257 : start + 262] == b"ustar"]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.sampled_from(headers)) + data.draw(st.integers(0, 511))
        if start < len(raw):
            raw[start] = data.draw(
                st.sampled_from([0, 0x2F, 0x2E, 0x30, 0x37, 0x80, 0xFF, *b"12345678gxKLSDs"])
            )
    for header in headers if data.draw(st.booleans()) else ():
        # A sum that is right again: else it is refused for that alone.
        raw[header + 148 : header + 156] = b" " * 8
        raw[header + 148 : header + 156] = b"%06o\0 " % sum(raw[header : header + 512])
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    _whole_after(bytes(raw))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_archives_with_wrong_documents_bring_all_or_nothing(data: st.DataObject) -> None:
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(ARCHIVES[data.draw(st.sampled_from(sorted(ARCHIVES)))])) as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                files[member.name] = file.read()
    tops = [name for name in ("index.json", "manifest.json") if name in files]
    documents = {name: json.loads(raw) for name, raw in sorted(files.items()) if raw.startswith((b"{", b"["))}
    name = data.draw(st.sampled_from(sorted(documents)))
    raw = json.dumps(data.draw(changed(documents[name]))).encode()
    files[name] = raw
    if name.startswith("blobs/") and data.draw(st.booleans()):
        # By its new digest, with the documents that name it: the digests are right, and the rest is not.
        old, new = name.rpartition("/")[2], model.digest_of(raw)[7:]
        files[f"blobs/sha256/{new}"] = raw
        for top in tops:
            files[top] = files[top].replace(old.encode(), new.encode())
            entries = json.loads(files[top])["manifests"]
            for entry in entries:
                entry["size"] = len(raw)
            files[top] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for each, content in files.items():
            info = tarfile.TarInfo(each)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    _whole_after(made.getvalue())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_an_index_that_others_have_written_stops_nothing(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(dir=FAST) as top:
        store = Store(f"{top}/store")
        put(store, A, [layer(1)])
        put_index(store, "docker.io/library/b:1", ["linux/amd64", "linux/arm64"])
        path = Path(store.path, "index.json")
        path.write_text(json.dumps(data.draw(changed(json.loads(path.read_text())))))
        for use in (
            store.names,
            lambda: store.find("a:1"),
            lambda: store.find("abcd"),
            lambda: store.resolve(A),
            lambda: lease_all(store),
            store.usage,
            lambda: store.remove("b:1"),
            store.prune,
        ):
            try:
                use()
            except SandboxError:
                continue
        store.fsck(repair=True)
        store.fsck(repair=True)
        assert store.fsck() == ()
        put(store, A, [layer(1)])
        assert store.prune(all=True).images > 0
        assert tree_of(Path(store.path, "blobs")) == {}
