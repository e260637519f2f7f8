"""What a store lets go of, and what never: a damaged document takes nothing else with it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxlib.errors import ImageError, StateError
from sandboxlib.image import locks, model
from sandboxlib.image.model import Descriptor
from sandboxlib.image.platform import parse_platform
from sandboxlib.image.store import Store
from sandboxlib.kernel.descriptor import Fd, openat

from images import layer, put, put_index, tree_of
from tars import MINE

pytestmark = pytest.mark.leaks

A, B = "docker.io/library/a:1", "docker.io/library/b:1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def damage(store: Store, digest: str) -> None:
    path = Path(store.file(digest))
    path.chmod(0o644)
    path.write_bytes(b"{}")


def unpack(store: Store, image: Descriptor) -> tuple[str, ...]:
    manifest = store.manifest(image)
    return store.unpack(manifest, store.config(manifest), MINE)


def write_index(store: Store, change: Callable[[list[dict[str, object]]], object]) -> None:
    path = Path(store.path, "index.json")
    index = json.loads(path.read_text())
    change(index["manifests"])
    path.write_text(json.dumps(index))


# ---- what stays -------------------------------------------------------------------------------------


def test_a_damaged_part_of_an_index_takes_no_other_part_with_it(store: Store) -> None:
    index = store.document(put_index(store, A, ["linux/amd64", "linux/arm64"]))
    assert isinstance(index, model.Index)
    whole, broken = index.manifests
    damage(store, broken.digest)
    store.prune()
    assert store.has(whole.digest)
    assert all(store.has(blob.digest) for blob in store.manifest(whole).layers)
    assert store.config(store.manifest(whole)).architecture == "amd64"


def test_a_damaged_configuration_takes_no_layer_with_it(store: Store) -> None:
    image = put(store, A, [layer(1), layer(2)])
    manifest = store.manifest(image)
    damage(store, manifest.config.digest)
    assert store.prune().blobs == 0
    assert all(store.has(blob.digest) for blob in manifest.layers)


def test_a_part_of_an_index_that_is_used_keeps_all_of_it(store: Store) -> None:
    top = put_index(store, A, ["linux/amd64", "linux/arm64"])
    index = store.document(top)
    assert isinstance(index, model.Index)
    with store.lease(index.manifests[1]):
        assert store.prune(all=True) == (0, 0, 0, 0)
        with pytest.raises(StateError, match="in use"):
            store.remove(A)
    assert store.prune(all=True).images == 1
    assert tree_of(Path(store.path, "blobs")) == {}


def test_layers_that_another_image_needs_stay_with_it(store: Store) -> None:
    one, two = put(store, A, [layer(1), layer(2)]), put(store, B, [layer(1), layer(3)])
    paths = unpack(store, one)
    unpack(store, two)
    assert store.remove(B)
    assert unpack(store, one) == paths
    assert len(list(Path(store.path, "layers", MINE.key).iterdir())) == 2
    assert store.fsck() == ()


def test_one_image_that_goes_takes_only_what_is_its_own(store: Store) -> None:
    put(store, A, [layer(1)])
    unnamed = put(store, "", [layer(2)])
    stray = store.add(b"of nobody yet")
    assert store.remove(A)
    # That is what prune is for; somebody may be about to name it.
    assert store.has(stray)
    assert store.has(unnamed.digest)


def test_whoever_adds_is_waited_for(store: Store) -> None:
    pruned = threading.Event()

    def prune() -> None:
        store.prune(all=True)
        pruned.set()

    thread = threading.Thread(target=prune)
    with store.growing():
        thread.start()
        digest = store.add(b"not named yet")
        assert not pruned.wait(0.3)
        assert store.has(digest)
    thread.join(30)
    assert pruned.is_set()
    assert not store.has(digest)


def test_who_waits_to_prune_can_give_up(store: Store) -> None:
    def cancelled() -> None:
        raise InterruptedError

    with store.growing(), pytest.raises(InterruptedError), store.shrinking(cancelled):
        pass
    with store.shrinking():
        pass


# ---- what goes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", A])
def test_a_damaged_index_can_be_let_go_of(store: Store, name: str) -> None:
    index = put_index(store, A, ["linux/amd64"])
    if not name:
        put(store, A)
    damage(store, index.digest)
    other = put(store, B)
    if name:
        assert store.remove(A)
    store.prune()
    assert not store.has(index.digest)
    assert unpack(store, other)


def test_an_entry_that_is_none_goes_and_is_in_nobodys_way(store: Store) -> None:
    image = put(store, A)
    write_index(
        store,
        lambda entries: entries.append({"mediaType": model.OCI_INDEX, "digest": "../../x", "size": 1}),
    )
    assert store.find(image.digest[7:19]) == ("", store.resolve(A))
    assert [fault.kind for fault in store.fsck()] == ["missing"]
    assert store.prune().images == 1
    assert [name for name, _ in store.names()] == [A]
    assert store.fsck() == ()


def test_files_of_locks_do_not_gather(store: Store) -> None:
    image = put(store, A, [layer(1), layer(2)])
    paths = unpack(store, image)
    top = Path(store.path, "locks")
    assert len(os.listdir(top)) == 4
    (name,) = {os.path.basename(os.path.dirname(paths[0]))}
    with locks.take(str(top / f"{MINE.key}-{name}")):
        store.prune()
        assert sorted(os.listdir(top)) == sorted(["index", "store", f"{MINE.key}-{name}"])
    store.prune()
    assert sorted(os.listdir(top)) == ["index", "store"]


def test_who_waits_for_a_lock_whose_file_goes_still_gets_it_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first = locks.take(path)
    got: list[Fd] = []
    thread = threading.Thread(target=lambda: got.append(locks.take(path)))
    thread.start()
    os.unlink(path)
    first.close()
    thread.join(30)
    with got[0] as second:
        assert locks.is_(path, second)
        with openat(path, os.O_RDWR) as third:
            assert not locks.try_(third)


def test_an_index_of_indexes_is_gone_through_once(store: Store) -> None:
    # Each lists the one below it a hundred times: else that would be a hundred to the power of 200.
    image = put(store, "")
    platform = {"os": "linux", "architecture": "amd64"}
    top = image
    entry: dict[str, object] = {
        "mediaType": image.media_type,
        "digest": image.digest,
        "size": image.size,
        "platform": platform,
    }
    for _ in range(200):
        raw = json.dumps(
            {"schemaVersion": 2, "mediaType": model.OCI_INDEX, "manifests": [entry] * 100}
        ).encode()
        top = Descriptor(model.OCI_INDEX, store.add(raw), len(raw))
        entry |= {"mediaType": top.media_type, "digest": top.digest, "size": top.size}
    store.tag(A, top)
    store.prune()
    assert store.has(image.digest)
    assert store.fsck() == ()
    with store.lease(top):
        assert store.prune(all=True).images == 0
        assert store.has(image.digest)
    with pytest.raises(ImageError, match="without an end"):
        store.image(top, parse_platform("linux/amd64"))


# ---- leases -----------------------------------------------------------------------------------------


def test_a_lease_of_what_is_not_whole_is_none(store: Store) -> None:
    index = put_index(store, A, ["linux/amd64"])
    document = store.document(index)
    assert isinstance(document, model.Index)
    damage(store, document.manifests[0].digest)
    with pytest.raises(ImageError, match="not what its digest says"):
        store.lease(index)
    assert os.listdir(Path(store.path, "leases")) == []
    with pytest.raises(ImageError, match="not in the store"):
        store.lease(Descriptor(model.OCI_MANIFEST, "sha256:" + "0" * 64, 1))


def test_a_lease_ends_once(store: Store) -> None:
    image = put(store, A)
    first, second = store.lease(image), store.lease(image)
    first.close()
    first.close()
    with second:
        assert store.prune(all=True).images == 0
    assert store.prune(all=True).images == 1


def test_a_program_that_is_started_has_no_part_in_a_lease(store: Store) -> None:
    image = put(store, A)
    kept = store.lease(image)
    # It is given all descriptors that it can have, and outlives the lease.
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False, bufsize=0
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        # Once it answers it opens and closes nothing any more.
        other.stdin.write(b"x")
        assert other.stdout.read(1) == b"x"
        assert store.prune(all=True).images == 0
        (name,) = os.listdir(Path(store.path, "leases"))
        kept.close()
        assert not any(
            target.endswith(name)
            for target in (os.readlink(link) for link in Path(f"/proc/{other.pid}/fd").iterdir())
        )
        assert store.prune(all=True).images == 1
