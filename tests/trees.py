"""Small root file systems for tests: the host's programs on a tree of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sandboxlib import Mount

PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


def system(folder: Path) -> tuple[Path, list[Mount]]:
    """Make *folder* a root that /bin/sh runs in; returns it, and the mounts that it needs."""
    mounts = [Mount.bind("/usr", "/usr", readonly=True)]
    for name in ("usr", "proc", "dev", "tmp", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    for name in PROGRAMS:
        if Path("/", name).is_symlink():
            (folder / name).symlink_to(os.readlink(f"/{name}"))
        elif Path("/", name).is_dir():
            (folder / name).mkdir()
            mounts.append(Mount.bind(f"/{name}", f"/{name}", readonly=True))
    # Whoever runs in it need not be who made it.
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    return folder, mounts


def storage(folder: Path) -> str | Path:
    """Where an overlay can be written to by who runs the tests: in memory, or else in a new folder."""
    kernel = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if os.geteuid() == 0 or kernel >= (6, 6):
        return "tmpfs"
    (folder / "storage").mkdir()
    return folder / "storage"


def on_an_overlay(place: Path, lower: Path, program: str, *arguments: str) -> str:
    """
    What a Python *program* prints that has an overlay of *lower*, of the test's own, at ``place/merged``.

    An overlay is a file system that cannot be ID-mapped, and that takes no upper layer of another. As root.
    """
    for name in ("over", "work", "merged"):
        (place / name).mkdir()
    options = f"lowerdir={lower},upperdir={place}/over,workdir={place}/work"
    script = 'mount -t overlay -o "$0" overlay "$1" && shift && exec "$@"'
    inside = [sys.executable, "-c", program, *arguments]
    command = ["unshare", "--mount", "sh", "-c", script, options, f"{place}/merged", *inside]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def destinations(mounts: list[Mount]) -> list[str]:
    """What `system` has mounted, as arguments."""
    return [mount.destination for mount in mounts]
