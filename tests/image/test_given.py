"""Archives are read from whatever a caller has them in, however they are compressed."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from sandboxlib import AsyncImage, Image, ImageError, KernelError, SpecError, ViolationError
from sandboxlib.engine.image import own_store
from sandboxlib.image.owner import Owner

import users
from tars import MINE, diff_id, entry, folder, tar

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = [pytest.mark.leaks]

ROOTFS = tar(folder("etc"), entry("etc/name", b"content\n" * 3000), entry("big", os.urandom(300_000)))


def halves(compress: Callable[[bytes], bytes], between: bytes = b"") -> Callable[[bytes], bytes]:
    """The same in two members, which belong together."""
    return lambda data: compress(data[:5000]) + between + compress(data[5000:])


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "two of xz": halves(lzma.compress, bytes(8)),
    "two of bzip2": halves(bz2.compress),
}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own."""
    place = tmp_path / "state"
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(place))
    return place


@contextmanager
def piped(data: bytes) -> Iterator[int]:
    """The end of a pipe, with somebody who writes *data* to the other one."""
    out, into = os.pipe()

    def write() -> None:
        with open(into, "wb") as file, contextlib.suppress(BrokenPipeError):
            file.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield out
    finally:
        os.close(out)
        thread.join()


class Readable:
    """A file that can nothing but be read, as a response of a server."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1, /) -> bytes:
        """At most 1000 bytes."""
        return self._file.read(min(size, 1000) if size >= 0 else -1)


@contextmanager
def given(how: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """*data* as what a caller may have it in."""
    path = tmp_path / "archive"
    if how == "path":
        path.write_bytes(data)
        yield path
    elif how == "open":
        path.write_bytes(b"before" + data)
        with path.open("rb") as file:
            assert file.read(6) == b"before"
            yield file
    elif how == "memory":
        yield io.BytesIO(data)
    elif how == "readable":
        yield Readable(data)
    elif how == "fifo":
        os.mkfifo(path)
        writer = threading.Thread(target=path.write_bytes, args=(data,))
        writer.start()
        try:
            yield str(path)
        finally:
            writer.join()
    else:
        with piped(data) as fd:
            if how == "/proc/self/fd":
                yield f"/proc/self/fd/{fd}"
                return
            with open(fd, "rb", closefd=False, buffering=0 if how == "raw" else -1) as file:
                if how in ("pipe", "raw"):
                    yield file
                    return
                with io.TextIOWrapper(file) as text:
                    monkeypatch.setattr(sys, "stdin", text)
                    yield "-" if how == "-" else text


HOW = ["path", "open", "memory", "readable", "fifo", "pipe", "raw", "/proc/self/fd", "-", "stdin"]


def files(image: Image | AsyncImage) -> dict[str, bytes]:
    """The files of the image's one layer."""
    store = own_store()
    manifest = store.manifest(store.image(store.find(image.digest)[1]))  # type: ignore[index]
    (top,) = store.unpack(manifest, store.config(manifest), MINE)
    return {str(path.relative_to(top)): path.read_bytes() for path in Path(top).rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_root_file_system_is_read_however_it_is_compressed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rootfs.tar.whatever"
    path.write_bytes(COMPRESSED[kind](ROOTFS))
    image = Image.from_rootfs(path, name="app")
    (layer,) = image.layers
    # Layers are of the kinds that every tool reads.
    wanted = "zstd" if kind == "zstd" else "gzip"
    assert layer.media_type == f"application/vnd.oci.image.layer.v1.tar+{wanted}"
    assert layer.diff_id == diff_id(ROOTFS)
    assert files(image)["etc/name"] == b"content\n" * 3000


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["plain", "gzip", "xz"])
def test_a_root_file_system_is_read_from_whatever_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, kind: str
) -> None:
    with given(how, COMPRESSED[kind](ROOTFS), tmp_path, monkeypatch) as source:
        image = Image.from_rootfs(source, name="app")
    assert image.layers[0].diff_id == diff_id(ROOTFS)
    assert image.history[0].created_by.startswith("from ")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", COMPRESSED)
def test_images_are_loaded_from_whatever_they_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, kind: str
) -> None:
    (tmp_path / "rootfs").write_bytes(ROOTFS)
    image = Image.from_rootfs(tmp_path / "rootfs", name="app:1")
    image.save(tmp_path / "saved")
    data = COMPRESSED[kind]((tmp_path / "saved").read_bytes())
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(tmp_path / "other"))
    with given(how, data, tmp_path, monkeypatch) as source:
        (loaded,) = Image.load(source)
    assert (loaded, loaded.reference) == (image, "docker.io/library/app:1")
    assert files(loaded)["etc/name"] == b"content\n" * 3000
    assert os.listdir(tmp_path / "other/images/partial") == []


