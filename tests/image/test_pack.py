"""Trees become layers that mean the same, to us and to others, byte for byte each time."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sandboxlib.errors import ImageError, KernelError, SpecError, StateError
from sandboxlib.image.owner import Owner
from sandboxlib.image.pack import Packed, pack_changes, pack_tree
from sandboxlib.image.unpack import Policy

import layers
import users

pytestmark = [pytest.mark.leaks]

SECOND = 10**9
CAPABILITY_2 = bytes.fromhex("0100000200040000000000000000000000000000")
CAPABILITY_3 = bytes.fromhex("010000030004000000000000000000000000000000000050")


def packed(top: Path, owner: Owner = layers.ROOT, **options: object) -> tuple[bytes, Packed]:
    return _with(pack_tree, top, owner, **options)


def changes(top: Path, owner: Owner = layers.ROOT, **options: object) -> tuple[bytes, Packed]:
    return _with(pack_changes, top, owner, **options)


def _with(pack: Callable[..., Packed], top: Path, owner: Owner, **options: object) -> tuple[bytes, Packed]:
    out = io.BytesIO()
    with layers.opened(top) as (fd,):
        done = pack(fd, out.write, owner, **options)
    data = out.getvalue()
    assert done == Packed(layers.digest(data), len(data))
    return data, done


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        found = archive.getmembers()
    assert len({member.name for member in found}) == len(found)
    return {member.name: member for member in found}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with something of everything."""
    top = tmp_path / "source"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "f").write_bytes(b"text" * 1000)
    (top / "a" / "b").chmod(0o2750)
    (top / "link").symlink_to("a/b/f")
    os.link(top / "a" / "b" / "f", top / "zlink")
    os.link(top / "link", top / "zsymlink", follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o640)
    (top / "empty").touch()
    (top / "empty").chmod(0o4755)
    (top / ("n" * 200)).mkdir()
    (top / ("n" * 200) / ("m" * 120)).write_text("far")
    (top / ("p" * 90)).mkdir()
    (top / ("p" * 90) / ("q" * 90)).write_text("split")
    (top / ("n" * 200) / "l").symlink_to("t" * 150)
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe")).touch()
    (top / ("é" * 80)).touch()
    os.setxattr(top / "empty", "user.k", b"\0=\n")
    with (top / "holes").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"data")
        file.truncate(4 << 20)
    for parent, folders, files in os.walk(top, topdown=False):
        for name in (*folders, *files):
            os.utime(os.path.join(parent, name), ns=(0, 1_234_567_890 * SECOND), follow_symlinks=False)
    os.utime(top, (0, 7))
    return top


