"""Pushing, with skopeo and Docker's registry as judges."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image.answers import RegistryError
from sandboxlib.image.model import OCI_INDEX, OCI_MANIFEST, Descriptor
from sandboxlib.image.progress import Progress
from sandboxlib.image.push import push
from sandboxlib.image.registry import Registry
from sandboxlib.image.store import Store
from sandboxlib.image.transfer import pull
from sandboxlib.reference import Reference

import registries
from registries import Fault, Proxy, Server

pytestmark = [
    pytest.mark.leaks,
    pytest.mark.tool("docker-registry", "skopeo"),
    pytest.mark.usefixtures("hasty"),
]

PART = 64 << 10


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def add(store: Store, folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """An image of the store."""
    manifest = registries.layout(folder, **options)
    for blob in sorted((folder / "blobs/sha256").iterdir()):
        store.add(blob.read_bytes())
    size = (folder / "blobs/sha256" / manifest["digest"][7:]).stat().st_size
    store.tag(Reference.parse(name), Descriptor(OCI_MANIFEST, manifest["digest"], size))
    return manifest


def blobs(manifest: dict[str, Any]) -> list[str]:
    return [one["digest"] for one in (*manifest["layers"], manifest["config"])]


@pytest.mark.parametrize("part", [16 << 20, PART, 100_001])
def test_what_is_pushed_here_is_the_same_for_skopeo(
    plain: Server, store: Store, tmp_path: Path, part: int
) -> None:
    made = add(store, tmp_path / "image", "localhost:1/app:1", seed=f"push{part}")
    target = f"{plain.name}/pushed:{part}"
    assert push(store, "localhost:1/app:1", target, part=part) == made["digest"]
    shown = json.loads(registries.skopeo("inspect", "--tls-verify=false", f"docker://{target}").stdout)
    assert shown["Digest"] == made["digest"]
    registries.skopeo("copy", "--src-tls-verify=false", f"docker://{target}", f"dir:{tmp_path / 'copy'}")
    for digest in blobs(made):
        assert (tmp_path / "copy" / digest[7:]).exists()
    # And back.
    assert pull(Store(str(tmp_path / "other")), target).digest == made["digest"]


def test_what_is_there_is_not_sent_again(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    made = add(store, tmp_path / "image", "localhost:1/app:1", seed="again")
    push(store, "localhost:1/app:1", f"{proxy.name}/again:1")
    proxy.log.clear()
    events: list[Progress] = []
    push(store, "localhost:1/app:1", f"{proxy.name}/again:2", on_progress=events.append)
    assert not proxy.asked("POST", "")
    assert [seen.path for seen in proxy.asked("PUT", "")] == ["/v2/again/manifests/2"]
    assert [event.kind for event in events] == ["resolving", *["exists"] * 3, "done"]
    assert {event.digest for event in events} == {"", made["digest"], *blobs(made)}


def test_a_blob_of_another_repository_is_mounted(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    made = add(store, tmp_path / "image", "localhost:1/app:1", seed="mount")
    push(store, "localhost:1/app:1", f"{proxy.name}/first:1")
    proxy.log.clear()
    events: list[Progress] = []
    target = f"{proxy.name}/second:1"
    push(store, "localhost:1/app:1", target, mount_from=["missing", "first"], on_progress=events.append)
    assert [event.kind for event in events] == ["resolving", *["mounted"] * 3, "done"]
    assert not proxy.asked("PATCH", "")
    assert len(proxy.asked("PUT", "")) == 1
    assert len(proxy.asked("POST", "from=first")) == len(blobs(made))
    pull(Store(str(tmp_path / "other")), f"{proxy.name}/second:1")


def test_what_came_from_a_repository_is_mounted_from_there(
    proxy: Proxy, store: Store, tmp_path: Path
) -> None:
    made = add(store, tmp_path / "image", "localhost:1/app:1", seed="origin")
    push(store, "localhost:1/app:1", f"{proxy.name}/team/base:1")
    other = Store(str(tmp_path / "other"))
    pull(other, f"{proxy.name}/team/base:1")
    # Whoever pulled it knows where it is, and whoever pushed it.
    for number, where in enumerate((other, store)):
        proxy.log.clear()
        events: list[Progress] = []
        target = f"{proxy.name}/mounted/app{number}:1"
        push(where, made["digest"], target, on_progress=events.append)
        assert [event.kind for event in events] == ["resolving", *["mounted"] * 3, "done"]
        assert len(proxy.asked("POST", "from=")) == len(blobs(made))
        assert not proxy.asked("PATCH", "") + proxy.asked("PUT", "/blobs/")
        pull(Store(str(tmp_path / f"third{number}")), target)


def test_a_registry_is_asked_to_mount_what_it_may_have_alone(
    proxy: Proxy, plain: Server, store: Store, tmp_path: Path
) -> None:
    made = add(store, tmp_path / "image", "localhost:1/app:1", seed="elsewhere")
    # Another registry by its name, and the repository itself.
    push(store, "localhost:1/app:1", f"127.0.0.1:{plain.port}/team/there:1")
    push(store, "localhost:1/app:1", f"{proxy.name}/team/here:1")
    push(store, "localhost:1/app:1", f"{proxy.name}/team/here:2")
    assert not proxy.asked("POST", "from=")
    # At most three, and what is gone from there, or forbidden, is sent.
    for number in range(5):
        push(store, "localhost:1/app:1", f"{proxy.name}/many/number{number}:1")
    proxy.log.clear()
    proxy.faults = [Fault("POST", "from=", status=404)]
    push(store, "localhost:1/app:1", f"{proxy.name}/last/app:1")
    assert len(proxy.asked("POST", "from=")) == 3 * len(blobs(made))
    assert len(proxy.asked("PUT", "/blobs/uploads/")) == len(blobs(made))


def test_what_is_known_of_repositories_goes_with_the_images(
    proxy: Proxy, store: Store, tmp_path: Path
) -> None:
    add(store, tmp_path / "image", "localhost:1/app:1", seed="forgotten")
    push(store, "localhost:1/app:1", f"{proxy.name}/team/forgotten:1")
    folder = Path(store.path, "origins")
    (path,) = folder.iterdir()
    for damage in (b"", b"\xff\n", path.read_bytes()[:-30]):
        path.write_bytes(damage)
        push(store, "localhost:1/app:1", f"{proxy.name}/team/forgotten:2")
        assert path.read_bytes().splitlines()[-1].startswith(b"sha256:")
    store.prune()
    assert list(folder.iterdir()) == [path]
    store.prune(all=True)
    assert list(folder.iterdir()) == []
    folder.rmdir()
    add(store, tmp_path / "again", "localhost:1/app:1", seed="forgotten")
    push(store, "localhost:1/app:1", f"{proxy.name}/team/forgotten:3")


@pytest.mark.parametrize("method, path", [("PUT", "/blobs/uploads/"), ("POST", "/blobs/uploads/")])
def test_too_much_at_once_is_waited_for(
    proxy: Proxy, store: Store, tmp_path: Path, method: str, path: str
) -> None:
    add(store, tmp_path / "image", "localhost:1/app:1", layers=1, size=1000, seed=f"limited{method}")
    proxy.faults = [Fault(method, path, times=1, status=429, headers={"Retry-After": "1"})]
    began = time.monotonic()
    push(store, "localhost:1/app:1", f"{proxy.name}/limited/{method.lower()}:1")
    assert time.monotonic() - began >= 1


def test_a_blob_that_cannot_be_mounted_is_sent(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    made = add(store, tmp_path / "image", "localhost:1/app:1", seed="unmounted")
    proxy.faults = [Fault("POST", "from=secret", status=403)]
    push(store, "localhost:1/app:1", f"{proxy.name}/unmounted:1", mount_from=["missing", "secret"])
    assert len(proxy.asked("PUT", "/blobs/uploads/")) == len(blobs(made))


def test_chunks_say_what_they_are(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    made = add(store, tmp_path / "image", "localhost:1/app:1", layers=1, seed="chunks")
    push(store, "localhost:1/app:1", f"{proxy.name}/chunks:1", part=PART)
    size = made["layers"][0]["size"]
    expected = [f"{start}-{min(start + PART, size) - 1}" for start in range(0, size, PART)]
    sent = proxy.asked("PATCH", "")
    assert [seen.headers["Content-Range"] for seen in sent] == expected
    assert sum(int(seen.headers["Content-Length"]) for seen in sent) == size


def test_a_registry_may_ask_for_bigger_chunks(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    add(store, tmp_path / "image", "localhost:1/app:1", layers=1, size=500_000, seed="bigger")
    with Registry(proxy.name) as registry:
        registry.ping()
    where = {"Location": f"http://{proxy.name}/elsewhere?session=1", "OCI-Chunk-Min-Length": str(2 * PART)}
    there = {"Location": "/elsewhere?session=2"}
    proxy.faults = [
        Fault("POST", "/blobs/uploads/", status=202, headers=where),
        Fault("PATCH", "/elsewhere?session=", status=202, headers=there),
        Fault("PUT", "/elsewhere?session=", status=201),
    ]
    with pytest.raises(RegistryError):
        # The registry knows nothing of what went elsewhere.
        push(store, "localhost:1/app:1", f"{proxy.name}/bigger:1", part=PART)
    assert int(proxy.asked("PATCH", "session=1")[0].headers["Content-Length"]) == 2 * PART
    assert "session=2&digest=sha256:" in proxy.asked("PUT", "session=2")[0].path


@pytest.mark.parametrize("fault", ["eat", "status", "lose"])
def test_an_upload_goes_on_after_a_failure(proxy: Proxy, store: Store, tmp_path: Path, fault: str) -> None:
    made = add(store, tmp_path / "image", "localhost:1/app:1", layers=1, size=500_000, seed=fault)
    proxy.faults = [
        {
            "eat": Fault("PATCH", "", skip=2, times=1, eat=1000),
            "status": Fault("PATCH", "", skip=2, times=1, status=503),
            # The registry has it; a client that sends it again is told so.
            "lose": Fault("PATCH", "", skip=2, times=1, lose=True),
        }[fault]
    ]
    target = f"{proxy.name}/failure-{fault}:1"
    assert push(store, "localhost:1/app:1", target, part=PART) == made["digest"]
    assert len(proxy.asked("GET", "/blobs/uploads/")) == 1
    if fault != "lose":
        # Nothing was sent twice but the chunk that failed.
        assert len(proxy.asked("POST", "/blobs/uploads/")) == 2
        assert len(proxy.asked("PATCH", "")) == 8 + 1
    pull(Store(str(tmp_path / "other")), target)


def test_an_upload_that_was_forgotten_begins_anew(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    add(store, tmp_path / "image", "localhost:1/app:1", layers=1, size=300_000, seed="forgotten")
    unknown = b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"blob upload unknown to registry"}]}'
    proxy.faults = [
        Fault("PATCH", "", skip=1, times=1, status=404, body=unknown),
        Fault("GET", "/blobs/uploads/", status=404, body=unknown),
    ]
    target = f"{proxy.name}/forgotten:1"
    push(store, "localhost:1/app:1", target, part=PART)
    pull(Store(str(tmp_path / "other")), target)


def test_an_answer_that_was_lost_is_no_second_upload(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    made = add(store, tmp_path / "image", "localhost:1/app:1", seed="lost")
    proxy.faults = [Fault("PUT", "/blobs/uploads/", times=1, lose=True)]
    push(store, "localhost:1/app:1", f"{proxy.name}/lost:1")
    assert len(proxy.asked("POST", "/blobs/uploads/")) == len(blobs(made))


def test_an_upload_that_always_fails_is_given_up(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    add(store, tmp_path / "image", "localhost:1/app:1", layers=1, seed="never")
    proxy.faults = [Fault("PUT", "/blobs/uploads/", status=500)]
    with pytest.raises(RegistryError, match="500"):
        push(store, "localhost:1/app:1", f"{proxy.name}/never:1")
    assert not proxy.asked("PUT", "/manifests/")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/blobs/uploads/", status=202),
        Fault("POST", "/blobs/uploads/", status=202, headers={"Location": "file:///etc/passwd"}),
        Fault("POST", "/blobs/uploads/", status=202, headers={"Location": "http://["}),
        Fault("POST", "/blobs/uploads/", status=201),
        Fault(
            "POST",
            "/blobs/uploads/",
            status=202,
            headers={"Location": "/a", "OCI-Chunk-Min-Length": "9" * 12},
        ),
        Fault("PUT", "/manifests/", status=201, headers={"Docker-Content-Digest": f"sha256:{'0' * 64}"}),
        Fault("PUT", "/manifests/", status=400, body=b'{"errors":"?"}'),
    ],
    ids=lambda fault: f"{fault.method}{fault.status}{list(fault.headers)}",
)
def test_nonsense_is_an_error_of_ours(proxy: Proxy, store: Store, tmp_path: Path, fault: Fault) -> None:
    add(store, tmp_path / "image", "localhost:1/app:1", layers=1, seed=f"{fault}")
    proxy.faults = [fault]
    with pytest.raises(ImageError):
        push(store, "localhost:1/app:1", f"{proxy.name}/nonsense:1")


def test_a_login_does_not_follow_an_upload_elsewhere(
    plain: Server, proxy: Proxy, store: Store, tmp_path: Path
) -> None:
    add(store, tmp_path / "image", "localhost:1/app:1", layers=1, seed="elsewhere")
    challenge = {"WWW-Authenticate": 'Basic realm="a"'}
    with Proxy(plain.port) as other:
        where = {"Location": f"http://127.0.0.1:{other.port}/upload"}
        other.faults = [Fault("PUT", "/upload", status=201)]
        proxy.faults = [
            Fault("HEAD", "/blobs/", times=1, status=401, headers=challenge),
            Fault("POST", "/blobs/uploads/", status=202, headers=where),
            Fault("PUT", "/manifests/", status=201),
        ]
        push(store, "localhost:1/app:1", f"{proxy.name}/elsewhere:1", credentials=("alice", "hunter2"))
        assert other.asked("PUT", "/upload")
        assert all("Authorization" not in seen.headers for seen in other.log)
        assert any("Authorization" in seen.headers for seen in proxy.log)


def test_an_index_is_pushed_with_all_that_it_lists(plain: Server, store: Store, tmp_path: Path) -> None:
    entries = []
    for architecture in ("amd64", "arm64"):
        made = add(store, tmp_path / architecture, "localhost:1/app:1", seed=architecture)
        size = len(store.read(made["digest"], 1 << 20))
        platform = {"architecture": architecture, "os": "linux"}
        entries.append(
            {"mediaType": OCI_MANIFEST, "digest": made["digest"], "size": size, "platform": platform}
        )
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    descriptor = Descriptor(OCI_INDEX, store.add(raw), len(raw))
    assert push(store, descriptor, f"{plain.name}/index:1") == descriptor.digest
    copied = ("copy", "--all", "--src-tls-verify=false", f"docker://{plain.name}/index:1")
    registries.skopeo(*copied, f"dir:{tmp_path / 'copy'}")
    with Registry(plain.name) as registry:
        assert registry.manifest("index", "1").raw == raw


def test_an_image_that_is_not_whole_is_not_pushed(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    made = registries.layout(tmp_path / "image", seed="part")
    raw = (tmp_path / "image/blobs/sha256" / made["digest"][7:]).read_bytes()
    descriptor = Descriptor(OCI_MANIFEST, store.add(raw), len(raw))
    with pytest.raises(ImageError, match="without which it is not whole"):
        push(store, descriptor, f"{proxy.name}/part:1")
    assert proxy.log == []


def test_what_refers_to_an_image_is_entered_where_the_registry_keeps_no_list(
    plain: Server, store: Store, tmp_path: Path
) -> None:
    made = add(store, tmp_path / "image", "localhost:1/app:1", seed="subject")
    push(store, "localhost:1/app:1", f"{plain.name}/subject:1")
    subject = {
        "mediaType": OCI_MANIFEST,
        "digest": made["digest"],
        "size": len(store.read(made["digest"], 1 << 20)),
    }
    kept = {name: value for name, value in made.items() if name != "digest"}
    raw = json.dumps({**kept, "artifactType": "a/signature", "subject": subject}).encode()
    signature = Descriptor(OCI_MANIFEST, store.add(raw), len(raw))
    push(store, signature, f"{plain.name}/subject@{signature.digest}")
    with Registry(plain.name) as registry:
        (found,) = registry.referrers("subject", made["digest"])
    assert (found.digest, found.artifact_type) == (signature.digest, "a/signature")


def test_a_name_that_makes_no_sense_is_refused(store: Store, tmp_path: Path) -> None:
    add(store, tmp_path / "image", "localhost:1/app:1")
    with pytest.raises(ImageError, match="not in the store"):
        push(store, "localhost:1/missing:1", "localhost:1/app:1")
    for target in ("localhost:1/UPPER", f"localhost:1/app@sha256:{'0' * 64}"):
        with pytest.raises(SpecError, match="target"):
            push(store, "localhost:1/app:1", target)
    with pytest.raises(SpecError, match="part"):
        push(store, "localhost:1/app:1", "localhost:1/app:1", part=0)
    with pytest.raises(SpecError, match="repository"):
        push(store, "localhost:1/app:1", "localhost:1/app:1", mount_from=["../x"])


def test_a_push_can_be_given_up(proxy: Proxy, store: Store, tmp_path: Path) -> None:
    add(store, tmp_path / "image", "localhost:1/app:1", layers=4, seed="given up")
    proxy.faults = [Fault("POST", "/blobs/uploads/", status=429, headers={"Retry-After": "30"})]
    deadline = time.monotonic() + 0.5

    def cancelled() -> None:
        if time.monotonic() > deadline:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(store, "localhost:1/app:1", f"{proxy.name}/stopped:1", cancelled=cancelled)
    assert time.monotonic() - deadline < 25
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sandboxlib-image")]
