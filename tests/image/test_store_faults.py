"""A store outlives whatever ends the programs that use it, and several use it at once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sandboxlib.errors import ImageError
from sandboxlib.image.blobs import Sink
from sandboxlib.image.model import Descriptor
from sandboxlib.image.store import Store

from images import layer, put
from tars import MINE, diff_id

pytestmark = pytest.mark.leaks
TESTS = Path(__file__).parent.parent

WRITER = """
import os, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from images import layer, put
from tars import MINE
from sandboxlib.image.store import Store
store = Store(sys.argv[2])
seed = int(sys.argv[3])
print("ready", flush=True)
number = 0
while True:
    number += 1
    with store.growing():
        layers = [layer(1), layer(seed * 1000 + number, 200_000)]
        image = put(store, f"docker.io/library/a:{seed}-{number % 3}", layers)
        lease = store.lease(image)
    with lease:
        manifest = store.manifest(image)
        for path in store.unpack(manifest, store.config(manifest), MINE):
            assert os.path.exists(path + "/shared"), path
    if number % 4 == 0:
        store.prune()
    if len(sys.argv) > 4 and number >= int(sys.argv[4]):
        break
print("done", flush=True)
"""


def writer(path: Path, seed: int, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(TESTS), str(path), str(seed), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_program_killed_at_any_moment_leaves_a_store_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "store"
    chance = random.Random(4)
    store = Store(str(path))
    for seed in range(20):
        with writer(path, seed) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.12))
            process.kill()
            process.wait()
        store = Store(str(path))
        # What was half done is told as such, and is no part of any image.
        assert [fault for fault in store.fsck() if fault.kind != "layer"] == []
        for _, entry in store.names():
            manifest = store.manifest(entry)
            store.unpack(manifest, store.config(manifest), MINE)
    store.prune(all=True)
    left = {name: os.listdir(path / name) for name in ("blobs/sha256", "partial", "leases", "removed")}
    assert left == {name: [] for name in left}
    assert store.fsck() == ()


@pytest.mark.timeout(300)
def test_eight_programs_use_one_store_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    processes = [writer(path, seed, "6") for seed in range(8)]
    try:
        for process in processes:
            out, error = process.communicate(timeout=240)
            assert (process.returncode, out) == (0, b"ready\ndone\n"), error.decode()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    store = Store(str(path))
    # Each of them has its last three, whatever the others did meanwhile.
    names = sorted(name for name, _ in store.names() if name)
    assert names == sorted(f"docker.io/library/a:{seed}-{number}" for seed in range(8) for number in range(3))
    assert store.fsck() == ()
    gone = store.prune(all=True)
    assert gone.images >= len(names)
    assert os.listdir(path / "blobs/sha256") == []


def test_what_a_dead_program_was_about_to_remove_goes_with_the_next(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    image = put(store, "docker.io/library/a:1", [layer(1)])
    manifest = store.manifest(image)
    (path,) = store.unpack(manifest, store.config(manifest), MINE)
    os.rename(Path(path).parent, Path(store.path, "removed", f"{MINE.key}-0123456789abcdef"))
    Path(store.path, "removed/blob-0123456789abcdef").write_text("x")
    Path(store.path, "partial/new-1-0123456789abcdef").write_text("x")
    Path(store.path, "leases/1-0123456789abcdef").write_text(f"{image.digest}\n")
    assert store.prune().images == 0
    for name in ("removed", "partial", "leases"):
        assert os.listdir(Path(store.path, name)) == []
    assert store.unpack(manifest, store.config(manifest), MINE) == (path,)


#: Dies just before, or just after, the call number N of those that change what is on disk.
STEPS = """
import os, shutil, sys, tempfile
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from images import layer, put
from tars import MINE, diff_id
from sandboxlib.image.model import Descriptor
from sandboxlib.image.store import Store

CALLS = ("fsync", "rename", "unlink", "fchmod", "mkdir", "ftruncate")
REAL = {name: getattr(os, name) for name in CALLS}
CONTENT = b"content" * 1000
BLOB = Descriptor("text/plain", diff_id(CONTENT), len(CONTENT))

def work(path):
    store = Store(path)
    with store.growing():
        image = put(store, "docker.io/library/a:1", [layer(1), layer(2)])
        lease = store.lease(image)
    with lease:
        manifest = store.manifest(image)
        store.unpack(manifest, store.config(manifest), MINE)
    with store.lease_of([BLOB.digest]):
        store.fetch(BLOB, lambda sink, offset: sink.write(CONTENT[offset:]))
    store.tag("docker.io/library/b:1", image)
    put(store, "docker.io/library/a:1", [layer(3)])
    store.remove("docker.io/library/b:1")
    store.prune(all=True)
    put(store, "docker.io/library/c:1", [layer(1)])

def dies(path, last, after):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    done = 0
    def patched(name):
        def call(*arguments, **named):
            nonlocal done
            done += 1
            if done == last and not after:
                os._exit(9)
            try:
                return REAL[name](*arguments, **named)
            finally:
                if done == last:
                    os._exit(9)
        return call
    try:
        for name in CALLS:
            setattr(os, name, patched(name))
        work(path)
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)

