"""Challenges, the files of logins, and credential helpers."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image import auth, helper, retry
from sandboxlib.image.answers import RegistryError, UnreachableError, refusal
from sandboxlib.image.auth import Credentials
from sandboxlib.image.challenge import Challenge, parse


@pytest.mark.parametrize(
    "headers, found",
    [
        (['Basic realm="a"'], [("basic", {"realm": "a"})]),
        (["Basic"], [("basic", {})]),
        (
            ['Bearer realm="https://a/token",service="b c",scope="repository:d/e:pull,push"'],
            [
                (
                    "bearer",
                    {"realm": "https://a/token", "service": "b c", "scope": "repository:d/e:pull,push"},
                )
            ],
        ),
        (
            ['Basic realm="x, Bearer realm=\\"y\\"", Bearer realm=z , service = "s"'],
            [("basic", {"realm": 'x, Bearer realm="y"'}), ("bearer", {"realm": "z", "service": "s"})],
        ),
        (
            ["Negotiate, Basic realm=a", "NEGOTIATE abc/+==, BEARER Realm=b"],
            [("negotiate", {}), ("basic", {"realm": "a"}), ("negotiate", {}), ("bearer", {"realm": "b"})],
        ),
        ([', ,Basic realm="a",,'], [("basic", {"realm": "a"})]),
        (['Bearer realm="first",realm="second"'], [("bearer", {"realm": "first"})]),
        # What cannot be read ends the header and not the program.
        (["Basic realm=a, @@@, Bearer realm=b"], [("basic", {"realm": "a"})]),
        (['Basic realm="open'], [("basic", {})]),
        (["realm=a", "=", '"', ""], []),
    ],
)
def test_challenges_are_read_as_the_grammar_says(
    headers: list[str], found: list[tuple[str, dict[str, str]]]
) -> None:
    assert parse(headers) == [Challenge(*one) for one in found]


def test_a_long_header_is_read_in_little_time() -> None:
    began = time.monotonic()
    for text in ('Basic realm="' + "\\" * 100_000, "a=" * 100_000, "," * 100_000, "Basic " + "a=b," * 50_000):
        parse([text])
    assert time.monotonic() - began < 20


@given(st.lists(st.text(alphabet='Basic Bearer=",\\\t@/+realm~', max_size=60), max_size=3))
def test_any_header_is_read(headers: list[str]) -> None:
    for challenge in parse(headers):
        assert challenge.scheme
        assert challenge.scheme == challenge.scheme.lower()


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["errors", "code", "message"]), inner)
        ),
        max_leaves=8,
    ),
    st.binary(max_size=30),
)
def test_any_refusal_becomes_an_error_of_one_line(value: object, tail: bytes) -> None:
    for body in (json.dumps(value).encode(), json.dumps({"errors": [value]}).encode(), tail):
        error = refusal(500, body, "asking", "a/b")
        assert str(error).isprintable()
        assert len(str(error)) < 1000


# --- files ----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without any login."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


def entry(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def user(registry: str, repository: str = "") -> str | None:
    found = auth.find(registry, repository)
    return None if found is None else found.username


def test_files_are_looked_at_in_podmans_order(home: Path) -> None:
    assert auth.find("a.example") is None
    write(home / ".docker/config.json", {"auths": {"a.example": entry("docker", "x")}})
    assert user("a.example") == "docker"
    write(home / ".config/containers/auth.json", {"auths": {"a.example": entry("config", "x")}})
    assert user("a.example") == "config"
    write(home / "run/containers/auth.json", {"auths": {"a.example": entry("run", "x")}})
    assert user("a.example") == "run"
    # A file without this registry does not hide those behind it.
    write(home / "run/containers/auth.json", {"auths": {"b.example": entry("run", "x")}})
    assert user("a.example") == "config"


def test_the_file_of_the_environment_is_the_only_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".docker/config.json", {"auths": {"a.example": entry("docker", "x")}})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write(home / "mine", {"auths": {"b": entry("own", "x")}})))
    assert user("b") == "own"
    assert user("a.example") is None


def test_the_longest_key_decides_and_ends_at_a_slash(home: Path) -> None:
    auths = {
        "host:1": entry("all", "x"),
        "host:1/team": entry("team", "x"),
        "host:1/team/app": entry("app", "x"),
    }
    write(home / ".docker/config.json", {"auths": auths})
    assert user("host:1", "team/app") == "app"
    assert user("host:1", "team/app/part") == "app"
    assert user("host:1", "team/application") == "team"
    assert user("host:1", "teams") == "all"
    assert user("host:1") == "all"
    assert user("host", "team/app") is None
    assert user("host:12", "team") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
def test_docker_hub_has_several_keys(home: Path, key: str) -> None:
    write(home / ".docker/config.json", {"auths": {key: entry("hub", "x")}})
    assert user("docker.io", "library/app") == "hub"
    assert user("other.io", "library/app") is None


def test_an_old_key_is_a_url(home: Path) -> None:
    write(home / ".docker/config.json", {"auths": {"https://a.example:1/v2/": entry("old", "x")}})
    assert user("a.example:1", "b") == "old"


def test_tokens_are_found(home: Path) -> None:
    auths = {
        "a": {**entry("<token>", ""), "identitytoken": "refresh"},
        "b": {"registrytoken": "bearer"},
        "c": {"username": "u", "password": "p"},
        "d": {},
    }
    write(home / ".docker/config.json", {"auths": auths})
    assert auth.find("a") == Credentials(identity_token="refresh")
    assert auth.find("b") == Credentials(registry_token="bearer")
    assert auth.find("c") == Credentials(username="u", password="p")
    assert auth.find("d") is None


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"auths": 1}', '{"auths": {"a": {"auth": "secret"}}}', "[" * 100_000, '{"credHelpers": []}'],
)
def test_a_broken_file_is_named_and_not_quoted(home: Path, text: str) -> None:
    write(home / ".docker/config.json", {}).write_text(text)
    with pytest.raises(ImageError) as caught:
        auth.find("a")
    assert str(home / ".docker/config.json") in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_pipe_in_place_of_a_file_does_not_block(home: Path) -> None:
    (home / ".docker").mkdir()
    os.mkfifo(home / ".docker/config.json")
    assert auth.find("a") is None


def test_secrets_are_in_no_repr() -> None:
    login = Credentials(username="u", password="hunter2", identity_token="hunter2", registry_token="hunter2")
    assert "hunter2" not in repr(login)
    assert "hunter2" not in repr(helper.Login("u", "hunter2"))
    with pytest.raises(SpecError) as caught:
        Credentials.of(["u", "hunter2"])
    assert "hunter2" not in str(caught.value)


# --- writing --------------------------------------------------------------------------------------------


def test_a_login_is_added_and_taken_away_and_nothing_else_changes(home: Path) -> None:
    content = {
        "auths": {"b": entry("other", "y")},
        "detachKeys": "ctrl-e,e",
        "nested": {"list": [1, 2.5, None]},
    }
    path = write(home / ".docker/config.json", content)
    path.chmod(0o644)
    assert auth.save("a:1", Credentials(username="u", password="p:q")) == str(path)
    assert json.loads(path.read_text()) == {
        **content,
        "auths": {"b": entry("other", "y"), "a:1": entry("u", "p:q")},
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert auth.find("a:1") == Credentials(username="u", password="p:q")
    assert auth.erase("a:1")
    assert json.loads(path.read_text()) == content
    assert not auth.erase("a:1")
    assert os.listdir(path.parent) == ["config.json"]


def test_a_login_goes_where_it_was(home: Path) -> None:
    path = write(home / ".config/containers/auth.json", {"auths": {"a": entry("old", "x")}})
    auth.save("a", Credentials(username="new", password="y"))
    assert json.loads(path.read_text()) == {"auths": {"a": entry("new", "y")}}
    assert not (home / ".docker").exists()


def test_docker_hub_is_saved_under_dockers_key(home: Path) -> None:
    path = auth.save("docker.io", Credentials(username="u", password="p"))
    assert list(json.loads(Path(path).read_text())["auths"]) == ["https://index.docker.io/v1/"]
    assert user("docker.io", "library/a") == "u"
    assert auth.erase("docker.io")
    assert user("docker.io") is None


def test_a_link_stays_a_link(home: Path) -> None:
    target = write(home / "dotfiles/docker.json", {})
    (home / ".docker").mkdir()
    (home / ".docker/config.json").symlink_to(target)
    auth.save("a", Credentials(username="u", password="p"))
    assert (home / ".docker/config.json").is_symlink()
    assert json.loads(target.read_text())["auths"] == {"a": entry("u", "p")}


SAVE = """
import sys
from sandboxlib.image import auth
for number in sys.argv[1:]:
    auth.save(f"host{number}.example", auth.Credentials(username="u", password="p"))
