"""
A layer, unpacked below a folder: decompressed, checked and written in one go.

What inflates runs beside what writes: neither waits for the other, and Python lets go of its lock in both.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple

from sandboxlib.errors import ViolationError
from sandboxlib.image.compression import decompressed
from sandboxlib.image.extract import Extraction, Limits
from sandboxlib.image.locks import Cancelled, never
from sandboxlib.image.owner import Owner
from sandboxlib.image.removal import remove_at
from sandboxlib.image.tarstream import TarStream

DEFAULT = Limits()
#: What every layer may become, however little it was.
_FREE = 64 << 20
#: Pieces that wait between the two; of up to a mebibyte each.
_AHEAD = 8


class Unpacked(NamedTuple):
    """
    What came of a layer.

    Attributes:
        diff_id: The digest of the tar file.
        size: Bytes of all files.
        files: Entries.
        dropped: Device nodes and extended attributes that were left out.
    """

    diff_id: str
    size: int
    files: int
    dropped: int


def unpack(
    source: IO[bytes],
    folder: int,
    owner: Owner,
    *,
    lowers: Sequence[int] = (),
    limits: Limits = DEFAULT,
    progress: Callable[[int], object] | None = None,
    cancelled: Cancelled = never,
) -> Unpacked:
    """
    Unpack a layer.

    Args:
        source: Its file, plain or compressed by gzip or zstd.
        folder: An open folder, empty, that becomes the root of the tree.
        owner: Whose the files are to be.
        lowers: The open roots of the layers below, the topmost first: for hard links to their files,
            and for what folders look like that no entry describes.
        limits: What it may be.
        progress: Called with the number of bytes of *source* that were read.
        cancelled: Called every now and then; what it raises ends it, with the folder half full.

    Raises:
        ImageError: It is no tar file as it has to be.
        ViolationError: It is hostile.
        UnsupportedError: The owner has too few IDs, or no newuidmap.
        KernelError: A system call failed.
    """
    if owner.kind == "range":
        from sandboxlib.image.worker import unpack_inside

        return unpack_inside(source, folder, owner, lowers, limits, progress, cancelled)
    return unpack_here(source, folder, owner, lowers, limits, progress, cancelled)


def unpack_here(
    source: IO[bytes],
    folder: int,
    owner: Owner,
    lowers: Sequence[int],
    limits: Limits,
    progress: Callable[[int], object] | None,
    cancelled: Cancelled,
) -> Unpacked:
    """Do so with this process's own rights; arguments as `unpack`."""
    found = hashlib.sha256()
    extraction = Extraction(folder, owner, lowers, limits)
    produced = 0
    try:
        with decompressed(source) as stream, _ahead(stream) as pieces:

            def read() -> bytes:
                nonlocal produced
                piece = next(pieces, b"")
                cancelled()
                found.update(piece)
                produced += len(piece)
                if produced > _FREE + limits.ratio * stream.consumed:
                    raise ViolationError(f"a layer becomes more than {limits.ratio} times what it was")
                if produced > limits.size + (limits.entries << 12):
                    raise ViolationError(f"a layer becomes more than {produced} bytes")
                if progress is not None:
                    progress(stream.consumed)
                return piece

            tar = TarStream(read)
            for entry in tar:
                extraction.add(entry, tar)
        extraction.finish()
    finally:
        extraction.close()
    return Unpacked(f"sha256:{found.hexdigest()}", extraction.size, extraction.files, extraction.dropped)


@contextmanager
def _ahead(stream: decompressed) -> Iterator[Iterator[bytes]]:
    """What *stream* holds, read by a thread of its own that is a few pieces ahead."""
    pieces: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
    over = threading.Event()

    def run() -> None:
        try:
            while not over.is_set():
                piece = stream.read()
                pieces.put(piece)
                if not piece:
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised where the pieces are taken
            pieces.put(error)

    def take() -> Iterator[bytes]:
        while piece := pieces.get():
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    thread = threading.Thread(target=run, name="sandboxlib inflate", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        over.set()
        # It may wait for room: until it has seen that it is over, there is some.
        while thread.is_alive():
            try:
                pieces.get(timeout=0.01)
            except queue.Empty:
                continue
        thread.join()


def remove_tree(folder: int, name: str, owner: Owner) -> None:
    """
    Remove a tree that was unpacked.

    Args:
        folder: The open folder that it is in.
        name: Its name there.
        owner: Whose its files are.

    Raises:
        FileNotFoundError: It is not there.
    """
    if owner.kind == "range":
        from sandboxlib.image.worker import remove_inside

        remove_inside(folder, name, owner)
        return
    remove_at(folder, name.encode())


__all__ = ["DEFAULT", "Limits", "Unpacked", "remove_tree", "unpack"]
