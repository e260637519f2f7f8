"""Pulling what skopeo has pushed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image.model import OCI_INDEX, ImageConfig, Manifest
from sandboxlib.image.progress import Progress
from sandboxlib.image.registry import Registry
from sandboxlib.image.store import Store
from sandboxlib.image.transfer import pull

import registries
from registries import Fault, Proxy, Server

pytestmark = [
    pytest.mark.leaks,
    pytest.mark.tool("docker-registry", "skopeo"),
    pytest.mark.usefixtures("hasty"),
]


@pytest.fixture(scope="module")
def image(plain: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A manifest of five layers that is ``app:1``."""
    folder = tmp_path_factory.mktemp("image")
    made = registries.layout(folder, layers=5, size=300_000)
    registries.put(folder, f"{plain.name}/app:1")
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def digests(image: dict[str, Any]) -> list[str]:
    return [one["digest"] for one in (*image["layers"], image["config"])]


def test_an_image_has_the_same_digest_here(
    plain: Server, image: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    found = pull(store, f"{plain.name}/app:1")
    assert found.digest == image["digest"]
    for digest in digests(image):
        assert store.has(digest)
    kept = store.resolve(f"{plain.name}/app:1")
    assert kept is not None
    assert kept.digest == found.digest
    shown = registries.skopeo("inspect", "--raw", f"oci:{store.path}:{plain.name}/app:1").stdout
    assert shown.encode() == store.read(found.digest, 1 << 20)
    # skopeo copies it whole.
    registries.skopeo("copy", f"oci:{store.path}:{plain.name}/app:1", f"dir:{tmp_path / 'copy'}")


def test_by_its_digest_too(plain: Server, image: dict[str, Any], store: Store) -> None:
    name = f"{plain.name}/app@{image['digest']}"
    assert pull(store, name).digest == image["digest"]
    assert store.resolve(name) is not None


@pytest.mark.parametrize(
    "options", [("--format", "v2s2"), ("--format", "oci", "--dest-compress-format", "zstd")]
)
def test_what_skopeo_makes_of_it_is_pulled(
    plain: Server, image: dict[str, Any], store: Store, tmp_path: Path, options: tuple[str, ...]
) -> None:
    registries.layout(tmp_path / "image", seed=options[-1])
    target = f"{plain.name}/made:{options[-1]}"
    registries.skopeo(
        "copy", *options, "--dest-tls-verify=false", f"oci:{tmp_path / 'image'}:1", f"docker://{target}"
    )
    told = json.loads(registries.skopeo("inspect", "--tls-verify=false", f"docker://{target}").stdout)
    found = pull(store, target)
    assert found.digest == told["Digest"]
    assert "docker" in found.media_type or options[1] == "oci"
    assert all(store.has(digest) for digest in told["Layers"])


def test_what_is_there_is_not_fetched_again(proxy: Proxy, image: dict[str, Any], store: Store) -> None:
    pull(store, f"{proxy.name}/app:1")
    proxy.log.clear()
    events: list[Progress] = []
    pull(store, f"{proxy.name}/app:1", on_progress=events.append)
    asked = [(seen.method, seen.path) for seen in proxy.log]
    assert asked == [("GET", "/v2/"), ("HEAD", "/v2/app/manifests/1")]
    assert {event.kind for event in events} == {"resolving", "exists", "done"}
    # By digest nobody is asked at all.
    proxy.log.clear()
    pull(store, f"{proxy.name}/app@{image['digest']}")
    assert proxy.log == []


def test_a_tag_that_moves_is_followed(plain: Server, store: Store, tmp_path: Path) -> None:
    for seed in ("one", "two"):
        made = registries.layout(tmp_path / seed, seed=seed)
        registries.put(tmp_path / seed, f"{plain.name}/moves:1")
        assert pull(store, f"{plain.name}/moves:1").digest == made["digest"]
        kept = store.resolve(f"{plain.name}/moves:1")
        assert kept is not None
        assert kept.digest == made["digest"]


def test_progress_is_told_in_the_callers_thread(plain: Server, image: dict[str, Any], store: Store) -> None:
    events: list[Progress] = []
    threads = set()

    def on_progress(event: Progress) -> None:
        events.append(event)
        threads.add(threading.get_ident())

    pull(store, f"{plain.name}/app:1", on_progress=on_progress)
    assert threads == {threading.get_ident()}
    assert (events[0].kind, events[-1].kind) == ("resolving", "done")
    assert events[-1].digest == image["digest"]
    for layer in image["layers"]:
        mine = [event for event in events if event.digest == layer["digest"]]
        assert [event.current for event in mine] == sorted(event.current for event in mine)
        assert (mine[-1].current, mine[-1].total) == (layer["size"], layer["size"])


def test_layers_are_handed_out_lowest_first_while_others_are_fetched(
    proxy: Proxy, image: dict[str, Any], store: Store
) -> None:
    # The lowest is there last, and the uppermost waits for it to be handed out.
    stalled = threading.Event()
    proxy.faults = [Fault("GET", image["layers"][4]["digest"], stall=stalled)]
    seen = []

    def on_layer(manifest: Manifest, config: ImageConfig, number: int) -> None:
        assert store.has(manifest.layers[number].digest)
        assert config.rootfs.diff_ids[number] == manifest.layers[number].digest
        seen.append(number)
        if number == 3:
            stalled.set()

    pull(store, f"{proxy.name}/app:1", on_layer=on_layer)
    assert seen == [0, 1, 2, 3, 4]


def test_at_most_four_layers_are_fetched_at_once(proxy: Proxy, image: dict[str, Any], store: Store) -> None:
    stalled = threading.Event()
    proxy.faults = [Fault("GET", layer["digest"], stall=stalled) for layer in image["layers"]]
    deadline = time.monotonic() + 10

    def cancelled() -> None:
        # The config came before them.
        if len(proxy.asked("GET", "/blobs/")) == 1 + 4 and not stalled.is_set():
            time.sleep(0.2)
            assert len(proxy.asked("GET", "/blobs/")) == 1 + 4
            stalled.set()
        assert time.monotonic() < deadline

    pull(store, f"{proxy.name}/app:1", cancelled=cancelled)
    assert len(proxy.asked("GET", "/blobs/")) == 1 + 5


def test_a_layer_that_comes_twice_is_fetched_once(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    manifest = registries.layout(tmp_path / "twice", seed="twice")
    layer = manifest["layers"][0]
    config = json.loads((tmp_path / "twice/blobs/sha256" / manifest["config"]["digest"][7:]).read_text())
    config["rootfs"]["diff_ids"] = [layer["digest"]] * 3
    del config["history"]
    made = registries.replace(tmp_path / "twice", manifest | {"layers": [layer] * 3}, config)
    registries.put(tmp_path / "twice", f"localhost:{proxy.upstream}/twice:1")
    seen: list[int] = []
    pull(store, f"{proxy.name}/twice:1", on_layer=lambda _m, _c, number: seen.append(number))
    assert len(proxy.asked("GET", layer["digest"])) == 1
    assert seen == [0, 1, 2]
    assert store.has(made["digest"])


# --- indexes and platforms ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(plain: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of ``many:1`` by architecture, and of its index under ``""``."""
    found: dict[str, str] = {}
    entries = []
    for architecture in ("amd64", "arm64", "s390x"):
        folder = tmp_path_factory.mktemp(architecture)
        manifest = registries.layout(folder, seed=architecture)
        path = folder / "blobs/sha256" / manifest["config"]["digest"][7:]
        config = json.loads(path.read_text()) | {"architecture": architecture}
        made = registries.replace(folder, manifest, config)
        registries.put(folder, f"{plain.name}/many:{architecture}")
        found[architecture] = made["digest"]
        size = (folder / "blobs/sha256" / made["digest"][7:]).stat().st_size
        platform = {"architecture": architecture, "os": "linux"}
        entries.append(
            {"mediaType": made["mediaType"], "digest": made["digest"], "size": size, "platform": platform}
        )
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    with Registry(plain.name) as registry:
        registry.put_manifest("many", "1", raw, OCI_INDEX)
        found[""] = registry.digest("many", "1")
    return found


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64", "linux/arm64/v8", "linux/s390x"])
def test_the_image_for_the_platform_is_pulled(
    plain: Server, index: dict[str, str], store: Store, platform: str
) -> None:
    architecture = platform.split("/")[1]
    for name in (f"{plain.name}/many:1", f"{plain.name}/many@{index['']}"):
        found = pull(store, name, platform=platform)
        assert found.digest == index[architecture]
        assert {digest.digest for known, digest in store.names() if known == name} == {found.digest}
        others = {digest for known, digest in index.items() if known not in ("", architecture)}
        assert not any(store.has(digest) for digest in others)


def test_a_platform_that_is_not_there_is_an_error(plain: Server, index: dict[str, str], store: Store) -> None:
    with pytest.raises(ImageError, match="s390x"):
        pull(store, f"{plain.name}/many:1", platform="linux/riscv64")
    assert store.resolve(f"{plain.name}/many:1") is None


def test_an_image_without_index_has_to_be_for_the_platform(
    plain: Server, index: dict[str, str], store: Store
) -> None:
    with pytest.raises(ImageError, match="linux/s390x"):
        pull(store, f"{plain.name}/many:s390x", platform="linux/amd64")
    assert store.resolve(f"{plain.name}/many:s390x") is None


# --- what must not be pulled ----------------------------------------------------------------------------


def test_a_name_that_makes_no_sense_is_refused(store: Store) -> None:
    with pytest.raises(SpecError):
        pull(store, "localhost:1/UPPER")
    with pytest.raises(SpecError):
        pull(store, "localhost:1/a", platform="linux")
    with pytest.raises(SpecError):
        pull(store, "localhost:1/a", credentials="secret")  # type: ignore[arg-type]


def refused(plain: Server, store: Store, folder: Path, change: dict[str, Any], match: str) -> None:
    """Push a manifest with *change* in it, and see that it is not pulled."""
    manifest = registries.layout(folder)
    registries.put(folder, f"{plain.name}/strange:0")
    del manifest["digest"]
    raw = json.dumps(manifest | change).encode()
    with Registry(plain.name) as registry:
        registry.put_manifest("strange", "1", raw, manifest["mediaType"])
    with pytest.raises(ImageError, match=match):
        pull(store, f"{plain.name}/strange:1")
    assert store.resolve(f"{plain.name}/strange:1") is None


def test_what_is_not_an_image_is_refused(plain: Server, store: Store, tmp_path: Path) -> None:
    manifest = registries.layout(tmp_path)
    config = manifest["config"] | {"mediaType": "application/vnd.example.chart.v1+json"}
    refused(plain, store, tmp_path, {"config": config}, r"not an image.*vnd\.example\.chart")


def test_schema_1_is_refused_with_a_clear_word(proxy: Proxy, store: Store) -> None:
    old = {
        "schemaVersion": 1,
        "name": "app",
        "tag": "1",
        "architecture": "amd64",
        "fsLayers": [],
        "history": [],
    }
    kind = {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}
    proxy.faults = [Fault("GET", "/manifests/", status=200, body=json.dumps(old).encode(), headers=kind)]
    with pytest.raises(ImageError, match=r"schema.?1"):
        pull(store, f"{proxy.name}/app:old")


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"null", b"\xff", b'{"schemaVersion":2}', b"[" * 100_000]
)
def test_a_manifest_that_is_nonsense_is_an_error_of_ours(proxy: Proxy, store: Store, body: bytes) -> None:
    proxy.faults = [Fault("GET", "/manifests/", status=200, body=body)]
    with pytest.raises(ImageError):
        pull(store, f"{proxy.name}/app:strange")
    assert store.resolve(f"{proxy.name}/app:strange") is None


