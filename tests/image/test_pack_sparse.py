"""Holes of files stay holes where they are packed as such, and are bounded where they become zeros"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxlib.errors import StateError, TooLargeError
from sandboxlib.image import attributes, sparse
from sandboxlib.image.owner import Owner
from sandboxlib.image.pack import pack_changes, pack_tree
from sandboxlib.image.source import Limits, nothing

import layers

pytestmark = [pytest.mark.leaks]

TERABYTE = 1 << 40
OWNERS = pytest.mark.parametrize("owner", [layers.ROOT, layers.SINGLE], ids=["here", "apart"])


def holed(path: Path, size: int, *parts: tuple[int, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        for at, data in parts:
            file.seek(at)
            file.write(data)
        file.truncate(size)
    return path


def disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def at(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A terabyte, most of it holes; under a name that has no room in a header."""
    top = tmp_path / "source"
    parts = (0, b"begin"), (TERABYTE >> 1, b"middle" * 10_000), (TERABYTE - 4, b"last")
    holed(top / "big", TERABYTE, *parts)
    holed(top / ("n" * 200 + "é"), 3 << 30, (1 << 30, b"x"))
    holed(top / "nothing", 5 << 20)
    holed(top / "small", 1 << 19, (1 << 18, b"x"))
    return top


def packed(top: Path, owner: Owner, **options: object) -> bytes:
    out = io.BytesIO()
    with layers.opened(top) as (fd,):
        pack_tree(fd, out.write, owner, **options)  # type: ignore[arg-type]
    return out.getvalue()


def _check(made: Path, top: Path) -> None:
    for path in top.iterdir():
        same = made / path.name
        assert same.stat().st_size == path.stat().st_size
        assert disk(same) < 1 << 20
    assert at(made / "big", 0, 6) == b"begin\0"
    assert at(made / "big", (TERABYTE >> 1) + 59_994, 8) == b"middle\0\0"
    assert at(made / "big", TERABYTE - 5, 5) == b"\0last"
    assert at(made / ("n" * 200 + "é"), (1 << 30) - 1, 3) == b"\0x\0"


@OWNERS
def test_a_terabyte_of_holes_is_packed_as_holes(owner: Owner, top: Path, tmp_path: Path) -> None:
    data = packed(top, owner, sparse=True)
    assert len(data) < 1 << 20
    layers.unpacked(tmp_path / "ours", data, limits=Limits(bytes=2 * TERABYTE))
    _check(tmp_path / "ours", top)
    assert packed(tmp_path / "ours", owner, sparse=True) == data


@pytest.mark.tool("tar")
def test_gnu_tar_reads_the_holes(top: Path, tmp_path: Path) -> None:
    data = packed(top, layers.ROOT, sparse=True)
    out = tmp_path / "theirs"
    out.mkdir()
    done = subprocess.run(["tar", "-C", out, "-xf", "-"], input=data, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    _check(out, top)


def test_python_reads_the_holes(top: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(top, layers.ROOT, sparse=True))) as archive:
        found = {member.name: member for member in archive}
        file = archive.extractfile(found["big"])
        assert file is not None
        file.seek(TERABYTE - 4)
        assert file.read() == b"last"
    assert {name: member.size for name, member in found.items() if name != "."} == {
        path.name: path.stat().st_size for path in top.iterdir()
    }


def test_what_has_few_holes_is_packed_as_everything_else(top: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(top, layers.ROOT, sparse=True))) as archive:
        assert not archive.getmember("small").pax_headers
        assert archive.getmember("nothing").pax_headers


def test_a_layer_has_zeros_for_holes(tmp_path: Path) -> None:
    top = tmp_path / "source"
    holed(top / "f", 9 << 20, (5 << 20, b"data"))
    data = packed(top, layers.ROOT)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (member,) = [member for member in archive if member.isfile()]
        assert not member.pax_headers
        file = archive.extractfile(member)
        assert file is not None
        assert file.read() == (top / "f").read_bytes()
    layers.unpacked(tmp_path / "out", data)
    assert (tmp_path / "out/f").read_bytes() == (top / "f").read_bytes()
    # Where zeros came from a hole nobody knows any more; they become one.
    assert disk(tmp_path / "out/f") < 1 << 20


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (1 << 21) - 5])
@pytest.mark.parametrize("last", [b"", b"x"])
def test_zeros_at_the_end_are_not_lost(size: int, last: bytes, tmp_path: Path) -> None:
    content = b"a" + bytes(size - 1 - len(last)) + last
    data = layers.layer(layers.file(b"f", content))
    layers.unpacked(tmp_path / "out", data)
    assert (tmp_path / "out/f").read_bytes() == content


