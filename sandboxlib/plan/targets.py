"""What a start mounts on in a tree of layers, which may have it or not."""

from __future__ import annotations

from typing import NamedTuple

from sandboxlib.host import Host
from sandboxlib.merged import Folder, Merged
from sandboxlib.mount import below
from sandboxlib.plan import network, tree
from sandboxlib.plan.identity import OF_IMAGES
from sandboxlib.rootfs import Rootfs
from sandboxlib.spec import SandboxSpec


class Targets(NamedTuple):
    """
    Paths that have to be there.

    Attributes:
        systems: Folders of the kernel's own file systems, which no link may stand for.
        folders: Others, with the owners that they get where they are missing.
        files: What files are mounted over.
    """

    systems: tuple[str, ...]
    folders: tuple[Folder, ...]
    files: tuple[str, ...]


def targets(spec: SandboxSpec, rootfs: Rootfs, host: Host) -> Targets:
    """All that a start of *spec* mounts on in the layers of *rootfs*, parents first."""
    systems = ("/dev", "/proc")
    on_image = rootfs.kind == "image"
    folders = {each.path: each for each in rootfs.wanted}
    files = dict.fromkeys(OF_IMAGES if on_image else ())
    if network.is_made(spec):
        files.update(dict.fromkeys(network.FILES))
    if on_image:
        folders.setdefault("/sys", Folder("/sys"))
    for mount in spec.mounts:
        path = mount.destination
        if mount.kind == "bind" and mount.source in host.files:
            files[path] = None
        else:
            # Who asked for it sees it also where the tree is exported.
            folders.setdefault(path, Folder(path, kept=True))
    # What lies in a mount is made there, if at all.
    mounted = (*systems, *(mount.destination for mount in spec.mounts))

    def lies(path: str) -> bool:
        return path == "/" or any(path != each and below(path, each) for each in mounted)

    return Targets(
        systems,
        tuple(folders[path] for path in sorted(folders) if not lies(path) and path not in systems),
        tuple(path for path in sorted(files) if not lies(path)),
    )


def unseen(spec: SandboxSpec, rootfs: Rootfs, host: Host) -> Merged:
    """What a start makes of layers that nobody has looked at: all that it mounts on."""
    wanted = targets(spec, rootfs, host)
    own = {each.path: each for each in wanted.folders}
    paths = {*wanted.systems, *own}
    for path in (*paths, *wanted.files):
        paths.update(tree.parents(path))
    return Merged(folders=tuple(own.get(path, Folder(path)) for path in sorted(paths)), files=wanted.files)


__all__ = ["Targets", "targets", "unseen"]
