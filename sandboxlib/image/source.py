"""
The plain bytes of a layer: inflated in a thread, hashed and counted while they are read.

Inflating and hashing let go of Python's lock, so on two processors a layer is inflated while
what came before is written to disk.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import final

import attrs

from sandboxlib.errors import ImageError, ViolationError
from sandboxlib.image.compression import Inflater, Readable

BLOCK = 512
#: Pieces, of at most a megabyte each, that may wait.
_AHEAD = 4
_PATIENCE = 0.1


@attrs.frozen(kw_only=True)
class Limits:
    """
    What one layer may cost; whatever is above is refused.

    Attributes:
        bytes: Of the layer when it is not compressed, holes in its files counted in.
        entries: Files, folders, links and whiteouts.
        ratio: How many times larger than its blob the layer may be, `slack` bytes not counted.
        slack: A small layer may be this large, whatever its blob's size.
    """

    bytes: int = 64 << 30
    entries: int = 4_000_000
    ratio: int = 1000
    slack: int = 64 << 20


DEFAULT = Limits()


def nothing() -> None:
    """Not cancelled."""


def inflated(
    blob: Readable, what: str = "", cancelled: Callable[[], None] = nothing, limits: Limits = DEFAULT
) -> Iterator[bytes]:
    """
    The plain bytes of a whole blob, piece by piece, in this thread.

    Raises:
        ImageError: It is damaged.
        ViolationError: It becomes too much larger; *what* it is.
    """
    inflater = Inflater(blob)
    size = 0
    for piece in inflater:
        cancelled()
        size += len(piece)
        if size > limits.slack + limits.ratio * inflater.taken:
            text = f"it is over {limits.ratio} times larger once it is not compressed"
            text += f"; {limits.ratio} times its size is the limit ('ratio')"
            raise ViolationError(text, what)
        yield piece


@final
class Source:
    """
    A layer's bytes, to be read in order.

    Close it in the thread that reads it: that waits for the other thread, which may be reading
    the blob still.

    Attributes:
        size: Plain bytes until now.
    """

    def __init__(
        self,
        blob: Readable,
        limits: Limits = DEFAULT,
        *,
        progress: Callable[[int], None] | None = None,
        cancelled: Callable[[], None] = nothing,
    ) -> None:
        self._inflater = Inflater(blob)
        self._limits = limits
        self._progress = progress
        self._cancelled = cancelled
        self._hash = hashlib.sha256()
        self._pieces: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._ended = False
        self._extra = 0
        self.size = 0
        self._piece = b""
        self._at = 0
        self._thread = threading.Thread(target=self._inflate, name="sandboxlib inflate", daemon=True)
        self._thread.start()

    # --- the thread ---

    def _inflate(self) -> None:
        last: bytes | BaseException = b""
        try:
            for piece in self._inflater:
                if not self._put(piece):
                    return
        except BaseException as error:  # noqa: BLE001 - raised by who reads
            last = error
        self._put(last)

    def _put(self, piece: bytes | BaseException) -> bool:
        while not self._stopped.is_set():
            try:
                self._pieces.put(piece, timeout=_PATIENCE)
            except queue.Full:
                continue
            return True
        return False

    # --- who reads ---

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def digest(self) -> str:
        """Of the bytes that have been read, in pieces: all of them, once `drain` is done."""
        return f"sha256:{self._hash.hexdigest()}"

    @property
    def position(self) -> int:
        """How many plain bytes have been handed out or passed over."""
        return self.size - len(self._piece) + self._at

    def spend(self, count: int) -> None:
        """Count bytes that the layer makes and does not hold. Raises: ViolationError: too many."""
        self._extra += count
        if self.size + self._extra > self._limits.bytes:
            raise ViolationError(f"a layer of more than {self._limits.bytes} bytes (the limit 'bytes')")

    def _next(self) -> bool:
        """Get the next piece; False at the end."""
        if self._ended:
            return False
        self._cancelled()
        piece = self._wait()
        if isinstance(piece, BaseException):
            self._ended = True
            raise piece
        self._piece, self._at = piece, 0
        if not piece:
            self._ended = True
            return False
        self._hash.update(piece)
        self.size += len(piece)
        self.spend(0)
        taken = self._inflater.taken
        if self.size > self._limits.slack + self._limits.ratio * taken:
            raise ViolationError(
                f"a layer more than {self._limits.ratio} times larger than its blob (the limit 'ratio')"
            )
        if self._progress is not None:
            self._progress(taken)
        return True

    def _wait(self) -> bytes | BaseException:
        while True:
            try:
                return self._pieces.get(timeout=_PATIENCE)
            except queue.Empty:
                self._cancelled()

    def block(self) -> bytes:
        """The next 512 bytes; none at the end. Raises: ImageError: fewer than these."""
        at = self._at
        data = self._piece[at : at + BLOCK]
        if len(data) == BLOCK:
            self._at = at + BLOCK
            return data
        self._at += len(data)
        while len(data) < BLOCK and self._next():
            self._at = BLOCK - len(data)
            data += self._piece[: self._at]
        if data and len(data) < BLOCK:
            raise ImageError("the layer ends in the middle of a header")
        return data

    def read(self, size: int) -> bytes:
        """Exactly *size* bytes. Raises: ImageError: the layer ends before."""
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes | memoryview]:
        """Exactly *size* bytes in pieces as they come. Raises: ImageError: the layer ends before."""
        while size:
            left = len(self._piece) - self._at
            if left <= 0:
                if not self._next():
                    raise ImageError("the layer ends in the middle of a file")
                continue
            count = min(size, left)
            # Counted before it is handed out: who reads may give up in between.
            start, self._at = self._at, self._at + count
            size -= count
            if count == len(self._piece):
                yield self._piece
            else:
                yield memoryview(self._piece)[start : start + count]

    def skip(self, size: int) -> None:
        """Pass over *size* bytes. Raises: ImageError: the layer ends before."""
        left = len(self._piece) - self._at
        if size <= left:
            self._at += size
            return
        for _ in self.pieces(size):
            pass

    def drain(self) -> None:
        """Read to the end: the digest is one of all bytes, those after the archive's end too."""
        while self._next():
            pass


__all__ = ["BLOCK", "DEFAULT", "Limits", "Source", "inflated", "nothing"]
