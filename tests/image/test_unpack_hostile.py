"""Layers that want out, want too much, or are none: refused, and nothing outside is written."""

from __future__ import annotations

import gzip
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxlib.errors import ImageError, SandboxError, SpecError, UnsupportedError, ViolationError
from sandboxlib.image.compression import compressed, decompressed
from sandboxlib.image.owner import Owner
from sandboxlib.image.unpack import Limits, Policy, remove_tree

import layers

pytestmark = [pytest.mark.leaks]


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the layer's with a file in it, both of which have to stay as they are."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "file").write_text("mine")
    before = layers.tree(place), sorted(os.listdir(tmp_path))
    yield place
    after = [name for name in os.listdir(tmp_path) if name not in ("out", "below")]
    assert (layers.tree(place), sorted(after)) == before
    assert (place / "file").stat().st_nlink == 1


def refused(
    tmp_path: Path, kind: type[SandboxError], match: str, *entries: bytes, **options: Any
) -> SandboxError:
    with pytest.raises(kind, match=match) as caught:
        layers.unpacked(tmp_path / "out", layers.layer(*entries), layers.SINGLE, **options)
    return caught.value


# --- out of the folder --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b"../outside/x", b"a/../../outside/x", b"/../outside/x", b"..", b"a/..", b"./../outside/file"]
)
@pytest.mark.parametrize("kind", ["file", "folder", "symlink", "link", "whiteout", "fifo"])
def test_a_name_does_not_lead_upwards(tmp_path: Path, outside: Path, name: bytes, kind: str) -> None:
    entry = {
        "file": layers.file(name, b"x"),
        "folder": layers.folder(name),
        "symlink": layers.symlink(name, b"/etc"),
        "link": layers.file(b"a0") + layers.link(name, b"a0"),
        "whiteout": layers.file(os.path.dirname(name) + b"/.wh." + os.path.basename(name)),
        "fifo": layers.header(name, b"6"),
    }[kind]
    error = refused(tmp_path, ViolationError, "upwards|whiteout", entry)
    assert isinstance(error, ViolationError)
    assert error.path


@pytest.mark.parametrize("name", [b".wh...", b".wh..", b".wh.", b"d/.wh...", b"d/.wh.."])
def test_a_whiteout_hides_neither_its_folder_nor_the_one_above(
    tmp_path: Path, outside: Path, name: bytes
) -> None:
    refused(tmp_path, ViolationError, "nothing that can be hidden", layers.folder(b"d"), layers.file(name))


@pytest.mark.parametrize("target", [b"../outside", b"/outside", b"../../../../../../../../outside"])
def test_a_symbolic_link_does_not_lead_out(tmp_path: Path, outside: Path, target: bytes) -> None:
    data = layers.layer(
        layers.symlink(b"l", target),
        layers.symlink(b"m", os.fsencode(outside)),
        layers.file(b"l/x", b"1"),
        layers.file(b"m/y", b"2"),
        layers.file(b"m/.wh.file"),
        layers.file(b"m/.wh..wh..opq"),
        layers.folder(b"l", 0o777),
    )
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert (tmp_path / "out/outside/x").read_bytes() == b"1"
    assert (Path(f"{tmp_path}/out{outside}") / "y").read_bytes() == b"2"


def test_links_of_proc_lead_nowhere(tmp_path: Path, outside: Path) -> None:
    fd = os.open(outside, os.O_RDONLY)
    try:
        data = layers.layer(
            layers.symlink(b"l", b"/proc/self/fd/%d" % fd),
            layers.file(b"l/x"),
            layers.file(b"proc/self/cwd/x"),
        )
        layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    finally:
        os.close(fd)


def test_an_entry_does_not_write_through_a_link_of_its_name(tmp_path: Path, outside: Path) -> None:
    target = os.fsencode(outside / "file")
    data = layers.layer(
        layers.symlink(b"f", target),
        layers.file(b"f", b"theirs", mode=0o777),
        layers.symlink(b"g", target),
        layers.link(b"h", b"g"),
        layers.file(b"h", b"theirs"),
        layers.symlink(b"i", target, mtime=1),
        layers.symlink(b"d", os.fsencode(outside)),
        layers.folder(b"d", 0o777, mtime=1),
        layers.symlink(b"p", target),
        layers.header(b"p", b"6", mode=0o777),
    )
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert (tmp_path / "out/f").read_bytes() == b"theirs"
    assert os.readlink(tmp_path / "out/g") == os.fsdecode(target)