@pytest.mark.root
def test_a_tree_that_is_packed_and_unpacked_is_the_same(tmp_path: Path, source: Path) -> None:
    os.chown(source / "a", 3_000_000_000, 70_000)
    os.setxattr(source / "zlink", "user.x", b"1" * 2000)
    os.setxattr(source / "zlink", "security.capability", CAPABILITY_2)
    os.mknod(source / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.utime(source / "null", (5, 5))
    os.utime(source / "empty", (-5, -5))
    os.setxattr(source / "empty", "user.k=v", b"\0=\n")
    os.utime(source, (0, 7))
    data, first = packed(source)
    layers.unpacked(tmp_path / "out", data, policy=Policy(devices="make"))
    assert layers.tree(tmp_path / "out") == layers.tree(source)
    assert (tmp_path / "out").stat().st_mtime == 7
    assert (tmp_path / "out/zlink").samefile(tmp_path / "out/a/b/f")
    assert os.getxattr(tmp_path / "out/a/b/f", "user.x") == b"1" * 2000
    assert os.getxattr(tmp_path / "out/empty", "user.k=v") == b"\0=\n"
    assert packed(tmp_path / "out") == (data, first)


@pytest.mark.root
def test_others_read_what_is_packed(tmp_path: Path, source: Path) -> None:
    os.chown(source / "a", 3_000_000_000, 70_000)
    data, _ = packed(source)
    out = tmp_path / "out"
    out.mkdir()
    command = ["tar", "-C", str(out), "-xpf", "-", "--same-owner", "--xattrs", "--xattrs-include=*"]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    found, wanted = layers.tree(out), layers.tree(source)
    assert found == wanted
    names = members(data)
    assert {name for name in names if name != "."} == set(wanted)
    assert os.getxattr(out / "empty", "user.k") == b"\0=\n"
    assert names["zlink"].linkname == "a/b/f"


def test_only_what_has_no_room_gets_an_extended_header(source: Path) -> None:
    found = members(packed(source, layers.ROOT)[0])
    assert {name for name, member in found.items() if set(member.pax_headers) - {"hdrcharset"}} == {
        "empty",
        "n" * 200,
        "n" * 200 + "/" + "m" * 120,
        "n" * 200 + "/l",
        "é" * 80,
    }
    assert {(member.uname, member.gname) for member in found.values()} == {("", "")}


def test_names_are_in_order_and_folders_before_what_is_in_them(tmp_path: Path) -> None:
    top = tmp_path / "source"
    for name in ("b/x", "b.a", "a/z/y", "a/b"):
        (top / name).mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(packed(top)[0])) as archive:
        names = archive.getnames()
    assert names == [".", "a", "a/b", "a/z", "a/z/y", "b", "b/x", "b.a"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for number in range(3):
        top = tmp_path / str(number)
        top.mkdir()
        names = [f"f{n}" for n in range(50)]
        for name in names if number else reversed(names):
            (top / name).write_text(name)
            os.utime(top / name, ns=(number, 5 * SECOND + number))
        os.link(top / "f3", top / "a")
        os.utime(top, (number, 9))
        digests.add(packed(top)[1].diff_id)
    assert len(digests) == 1


@pytest.mark.root
def test_ids_are_shifted_back(tmp_path: Path) -> None:
    top = tmp_path / "source"
    top.mkdir()
    (top / "f").touch()
    os.chown(top / "f", 0x50000005, 0x50000006)
    data, _ = changes(top, shift=lambda uid, gid: (uid - 0x50000000, gid - 0x50000000))
    assert (members(data)["f"].uid, members(data)["f"].gid) == (5, 6)
    with pytest.raises(SpecError, match="shift"):
        changes(top, layers.RANGE, shift=lambda uid, gid: (uid, gid))


@pytest.mark.root
def test_attributes_are_those_that_belong_to_the_image(tmp_path: Path) -> None:
    top = tmp_path / "source"
    (top / "d").mkdir(parents=True)
    (top / "d/f").touch()
    os.setxattr(top / "d/f", "security.capability", CAPABILITY_3)
    for name in ("trusted.overlay.origin", "trusted.overlay.impure", "user.overlay.opaque", "user.kept"):
        os.setxattr(top / "d", name, b"y")
    for pack in (packed, changes):
        found = members(pack(top)[0])
        # The user namespace that set the capability is none of the image's.
        value = found["d/f"].pax_headers["SCHILY.xattr.security.capability"]
        assert value.encode("utf-8", "surrogateescape") == CAPABILITY_2
        assert set(found["d"].pax_headers) == {"SCHILY.xattr.user.kept"}


def test_sockets_are_left_out(tmp_path: Path) -> None:
    top = tmp_path / "source"
    top.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(top / "s"))
    assert list(members(packed(top)[0])) == ["."]


@pytest.mark.parametrize("name", [".wh.f", ".wh..wh..opq", ".wh..."])
def test_a_name_that_is_kept_for_whiteouts_is_refused(tmp_path: Path, name: str) -> None:
    top = tmp_path / "source"
    top.mkdir()
    (top / name).touch()
    for pack in (packed, changes):
        with pytest.raises(ImageError, match="kept for whiteouts"):
            pack(top)


def test_links_are_not_followed(tmp_path: Path) -> None:
    top = tmp_path / "source"
    top.mkdir()
    (top / "l").symlink_to("/")
    (top / "m").symlink_to("/etc/passwd")
    data, _ = packed(top)
    assert {name: member.type for name, member in members(data).items()} == {
        ".": tarfile.DIRTYPE,
        "l": tarfile.SYMTYPE,
        "m": tarfile.SYMTYPE,
    }


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path: Path) -> None:
    top = tmp_path / "source"
    top.mkdir()
    (top / "f").write_bytes(bytes(20 << 20))

    def write(_: bytes) -> None:
        os.truncate(top / "f", 1 << 20)

    with layers.opened(top) as (fd,), pytest.raises(StateError, match="became shorter"):
        pack_tree(fd, write, layers.ROOT)


