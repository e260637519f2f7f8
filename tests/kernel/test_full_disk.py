"""On a full disk what is there can be used and removed; whatever needs room says so, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import oddities
import pytest

from sandboxlib import Image, KernelError
from sandboxlib.engine.image import own_store

import layers
import registries
import users
from images import put

pytestmark = [pytest.mark.userns, pytest.mark.overlay, pytest.mark.tool("busybox")]

#: What is tried where nothing more can be written, on the file system of the folder sys.argv[2].
FULL = """
import errno, io, os, sys
tests, place, face, reserve = sys.argv[1:]
sys.path.insert(0, tests)
os.environ["SANDBOXLIB_STATE_DIR"] = f"{place}/state"
import trio
import layers, oddities
from images import put
from sandboxlib import AsyncImage, AsyncSandbox, Image, KernelError, Rootfs, Sandbox, StateError
from sandboxlib.engine.image import own_store

BUSYBOX = oddities.busybox()
os.mkdir(f"{place}/tree")
for name in ("a", "b", "c"):
    own = layers.file(name.encode(), os.urandom(200_000))
    put(own_store(), f"docker.io/library/{name}:latest", [layers.layer(BUSYBOX), layers.layer(own)])
    with open(f"{place}/tree/{name}", "wb") as file:
        file.write(os.urandom(100_000))
Image.get("c").save(f"{place}/archive.tar")
Image.remove("c")
with Sandbox(image="a"):
    pass
store = f"{place}/state/images"
if reserve == "none":
    # A store of an older version's.
    os.unlink(f"{store}/reserve")

def fill():
    number = len(os.listdir(place))
    for size in (1 << 20, 1 << 12, 1):
        try:
            with open(f"{place}/fill-{number}-{size}", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(size))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    if os.statvfs(place).f_files > 10_000:
        return
    while True:
        try:
            os.close(os.open(f"{place}/name-{number}", os.O_WRONLY | os.O_CREAT))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return
        number += 1

def remains():
    # A blob that is not whole is one that the next attempt goes on with.
    parts = [name for name in os.listdir(f"{store}/partial") if not name.startswith("sha256-")]
    return [parts, os.listdir(f"{store}/leases"), os.listdir(f"{store}/removed")]

def call(verb):
    # Of the trio face the same verb, awaited.
    if face == "blocking":
        return verb(Image)
    async def main():
        return await verb(AsyncImage)
    return trio.run(main)

def with_sandbox(then):
    if face == "blocking":
        with Sandbox(image="a") as sb:
            return then(sb)
    async def main():
        async with AsyncSandbox(image="a") as sb:
            found = then(sb)
            return await found if hasattr(found, "__await__") else found
    return trio.run(main)

def refused(attempt):
    try:
        attempt()
    except KernelError as error:
        assert error.errno == errno.ENOSPC, error
        assert error.step and "(ENOSPC)" in str(error), error
        assert place in str(error) or "unpack" in str(error), error
        assert remains() == [[], [], []], (str(error), remains())
    else:
        sys.exit("it was done")

fill()
# ---- what is there is used
assert with_sandbox(lambda sb: sb.run(["/bin/echo", "x"])).stdout == b"x\\n"
assert [image.reference for image in call(lambda images: images.list())] == [
    "docker.io/library/a:latest", "docker.io/library/b:latest"
]
def change(sb):
    # Whatever is written goes to memory.
    return sb.files.write("/new", bytes(300_000))
with_sandbox(change)

# ---- what needs room says so
refused(lambda: call(lambda images: images.from_rootfs(f"{place}/tree", name="made")))
refused(lambda: call(lambda images: images.load(f"{place}/archive.tar")))
# What is kept for removals is not spent on more names.
async def tagged():
    await (await AsyncImage.get("a")).tag("another")
refused(lambda: trio.run(tagged))
refused(lambda: Image.get("a").save(f"{place}/saved.tar"))
refused(lambda: Sandbox(image="b").open())
with Sandbox(image="a") as sb:
    sb.files.write("/new", os.urandom(300_000))
    try:
        sb.commit("made")
    except KernelError as error:
        assert error.errno == errno.ENOSPC and place in str(error), error
    else:
        sys.exit("committed")
    # ---- who uses an image keeps it, though no lease could be written
    try:
        call(lambda images: images.remove("a"))
    except StateError as error:
        assert "in use" in str(error)
    else:
        sys.exit("removed")
    assert sb.run(["/bin/cat", "/a"]).returncode == 0

# ---- what is there is removed
call(lambda images: images.remove("b"))
assert [image.reference for image in Image.list()] == ["docker.io/library/a:latest"]
fill()
with Sandbox(image="a") as sb:
    assert call(lambda images: images.prune(all=True)).images == 0
    assert sb.run(["/bin/cat", "/a"]).returncode == 0
pruned = call(lambda images: images.prune(all=True))
assert pruned.images == 1 and pruned.layers >= 2, pruned
assert Image.list() == [] and remains() == [[], [], []]
# ---- and then there is room
call(lambda images: images.from_rootfs(f"{place}/tree", name="made"))
assert own_store().fsck() == () and os.listdir(f"{store}/partial") == []
print("fine")
"""


def arguments(place: object, face: str, reserve: str) -> tuple[str, ...]:
    return str(users.CHECKOUT / "tests"), str(place), face, reserve


@pytest.fixture(params=["bytes", "names"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system that ends for want of bytes, or of inodes."""
    size = {"bytes": "size=16M", "names": "size=64M,nr_inodes=200"}[request.param]
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "sandboxlib-test", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.root
# Before, a tmpfs cannot be ID-mapped.
@pytest.mark.kernel("6.3")
@pytest.mark.parametrize(("face", "reserve"), [("blocking", "kept"), ("trio", "none")])
def test_what_is_there_is_used_and_removed(disk: Path, face: str, reserve: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, *arguments(disk, face, reserve)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.unprivileged
@pytest.mark.kernel("6.6")
@pytest.mark.parametrize("subids", [pytest.param(True, marks=pytest.mark.subids), False])
def test_by_a_plain_user_too(as_user: Callable[..., CompletedProcess[str]], subids: bool) -> None:
    # The user's home is a file system of 16 MiB.
    script = FULL.replace("sys.argv[1:]", 'sys.argv[1], os.path.expanduser("~"), *sys.argv[2:]')
    tests, _, face, reserve = arguments("", "blocking", "kept")
    assert as_user(script, tests, face, reserve, subids=subids).stdout == "fine\n"


@pytest.mark.root
@pytest.mark.tool("docker-registry")
@pytest.mark.parametrize("disk", ["bytes"], indirect=True)
def test_a_pull_says_so_and_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(tmp_path / "other"))
    with registries.serve(tmp_path / "registry") as server:
        name = f"{server.name}/a:1"
        put(
            own_store(),
            name,
            [layers.layer(layers.file(b"a", os.urandom(3 << 20))), oddities.odd_layers()[1]],
        )
        Image.get(name).push(name)
        monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(disk))
        Image.list()
        with (disk / "fill").open("wb") as file:
            file.write(bytes(15 << 20))
        with pytest.raises(KernelError, match=r"No space left on device \(ENOSPC\)") as caught:
            Image.pull(name)
        assert str(disk) in str(caught.value)
        assert caught.value.step
        assert Image.list() == []
        (disk / "fill").unlink()
        assert Image.pull(name).reference == name
        assert own_store().fsck() == ()