@pytest.mark.parametrize("target", [b"../outside/file", b"a/../../outside/file", b"", b"/", b".", b"x\0y"])
def test_a_hard_link_does_not_lead_out(tmp_path: Path, outside: Path, target: bytes) -> None:
    if b"\0" in target:
        entries = layers.pax({b"linkpath": target}) + layers.link(b"l", b"x")
    else:
        entries = layers.link(b"l", target)
    refused(tmp_path, ViolationError, "hard link|upwards|zero byte", entries)


def test_a_hard_link_goes_through_links_within_the_layer_only(tmp_path: Path, outside: Path) -> None:
    refused(
        tmp_path,
        ImageError,
        "not there",
        layers.symlink(b"d", os.fsencode(outside)),
        layers.link(b"l", b"d/file"),
    )


@pytest.mark.parametrize(
    "entries, match",
    [
        ([layers.link(b"l", b"nothing")], "not there"),
        ([layers.folder(b"d"), layers.link(b"l", b"d")], "no file"),
        ([layers.file(b".wh.f"), layers.link(b"l", b"f")], "no file"),
        ([layers.file(b"d/f"), layers.link(b"d", b"d/f")], "its own target"),
        ([layers.file(b"f"), layers.file(b"f/x")], "not a folder"),
        ([layers.header(b"p", b"6"), layers.file(b"p/x")], "not a folder"),
    ],
)
def test_what_makes_no_sense_is_said(tmp_path: Path, entries: list[bytes], match: str) -> None:
    refused(tmp_path, ImageError, match, *entries)


def test_a_link_below_that_leads_out_does_not(tmp_path: Path, outside: Path) -> None:
    below = tmp_path / "below"
    layers.unpacked(
        below,
        layers.layer(
            layers.symlink(b"l", os.fsencode(outside)),
            layers.symlink(b"up", b"../outside"),
            layers.folder(b"w"),
        ),
        layers.SINGLE,
    )
    data = layers.layer(layers.file(b"l/x", b"1"), layers.file(b"up/x", b"1"))
    layers.unpacked(tmp_path / "out", data, layers.SINGLE, [below])
    assert sorted(path for path in layers.tree(below)) == ["l", "up", "w"]
    with pytest.raises(ImageError, match="not there"):
        layers.unpacked(tmp_path / "out2", layers.layer(layers.link(b"x", b"l/file")), layers.SINGLE, [below])
    with layers.opened(tmp_path) as (fd,):
        remove_tree(fd, "out2", layers.SINGLE)


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry, match",
    [
        (layers.pax({b"path": b"a\0b"}) + layers.file(b"x"), "zero byte"),
        (layers.file(b""), "without a name"),
        (layers.pax({b"path": b"x" * 256}) + layers.file(b"x"), "255"),
        (layers.pax({b"path": b"x/" * 2100}) + layers.file(b"x"), "4095"),
        (layers.file(b"/"), "the root of a layer"),
        (layers.symlink(b".", b"/"), "the root of a layer"),
        (layers.link(b"./", b"/"), "the root of a layer"),
        (layers.file(b".wh.d/f"), "kept for whiteouts"),
        (layers.file(b".wh..wh..opq/f"), "kept for whiteouts"),
        (layers.symlink(b"l", b""), "symbolic link to nothing"),
        (layers.pax({b"linkpath": b"a\0b"}) + layers.symlink(b"l", b"x"), "symbolic link to nothing"),
        (layers.pax({b"linkpath": b"a" * 5000}) + layers.symlink(b"l", b"x"), "symbolic link to nothing"),
        (layers.symlink(b"a", b"b") + layers.symlink(b"b", b"a") + layers.file(b"a/x"), "circle"),
        (layers.symlink(b"a", b"a/a") + layers.file(b"a/x"), "circle"),
    ],
)
def test_names_that_are_none_are_refused(tmp_path: Path, outside: Path, entry: bytes, match: str) -> None:
    refused(tmp_path, ViolationError, match, entry)


