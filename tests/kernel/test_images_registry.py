"""From a registry into a sandbox, and back: with Debian's docker-registry, skopeo and podman."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import trio
from kernel.test_images import WHEN, rootfs

from sandboxlib import AsyncImage, AsyncSandbox, Image, ImageError, Rootfs, Sandbox, UnsupportedError
from sandboxlib.image.model import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, digest_of
from sandboxlib.image.platform import own

import registries
from registries import Fault, Proxy, serve

pytestmark = [
    pytest.mark.userns,
    pytest.mark.overlay,
    pytest.mark.netns,
    pytest.mark.tool("busybox", "docker-registry"),
]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(folder))
    return folder


@pytest.fixture
def base(state: Path, tmp_path: Path) -> Image:
    config = {"Env": ["PATH=/bin"], "Cmd": ["sh", "-c", "echo from an image"]}
    return Image.from_rootfs(rootfs(tmp_path / "rootfs.tar"), name="base:1", config=config, created=WHEN)


@pytest.fixture
def registry() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as place, serve(Path(place)) as server:
        yield server.name


def elsewhere(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Go on with an empty store."""
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(path))


def test_an_image_goes_there_and_comes_back_as_it_was(
    base: Image, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{registry}/team/app:1"
    assert base.push(name) == base.digest
    elsewhere(monkeypatch, tmp_path / "other")
    with Sandbox(image=name) as sb:
        assert sb.run().stdout == b"from an image\n"
        sb.sh("echo changed > /etc/kept")
        committed = sb.commit(f"{registry}/team/app:2")
    assert Image.get(name).digest == base.digest
    events: list[str] = []
    committed.push(on_progress=lambda event: events.append(event.kind))
    assert "done" in events
    elsewhere(monkeypatch, tmp_path / "third")
    image = Image.pull(f"{registry}/team/app:2")
    assert image == committed
    with Sandbox(image=image) as sb:
        assert sb.sh("cat /etc/kept").stdout == b"changed\n"


def test_what_is_not_there_says_so(state: Path, registry: str) -> None:
    with pytest.raises(ImageError, match=r"(?i)unknown|not there") as caught:
        Sandbox(image=f"{registry}/nothing:1").open()
    assert registry in str(caught.value)
    assert Image.list() == []


@pytest.mark.root
@pytest.mark.tool("skopeo")
@pytest.mark.parametrize("format_", ["oci", "v2s2"])
def test_what_skopeo_pushes_runs(base: Image, registry: str, tmp_path: Path, format_: str) -> None:
    base.save(tmp_path / "base.tar")
    words = [
        "copy",
        "--quiet",
        f"--format={format_}",
        "--dest-tls-verify=false",
        f"oci-archive:{tmp_path}/base.tar",
    ]
    subprocess.run(["skopeo", *words, f"docker://{registry}/by/skopeo:1"], check=True, capture_output=True)
    found = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", f"docker://{registry}/by/skopeo:1"],
        check=True,
        capture_output=True,
    )
    with Sandbox(image=f"{registry}/by/skopeo:1") as sb:
        assert sb.run().stdout == b"from an image\n"
    assert Image.get(f"{registry}/by/skopeo:1").digest == json.loads(found.stdout)["Digest"]


@pytest.mark.root
@pytest.mark.tool("podman", "runc")
@pytest.mark.cgroup1("memory")
@pytest.mark.rlimit("nofile=1024", "nproc=1000")
def test_podman_runs_what_is_made_here_and_the_other_way_round(
    base: Image, registry: str, tmp_path: Path
) -> None:
    base.push(f"{registry}/team/app:1")
    with tempfile.TemporaryDirectory() as place:
        podman = ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "vfs"]

        def run(*words: str) -> bytes:
            done = subprocess.run([*podman, *words], capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        run("pull", "--quiet", "--tls-verify=false", f"{registry}/team/app:1")
        (found,) = json.loads(run("images", "--format", "json"))
        assert found["Digest"] == base.digest
        run("tag", f"{registry}/team/app:1", f"{registry}/by/podman:1")
        run("push", "--quiet", "--tls-verify=false", f"{registry}/by/podman:1")
        options = ["--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        # Its own defaults are more than this machine may give.
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--network", "none", "--rm"]
        assert run(*options, "run", *limits, f"{registry}/team/app:1") == b"from an image\n"
        run("rmi", "--all", "--force")
    with Sandbox(image=f"{registry}/by/podman:1") as sb:
        assert sb.run().stdout == b"from an image\n"


async def test_trio_pulls_without_blocking_and_can_be_cancelled(
    base: Image, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{registry}/team/app:1"
    base.push(name)
    elsewhere(monkeypatch, tmp_path / "other")
    seen: list[str] = []
    with trio.CancelScope() as scope:

        def tell(event: object) -> None:
            seen.append(str(event))
            scope.cancel()

        await AsyncImage.pull(name, on_progress=tell)
    assert scope.cancelled_caught
    assert seen
    assert await AsyncImage.list() == []
    async with AsyncSandbox(image=name) as sb:
        assert (await sb.run()).stdout == b"from an image\n"


def test_the_command_line_pulls_and_pushes(base: Image, registry: str, state: Path) -> None:
    def shell(*words: str) -> CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-m", "sandboxlib", *words], capture_output=True, check=True)

    assert shell("push", "base:1", f"{registry}/team/app:1").stdout.decode().strip() == base.digest
    shell("rmi", "base:1")
    done = shell("pull", f"{registry}/team/app:1")
    assert done.stdout.decode().strip() == base.digest
    assert b"downloading" in done.stderr
    assert shell("run", "--image", f"{registry}/team/app:1").stdout == b"from an image\n"


@pytest.mark.kernel("6.7")
def test_more_layers_than_an_overlay_takes_are_refused_before_one_is_fetched(state: Path) -> None:
    layer = {"mediaType": OCI_LAYER_GZIP, "digest": "", "size": 10}
    layers = [{**layer, "digest": f"sha256:{number:064x}"} for number in range(501)]
    diff_ids = [each["digest"] for each in layers]
    tree = {"type": "layers", "diff_ids": diff_ids}
    raw = json.dumps({"architecture": own().architecture, "os": "linux", "rootfs": tree}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(raw), "size": len(raw)},
        "layers": layers,
    }
    with Proxy(registries.free_port()) as proxy:
        proxy.faults = [
            Fault("GET", "/manifests/", status=200, body=json.dumps(manifest).encode()),
            Fault("GET", digest_of(raw), status=200, body=raw),
            Fault("GET", "/blobs/", status=404),
            Fault("GET", "/v2/", status=200),
        ]
        with pytest.raises(UnsupportedError, match="an overlay of 501 layers"):
            Sandbox(image=f"{proxy.name}/team/deep:1").open()
        # Its configuration, and nothing besides.
        assert [seen.path for seen in proxy.asked("GET", "/blobs/")] == [
            f"/v2/team/deep/blobs/{digest_of(raw)}"
        ]
        # With a copy there is no such limit, so that they are asked for.
        rootfs = Rootfs.image(f"{proxy.name}/team/deep:1", storage=str(state.parent), driver="copy")
        with pytest.raises(ImageError, match="404"):
            Sandbox(rootfs=rootfs).open()
    assert Image.list() == []
