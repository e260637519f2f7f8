"""What a layer may not do: nothing outside is written, read, or filled, whatever it holds."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from sandboxlib.errors import ImageError, SandboxError, ViolationError
from sandboxlib.image.extract import Limits

from layers import END, MINE, entry, folder, link, listing, pax, raw_entry, symlink, tar, unpacked, zipped


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder next to the tree, with something worth having; nothing of it may change."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret").write_text("secret")
    return place


def untouched(outside: Path) -> bool:
    return listing(outside) == {"secret": ("-", "secret")}


@pytest.mark.parametrize("name", ["../outside/new", "a/../../outside/new", "..", "a/..", "./../x", "/../x"])
def test_names_that_lead_upwards_are_refused(tmp_path: Path, outside: Path, name: str) -> None:
    for raw in (tar(entry(name, b"x")), tar(folder(name)), tar(entry("real", b"x"), link("new", name))):
        with pytest.raises(ViolationError, match="upwards"):
            unpacked(tmp_path / "top", raw)
    assert untouched(outside)


def test_absolute_names_are_below_the_root(tmp_path: Path, outside: Path) -> None:
    unpacked(tmp_path / "top", tar(entry(f"{outside}/new", b"x"), link("linked", f"/{outside}/new")))
    assert (tmp_path / f"top{outside}/new").read_bytes() == b"x"
    assert (tmp_path / "top/linked").read_bytes() == b"x"
    assert untouched(outside)


def test_links_lead_nowhere_outside(tmp_path: Path, outside: Path) -> None:
    far = "/".join([".."] * 30)
    raw = tar(
        symlink("absolute", str(outside)),
        entry("absolute/new", b"x"),
        symlink("relative", f"{far}{outside}"),
        entry("relative/other", b"x"),
        symlink("magic", "/proc/self/root"),
        entry("magic/new", b"x"),
        symlink("file", f"{outside}/secret"),
        entry("file", b"overwritten"),
        symlink("mode", f"{outside}/secret"),
        folder("mode", 0o777),
    )
    unpacked(tmp_path / "top", raw)
    assert untouched(outside)
    top = tmp_path / "top"
    assert (tmp_path / f"top{outside}/new").read_bytes() == b"x"
    assert (tmp_path / f"top{outside}/other").read_bytes() == b"x"
    assert (top / "proc/self/root/new").read_bytes() == b"x"
    assert (top / "file").read_text() == "overwritten"
    assert not (top / "file").is_symlink()


def test_a_hard_link_to_a_link_links_the_link(tmp_path: Path, outside: Path) -> None:
    raw = tar(symlink("soft", f"{outside}/secret"), link("hard", "soft"), entry("hard", b"overwritten"))
    unpacked(tmp_path / "top", raw)
    assert untouched(outside)
    with pytest.raises(ImageError):
        unpacked(tmp_path / "more", tar(symlink("soft", str(outside)), link("hard", "soft/secret")))
    assert (outside / "secret").stat().st_nlink == 1


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    for raw in (
        tar(symlink("a", "b"), symlink("b", "a"), entry("a/file", b"x")),
        tar(symlink("self", "self"), entry("self/file", b"x")),
        tar(symlink("deep", "deep/x"), entry("deep/file", b"x")),
    ):
        with pytest.raises(ImageError):
            unpacked(tmp_path / "top", raw)


def test_a_layer_below_cannot_lead_out_either(tmp_path: Path, outside: Path) -> None:
    low = tmp_path / "low"
    low.mkdir()
    (low / "dir").symlink_to(outside)
    (low / "file").symlink_to(outside / "secret")
    raw = tar(entry("dir/new", b"x"), link("copy", "dir/secret"))
    with pytest.raises(ImageError, match="not there"):
        unpacked(tmp_path / "top", raw, lowers=[low])
    unpacked(tmp_path / "more", tar(link("copy", "file")), lowers=[low])
    assert os.readlink(tmp_path / "more/copy") == str(outside / "secret")
    assert untouched(outside)


def test_marks_of_overlayfs_never_get_on_disk(tmp_path: Path) -> None:
    records = {
        "SCHILY__xattr__trusted__overlay__redirect": b"/etc",
        "SCHILY__xattr__trusted__overlay__opaque": b"y",
        "SCHILY__xattr__user__overlay__metacopy": b"",
        "SCHILY__xattr__user__overlay__opaque": b"y",
    }
    found = unpacked(tmp_path / "top", pax(**records) + raw_entry(b"dir/", kind=b"5") + END)
    assert [name for name in os.listxattr(tmp_path / "top/dir") if "overlay" in name] == []
    assert found.dropped == 4


def test_device_nodes_are_left_out_or_refused(tmp_path: Path) -> None:
    raw = tar(
        entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
        entry("white", type=tarfile.CHRTYPE),
    )
    assert unpacked(tmp_path / "top", raw).dropped == 3
    assert os.listdir(tmp_path / "top") == []
    with pytest.raises(ViolationError, match="device node"):
        unpacked(tmp_path / "other", raw, limits=Limits(devices="refuse"))


@pytest.mark.root
def test_device_nodes_are_made_only_when_asked_for(tmp_path: Path) -> None:
    raw = tar(entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666))
    unpacked(tmp_path / "top", raw, limits=Limits(devices="make"))
    assert (tmp_path / "top/null").stat().st_rdev == os.makedev(1, 3)
    # One that overlayfs would take for a whiteout is none of a layer's.
    with pytest.raises(ViolationError, match="whiteout"):
        unpacked(tmp_path / "top", tar(entry("white", type=tarfile.CHRTYPE)), limits=Limits(devices="make"))


@pytest.mark.parametrize("name", [".wh.", ".wh...", ".wh.."])
def test_whiteouts_of_no_name_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ViolationError, match="no name"):
        unpacked(tmp_path / "top", tar(entry(name)))


def test_bombs_are_bounded(tmp_path: Path) -> None:
    many = b"".join(raw_entry(b"f%d" % number) for number in range(2000)) + END
    with pytest.raises(ViolationError, match="1000 entries"):
        unpacked(tmp_path / "many", many, limits=Limits(entries=1000))
    big = tar(entry("zeros", bytes(1 << 20)), entry("more", bytes(1 << 20)))
    with pytest.raises(ViolationError, match="more than 1048576 bytes"):
        unpacked(tmp_path / "big", big, limits=Limits(size=1 << 20))
    # What unzips to a thousand times its size and more is no program.
    bomb = zipped(zipped(b""))  # a valid stream, not a tar
    with pytest.raises(ImageError):
        unpacked(tmp_path / "none", bomb)
    huge = zipped(raw_entry(b"zeros", b"", size=512 << 20) + bytes(512 << 20))
    with pytest.raises(ViolationError, match="times what it was"):
        unpacked(tmp_path / "huge", huge, limits=Limits(ratio=100))


def test_a_sparse_file_of_exabytes_takes_no_room(tmp_path: Path) -> None:
    raw = pax(GNU__sparse__size=b"9000000000000000000", GNU__sparse__map=b"0,0") + raw_entry(b"hole") + END
    with pytest.raises(ViolationError, match="more than"):
        unpacked(tmp_path / "top", raw)


@pytest.mark.parametrize(
    "raw",
    [
        raw_entry(b"x")[:300],
        b"\xff" * 512,
        raw_entry(b"x", kind=b"Z") + END,
        raw_entry(b"x").replace(b"ustar", b"usxar")[:512].replace(b"0000644", b"0000999") + END,
        pax(size=b"-1") + raw_entry(b"x") + END,
        pax(size=b"99999999999999999999999999") + raw_entry(b"x") + END,
        pax(uid=b"4294967295") + raw_entry(b"x") + END,
        pax(mtime=b"soon") + raw_entry(b"x") + END,
        raw_entry(b"pax", b"99 path=short\n", b"x") + raw_entry(b"x") + END,
        raw_entry(b"pax", b"path=x\n", b"x") + raw_entry(b"x") + END,
        raw_entry(b"pax", b"", b"x", size=2 << 20) + END,
        pax(path=b"a\0b") + raw_entry(b"x") + END,
        pax(GNU__sparse__size=b"10", GNU__sparse__map=b"0,5,3,5") + raw_entry(b"x", b"1234567890") + END,
        pax(GNU__sparse__size=b"10", GNU__sparse__map=b"0,5,7") + raw_entry(b"x", b"12345") + END,
        pax(GNU__sparse__major=b"1", GNU__sparse__realsize=b"10") + raw_entry(b"x", b"99999999\n") + END,
        raw_entry(b"n" * 100 + b"", b"").replace(b"nnnn", b"n/nn")
        + pax(path=b"n" * 300)
        + raw_entry(b"x")
        + END,
        pax(path=b"/".join([b"n" * 100] * 60)) + raw_entry(b"x") + END,
    ],
)
def test_nonsense_is_an_error_of_ours(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(SandboxError):
        unpacked(tmp_path / "top", raw)


def test_a_tree_as_deep_as_paths_go(tmp_path: Path) -> None:
    from sandboxlib.image.unpack import remove_tree

    raw = pax(path=b"/".join([b"d"] * 1500) + b"/file") + raw_entry(b"x", b"deep") + END
    unpacked(tmp_path / "top", raw)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        remove_tree(fd, "top", MINE)
    finally:
        os.close(fd)
    assert not (tmp_path / "top").exists()