def test_a_path_does_not_grow_by_links(tmp_path: Path) -> None:
    deep = b"/".join([b"d" * 200] * 15)
    entries = [
        layers.pax({b"path": deep + b"/x"}) + layers.file(b"x"),
        layers.pax({b"linkpath": deep}) + layers.symlink(b"l", b"x"),
        layers.pax({b"path": b"l/" + b"/".join([b"e" * 200] * 15) + b"/y"}) + layers.file(b"x"),
    ]
    refused(tmp_path, ViolationError, "4095", *entries)


# --- marks of overlayfs -------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("owner", [layers.ROOT, layers.SINGLE], ids=lambda owner: owner.kind)
def test_marks_of_overlayfs_do_not_come_with_a_layer(tmp_path: Path, owner: Owner) -> None:
    marks = {
        b"SCHILY.xattr.trusted.overlay.redirect": b"/etc",
        b"SCHILY.xattr.user.overlay.redirect": b"/etc",
        b"SCHILY.xattr.trusted.overlay.metacopy": b"",
        b"SCHILY.xattr.user.overlay.opaque": b"y",
        b"LIBARCHIVE.xattr.trusted%2Eoverlay%2Eopaque": b"eQ",
    }
    data = layers.layer(
        layers.pax(marks), layers.folder(b"d"), layers.pax(marks), layers.file(b"f"), layers.pax(marks),
        layers.folder(b"./"),
    )  # fmt: skip
    done = layers.unpacked(tmp_path / "out", data, owner)
    assert [os.listxattr(path) for path in (tmp_path / "out", tmp_path / "out/d", tmp_path / "out/f")] == [
        []
    ] * 3
    assert sum(count for _, count in done.dropped) == 15


@pytest.mark.root
def test_a_hard_link_does_not_bring_marks_up(tmp_path: Path) -> None:
    layers.unpacked(tmp_path / "below", layers.layer(layers.file(b"d/f")))
    for path in ("d", "d/f"):
        os.setxattr(tmp_path / "below" / path, "trusted.overlay.metacopy", b"")
    layers.unpacked(tmp_path / "out", layers.layer(layers.link(b"l", b"d/f")), lowers=[tmp_path / "below"])
    assert [os.listxattr(tmp_path / "out" / path) for path in ("d", "d/f")] == [[], []]


@pytest.mark.root
@pytest.mark.parametrize("device", [(0, 0), (1, 3)])
def test_no_device_is_made_unasked(tmp_path: Path, device: tuple[int, int]) -> None:
    data = layers.layer(layers.header(b"a", b"3", device=device), layers.header(b"b", b"4", device=device))
    layers.unpacked(tmp_path / "out", data)
    assert os.listdir(tmp_path / "out") == []


def test_devices_are_refused_where_that_is_asked(tmp_path: Path) -> None:
    refused(
        tmp_path, ViolationError, "a device", layers.header(b"null", b"3"), policy=Policy(devices="refuse")
    )
    with pytest.raises(UnsupportedError, match="device nodes"):
        layers.unpacked(tmp_path / "other", b"", layers.SINGLE, policy=Policy(devices="make"))
    with pytest.raises(SpecError, match="devices"):
        Policy(devices="any")  # type: ignore[arg-type]


# --- too much -----------------------------------------------------------------------------------------


def test_a_bomb_of_size_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    sink = compressed(out.write, "zstd")
    sink.write(layers.header(b"f", size=1 << 32))
    for _ in range(300):
        sink.write(bytes(1 << 20))
    sink.close()
    with pytest.raises(ViolationError, match="'ratio'"):
        layers.unpacked(tmp_path / "out", out.getvalue(), layers.SINGLE)
    assert (tmp_path / "out/f").stat().st_size <= (64 << 20) + 1000 * len(out.getvalue())


