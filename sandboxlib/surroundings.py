"""What this program runs inside of, where that takes something away: containers, gVisor, protected mounts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

#: What gVisor says of its kernel's build, whichever version it shows.
_GVISOR = "#1 SMP Sun Jan 10 15:06:54 PST 2016"

Read = Callable[[str], "str | None"]


class Surrounding(NamedTuple):
    """
    Something around this program.

    Attributes:
        name: What it is.
        text: How it was told.
        remedy: What to change about it.
    """

    name: str
    text: str
    remedy: str


def read(path: str) -> str | None:
    """A small file; "" where there is something that cannot be read as one, None where there is nothing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except FileNotFoundError:
        return None
    except OSError:
        return "" if os.path.exists(path) else None


def surroundings(
    read: Read = read, environment: Mapping[str, str] = os.environ, *, restricted: bool = True
) -> Iterator[Surrounding]:
    """
    Tell what is around this program and in its way.

    Args:
        read: Reads a file, as `read` above.
        environment: Of this program.
        restricted: The default sandbox does not start: a container is in the way only then.
    """
    if _GVISOR in (read("/proc/version") or ""):
        yield Surrounding(
            "gVisor",
            "the kernel here is gVisor's, which has no mount API and no cgroups to give",
            "run this program in a container of runc or crun, or on the machine itself",
        )
    if restricted:
        yield from _container(read, environment)
    yield from _cgroupfs(read)
    if read("/dev/fuse") is None:
        yield Surrounding(
            "/dev/fuse",
            "not there: file systems of user space cannot be mounted inside",
            "load the module fuse; for a container, start it with --device /dev/fuse",
        )


def _container(read: Read, environment: Mapping[str, str]) -> Iterator[Surrounding]:
    if "KUBERNETES_SERVICE_HOST" in environment:
        yield Surrounding(
            "Kubernetes",
            "this is a container of a pod, whose profiles forbid namespaces and mounts",
            "give its securityContext 'seccompProfile: {type: Unconfined}', 'procMount: Unmasked' and "
            "'appArmorProfile: {type: Unconfined}', or 'privileged: true'",
        )
    elif read("/.dockerenv") is not None:
        yield Surrounding(
            "Docker",
            "this is a container of Docker's, whose default profiles forbid namespaces and mounts",
            "start it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
            "--security-opt systempaths=unconfined, or with --privileged",
        )
    elif read("/run/.containerenv") is not None:
        yield Surrounding(
            "podman",
            "this is a container of podman's, whose default profiles forbid namespaces and mounts",
            "start it with --security-opt seccomp=unconfined --security-opt unmask=ALL "
            "--security-opt label=disable, or with --privileged",
        )


def _cgroupfs(read: Read) -> Iterator[Surrounding]:
    for line in (read("/proc/self/mountinfo") or "").splitlines():
        fields, _, rest = line.partition(" - ")
        words = fields.split()
        if len(words) > 5 and words[4] == "/sys/fs/cgroup" and rest.startswith("cgroup2 "):
            if "ro" in words[5].split(","):
                yield Surrounding(
                    "cgroupfs",
                    "/sys/fs/cgroup is mounted read-only: no limit can be set",
                    "mount it writable: 'mount -o remount,rw /sys/fs/cgroup'; for a container, start it with "
                    "--cgroupns=private and --privileged, or hand it a delegated group",
                )
            return


__all__ = ["Surrounding", "read", "surroundings"]
