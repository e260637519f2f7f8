"""
What an archive is read from: a path, a file that is open, standard input.

Some cannot be gone to and fro in, and some wait for whoever writes to them: they are read in order, and
given up in between.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from sandboxlib.errors import SandboxError, SpecError
from sandboxlib.kernel.syscall import failed

#: What stands for standard input where a path is asked for, as in docker load.
STDIN = "-"
_PATIENCE_MS = 100
_CHUNK = 1 << 20

Given = str | os.PathLike[str] | IO[bytes]


class Archive(io.RawIOBase):
    """
    Bytes in order, whatever they come from; the file itself is borrowed.

    Attributes:
        name: What it is called in errors and in an image's history.
        plain: It is a file on a disk, which can be read anew.
    """

    def __init__(self, file: IO[bytes], name: str, field: str, cancelled: Callable[[], None]) -> None:
        super().__init__()
        self.name = name
        self._field = field
        self._file = file
        self._cancelled = cancelled
        self._start = b""
        self._poll: select.poll | None = None
        self.plain = _seekable(file)
        fd = -1 if self.plain else _descriptor(file)
        if fd >= 0:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)

    def whole(self) -> IO[bytes] | None:
        """The file itself, from its beginning on, to go to and fro in; None where nobody can."""
        if not self.plain:
            return None
        self._file.seek(-len(self._start), os.SEEK_CUR)
        self._start = b""
        return self._file

    def readable(self) -> bool:
        """True."""
        return True

    def peek(self, size: int) -> bytes:
        """The next *size* bytes, which stay where they are; fewer at the end."""
        while len(self._start) < size and (more := self._next(size - len(self._start))):
            self._start += more
        return self._start[:size]

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill *buffer* as far as there is something at hand."""
        self._cancelled()
        data, self._start = self._start[: len(buffer)], self._start[len(buffer) :]
        data = data or self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        read = getattr(self._file, "read1", self._file.read)
        while True:
            # All is wanted up to the end: what its buffer holds may wait for more to come.
            while self._poll is not None and not self._poll.poll(_PATIENCE_MS):
                self._cancelled()
            try:
                data: Any = read(min(size, _CHUNK))
            except OSError as error:
                if isinstance(error, SandboxError):
                    raise
                raise failed(error, f'read("{self.name}")', "read an archive") from None
            if data is None:
                continue  # a file that does not block, and somebody else was quicker
            if not isinstance(data, bytes):
                raise SpecError(self._field, self._file, "a file that is open for reading bytes")
            return data


def _seekable(file: IO[bytes]) -> bool:
    try:
        return file.seekable()
    except (AttributeError, OSError, ValueError):
        return False


def _descriptor(file: IO[bytes]) -> int:
    """The descriptor that is read; -1 for a file of Python's own."""
    try:
        return file.fileno()
    except (AttributeError, OSError, ValueError):
        return -1


@contextmanager
def opened(source: Any, field: str, cancelled: Callable[[], None]) -> Iterator[str | Archive]:
    """
    What a caller gives as *source*: the path of a folder, or an archive to be read.

    Args:
        source: A path, ``"-"`` for standard input, or a file that is open for reading bytes.
        field: What errors call it.
        cancelled: Called while it is read; raises to give up.

    Raises:
        SpecError: It is none of these, or is not there.
        KernelError: It cannot be opened.
    """
    if isinstance(source, str) and source == STDIN:
        source = sys.stdin
        if source is None or source.isatty():
            raise SpecError(field, STDIN, "given an archive: standard input is closed, or a terminal")
    # A file for text, such as sys.stdin, has the one for bytes below it.
    source = getattr(source, "buffer", source)
    if hasattr(source, "read"):
        yield Archive(source, _name(source), field, cancelled)
        return
    try:
        path = os.path.abspath(os.fsdecode(source))
    except (TypeError, ValueError):
        raise SpecError(field, source, "the path of a folder or an archive, '-', or an open file") from None
    if os.path.isdir(path):
        yield path
        return
    try:
        # A FIFO to which nobody writes yet is waited for by poll(2), not by open(2).
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, ValueError):
        raise SpecError(field, source, "a path that exists") from None
    except OSError as error:
        raise failed(error, f'open("{path}")', "read an archive") from None
    with open(fd, "rb", buffering=-1 if stat.S_ISREG(os.fstat(fd).st_mode) else 0) as file:
        yield Archive(file, path, field, cancelled)


def _name(file: object) -> str:
    """What a file that is open is called."""
    if file is getattr(sys.stdin, "buffer", None):
        return "standard input"
    name = getattr(file, "name", "")
    return name if isinstance(name, str) and name else "a file"


__all__ = ["STDIN", "Archive", "Given", "opened"]
