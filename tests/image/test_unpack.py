"""Layers as tools write them become the trees that they mean."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sandboxlib.errors import ImageError
from sandboxlib.image.compression import compressed, decompressed
from sandboxlib.image.folders import Below
from sandboxlib.image.owner import Owner
from sandboxlib.image.unpack import Policy, remove_tree, unpack

import layers
import users

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = [pytest.mark.leaks]

SECOND = 10**9


def source(tmp_path: Path) -> Path:
    """A tree with something of everything that a plain user can make."""
    top = tmp_path / "source"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "f").write_bytes(b"text" * 1000)
    (top / "a" / "b").chmod(0o2750)
    (top / "link").symlink_to("a/b/f")
    (top / "away").symlink_to("/etc/passwd")
    os.link(top / "a" / "b" / "f", top / "zlink")
    os.mkfifo(top / "fifo", 0o640)
    (top / "empty").touch(0o4755)
    (top / "empty").chmod(0o4755)
    (top / ("n" * 200)).mkdir()
    (top / ("n" * 200) / ("m" * 120)).write_text("far")
    (top / ("n" * 200) / "l").symlink_to("t" * 150)
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe")).touch()
    with (top / "holes").open("wb") as file:
        for at in (0, 1 << 20, 5 << 20):
            file.seek(at)
            file.write(b"data" * 1024)
        file.truncate(9 << 20)
    for parent, folders, files in os.walk(top):
        for name in (*folders, *files):
            os.utime(os.path.join(parent, name), ns=(0, 1_234_567_890 * SECOND), follow_symlinks=False)
    return top


def gnu_tar(top: Path, *options: str) -> bytes:
    command = ["tar", "-C", str(top), *options, "-cf", "-", "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.root
@pytest.mark.parametrize("form", ["gnu", "posix"])
@pytest.mark.parametrize("holes", ["", "0.0", "0.1", "1.0"])
def test_what_gnu_tar_packs_comes_out_the_same(tmp_path: Path, form: str, holes: str) -> None:
    top = source(tmp_path)
    os.chown(top / "a", 3_000_000_000, 70_000)
    options = [f"--format={form}", *(["--sparse", f"--sparse-version={holes}"] if holes else [])]
    data = gnu_tar(top, *options)
    done = layers.unpacked(tmp_path / "out", data)
    assert layers.tree(tmp_path / "out") == layers.tree(top)
    assert (tmp_path / "out/zlink").samefile(tmp_path / "out/a/b/f")
    assert done.diff_id == layers.digest(data)
    assert (done.dropped, done.depends) == ((), False)
    if holes:
        assert (tmp_path / "out/holes").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_incremental_archives_of_gnu_tar_are_read(tmp_path: Path, form: str) -> None:
    top = source(tmp_path)
    snapshot = f"--listed-incremental={tmp_path}/snapshot"
    first = gnu_tar(top, f"--format={form}", snapshot)
    layers.unpacked(tmp_path / "out", first, layers.SINGLE)
    assert {path: what[4] for path, what in layers.tree(tmp_path / "out").items()} == {
        path: what[4] for path, what in layers.tree(top).items()
    }
    (top / "a/b/later").write_text("later")
    layers.unpacked(tmp_path / "second", gnu_tar(top, f"--format={form}", snapshot), layers.SINGLE)
    assert (tmp_path / "second/a/b/later").read_text() == "later"
    assert not (tmp_path / "second/a/b/f").exists()


def _gzip_members(data: bytes) -> bytes:
    return b"".join(gzip.compress(data[at : at + 5000]) for at in range(0, len(data), 5000))


def _zstd_frames(data: bytes) -> bytes:
    skippable = b"\x53\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    return skippable + zstd.compress(data[:5000]) + skippable + zstd.compress(data[5000:]) + skippable


def _sink(kind: str) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        out = io.BytesIO()
        sink = compressed(out.write, kind)  # type: ignore[arg-type]
        sink.write(data)
        sink.close()
        sink.close()
        assert (sink.size, sink.digest) == (len(out.getvalue()), layers.digest(out.getvalue()))
        return out.getvalue()

    return pack


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        _gzip_members,
        zstd.compress,
        _zstd_frames,
        _sink("gzip"),
        _sink("zstd"),
        _sink("none"),
        lambda data: gzip.compress(data) + bytes(1000),
        lambda data: gzip.compress(data) + b"rest",
    ],
)
def test_blobs_are_inflated_whatever_they_are_compressed_with(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    data = layers.layer(layers.file(b"f", os.urandom(3 << 20)), layers.file(b"zeros", bytes(5 << 20)))
    blob = pack(data)
    done = layers.unpacked(tmp_path / "out", blob, layers.SINGLE)
    assert (done.diff_id, done.size, done.files) == (layers.digest(data), 8 << 20, 2)
    assert decompressed(io.BytesIO(blob)).read() == data


def test_the_digest_is_of_all_bytes_those_after_the_end_too(tmp_path: Path) -> None:
    data = layers.layer(layers.file(b"f", b"1")) + bytes(9000) + b"anything"
    assert layers.unpacked(tmp_path / "out", data, layers.SINGLE).diff_id == layers.digest(data)


@pytest.mark.parametrize("data", [b"", bytes(512), bytes(1024), bytes(10240)])
def test_an_empty_layer_is_one(tmp_path: Path, data: bytes) -> None:
    done = layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert (done.files, done.size, os.listdir(tmp_path / "out")) == (0, 0, [])


def test_a_layer_may_end_without_zeros(tmp_path: Path) -> None:
    layers.unpacked(tmp_path / "out", layers.file(b"f", b"1"), layers.SINGLE)
    assert (tmp_path / "out/f").read_bytes() == b"1"


def test_progress_is_told_up_to_the_blobs_size(tmp_path: Path) -> None:
    blob = gzip.compress(layers.layer(layers.file(b"f", os.urandom(4 << 20))))
    told: list[int] = []
    layers.unpacked(tmp_path / "out", blob, layers.SINGLE, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == len(blob)


# --- names and numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, path",
    [
        (b"/etc/f", "etc/f"),
        (b"./etc/./f", "etc/f"),
        (b"etc//f/", "etc/f"),
        (b".//f", "f"),
    ],
)
def test_names_begin_at_the_root_of_the_layer(tmp_path: Path, name: bytes, path: str) -> None:
    layers.unpacked(tmp_path / "out", layers.layer(layers.file(name, b"1")), layers.SINGLE)
    assert (tmp_path / "out" / path).read_bytes() == b"1"


def test_extended_headers_say_more_than_plain_ones(tmp_path: Path) -> None:
    data = layers.layer(
        layers.pax({b"mtime": b"1000.5", b"comment": b"c"}, b"g"),
        layers.pax({b"path": b"d/" + b"x" * 200, b"mtime": b"12.000000789", b"hdrcharset": b"BINARY"}),
        layers.file(b"short", b"1"),
        layers.file(b"second", b"2"),
        layers.pax({b"mtime": b"", b"path": b"\xff"}),
        layers.file(b"third", b"3", mtime=77),
        layers.pax({b"mtime": b"-1.5"}),
        layers.file(b"old", b""),
        layers.pax({b"mtime": b""}, b"g"),
        layers.file(b"fourth", b"", mtime=78),
    )
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    times = {path: state[3] for path, state in layers.tree(tmp_path / "out").items()}
    assert times == {
        "d": 12 * SECOND + 789,
        "d/" + "x" * 200: 12 * SECOND + 789,
        "second": 1000 * SECOND + SECOND // 2,
        "\udcff": 77 * SECOND,
        "old": -1 * SECOND - SECOND // 2,
        "fourth": 78 * SECOND,
    }


def test_gnu_headers_for_long_names(tmp_path: Path) -> None:
    data = layers.layer(
        layers.long_name(b"d/" + b"n" * 230),
        layers.long_name(b"t" * 300, b"K"),
        layers.header(b"cut", b"2", target=b"cut", magic=b"ustar  \0"),
    )
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert os.readlink(tmp_path / "out/d" / ("n" * 230)) == "t" * 300


def test_prefixes_of_ustar_and_star(tmp_path: Path) -> None:
    star = bytearray(layers.header(b"f", prefix=b"p" * 131 + b"\0" * 32 + b"tar\0"))
    data = layers.layer(
        bytes(star),
        layers.file(b"g", prefix=b"q/r"),
        layers.header(b"h", prefix=b"not a prefix", magic=b"ustar  \0"),
    )
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert {path for path, state in layers.tree(tmp_path / "out").items() if str(state[0])[:4] == "0o10"} == {
        "p" * 131 + "/f",
        "q/r/g",
        "h",
    }


def test_a_header_without_a_type_is_a_file_or_a_folder(tmp_path: Path) -> None:
    data = layers.layer(
        layers.header(b"d/", b"\0", magic=b"", mode=0o711), layers.header(b"f", b"\0", magic=b"")
    )
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert stat.filemode((tmp_path / "out/d").stat().st_mode) == "drwx--x--x"
    assert (tmp_path / "out/f").is_file()


def test_a_checksum_of_signed_bytes_is_one(tmp_path: Path) -> None:
    plain = layers.header(b"\xff\xfe")
    signed = sum(byte - 256 if byte > 127 else byte for byte in plain[:148] + b" " * 8 + plain[156:])
    data = layers.layer(layers.header(b"\xff\xfe", checksum=b"%06o\0 " % signed))
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"\xff\xfe"]


@pytest.mark.root
def test_huge_ids_in_both_forms(tmp_path: Path) -> None:
    data = layers.layer(
        layers.file(b"gnu", uid=layers.base256(3_000_000_000, 8), gid=layers.base256(5, 8)),
        layers.pax({b"uid": b"3000000001", b"gid": b"4294967294"}),
        layers.file(b"pax"),
        layers.file(b"octal", uid=0o7777777),
    )
    layers.unpacked(tmp_path / "out", data)
    owners = {path: state[1:3] for path, state in layers.tree(tmp_path / "out").items()}
    assert owners == {
        "gnu": (3_000_000_000, 5),
        "pax": (3_000_000_001, 4_294_967_294),
        "octal": (2_097_151, 0),
    }


@pytest.mark.parametrize("mtime", [layers.base256(-5, 12), layers.base256(1 << 70, 12), b"77777777777 "])
def test_times_beyond_what_a_disk_keeps_are_taken(tmp_path: Path, mtime: bytes) -> None:
    if mtime == layers.base256(1 << 70, 12):
        with pytest.raises(ImageError, match="the time is too large"):
            layers.unpacked(tmp_path / "out", layers.layer(layers.file(b"f", mtime=mtime)), layers.SINGLE)
        return
    layers.unpacked(tmp_path / "out", layers.layer(layers.file(b"f", mtime=mtime)), layers.SINGLE)


# --- what comes in place of what ----------------------------------------------------------------------


def test_a_later_entry_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    data = layers.layer(
        layers.file(b"a", b"1"),
        layers.file(b"a", b"2"),
        layers.folder(b"b"),
        layers.file(b"b/deep/er/f", b"1"),
        layers.file(b"b", b"2"),
        layers.symlink(b"c", b"a"),
        layers.file(b"c", b"3"),
        layers.file(b"d", b"1"),
        layers.folder(b"d", 0o700),
        layers.file(b"d/f", b"4"),
        layers.folder(b"e"),
        layers.file(b"e/kept", b"5"),
        layers.folder(b"e", 0o711),
        layers.link(b"g", b"a"),
        layers.link(b"g", b"g"),
    )
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    found = {path: state[4] for path, state in layers.tree(tmp_path / "out").items()}
    assert found == {
        "a": b"2", "b": b"2", "c": b"3", "d": b"", "d/f": b"4", "e": b"", "e/kept": b"5", "g": b"2",
    }  # fmt: skip
    assert (tmp_path / "out/e").stat().st_mode & 0o777 == 0o711


def test_links_among_the_folders_are_followed_within_the_layer(tmp_path: Path) -> None:
    data = layers.layer(
        layers.folder(b"usr/lib"),
        layers.symlink(b"lib", b"usr/lib"),
        layers.symlink(b"abs", b"/usr/./lib/.."),
        layers.symlink(b"up", b"../../../usr"),
        layers.file(b"lib/a", b"1"),
        layers.file(b"abs/b", b"2"),
        layers.file(b"up/lib/c", b"3"),
        # And once more when the link means another folder.
        layers.symlink(b"lib", b"usr"),
        layers.file(b"lib/d", b"4"),
    )
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert sorted(path for path in layers.tree(tmp_path / "out") if "usr/" in path) == [
        "usr/b",
        "usr/d",
        "usr/lib",
        "usr/lib/a",
        "usr/lib/c",
    ]


def test_folders_get_their_modes_and_times_when_all_is_in_them(tmp_path: Path) -> None:
    data = layers.layer(
        layers.folder(b"./", 0o711, mtime=5),
        layers.folder(b"d", 0o500, mtime=6),
        layers.folder(b"d/e", 0o000, mtime=7),
        layers.file(b"d/e/f", b"1", mode=0, mtime=8),
    )
    layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    out = tmp_path / "out"
    assert (out.stat().st_mode & 0o777, out.stat().st_mtime) == (0o711, 5)
    assert ((out / "d").stat().st_mode & 0o777, (out / "d").stat().st_mtime) == (0o500, 6)
    assert ((out / "d/e").stat().st_mode & 0o777, (out / "d/e").stat().st_mtime) == (0, 7)
    with layers.opened(tmp_path) as (fd,):
        remove_tree(fd, "out", layers.SINGLE)
    assert not out.exists()


# --- on layers below ----------------------------------------------------------------------------------


def mark(owner_marks: str, path: Path) -> bytes | None:
    try:
        return os.getxattr(path, f"{owner_marks}opaque")
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


@pytest.mark.root
@pytest.mark.parametrize("owner", [layers.ROOT, layers.SINGLE], ids=lambda owner: owner.kind)
def test_whiteouts_are_those_of_overlayfs(tmp_path: Path, owner: Owner) -> None:
    entries = [
        layers.file(b"d/.wh.gone"),
        layers.file(b"d/kept", b"1"),
        layers.file(b"d/.wh..wh..opq"),
        layers.file(b"e/.wh.f"),
    ]
    for number, order in enumerate((entries, entries[::-1])):
        out = tmp_path / str(number)
        layers.unpacked(out, layers.layer(*order), owner)
        assert (out / "d/kept").read_bytes() == b"1"
        for path in (out / "d/gone", out / "e/f"):
            state = path.lstat()
            assert (stat.S_ISCHR(state.st_mode), state.st_rdev) == (True, 0)
        assert (mark(owner.marks, out / "d"), mark(owner.marks, out / "e")) == (b"y", None)


def test_a_whiteout_does_not_reach_what_is_in_its_own_layer(tmp_path: Path) -> None:
    entries = [
        layers.file(b".wh.f"),
        layers.file(b"f", b"1"),
        layers.file(b".wh.d"),
        layers.folder(b"d"),
        layers.file(b"d/x", b"2"),
        layers.file(b"p/.wh.q"),
        layers.file(b"p/q/r", b"3"),
    ]
    for number, order in enumerate((entries, entries[::-1])):
        out = tmp_path / str(number)
        layers.unpacked(out, layers.layer(*order), layers.SINGLE)
        found = {path: state[4] for path, state in layers.tree(out).items()}
        assert found == {"f": b"1", "d": b"", "d/x": b"2", "p": b"", "p/q": b"", "p/q/r": b"3"}
        # What is below the folders does not show through.
        assert (mark("user.overlay.", out / "d"), mark("user.overlay.", out / "p/q")) == (b"y", b"y")


@pytest.mark.root
@pytest.mark.overlay
def test_a_layer_hides_all_that_is_below(tmp_path: Path) -> None:
    below = layers.layer(layers.file(b"a/b/f"), layers.file(b"c/d"), layers.file(b"e"), layers.file(b"g"))
    above = layers.layer(layers.file(b"c/new"), layers.file(b".wh..wh..opq"), layers.file(b"e", b"1"))
    layers.unpacked(tmp_path / "1", below)
    assert layers.unpacked(tmp_path / "2", above, lowers=[tmp_path / "1"]).depends
    (tmp_path / "merged").mkdir()
    options = f"lowerdir={tmp_path / '2'}:{tmp_path / '1'}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(tmp_path / "merged")], check=True)
    try:
        found = {path: state[4] for path, state in layers.tree(tmp_path / "merged").items()}
    finally:
        subprocess.run(["umount", str(tmp_path / "merged")], check=True)
    assert found == {"c": b"", "c/new": b"", "e": b"1"}


@pytest.mark.parametrize(
    "entries",
    [
        [b".wh.none"],
        [b"new/.wh.none"],
        [b"d/.wh.none"],
        [b"d/.wh.shown", b"d/.wh..wh..opq"],
        [b"d/.wh..wh..opq", b"d/.wh.shown"],
        [b"d/in/.wh.deep", b"d/.wh..wh..opq"],
        [b"d/in/.wh.deep", b"d/.wh.in", b"d/in/"],
        [b"d/.wh.in", b"d/in/", b"d/in/.wh.deep"],
        [b"d/in/.wh.deep", b".wh.d", b"d/in/"],
        [b"file/.wh.none"],
    ],
    ids=lambda entries: b" ".join(entries).decode(),
)
def test_a_whiteout_of_nothing_leaves_no_name(tmp_path: Path, entries: list[bytes]) -> None:
    below = layers.layer(layers.file(b"d/shown"), layers.file(b"d/in/deep"), layers.symlink(b"file", b"d"))
    layers.unpacked(tmp_path / "below", below, layers.SINGLE)
    made = [layers.folder(name) if name.endswith(b"/") else layers.file(name) for name in entries]
    for lowers in ([], [tmp_path / "below"]):
        out = tmp_path / f"out{len(lowers)}"
        policy = Policy(whiteouts="useful")
        layers.unpacked(out, layers.layer(*made), layers.SINGLE, lowers, policy=policy)
        kinds = [stat.S_IFMT(path.lstat().st_mode) for path in out.rglob("*")]
        assert set(kinds) <= {stat.S_IFDIR}, sorted(out.rglob("*"))


def test_marks_of_aufs_are_left_out_and_counted(tmp_path: Path) -> None:
    data = layers.layer(layers.folder(b".wh..wh.plnk"), layers.file(b".wh..wh.plnk/1.2"), layers.file(b"f"))
    done = layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert (done.dropped, os.listdir(tmp_path / "out")) == ((("aufs", 2),), ["f"])


@pytest.mark.root
def test_a_folder_that_no_entry_names_is_the_one_below(tmp_path: Path) -> None:
    first = layers.layer(
        layers.folder(b"opt", 0o750, uid=7, gid=8, mtime=50), layers.folder(b"opt/app", 0o1777, uid=9)
    )
    second = layers.layer(layers.folder(b"other"))
    layers.unpacked(tmp_path / "1", first)
    layers.unpacked(tmp_path / "2", second)
    done = layers.unpacked(
        tmp_path / "3",
        layers.layer(layers.file(b"opt/app/new/f", mtime=60)),
        lowers=[tmp_path / "2", tmp_path / "1"],
    )
    found = {path: state[:4] for path, state in layers.tree(tmp_path / "3").items()}
    assert found == {
        "opt": ("0o40750", 7, 8, 50 * SECOND),
        "opt/app": ("0o41777", 9, 0, 1_000_000_000 * SECOND),
        "opt/app/new": ("0o40755", 0, 0, 60 * SECOND),
        "opt/app/new/f": ("0o100644", 0, 0, 60 * SECOND),
    }
    assert done.depends


@pytest.mark.root
def test_a_link_in_a_layer_below_is_followed(tmp_path: Path) -> None:
    layers.unpacked(
        tmp_path / "1", layers.layer(layers.folder(b"usr/lib", 0o700), layers.symlink(b"lib", b"usr/lib"))
    )
    layers.unpacked(tmp_path / "2", layers.layer(layers.file(b"lib/x", b"1")), lowers=[tmp_path / "1"])
    assert sorted(layers.tree(tmp_path / "2")) == ["usr", "usr/lib", "usr/lib/x"]
    assert (tmp_path / "2/usr/lib").stat().st_mode & 0o777 == 0o700
    # But a folder in its place is one.
    layers.unpacked(
        tmp_path / "3",
        layers.layer(layers.folder(b"lib"), layers.file(b"lib/x", b"1")),
        lowers=[tmp_path / "1"],
    )
    assert sorted(layers.tree(tmp_path / "3")) == ["lib", "lib/x"]


@pytest.mark.root
def test_what_is_hidden_below_is_not_found(tmp_path: Path) -> None:
    layers.unpacked(
        tmp_path / "1",
        layers.layer(layers.folder(b"a", 0o700), layers.folder(b"b/c", 0o700), layers.folder(b"d", 0o700)),
    )
    layers.unpacked(
        tmp_path / "2",
        layers.layer(layers.file(b".wh.a"), layers.file(b"b/.wh..wh..opq"), layers.file(b"d")),
        lowers=[tmp_path / "1"],
    )
    data = layers.layer(layers.file(b"a/f"), layers.file(b"b/c/f"), layers.file(b"d/f"))
    layers.unpacked(tmp_path / "3", data, lowers=[tmp_path / "2", tmp_path / "1"])
    assert {(tmp_path / "3" / path).stat().st_mode & 0o777 for path in ("a", "b/c", "d")} == {0o755}


@pytest.mark.root
def test_a_hard_link_to_a_file_below_brings_it_up(tmp_path: Path) -> None:
    layers.unpacked(
        tmp_path / "1",
        layers.layer(
            layers.folder(b"d", 0o710, uid=3),
            layers.pax({b"SCHILY.xattr.user.k": b"v"}),
            layers.file(b"d/f", b"1" * 3_000_000, mode=0o4755, uid=5, gid=6, mtime=9),
            layers.symlink(b"d/s", b"nowhere", uid=4),
        ),
    )
    data = layers.layer(layers.link(b"x", b"d/f"), layers.link(b"y", b"/d/f"), layers.link(b"z", b"d/s"))
    layers.unpacked(tmp_path / "2", data, lowers=[tmp_path / "1"])
    one, two = layers.tree(tmp_path / "1"), layers.tree(tmp_path / "2")
    assert two["x"] == two["y"] == two["d/f"] == one["d/f"]
    assert two["z"] == two["d/s"] == one["d/s"]
    assert two["d"][:3] == one["d"][:3]
    assert (tmp_path / "2/x").stat().st_nlink == 3
    assert os.getxattr(tmp_path / "2/x", "user.k") == b"v"
    assert (tmp_path / "1/d/f").stat().st_nlink == 1


# --- attributes, bits and devices ---------------------------------------------------------------------

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.mark.root
def test_extended_attributes_and_file_capabilities(tmp_path: Path) -> None:
    data = layers.layer(
        layers.pax(
            {
                b"SCHILY.xattr.user.name": b"a\0b=\n",
                b"SCHILY.xattr.security.capability": CAPABILITY,
                b"LIBARCHIVE.xattr.user.b%3Dc": b"YWJj",
                b"SCHILY.xattr.trusted.own": b"t",
            }
        ),
        layers.file(b"f", b"1", uid=1000),
        layers.pax({b"SCHILY.xattr.user.d": b"2"}),
        layers.folder(b"d"),
    )
    done = layers.unpacked(tmp_path / "out", data)
    found = {name: os.getxattr(tmp_path / "out/f", name) for name in os.listxattr(tmp_path / "out/f")}
    assert found == {
        "user.name": b"a\0b=\n",
        "security.capability": CAPABILITY,
        "user.b=c": b"abc",
        "trusted.own": b"t",
    }
    assert os.getxattr(tmp_path / "out/d", "user.d") == b"2"
    assert done.dropped == ()


def test_what_a_user_cannot_set_is_left_out_and_counted(tmp_path: Path) -> None:
    data = layers.layer(
        layers.pax({b"SCHILY.xattr.security.capability": CAPABILITY, b"SCHILY.xattr.security.selinux": b"l"}),
        layers.file(b"f"),
        layers.pax({b"SCHILY.xattr.user.on-a-link": b"1"}),
        layers.symlink(b"l", b"f"),
    )
    done = layers.unpacked(tmp_path / "out", data, layers.SINGLE)
    assert dict(done.dropped) == {"security.capability": 1, "security.selinux": 1, "user.on-a-link": 1}
    assert "security.capability" not in os.listxattr(tmp_path / "out/f")


@pytest.mark.root
def test_bits_that_give_power_go_by_policy(tmp_path: Path) -> None:
    data = layers.layer(
        layers.pax({b"SCHILY.xattr.security.capability": CAPABILITY}),
        layers.file(b"f", mode=0o6755),
        layers.folder(b"d", 0o3777),
    )
    layers.unpacked(tmp_path / "1", data)
    assert ((tmp_path / "1/f").stat().st_mode, (tmp_path / "1/d").stat().st_mode) == (0o106755, 0o043777)
    done = layers.unpacked(tmp_path / "2", data, policy=Policy(setuid=False))
    assert ((tmp_path / "2/f").stat().st_mode, (tmp_path / "2/d").stat().st_mode) == (0o100755, 0o041777)
    assert done.dropped == (("security.capability", 1),)


@pytest.mark.root
def test_devices_go_by_policy(tmp_path: Path) -> None:
    data = layers.layer(
        layers.header(b"null", b"3", device=(1, 3), mode=0o666),
        layers.header(b"disk", b"4", device=(8, 300)),
        layers.header(b"mark", b"3", device=(0, 0)),
        layers.header(b"fifo", b"6", mode=0o622),
    )
    done = layers.unpacked(tmp_path / "1", data)
    assert (done.dropped, os.listdir(tmp_path / "1")) == ((("device", 3),), ["fifo"])
    assert stat.filemode((tmp_path / "1/fifo").stat().st_mode) == "prw--w--w-"
    layers.unpacked(tmp_path / "2", data, policy=Policy(devices="make"))
    made = {path: (tmp_path / "2" / path).stat() for path in ("null", "disk")}
    state = {path: (stat.filemode(each.st_mode), each.st_rdev) for path, each in made.items()}
    assert state == {"null": ("crw-rw-rw-", os.makedev(1, 3)), "disk": ("brw-r--r--", os.makedev(8, 300))}
    assert not (tmp_path / "2/mark").exists()


# --- who unpacks --------------------------------------------------------------------------------------

AS_USER = """
import io, os, sys
from sandboxlib.image.owner import Owner
from sandboxlib.image.owner import Owner
from sandboxlib.image.unpack import unpack, remove_tree
from sandboxlib.kernel.probe import probe
owner = Owner("single") if sys.argv[2] == "single" else Owner.of(probe())
os.mkdir("out")
fd = os.open("out", os.O_RDONLY)
done = unpack(io.BytesIO(bytes.fromhex(sys.argv[1])), fd, owner)
print(owner.kind, done.diff_id, dict(done.dropped))
for name in ("f", "d"):
    state = os.lstat("out/" + name)
    print(name, oct(state.st_mode), state.st_uid, state.st_gid)
