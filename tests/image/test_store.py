"""The store: names, blobs, what is used, and what goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from sandboxlib.errors import ImageError, SpecError, StateError, ViolationError
from sandboxlib.image import trees
from sandboxlib.image.blobs import Download, Sink
from sandboxlib.image.model import Descriptor
from sandboxlib.image.platform import parse_platform
from sandboxlib.image.store import Store
from sandboxlib.reference import Reference

from images import layer, put, put_index, tree_of
from tars import MINE, diff_id, entry, tar

A, B = "docker.io/library/a:1", "docker.io/library/b:1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def unpack(store: Store, image: Descriptor) -> tuple[str, ...]:
    manifest = store.manifest(image)
    return store.unpack(manifest, store.config(manifest), MINE)


# ---- names and documents ----------------------------------------------------------------------------


def test_it_is_a_layout_that_only_its_owner_may_enter(store: Store) -> None:
    put(store, A)
    top = Path(store.path)
    assert top.stat().st_mode & 0o777 == 0o700
    assert json.loads((top / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((top / "index.json").read_text())
    assert index["schemaVersion"] == 2
    assert index["manifests"][0]["annotations"] == {"org.opencontainers.image.ref.name": A}
    for path in (top / "blobs/sha256").iterdir():
        assert path.stat().st_mode & 0o777 == 0o444
    assert Store(store.path).names() == store.names()


@pytest.mark.tool("skopeo")
def test_other_tools_read_it(store: Store) -> None:
    image = put(store, A, [layer(1), layer(2)])
    done = subprocess.run(["skopeo", "inspect", f"oci:{store.path}:{A}"], capture_output=True, check=True)
    assert json.loads(done.stdout)["Digest"] == image.digest


def test_a_layout_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(ImageError, match=r"2\.0\.0"):
        Store(str(tmp_path / "store"))


def test_names_move_and_images_stay_as_long_as_they_are_there(store: Store) -> None:
    first, second = put(store, A, [layer(1)]), put(store, A, [layer(2)])
    found = store.resolve(Reference.parse(A))
    assert found is not None
    assert found.digest == second.digest
    # What has lost its name is there still, without one.
    assert [name for name, entry in store.names() if entry.digest == first.digest] == [""]
    store.tag(B, first)
    assert sorted(name for name, _ in store.names()) == [A, B]
    assert store.remove(B)
    assert not store.remove(B)
    assert store.resolve(Reference.parse(B)) is None
    assert not store.has(first.digest)


def test_images_are_found_by_name_digest_and_id(store: Store) -> None:
    image = put(store, A)
    config = store.manifest(image).config.digest
    for name in ("a:1", A, image.digest, config, config[7:19], f"a@{image.digest}"):
        found = store.find(name)
        assert found is not None, name
        assert found[1].digest == image.digest
    assert store.find("a:2") is None
    assert store.find("sha256:" + "0" * 64) is None
    with pytest.raises(SpecError):
        store.find("Not A Name")


def test_an_id_that_several_have_is_no_id(store: Store) -> None:
    images = [put(store, "", [layer(number)]) for number in range(20)]
    # Of twenty digests two begin with the same character, so with four alike one may be had.
    starts: dict[str, int] = {}
    for image in images:
        for digest in (image.digest, store.manifest(image).config.digest):
            starts[digest[7:8]] = starts.get(digest[7:8], 0) + 1
    common = max(starts, key=lambda start: starts[start])
    with pytest.raises(ImageError, match="images have an ID that begins so"):
        store._by_id(common)


def test_an_index_gives_the_image_for_a_platform(store: Store) -> None:
    index = put_index(store, A, ["linux/amd64", "linux/arm64/v8", "linux/arm/v7"])
    found = store.resolve(Reference.parse(A))
    assert found is not None
    assert found.digest == index.digest
    config = store.config(store.manifest(store.image(found)))
    assert config.architecture in ("amd64", "arm64")
    with pytest.raises(ImageError, match=r"linux/amd64, linux/arm/v7, linux/arm64"):
        store.image(found, parse_platform("linux/riscv64"))


def test_what_is_no_image_says_so(store: Store) -> None:
    empty = store.add(b"{}")
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "artifactType": "application/vnd.example.sbom",
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": empty,
                "size": 2,
            },
            "layers": [],
        }
    ).encode()
    found = Descriptor("application/vnd.oci.image.manifest.v1+json", store.add(raw), len(raw))
    store.tag(A, found)
    with pytest.raises(ImageError, match="artifact of type"):
        store.config(store.manifest(found))


# ---- blobs ------------------------------------------------------------------------------------------


def _download(content: bytes, calls: list[int]) -> Download:
    def download(sink: Sink, offset: int) -> None:
        calls.append(offset)
        sink.write(content[offset:])

    return download


def _described(content: bytes) -> Descriptor:
    return Descriptor("text/plain", diff_id(content), len(content))


def test_a_blob_is_fetched_once(store: Store) -> None:
    content, calls = b"content" * 1000, list[int]()
    wanted = _described(content)
    assert store.fetch(wanted, _download(content, calls))
    assert not store.fetch(wanted, _download(content, calls))
    assert calls == [0]
    assert store.read(wanted.digest, 10_000) == content


def test_a_download_goes_on_where_it_was_broken_off(store: Store) -> None:
    content, calls = os.urandom(100_000), list[int]()
    wanted = _described(content)

    def broken(sink: Sink, offset: int) -> None:
        sink.write(content[offset : offset + 30_000])
        raise ConnectionError("the line is dead")

    for _ in range(2):
        with pytest.raises(ConnectionError):
            store.fetch(wanted, broken)
    assert store.fetch(wanted, _download(content, calls))
    assert calls == [60_000]


@pytest.mark.parametrize("wrong", [b"other content", b"content" * 100, b"conten"])
def test_what_is_wrong_does_not_stay(store: Store, wrong: bytes) -> None:
    wanted = _described(b"content")
    calls: list[int] = []
    with pytest.raises(ImageError):
        store.fetch(wanted, _download(wrong, calls))
    assert not store.has(wanted.digest)
    store.fetch(wanted, _download(b"content", calls))
    assert store.read(wanted.digest, 100) == b"content"


def test_who_waits_for_another_download_can_give_up(store: Store) -> None:
    content = b"content"
    wanted = _described(content)
    began, go_on = threading.Event(), threading.Event()

    def slow(sink: Sink, _offset: int) -> None:
        began.set()
        assert go_on.wait(30)
        sink.write(content)

    thread = threading.Thread(target=lambda: store.fetch(wanted, slow))
    thread.start()
    assert began.wait(30)

    def cancelled() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fetch(wanted, slow, cancelled=cancelled)
    go_on.set()
    thread.join()
    assert not store.fetch(wanted, slow)


def test_a_damaged_blob_is_not_believed(store: Store) -> None:
    digest = store.add(b"content")
    path = Path(store.file(digest))
    path.chmod(0o644)
    path.write_bytes(b"changed")
    with pytest.raises(ImageError, match="not what its digest says"):
        store.read(digest, 100)
    with pytest.raises(ImageError, match="more than 3 bytes"):
        store.read(store.add(b"more"), 3)
    with pytest.raises(ImageError, match="digest that is none"):
        store.read("sha256:../../../etc/passwd", 100)


# ---- unpacked layers --------------------------------------------------------------------------------


def test_layers_are_shared_and_unpacked_once(store: Store) -> None:
    one = put(store, A, [layer(1), layer(2)])
    two = put(store, B, [layer(1), layer(3)])
    first, second = unpack(store, one), unpack(store, two)
    assert first[1] == second[1]
    assert first[0] != second[0]
    before = os.stat(first[0]).st_ctime_ns
    assert unpack(store, one) == first
    assert os.stat(first[0]).st_ctime_ns == before
    assert Path(first[0], "shared").read_bytes() == b"2"


def test_a_layer_that_is_not_what_the_configuration_says_is_not_kept(store: Store) -> None:
    image = put(store, A, [layer(1)])
    manifest = store.manifest(image)
    config = store.config(manifest)
    import msgspec

    wrong = msgspec.structs.replace(
        config, rootfs=msgspec.structs.replace(config.rootfs, diff_ids=("sha256:" + "1" * 64,))
    )
    with pytest.raises(ImageError, match="the configuration says"):
        store.unpack(manifest, wrong, MINE)
    assert tree_of(Path(store.path, "layers")) == {}
    assert os.listdir(Path(store.path, "removed")) == []


def test_a_hostile_layer_leaves_nothing(store: Store) -> None:
    image = put(store, A, [tar(entry("fine", b"x"), entry("../../../escape", b"x"))])
    with pytest.raises(ViolationError):
        unpack(store, image)
    assert tree_of(Path(store.path, "layers")) == {}
    assert not list(Path(store.path).parent.rglob("escape"))


def test_a_layer_of_an_earlier_boot_is_believed_only_once_it_was_on_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = put(store, A)
    (path,) = unpack(store, image)
    inode = os.stat(path).st_ino
    # It lies there for long enough, is used again, and is from then on believed for ever.
    os.utime(Path(path).parent / "layer.json", (time.time() - 1000,) * 2)
    assert unpack(store, image) == (path,)
    monkeypatch.setattr(trees, "boot", lambda: "another boot")
    assert unpack(store, image) == (path,)
    assert os.stat(path).st_ino == inode
    # One that was made shortly before the machine stopped is made anew.
    other = put(store, B, [layer(5)])
    monkeypatch.undo()
    (path,) = unpack(store, other)
    inode = os.stat(path).st_ino
    Path(path, "file5").write_bytes(b"")
    monkeypatch.setattr(trees, "boot", lambda: "another boot")
    assert unpack(store, other) == (path,)
    assert Path(path, "file5").read_bytes() != b""


# ---- what is used, and what goes --------------------------------------------------------------------


def test_prune_takes_what_has_no_name_and_is_not_used(store: Store) -> None:
    named = put(store, A, [layer(1), layer(2)])
    unnamed = put(store, "", [layer(1), layer(3)])
    leased = put(store, "", [layer(4)])
    for image in (named, unnamed, leased):
        unpack(store, image)
    stray = store.add(b"nobody's")
    with store.lease(leased):
        gone = store.prune()
        assert (gone.images, gone.layers) == (1, 1)
        # The manifest, the configuration, a layer, and what was nobody's.
        assert gone.blobs == 4
        assert not store.has(stray)
        assert not store.has(unnamed.digest)
        assert unpack(store, named)
        assert unpack(store, leased)
    assert store.prune().images == 1
    gone = store.prune(all=True)
    assert (gone.images, gone.layers) == (1, 2)
    assert gone.bytes > 4000
    assert store.names() == []
    assert tree_of(Path(store.path, "blobs")) == tree_of(Path(store.path, "layers")) == {}


def test_an_image_in_use_is_not_removed_but_its_other_names_are(store: Store) -> None:
    image = put(store, A)
    store.tag(B, image)
    with store.lease(image):
        assert store.remove(B)
        with pytest.raises(StateError, match="in use"):
            store.remove(A)
        with pytest.raises(StateError, match="in use"):
            store.remove(image.digest)
        assert store.prune(all=True).images == 0
    assert store.remove(image.digest)
    assert not store.has(image.digest)


def test_a_lease_ends_with_its_program(store: Store) -> None:
    image = put(store, A)
    ready, wait = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        held = store.lease(image)
        os.write(ready[1], b"!")
        os.read(wait[0], 1)
        held.close()
        os._exit(0)
    try:
        assert os.read(ready[0], 1) == b"!"
        assert store.prune(all=True).images == 0
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        for fd in (*ready, *wait):
            os.close(fd)
    assert store.prune(all=True).images == 1
    assert os.listdir(Path(store.path, "leases")) == []


def test_a_download_under_way_is_not_pruned(store: Store) -> None:
    content = b"content"
    wanted = _described(content)
    gone = []

    def download(sink: Sink, _offset: int) -> None:
        sink.write(content[:3])
        gone.append(store.prune(all=True))
        sink.write(content[3:])

    with store.lease_of([wanted.digest]):
        assert store.fetch(wanted, download)
        assert store.prune(all=True).blobs == 0
        assert store.has(wanted.digest)
    assert gone[0].blobs == 0
    assert store.prune().blobs == 1


def test_room_is_counted_once(store: Store) -> None:
    one, two = put(store, A, [layer(1), layer(2)]), put(store, B, [layer(1)])
    unpack(store, one)
    unpack(store, two)
    used = store.usage()
    assert used.layers == 2 * 2001
    assert used.blobs == sum(len(content) for content in tree_of(Path(store.path, "blobs")).values())


# ---- fsck -------------------------------------------------------------------------------------------


def test_a_sound_store_has_no_faults(store: Store) -> None:
    unpack(store, put(store, A, [layer(1), layer(2)]))
    put_index(store, B, ["linux/amd64", "linux/arm64"])
    assert store.fsck() == ()


def test_faults_are_found_and_taken_away(store: Store) -> None:
    image = put(store, A, [layer(1), layer(2)])
    paths = unpack(store, image)
    damaged, missing = (Path(store.file(blob.digest)) for blob in store.manifest(image).layers)
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    missing.unlink()
    shutil.rmtree(paths[0])
    kinds = sorted(fault.kind for fault in store.fsck())
    assert kinds == ["damaged", "layer", "missing"]
    assert damaged.exists()
    assert all(fault.repaired for fault in store.fsck(repair=True) if fault.kind != "missing")
    assert not damaged.exists()
    assert [fault.kind for fault in store.fsck()] == ["missing", "missing"]
    # A pull brings them again.
    put(store, A, [layer(1), layer(2)])
    assert store.fsck() == ()
    assert unpack(store, image)


def test_an_index_that_cannot_be_read_is_put_aside(store: Store) -> None:
    put(store, A)
    Path(store.path, "index.json").write_text("{")
    with pytest.raises(ImageError):
        store.names()
    assert [fault.kind for fault in store.fsck(repair=True)] == ["index"]
    assert store.names() == []
    assert store.fsck() == ()
