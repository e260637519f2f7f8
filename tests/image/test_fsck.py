"""What a look at all of a store finds, and what it does about it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from sandboxlib.errors import ImageError
from sandboxlib.image import model
from sandboxlib.image.store import Store

from images import layer, put, put_index
from tars import MINE

pytestmark = pytest.mark.leaks

A, B = "docker.io/library/a:1", "docker.io/library/b:1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def overwrite(path: str | Path, raw: bytes) -> None:
    Path(path).chmod(0o644)
    Path(path).write_bytes(raw)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"x", lambda raw: b"y" + raw[1:]])
def test_one_wrong_byte_of_a_blob_is_found(store: Store, change: object) -> None:
    assert callable(change)
    image = put(store, A)
    (blob,) = store.manifest(image).layers
    path = Path(store.file(blob.digest))
    overwrite(path, change(path.read_bytes()))
    faults = store.fsck()
    assert {(fault.kind, fault.about) for fault in faults} == {("damaged", blob.digest)}
    assert all(not fault.repaired for fault in faults)
    # Told apart from what was taken away, for people too.
    assert "(taken away)" in str(store.fsck(repair=True)[0])
    assert not store.has(blob.digest)
    put(store, A)
    assert store.fsck() == ()


def test_a_name_whose_manifest_is_gone_goes_with_repair_and_no_other(store: Store) -> None:
    gone, stays = put(store, A, [layer(1)]), put(store, B, [layer(2)])
    os.unlink(store.file(gone.digest))
    assert [(fault.kind, fault.about) for fault in store.fsck()] == [("missing", gone.digest)]
    assert len(store.names()) == 2
    assert store.fsck(repair=True)[0].repaired
    assert [(name, entry.digest) for name, entry in store.names()] == [(B, stays.digest)]
    assert store.fsck() == ()


def test_an_entry_that_calls_its_image_something_else_goes_with_repair(store: Store) -> None:
    put(store, A)
    path = Path(store.path, "index.json")
    path.write_text(path.read_text().replace(model.OCI_MANIFEST, model.DOCKER_LIST))
    (fault,) = store.fsck()
    assert "says that it is an index" in fault.text
    assert [fault.repaired for fault in store.fsck(repair=True)] == [True]
    assert store.names() == []
    assert store.fsck() == ()


def test_what_is_not_named_by_a_digest_is_no_blob(store: Store) -> None:
    strange = Path(store.path, "blobs/sha256/not-a-digest")
    strange.write_bytes(b"x")
    assert [(fault.kind, fault.about) for fault in store.fsck(repair=True)] == [("damaged", str(strange))]
    assert not strange.exists()
    assert store.fsck() == ()


def test_a_part_of_an_index_is_looked_at_like_an_image(store: Store) -> None:
    index = store.document(put_index(store, A, ["linux/amd64", "linux/arm64", "linux/s390x"]))
    assert isinstance(index, model.Index)
    first, second, third = index.manifests
    (blob,) = store.manifest(first).layers
    os.unlink(store.file(blob.digest))
    overwrite(store.file(second.digest), b"{}")
    # That a platform is not there at all is as it may be.
    os.unlink(store.file(third.digest))
    about = {(fault.kind, fault.about) for fault in store.fsck()}
    assert about == {("missing", blob.digest), ("damaged", second.digest)}


@pytest.mark.parametrize("how", ["note", "other note", "tree", "half"])
def test_half_of_a_layer_is_found_and_made_anew(store: Store, how: str) -> None:
    image = put(store, A)
    manifest = store.manifest(image)
    config = store.config(manifest)
    (path,) = store.unpack(manifest, config, MINE)
    folder = Path(path).parent
    if how == "note":
        (folder / "layer.json").unlink()
    elif how == "other note":
        facts = json.loads((folder / "layer.json").read_text())
        (folder / "layer.json").write_text(json.dumps(facts | {"chain_id": "sha256:" + "0" * 64}))
    elif how == "tree":
        shutil.rmtree(path)
    else:
        (folder.parent / "new-1-0123456789abcdef").mkdir()
    assert [fault.kind for fault in store.fsck()] == ["layer"]
    assert [fault.repaired for fault in store.fsck(repair=True)] == [True]
    assert store.fsck() == ()
    assert store.unpack(manifest, config, MINE) == (path,)
    assert Path(path, "shared").read_bytes() == b"0"


def test_a_document_that_lies_about_sizes_is_found(store: Store) -> None:
    image = put(store, "")
    manifest = json.loads(store.read(image.digest, 10_000))
    manifest["layers"][0]["size"] += 1
    raw = json.dumps(manifest).encode()
    store.tag(A, model.Descriptor(model.OCI_MANIFEST, store.add(raw), len(raw)))
    assert [fault.kind for fault in store.fsck()] == ["damaged"]


def test_a_configuration_with_other_layers_than_its_manifest_is_found(store: Store) -> None:
    image = put(store, "", [layer(1), layer(2)])
    manifest = json.loads(store.read(image.digest, 10_000))
    manifest["layers"].pop()
    raw = json.dumps(manifest).encode()
    store.tag(A, model.Descriptor(model.OCI_MANIFEST, store.add(raw), len(raw)))
    (fault,) = store.fsck()
    assert "lists 2 layers, and its manifest 1" in fault.text


def test_nobody_uses_it_meanwhile(store: Store) -> None:
    put(store, A)

    def cancelled() -> None:
        raise InterruptedError

    with store.shrinking(), pytest.raises(InterruptedError), store.growing(cancelled):
        pass


# ---- the folder itself ------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ImageError, match=r"no store of images: it has 'thesis\.txt' in it"):
        Store(str(tmp_path))
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(ImageError, match="no folder"):
        Store(str(tmp_path / "thesis.txt"))
    for nothing in (b"", b"{", b"[]", b'{"imageLayoutVersion":1}'):
        (tmp_path / "layout").mkdir(exist_ok=True)
        (tmp_path / "layout/oci-layout").write_bytes(nothing)
        with pytest.raises(ImageError):
            Store(str(tmp_path / "layout"))


def test_a_layout_of_others_becomes_a_store(tmp_path: Path) -> None:
    image = put(Store(str(tmp_path / "first")), A)
    # Only what a layout has.
    shutil.copytree(tmp_path / "first/blobs", tmp_path / "second/blobs")
    for name in ("oci-layout", "index.json"):
        shutil.copy(tmp_path / "first" / name, tmp_path / "second" / name)
    store = Store(str(tmp_path / "second"))
    assert store.resolve(A) == Store(str(tmp_path / "first")).resolve(A)
    assert store.config(store.manifest(image)).os == "linux"
    assert store.fsck() == ()


def test_nobody_else_may_enter_a_folder_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    Store(str(tmp_path / "store"))
    assert (tmp_path / "store").stat().st_mode & 0o7777 == 0o700


def test_a_short_path_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("store")
    monkeypatch.chdir("/")
    assert store.has(store.add(b"x"))
    assert os.listdir(tmp_path) == ["store"]