@OWNERS
@pytest.mark.parametrize("pack", [pack_tree, pack_changes])
def test_nothing_is_written_of_a_file_that_is_too_large(
    owner: Owner, pack: Callable[..., object], top: Path
) -> None:
    out: list[bytes] = []
    with (
        layers.opened(top) as (fd,),
        pytest.raises(TooLargeError, match=r"^big: more than 1000000 bytes of data, .* max_size=") as caught,
    ):
        pack(fd, out.append, owner, bounds=(1_000_000, None))
    assert (caught.value.argument, caught.value.what) == ("max_size", "bytes of data")
    assert sum(map(len, out)) < 1 << 20


@OWNERS
def test_holes_that_stay_holes_are_not_counted(owner: Owner, top: Path) -> None:
    packed(top, owner, sparse=True, bounds=(1 << 20, 5))
    with pytest.raises(TooLargeError, match="max_entries"):
        packed(top, owner, sparse=True, bounds=(1 << 20, 3))


def test_names_of_a_folder_are_counted_while_they_are_listed(tmp_path: Path) -> None:
    top = tmp_path / "source"
    top.mkdir()
    for number in range(2000):
        (top / f"{number}").touch()
    asked = 0

    def cancelled() -> None:
        nonlocal asked
        asked += 1

    with pytest.raises(TooLargeError, match="more than 10 entries"):
        packed(top, layers.ROOT, bounds=(None, 10), cancelled=cancelled)
    assert asked < 20


def test_zeros_of_a_terabyte_can_be_given_up(top: Path) -> None:
    asked = 0

    class GivenUpError(Exception):
        pass

    def cancelled() -> None:
        nonlocal asked
        asked += 1
        if asked > 50:
            raise GivenUpError

    written = 0

    def write(data: bytes) -> None:
        nonlocal written
        written += len(data)

    with layers.opened(top) as (fd,), pytest.raises(GivenUpError):
        pack_tree(fd, write, layers.ROOT, cancelled=cancelled)
    assert written < 100 << 20


def test_a_file_with_holes_that_shrinks_is_noticed(tmp_path: Path) -> None:
    top = tmp_path / "source"
    holed(top / "f", 1 << 30, (0, bytes(4 << 20)), (1 << 29, b"x" * 4096))

    def write(_: bytes) -> None:
        os.truncate(top / "f", 1 << 20)

    with layers.opened(top) as (fd,), pytest.raises(StateError, match="became shorter"):
        pack_tree(fd, write, layers.ROOT, sparse=True)


def test_many_small_parts_are_joined_and_none_is_lost(tmp_path: Path) -> None:
    parts = [(number * (1 << 17) + number % 3 * 4096, b"%08d" % number) for number in range(1, 400)]
    path = holed(tmp_path / "x/f", 1 << 26, *parts)
    with path.open("rb") as file:
        whole = sparse.of_file(file.fileno(), 1 << 26, nothing)
        few = sparse.of_file(file.fileno(), 1 << 26, nothing, most=50)
    assert len(whole) == 399
    assert 0 < len(few) < 50
    for found in (whole, few):
        assert found == sorted(found)
        covered = [any(b <= at and at + 8 <= b + length for b, length in found) for at, _ in parts]
        assert all(covered)
        sparse.check(found, 1 << 26, sum(length for _, length in found), "f")


def test_attributes_are_read_up_to_a_bound(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for number in range(5):
        os.setxattr(tmp_path / "f", f"user.{number}", b"x" * 100)
    path = os.fsencode(tmp_path / "f")
    assert len(attributes.read_all(path, most=600)) == 5
    with pytest.raises(OverflowError):
        attributes.read_all(path, most=400)
