"""Small root file systems for tests: the host's programs on a tree of the test's own."""

from __future__ import annotations

import os
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
