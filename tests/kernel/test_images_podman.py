"""One tree in two engines: what is made here and what podman makes is the same file by file, in both."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import oddities
import pytest
from oddities import Tree, difference, expected, of_tar

from sandboxlib import Image, Sandbox, Security
from sandboxlib.engine.image import own_store

import registries
from images import put

pytestmark = [
    pytest.mark.userns,
    pytest.mark.overlay,
    pytest.mark.root,
    pytest.mark.tool("busybox", "podman", "runc", "docker-registry", "tar"),
    pytest.mark.cgroup1("memory"),
]

#: Its own defaults are more than a machine may give.
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--network", "none")
#: Of those that podman gives its root.
RIGHTS = Security(capabilities=["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID"])
#: What podman makes to mount on, and leaves in what it commits and exports.
MOUNTED = ("dev", "etc/hostname", "etc/hosts", "etc/mtab", "run", "run/.containerenv", "sys")


class Podman:
    """podman with a store of its own."""

    def __init__(self, place: str) -> None:
        self._command = [
            *("podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "vfs"),
            *("--runtime", "runc", "--cgroup-manager", "cgroupfs"),
        ]

    def __call__(self, *words: str) -> bytes:
        done = subprocess.run([*self._command, *words], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        return done.stdout

    def tree(self, image: str) -> Tree:
        """The tree of an image, as podman has unpacked it."""
        top = self("image", "mount", image).decode().strip()
        options = ("--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner")
        done = subprocess.run(["tar", *options, "-C", top, "-cf", "-", "."], capture_output=True, check=True)
        self("image", "umount", image)
        return of_tar(done.stdout)


@pytest.fixture
def podman() -> Iterator[Podman]:
    with tempfile.TemporaryDirectory(prefix="sandboxlib-podman-") as place:
        made = Podman(place)
        yield made
        made("rm", "--all", "--force")
        made("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry without TLS."""
    with registries.serve(tmp_path_factory.mktemp("registry")) as server:
        yield server.name


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Begins with an empty store of this name."""

    def begin(name: str) -> None:
        monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(tmp_path / name))

    begin("state")
    return begin


def inside(image: str) -> Tree:
    """The tree of an image in a sandbox of this library's."""
    raw = io.BytesIO()
    with Sandbox(image=image) as sb:
        assert sb.changes() == []
        sb.export(raw)
    return of_tar(raw.getvalue())


def without_times(tree: Tree, paths: Sequence[str]) -> Tree:
    """The same, with no time at *paths*."""
    return {path: (*what[:4], 0, *what[5:]) if path in paths else what for path, what in tree.items()}


def as_podman_unpacks(tree: Tree) -> Tree:
    """
    What is left out of a comparison with what podman has unpacked; docs/images.md says why.

    The times of the root, of folders that no entry names, and times before 1970.
    """
    unnamed = [path for path in tree if set(path) == {"d"} or path.strip("d/") == ""]
    return without_times(tree, [".", "before", "fresh", "opaque", "usr", "usr/lib", *unnamed])


def same(found: Tree, wanted: Tree, *, more: Sequence[str] = ()) -> None:
    """Compare what podman has with what it should have; *more*: whose times are podman's own."""
    left = {path: what for path, what in found.items() if path not in MOUNTED}
    both = [without_times(as_podman_unpacks(tree), more) for tree in (left, wanted)]
    assert difference(*both) == []


def test_an_image_of_this_librarys_is_the_same_for_podman(
    podman: Podman, registry: str, tmp_path: Path
) -> None:
    put(own_store(), "docker.io/library/odd:latest", oddities.odd_layers(gnu=False))
    image = Image.get("odd")
    assert difference(inside("odd"), expected()) == []
    # By a registry, and by an archive of each kind.
    image.push(f"{registry}/team/odd:1")
    podman("pull", "--quiet", "--tls-verify=false", f"{registry}/team/odd:1")
    same(podman.tree(f"{registry}/team/odd:1"), expected())
    for form in ("oci", "docker"):
        image.save(tmp_path / form, format=form)
        podman("rmi", "--all", "--force")
        podman("load", "--quiet", "--input", str(tmp_path / form))
        (found,) = json.loads(podman("images", "--format", "json"))
        same(podman.tree(found["Id"]), expected())


