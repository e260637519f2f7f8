"""Layers are unpacked as the specification and other engines understand them."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zlib
from pathlib import Path

import pytest

from sandboxlib.errors import ImageError
from sandboxlib.image.compression import compressed, decompressed
from sandboxlib.image.extract import Limits

from layers import (
    END,
    MINE,
    diff_id,
    entry,
    folder,
    link,
    listing,
    pax,
    raw_entry,
    symlink,
    tar,
    unpacked,
    zipped,
)

MARK = MINE.marks + "opaque"


def is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def marks(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, MARK)
    except OSError:
        return None


# ---- kinds of entries -------------------------------------------------------------------------------


def test_files_folders_and_links(tmp_path: Path) -> None:
    raw = tar(
        folder("a/", 0o750, mtime=1_600_000_000),
        entry("a/file", b"text", mode=0o640),
        symlink("a/soft", "../b"),
        link("a/hard", "a/file"),
        entry("./b", b"other", mode=0o600),
        entry("deep/without/folders", b"x"),
        entry("pipe", type=tarfile.FIFOTYPE),
    )
    found = unpacked(tmp_path / "top", raw)
    top = tmp_path / "top"
    assert found.diff_id == diff_id(raw)
    assert (found.files, found.size) == (7, 10)
    assert (top / "a/file").read_bytes() == b"text"
    assert (top / "a/file").samefile(top / "a/hard")
    assert os.readlink(top / "a/soft") == "../b"
    assert stat.S_IMODE((top / "a").stat().st_mode) == 0o750
    assert stat.S_IMODE((top / "a/file").stat().st_mode) == 0o640
    # A folder's time is that of its entry, not of the last file in it.
    assert (top / "a").stat().st_mtime == 1_600_000_000
    assert stat.S_IMODE((top / "deep/without").stat().st_mode) == 0o755
    assert stat.S_ISFIFO((top / "pipe").stat().st_mode)


@pytest.mark.root
def test_root_keeps_owners_however_large(tmp_path: Path) -> None:
    raw = tar(
        entry("a", uid=1000, gid=2000),
        entry("huge", uid=4_000_000_000, gid=3_000_000_000),
        folder("d", uid=5),
    )
    unpacked(tmp_path / "top", raw)
    found = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in (tmp_path / "top").iterdir()}
    assert found == {"a": (1000, 2000), "huge": (4_000_000_000, 3_000_000_000), "d": (5, 0)}


@pytest.mark.root
def test_setuid_bits_and_capabilities_outlive_the_owner(tmp_path: Path) -> None:
    value = b"\1\0\0\2" + b"\0\4\0\0" + bytes(12)
    raw = (
        pax(SCHILY__xattr__security__capability=value)
        + raw_entry(b"ping", b"x", mode=0o755)
        + tar(entry("su", b"x", mode=0o4755, uid=1, gid=2))
    )
    unpacked(tmp_path / "top", raw)
    assert stat.S_IMODE((tmp_path / "top/su").stat().st_mode) == 0o4755
    assert os.getxattr(tmp_path / "top/ping", "security.capability") == value
    unpacked(tmp_path / "plain", raw, limits=Limits(setuid=False))
    assert stat.S_IMODE((tmp_path / "plain/su").stat().st_mode) == 0o755


def test_names_need_not_be_text(tmp_path: Path) -> None:
    raw = pax(path=b"caf\xe9/\xff\xfe") + raw_entry(b"x", b"1") + raw_entry(b"\x80\n", b"2") + END
    unpacked(tmp_path / "top", raw)
    assert set(os.listdir(os.fsencode(tmp_path / "top"))) == {b"caf\xe9", b"\x80\n"}
    assert os.listdir(os.fsencode(tmp_path / "top") + b"/caf\xe9") == [b"\xff\xfe"]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_each_format(tmp_path: Path, format_: int) -> None:
    name = "/".join(["folder-of-some-length"] * 6) + "/file"
    entries = [entry(name, b"x")]
    long = "/".join(["n" * 200] * 3)
    if format_ != tarfile.USTAR_FORMAT:
        entries += [entry(long, b"y"), symlink("soft", long), link("hard", long)]
    unpacked(tmp_path / "top", tar(*entries, format=format_))
    assert (tmp_path / "top" / name).read_bytes() == b"x"
    if format_ != tarfile.USTAR_FORMAT:
        assert (tmp_path / "top/hard").read_bytes() == b"y"
        assert os.readlink(tmp_path / "top/soft") == long


def test_fractions_of_seconds_and_times_before_1970(tmp_path: Path) -> None:
    raw = pax(mtime=b"1700000000.123456789") + raw_entry(b"a") + pax(mtime=b"-5.5") + raw_entry(b"b") + END
    unpacked(tmp_path / "top", raw)
    assert (tmp_path / "top/a").stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert (tmp_path / "top/b").stat().st_mtime_ns == -5_500_000_000


@pytest.mark.parametrize("kind", ["0.0", "0.1", "1.0", "gnu"])
def test_sparse_files(tmp_path: Path, kind: str) -> None:
    size, first, second = 3 << 20, b"begin" * 100, b"end" * 100
    pieces = [(0, len(first)), (size - len(second), len(second))]
    data = first + second
    text = ",".join(f"{offset},{length}" for offset, length in pieces).encode()
    if kind == "gnu":
        head = bytearray(raw_entry(b"file", data, b"S")[:512])
        for number, (offset, length) in enumerate(pieces):
            head[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % (offset, length)
        head[483:495] = b"%011o\0" % size
        head[148:156] = b"        "
        head[148:156] = b"%06o\0 " % sum(head)
        raw = bytes(head) + data + bytes(-len(data) % 512)
    elif kind == "0.0":
        records = b""
        for key, value in [
            ("GNU.sparse.size", size),
            *[
                pair
                for piece in pieces
                for pair in (("GNU.sparse.offset", piece[0]), ("GNU.sparse.numbytes", piece[1]))
            ],
        ]:
            rest = f" {key}={value}\n".encode()
            records += str(len(rest) + 2).encode() + rest
        raw = raw_entry(b"pax", records, b"x") + raw_entry(b"file", data)
    elif kind == "0.1":
        raw = pax(
            GNU__sparse__size=b"%d" % size, GNU__sparse__map=text, GNU__sparse__name=b"file"
        ) + raw_entry(b"GNUSparseFile.0/file", data)
    else:
        numbers = [len(pieces), *(number for piece in pieces for number in piece)]
        table = b"".join(b"%d\n" % number for number in numbers)
        data = table + bytes(-len(table) % 512) + data
        raw = pax(
            GNU__sparse__major=b"1",
            GNU__sparse__minor=b"0",
            GNU__sparse__name=b"file",
            GNU__sparse__realsize=b"%d" % size,
        ) + raw_entry(b"GNUSparseFile.0/file", data)
    unpacked(tmp_path / "top", raw + END)
    content = (tmp_path / "top/file").read_bytes()
    assert content == first + bytes(size - len(first) - len(second)) + second
    assert (tmp_path / "top/file").stat().st_blocks * 512 < size // 2


def test_what_gnu_tar_makes(tmp_path: Path) -> None:
    import subprocess

    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/file").write_text("x" * 5000)
    (source / ("long" * 50)).write_text("long")
    with open(source / "hole", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"middle")
    os.link(source / "a/b/file", source / "linked")
    for options in (["--format=gnu", "--sparse"], ["--format=posix", "--sparse"], ["--format=oldgnu"]):
        made = subprocess.run(["tar", "-C", source, *options, "-c", "."], capture_output=True, check=True)
        top = tmp_path / options[0]
        unpacked(top, made.stdout)
        assert subprocess.run(["diff", "-r", source, top], check=False).returncode == 0
        assert (top / "linked").samefile(top / "a/b/file")


# ---- changes ----------------------------------------------------------------------------------------


def test_whiteouts_and_opaque_folders(tmp_path: Path) -> None:
    raw = tar(
        entry(".wh.gone"),
        folder("new"),
        entry("new/.wh..wh..opq"),
        entry("new/inside", b"x"),
        entry("implied/.wh.also"),
        entry(".wh..wh.plnk"),
        entry(".wh.replaced"),
        folder("replaced"),
        entry("kept", b"here"),
        entry(".wh.kept"),
        folder("both"),
        entry("both/file", b"x"),
        entry(".wh.both"),
    )
    unpacked(tmp_path / "top", raw)
    top = tmp_path / "top"
    assert is_whiteout(top / "gone")
    assert is_whiteout(top / "implied/also")
    assert marks(top / "new") == b"y"
    assert (top / "new/inside").read_bytes() == b"x"
    # A folder in place of what was taken away shows nothing of that.
    assert marks(top / "replaced") == b"y"
    # Taken away is what is below; what this layer has itself stays.
    assert (top / "kept").read_bytes() == b"here"
    assert (marks(top / "both"), (top / "both/file").exists()) == (b"y", True)
    assert not [name for name in os.listdir(top) if name.startswith(".wh.")]


def test_later_entries_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    raw = tar(
        entry("a", b"first"),
        entry("a", b"second"),
        folder("b"),
        entry("b/file"),
        entry("b", b"now a file"),
        entry("c", b"file"),
        folder("c", 0o711),
        entry("c/file", b"x"),
        folder("d"),
        entry("d/kept", b"x"),
        folder("d", 0o700),
    )
    unpacked(tmp_path / "top", raw)
    found = listing(tmp_path / "top")
    assert found["a"] == ("-", "second")
    assert found["b"] == ("-", "now a file")
    assert found["c/file"] == ("-", "x")
    assert found["d/kept"] == ("-", "x")
    assert stat.S_IMODE((tmp_path / "top/d").stat().st_mode) == 0o700


def test_links_to_files_of_layers_below(tmp_path: Path) -> None:
    unpacked(
        tmp_path / "low", tar(entry("bin/tool", b"program", mode=0o755), entry("gone", b"x"), folder("d"))
    )
    unpacked(tmp_path / "mid", tar(entry(".wh.gone")))
    lowers = [tmp_path / "mid", tmp_path / "low"]
    unpacked(tmp_path / "top", tar(link("bin/other", "bin/tool")), lowers=lowers)
    top = tmp_path / "top"
    assert (top / "bin/other").read_bytes() == b"program"
    assert (top / "bin/other").samefile(top / "bin/tool")
    assert stat.S_IMODE((top / "bin/tool").stat().st_mode) == 0o755
    with pytest.raises(ImageError, match="which is not there"):
        unpacked(tmp_path / "bad", tar(link("x", "gone")), lowers=lowers)
    with pytest.raises(ImageError, match="which is not there"):
        unpacked(tmp_path / "bad", tar(link("x", "nowhere")), lowers=lowers)


def test_folders_that_no_entry_describes_are_as_below(tmp_path: Path) -> None:
    unpacked(
        tmp_path / "low",
        tar(
            folder("var", 0o711),
            folder("var/secret", 0o700),
            symlink("lib", "usr/lib"),
            folder("usr/lib", 0o750),
        ),
    )
    raw = tar(entry("var/secret/new", b"x"), entry("lib/module", b"x"), entry("fresh/new", b"x"))
    unpacked(tmp_path / "top", raw, lowers=[tmp_path / "low"])
    top = tmp_path / "top"
    assert stat.S_IMODE((top / "var").stat().st_mode) == 0o711
    assert stat.S_IMODE((top / "var/secret").stat().st_mode) == 0o700
    assert stat.S_IMODE((top / "fresh").stat().st_mode) == 0o755
    # The link is below: it is followed, and not covered by a folder.
    assert not (top / "lib").exists()
    assert (top / "usr/lib/module").read_bytes() == b"x"
    assert stat.S_IMODE((top / "usr/lib").stat().st_mode) == 0o750


def test_a_link_of_the_layer_itself_is_followed_too(tmp_path: Path) -> None:
    raw = tar(symlink("lib", "usr/lib"), entry("lib/one", b"1"), folder("usr/lib"), entry("lib/two", b"2"))
    unpacked(tmp_path / "top", raw)
    assert sorted(os.listdir(tmp_path / "top/usr/lib")) == ["one", "two"]
    assert os.readlink(tmp_path / "top/lib") == "usr/lib"


# ---- compression ------------------------------------------------------------------------------------


def _zstd(raw: bytes) -> bytes:
    out: list[bytes] = []
    with compressed(out.append, "zstd") as sink:
        sink.write(raw)
    return b"".join(out)


def test_each_compression_is_told_by_its_bytes(tmp_path: Path) -> None:
    raw = tar(entry("file", os.urandom(300_000)))
    half = len(raw) // 2
    skipped = b"\x5f\x2a\x4d\x18" + (300_000).to_bytes(4, "little") + bytes(300_000)
    for number, blob in enumerate(
        (
            raw,
            zipped(raw),
            gzip.compress(raw[:half]) + gzip.compress(raw[half:]),
            zipped(raw) + bytes(5000),
            _zstd(raw),
            _zstd(raw[:half]) + skipped + _zstd(raw[half:]),
            skipped + _zstd(raw) + skipped,
        )
    ):
        assert unpacked(tmp_path / str(number), blob).diff_id == diff_id(raw), number


def test_what_follows_the_end_of_a_tar_counts(tmp_path: Path) -> None:
    raw = tar(entry("a")) + b"trailing" * 1000
    assert unpacked(tmp_path / "top", raw).diff_id == diff_id(raw)
    # Without the two blocks at the end, as some make it.
    short = raw_entry(b"a", b"x")
    assert unpacked(tmp_path / "short", short).diff_id == diff_id(short)


@pytest.mark.parametrize("cut", [1, 20, 500, 2000])
def test_a_cut_off_layer_is_an_error(tmp_path: Path, cut: int) -> None:
    raw = raw_entry(b"file", os.urandom(5120))
    for number, blob in enumerate((raw[:-cut], zipped(raw)[:-cut], _zstd(raw)[:-cut])):
        with pytest.raises(ImageError):
            unpacked(tmp_path / f"{number}", blob)


def test_a_damaged_layer_is_an_error(tmp_path: Path) -> None:
    raw = bytearray(zipped(tar(entry("file", os.urandom(100_000)))))
    raw[50_000] ^= 255
    with pytest.raises(ImageError, match=r"damaged|not a tar file"):
        unpacked(tmp_path / "top", bytes(raw))


def test_compression_is_the_same_always() -> None:
    def made(kind: str) -> bytes:
        out: list[bytes] = []
        with compressed(out.append, kind) as sink:  # type: ignore[arg-type]
            sink.write(b"content" * 1000)
        return b"".join(out)

    assert made("gzip") == made("gzip")
    assert zlib.decompress(made("gzip"), 31) == b"content" * 1000
    assert made("none") == b"content" * 1000
    with decompressed(io.BytesIO(made("zstd"))) as stream:
        assert stream.read() == b"content" * 1000
