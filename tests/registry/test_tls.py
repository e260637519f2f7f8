"""TLS, where it can be done without, and proxies."""

from __future__ import annotations

import base64
import contextlib
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxlib.errors import ImageError, SpecError, UnsupportedError
from sandboxlib.image import trust
from sandboxlib.image.answers import UnreachableError
from sandboxlib.image.registry import Registry

import registries
from registries import Fault, Keys, Proxy, Server

pytestmark = [
    pytest.mark.leaks,
    pytest.mark.tool("docker-registry", "htpasswd", "openssl"),
    pytest.mark.usefixtures("hasty"),
]

ALICE = ("alice", "hunter2")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Server]:
    """A registry with TLS and passwords."""
    folder = tmp_path_factory.mktemp("secure")
    with registries.serve(folder, keys=keys, users={"alice": "hunter2"}) as server:
        yield server


def test_an_authority_of_ones_own_is_trusted_by_argument(secure: Server, keys: Keys) -> None:
    with Registry(secure.name, credentials=ALICE, ca=str(keys.ca)) as registry:
        assert registry.catalogue() == ()


def test_and_by_the_environment(secure: Server, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(keys.ca))
    with Registry(secure.name, credentials=ALICE) as registry:
        registry.ping()


def test_and_by_a_folder_of_the_registry(secure: Server, keys: Keys, home: Path) -> None:
    folder = home / ".config/containers/certs.d" / secure.name
    folder.mkdir(parents=True)
    shutil.copy(keys.ca, folder / "ca.crt")
    with Registry(secure.name, credentials=ALICE) as registry:
        registry.ping()
    # It is that registry's folder and no other's.
    with Registry(f"127.0.0.1:{secure.port}", credentials=ALICE) as registry, pytest.raises(UnreachableError):
        registry.ping()


@pytest.mark.root
@pytest.mark.parametrize("above", ["/etc/docker/certs.d", "/etc/containers/certs.d"])
def test_and_by_a_folder_of_the_machine(secure: Server, keys: Keys, above: str) -> None:
    made = [path for path in (Path(above).parent, Path(above)) if not path.exists()]
    folder = Path(above, secure.name)
    folder.mkdir(parents=True)
    try:
        shutil.copy(keys.ca, folder / "ca.crt")
        with Registry(secure.name, credentials=ALICE) as registry:
            registry.ping()
    finally:
        shutil.rmtree(folder)
        for path in reversed(made):
            path.rmdir()


def test_a_client_shows_its_certificate(tmp_path: Path, keys: Keys, home: Path) -> None:
    with registries.serve(tmp_path / "registry", keys=keys, client_ca=keys.ca) as server:
        with Registry(server.name, ca=str(keys.ca)) as registry, pytest.raises(UnreachableError):
            registry.ping()
        folder = home / ".config/containers/certs.d" / server.name
        folder.mkdir(parents=True)
        for name, source in (("ca.crt", keys.ca), ("client.cert", None), ("client.key", None)):
            shutil.copy(source or keys.ca.parent / name, folder / name)
        with Registry(server.name) as registry:
            registry.ping()


@pytest.mark.parametrize("insecure", [None, True, False])
def test_a_certificate_that_is_not_trusted_is_never_done_without(
    secure: Server, insecure: bool | None
) -> None:
    with (
        Registry(secure.name, credentials=ALICE, insecure=insecure) as registry,
        pytest.raises(UnreachableError, match=r"not trusted.*ca="),
    ):
        registry.ping()


def test_a_certificate_for_another_name_is_refused(keys: Keys, secure: Server) -> None:
    with Registry(f"[::1]:{secure.port}", ca=str(keys.ca)) as registry, pytest.raises(UnreachableError):
        registry.ping()
    with Registry(f"127.0.0.2:{secure.port}", ca=str(keys.ca)) as registry, pytest.raises(UnreachableError):
        registry.ping()


