"""Tokens: fetched for a scope, kept, fetched anew, and shown to nobody else. And Basic."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxlib.errors import ImageError
from sandboxlib.image.answers import RegistryError
from sandboxlib.image.auth import Credentials
from sandboxlib.image.registry import Registry, login, logout
from sandboxlib.image.store import Store
from sandboxlib.image.transfer import pull

import registries
from registries import Fault, Keys, Proxy, Server, TokenServer

pytestmark = [
    pytest.mark.leaks,
    pytest.mark.tool("docker-registry", "htpasswd", "openssl", "skopeo"),
    pytest.mark.usefixtures("hasty"),
]

ALICE = ("alice", "hunter2")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[tuple[TokenServer, Server]]:
    """A token server, and a registry that believes it."""
    folder = tmp_path_factory.mktemp("token")
    with TokenServer(keys) as tokens, registries.serve(folder, token=tokens) as server:
        tokens.users = {"alice": "hunter2"}
        tokens.refresh = {"a refresh token": "alice"}
        image = folder / "image"
        registries.layout(image)
        registries.put(image, f"{server.name}/team/app:1", "--dest-creds=alice:hunter2")
        yield tokens, server


@pytest.fixture
def tokens(servers: tuple[TokenServer, Server]) -> TokenServer:
    made = servers[0]
    made.requests.clear()
    made.allowed = lambda _user, _scope: True
    made.raw = None
    return made


@pytest.fixture
def server(servers: tuple[TokenServer, Server]) -> Server:
    return servers[1]


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A registry with passwords, without TLS."""
    with registries.serve(tmp_path_factory.mktemp("basic"), users={"alice": "hunter2"}) as server:
        yield server


