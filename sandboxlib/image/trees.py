"""
Layers that are unpacked: each once on the same layers below it, for each way to own files.

A link to a file of another layer, or a folder that only another one describes, make what a layer
unpacks to depend on what is below: so its name is the chain ID of the OCI.

A layer is made under another name and renamed when it is whole. That it is on disk, and not only in
memory, costs seconds to wait for; so it is noted in which boot it was made. If the machine stops
before the kernel has written it, the next boot sees the note and unpacks it anew.

Kernel: proc_sys_kernel(5), random/boot_id.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from sandboxlib.errors import ImageError, KernelError
from sandboxlib.image import locks
from sandboxlib.image.blobs import write_file
from sandboxlib.image.locks import Cancelled
from sandboxlib.image.model import chain_ids
from sandboxlib.image.owner import Owner, OwnerError
from sandboxlib.image.progress import Progress
from sandboxlib.image.reserve import FULL
from sandboxlib.image.unpack import Policy, Unpacked, owners_of, remove_tree, unpack
from sandboxlib.kernel.descriptor import openat
from sandboxlib.kernel.files import sync_filesystem
from sandboxlib.ranges import Ranges, joined, united

if TYPE_CHECKING:
    from sandboxlib.image.model import Descriptor, ImageConfig, Manifest
    from sandboxlib.image.store import Store

#: Seconds after which the kernel has written what is in memory: vm.dirty_expire_centisecs and the
#: journal's interval, twice over. Then making sure of it costs next to nothing.
SETTLED = 90
#: Ranges of owners that are noted for a layer; more than any map has room for.
_MOST_RANGES = 2000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def folder(store: Store, owner: Owner, chain_id: str) -> str:
    """Where a layer is, or would be: ``fs`` in it is its tree, ``layer.json`` what is known of it."""
    return os.path.join(store.path, "layers", owner.key, chain_id.replace(":", "-"))


@lru_cache(1)
def boot() -> str:
    """The number of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def known(path: str) -> dict[str, object]:
    """What is known of the layer at *path*; {} if nothing is, or it may not have outlived a power cut."""
    try:
        with open(os.path.join(path, "layer.json"), "rb") as file:
            found = json.loads(file.read(1 << 18))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(found, dict) or found.get("boot") not in (None, boot()):
        return {}
    return found


def unpack_all(
    store: Store,
    manifest: Manifest,
    config: ImageConfig,
    owner: Owner,
    *,
    progress: Callable[[Progress], object] | None,
    cancelled: Cancelled,
) -> tuple[str, ...]:
    """Unpack the layers that are missing, from the lowest; returns the folders, the topmost first."""
    for number in range(len(manifest.layers)):
        unpack_to(store, manifest, config, owner, number, cancelled, progress=progress)
    chain = chain_ids(config.rootfs.diff_ids)
    return tuple(store.layer_folder(owner, chain_id) for chain_id in reversed(chain))


def unpack_to(
    store: Store,
    manifest: Manifest,
    config: ImageConfig,
    owner: Owner,
    number: int,
    cancelled: Cancelled,
    *,
    progress: Callable[[Progress], object] | None = None,
) -> None:
    """Unpack layer *number* on top of those below it, which are unpacked."""
    chain = chain_ids(config.rootfs.diff_ids[: number + 1])
    lowers = [store.layer_folder(owner, chain_id) for chain_id in reversed(chain[:-1])]
    wanted = Wanted(manifest.layers[number], config.rootfs.diff_ids[number], chain[-1])
    unpack_one(store, wanted, owner, lowers, progress=progress, cancelled=cancelled)


class Wanted(NamedTuple):
    """
    A layer that is to be unpacked.

    Attributes:
        layer: What is in the store.
        diff_id: The digest that it has uncompressed.
        chain_id: What it is with those below it.
    """

    layer: Descriptor
    diff_id: str
    chain_id: str


