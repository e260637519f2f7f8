"""Images in files, ours and those of other tools, both ways."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sandboxlib.errors import ImageError, SandboxError, SpecError, StateError, ViolationError
from sandboxlib.image import model
from sandboxlib.image.compression import compressed
from sandboxlib.image.loading import load
from sandboxlib.image.locks import never
from sandboxlib.image.model import Descriptor
from sandboxlib.image.saving import save
from sandboxlib.image.store import Store

from images import layer, put, put_index, tree_of
from tars import diff_id

pytestmark = pytest.mark.leaks
TESTS = Path(__file__).parent.parent

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


def test_zstd_archives_are_read_too(store: Store, other: Store, tmp_path: Path) -> None:
    image = put(store, A, [layer(1)])
    path = saved(store, tmp_path / "made.tar", "oci", (A, image))
    with open(f"{path}.zst", "wb") as file, closing(compressed(file.write, "zstd")) as sink:
        sink.write(Path(path).read_bytes())
    assert [(name, found.digest) for name, found in load(other, f"{path}.zst", never)] == [(A, image.digest)]


def test_layers_of_a_docker_archive_may_be_compressed(store: Store, tmp_path: Path) -> None:
    plain = [layer(1), layer(2), layer(3)]
    zstd = io.BytesIO()
    with closing(compressed(zstd.write, "zstd")) as sink:
        sink.write(plain[1])
    ids = [diff_id(plain[0]), diff_id(plain[1]), f"sha512:{hashlib.sha512(plain[2]).hexdigest()}"]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}}
    path = tmp_path / "archive.tar"
    path.write_bytes(
        _tar(
            manifest_json=_docker(layers=("1", "2", "3"), tags=("a:1",)),
            c_json=json.dumps(config).encode(),
            **{"1": gzip.compress(plain[0]), "2": zstd.getvalue(), "3": plain[2]},
        )
    )
    ((name, image),) = load(store, str(path), never)
    assert name == A
    kinds = [blob.media_type for blob in store.manifest(image).layers]
    assert kinds == [model.OCI_LAYER_GZIP, model.OCI_LAYER_ZSTD, model.OCI_LAYER]
    assert store.fsck() == ()


def test_an_image_without_layers_comes_too(store: Store, tmp_path: Path) -> None:
    # As what is written in Go has it: null.
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": None}}
    documents = [{"Config": "c.json", "RepoTags": None, "Layers": None}]
    path = tmp_path / "archive.tar"
    path.write_bytes(_tar(manifest_json=json.dumps(documents).encode(), c_json=json.dumps(config).encode()))
    ((name, image),) = load(store, str(path), never)
    assert name == ""
    assert store.manifest(image).layers == ()


def test_what_is_both_is_read_as_a_layout(store: Store, other: Store, tmp_path: Path) -> None:
    image = put(store, A, [layer(1)], config={"Cmd": ["x"]})
    folder = tmp_path / "both"
    saved(store, folder, "oci-dir", (A, image))
    manifest = store.manifest(image)
    (folder / "manifest.json").write_text(
        json.dumps(
            [
                {
                    "Config": f"blobs/sha256/{manifest.config.digest[7:]}",
                    "RepoTags": ["other:1"],
                    "Layers": [f"blobs/sha256/{blob.digest[7:]}" for blob in manifest.layers],
                }
            ]
        )
    )
    assert [(name, found.digest) for name, found in load(other, str(folder), never)] == [(A, image.digest)]
    # Without the layout the other description of the same does, with the same configuration.
    (folder / "index.json").unlink()
    ((name, found),) = load(other, str(folder), never)
    assert name == "docker.io/library/other:1"
    assert other.manifest(found).config.digest == manifest.config.digest


@pytest.mark.parametrize("format_", ["oci", "oci-dir", "docker"])
def test_who_gives_up_leaves_nothing_half_written(store: Store, tmp_path: Path, format_: str) -> None:
    image = put(store, A, [layer(1), layer(2)])
    calls = 0

    def cancelled() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InterruptedError

    with pytest.raises((InterruptedError, SandboxError)):
        save(store, [(A, image)], str(tmp_path / "made"), format_, cancelled)
    assert calls == 3
    assert os.listdir(tmp_path) == ["store"]
    # And what was there before stays as it was.
    (tmp_path / "made").write_text("mine")
    calls = 0
    with pytest.raises((InterruptedError, SandboxError)):
        save(store, [(A, image)], str(tmp_path / "made"), format_, cancelled)
    assert (tmp_path / "made").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["made", "store"]


def test_an_image_that_is_being_written_is_not_removed(store: Store, tmp_path: Path) -> None:
    image = put(store, A, [layer(1)])
    refused: list[bool] = []

    def cancelled() -> None:
        with pytest.raises(StateError, match="being sent"):
            store.remove(A)
        assert store.prune(all=True).images == 0
        refused.append(True)

    save(store, [(A, image)], f"{tmp_path}/made/", "oci-dir", cancelled)
    assert refused
    assert store.remove(A)


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


@pytest.mark.tool("skopeo")
@pytest.mark.unprivileged
@pytest.mark.parametrize("format_", ["oci", "docker"])
def test_skopeo_takes_it_without_root(
    as_user: Callable[..., subprocess.CompletedProcess[str]], format_: str
) -> None:
    script = f"""
