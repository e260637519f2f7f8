"""What a registry has, and what it says when it refuses."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image.answers import RegistryError, UnreachableError
from sandboxlib.image.model import OCI_MANIFEST, Descriptor
from sandboxlib.image.registry import Registry, refer

import registries
from registries import Fault, Proxy, Server

pytestmark = [
    pytest.mark.leaks,
    pytest.mark.tool("docker-registry", "skopeo"),
    pytest.mark.usefixtures("hasty"),
]


@pytest.fixture(scope="module", autouse=True)
def digest(plain: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image that skopeo has pushed under several tags."""
    folder = tmp_path_factory.mktemp("image")
    image = registries.layout(folder)
    for tag in ("1", "2", "b", "a"):
        registries.put(folder, f"{plain.name}/team/app:{tag}")
    registries.put(folder, f"{plain.name}/other:1")
    return str(image["digest"])


def test_tags_and_repositories_are_listed(plain: Server) -> None:
    with Registry(plain.name) as registry:
        assert sorted(registry.tags("team/app")) == ["1", "2", "a", "b"]
        assert {"other", "team/app"} <= set(registry.catalogue())


def test_a_list_in_pages_is_followed_to_its_end(proxy: Proxy) -> None:
    url = '</v2/team/app/tags/list?n=2&last=2>; rel="next"'
    proxy.faults = [
        Fault("GET", "last=2", status=200, body=b'{"name":"team/app","tags":["c"]}'),
        Fault(
            "GET",
            "tags/list",
            status=200,
            headers={"Link": url},
            body=b'{"name":"team/app","tags":["a","b"]}',
        ),
    ]
    with Registry(proxy.name) as registry:
        assert registry.tags("team/app") == ("a", "b", "c")


@pytest.mark.parametrize(
    "link", ["</v2/team/app/tags/list?n=1000>", "<http://127.0.0.1:1/v2/>", "<file:///etc/passwd>", "<//[>"]
)
def test_a_list_cannot_go_in_circles_or_elsewhere(proxy: Proxy, link: str) -> None:
    proxy.faults = [
        Fault("GET", "tags/list", status=200, headers={"Link": f'{link}; rel="next"'}, body=b'{"tags":["a"]}')
    ]
    with Registry(proxy.name) as registry, pytest.raises(ImageError):
        registry.tags("team/app")


def test_an_empty_list_may_be_null(proxy: Proxy) -> None:
    proxy.faults = [Fault("GET", "tags/list", status=200, body=b'{"name":"team/app","tags":null}')]
    with Registry(proxy.name) as registry:
        assert registry.tags("team/app") == ()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"<html>", b'{"tags":1}', b'{"tags":[1]}', b"[" * 100_000, b'{"tags":"abc"}', b"\xff" * 9],
)
def test_nonsense_is_an_error_of_ours(proxy: Proxy, body: bytes) -> None:
    proxy.faults = [Fault("GET", "tags/list", status=200, body=body)]
    with Registry(proxy.name) as registry, pytest.raises(ImageError, match="is not a"):
        registry.tags("team/app")


def test_an_answer_without_end_is_not_read_to_it(proxy: Proxy) -> None:
    proxy.faults = [Fault("GET", "tags/list", status=200, body=b" " * (5 << 20))]
    with Registry(proxy.name) as registry, pytest.raises(ImageError, match="longer than"):
        registry.tags("team/app")


def test_errors_have_the_registrys_own_code(plain: Server) -> None:
    with Registry(plain.name) as registry:
        with pytest.raises(RegistryError, match="there is no such repository") as caught:
            registry.tags("missing")
        assert (caught.value.status, caught.value.code) == (404, "NAME_UNKNOWN")
        assert caught.value.reference == f"{plain.name}/missing"
        with pytest.raises(RegistryError, match="no such tag") as caught:
            registry.manifest("team/app", "missing")
        assert (caught.value.status, caught.value.code) == (404, "MANIFEST_UNKNOWN")


def test_an_error_is_one_line_without_control_characters(proxy: Proxy) -> None:
    body = {"errors": [{"code": "DENIED\n\x1b[2J", "message": "\r\n" + "x" * 100_000, "detail": {"a": 1}}]}
    proxy.faults = [Fault("GET", "tags/list", status=403, body=json.dumps(body).encode())]
    with Registry(proxy.name) as registry, pytest.raises(RegistryError) as caught:
        registry.tags("team/app")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_manifests_are_found_by_tag_and_by_digest(plain: Server, digest: str) -> None:
    with Registry(plain.name) as registry:
        assert registry.digest("team/app", "1") == digest
        by_tag, by_digest = (registry.manifest("team/app", name) for name in ("1", digest))
        assert by_tag == by_digest
        assert (by_tag.digest, by_tag.media_type) == (digest, OCI_MANIFEST)