"""


def test_programs_that_log_in_at_once_lose_nothing(home: Path) -> None:
    numbers = [[str(3 * program + number) for number in range(3)] for program in range(4)]
    programs = [subprocess.Popen([sys.executable, "-c", SAVE, *some]) for some in numbers]
    assert [program.wait() for program in programs] == [0, 0, 0, 0]
    found = json.loads((home / ".docker/config.json").read_text())["auths"]
    assert sorted(found) == sorted(f"host{number}.example" for number in range(12))


def test_a_broken_file_is_not_overwritten(home: Path) -> None:
    path = write(home / ".docker/config.json", {})
    path.write_text("{not json")
    with pytest.raises(ImageError):
        auth.save("a", Credentials(username="u", password="p"))
    assert path.read_text() == "{not json"


# --- helpers --------------------------------------------------------------------------------------------

HELPER = """#!{python} -IS
import json, os, sys
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kept.json")
kept = json.load(open(path)) if os.path.exists(path) else {{}}
text = sys.stdin.read()
assert len(sys.argv) == 2
if sys.argv[1] == "get":
    if text not in kept:
        print("credentials not found in native keychain")
        sys.exit(1)
    if kept[text] == "crash":
        print("the secret is hunter2")
        sys.exit(2)
    if kept[text] == "nonsense":
        print("hunter2")
        sys.exit(0)
    print(json.dumps(kept[text]))