import os, subprocess, sys, tempfile
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from images import layer, put
from sandboxlib.image.locks import never
from sandboxlib.image.saving import save
from sandboxlib.image.store import Store
with tempfile.TemporaryDirectory() as top:
    store = Store(top + "/store")
    image = put(store, {A!r}, [layer(1), layer(2)])
    save(store, [({A!r}, image)], top + "/made", {format_!r}, never)
    environment = os.environ | {{"TMPDIR": top, "HOME": top}}
    subprocess.run(["skopeo", "inspect", "{format_}-archive:" + top + "/made"], env=environment, check=True)
"""
    assert '"Architecture"' in as_user(script).stdout


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


# ---- what would fill the disk, the memory, or the day -----------------------------------------------


def test_an_index_that_lists_the_same_a_thousand_times_is_read_once(
    store: Store, other: Store, tmp_path: Path
) -> None:
    image = put(store, "", [layer(1)])
    files = {
        f"blobs__sha256__{name}": content
        for name, content in tree_of(Path(store.path, "blobs/sha256")).items()
    }
    entry = {"mediaType": image.media_type, "digest": image.digest, "size": image.size}
    for _ in range(4):
        raw = json.dumps({"schemaVersion": 2, "manifests": [entry] * 1000}).encode()
        entry = {"mediaType": model.OCI_INDEX, "digest": diff_id(raw), "size": len(raw)}
        files[f"blobs__sha256__{diff_id(raw)[7:]}"] = raw
    path = tmp_path / "archive.tar"
    path.write_bytes(_tar(index_json=_layout(**entry), **files))
    ((_, found),) = load(other, str(path), never)
    assert found.digest == entry["digest"]
    # One index more, and there are too many.
    raw = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    entry = {"mediaType": model.OCI_INDEX, "digest": diff_id(raw), "size": len(raw)}
    files[f"blobs__sha256__{diff_id(raw)[7:]}"] = raw
    path.write_bytes(_tar(index_json=_layout(**entry), **files))
    with pytest.raises(ImageError, match="without an end"):
        load(Store(str(tmp_path / "third")), str(path), never)


def test_a_layer_that_is_listed_a_thousand_times_is_read_once(store: Store, tmp_path: Path) -> None:
    plain = layer(1, 200_000)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id(plain)] * 1000},
    }
    path = tmp_path / "archive.tar"
    path.write_bytes(
        _tar(manifest_json=_docker(layers=("l",) * 1000), c_json=json.dumps(config).encode(), l=plain)
    )
    read = 0

    def cancelled() -> None:
        nonlocal read
        read += 1

    ((_, image),) = load(store, str(path), cancelled)
    assert read < 10
    assert len(store.manifest(image).layers) == 1000


def _with_holes(pax: bool) -> bytes:
    """A tar of a few blocks with a file l of 8 EB, all of it a hole."""
    size = (1 << 63) - 1
    info = tarfile.TarInfo("l")
    if pax:
        info.pax_headers = {
            "GNU.sparse.size": str(size),
            "GNU.sparse.numblocks": "1",
            "GNU.sparse.map": f"{size},0",
        }
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(info)
        return raw.getvalue()
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"\x80" + b"\0" * 3 + size.to_bytes(8)
    block[386:398], block[398:410] = b"\x80" + b"\0" * 3 + size.to_bytes(8), b"0" * 11 + b" "
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


@pytest.mark.parametrize("pax", [True, False])
@pytest.mark.parametrize("kind", ["layer", "config", "blob"])
def test_holes_fill_nothing(store: Store, tmp_path: Path, pax: bool, kind: str) -> None:
    if kind == "blob":
        known = _tar(index_json=_layout(digest="sha256:" + "0" * 64, size=1 << 62))
        name = f"blobs/sha256/{'0' * 64}"
    else:
        known = _tar(
            manifest_json=_docker(config="l" if kind == "config" else "c.json", layers=("l",)), c_json=CONFIG
        )
        name = "l"
    holes = _with_holes(pax)
    if kind == "blob":
        # A link to it has the long name.
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "../../l"
            tar.addfile(info)
        known = raw.getvalue()[:512] + known
    path = tmp_path / "archive.tar"
    # Without the two empty blocks at its end, and whatever fills it up.
    path.write_bytes(holes.rstrip(b"\0").ljust(-(-len(holes.rstrip(b"\0")) // 512) * 512, b"\0") + known)
    with tarfile.open(path) as tar:
        assert tar.getmember("l").issparse()
    with pytest.raises(ViolationError, match="has holes"):
        load(store, str(path), never)
    assert store.names() == []
    assert store.usage().blobs == 0


def _header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]
)
@pytest.mark.parametrize("size", [1 << 60, 1 << 33, 64 << 20])
@pytest.mark.parametrize("first", [True, False])
def test_no_header_fills_the_memory(
    store: Store, tmp_path: Path, kind: bytes, size: int, first: bool
) -> None:
    path = tmp_path / "archive.tar"
    before = b"" if first else _tar(oci_layout=b"")[:512]
    path.write_bytes(before + _header(kind, size))
    if size <= 1 << 33:
        # It is there, as a hole on disk.
        os.truncate(path, len(before) + 512 + size + 1024)
    with pytest.raises(ViolationError, match="larger than any header"):
        load(store, str(path), never)


def test_headers_of_headers_are_no_error_of_python(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    one = _header(tarfile.XHDTYPE, 0)
    for many in (one * 5000, _tar(other=b"")[:512] + one * 5000):
        path.write_bytes(many + _tar(index_json=_layout()))
        with pytest.raises(ImageError):
            load(store, str(path), never)


def test_an_archive_of_compressed_nothing_is_not_written_out(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "archive.tar.zst"
    with open(path, "wb") as file, closing(compressed(file.write, "zstd")) as sink:
        for _ in range(300):
            sink.write(bytes(1 << 20))
    pieces = 0

    def cancelled() -> None:
        nonlocal pieces
        pieces += 1

    with pytest.raises(ViolationError, match="over 1000 times larger"):
        load(store, str(path), cancelled)
    assert pieces < 100


def test_a_layer_of_compressed_nothing_is_given_up(store: Store, tmp_path: Path) -> None:
    blob = io.BytesIO()
    with closing(compressed(blob.write, "zstd")) as sink:
        for _ in range(200):
            sink.write(bytes(1 << 20))
    path = tmp_path / "archive.tar"
    path.write_bytes(_tar(manifest_json=_docker(layers=("l",)), c_json=CONFIG, l=blob.getvalue()))
    with pytest.raises(ViolationError, match="times its size"):
        load(store, str(path), never)
    assert store.names() == []


@pytest.mark.tool("umoci")
def test_an_empty_layout_of_umocis_has_no_image(store: Store, tmp_path: Path) -> None:
    run("umoci", "init", "--layout", str(tmp_path / "layout"))
    with pytest.raises(ImageError, match="no image in it"):
        load(store, str(tmp_path / "layout"), never)
    run("umoci", "new", "--image", f"{tmp_path}/layout:a")
    ((_, image),) = load(store, str(tmp_path / "layout"), never)
    assert store.manifest(image).layers == ()