@pytest.mark.parametrize(
    "data",
    [
        layers.file(b"f", bytes(20_000)),
        layers.file(b"f") + layers.END + bytes(20_000),
        layers.pax({b"GNU.sparse.map": b"0,1", b"GNU.sparse.size": b"20000"}) + layers.file(b"f", b"1"),
        layers.pax(
            [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"20000")]
        )
        + layers.file(b"f", b"0\n".ljust(512, b"\0")),
    ],
)
def test_a_layer_does_not_exceed_its_limit_of_bytes(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ViolationError, match=r"10000 bytes .the limit 'bytes'"):
        layers.unpacked(tmp_path / "out", data, layers.SINGLE, limits=Limits(bytes=10_000))


def test_links_to_what_is_below_count_as_bytes(tmp_path: Path) -> None:
    layers.unpacked(tmp_path / "below", layers.layer(layers.file(b"f", bytes(20_000))), layers.SINGLE)
    data = layers.layer(layers.link(b"g", b"f"))
    with pytest.raises(ViolationError, match="'bytes'"):
        layers.unpacked(
            tmp_path / "out", data, layers.SINGLE, [tmp_path / "below"], limits=Limits(bytes=10_000)
        )


def test_a_layer_does_not_exceed_its_limit_of_entries(tmp_path: Path) -> None:
    entries = [layers.folder(b"d%d" % n) for n in range(11)]
    refused(tmp_path, ViolationError, "10 entries .the limit 'entries'", *entries, limits=Limits(entries=10))
    assert len(os.listdir(tmp_path / "out")) == 10


@pytest.mark.parametrize(
    "entries, match",
    [
        ([layers.pax({b"comment": b"c"}) * 17, layers.file(b"f")], "more than 16 headers"),
        ([layers.header(b"x", b"x", 1 << 21)], "extended header of more than"),
        ([layers.header(b"x", b"L", 1 << 21)], "extended header of more than"),
        ([layers.pax({b"k%d" % n: bytes(9000)}, b"g") for n in range(200)], "global extended headers"),
        (
            [
                layers.pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]),
                layers.file(b"f", b"999999\n".ljust(512)),
            ],
            "parts between holes",
        ),
    ],
)
def test_headers_do_not_fill_the_memory(tmp_path: Path, entries: list[bytes], match: str) -> None:
    refused(tmp_path, ViolationError, match, *entries)