elif sys.argv[1] == "store":
    entry = json.loads(text)
    kept[entry["ServerURL"]] = entry
else:
    kept.pop(text)
json.dump(kept, open(path, "w"))
"""


@pytest.fixture
def kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper `tests`, and the file that it keeps logins in."""
    folder = home / "bin"
    folder.mkdir()
    program = folder / "docker-credential-tests"
    program.write_text(HELPER.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "kept.json"


def test_a_helper_is_asked_for_its_registry(home: Path, kept: Path) -> None:
    write(home / ".docker/config.json", {"credHelpers": {"a": "tests"}, "auths": {"a": entry("file", "x")}})
    kept.write_text(json.dumps({"a": {"ServerURL": "a", "Username": "helper", "Secret": "y"}}))
    assert auth.find("a", "b/c") == Credentials(username="helper", password="y")
    assert auth.find("b") is None


def test_a_helper_may_have_an_identity_token(home: Path, kept: Path) -> None:
    write(home / ".docker/config.json", {"credsStore": "tests"})
    kept.write_text(json.dumps({"a": {"ServerURL": "a", "Username": "<token>", "Secret": "refresh"}}))
    assert auth.find("a") == Credentials(identity_token="refresh")


def test_a_login_goes_to_the_helper_and_no_password_into_the_file(home: Path, kept: Path) -> None:
    path = write(home / ".docker/config.json", {"credsStore": "tests"})
    auth.save("docker.io", Credentials(username="u", password="hunter2"))
    assert json.loads(path.read_text()) == {
        "credsStore": "tests",
        "auths": {"https://index.docker.io/v1/": {}},
    }
    assert json.loads(kept.read_text())["https://index.docker.io/v1/"]["Secret"] == "hunter2"
    assert auth.find("docker.io", "library/a") == Credentials(username="u", password="hunter2")
    assert auth.erase("docker.io")
    assert json.loads(kept.read_text()) == {}
    assert auth.find("docker.io") is None


@pytest.mark.parametrize("state", ["crash", "nonsense"])
def test_what_a_helper_writes_is_in_no_error(home: Path, kept: Path, state: str) -> None:
    write(home / ".docker/config.json", {"credsStore": "tests"})
    kept.write_text(json.dumps({"a": state}))
    with pytest.raises(ImageError, match="docker-credential-tests") as caught:
        auth.find("a")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../bin/sh", "a/b", "", "-x", "a b", "a\n"])
def test_a_helper_is_a_name_and_never_a_path(name: str) -> None:
    with pytest.raises(ImageError, match="cannot be the name"):
        helper.get(name, "a")


def test_a_helper_that_is_missing_is_named(home: Path) -> None:
    write(home / ".docker/config.json", {"credsStore": "missing"})
    with pytest.raises(ImageError, match="docker-credential-missing is not installed"):
        auth.find("a")


# --- asking again ---------------------------------------------------------------------------------------


def test_pauses_grow_and_come_to_an_end() -> None:
    patience = retry.Patience()
    pauses = [patience.pause() for _ in range(retry.TRIES)]
    assert pauses[-1] is None
    for number, pause in enumerate(pauses[:-1]):
        assert pause is not None
        assert 0.5 * 0.25 * 2**number <= pause <= 0.25 * 2**number


def test_a_registry_of_which_too_much_is_asked_is_given_a_minute() -> None:
    patience = retry.Patience()
    error = RegistryError("too many", status=429)
    pauses = [patience.after(error) for _ in range(retry.LIMITED_TRIES)]
    assert pauses[-1] is None
    for number, pause in enumerate(pauses[:-1]):
        assert pause is not None
        assert 2**number <= pause <= 2 * 2**number
    # A window of half a minute has passed then, whatever chance says.
    assert sum(pause or 0 for pause in pauses) >= 31
    # Who says how long is asked again then.
    assert retry.Patience().after(RegistryError("", status=429, retry_after="1")) == 1


def test_what_stays_is_not_waited_for() -> None:
    for error in (RegistryError("", status=404), UnreachableError("", passing=False), ImageError("")):
        assert retry.Patience().after(error) is None
        assert (retry.Patience().after(error, passes=True) or 1) < 1


def test_a_registry_decides_how_long_within_bounds() -> None:
    assert (retry.Patience().pause("7") or 0) == 7
    assert retry.Patience().pause("3600") is None
    assert retry.Patience().pause("99999999999999999999") is None
    assert retry.seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry.seconds("Wed, 21 Oct 2095 07:28:00 GMT") > 1e6
    for nonsense in ("", "-1", "soon", "1e9", "٣", "Wed, 99 Oct 2015"):
        assert retry.seconds(nonsense) == 0