def test_a_manifest_that_was_changed_is_refused(proxy: Proxy, digest: str) -> None:
    proxy.faults = [Fault("GET", "/manifests/", flip=True)]
    with Registry(proxy.name) as registry:
        for name in ("1", digest):
            with pytest.raises(ImageError, match="changed on the way"):
                registry.manifest("team/app", name)


def test_a_manifest_cannot_be_too_long(proxy: Proxy) -> None:
    proxy.faults = [Fault("GET", "/manifests/", status=200, body=b" " * ((4 << 20) + 1))]
    with Registry(proxy.name) as registry, pytest.raises(ImageError, match="longer than 4194304 bytes"):
        registry.manifest("team/app", "1")


def test_a_manifest_is_deleted_with_its_tags(plain: Server, tmp_path: Path) -> None:
    digest = registries.layout(tmp_path, seed="deleted")["digest"]
    registries.put(tmp_path, f"{plain.name}/gone:1")
    with Registry(plain.name) as registry:
        registry.delete("gone", digest)
        assert registry.tags("gone") == ()
        with pytest.raises(RegistryError, match="404"):
            registry.delete("gone", digest)
        # Docker's registry deletes no tag alone, and says so.
        with pytest.raises(RegistryError):
            registry.delete("team/app", "1")
        assert "1" in registry.tags("team/app")


def test_a_tag_is_deleted_where_the_registry_can(proxy: Proxy) -> None:
    proxy.faults = [Fault("DELETE", "/manifests/1", status=202)]
    with Registry(proxy.name) as registry:
        registry.delete("team/app", "1")
    assert len(proxy.asked("DELETE", "/v2/team/app/manifests/1")) == 1


def test_what_refers_to_a_manifest_is_listed_by_the_registry(proxy: Proxy, digest: str) -> None:
    other = f"sha256:{'1' * 64}"

    def entry(kind: str) -> dict[str, object]:
        return {"mediaType": OCI_MANIFEST, "digest": other, "size": 2, "artifactType": kind}

    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry("a/b"), entry("a/c")],
    }
    proxy.faults = [Fault("GET", "/referrers/", status=200, body=json.dumps(index).encode())]
    with Registry(proxy.name) as registry:
        assert [one.artifact_type for one in registry.referrers("team/app", digest)] == ["a/b", "a/c"]
        # Also where the registry does not filter.
        found = registry.referrers("team/app", digest, artifact_type="a/c")
        assert [one.artifact_type for one in found] == ["a/c"]
    assert "artifactType=a%2Fc" in proxy.log[-1].path


def test_what_refers_to_a_manifest_has_a_tag_where_there_is_no_list(plain: Server, digest: str) -> None:
    with Registry(plain.name) as registry:
        assert registry.referrers("team/app", digest) == ()
        raw = registry.manifest("team/app", digest).raw
        signature = Descriptor(OCI_MANIFEST, digest, len(raw), artifact_type="a/signature")
        refer(registry, "team/app", digest, signature)
        refer(registry, "team/app", digest, signature)
        assert [one.digest for one in registry.referrers("team/app", digest)] == [digest]
        assert registry.referrers("team/app", digest, artifact_type="a/other") == ()
        assert f"sha256-{digest[7:]}" in registry.tags("team/app")


@pytest.mark.parametrize("name", ["../../other", "", "a b", "A", "a?b", "a#b", "x/%2e%2e/y"])
def test_names_cannot_leave_their_place_in_the_path(plain: Server, digest: str, name: str) -> None:
    with Registry(plain.name) as registry:
        for ask in (registry.tags, lambda name: registry.delete(name, digest)):
            with pytest.raises(SpecError):
                ask(name)
        if name != "A":
            for also in (lambda: registry.delete("a", name), lambda: registry.manifest("a", name)):
                with pytest.raises(SpecError):
                    also()
            with pytest.raises(SpecError):
                registry.referrers("a", name)


# --- failures that pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_failure_that_passes_is_waited_for(proxy: Proxy, status: int) -> None:
    proxy.faults = [Fault("GET", "tags/list", times=2, status=status)]
    with Registry(proxy.name) as registry:
        assert "1" in registry.tags("team/app")
    assert len(proxy.asked("GET", "tags/list")) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 410, 501])