# --- not a layer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, match",
    [
        (b"\xfd7zXZ\0" + bytes(600), "xz"),
        (b"\x04\x22\x4d\x18" + bytes(600), "lz4"),
        (b"BZh91AY&SY" + bytes(600), "bzip2"),
        (gzip.compress(layers.file(b"f"))[:-9], "ends too early"),
        (b"\x1f\x8b\x08\x00garbage-garbage", "damaged"),
        (b"\x28\xb5\x2f\xfdgarbage-garbage", "damaged"),
        (b"\x28\xb5\x2f\xfd", "ends too early"),
        (gzip.compress(b"x" * 600), "no number|checksum"),
        (layers.header(b"f")[:100], "middle of a header"),
        (layers.file(b"f", b"x" * 600)[:700], "middle of a file"),
        (layers.header(b"f", checksum=b"000000\0 "), "f: a header with a wrong checksum"),
        (bytes(512) + layers.header(b"f"), "zeros in the middle"),
        (layers.pax({b"path": b"x"}) + layers.END, "belongs to a next one"),
        (layers.long_name(b"x"), "belongs to a next one"),
        (layers.header(b"f", b"?"), "unknown type"),
        (layers.header(b"f", b"M"), "unknown type"),
        (layers.header(b"f", mode=b"0o17"), "the mode is no number"),
        (layers.header(b"f", uid=b"1_0"), "the owner is no number"),
        (layers.header(b"f", uid=b"-1"), "the owner is no number"),
        (layers.header(b"f", uid=b"999"), "the owner is no number"),
        (layers.header(b"f", size=layers.base256(-1, 12)), "the size is negative"),
        (layers.header(b"f", size=layers.base256(1 << 64, 12)), "the size is too large"),
        (layers.header(b"f", uid=layers.base256(0xFFFFFFFF, 8)), "owner or group above"),
        (layers.pax({b"gid": b"99999999999"}) + layers.header(b"f"), "owner or group above"),
        (layers.pax({b"gid": b"-5"}) + layers.header(b"f"), "the group is no number"),
        (layers.pax({b"size": b"x"}) + layers.header(b"f"), "the size is no number"),
        (layers.pax({b"mtime": b"yesterday"}) + layers.header(b"f"), "a time that is none"),
        (layers.pax({b"LIBARCHIVE.xattr.user.x": b"!"}) + layers.header(b"f"), "not base64"),
        (layers.pax({}, raw=b"path=x\n") + layers.header(b"f"), "no length"),
        (layers.pax({}, raw=b"99 path=x\n") + layers.header(b"f"), "wrong length"),
        (layers.pax({}, raw=b"2 x\n") + layers.header(b"f"), "wrong length"),
        (layers.pax({}, raw=b"9 path=xy") + layers.header(b"f"), "wrong length"),
        (layers.pax({}, raw=b"8 path x\n") + layers.header(b"f"), "wrong length|no keyword"),
    ],
)
def test_what_is_no_layer_is_said_to_be_none(tmp_path: Path, data: bytes, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        layers.unpacked(tmp_path / "out", data, layers.SINGLE)


def _old(parts: bytes, size: bytes) -> bytes:
    plain = bytearray(layers.header(b"f", b"S", 1, magic=b"ustar  \0"))
    plain[386 : 386 + len(parts)] = parts
    plain[483:495] = size.ljust(12, b"\0")
    plain[148:156] = b" " * 8
    plain[148:156] = b"%06o\0 " % sum(plain)
    return bytes(plain) + layers.padded(b"1")


@pytest.mark.parametrize(
    "data",
    [
        _old(layers.octal(5, 12) + layers.octal(1, 12), layers.octal(5, 12)),
        _old(layers.octal(0, 12) + layers.octal(2, 12), layers.octal(5, 12)),
        _old(b"xxxxxxxxxxxx" + layers.octal(2, 12), layers.octal(5, 12)),
        layers.pax({b"GNU.sparse.map": b"0", b"GNU.sparse.size": b"5"}) + layers.file(b"f", b"1"),
        layers.pax({b"GNU.sparse.map": b"1,1,0,1", b"GNU.sparse.size": b"5"}) + layers.file(b"f", b"12"),
        layers.pax({b"GNU.sparse.map": b"0,-1", b"GNU.sparse.size": b"5"}) + layers.file(b"f"),
        layers.pax({b"GNU.sparse.map": b"4,2", b"GNU.sparse.size": b"5"}) + layers.file(b"f", b"12"),
        layers.pax({b"GNU.sparse.major": b"7"}) + layers.file(b"f"),
        layers.pax({b"GNU.sparse.numbytes": b"1"}) + layers.file(b"f", b"1"),
        layers.pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]) + layers.file(b"f", b""),
        layers.pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")])
        + layers.file(b"f", b"x" * 512),
        layers.pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")])
        + layers.file(b"f", b"1" * 512),
        layers.pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")])
        + layers.file(b"f", b"1\n0\n5\n".ljust(512, b"\0") + b"1"),
    ],
)
def test_maps_of_holes_that_contradict_themselves_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ImageError, match="hole"):
        layers.unpacked(tmp_path / "out", data + layers.END, layers.SINGLE)


def test_a_damaged_blob_is_no_file_either() -> None:
    with pytest.raises(ImageError, match="ends too early"):
        decompressed(io.BytesIO(gzip.compress(b"x" * 99)[:-3])).read()
    with pytest.raises(SpecError, match="kind"):
        compressed(print, "lzma")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind, maps",
    [
        ("other", ((), ())),
        ("range", ((), ())),
        ("root", (((0, 1, 1),), ((0, 1, 1),))),
        ("range", (((0, 1, 0),), ((0, 1, 1),))),
        ("range", (((0, 1, 1),), ((0, -1, 1),))),
        ("range", (((0, 1, 1),), ((0, 1 << 32, 1),))),
    ],
)
def test_owners_that_make_no_sense_are_refused(
    kind: str, maps: tuple[tuple[tuple[int, int, int], ...], ...]
) -> None:
    with pytest.raises(SpecError):
        Owner(kind, *maps)  # type: ignore[arg-type]


