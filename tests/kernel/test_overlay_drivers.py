"""Layers over each other by the kernel, or by a copy where it gives no overlay: to who is inside the same."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest

from sandboxlib import Image, Mount, Rootfs, Sandbox, SpecError, UnsupportedError
from sandboxlib.engine.current import program

import trees
import users

pytestmark = [pytest.mark.userns, pytest.mark.overlay]

DRIVERS = pytest.mark.parametrize("driver", ["overlay", "copy"])


class Layers(NamedTuple):
    """Folders: the lowers, the topmost first; what has to be mounted to run commands; what is written."""

    lower: list[Path]
    mounts: list[Mount]
    storage: Path

    def sandbox(self, driver: str | None = None, **more: Any) -> Sandbox:
        """A sandbox of them."""
        rootfs = Rootfs.overlay(self.lower, storage=self.storage, driver=driver, **more)  # type: ignore[arg-type]
        return Sandbox(rootfs=rootfs, mounts=self.mounts)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    """Two layers, the lower one a system."""
    system, mounts = trees.system(tmp_path / "system")
    upper, storage = tmp_path / "upper", tmp_path / "storage"
    storage.mkdir()
    for folder in ("data/sub", "gone"):
        (system / folder).mkdir(parents=True)
    (system / "data/below").write_text("below")
    (system / "data/hidden").write_text("hidden")
    (system / "gone/file").write_text("x")
    (system / "data/sub/deep").write_text("deep")
    (upper / "data").mkdir(parents=True)
    (upper / "data/above").write_text("above")
    (upper / "data/hidden").write_text("from above")
    (upper / "data").chmod(0o750)
    os.symlink("/etc/passwd", upper / "data/link")
    os.link(upper / "data/above", upper / "data/again")
    with open(upper / "data/holes", "wb") as file:
        file.truncate(64 << 20)
    (upper / "run.sh").write_text("#!/bin/sh\n")
    (upper / "run.sh").chmod(0o4755)
    return Layers([upper, system], mounts, storage)


@DRIVERS
def test_the_layers_are_seen_as_one(driver: str, layers: Layers) -> None:
    with layers.sandbox(driver) as sb:
        assert sorted(sb.files.list("/data")) == sorted(
            ["above", "again", "below", "hidden", "holes", "link", "sub"]
        )
        assert sb.files.read_text("/data/hidden") == "from above"
        assert sb.files.read_text("/data/sub/deep") == "deep"
        assert sb.sh("readlink /data/link", text=True).stdout == "/etc/passwd\n"
        assert sb.sh("stat -c '%a %u %g' /data /run.sh", text=True).stdout == "750 0 0\n4755 0 0\n"
        # A file of holes takes no room, and two names of one file stay that.
        assert sb.sh("stat -c '%s %b' /data/holes", text=True).stdout == f"{64 << 20} 0\n"
        assert sb.sh("stat -c '%h' /data/above", text=True).stdout == "2\n"
        assert sb.changes() == []


@DRIVERS
def test_what_is_written_stays_in_the_sandbox_and_is_told(driver: str, layers: Layers) -> None:
    with layers.sandbox(driver) as sb:
        done = sb.sh(
            "echo new >/data/below; rm /data/link; rm -r /gone; mkdir /gone /made; echo a >/gone/other;"
            "mv /data/sub /data/moved; chmod 700 /data/hidden",
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert {change.path: change.kind for change in sb.changes()} == {
            "/data/below": "modified",
            "/data/hidden": "modified",
            "/data/link": "deleted",
            "/data/moved": "added",
            "/data/moved/deep": "added",
            "/data/sub": "deleted",
            "/gone/file": "deleted",
            "/gone/other": "added",
            "/made": "added",
        }
    upper, system = layers.lower
    assert (system / "data/below").read_text() == "below"
    assert (system / "gone/file").exists()
    assert os.readlink(upper / "data/link") == "/etc/passwd"
    assert stat.S_IMODE((upper / "data/hidden").stat().st_mode) == 0o644
    # Nothing of it stays.
    assert list(layers.storage.iterdir()) == []


@DRIVERS
def test_a_change_that_is_covered_up_is_told(driver: str, layers: Layers) -> None:
    with layers.sandbox(driver) as sb:
        # The same size, and the time of before.
        done = sb.sh("cp -p /data/below /tmp 2>/dev/null || mkdir /tmp && cp -p /data/below /tmp/below")
        assert done.returncode == 0
        assert sb.sh("printf BELOW >/data/below; touch -r /tmp/below /data/below").returncode == 0
        assert "/data/below" in {change.path for change in sb.changes()}


@DRIVERS
def test_it_can_be_read_only(driver: str, layers: Layers) -> None:
    with layers.sandbox(driver, readonly=True) as sb:
        assert b"Read-only" in sb.sh("echo x >/data/below").stderr


@DRIVERS
def test_it_opens_alone(driver: str, layers: Layers) -> None:
    lower, _, storage = layers
    with Rootfs.overlay(lower, storage=storage, driver=driver).open() as tree:  # type: ignore[arg-type]
        Path(tree.path, "data/below").write_text("new")
        assert [(change.kind, change.path) for change in tree.changes()] == [("modified", "/data/below")]
    assert (layers.lower[1] / "data/below").read_text() == "below"
    assert list(layers.storage.iterdir()) == []


@DRIVERS
def test_no_link_of_a_layer_leads_out_of_it(driver: str, tmp_path: Path) -> None:
    system, mounts = trees.system(tmp_path / "system")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    upper = tmp_path / "upper"
    upper.mkdir()
    os.symlink(outside, upper / "folder")
    os.symlink(outside / "secret", upper / "file")
    (system / "folder").mkdir()
    (system / "folder/inner").write_text("inner")
    (tmp_path / "storage").mkdir()
    with Layers([upper, system], mounts, tmp_path / "storage").sandbox(driver) as sb:
        # As the links that they are; they lead nowhere inside.
        assert not sb.files.exists("/file")
        assert sb.sh("cat /file /folder/secret /folder/inner").stdout == b""
    assert sorted(os.listdir(outside)) == ["secret"]


def test_whiteouts_and_opaque_folders_hide_what_is_below(tmp_path: Path) -> None:
    # Those of an overlay: its upper layer becomes a lower one.
    system, mounts = trees.system(tmp_path / "system")
    (tmp_path / "storage").mkdir()
    (system / "data").mkdir()
    for name in ("a", "b"):
        (system / "data" / name).write_text(name)
    (system / "kept").mkdir()
    (system / "kept/x").write_text("x")
    kept = tmp_path / "kept"
    kept.mkdir()
    name = "trusted" if os.geteuid() == 0 else "user"
    (kept / "data").mkdir()
    os.setxattr(kept / "data", f"{name}.overlay.opaque", b"y")
    (kept / "data/c").write_text("c")
    (kept / "kept").mkdir()
    os.mknod(kept / "kept/x", stat.S_IFCHR, 0)
    seen = []
    for driver in ("overlay", "copy"):
        with Layers([kept, system], mounts, tmp_path / "storage").sandbox(driver) as sb:
            seen.append(sb.sh("ls /data /kept", text=True).stdout)
            assert sb.changes() == []
    assert seen == ["/data:\nc\n\n/kept:\n"] * 2


# --- images ------------------------------------------------------------------------------------------


@DRIVERS
def test_an_image_runs_by_each(driver: str, layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    lower, mounts, storage = layers
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(storage.parent / "state"))
    image = Image.from_rootfs(lower[1], name="app:1")
    with Sandbox(rootfs=Rootfs.image("app:1", storage=storage, driver=driver), mounts=mounts) as sb:  # type: ignore[arg-type]
        assert sb.sh("cat /data/below /etc/hostname", text=True).stdout == "belowsandbox\n"
        assert sb.changes() == []
        sb.sh("echo x >/data/new")
        assert [change.path for change in sb.changes()] == ["/data/new"]
        if driver == "copy":
            with pytest.raises(UnsupportedError, match="export"):
                sb.commit("app:2")
            sb.export(storage.parent / "app.tar")
            again = Image.from_rootfs(storage.parent / "app.tar", name="app:2")
            assert again.digest != image.digest
        else:
            sb.commit("app:2")
    with Sandbox(image="app:2", mounts=mounts) as sb:
        assert sb.sh("cat /data/new", text=True).stdout == "x\n"


# --- which one is taken ------------------------------------------------------------------------------


def test_nothing_else_is_a_driver(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="driver"):
        Rootfs.overlay([tmp_path], driver="vfs")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="driver"):
        Rootfs("directory", path=tmp_path, driver="copy")


def test_where_the_kernel_gives_one_it_is_taken_without_a_word(layers: Layers) -> None:
    with layers.sandbox() as sb:
        assert not [note for note in sb.plan().notes if "copied" in note]
        assert "overlay" in sb.sh("grep ' / ' /proc/self/mountinfo", text=True).stdout


def test_a_copy_in_memory_is_refused_for_no_limit_would_hold(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="storage='/a/folder'"):
        Sandbox(rootfs=Rootfs.overlay([tmp_path], driver="copy")).plan()


ON_AN_OVERLAY = """
import json, sys
from sandboxlib import Mount, Rootfs, Sandbox, UnsupportedError
lower, storage, *folders = sys.argv[1:]
mounts = [Mount.bind(folder, folder, readonly=True) for folder in folders]
with Sandbox(rootfs=Rootfs.overlay([lower], storage=storage), mounts=mounts) as sb:
    notes = [note for note in sb.plan().notes if "copied" in note]
    sb.sh("echo x >/data/below")
    found = [sb.files.read_text("/data/below"), [str(change.path) for change in sb.changes()]]
