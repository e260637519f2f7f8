"""What a user would take instead, each made to do as nearly the same as it can."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.measure import Action

TRUE = "/bin/true"


def plain() -> None:
    """No sandbox at all."""
    subprocess.run([TRUE], capture_output=True, check=True)


def find(name: str) -> str | None:
    """Where a program is; runc stands in /usr/sbin."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def bubblewrap() -> Action | None:
    """All namespaces and a comparable tree; bubblewrap makes no cgroup and has no filter of its own."""
    bwrap = find("bwrap")
    if bwrap is None:
        return None
    links = [
        word
        for name in ("bin", "sbin", "lib", "lib64")
        if os.path.islink(f"/{name}")
        for word in ("--symlink", os.readlink(f"/{name}"), f"/{name}")
    ]
    tree = ["--ro-bind", "/usr", "/usr", *links, "--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    own = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", *tree, *own, TRUE]
    return lambda: subprocess.run(command, capture_output=True, check=True)


def runc(folder: Path) -> Action | None:
    """A bundle with busybox as its whole root; `folder` is the caller's to remove."""
    program, busybox = find("runc"), find("busybox")
    if program is None or busybox is None or os.geteuid() != 0:
        return None
    root = folder / "bundle/rootfs"
    for name in ("bin", "proc", "dev", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    (root / "bin/true").symlink_to("busybox")
    subprocess.run([program, "spec", "--bundle", folder / "bundle"], check=True)
    config = json.loads((folder / "bundle/config.json").read_text())
    config["process"] |= {"terminal": False, "args": [TRUE]}
    (folder / "bundle/config.json").write_text(json.dumps(config))
    numbers = itertools.count()
    base = [program, "--root", str(folder / "state"), "run", "--bundle", str(folder / "bundle")]

    def action() -> None:
        name = f"sandboxlib-benchmark-{os.getpid()}-{next(numbers)}"
        subprocess.run([*base, name], capture_output=True, check=True)

    return action


def sandlock() -> Action | None:
    """Landlock and seccomp only: no namespace, no root of its own, no cgroup."""
    try:
        from sandlock import Sandbox
    except ImportError:
        return None
    readable = [path for path in ("/usr", "/lib", "/lib64", "/bin", "/etc") if os.path.exists(path)]

    def action() -> None:
        done = Sandbox(fs_readable=readable, max_memory="1G", max_processes=512).run([TRUE])
        if not done.success:
            raise RuntimeError(done)

    return action
