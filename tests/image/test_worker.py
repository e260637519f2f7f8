"""The process that is root over subordinate ids: what it does, how it ends, what it may not."""

from __future__ import annotations

import gzip
import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sandboxlib.errors import (
    ImageError,
    KernelError,
    SandboxError,
    StateError,
    UnsupportedError,
    ViolationError,
)
from sandboxlib.image import apart, wire
from sandboxlib.image.owner import Owner
from sandboxlib.image.pack import pack_tree
from sandboxlib.image.unpack import Limits, Policy, remove_tree, unpack

import layers
import users

pytestmark = [pytest.mark.leaks, pytest.mark.userns]

FIRST = layers.RANGE.uid_map[0][1]
DATA = layers.layer(
    layers.folder(b"d", 0o700, uid=5, gid=6),
    layers.file(b"d/f", os.urandom(2 << 20), uid=1000, mode=0o4711),
    layers.file(b".wh.gone"),
    layers.file(b"e/.wh..wh..opq"),
)


@pytest.mark.root
@pytest.mark.parametrize("how", ["memory", "file", "read ahead", "descriptor"])
def test_it_unpacks_from_whatever_the_blob_comes_from(tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, FIRST, FIRST)
    blob = gzip.compress(DATA)
    (tmp_path / "blob").write_bytes(b"before" + blob)
    told: list[int] = []
    with layers.opened(out) as (fd,), open(tmp_path / "blob", "rb", 0 if how == "descriptor" else -1) as file:
        file.seek(6)
        if how == "read ahead":
            file.seek(0)
            assert file.read(6) == b"before"
        source = io.BytesIO(blob) if how == "memory" else file
        done = unpack(source, fd, layers.RANGE, progress=told.append)
    assert (done.diff_id, done.size, done.files) == (layers.digest(DATA), 2 << 20, 4)
    assert told[-1] == len(blob)
    found = {path: state[:3] for path, state in layers.tree(out).items()}
    assert found == {
        "d": ("0o40700", FIRST + 5, FIRST + 6),
        "d/f": ("0o104711", FIRST + 1000, FIRST),
        "gone": ("0o20000", FIRST, FIRST),
        "e": ("0o40755", FIRST, FIRST),
    }
    # Of the two forms of marks it is the one that an overlay of a user's reads.
    assert os.getxattr(out / "e", "user.overlay.opaque") == b"y"


@pytest.mark.root
def test_what_it_unpacks_it_packs_and_removes(tmp_path: Path) -> None:
    layers.unpacked(tmp_path / "out", DATA, layers.RANGE)
    pieces: list[bytes] = []
    with layers.opened(tmp_path / "out", tmp_path) as (fd, above):
        packed = pack_tree(fd, pieces.append, layers.RANGE)
        os.chown(tmp_path, FIRST, FIRST)
        remove_tree(above, "out", layers.RANGE)
        with pytest.raises(FileNotFoundError):
            remove_tree(above, "out", layers.RANGE)
    os.chown(tmp_path, 0, 0)
    assert not (tmp_path / "out").exists()
    again = layers.unpacked(tmp_path / "again", b"".join(pieces))
    assert (again.diff_id, again.size) == (packed.diff_id, 2 << 20)
    assert (tmp_path / "again/d").stat().st_uid == 5


@pytest.mark.root
def test_layers_below_are_seen_as_it_sees_them(tmp_path: Path) -> None:
    layers.unpacked(tmp_path / "1", DATA, layers.RANGE)
    data = layers.layer(layers.file(b"d/new"), layers.link(b"l", b"d/f"))
    done = layers.unpacked(tmp_path / "2", data, layers.RANGE, [tmp_path / "1"])
    assert done.depends
    one, two = layers.tree(tmp_path / "1"), layers.tree(tmp_path / "2")
    assert (two["d"][:3], two["l"]) == (one["d"][:3], one["d/f"])