try:
    with Sandbox(rootfs=Rootfs.overlay([lower], storage=storage, driver="overlay")):
        asked = "started"
except OSError as error:
    asked = str(error)
print(json.dumps([notes, found, asked]))
"""


@pytest.mark.root
def test_where_the_kernel_refuses_an_overlay_the_layers_are_copied_and_the_plan_says_why(
    layers: Layers,
) -> None:
    # What is written cannot lie on an overlay without a place for its marks, as within many a container.
    place, lower = layers.storage.parent, layers.lower[1]
    arguments = (str(lower), f"{place}/merged", *trees.destinations(layers.mounts))
    told = trees.on_an_overlay(place, layers.lower[0], ON_AN_OVERLAY, *arguments)
    notes, found, asked = json.loads(told)
    assert len(notes) == 1
    assert f"layers are copied to {place}/merged, for an overlay is refused: " in notes[0]
    assert "fsconfig" in notes[0]
    assert found == ["x\n", ["/data/below"]]
    assert "fsconfig" in asked
    assert (lower / "data/below").read_text() == "below"


def test_an_image_finds_a_place_for_its_copy_by_itself(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = layers.storage.parent / "state"
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(state))
    # As a host is where the first try fails.
    faults = dict.fromkeys(("tmpfs", f"{state}/written"), "no such device")
    monkeypatch.setattr(program(), "_fault", faults.__getitem__)
    Image.from_rootfs(layers.lower[1], name="app:1")
    with Sandbox(image="app:1", mounts=layers.mounts) as sb:
        assert (
            f"layers are copied to {state}/written, for an overlay is refused: no such device"
            in sb.plan().notes
        )
        assert sb.sh("cat /data/below; echo x >/data/below", text=True).stdout == "below"
        assert [change.path for change in sb.changes()] == ["/data/below"]
    assert os.listdir(state / "written") == []
    # Where a limit was asked for, it is not left out.
    with pytest.raises(UnsupportedError, match="no such device"):
        Sandbox(rootfs=Rootfs.image("app:1", size="1M")).plan()


@pytest.mark.root
def test_layers_that_cannot_be_id_mapped_can_be_copied(layers: Layers) -> None:
    # An overlay itself is such a file system.
    program_ = """
