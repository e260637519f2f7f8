"""
A layer unpacked into a folder, as overlayfs wants it.

Hostile layers are refused, or do in the folder what they like: nothing outside of it is ever
written. What was made before a layer is refused stays; who asked removes the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import attrs

from sandboxlib.errors import UnsupportedError
from sandboxlib.image import removal
from sandboxlib.image.compression import Readable
from sandboxlib.image.extract import Extractor, Policy
from sandboxlib.image.folders import Folders
from sandboxlib.image.owner import Owner
from sandboxlib.image.source import DEFAULT, Limits, Source, nothing
from sandboxlib.image.tarstream import TarReader
from sandboxlib.kernel.syscall import failed
from sandboxlib.ranges import Ranges, ranges

_DEFAULT_POLICY = Policy()


@attrs.frozen
class Unpacked:
    """
    A layer that has been unpacked.

    Attributes:
        diff_id: Digest of the layer when it is not compressed.
        size: Bytes of its files.
        files: Entries, whiteouts and folders among them.
        dropped: What was left out, as (what, how many): names of extended attributes that layers may
            not have or that cannot be set here, ``device``, ``aufs``.
        depends: Something was taken from the layers below (a folder's owner, a file that is linked
            to, a link on the way): on others the same layer may become another tree.
        uids, gids: The owners of its entries, as (first, how many).
    """

    diff_id: str
    size: int
    files: int
    dropped: tuple[tuple[str, int], ...] = ()
    depends: bool = False
    uids: Ranges = ()
    gids: Ranges = ()


def unpack(
    source: Readable,
    folder: int,
    owner: Owner,
    *,
    lowers: Sequence[int] = (),
    limits: Limits = DEFAULT,
    policy: Policy = _DEFAULT_POLICY,
    progress: Callable[[int], None] | None = None,
    cancelled: Callable[[], None] = nothing,
) -> Unpacked:
    """
    Unpack a layer into an empty folder.

    Args:
        source: The blob: plain, gzip or zstd, told by how it begins.
        folder: Descriptor of the folder, borrowed.
        owner: Whose the files become.
        lowers: Descriptors of the layers below, topmost first, borrowed.
        limits: What the layer may cost.
        policy: What is made of setuid bits and devices.
        progress: Called with the number of bytes of *source* that have been read until now.
        cancelled: Called often; raises to give up.

    Raises:
        ViolationError: The layer is hostile, or exceeds a limit, which is named.
        ImageError: It is damaged, or no tar archive.
        UnsupportedError: An owner or a device that cannot be made here.
        KernelError: The disk is full, or the like.

    Spec: image-spec layer.md.
    """
    if policy.devices == "make" and owner.kind != "root":
        raise UnsupportedError("device nodes", "root", "leave them out, which is the default")
    if owner.kind == "range":
        from sandboxlib.image.apart import unpack_apart

        options = {"limits": attrs.asdict(limits), "policy": attrs.asdict(policy)}
        found = unpack_apart(source, folder, owner, lowers, options, progress, cancelled)
        lists = ("dropped", "uids", "gids")
        return Unpacked(**{**found, **{name: tuple(map(tuple, found[name])) for name in lists}})
    return unpack_here(source, folder, owner, lowers, limits, policy, progress, cancelled)


def unpack_here(
    source: Readable,
    folder: int,
    owner: Owner,
    lowers: Sequence[int],
    limits: Limits,
    policy: Policy,
    progress: Callable[[int], None] | None,
    cancelled: Callable[[], None],
) -> Unpacked:
    """Do the same in this process, which has the rights that *owner* needs."""
    folders = Folders(folder, lowers, owner.marks, chown=owner.kind != "single")
    try:
        with Source(source, limits, progress=progress, cancelled=cancelled) as plain:
            reader = TarReader(plain, limits)
            extractor = Extractor(folders, plain, owner, policy)
            for entry in reader:
                extractor.make(entry, reader.data())
            folders.finish()
            return Unpacked(
                plain.digest,
                extractor.size,
                reader.entries,
                tuple(sorted(extractor.dropped.items())),
                folders.below.used,
                ranges(reader.uids),
                ranges(reader.gids),
            )
    finally:
        folders.fds.close()


def owners_of(
    source: Readable, *, limits: Limits = DEFAULT, cancelled: Callable[[], None] = nothing
) -> tuple[Ranges, Ranges]:
    """
    The users and groups that a layer's files belong to; nothing is unpacked.

    Raises:
        ViolationError, ImageError: As `unpack`.
    """
    with Source(source, limits, cancelled=cancelled) as plain:
        reader = TarReader(plain, limits)
        for _ in reader:
            pass
        return ranges(reader.uids), ranges(reader.gids)


def remove_tree(folder: int, name: str, owner: Owner) -> None:
    """
    Remove *name* in an open folder, which is borrowed, with all that is below it.

    A tree of subordinate ids is removed by a process that is root over these.

    Raises:
        KernelError: It cannot be removed; ENOENT: it is not there.
    """
    if owner.kind == "range":
        from sandboxlib.image.apart import remove_apart

        remove_apart(folder, name, owner)
    else:
        remove_here(folder, name)


def remove_here(folder: int, name: str) -> None:
    """Do the same in this process, which has the rights that it takes. Raises: KernelError."""
    try:
        removal.remove(folder, os.fsencode(name))
    except OSError as error:
        raise failed(error, f'unlinkat({folder}, "{name}")', "remove a tree") from None


__all__ = ["Limits", "Policy", "Unpacked", "owners_of", "remove_here", "remove_tree", "unpack", "unpack_here"]