def basic_header(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_one_token_serves_all_requests_of_its_scope(tokens: TokenServer, server: Server) -> None:
    with Registry(server.name, credentials=ALICE) as registry:
        for _ in range(3):
            registry.tags("team/app")
        registry.manifest("team/app", "1")
        assert len(tokens.requests) == 1
        registry.catalogue()
        assert len(tokens.requests) == 2
    method, asked, header = tokens.requests[0]
    assert method == "GET"
    assert asked == {
        "kept": ["1"],
        "service": [tokens.service],
        "scope": ["repository:team/app:pull"],
        "account": ["alice"],
    }
    assert header == basic_header(*ALICE)


def test_threads_that_want_the_same_token_fetch_it_once(tokens: TokenServer, server: Server) -> None:
    with Registry(server.name, credentials=ALICE) as registry:
        threads = [threading.Thread(target=registry.tags, args=("team/app",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(tokens.requests) == 1


def test_nobody_gets_a_token_too(tokens: TokenServer, server: Server) -> None:
    with Registry(server.name) as registry:
        assert registry.tags("team/app") == ("1",)
    assert tokens.requests[0][2] == ""
    assert "account" not in tokens.requests[0][1]


def test_a_token_without_the_right_is_an_error_with_a_hint(tokens: TokenServer, server: Server) -> None:
    tokens.allowed = lambda user, _scope: user == "alice"
    with Registry(server.name) as registry, pytest.raises(RegistryError, match="see login") as caught:
        registry.tags("team/app")
    assert (caught.value.status, caught.value.code) == (401, "UNAUTHORIZED")
    # Once more with a new token, and not for ever.
    assert len(tokens.requests) <= 2


def test_a_wrong_password_is_in_no_error(tokens: TokenServer, server: Server) -> None:
    with (
        Registry(server.name, credentials=("alice", "hunter3")) as registry,
        pytest.raises(ImageError) as caught,
    ):
        registry.tags("team/app")
    assert "fetching a token" in str(caught.value)
    assert "hunter3" not in str(caught.value)
    assert "hunter3" not in repr(registry.__dict__)


def test_an_identity_token_is_sent_in_a_form(tokens: TokenServer, server: Server) -> None:
    given = Credentials(identity_token="a refresh token")
    with Registry(server.name, credentials=given) as registry:
        assert registry.tags("team/app") == ("1",)
    method, asked, header = tokens.requests[0]
    assert (method, header) == ("POST", "")
    assert asked["grant_type"] == ["refresh_token"]
    assert asked["scope"] == ["repository:team/app:pull"]


def test_a_registry_token_is_sent_as_it_is(tokens: TokenServer, server: Server) -> None:
    token = tokens.sign("alice", ["repository:team/app:pull"])
    with Registry(server.name, credentials=Credentials(registry_token=token)) as registry:
        assert registry.tags("team/app") == ("1",)
    assert tokens.requests == []


@pytest.mark.parametrize("token", ["secret\r\nX: y", "secr\u00e9t"])
def test_a_registry_token_cannot_be_more_than_a_header(
    server: Server, tokens: TokenServer, token: str
) -> None:
    given = Credentials(registry_token=token)
    with Registry(server.name, credentials=given) as registry, pytest.raises(ImageError) as caught:
        registry.tags("team/app")
    assert "secr" not in str(caught.value)


def test_a_token_that_the_registry_forgot_is_fetched_anew_once(tokens: TokenServer, server: Server) -> None:
    with Proxy(server.port) as proxy, Registry(proxy.name, credentials=ALICE) as registry:
        registry.tags("team/app")
        challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="{tokens.service}"'}
        proxy.faults = [Fault("GET", "tags/list", times=1, status=401, headers=challenge)]
        assert registry.tags("team/app") == ("1",)
        assert len(tokens.requests) == 2
        proxy.faults = [Fault("GET", "tags/list", status=401, headers=challenge)]
        with pytest.raises(RegistryError, match="401"):
            registry.tags("team/app")
        assert len(tokens.requests) == 3


def test_a_token_is_fetched_anew_before_its_end(
    tokens: TokenServer, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry(server.name, credentials=ALICE) as registry:
        registry.tags("team/app")
        kept = registry._authenticator._tokens
        for scopes, (token, until) in kept.items():
            kept[scopes] = token, until - tokens.lifetime
        registry.tags("team/app")
    assert len(tokens.requests) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"token":1}',
        b'{"token":""}',
        b'{"token":"a\\r\\nX: y"}',
        b'{"token":"\xc3\xa9"}',
        b"[" * 99999,
    ],
)
def test_a_token_server_that_talks_nonsense_is_an_error(
    tokens: TokenServer, server: Server, raw: bytes
) -> None:
    tokens.raw = raw
    with Registry(server.name) as registry, pytest.raises(ImageError, match="token server"):
        registry.tags("team/app")


def test_a_token_server_cannot_fill_the_memory(tokens: TokenServer, server: Server) -> None:
    tokens.raw = b'{"token":"' + b"a" * (2 << 20) + b'"}'
    with Registry(server.name) as registry, pytest.raises(ImageError, match="longer than"):
        registry.tags("team/app")


@pytest.mark.parametrize("end", ["1e400", "-5", '"soon"', "null", "99999999999999999999999999", "true"])
def test_any_lifetime_of_a_token_will_do(tokens: TokenServer, server: Server, end: str) -> None:
    token = tokens.sign("", ["repository:team/app:pull"])
    tokens.raw = f'{{"token":"{token}","expires_in":{end}}}'.encode()
    with Registry(server.name) as registry:
        try:
            assert registry.tags("team/app") == ("1",)
        except ImageError:
            assert end == "1e400"  # no number of JSON that a decoder takes


@pytest.mark.parametrize(
    "challenge",
    ["Bearer", 'Bearer realm=""', 'Bearer realm="ftp://a/"', 'Bearer realm="//["', "Digest a=b", "", "@"],
)
def test_a_challenge_that_makes_no_sense_is_an_error(proxy: Proxy, challenge: str) -> None:
    proxy.faults = [Fault("GET", "tags/list", status=401, headers={"WWW-Authenticate": challenge})]
    with Registry(proxy.name, credentials=ALICE) as registry, pytest.raises(ImageError):
        registry.tags("team/app")


def test_no_login_goes_to_a_token_server_in_the_clear(
    keys: Keys, server: Server, tokens: TokenServer
) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://tokens.example/token"'}
    with Proxy(server.port, keys=keys) as proxy:
        proxy.faults = [Fault("GET", "tags/list", status=401, headers=challenge)]
        with (
            Registry(proxy.name, credentials=ALICE, ca=str(keys.ca)) as registry,
            pytest.raises(ImageError, match=r"tokens\.example does not: no login is sent there"),
        ):
            registry.tags("team/app")


# --- redirects ------------------------------------------------------------------------------------------


def test_a_login_does_not_follow_to_another_host(tokens: TokenServer, server: Server) -> None:
    with Proxy(server.port) as first, Proxy(server.port) as second:
        first.faults = [Fault("GET", "/blobs/", redirect=f"http://127.0.0.1:{second.port}")]
        second.faults = [Fault("GET", "/blobs/", status=200, body=b"content")]
        with Registry(first.name, credentials=ALICE) as registry:
            config = json.loads(registry.manifest("team/app", "1").raw)["config"]["digest"]
            with registry.open_blob("team/app", config) as answer:
                assert answer.read() == b"content"
        assert "Authorization" in first.asked("GET", "/blobs/")[0].headers
        assert "Authorization" not in second.asked("GET", "/blobs/")[0].headers


def test_another_host_cannot_ask_for_the_login(tokens: TokenServer, server: Server) -> None:
    challenge = {"WWW-Authenticate": 'Basic realm="tell me"'}
    with Proxy(server.port) as first, Proxy(server.port) as second:
        first.faults = [Fault("GET", "/blobs/", redirect=f"http://127.0.0.1:{second.port}")]
        second.faults = [Fault("GET", "/blobs/", status=401, headers=challenge)]
        with Registry(first.name, credentials=ALICE) as registry:
            registry.tags("team/app")
            with registry.open_blob("team/app", f"sha256:{'0' * 64}") as answer:
                assert answer.status == 401
        assert len(second.log) == 1
        assert "Authorization" not in second.log[0].headers


@contextlib.contextmanager
def vanity(target: Server) -> Iterator[Proxy]:
    """A registry by a name of its own, which sends all that is asked for to another one."""
    with Proxy(target.port) as proxy:
        for method in ("GET", "HEAD"):
            proxy.faults.append(Fault(method, "/v2/team", redirect=f"http://127.0.0.1:{target.port}"))
        yield proxy


def test_a_host_that_it_sends_to_is_logged_in_to_by_its_own_challenge(
    tokens: TokenServer, server: Server, tmp_path: Path
) -> None:
    with vanity(server) as proxy:
        with Registry(proxy.name, credentials=("bob", "of the first host")) as registry:
            fetched = registry.manifest("team/app", "1")
            assert registry.digest("team/app", "1") == fetched.digest
            assert registry.tags("team/app") == ("1",)
            config = json.loads(fetched.raw)["config"]["digest"]
            with registry.open_blob("team/app", config) as answer:
                assert answer.status == 200
        assert not any("Authorization" in seen.headers for seen in proxy.log)
        # One token for all, of what its challenge asks for, and nobody's password goes there.
        assert [login for _, _, login in tokens.requests] == [""]
        assert tokens.requests[0][1]["scope"] == ["repository:team/app:pull"]
        store = Store(str(tmp_path / "store"))
        pull(store, f"{proxy.name}/team/app:1")
        assert store.names()[0][0] == f"{proxy.name}/team/app:1"


def test_a_host_that_it_sends_to_gets_the_login_that_is_kept_for_it(
    tokens: TokenServer, server: Server, home: Path
) -> None:
    tokens.allowed = lambda user, _scope: user == "alice"
    with vanity(server) as proxy, Registry(proxy.name, credentials=("bob", "of the first host")) as registry:
        with pytest.raises(RegistryError, match="401"):
            registry.manifest("team/app", "1")
        login(f"127.0.0.1:{server.port}", *ALICE)
        tokens.requests.clear()
        with Registry(proxy.name, credentials=("bob", "of the first host")) as again:
            assert again.manifest("team/app", "1").raw
        assert [header for _, _, header in tokens.requests] == [basic_header(*ALICE)]


def test_a_host_that_it_sends_to_and_that_keeps_asking_is_given_up(basic: Server, server: Server) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:1/token"'}
    with vanity(server) as proxy, Proxy(server.port) as second:
        proxy.faults[0].redirect = f"http://127.0.0.1:{second.port}"
        second.faults = [Fault("GET", "manifests", status=401, headers=challenge)]
        with Registry(proxy.name) as registry, pytest.raises(ImageError, match=r"127\.0\.0\.1:1"):
            registry.manifest("team/app", "1")
        second.faults = [Fault("GET", "manifests", status=401)]
        with Registry(proxy.name) as registry, pytest.raises(RegistryError, match="401"):
            registry.manifest("team/app", "1")


def test_no_login_that_is_kept_goes_to_a_host_in_the_clear(
    keys: Keys, server: Server, home: Path, tmp_path: Path
) -> None:
    (home / ".docker").mkdir()
    kept = {"auths": {"plain.example": {"auth": base64.b64encode(b"alice:hunter2").decode()}}}
    (home / ".docker/config.json").write_text(json.dumps(kept))
    with Registry("127.0.0.1:1") as registry:
        assert registry._other("http://plain.example/v2/")._find("a") is None
        assert registry._other("https://plain.example/v2/")._find("a") == Credentials(
            username="alice", password="hunter2"
        )


# --- Basic, login and logout ----------------------------------------------------------------------------


def test_basic_is_answered_when_it_is_asked_for(basic: Server) -> None:
    with Proxy(basic.port) as proxy, Registry(proxy.name, credentials=ALICE) as registry:
        registry.catalogue()
        registry.catalogue()
        asked = [seen.headers.get("Authorization") for seen in proxy.asked("GET", "_catalog")]
        assert asked == [None, basic_header(*ALICE), basic_header(*ALICE)]


@pytest.mark.parametrize("given", [None, ("alice", "hunter3")])
def test_basic_without_the_password_is_refused(basic: Server, given: tuple[str, str] | None) -> None:
    with (
        Registry(basic.name, credentials=given) as registry,
        pytest.raises(RegistryError, match="401") as caught,
    ):
        registry.catalogue()
    assert "hunter3" not in str(caught.value)


@pytest.mark.parametrize("kind", ["basic", "token"])
def test_login_checks_and_keeps_and_logout_forgets(
    kind: str, basic: Server, server: Server, tokens: TokenServer, home: Path
) -> None:
    where = basic if kind == "basic" else server
    path = home / ".docker/config.json"
    with pytest.raises(RegistryError) as caught:
        login(where.name, "alice", "hunter3")
    assert "hunter3" not in str(caught.value)
    assert not path.exists()
    assert login(where.name, *ALICE) == str(path)
    with Registry(where.name) as registry:
        registry.catalogue()
    assert "hunter2" not in path.read_text()
    # skopeo finds it there, too.
    registries.skopeo(
        "list-tags", "--tls-verify=false", f"docker://{where.name}/team/app", check=kind == "token"
    )
    assert logout(where.name)
    assert not logout(where.name)
    if kind == "basic":
        with Registry(where.name) as registry, pytest.raises(RegistryError):
            registry.catalogue()


def test_a_login_of_skopeo_is_found(basic: Server, home: Path) -> None:
    registries.skopeo("login", "--tls-verify=false", "-u", "alice", "-p", "hunter2", basic.name)
    with Registry(basic.name) as registry:
        registry.catalogue()
    assert logout(basic.name)