def unpack_one(
    store: Store,
    wanted: Wanted,
    owner: Owner,
    lowers: Sequence[str],
    *,
    progress: Callable[[Progress], object] | None,
    cancelled: Cancelled,
) -> None:
    """Unpack one layer on top of *lowers*, the topmost first, if it is not yet."""
    path = folder(store, owner, wanted.chain_id)
    if found := known(path):
        _check_owners(found)
        _settle(store, path, found)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if owner.kind == "range":
        _note_owner(store, owner)
    lock = os.path.join(store.path, "locks", f"{owner.key}-{os.path.basename(path)}")
    with locks.take(lock, cancelled=cancelled):
        if found := known(path):
            _check_owners(found)
            return
        with contextlib.suppress(FileNotFoundError):
            # Half of one that a power cut has left, or what somebody has damaged.
            discard(store, path, owner)
        # Whoever prunes waits, so what he finds half done is nobody's.
        with store.growing(cancelled):
            _make(store, wanted, owner, lowers, path, progress=progress, cancelled=cancelled)


def _make(
    store: Store,
    wanted: Wanted,
    owner: Owner,
    lowers: Sequence[str],
    path: str,
    *,
    progress: Callable[[Progress], object] | None,
    cancelled: Cancelled,
) -> None:
    layer, diff_id, chain_id = wanted

    def tell(read: int) -> None:
        if progress is not None:
            progress(Progress("unpacking", "", layer.digest, read, layer.size))

    name = f"new-{os.getpid()}-{os.urandom(8).hex()}"
    made = os.path.join(os.path.dirname(path), name)
    os.mkdir(made, 0o755)
    problem: OwnerError | None = None
    try:
        os.mkdir(os.path.join(made, "fs"), 0o755)
        try:
            found = _unpacked(store, layer, os.path.join(made, "fs"), owner, lowers, tell, cancelled)
            if found.diff_id != diff_id:
                raise ImageError(
                    f"what is in it has the digest {found.diff_id}, and the configuration says {diff_id}",
                    layer.digest,
                )
        except OwnerError as error:
            # All that is known of it stays, so that the next one need not find it out.
            problem = error
            with store.open_blob(layer.digest) as blob:
                problem.uids, problem.gids = owners_of(blob, cancelled=cancelled)
            discard(store, made, owner)
            os.mkdir(made, 0o755)
            os.mkdir(os.path.join(made, "fs"), 0o755)
            found = Unpacked(diff_id, 0, 0, uids=problem.uids, gids=problem.gids)
        facts = {
            "diff_id": diff_id,
            "chain_id": chain_id,
            "size": found.size,
            "files": found.files,
            "uids": joined(found.uids, _MOST_RANGES),
            "gids": joined(found.gids, _MOST_RANGES),
            "boot": boot(),
            **({"misfit": [problem.feature, problem.needs, problem.hint]} if problem is not None else {}),
        }
        with open(os.path.join(made, "layer.json"), "w", encoding="ascii") as file:
            json.dump(facts, file)
        os.rename(made, path)
    except BaseException:
        discard(store, made, owner)
        raise
    if problem is not None:
        raise problem


def _unpacked(
    store: Store,
    layer: Descriptor,
    target: str,
    owner: Owner,
    lowers: Sequence[str],
    tell: Callable[[int], None],
    cancelled: Cancelled,
) -> Unpacked:
    # All that is below is there, so what hides nothing of it would only be seen.
    policy = Policy(whiteouts="useful")
    with _opened(lowers) as below, store.open_blob(layer.digest) as blob, openat(target, _FOLDER) as fd:
        return unpack(blob, fd, owner, lowers=below, policy=policy, progress=tell, cancelled=cancelled)


def _check_owners(found: Mapping[str, object]) -> None:
    """Raise OwnerError if the layer cannot be unpacked for this owner, as somebody has found out."""
    misfit = found.get("misfit")
    if isinstance(misfit, list) and len(misfit) == 3:
        problem = OwnerError(*map(str, misfit))
        problem.uids, problem.gids = _owners(found)
        raise problem


