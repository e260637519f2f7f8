"""Images in files, ours and those of other tools, both ways."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxlib.errors import ImageError, SandboxError, SpecError, ViolationError
from sandboxlib.image import model
from sandboxlib.image.loading import load
from sandboxlib.image.locks import never
from sandboxlib.image.model import Descriptor
from sandboxlib.image.saving import save
from sandboxlib.image.store import Store

from images import layer, put, put_index, tree_of

A, B = "docker.io/library/a:1", "registry.example:5000/team/b:2"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "other"))


def saved(store: Store, path: Path, format_: str, *chosen: tuple[str, Descriptor]) -> str:
    save(store, list(chosen), str(path), format_, never)
    return str(path)


def run(*words: str) -> bytes:
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("format_", ["oci", "oci-dir"])
def test_an_oci_round_trip_keeps_digests(store: Store, other: Store, tmp_path: Path, format_: str) -> None:
    one, two = put(store, A, [layer(1), layer(2)]), put(store, B, [layer(1), layer(3)], docker=True)
    path = saved(store, tmp_path / "made", format_, (A, one), (B, two))
    found = load(other, path, never)
    assert [(name, image.digest) for name, image in found] == [(A, one.digest), (B, two.digest)]
    assert other.fsck() == ()
    # Each blob is in it once.
    assert tree_of(Path(other.path, "blobs")) == tree_of(Path(store.path, "blobs"))


def test_a_docker_round_trip_keeps_what_is_in_it(store: Store, other: Store, tmp_path: Path) -> None:
    one, two = put(store, A, [layer(1), layer(2)]), put(store, B, [layer(1), layer(3)])
    store.tag("docker.io/library/a:also", one)
    chosen = (A, one), ("docker.io/library/a:also", one), (B, two)
    path = saved(store, tmp_path / "made.tar", "docker", *chosen)
    found = dict(load(other, path, never))
    assert set(found) == {A, B, "docker.io/library/a:also"}
    for name, image in ((A, one), (B, two)):
        before, after = store.manifest(image), other.manifest(found[name])
        assert after.config.digest == before.config.digest
        assert other.config(after).rootfs == store.config(before).rootfs
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert len(names) == len(set(names))
    assert sum(name.endswith("layer.tar") for name in names) == 3


@pytest.mark.parametrize("format_", ["oci", "docker"])
def test_a_file_is_the_same_for_the_same_images(store: Store, tmp_path: Path, format_: str) -> None:
    image = put(store, A, [layer(1)])
    first, second = (saved(store, tmp_path / f"{n}.tar", format_, (A, image)) for n in range(2))
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_a_compressed_archive_is_read_too(store: Store, other: Store, tmp_path: Path) -> None:
    image = put(store, A, [layer(1)])
    path = saved(store, tmp_path / "made.tar", "docker", (A, image))
    Path(f"{path}.gz").write_bytes(gzip.compress(Path(path).read_bytes()))
    assert [name for name, _ in load(other, f"{path}.gz", never)] == [A]


def test_of_an_index_what_is_there_comes(store: Store, other: Store, tmp_path: Path) -> None:
    index = put_index(store, A, ["linux/amd64", "linux/arm64"])
    folder = tmp_path / "layout"
    shutil.copytree(store.path, folder)
    document = store.document(index)
    assert isinstance(document, model.Index)
    gone = document.manifests[1]
    Path(folder, "blobs", gone.digest.replace(":", "/")).unlink()
    ((name, found),) = load(other, str(folder), never)
    assert (name, found.digest) == (A, index.digest)
    assert other.has(document.manifests[0].digest)
    assert not other.has(gone.digest)


def test_a_folder_that_is_there_is_not_written_to(store: Store, tmp_path: Path) -> None:
    image = put(store, A)
    with pytest.raises(SpecError, match="not there yet"):
        saved(store, tmp_path, "oci-dir", (A, image))
    (tmp_path / "store/blobs/sha256" / image.digest[7:]).unlink()
    with pytest.raises(SandboxError):
        saved(store, tmp_path / "made.tar", "oci", (A, image))
    assert sorted(os.listdir(tmp_path)) == ["store"]


# ---- other tools ------------------------------------------------------------------------------------


@pytest.mark.tool("skopeo", "umoci")
def test_skopeo_and_umoci_take_what_is_made_here(store: Store, tmp_path: Path) -> None:
    image = put(store, B, [layer(1), layer(2)], config={"Cmd": ["x"]})
    for format_, transport in (("oci", "oci-archive"), ("oci-dir", "oci"), ("docker", "docker-archive")):
        path = saved(store, tmp_path / format_, format_, (B, image))
        found = json.loads(run("skopeo", "inspect", "--config", f"{transport}:{path}"))
        assert found["config"]["Cmd"] == ["x"]
        run("skopeo", "copy", f"{transport}:{path}", f"dir:{tmp_path}/copied-{format_}")
    kept = json.loads((tmp_path / "copied-oci/manifest.json").read_text())
    assert kept["layers"][0]["digest"] == store.manifest(image).layers[0].digest
    options = ["--rootless"] if os.geteuid() else []
    run("umoci", "unpack", *options, "--image", f"{tmp_path}/oci-dir:2", str(tmp_path / "bundle"))
    assert (tmp_path / "bundle/rootfs/file2").exists()


@pytest.mark.tool("skopeo")
@pytest.mark.parametrize("transport", ["oci-archive", "oci", "docker-archive"])
def test_what_skopeo_makes_is_taken_here(store: Store, other: Store, tmp_path: Path, transport: str) -> None:
    image = put(store, A, [layer(1), layer(2)])
    made = tmp_path / "made"
    run("skopeo", "copy", f"oci:{store.path}:{A}", f"{transport}:{made}:{A}")
    ((name, found),) = load(other, str(made), never)
    assert name == A
    if transport != "docker-archive":
        assert found.digest == image.digest
    assert other.config(other.manifest(found)).rootfs == store.config(store.manifest(image)).rootfs
    assert other.fsck() == ()


@pytest.mark.root
@pytest.mark.tool("podman")
@pytest.mark.parametrize("format_", ["oci", "docker"])
def test_podman_takes_and_gives_images(store: Store, other: Store, tmp_path: Path, format_: str) -> None:
    image = put(store, B, [layer(1), layer(2)], config={"Cmd": ["x"]})
    path = saved(store, tmp_path / "made.tar", format_, (B, image))
    # It takes no longer path for what it has at run time.
    place = Path(tempfile.mkdtemp())
    # vfs: the other ways mount something in the place.
    podman = ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "vfs"]
    run(*podman, "load", "--quiet", "--input", path)
    (found,) = json.loads(run(*podman, "images", "--format", "json"))
    assert found["Names"][0] == B if format_ == "docker" else found["Id"]
    assert found["Id"] == store.manifest(image).config.digest[7:]
    archive = "oci-archive" if format_ == "oci" else "docker-archive"
    run(*podman, "save", "--quiet", "--format", archive, "--output", f"{tmp_path}/back.tar", found["Id"])
    ((_, back),) = load(other, f"{tmp_path}/back.tar", never)
    assert other.manifest(back).config.digest == store.manifest(image).config.digest
    shutil.rmtree(place)


# ---- what is refused --------------------------------------------------------------------------------


def _tar(**files: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_json", ".json"))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def _layout(**entry: object) -> bytes:
    whole = {"mediaType": model.OCI_MANIFEST, "digest": "sha256:" + "0" * 64, "size": 10, **entry}
    return json.dumps({"schemaVersion": 2, "manifests": [whole]}).encode()


def _docker(config: str = "c.json", layers: tuple[str, ...] = (), tags: tuple[str, ...] = ()) -> bytes:
    return json.dumps([{"Config": config, "Layers": layers, "RepoTags": tags}]).encode()


CONFIG = json.dumps(
    {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}}
).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not a tar file at all" * 100,
        gzip.compress(b"nor this")[:-3],
        _tar(other=b"x"),
        _tar(index_json=b"{"),
        _tar(index_json=b'{"schemaVersion":2,"manifests":[]}'),
        _tar(index_json=_layout()),
        _tar(index_json=_layout(digest="sha256:../../etc/passwd")),
        _tar(index_json=_layout(size=-1)),
        _tar(index_json=_layout(), **{"blobs__sha256__" + "0" * 64: b"wrong cont"}),
        _tar(manifest_json=b"[]"),
        _tar(manifest_json=b"{}"),
        _tar(manifest_json=_docker()),
        _tar(manifest_json=_docker(config="/etc/passwd")),
        _tar(manifest_json=_docker(config="../../../etc/passwd")),
        _tar(manifest_json=_docker(), c_json=b"{}"),
        _tar(manifest_json=_docker(), c_json=CONFIG),
        _tar(manifest_json=_docker(layers=("l.tar",)), c_json=CONFIG),
        _tar(manifest_json=_docker(layers=("l",)), c_json=CONFIG, l=b"not what it says"),
    ],
)
def test_what_is_not_as_it_has_to_be_brings_nothing(store: Store, tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(raw)
    with pytest.raises((ImageError, ViolationError)):
        load(store, str(path), never)
    assert store.names() == []
    assert store.prune().images == 0
    assert tree_of(Path(store.path, "blobs")) == {}


def test_links_in_an_archive_lead_nowhere_outside(store: Store, tmp_path: Path) -> None:
    def linked(kind: bytes, target: str) -> Callable[[], None]:
        def make() -> None:
            with tarfile.open(tmp_path / "archive.tar", "w") as tar:
                info = tarfile.TarInfo("index.json")
                info.type, info.linkname = kind, target
                tar.addfile(info)

        return make

    (tmp_path / "secret").write_text('{"schemaVersion":2,"manifests":[]}')
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        for target in (f"{tmp_path}/secret", "../secret", "index.json"):
            linked(kind, target)()
            with pytest.raises(ImageError):
                load(store, str(tmp_path / "archive.tar"), never)
    assert store.names() == []