def test_layers_and_config_have_to_agree(plain: Server, store: Store, tmp_path: Path) -> None:
    manifest = registries.layout(tmp_path)
    refused(plain, store, tmp_path, {"layers": manifest["layers"][:1]}, "lists 2 layers, and its manifest 1")


@pytest.mark.parametrize("step", [-1, 1])
def test_a_size_that_is_not_the_blobs_is_refused(
    plain: Server, store: Store, tmp_path: Path, step: int, proxy: Proxy
) -> None:
    manifest = registries.layout(tmp_path)
    layers = [manifest["layers"][0], manifest["layers"][1] | {"size": manifest["layers"][1]["size"] + step}]
    raw = json.dumps({**manifest, "layers": layers}).encode()
    registries.put(tmp_path, f"{plain.name}/strange:0")
    proxy.faults = [
        Fault("GET", "/manifests/", status=200, body=raw, headers={"Content-Type": manifest["mediaType"]})
    ]
    with pytest.raises(ImageError):
        pull(store, f"{proxy.name}/strange:1")
    assert store.resolve(f"{proxy.name}/strange:1") is None
    assert not store.has(layers[1]["digest"])


# --- giving up, and going on ----------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def test_a_pull_that_is_given_up_leaves_no_thread_and_no_name(
    proxy: Proxy, image: dict[str, Any], store: Store
) -> None:
    stalled = threading.Event()
    proxy.faults = [Fault("GET", layer["digest"], stall=stalled) for layer in image["layers"]]
    began = time.monotonic()

    def cancelled() -> None:
        if len(proxy.asked("GET", "/blobs/")) == 5:
            raise StoppedError

    threads = threading.active_count()
    with pytest.raises(StoppedError):
        pull(store, f"{proxy.name}/app:1", cancelled=cancelled)
    assert time.monotonic() - began < 50
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("sandboxlib-image")]
    assert mine == []
    stalled.set()
    assert store.resolve(f"{proxy.name}/app:1") is None
    assert pull(store, f"{proxy.name}/app:1").digest == image["digest"]
    assert threading.active_count() <= threads + 8  # the proxy's own


