"""What is packed comes out of the unpacking as it was, and is the same to the byte each time."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from sandboxlib.image.pack import Packed, pack_changes, pack_tree

from layers import MINE, diff_id, listing, opened, unpacked


def packed(path: Path, **options: object) -> tuple[bytes, Packed]:
    out: list[bytes] = []
    changes = options.pop("changes", False)
    with opened(path) as fd:
        found = (pack_changes if changes else pack_tree)(fd, out.append, MINE, **options)  # type: ignore[arg-type]
    return b"".join(out), found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "a/b").mkdir(parents=True)
    (top / "a/file").write_text("text")
    os.link(top / "a/file", top / "a/b/linked")
    (top / "soft").symlink_to("a/file")
    (top / ("long" * 40)).write_text("x" * 600)
    os.mkfifo(top / "pipe")
    (top / "empty").mkdir(mode=0o711)
    with open(os.fsencode(top) + b"/caf\xe9", "wb") as file:
        file.write(b"name")
    (top / "a/file").chmod(0o4750)
    for place in (top / "a/b", top / "a", top):
        os.utime(place, (1_600_000_000, 1_600_000_000))
    return top


def test_a_tree_comes_back_as_it_was(tree: Path, tmp_path: Path) -> None:
    raw, found = packed(tree)
    assert found == Packed(diff_id(raw), len(raw))
    unpacked(tmp_path / "again", raw)
    assert subprocess.run(
        ["diff", "-r", "--no-dereference", tree, tmp_path / "again"], check=False
    ).returncode in (0, 1)
    again = tmp_path / "again"
    assert set(os.listdir(os.fsencode(again))) == set(os.listdir(os.fsencode(tree)))
    assert (again / "a/file").samefile(again / "a/b/linked")
    assert stat.S_IMODE((again / "a/file").stat().st_mode) == 0o4750
    assert os.readlink(again / "soft") == "a/file"
    assert stat.S_ISFIFO((again / "pipe").stat().st_mode)
    assert (again / "a").stat().st_mtime == 1_600_000_000
    assert packed(again)[0] == raw


def test_gnu_tar_reads_it(tree: Path, tmp_path: Path) -> None:
    raw, _ = packed(tree)
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "gnu", "-xp"], input=raw, check=True)
    assert packed(tmp_path / "gnu")[0] == raw


@pytest.mark.root
def test_owners_and_attributes_come_back(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    (top / "file").write_text("x")
    os.chown(top / "file", 3_000_000_000, 70_000)
    os.setxattr(top / "file", "user.note", b"\0binary\n")
    value = b"\1\0\0\2" + b"\0\4\0\0" + bytes(12)
    os.setxattr(top / "file", "security.capability", value)
    os.setxattr(top, "trusted.overlay.opaque", b"y")
    raw, _ = packed(top)
    unpacked(tmp_path / "again", raw)
    found = tmp_path / "again/file"
    assert (found.stat().st_uid, found.stat().st_gid) == (3_000_000_000, 70_000)
    assert os.getxattr(found, "user.note") == b"\0binary\n"
    assert os.getxattr(found, "security.capability") == value
    assert b"overlay" not in raw
    shifted, _ = packed(top, shift=lambda uid, _: (uid - 3_000_000_000 if uid else 0, 5))
    with tarfile.open(fileobj=io.BytesIO(shifted)) as tar:
        assert [(member.uid, member.gid) for member in tar] == [(0, 5), (0, 5)]


def test_changes_are_written_as_oci_has_them(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "a/fresh").mkdir(parents=True)
    (upper / "a/fresh/file").write_text("x")
    (upper / "kept/only").mkdir(parents=True)
    (upper / "mounted/deep/here").mkdir(parents=True)
    os.mknod(upper / "a/gone", stat.S_IFCHR, 0)
    os.setxattr(upper / "a/fresh", MINE.marks + "opaque", b"y")
    raw, _ = packed(upper, changes=True, left_out={b"mounted/deep/here", b"a/nowhere"})
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        names = tar.getnames()
    assert names == [
        "a",
        "a/fresh",
        "a/fresh/.wh..wh..opq",
        "a/fresh/file",
        "a/.wh.gone",
        "kept",
        "kept/only",
    ]
    unpacked(tmp_path / "again", raw)
    again = tmp_path / "again"
    assert os.getxattr(again / "a/fresh", MINE.marks + "opaque") == b"y"
    assert (again / "a/gone").lstat().st_rdev == 0
    assert packed(again, changes=True)[0] == raw


def test_a_folder_with_a_mount_stays_if_more_is_in_it(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "data/volume").mkdir(parents=True)
    (upper / "data/volume/lost").write_text("x")
    (upper / "data/file").write_text("x")
    raw, _ = packed(upper, changes=True, left_out={b"data/volume"})
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert tar.getnames() == ["data", "data/file"]


def test_what_nothing_was_done_to_is_an_empty_layer(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    raw, found = packed(tmp_path / "upper", changes=True)
    assert raw == bytes(1024)
    assert found.diff_id == diff_id(bytes(1024))
    assert unpacked(tmp_path / "again", raw).files == 0
    assert listing(tmp_path / "again") == {}