import sys
from sandboxlib import KernelError, Mount, Rootfs, Sandbox
lower, storage, *folders = sys.argv[1:]
mounts = [Mount.bind(folder, folder, readonly=True) for folder in folders]
for driver in ("overlay", "copy"):
    try:
        with Sandbox(rootfs=Rootfs.overlay([lower], storage=storage, driver=driver), mounts=mounts) as sb:
            print(sb.sh("stat -c %u /data/below; rm /data/below", text=True).stdout, len(sb.changes()))
    except KernelError as error:
        print("ID-mapped" in str(error))
"""
    place = layers.storage.parent
    arguments = (f"{place}/merged", str(layers.storage), *trees.destinations(layers.mounts))
    assert trees.on_an_overlay(place, layers.lower[1], program_, *arguments).split() == ["True", "0", "1"]


@pytest.mark.root
@pytest.mark.unprivileged
@pytest.mark.parametrize("subids", [False, True])
def test_a_plain_user_has_copies_too(
    subids: bool, layers: Layers, as_user: Callable[..., CompletedProcess[str]]
) -> None:
    lower, mounts, _ = layers
    script = """
import os, sys
from sandboxlib import Image, Mount, Rootfs, Sandbox
mounts = [Mount.bind(folder, folder, readonly=True) for folder in sys.argv[2:]]
os.environ["SANDBOXLIB_STATE_DIR"] = os.path.abspath("state")
os.mkdir("storage")
Image.from_rootfs(sys.argv[1], name="app:1")
with Sandbox(rootfs=Rootfs.image("app:1", storage=os.path.abspath("storage"), driver="copy"),
             mounts=mounts) as sb:
    print(sb.sh("cat /data/below; stat -c ' %u' /data/below /bin", text=True).stdout.split())
    sb.sh("echo x >/data/below; rm /data/hidden")
    print([change.path for change in sb.changes()])
print(os.listdir("storage"))
"""
    # The user's own, so that they are root's inside.
    subprocess.run(["chown", "-hR", f"{users.UID}:{users.UID}", lower[1]], check=True)
    for folder in (lower[1], *lower[1].parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    done = as_user(script, str(lower[1]), *trees.destinations(mounts), subids=subids)
    assert done.stdout.splitlines() == ["['below', '0', '0']", "['/data/below', '/data/hidden']", "[]"]
