"""What is not in force on this host, or holds less tightly than it would elsewhere: shown with the plan."""

from __future__ import annotations

from collections.abc import Iterator

from sandboxlib.host import Host
from sandboxlib.plan import ceilings, overlay, rlimits
from sandboxlib.spec import SandboxSpec


def notes(spec: SandboxSpec, host: Host) -> Iterator[str]:
    """Each as a sentence or two."""
    yield from ceilings.notes(spec, host)
    yield from rlimits.notes(spec, host)
    if host.subids_fault:
        yield f"one user inside, the caller's own, and no subordinate ones: {host.subids_fault}"
    if host.groups and not host.privileged and host.subgids is None:
        groups = ", ".join(map(str, host.groups))
        yield (
            f"the program's supplementary groups ({groups}) stay effective inside: a user may drop "
            "them only with subordinate group IDs: install uidmap, add the user to /etc/subgid"
        )
    rootfs = spec.rootfs
    if rootfs is not None and host.overlay_fault:
        yield f"layers are copied to {rootfs.storage}, for an overlay is refused: {host.overlay_fault}"
    elif rootfs is not None and rootfs.kind == "image" and not overlay.keeps_in_memory(host):
        yield (
            f"what is written lies on disk in {rootfs.storage}, with no limit but that: in memory a user's "
            "needs Linux 6.6"
        )
    if "time" not in host.namespaces:
        yield "no time namespace: this kernel has none"


__all__ = ["notes"]