# --- removal ------------------------------------------------------------------------------------------


def test_a_tree_is_removed_however_deep_and_without_following_links(tmp_path: Path, outside: Path) -> None:
    top = tmp_path / "out"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(3000):
        os.mkdir(b"d", dir_fd=fd)
        os.symlink(outside, b"l", dir_fd=fd)
        inner = os.open(b"d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        if number % 100 == 50:
            os.fchmod(fd, 0o000)
        os.close(fd)
        fd = inner
    os.close(fd)
    with layers.opened(tmp_path) as (fd,):
        remove_tree(fd, "out", layers.SINGLE)
        assert not top.exists()
        with pytest.raises(FileNotFoundError, match="remove a tree"):
            remove_tree(fd, "out", layers.SINGLE)
        (tmp_path / "out").symlink_to(outside)
        remove_tree(fd, "out", layers.SINGLE)
    assert stat.S_ISDIR(outside.stat().st_mode)


# --- what an entry carries ----------------------------------------------------------------------------

HIDDEN = layers.file(b"hidden", b"not a file of this layer")


def carrying(name: bytes, flag: bytes = b"0") -> bytes:
    """An entry whose content would be an entry, were it read as one."""
    return layers.header(name, flag, len(HIDDEN)) + HIDDEN


@pytest.mark.root
@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (carrying(b".wh.shown"), set()),
        (carrying(b".wh.nothing"), set()),
        (carrying(b"d/.wh.nothing"), {"d"}),
        (carrying(b"d/.wh..wh..opq"), {"d"}),
        (carrying(b".wh..wh..opq"), set()),
        (carrying(b".wh..wh.plnk"), set()),
        (carrying(b".wh..wh.orph/x"), set()),
        (carrying(b".wh..wh.aufs", b"7"), set()),
        (carrying(b"d/", b"D"), {"d"}),
        (carrying(b"./", b"D"), set()),
        (carrying(b".wh.shown", b"D"), set()),
    ],
)
def test_what_a_mark_or_a_list_of_names_carries_is_no_entry(
    tmp_path: Path, entry: bytes, found: set[str]
) -> None:
    layers.unpacked(tmp_path / "below", layers.layer(layers.file(b"shown", b"below")))
    data = layers.layer(layers.folder(b"./"), entry, layers.file(b"after", b"x"))
    done = layers.unpacked(tmp_path / "out", data, lowers=[tmp_path / "below"])
    seen = {path.name for path in (tmp_path / "out").iterdir() if not path.is_char_device()}
    assert seen == {"after", *found}
    assert (tmp_path / "out/after").read_bytes() == b"x"
    assert done.diff_id == layers.digest(data)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 3 << 20])
def test_what_a_mark_carries_is_passed_over_whatever_its_length(tmp_path: Path, size: int) -> None:
    mark = layers.header(b".wh..wh.x", b"0", size) + layers.padded(b"x" * size)
    large = layers.pax({b"size": b"%d" % size}) + layers.header(b".wh..wh.y") + layers.padded(b"x" * size)
    holes = layers.pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"})
    parts = layers.padded(b"1\n0\n9\n") + b"123456789"
    sparse = holes + layers.header(b".wh..wh.z", b"0", len(parts)) + layers.padded(parts)
    data = layers.layer(mark, large, sparse, layers.file(b"after", b"x"))
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert os.listdir(tmp_path / "out") == ["after"]


@pytest.mark.parametrize("flag", [b"5", b"1", b"2", b"3", b"4", b"6"])
def test_kinds_that_have_no_content_have_none_whatever_is_said(tmp_path: Path, flag: bytes) -> None:
    # As Go's archive/tar and GNU tar: were it passed over here, this would be another layer than theirs.
    shown = layers.file(b"shown", b"an entry")
    entry = layers.header(b"e", flag, len(shown), target=b"first", device=(1, 3))
    data = layers.layer(layers.file(b"first"), entry, shown)
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert (tmp_path / "out/shown").read_bytes() == b"an entry"