def test_a_failure_that_stays_is_asked_for_once(proxy: Proxy, status: int) -> None:
    proxy.faults = [Fault("GET", "tags/list", status=status)]
    with Registry(proxy.name) as registry, pytest.raises(RegistryError):
        registry.tags("team/app")
    assert len(proxy.asked("GET", "tags/list")) == 1


def test_retry_after_is_heeded(proxy: Proxy) -> None:
    proxy.faults = [Fault("GET", "tags/list", times=1, status=429, headers={"Retry-After": "1"})]
    began = time.monotonic()
    with Registry(proxy.name) as registry:
        registry.tags("team/app")
    assert time.monotonic() - began >= 1


def test_nobody_waits_for_an_hour(proxy: Proxy) -> None:
    proxy.faults = [Fault("GET", "tags/list", status=429, headers={"Retry-After": "3600"})]
    began = time.monotonic()
    with Registry(proxy.name) as registry, pytest.raises(RegistryError, match="limits how much"):
        registry.tags("team/app")
    assert time.monotonic() - began < 50


def test_a_registry_that_stays_broken_is_given_up(proxy: Proxy) -> None:
    proxy.faults = [Fault("GET", "tags/list", cut=0)]
    with Registry(proxy.name) as registry, pytest.raises(ImageError):
        registry.tags("team/app")


def test_a_registry_that_is_not_there_is_named() -> None:
    port = registries.free_port()
    with Registry(f"127.0.0.1:{port}") as registry, pytest.raises(UnreachableError) as caught:
        registry.ping()
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "Connection refused" in str(caught.value)


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_that_cannot_be_is_refused(port: str) -> None:
    with pytest.raises(SpecError, match="registry"):
        Registry(f"a.example:{port}")


OK = b"HTTP/1.1 200 OK\r\n"


def answered(ask: Callable[[], object]) -> None:
    """Ask; an answer without content will do for some questions."""
    ask()
    raise ImageError("it was answered")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 1000,
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 999999999999999999999 OK\r\n\r\n",
        b"HTTP/1.1 -1 OK\r\n\r\n",
        b"HTTP/1.1 200",
        OK + b"A" * 100_000,
        OK + b"A: b\r\n" * 1000 + b"\r\n",
        OK + b"Content-Length: -1\r\n\r\n{",
        OK + b"Content-Length: 5, 6\r\n\r\n{",
        OK + b"Content-Length: 99999999999999999999999\r\n\r\n{",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n{}",
        OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffff\r\n{}",
        OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{]",
        b"HTTP/1.1 307 \r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 \r\nWWW-Authenticate: \xff\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5,
        OK + b'Link: <\xff>; rel=next\r\nContent-Length: 11\r\n\r\n{"tags":[]}',
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
def test_any_answer_at_all_is_an_error_of_ours(raw: bytes) -> None:
    with registries.raw(raw) as port, Registry(f"localhost:{port}") as registry:
        for ask in (lambda: registry.tags("a"), lambda: registry.manifest("a", "1"), registry.ping):
            with pytest.raises(ImageError):
                answered(ask)


def test_what_waits_can_be_given_up(proxy: Proxy) -> None:
    stalled = threading.Event()
    proxy.faults = [Fault("GET", "tags/list", stall=stalled)]
    deadline = time.monotonic() + 0.3

    def cancelled() -> None:
        if time.monotonic() > deadline:
            raise KeyboardInterrupt

    with Registry(proxy.name, cancelled=cancelled) as registry:
        with pytest.raises(KeyboardInterrupt):
            registry.tags("team/app")
        assert time.monotonic() - deadline < 20
        # And it can be used again.
        proxy.faults = []
        stalled.set()
        deadline += 1000
        assert "1" in registry.tags("team/app")


def test_redirects_are_followed_only_so_far(proxy: Proxy) -> None:
    proxy.faults = [Fault("GET", "/blobs/", redirect=f"http://{proxy.name}")]
    with Registry(proxy.name) as registry, pytest.raises(ImageError, match="more than 5 times"):
        registry.open_blob("team/app", f"sha256:{hashlib.sha256(b'').hexdigest()}")
    assert len(proxy.asked("GET", "/blobs/")) == 6


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "http://[", "ftp://localhost", "http://u:p@localhost"]
)
def test_redirects_lead_to_http_and_nothing_else(proxy: Proxy, target: str) -> None:
    proxy.faults = [Fault("GET", "/blobs/", redirect=target)]
    with Registry(proxy.name) as registry, pytest.raises(ImageError, match="not a URL of http"):
        registry.open_blob("team/app", f"sha256:{hashlib.sha256(b'').hexdigest()}")