def look(path, last, after):
    store = Store(path)
    faults = [fault for fault in store.fsck() if fault.kind != "layer"]
    assert faults == [], (last, after, faults)
    for _, entry in store.names():
        manifest = store.manifest(entry)
        store.unpack(manifest, store.config(manifest), MINE)
    # All that was begun can be done now, and leaves nothing but what it is for.
    work(path)
    assert [name for name, _ in store.names()] == ["docker.io/library/c:1"], (last, after)
    for name in ("partial", "leases", "removed"):
        assert os.listdir(os.path.join(path, name)) == [], (last, after, name)
    assert store.fsck() == ()

# In memory, where there is such a place: it is the order of the steps that counts.
top = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
count = 0
try:
    for after in (False, True):
        last = 1
        while dies(path := os.path.join(top, f"{after}-{last}"), last, after):
            look(path, last, after)
            shutil.rmtree(path)
            last += 1
        look(path, last, after)
        count += last - 1
finally:
    shutil.rmtree(top)
print(count)
"""


@pytest.mark.timeout(300)
def test_whatever_step_is_the_last_the_next_program_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(TESTS)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    # So many that it cannot have ended before its time.
    assert int(done.stdout) > 100


@pytest.mark.unprivileged
@pytest.mark.timeout(300)
def test_for_a_plain_user_too_who_may_not_write_to_what_is_read_only(
    as_user: Callable[..., CompletedProcess[str]],
) -> None:
    done = as_user(STEPS, str(TESTS), timeout=240)
    assert int(done.stdout) > 100


def test_what_is_wrong_of_an_interrupted_download_is_not_blamed_on_the_next(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    content, offsets = os.urandom(5000), list[int]()
    wanted = Descriptor("text/plain", diff_id(content), len(content))
    # A power cut may leave a file as long as it was, and with nothing in it.
    Path(store.path, "partial", wanted.digest.replace(":", "-")).write_bytes(bytes(3000))

    def download(sink: Sink, offset: int) -> None:
        offsets.append(offset)
        sink.write(content[offset:])

    assert store.fetch(wanted, download)
    assert offsets == [3000, 0]
    assert store.read(wanted.digest, 5000) == content


def test_a_sender_of_what_is_wrong_is_asked_no_third_time(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    wanted = Descriptor("text/plain", diff_id(b"right"), 5)
    offsets: list[int] = []

    def download(sink: Sink, offset: int) -> None:
        offsets.append(offset)
        sink.write(b"wrong"[offset:])

    with pytest.raises(ImageError, match="not what the digest says"):
        store.fetch(wanted, download)
    assert offsets == [0]
    partial = Path(store.path, "partial", wanted.digest.replace(":", "-"))
    partial.write_bytes(b"r")
    with pytest.raises(ImageError, match="not what the digest says"):
        store.fetch(wanted, download)
    assert offsets == [0, 1, 0]
    assert partial.stat().st_size == 0


@pytest.mark.parametrize("threads", [8])
def test_threads_of_one_program_fetch_a_blob_once(tmp_path: Path, threads: int) -> None:
    store = Store(str(tmp_path / "store"))
    content, calls = os.urandom(100_000), list[int]()
    wanted = Descriptor("text/plain", diff_id(content), len(content))

    def download(sink: Sink, offset: int) -> None:
        calls.append(offset)
        time.sleep(0.05)
        sink.write(content[offset:])

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda _: store.fetch(wanted, download), range(threads)))
    assert sorted(found) == [False] * (threads - 1) + [True]
    assert calls == [0]
    assert os.listdir(Path(store.path, "partial")) == []


def test_threads_name_images_at_once_and_none_is_lost(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    image = put(store, "docker.io/library/a:1")

    def tag(number: int) -> None:
        # Each by its own way to the store.
        Store(store.path).tag(f"docker.io/library/a:t{number}", image)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tag, range(40)))
    assert {name for name, _ in store.names()} == {
        f"docker.io/library/a:{n}" for n in (1, *(f"t{n}" for n in range(40)))
    }


def test_a_name_is_never_one_of_an_image_that_is_gone(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    name = "docker.io/library/a:1"
    image = put(store, name)
    assert store.remove(name)
    with pytest.raises(ImageError, match="not in the store"):
        store.tag(name, image)
    assert store.names() == []
    # While somebody removes, and somebody else gives it one more name at the same moment.
    for _ in range(20):
        image = put(store, name)
        with ThreadPoolExecutor(2) as pool:
            removing = pool.submit(store.remove, name)
            tagging = pool.submit(store.tag, "docker.io/library/b:1", image)
            removing.result()
            refused = isinstance(tagging.exception(), ImageError)
        assert store.has(image.digest) is not refused
        assert store.fsck() == ()
        store.prune(all=True)


def test_a_disk_that_is_full_leaves_no_half(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    image = put(store, "docker.io/library/a:1")
    script = """
import os, resource, signal, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from images import layer, put
from sandboxlib.image.store import Store
store = Store(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
# What cannot grow over so many bytes is like a full disk, and concerns nobody else.
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for attempt in (
    lambda: store.add(os.urandom(5000)),
    lambda: put(store, "docker.io/library/b:1", [layer(2)]),
    lambda: store.tag("docker.io/library/b:1", store.resolve("docker.io/library/a:1")),
    lambda: store.lease(store.resolve("docker.io/library/a:1")),
):
    try:
        attempt()
    except OSError:
        continue
    sys.exit("it was done")
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, str(TESTS), store.path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("partial", "leases", "removed"):
        assert os.listdir(Path(store.path, name)) == []
    assert [(name, entry.digest) for name, entry in store.names()] == [
        ("docker.io/library/a:1", image.digest)
    ]
    assert store.fsck() == ()
