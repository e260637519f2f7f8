"""
Blobs: files that are named by the digest of what is in them.

Each is written under another name, synced, and renamed: who finds it finds it whole.

Spec: image-spec image-layout.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import IO, BinaryIO

from sandboxlib.errors import ImageError
from sandboxlib.image import locks
from sandboxlib.image.locks import Cancelled, never
from sandboxlib.image.model import Descriptor, check_digest
from sandboxlib.kernel.descriptor import openat, private
from sandboxlib.kernel.syscall import failed

_CHUNK = 1 << 20
_WHY = "write to the store of images"
Write = Callable[[bytes], object]
#: Gets what to write to, and how much is there already, and appends the rest.
Download = Callable[["Sink", int], None]


class Blobs:
    """The blobs of a store. Attributes: path, of the store."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._partial = os.path.join(path, "partial")

    def file(self, digest: str) -> str:
        """Where a blob is, or would be."""
        algorithm, _, value = check_digest(digest, "blob").partition(":")
        return os.path.join(self.path, "blobs", algorithm, value)

    def has(self, digest: str) -> bool:
        """Is it there?"""
        return os.path.isfile(self.file(digest))

    def open_blob(self, digest: str) -> BinaryIO:
        """
        Open it for reading.

        Raises:
            ImageError: It is not there.
        """
        try:
            return open(self.file(digest), "rb")
        except FileNotFoundError:
            raise ImageError("it is not in the store", digest) from None

    def read(self, digest: str, limit: int) -> bytes:
        """
        Read a small one.

        Raises:
            ImageError: It is not there, larger than *limit* bytes, or not what its digest says.
        """
        with self.open_blob(digest) as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise ImageError(f"it has more than {limit} bytes", digest)
        if _hash(digest, raw) != digest:
            raise ImageError(
                "what is in the store is not what its digest says: fsck(repair=True) takes it away", digest
            )
        return raw

    def spooled(self, pieces: Iterable[bytes]) -> IO[bytes]:
        """A file on the store's disk to read these *pieces* from; without a name, it goes as it is closed."""
        import tempfile

        with _writing(self._partial):
            file = tempfile.TemporaryFile(dir=self._partial)  # noqa: SIM115 - the caller closes it
        try:
            for piece in pieces:
                with _writing(self._partial):
                    file.write(piece)
            with _writing(self._partial):
                file.seek(0)
        except BaseException:
            # It writes what is left once more, and says again that it cannot.
            with contextlib.suppress(OSError):
                file.close()
            raise
        return file

    def add(self, raw: bytes) -> str:
        """Put some bytes there; returns their digest."""
        digest, _ = self.add_written(lambda write: write(raw))
        return digest

    def add_written(self, fill: Callable[[Write], object]) -> tuple[str, int]:
        """Put there what *fill* writes; returns its digest and its size."""
        found = hashlib.sha256()
        size = 0
        name = os.path.join(self._partial, f"new-{os.getpid()}-{os.urandom(8).hex()}")
        with self._fresh(name) as fd:
            with _written(fd, name) as file:

                def write(data: bytes) -> int:
                    nonlocal size
                    found.update(data)
                    size += len(data)
                    with _writing(name):
                        return file.write(data)

                fill(write)
            digest = f"sha256:{found.hexdigest()}"
            self._finish(fd, name, digest)
        return digest, size

    @contextlib.contextmanager
    def _fresh(self, name: str) -> Iterator[int]:
        """A new file *name*, open and locked: nobody takes it for a remainder. It goes with an exception."""
        try:
            with private(openat(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, why=_WHY)) as fd:
                locks.try_(fd)
                yield fd
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise

    def _finish(self, fd: int, name: str, digest: str) -> None:
        target = self.file(digest)
        folder = os.path.dirname(target)
        with _writing(target):
            os.fsync(fd)
            if not os.path.isdir(folder):
                os.makedirs(folder, exist_ok=True)
                sync_folder(os.path.dirname(folder))
            os.rename(name, target)
            # Not before: who has to go on with it after a kill must be able to write to it.
            os.fchmod(fd, 0o444)
            sync_folder(folder)

    def fetch(
        self,
        descriptor: Descriptor,
        download: Download,
        *,
        cancelled: Cancelled = never,
    ) -> bool:
        """
        Have a blob there, and get it by *download* where it is missing.

        Of all programs and threads that want it one gets it, the others wait. What was got before an
        interruption stays for the next one, which goes on from there.

        Returns:
            Whether it was downloaded here.

        Raises:
            ImageError: What came is not what the digest says, or has another size.
        """
        digest = descriptor.digest
        if self.has(digest):
            return False
        name = os.path.join(self._partial, digest.replace(":", "-"))
        with locks.take(name, cancelled=cancelled) as fd:
            if self.has(digest):
                # Somebody else was quicker.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
                return False
            if not _filled(fd, name, descriptor, download, cancelled):
                # What was there from before was not what it should be; that is no fault of the sender's.
                _filled(fd, name, descriptor, download, cancelled)
            self._finish(fd, name, digest)
        return True