@pytest.mark.parametrize("which", ["on_progress", "on_layer"])
def test_what_a_callback_raises_ends_the_pull(
    plain: Server, image: dict[str, Any], store: Store, which: str
) -> None:
    def fail(*_: object) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        pull(store, f"{plain.name}/app:1", **{which: fail})  # type: ignore[arg-type]
    assert store.resolve(f"{plain.name}/app:1") is None


PULL = """
import sys
from sandboxlib.image.store import Store
from sandboxlib.image.transfer import pull
print(pull(Store(sys.argv[1]), sys.argv[2]).digest)
"""


def program(store: Path, name: str) -> subprocess.Popen[str]:
    """Pull in a program of its own."""
    command = [sys.executable, "-c", PULL, str(store), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def stored(store: Path) -> int:
    """How many bytes are there, whole blobs and parts."""
    found = 0
    for folder, _, names in os.walk(store):
        for name in names:
            # It may get its name in this moment.
            with contextlib.suppress(FileNotFoundError):
                found += os.stat(os.path.join(folder, name)).st_size
    return found


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_pull_that_is_killed_at_any_moment_is_resumed(plain: Server, tmp_path: Path) -> None:
    import random

    folder = tmp_path / "image"
    image = registries.layout(folder, layers=4, size=12_000_000, seed="killed")
    registries.put(folder, f"{plain.name}/killed:1")
    chance = random.Random(20)
    with Proxy(plain.port) as proxy:
        # How much it is in the end.
        whole = program(tmp_path / "whole", f"{proxy.name}/killed:1")
        assert whole.communicate()[0].strip() == image["digest"]
        size = stored(tmp_path / "whole")
        store = tmp_path / "store"
        killed = 0
        for _ in range(20):
            enough = chance.uniform(stored(store), size)
            running = program(store, f"{proxy.name}/killed:1")
            while stored(store) < enough and running.poll() is None:
                time.sleep(0.001)
            running.send_signal(signal.SIGKILL)
            running.communicate()
            killed += running.returncode == -signal.SIGKILL
            opened = Store(str(store))
            if opened.resolve(f"{proxy.name}/killed:1") is not None:
                # The name is there: so is everything.
                assert all(opened.has(digest) for digest in digests(image))
                subprocess.run(["rm", "-r", str(store)], check=True)
        assert killed > 5
        last = program(store, f"{proxy.name}/killed:1")
        assert last.communicate()[0].strip() == image["digest"]
        assert any(seen.headers.get("Range") for seen in proxy.log)
    registries.skopeo("copy", f"oci:{store}:{proxy.name}/killed:1", f"dir:{tmp_path / 'copy'}")


@pytest.mark.timeout(120)
def test_eight_programs_fetch_each_blob_once(proxy: Proxy, image: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "shared"
    running = [program(store, f"{proxy.name}/app:1") for _ in range(8)]
    assert [one.communicate()[0].strip() for one in running] == [image["digest"]] * 8
    for digest in digests(image):
        assert len(proxy.asked("GET", digest)) == 1
    registries.skopeo("inspect", f"oci:{store}:{proxy.name}/app:1")
