"""The layers of a root: an overlay of them, or a copy, and what is mounted over the files of an image."""

from __future__ import annotations

import posixpath
from functools import partial
from typing import TYPE_CHECKING

import attrs

from sandboxlib.errors import ImageError
from sandboxlib.merged import Merged
from sandboxlib.plan import network, overlay, tree
from sandboxlib.plan.flags import (
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MOUNT_ATTR_RDONLY,
    O_CLOEXEC,
    Named,
)
from sandboxlib.plan.identity import OF_IMAGES, identity
from sandboxlib.plan.ids import more_of, outside_of
from sandboxlib.plan.steps import Call, Template, Variable
from sandboxlib.plan.targets import unseen

if TYPE_CHECKING:
    from sandboxlib.plan.root import Builder
    from sandboxlib.rootfs import Rootfs

_OVERLAY = Named(17, "<overlay>")


def lay(builder: Builder, rootfs: Rootfs) -> None:
    """
    Layers of the host's below, and one to write in.

    Root's is set up by the launcher, with root's rights, and handed to the child as a file
    system context: then the upper layer needs no ``user.`` attributes (tmpfs has them since
    Linux 6.6), and its layers can be ID-mapped.
    """
    if overlay.driver_of(rootfs, builder.host) == "copy":
        _copied(builder)
        return
    user = builder.spec.namespace("user")
    overlay.check(rootfs, builder.host, user, builder.owned)
    why = "writes go to a layer of its own"
    early, late = (builder.early, builder.late) if builder.host.privileged else (builder.build, builder.build)
    lowers = [
        builder.source(path, "a layer below", MOUNT_ATTR_RDONLY | tree.SAFE, idmap=True)
        for path in rootfs.lower
    ]
    if rootfs.storage == "tmpfs":
        options = tree.limits(rootfs)
        early.extend(
            tree.filesystem("tmpfs", options, tree.SAFE, "the upper layer, with a size", out=tree.SCRATCH)
        )
    else:
        early.append(
            tree.open_tree(Template("{storage}"), tree.SCRATCH, "the upper layer, on disk", recursive=False)
        )
    for name in ("upper", "work"):
        early.append(Call("mkdirat", (tree.SCRATCH, name, 0o755), why))
    if rootfs.kind == "image" and not rootfs.lower:
        raise ImageError("it has to be looked up before a start can be planned", rootfs.reference or "")
    merged = _merged(builder, rootfs)
    outside = partial(_outside, builder)
    late.extend(overlay.dressed(merged, outside))
    late.extend(overlay.places(merged, outside))
    early.append(Call("fsopen", ("overlay", FSOPEN_CLOEXEC), why, out=_OVERLAY))
    late.extend(overlay.steps(_OVERLAY, [int(fd) for fd in lowers], builder.host, merged))
    builder.build.append(Call("fsmount", (_OVERLAY, FSMOUNT_CLOEXEC, tree.SAFE), why, out=tree.ROOT))
    builder.attach_root()
    builder.keep = tree.SCRATCH


def _copied(builder: Builder) -> None:
    """A copy of the layers, which the program has made: see `sandboxlib.engine.copied`."""
    overlay.check_ids(builder.spec.namespace("user"), builder.owned)
    steps = builder.early if builder.host.privileged else builder.build
    fd = builder.source(Template("{storage}/upper"), "a copy of the layers", tree.SAFE, recursive=False)
    steps.append(tree.open_tree(Template("{storage}"), tree.SCRATCH, "where it is", recursive=False))
    builder.build.append(Call("dup3", (fd, tree.ROOT, O_CLOEXEC), "it is the root from here on"))
    builder.attach_root()
    builder.keep = tree.SCRATCH


def _merged(builder: Builder, rootfs: Rootfs) -> Merged:
    """What the layers show; where nobody has looked, they have nothing to mount on."""
    merged = rootfs.merged
    if builder.lone:
        # Nothing is mounted in it; and a user's has no owners but the user.
        merged = attrs.evolve(merged or Merged(), folders=(), files=(), links=())
        return merged if builder.host.privileged else attrs.evolve(merged, uid=0, gid=0)
    if merged is None and rootfs.kind == "image":
        return unseen(builder.spec, rootfs, builder.host)
    return merged or Merged()


def write_files(builder: Builder, rootfs: Rootfs) -> None:
    """
    Write the small files that the sandbox of an image has of its own, and open them to be mounted.

    They lie in /dev, which is the sandbox's own, where /dev/shm is mounted over them: whatever is written to
    them is no change of the image, and in no layer.
    """
    if rootfs.kind != "image":
        return
    taken = {mount.destination for mount in builder.spec.mounts}
    if network.is_made(builder.spec):
        taken |= network.FILES.keys()
    for path, text in identity(builder.spec).items():
        if path in OF_IMAGES and path not in taken:
            why = f"{path} of its own, and not the image's"
            name = f"/dev/shm/{posixpath.basename(path)}"
            builder.files[path] = fd = builder.number(path)
            builder.file(name, text, why)
            builder.build.append(
                tree.open_tree(name.lstrip("/"), fd, why, directory=tree.ROOT, recursive=False)
            )


def mount_files(builder: Builder, rootfs: Rootfs) -> None:
    """Mount them, where the tree has a place for them."""
    lacks = rootfs.merged.lacks if rootfs.merged is not None else ()
    for path, fd in builder.files.items():
        why = f"{path} of its own, and not the image's"
        if path in lacks:
            continue
        if rootfs.readonly:
            builder.build.append(tree.setattr_(fd, why, set_=MOUNT_ATTR_RDONLY, recursive=False))
        builder.place(path, fd, why, folder=False, follow=True)


def _outside(builder: Builder, which: str, number: int) -> int | Variable:
    """The number that an ID inside has for whoever takes the steps that make the layers."""
    if not builder.owned:
        return number
    return outside_of(builder.spec.namespace("user"), more_of(builder.spec).of(which), which, number)


__all__ = ["lay", "mount_files", "write_files"]