def _filled(fd: int, name: str, descriptor: Descriptor, download: Download, cancelled: Cancelled) -> bool:
    """
    Download what is missing in *fd*; False if what was there from before has spoilt it.

    Raises:
        ImageError: All of it came here, and is wrong.
    """
    sink = Sink(fd, descriptor, cancelled, name)
    found = sink.offset
    try:
        if sink.offset < descriptor.size:
            download(sink, sink.offset)
        sink.check()
    except _WrongError as error:
        os.ftruncate(fd, 0)
        if found and not sink.restarted:
            return False
        raise ImageError(str(error), descriptor.digest) from None
    return True


class Sink:
    """
    What a download is written to: checked while it comes.

    Attributes:
        offset: How many bytes are there.
        restarted: Nothing of it is from before any more.
    """

    def __init__(self, fd: int, descriptor: Descriptor, cancelled: Cancelled, name: str = "") -> None:
        self._fd = fd
        self._name = name
        self._wanted = descriptor
        self._hash = hashlib.new(descriptor.digest.partition(":")[0])
        self.offset = 0
        self.restarted = False
        if os.fstat(fd).st_size > descriptor.size:
            os.ftruncate(fd, 0)
        # What is there from before an interruption is a part of it, if it is right.
        while data := os.pread(fd, _CHUNK, self.offset):
            cancelled()
            self._hash.update(data)
            self.offset += len(data)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append some bytes."""
        size = len(data)
        if self.offset + size > self._wanted.size:
            raise _WrongError(f"it has more than the {self._wanted.size} bytes that were said")
        self._hash.update(data)
        view = memoryview(data)
        while view:
            with _writing(self._name):
                written = os.pwrite(self._fd, view, self.offset)
            self.offset += written
            view = view[written:]
        return size

    def restart(self) -> None:
        """Begin anew: the sender begins at the beginning."""
        os.ftruncate(self._fd, 0)
        self._hash = hashlib.new(self._wanted.digest.partition(":")[0])
        self.offset = 0
        self.restarted = True

    def check(self) -> None:
        """Raises: ImageError: It is not whole. _WrongError: It is, and wrong."""
        if self.offset < self._wanted.size:
            raise ImageError(
                f"it ended after {self.offset} of {self._wanted.size} bytes", self._wanted.digest
            )
        if self._hash.hexdigest() != self._wanted.digest.partition(":")[2]:
            raise _WrongError("what came is not what the digest says")


class _WrongError(Exception):
    """What was downloaded is wrong, and must not be gone on with."""


def _hash(like: str, raw: bytes) -> str:
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failed(error, f'write("{path}")', _WHY) from None


@contextlib.contextmanager
def _written(fd: int, path: str) -> Iterator[BinaryIO]:
    """A file that writes to *fd*, borrowed; all of it is there afterwards."""
    file = open(fd, "wb", closefd=False)  # noqa: SIM115 - it is closed either way
    try:
        yield file
    except BaseException:
        # It writes what is left once more, and says again that it cannot.
        with contextlib.suppress(OSError):
            file.close()
        raise
    with _writing(path):
        file.close()


def sync_folder(path: str) -> None:
    """Have the names in a folder on disk."""
    with openat(path, os.O_RDONLY | os.O_DIRECTORY, why=_WHY) as fd:
        os.fsync(fd)


def write_file(path: str, raw: bytes, partial: str) -> None:
    """
    Write a small file in one go, by way of the folder *partial* on the same file system.

    Raises:
        KernelError: It cannot be written, and is as it was.
    """
    name = os.path.join(partial, f"new-{os.getpid()}-{os.urandom(8).hex()}")
    with _writing(path):
        try:
            with private(openat(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, why=_WHY)) as fd:
                locks.try_(fd)
                with open(fd, "wb", closefd=False) as file:
                    file.write(raw)
                os.fsync(fd)
                os.rename(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        sync_folder(os.path.dirname(path))


__all__ = ["Blobs", "Download", "Sink", "sync_folder", "write_file"]