@pytest.mark.parametrize("kind", COMPRESSED)
def test_layers_of_dockers_archives_are_read_however_they_are_compressed(tmp_path: Path, kind: str) -> None:
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [diff_id(ROOTFS)]},
        }
    ).encode()
    manifest = [{"Config": "config.json", "RepoTags": ["app:1"], "Layers": ["0/layer.tar"]}]
    archive = tar(
        entry("config.json", config),
        entry("0/layer.tar", COMPRESSED[kind](ROOTFS)),
        entry("manifest.json", json.dumps(manifest).encode()),
    )
    (image,) = Image.load(io.BytesIO(archive))
    (layer,) = image.layers
    assert layer.diff_id == diff_id(ROOTFS)
    assert layer.media_type.endswith({"plain": ".tar", "zstd": "+zstd"}.get(kind, "+gzip"))
    assert files(image)["etc/name"] == b"content\n" * 3000


@pytest.mark.parametrize("how", ["pipe", "-", "fifo"])
async def test_trio_reads_them_and_can_be_cancelled_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with given(how, COMPRESSED["xz"](ROOTFS), tmp_path, monkeypatch) as source:
        image = await AsyncImage.from_rootfs(source, name="app")
    assert image.layers[0].diff_id == diff_id(ROOTFS)
    out, into = os.pipe()
    try:
        for verb in (lambda file: AsyncImage.from_rootfs(file, name="other"), AsyncImage.load):
            # Nobody writes, and nobody ends.
            os.write(into, b"so far")
            with os.fdopen(out, "rb", closefd=False) as file, trio.move_on_after(0.3) as scope:
                await verb(file)
            assert scope.cancelled_caught
    finally:
        os.close(out)
        os.close(into)
    assert [each.reference for each in await AsyncImage.list()] == ["docker.io/library/app:latest"]


@pytest.mark.parametrize("words", [[], ["-"], ["/dev/stdin"]])
@pytest.mark.parametrize("kind", ["plain", "bzip2"])
def test_the_command_line_reads_standard_input(tmp_path: Path, words: list[str], kind: str) -> None:
    (tmp_path / "rootfs").write_bytes(ROOTFS)
    image = Image.from_rootfs(tmp_path / "rootfs", name="app:1")
    image.save(tmp_path / "saved")
    Image.remove("app:1")
    data = COMPRESSED[kind]((tmp_path / "saved").read_bytes())
    command = [sys.executable, "-m", "sandboxlib", "load", *words]
    done = subprocess.run(command, input=data, capture_output=True, check=True, cwd=users.CHECKOUT)
    assert done.stdout == b"app:1\n"
    assert Image.get("app:1") == image


@pytest.mark.parametrize("verb", ["from_rootfs", "load"])
def test_what_is_no_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path, verb: str
) -> None:
    def read(source: Any) -> object:
        return Image.load(source) if verb == "load" else Image.from_rootfs(source, name="app")

    field = "path" if verb == "load" else "source"
    text = io.StringIO("text")
    for wrong in (3, None, b"\xff/none", "nowhere", "a\0b", text, [b"x"]):
        with pytest.raises(SpecError, match=field) as refused:
            read(wrong)
        assert refused.value.value in (wrong, os.fsdecode(wrong) if isinstance(wrong, bytes) else wrong)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SpecError, match="standard input is closed"):
        read("-")
    for damaged in (
        b"",
        b"x" * 600,
        lzma.compress(ROOTFS)[:-40],
        bz2.compress(ROOTFS)[:-40],
        b"\xfd7zXZ\0" + b"x" * 99,
    ):
        with piped(damaged) as fd, open(fd, "rb", closefd=False) as file, pytest.raises(ImageError):
            read(file)
    zeros = tar(entry("f", bytes(200 << 20)))
    with pytest.raises(ViolationError, match="times its size"):
        read(io.BytesIO(lzma.compress(zeros, preset=0)))
    (tmp_path / "gone").touch()
    with (tmp_path / "gone").open("wb") as wrong_way, pytest.raises(KernelError, match="gone"):
        read(wrong_way)
    assert Image.list() == []
    assert os.listdir(state / "images/partial") == []
    assert os.listdir(state / "images/blobs/sha256") == []


def test_an_xz_stream_does_not_take_the_memory_that_it_asks_for() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    data = lzma.compress(ROOTFS, filters=filters)
    with pytest.raises(ImageError, match=r"xz stream.*[Mm]emory"):
        Image.from_rootfs(io.BytesIO(data), name="app")


def test_layers_that_others_have_compressed_so_are_unpacked(tmp_path: Path) -> None:
    import layers

    for kind in ("xz", "bzip2", "two of xz", "two of bzip2"):
        done = layers.unpacked(tmp_path / kind, COMPRESSED[kind](ROOTFS), Owner("single"))
        assert done.diff_id == diff_id(ROOTFS)
        assert (tmp_path / kind / "etc/name").read_bytes() == b"content\n" * 3000