mark = os.getxattr("out/d", "user.overlay.opaque") if owner.kind == "single" else 0
print(os.path.lexists("out/gone"), mark)
here = os.open(".", os.O_RDONLY)
remove_tree(here, "out", owner)
print(os.path.lexists("out"))
"""
USERS_LAYER = layers.layer(
    layers.folder(b"d", 0o700, uid=5, gid=6),
    layers.file(b"d/x", b"1", mode=0, uid=7),
    layers.file(b"d/.wh..wh..opq"),
    layers.pax({b"SCHILY.xattr.security.capability": CAPABILITY}),
    layers.file(b"f", b"1", uid=1000, gid=0, mode=0o4755),
    layers.file(b".wh.gone"),
)


@pytest.mark.unprivileged
def test_a_user_without_more_ids_owns_all(as_user: Callable[..., CompletedProcess[str]]) -> None:
    lines = as_user(
        AS_USER, USERS_LAYER.hex(), "single", env={"PYTHONPATH": str(users.CHECKOUT)}
    ).stdout.splitlines()
    uid = users.UID if os.geteuid() == 0 else os.geteuid()
    gid = users.UID if os.geteuid() == 0 else os.getegid()
    assert lines == [
        f"single {layers.digest(USERS_LAYER)} {{'security.capability': 1}}",
        f"f 0o104755 {uid} {gid}",
        f"d 0o40700 {uid} {gid}",
        "True b'y'",
        "False",
    ]


@pytest.mark.root
@pytest.mark.unprivileged
@pytest.mark.subids
def test_a_user_with_more_ids_gives_files_theirs(as_user: Callable[..., CompletedProcess[str]]) -> None:
    done = as_user(AS_USER, USERS_LAYER.hex(), "range", subids=True, env={"PYTHONPATH": str(users.CHECKOUT)})
    first = users.SUBORDINATE[0] - 1
    assert done.stdout.splitlines() == [
        f"range {layers.digest(USERS_LAYER)} {{}}",
        f"f 0o104755 {first + 1000} {users.UID}",
        f"d 0o40700 {first + 5} {first + 6}",
        "True 0",
        "False",
    ]


def test_a_look_below_that_fails_closes_each_descriptor_once(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    with layers.opened(tmp_path) as (top,):
        before = os.listdir("/proc/self/fd")
        for path in (b"x" * 256, b"d/" + b"x" * 256, b"d/e/" + b"x" * 256):
            # An error of a second close would take this one's place, or close what another thread has opened.
            with pytest.raises(OSError, match="too long"):
                Below([top], "user.overlay.").find(path)
        assert os.listdir("/proc/self/fd") == before


def test_two_layers_are_unpacked_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    data = gzip.compress(layers.layer(*(layers.file(b"d/%d" % n, os.urandom(999)) for n in range(500))))
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda n: layers.unpacked(tmp_path / str(n), data, layers.SINGLE), range(4)))
    assert len(set(done)) == 1
    assert layers.tree(tmp_path / "0") == layers.tree(tmp_path / "3")


def test_cancelling_ends_it_at_once(tmp_path: Path) -> None:
    read, write = os.pipe()

    class GivenUpError(Exception):
        pass

    told: list[int] = []

    def cancelled() -> None:
        told.append(1)
        if len(told) > 2:
            os.close(write)  # only so that the thread which reads ends
            raise GivenUpError

    (tmp_path / "out").mkdir()
    with open(read, "rb") as file, layers.opened(tmp_path / "out") as (fd,), pytest.raises(GivenUpError):
        unpack(file, fd, layers.SINGLE, cancelled=cancelled)
