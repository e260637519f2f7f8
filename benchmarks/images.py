"""
Pull and unpack an image from a registry on this machine, beside skopeo with umoci, and podman.

The registry is Debian's docker-registry, the image is made here: a layer of many small files, one
of big ones, and one with a few changes. Each round begins with nothing: a new store for each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from benchmarks.measure import Action, interleave, machine, ratio, show_bars, show_times

SMALL, BIG = 8000, 6


def layers(folder: Path) -> Path:
    """A tree such as a distribution's with a runtime on it: 8,000 small files and some of 8 MiB."""
    chance = random.Random(1)
    words = [bytes(chance.choices(range(97, 123), k=chance.randint(2, 9))) for _ in range(4000)]
    path = folder / "rootfs.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(SMALL):
            info = tarfile.TarInfo(f"usr/lib/part{number % 90}/file{number}")
            content = b" ".join(chance.choices(words, k=chance.randint(20, 900)))
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, BytesIO(content))
        for number in range(BIG):
            info = tarfile.TarInfo(f"usr/lib/big{number}")
            # Compresses as programs do, to about a half.
            content = b"".join(chance.randbytes(512) + bytes(512) for _ in range(8192))
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, BytesIO(content))
    return path


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Run a registry; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = folder / "registry.yml"
    settings.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    server = subprocess.Popen(
        ["docker-registry", "serve", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        host, _, port = address.partition(":")
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                break
            time.sleep(0.05)
        yield address
    finally:
        server.terminate()
        server.wait()


def contenders(folder: Path, name: str) -> dict[str, Action]:
    """What is measured: name to action."""
    from sandboxlib import Rootfs

    def fresh() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))

    def ours() -> float:
        state = fresh()
        os.environ["SANDBOXLIB_STATE_DIR"] = str(state)
        began = time.perf_counter()
        with Rootfs.image(name).open():
            took = time.perf_counter() - began
        shutil.rmtree(state)
        return took

    def skopeo() -> float:
        place = fresh()
        began = time.perf_counter()
        copy = [
            "skopeo",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            f"docker://{name}",
            f"oci:{place}/oci:x",
        ]
        subprocess.run(copy, check=True)
        subprocess.run(
            ["umoci", "unpack", "--image", f"{place}/oci:x", f"{place}/bundle"],
            check=True,
            capture_output=True,
        )
        took = time.perf_counter() - began
        shutil.rmtree(place)
        return took

    def podman() -> float:
        place = fresh()
        options = [
            "--root",
            str(place / "root"),
            "--runroot",
            str(place / "run"),
            "--storage-driver",
            "overlay",
        ]
        began = time.perf_counter()
        subprocess.run(
            ["podman", *options, "pull", "--quiet", "--tls-verify=false", name],
            check=True,
            capture_output=True,
        )
        took = time.perf_counter() - began
        # It mounts its own folder over itself.
        subprocess.run(["umount", "--lazy", str(place / "root/overlay")], check=False, capture_output=True)
        shutil.rmtree(place)
        return took

    found: dict[str, Action] = {"sandboxlib": ours}
    if shutil.which("skopeo") and shutil.which("umoci"):
        found["skopeo copy, umoci unpack"] = skopeo
    if shutil.which("podman"):
        found["podman pull"] = podman
    return found


def main() -> None:
    """Measure, and print tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=7)
    rounds: int = options.parse_args().rounds
    if not shutil.which("docker-registry") or not shutil.which("skopeo"):
        print("### Images\n\nNot measured: docker-registry and skopeo are not installed.\n")
        return
    from sandboxlib import Image

    with tempfile.TemporaryDirectory(prefix="sandboxlib-bench-") as name:
        folder = Path(name)
        os.environ["SANDBOXLIB_STATE_DIR"] = str(folder / "first")
        with registry(folder) as address:
            target = f"{address}/bench/image:1"
            image = Image.from_rootfs(layers(folder), name="bench")
            image.push(target)
            print(f"### Images\n\n{machine()}; {rounds} rounds; {image.size / 1e6:.0f} MB compressed\n")
            times = interleave(contenders(folder, target), rounds, warm_up=1)
        show_times(times)
        bars = ratio(
            "pull and unpack, to skopeo and umoci", times, "sandboxlib", "skopeo copy, umoci unpack", 1
        )
        show_bars(bars + ratio("pull and unpack, to podman", times, "sandboxlib", "podman pull", 1))


if __name__ == "__main__":
    main()