def test_giving_up_is_possible(tmp_path: Path) -> None:
    top = tmp_path / "source"
    top.mkdir()

    class GivenUpError(Exception):
        pass

    def cancelled() -> None:
        raise GivenUpError

    for owner in (layers.ROOT, layers.SINGLE):
        with pytest.raises(GivenUpError):
            packed(top, owner, cancelled=cancelled)


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    top = tmp_path / "source"
    top.mkdir()

    def write(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    with layers.opened(top) as (fd,), pytest.raises(KernelError, match="ENOSPC"):
        pack_tree(fd, write, layers.ROOT)


# --- changes of an overlay ----------------------------------------------------------------------------


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """A mounted overlay on a layer: the mount, its upper folder and the layer."""
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    data = layers.layer(
        layers.folder(b"d"),
        layers.file(b"d/f", b"1", uid=5),
        layers.file(b"d/g", b"2"),
        layers.folder(b"e"),
        layers.file(b"e/f", b"3"),
        layers.file(b"e/sub/f", b"3"),
        layers.folder(b"gone"),
        layers.file(b"gone/f", b"3"),
        layers.file(b"meta", b"4", uid=7),
        layers.folder(b"metadir"),
        layers.file(b"metadir/f", b"5"),
    )
    layers.unpacked(lower, data)
    for path in (upper, work, merged):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off,metacopy=off"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    try:
        yield merged, upper, lower
    finally:
        subprocess.run(["umount", str(merged)], check=True)


@pytest.mark.root
@pytest.mark.overlay
def test_a_layer_of_changes_makes_the_same_tree_again(
    tmp_path: Path, overlay: tuple[Path, Path, Path]
) -> None:
    merged, upper, lower = overlay
    (merged / "d/f").unlink()
    (merged / "d/new").write_text("n")
    for name in ("e/f", "e/sub/f"):
        (merged / name).unlink()
    (merged / "e/sub").rmdir()
    (merged / "e").rmdir()
    (merged / "e").mkdir()
    (merged / "e/only").write_text("o")
    (merged / "gone/f").unlink()
    (merged / "gone").rmdir()
    (merged / "meta").chmod(0o600)
    os.chown(merged / "metadir", 9, 9)
    os.link(merged / "meta", merged / "d/hard")
    data, _ = changes(upper)
    assert set(members(data)) == {
        "d", "d/.wh.f", "d/new", "d/hard", "e", "e/.wh..wh..opq", "e/only", ".wh.gone", "meta", "metadir",
    }  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
    assert names.index("e/.wh..wh..opq") == names.index("e") + 1
    assert data == changes(upper)[0]
    layers.unpacked(tmp_path / "again", data, lowers=[lower])
    again = tmp_path / "mounted"
    again.mkdir()
    options = f"lowerdir={tmp_path / 'again'}:{lower}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(again)], check=True)
    try:
        found, wanted = layers.tree(again), layers.tree(merged)
        whole = {path: (*state[:3], int(str(state[3])) // SECOND, state[4]) for path, state in wanted.items()}
        assert {
            path: (*state[:3], int(str(state[3])) // SECOND, state[4]) for path, state in found.items()
        } == whole
        assert (again / "meta").samefile(again / "d/hard")
        # And packed as a whole both are the same layer, but for the time of the root.
        os.utime(merged, (0, 0))
        assert packed(again)[1].size == packed(merged)[1].size
    finally:
        subprocess.run(["umount", str(again)], check=True)


@pytest.mark.root
@pytest.mark.tool("umoci")
@pytest.mark.overlay
def test_umoci_unpacks_the_changes_to_the_same_tree(tmp_path: Path, overlay: tuple[Path, Path, Path]) -> None:
    merged, upper, lower = overlay
    (merged / "d/f").unlink()
    (merged / "meta").chmod(0o600)
    os.link(merged / "meta", merged / "d/hard")
    for name in ("e/f", "e/sub/f"):
        (merged / name).unlink()
    (merged / "e/sub").rmdir()
    (merged / "e").rmdir()
    (merged / "e").mkdir()
    image = f"{tmp_path}/image"

    def umoci(*words: str) -> None:
        subprocess.run(["umoci", *words], check=True, capture_output=True)

    umoci("init", "--layout", image)
    umoci("new", "--image", f"{image}:x")
    for number, data in enumerate((packed(lower)[0], changes(upper)[0])):
        (tmp_path / f"{number}.tar").write_bytes(data)
        umoci("raw", "add-layer", "--image", f"{image}:x", str(tmp_path / f"{number}.tar"))
    umoci("unpack", "--image", f"{image}:x", f"{tmp_path}/bundle")
    found, wanted = layers.tree(tmp_path / "bundle/rootfs"), layers.tree(merged)
    # umoci gives the folders in which something changed another time.
    assert {path: (state[:3], state[4]) for path, state in found.items()} == {
        path: (state[:3], state[4]) for path, state in wanted.items()
    }


@pytest.mark.root
def test_whiteouts_without_devices_and_their_pretenders(tmp_path: Path) -> None:
    top = tmp_path / "upper"
    for name in ("x", "plain"):
        (top / name).mkdir(parents=True)
        for each in ("hidden", "other"):
            (top / name / each).touch()
        os.setxattr(top / name / "hidden", "trusted.overlay.whiteout", b"")
    os.setxattr(top / "x", "trusted.overlay.opaque", b"x")
    # What a sandbox itself can set says nothing.
    os.setxattr(top / "plain", "user.overlay.opaque", b"y")
    assert set(members(changes(top)[0])) == {
        "x", "x/.wh.hidden", "x/other", "plain", "plain/hidden", "plain/other",
    }  # fmt: skip


@pytest.mark.root
@pytest.mark.parametrize("mark, path", [("redirect", "d"), ("metacopy", "f")])
def test_changes_whose_content_is_elsewhere_are_refused(tmp_path: Path, mark: str, path: str) -> None:
    top = tmp_path / "upper"
    (top / "d").mkdir(parents=True)
    (top / "f").touch()
    os.setxattr(top / path, f"trusted.overlay.{mark}", b"/e")
    with pytest.raises(ImageError, match=mark):
        changes(top)


AS_USER = """
import hashlib, os, io, sys
from sandboxlib.image.owner import Owner
from sandboxlib.image.pack import pack_tree, pack_changes
from sandboxlib.image.unpack import unpack, remove_tree
from sandboxlib.kernel.probe import probe
owner = Owner.of(probe())
os.mkdir("out")
os.makedirs("below/gone")
fd = os.open("out", os.O_RDONLY)
unpack(io.BytesIO(bytes.fromhex(sys.argv[1])), fd, owner, lowers=[os.open("below", os.O_RDONLY)])
for pack in (pack_tree, pack_changes):
    out = io.BytesIO()
    done = pack(fd, out.write, owner)
    assert done.diff_id == "sha256:" + hashlib.sha256(out.getvalue()).hexdigest()
    print(out.getvalue().hex())
remove_tree(os.open(".", os.O_RDONLY), "out", owner)
"""


@pytest.mark.unprivileged
@pytest.mark.userns
@pytest.mark.parametrize("subids", [False, pytest.param(True, marks=pytest.mark.subids)])
def test_a_user_packs_as_root_inside_sees_it(
    as_user: Callable[..., CompletedProcess[str]], subids: bool
) -> None:
    data = layers.layer(
        layers.folder(b"d", 0o000, uid=5, gid=6),
        layers.file(b"d/x", b"1", mode=0, uid=7),
        layers.file(b"d/.wh..wh..opq"),
        layers.file(b".wh.gone"),
    )
    done = as_user(AS_USER, data.hex(), subids=subids, env={"PYTHONPATH": str(users.CHECKOUT)})
    whole, changed = (members(bytes.fromhex(line)) for line in done.stdout.splitlines())
    assert set(whole) == {".", "d", "d/x"}
    assert set(changed) == {"d", "d/.wh..wh..opq", "d/x", ".wh.gone"}
    owners = {name: (member.uid, member.gid, member.mode) for name, member in changed.items()}
    mapped = subids or os.geteuid() != 0
    if os.geteuid() == 0:
        assert owners["d"] == ((5, 6, 0) if mapped else (0, 0, 0))
        assert owners["d/x"] == ((7, 0, 0) if mapped else (0, 0, 0))
    assert owners[".wh.gone"] == (0, 0, 0o600)


def test_a_digest_is_of_what_was_written(source: Path) -> None:
    pieces: list[bytes] = []
    with layers.opened(source) as (fd,):
        done = pack_tree(fd, pieces.append, layers.ROOT)
    assert done.diff_id == f"sha256:{hashlib.sha256(b''.join(pieces)).hexdigest()}"
    assert sum(map(len, pieces)) == done.size


def test_what_something_was_mounted_on_is_no_change(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "mounted/deep/here").mkdir(parents=True)
    (upper / "data/volume").mkdir(parents=True)
    (upper / "data/volume/lost").write_text("x")
    (upper / "data/file").write_text("x")
    (upper / "kept/empty").mkdir(parents=True)
    left_out = {b"mounted/deep/here", b"data/volume", b"kept/nothing/of/this", b"data/file/below"}
    out: list[bytes] = []
    with layers.opened(upper) as (fd,):
        pack_changes(fd, out.append, layers.ROOT, left_out=left_out)
    with tarfile.open(fileobj=io.BytesIO(b"".join(out))) as tar:
        assert tar.getnames() == ["data", "data/file", "kept", "kept/empty"]