def _owners(found: Mapping[str, object]) -> tuple[Ranges, Ranges]:
    """The owners of a layer's files, as they were noted."""
    lists = [found.get(name) for name in ("uids", "gids")]
    uids, gids = (
        tuple((int(pair[0]), int(pair[1])) for pair in given) if isinstance(given, list) else ()
        for given in lists
    )
    return uids, gids


def owners(
    store: Store, manifest: Manifest, config: ImageConfig, owner: Owner, cancelled: Cancelled
) -> tuple[Ranges, Ranges]:
    """The users and groups of all files of an image; what was not unpacked for *owner* is read for that."""
    uids: list[tuple[int, int]] = []
    gids: list[tuple[int, int]] = []
    for layer, chain_id in zip(manifest.layers, chain_ids(config.rootfs.diff_ids), strict=True):
        if facts := known(folder(store, owner, chain_id)):
            found = _owners(facts)
        else:
            with store.open_blob(layer.digest) as blob:
                found = owners_of(blob, cancelled=cancelled)
        uids += found[0]
        gids += found[1]
    return united(uids), united(gids)


def _note_owner(store: Store, owner: Owner) -> None:
    """Who owns the layers here, for whoever is to remove them."""
    path = os.path.join(store.path, "layers", owner.key, "owner.json")
    if not os.path.exists(path):
        raw = json.dumps({"uid_map": owner.uid_map, "gid_map": owner.gid_map}).encode()
        write_file(path, raw, os.path.join(store.path, "partial"))


@contextmanager
def _opened(paths: Sequence[str]) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        # A place alone: a user may not read what belongs to one of his subordinate IDs.
        yield [stack.enter_context(openat(path, _PLACE)) for path in paths]


def _settle(store: Store, path: str, found: dict[str, object]) -> None:
    """Take the note of the boot away, once the layer is on disk."""
    note = os.path.join(path, "layer.json")
    if found.get("boot") is None or time.time() - os.stat(note).st_mtime < SETTLED:
        return
    with openat(path, _FOLDER) as fd:
        sync_filesystem(fd)
    facts = {name: value for name, value in found.items() if name != "boot"}
    # On a disk that is full the next one looks again.
    with contextlib.suppress(KernelError):
        write_file(note, json.dumps(facts).encode(), os.path.join(store.path, "partial"))


def discard(store: Store, path: str, owner: Owner) -> None:
    """
    Remove a layer, whatever is in it.

    It is out of the way at once; if the program ends before the rest is done, `prune` goes on.

    Raises:
        FileNotFoundError: It is not there.
    """
    name = f"{owner.key}-{os.urandom(8).hex()}"
    if put_away(store, path, name, owner):
        empty(os.path.join(store.path, "removed"), name, owner)


def put_away(store: Store, path: str, name: str, owner: Owner) -> bool:
    """
    Have a layer out of the way, as *name* in the folder for what is to be removed.

    On a disk that is full there may be no room even for a name: then it is removed here, and False returned.

    Raises:
        FileNotFoundError: It is not there.
    """
    try:
        os.rename(path, os.path.join(store.path, "removed", name))
    except OSError as error:
        if error.errno not in FULL:
            raise
        with contextlib.suppress(FileNotFoundError):
            # From here on it is not whole, should this be as far as it gets.
            os.unlink(os.path.join(path, "layer.json"))
        empty(os.path.dirname(path), os.path.basename(path), owner)
        return False
    return True


def empty(place: str, name: str, owner: Owner) -> None:
    """Remove the layer *name* in the folder *place*."""
    with contextlib.suppress(FileNotFoundError), openat(place, _FOLDER) as fd:
        remove_tree(fd, name, owner)


__all__ = ["boot", "discard", "empty", "folder", "known", "owners", "put_away", "unpack_all", "unpack_to"]