def test_what_is_committed_and_exported_here_is_the_same_for_podman(
    podman: Podman, registry: str, tmp_path: Path
) -> None:
    put(own_store(), "docker.io/library/odd:latest", oddities.odd_layers(gnu=False))

    def changed(tree: Tree) -> None:
        tree["etc/new"] = ("file", 0o600, 0, 0, 12 * 10**9, b"", {})
        tree["etc"] = ("folder", 0o755, 7, 8, 12 * 10**9, b"", {})
        for path in ("opaque", "opaque/new", "dangling"):
            del tree[path]

    with Sandbox(image="odd", security=RIGHTS) as sb:
        script = "rm -r /opaque /dangling; touch /etc/new; chmod 600 /etc/new; touch -d @12 /etc/new /etc"
        assert sb.sh(script).returncode == 0
        sb.commit("odd:2").push(f"{registry}/team/odd:2")
        sb.export(tmp_path / "tree.tar")
    assert difference(inside("odd:2"), expected(changed)) == []
    podman("pull", "--quiet", "--tls-verify=false", f"{registry}/team/odd:2")
    # The root's time is that of the last change in it, which nobody can set from outside.
    same(podman.tree(f"{registry}/team/odd:2"), expected(changed))
    podman("import", "--quiet", str(tmp_path / "tree.tar"), "imported")
    same(podman.tree("imported"), expected(changed))


def test_an_image_of_podmans_is_the_same_here(
    podman: Podman, registry: str, tmp_path: Path, state: Callable[[str], None]
) -> None:
    put(own_store(), "docker.io/library/odd:latest", oddities.odd_layers(gnu=False))
    Image.get("odd").push(f"{registry}/team/odd:3")
    name = f"{registry}/team/odd:3"
    podman("pull", "--quiet", "--tls-verify=false", name)
    # Passed on as it is: pulled, pushed and saved.
    podman("tag", name, f"{registry}/by/podman:3")
    podman("push", "--quiet", "--tls-verify=false", f"{registry}/by/podman:3")
    podman("save", "--quiet", "--format", "docker-archive", "--output", f"{tmp_path}/saved", name)
    state("other")
    assert difference(inside(f"{registry}/by/podman:3"), expected()) == []
    state("third")
    Image.load(tmp_path / "saved")
    assert difference(inside(name), expected()) == []
    # And changed, committed and exported there.
    script = "chmod 600 /etc/new; touch -d @12 /etc/new /etc"
    podman("run", "--name", "c", *LIMITS, name, "/bin/sh", "-c", f"touch /etc/new; {script}; rm -r /opaque")

    def changed(tree: Tree) -> None:
        tree["etc/new"] = ("file", 0o600, 0, 0, 12 * 10**9, b"", {})
        tree["etc"] = ("folder", 0o755, 7, 8, 12 * 10**9, b"", {})
        for path in ("opaque", "opaque/new"):
            del tree[path]

    podman("commit", "--quiet", "c", f"{registry}/by/podman:4")
    podman("push", "--quiet", "--tls-verify=false", f"{registry}/by/podman:4")
    same(inside(f"{registry}/by/podman:4"), expected(changed))
    exported = podman("export", "c")
    Image.from_rootfs(io.BytesIO(exported), name="exported")
    # It exports no root.
    found = inside("exported")
    assert found.pop(".")[:4] == ("folder", 0o755, 0, 0)
    found["."] = expected()["."]
    same(found, expected(changed))


def test_podman_sees_no_more_of_an_image_than_this_library(podman: Podman, tmp_path: Path) -> None:
    import layers

    hidden = layers.file(b"hidden", b"x")

    def carrying(name: bytes, flag: bytes = b"0") -> bytes:
        return layers.header(name, flag, len(hidden), target=b"below", device=(1, 3)) + hidden

    below = layers.layer(layers.folder(b"./"), layers.file(b"below"), layers.file(b"d/below"))
    above = [
        carrying(b".wh.below"), carrying(b".wh..wh.plnk"), carrying(b"d/.wh..wh..opq"), carrying(b".wh.none"),
        carrying(b"s", b"2"), carrying(b"f", b"6"), carrying(b"e/", b"5"),
    ]  # fmt: skip
    for number, entry in enumerate(above):
        name = f"localhost/seen:{number}"
        put(own_store(), name, [below, layers.layer(entry, layers.file(b"after"))])
        Image.get(name).save(tmp_path / f"{number}")
        podman("load", "--quiet", "--input", str(tmp_path / f"{number}"))
        assert set(podman.tree(name)) == set(inside(name)), name
    assert os.path.exists(tmp_path / "0")