@pytest.mark.root
@pytest.mark.parametrize(
    "data, kind, match",
    [
        (layers.file(b"../x"), ViolationError, "upwards"),
        (layers.file(b"f")[:100], ImageError, "middle of a header"),
        (layers.file(b"f", uid=70000), UnsupportedError, "subordinate id"),
        (layers.file(b"f", bytes(99_999)), ViolationError, "'bytes'"),
        (layers.header(b"c", b"3", device=(1, 3)), ViolationError, "a device"),
    ],
)
def test_its_errors_are_raised_here(tmp_path: Path, data: bytes, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        layers.unpacked(
            tmp_path / "out", data, layers.RANGE, limits=Limits(bytes=50_000), policy=Policy(devices="refuse")
        )


@pytest.mark.parametrize(
    "error",
    [
        KernelError(28, "write(1)", "a step", "a hint"),
        KernelError(2, "open(1)"),
        UnsupportedError("a", "b", "c"),
        ViolationError("why", "path"),
        ViolationError("why"),
        ImageError("why", "reference"),
        StateError("why"),
    ],
)
def test_errors_come_over_whole(error: SandboxError) -> None:
    again = wire.decode_error(wire.encode_error(error))
    assert (type(again), str(again), again.__dict__) == (type(error), str(error), error.__dict__)


@pytest.mark.root
def test_a_source_that_fails_ends_it(tmp_path: Path) -> None:
    class BrokenError(Exception):
        pass

    class Broken(io.RawIOBase):
        def read(self, _size: int = -1, /) -> bytes:
            raise BrokenError

    (tmp_path / "out").mkdir()
    with layers.opened(tmp_path / "out") as (fd,), pytest.raises(BrokenError):
        unpack(Broken(), fd, layers.RANGE)


@pytest.mark.root
def test_cancelling_ends_it(tmp_path: Path) -> None:
    class GivenUpError(Exception):
        pass

    calls: list[int] = []

    def cancelled() -> None:
        calls.append(1)
        if len(calls) > 3:
            raise GivenUpError

    class Endless(io.RawIOBase):
        def read(self, _size: int = -1, /) -> bytes:
            return bytes(1000)

    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", FIRST, FIRST)
    with layers.opened(tmp_path / "out") as (fd,), pytest.raises(GivenUpError):
        unpack(Endless(), fd, layers.RANGE, cancelled=cancelled)


@pytest.mark.root
def test_one_that_is_killed_is_an_error_that_says_so(tmp_path: Path) -> None:
    killed: list[int] = []

    class Killing(io.RawIOBase):
        def read(self, _size: int = -1, /) -> bytes:
            with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
                for pid in map(int, file.read().split()):
                    killed.append(pid)
                    os.kill(pid, signal.SIGKILL)
            return bytes(512)

    (tmp_path / "out").mkdir()
    with layers.opened(tmp_path / "out") as (fd,), pytest.raises(KernelError, match="status -9"):
        unpack(Killing(), fd, layers.RANGE)
    assert killed


@pytest.mark.root
def test_one_that_breaks_says_why(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"KeyError: 'folder'"):
        apart.Worker(
            {"job": "remove", "owner": apart.words(layers.RANGE), "name": "x"}, layers.RANGE, {}
        ).run()


@pytest.mark.root
def test_it_has_no_rights_but_over_its_ids(tmp_path: Path) -> None:
    """Files of others stay out of its reach: also those that the program itself could remove."""
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "mine/f").write_text("1")
    tmp_path.chmod(0o755)
    with layers.opened(tmp_path) as (fd,), pytest.raises(PermissionError):
        remove_tree(fd, "mine", layers.RANGE)
    assert (tmp_path / "mine/f").read_text() == "1"


AS_USER = """
import io, os, sys
from sandboxlib.errors import SandboxError
from sandboxlib.image.owner import Owner
from sandboxlib.image.unpack import unpack
os.mkdir("out")
fd = os.open("out", os.O_RDONLY)
owner = Owner("range", ((0, os.getuid(), 1), (1, 1000, 10)), ((0, os.getgid(), 1),))
os.environ["PATH"] = "/nonexistent"
try:
    unpack(io.BytesIO(b""), fd, owner)
except SandboxError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.unprivileged
@pytest.mark.tool("newuidmap")
def test_ids_of_others_are_not_given(as_user: Callable[..., CompletedProcess[str]]) -> None:
    done = as_user(AS_USER, env={"PYTHONPATH": str(users.CHECKOUT)})
    assert done.stdout.startswith("KernelPermissionError write the ID maps: newuidmap(")
    assert "see /etc/subuid" in done.stdout


def test_owners_of_a_host() -> None:
    from sandboxlib.kernel.probe import probe

    host = probe()
    owner = Owner.of(host)
    assert owner.kind == ("root" if host.privileged else "range" if host.subuids else "single")
    assert len({Owner("root").key, Owner("single").key, layers.RANGE.key, apart.own_ids().key}) == 4