@pytest.mark.parametrize(
    "content", [None, "", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"]
)
def test_a_file_without_certificates_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_text(content)
    with Registry("localhost:1", ca=str(path)) as registry, pytest.raises(SpecError, match="'ca'"):
        registry.ping()


def test_a_broken_certificate_in_a_folder_is_named(home: Path) -> None:
    folder = home / ".config/containers/certs.d/localhost:1"
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_text("nonsense")
    with Registry("localhost:1") as registry, pytest.raises(ImageError, match=r"ca\.crt"):
        registry.ping()


def test_what_waits_inside_tls_can_be_given_up(secure: Server, keys: Keys) -> None:
    with Proxy(secure.port, keys=keys) as proxy:
        proxy.faults = [
            Fault("GET", "/v2/_catalog", status=200, headers={"Content-Length": "100"}, body=b"[")
        ]
        deadline = time.monotonic() + 0.3

        def cancelled() -> None:
            if time.monotonic() > deadline:
                raise KeyboardInterrupt

        with Registry(proxy.name, ca=str(keys.ca), cancelled=cancelled) as registry:
            with pytest.raises(KeyboardInterrupt):
                registry.catalogue()
            assert time.monotonic() - deadline < 20


@pytest.mark.parametrize("listens", [True, False])
def test_what_waits_for_a_connection_can_be_given_up(listens: bool) -> None:
    # Nobody takes the connections: the kernel takes a few, which TLS waits in, and lets the others wait.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as stack:
        for _ in range(0 if listens else 4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        deadline = time.monotonic() + 0.3

        def cancelled() -> None:
            if time.monotonic() > deadline:
                raise KeyboardInterrupt

        name = f"localhost:{server.getsockname()[1]}"
        with Registry(name, cancelled=cancelled) as registry:
            with pytest.raises(KeyboardInterrupt):
                registry.ping()
            assert time.monotonic() - deadline < 20


# --- without TLS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_this_machine_may_be_spoken_to_in_the_clear(plain: Server, host: str) -> None:
    with Registry(f"{host}:{plain.port}") as registry:
        registry.ping()


@pytest.mark.parametrize(
    "registry, insecure, listed, verdict",
    [
        ("localhost", None, "", True),
        ("localhost:5000", None, "", True),
        ("127.8.9.10:5000", None, "", True),
        ("[::1]:5000", None, "", True),
        ("localhost.example:5000", None, "", False),
        ("127.0.0.1.example", None, "", False),
        ("10.0.0.1:5000", None, "", False),
        ("10.0.0.1:5000", None, "a, 10.0.0.1:5000", True),
        ("10.0.0.1:5001", None, "a, 10.0.0.1:5000", False),
        ("10.0.0.1", None, ",", False),
        ("10.0.0.1", True, "", True),
        ("localhost", False, "", True),
    ],
)
def test_who_may_be_spoken_to_in_the_clear(
    registry: str, insecure: bool | None, listed: str, verdict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trust.INSECURE, listed)
    assert trust.may_be_plain(registry, insecure) is verdict


def test_a_registry_with_tls_cannot_send_to_one_without(secure: Server, keys: Keys) -> None:
    with Proxy(secure.port, keys=keys) as proxy:
        proxy.faults = [Fault("GET", "/blobs/", redirect="http://registry.example")]
        with (
            Registry(proxy.name, ca=str(keys.ca)) as registry,
            pytest.raises(ImageError, match="from https to http"),
        ):
            registry.open_blob("a", f"sha256:{'0' * 64}")


def test_what_is_neither_http_nor_tls_is_an_error_of_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        # It takes the connection, and closes it at once.
        server.settimeout(0.01)
        name = f"localhost:{server.getsockname()[1]}"
        server.close()
        with Registry(name) as registry, pytest.raises(UnreachableError):
            registry.ping()


# --- proxies --------------------------------------------------------------------------------------------


def test_a_proxy_of_the_environment_is_used(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:hunter2@127.0.0.1:{proxy.port}")
    monkeypatch.setenv("http_proxy", f"http://user:hunter2@127.0.0.1:{proxy.port}")
    # Nobody but the proxy knows this name.
    with Registry("registry.test:5000", insecure=True) as registry:
        registry._base = "http://registry.test:5000"
        registry.catalogue()
    login = "Basic " + base64.b64encode(b"user:hunter2").decode()
    assert proxy.log[0].headers["Proxy-Authorization"] == login
    assert proxy.log[0].headers["Host"] == "registry.test:5000"


def test_tls_goes_through_a_proxy_from_end_to_end(
    secure: Server, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(secure.port) as proxy:
        monkeypatch.setenv("https_proxy", f"http://us%20er:hunter2@127.0.0.1:{proxy.port}")
        with Registry("registry.test:5000", credentials=ALICE, ca=str(keys.ca)) as registry:
            registry.catalogue()
        (seen,) = proxy.log
        assert (seen.method, seen.path) == ("CONNECT", "registry.test:5000")
        login = "Basic " + base64.b64encode(b"us er:hunter2").decode()
        assert seen.headers["Proxy-Authorization"] == login
        # The certificate is that of the registry, not of whoever is on the way.
        proxy.log.clear()
        with (
            Registry("other.test:5000", credentials=ALICE, ca=str(keys.ca)) as registry,
            pytest.raises(UnreachableError, match="not trusted"),
        ):
            registry.catalogue()


@pytest.mark.parametrize(
    "url, bypass, found",
    [
        ("https://a.example/v2/", "", "http://proxy:3128"),
        ("https://a.example/v2/", "a.example", None),
        ("https://b.a.example/v2/", ".a.example", None),
        ("https://a.example:5000/v2/", "*", None),
        ("https://localhost:5000/v2/", "", None),
        ("https://127.0.0.1/v2/", "", None),
        ("http://a.example/v2/", "", None),
    ],
)
def test_which_way_a_request_takes(
    url: str, bypass: str, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "proxy:3128")
    monkeypatch.setenv("no_proxy", bypass)
    proxy = trust.proxy_for(url)
    assert (proxy and proxy.url) == found


def test_the_password_of_a_proxy_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    port = registries.free_port()
    monkeypatch.setenv("https_proxy", f"http://user:hunter2@127.0.0.1:{port}")
    with Registry("registry.test") as registry, pytest.raises(UnreachableError) as caught:
        registry.ping()
    assert "hunter2" not in str(caught.value)


def test_a_proxy_that_speaks_something_else_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with Registry("registry.test") as registry, pytest.raises(UnsupportedError, match="socks5"):
        registry.ping()


def test_tls_of_the_tests_is_tls(keys: Keys, secure: Server) -> None:
    context = ssl.create_default_context(cafile=str(keys.ca))
    with (
        socket.create_connection(("127.0.0.1", secure.port)) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as wrapped,
    ):
        assert wrapped.version() in ("TLSv1.2", "TLSv1.3")
