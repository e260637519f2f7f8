"""A store outlives whatever ends the programs that use it, and several use it at once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandboxlib.image.store import Store

from images import layer, put
from tars import MINE

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
