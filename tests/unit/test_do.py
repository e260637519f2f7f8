"""The one door to the checkout: where a Python that cannot install anything gets its pip from."""

from __future__ import annotations

import functools
import hashlib
import os
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def do() -> dict[str, Any]:
    """What ./do defines; it is not a module by its name."""
    return runpy.run_path(str(ROOT / "do"))


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of pip's counts but those a test makes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Path]:
    """A folder that is served as a package index, and pip is configured for it."""
    folder = tmp_path / "index"
    (folder / "pip").mkdir(parents=True)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        (tmp_path / "pip").mkdir()
        settings = f"[global]\nindex-url = http://127.0.0.1:{server.server_port}\n"
        (tmp_path / "pip" / "pip.conf").write_text(settings)
        yield folder / "pip"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("promised", [True, False])
def test_of_an_index_the_newest_wheel_is_taken_if_it_is_what_was_promised(
    do: dict[str, Any], index: Path, tmp_path: Path, promised: bool
) -> None:
    links = []
    for version in ("9.1", "10.0"):
        data = version.encode()
        (index / f"pip-{version}-py3-none-any.whl").write_bytes(data)
        digest = hashlib.sha256(data if promised else b"other").hexdigest()
        links.append(f'<a href="./pip-{version}-py3-none-any.whl#sha256={digest}" >pip</a>')
    (index / "index.html").write_text("\n".join(links))
    if promised:
        assert do["fetch_pip"](tmp_path).read_bytes() == b"10.0"
    else:
        with pytest.raises(SystemExit, match="does not have the checksum"):
            do["fetch_pip"](tmp_path)
        assert not list(tmp_path.glob("*.whl"))


def test_without_an_index_and_without_debian_it_says_what_to_install(
    do: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="python3-venv"):
        do["fetch_pip"](tmp_path)


@pytest.mark.skipif(not shutil.which("apt-get"), reason="this is no Debian")
def test_on_debian_pip_comes_from_a_package_and_nothing_is_installed(
    do: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("package/usr/share/python-wheels", "package/DEBIAN", "work", "repository")
    wheels, control, work, repository = (tmp_path / name for name in names)
    for folder in (wheels, control, work, repository):
        folder.mkdir(parents=True)
    (wheels / "pip-1.2-py3-none-any.whl").write_bytes(b"the wheel")
    about = "Package: python3-pip-whl\nVersion: 1.2\nArchitecture: all\nMaintainer: A <a@b.example>\n"
    (control / "control").write_text(f"{about}Description: of a test\n")
    archive = repository / "python3-pip-whl_1.2_all.deb"
    build = ["dpkg-deb", "--build", str(tmp_path / "package"), str(archive)]
    subprocess.run(build, check=True, capture_output=True)
    data = archive.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    found = f"Filename: ./{archive.name}\nSize: {len(data)}\nSHA256: {digest}\n"
    (repository / "Packages").write_text(f"{about}{found}Description: of a test\n")
    (tmp_path / "sources").write_text(f"deb [trusted=yes] file:{repository} ./\n")
    (tmp_path / "apt").write_text(
        f'Dir::Etc::SourceList "{tmp_path}/sources";\nDir::Etc::SourceParts "/dev/null";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt"))
    before = sorted(os.listdir("/var/lib/apt/lists"))
    assert do["fetch_pip"](work).read_bytes() == b"the wheel"
    assert sorted(os.listdir("/var/lib/apt/lists")) == before


def test_no_host_of_a_package_registry_is_named() -> None:
    hosts = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com"]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout
    names = [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name] or [Path("do")]
    text = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    assert not [str(name) for name, data in text.items() if any(host.encode() in data for host in hosts)]
