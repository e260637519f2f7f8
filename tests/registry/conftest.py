"""Registries that tests of this folder share; a home without logins for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxlib.image import retry

import registries
from registries import Keys, Proxy, Server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without any login."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "SANDBOXLIB_INSECURE_REGISTRIES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    folder = tmp_path / "home"
    (folder / "run").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    return folder


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries that are shorter than people would want, with all else as it is."""
    monkeypatch.setattr(retry, "_FIRST", 0.02)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A registry without TLS that lets everybody do all."""
    with registries.serve(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Keys and certificates."""
    return Keys.make(tmp_path_factory.mktemp("keys"), client=True)


@pytest.fixture
def proxy(plain: Server) -> Iterator[Proxy]:
    """What stands before the plain registry and can break everything."""
    with Proxy(plain.port) as made:
        yield made
