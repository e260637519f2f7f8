"""The blocking face of a sandbox's files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandboxlib.bounds import COPIED, ENTRIES, READ
from sandboxlib.doors import doors
from sandboxlib.engine.waiter import complete

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


@doors
class Files:
    """
    Files inside a live sandbox; the attribute ``files`` of a `Sandbox`.

    Paths are resolved inside: links and ".." never lead out. A relative path begins
    where commands begin. Permission bits do not stop it, and what it makes belongs
    to the user whom commands run as.

    Every method raises `KernelError` for what the kernel refuses, which is also the
    FileNotFoundError, IsADirectoryError, … that `open` would raise; `SpecError`
    for what is no path; `StateError` when the sandbox is not open; and `TimeoutExpired`
    when *timeout* seconds are over. Without it, what code inside holds is a `KernelError` with
    ETIMEDOUT (also a TimeoutError) after some ten seconds.

    What is read and copied has bounds, since code inside can make files and names without end: past one
    it is a `TooLargeError` that names the argument to raise; None is no bound.
    """

    def __init__(self, live: Callable[[], Engine]) -> None:
        self._live = live

    def read(self, path: Path, *, max_size: int | str | None = READ, timeout: float | None = None) -> bytes:
        """
        Return the content of a file, all of it: for a large one, `copy_out` takes no memory.

        Args:
            path: A link is followed, as by `open`.
            max_size: Bytes that it may have, holes included.
            timeout: Seconds.

        Raises:
            TooLargeError: It has more.
            ViolationError: It is a FIFO or a device.
        """
        from sandboxlib.engine import files

        return complete(files.read(self._live(), path, max_size=max_size, seconds=timeout))

    def read_text(
        self,
        path: Path,
        encoding: str = "utf-8",
        errors: str = "strict",
        *,
        max_size: int | str | None = READ,
        timeout: float | None = None,
    ) -> str:
        """Return the content of a file as text; line ends stay as they are. As `read`."""
        return self.read(path, max_size=max_size, timeout=timeout).decode(encoding, errors)

    def write(
        self,
        path: Path,
        data: bytes | str,
        *,
        mode: int = 0o644,
        parents: bool = False,
        timeout: float | None = None,
    ) -> None:
        """
        Write a file, in place of what it held.

        Args:
            path: A link is followed, as by `open`.
            data: Text is written in UTF-8.
            mode: Permission bits if it is made now, as they are: there is no umask.
            parents: Make the folders on the way, where they are missing.
            timeout: Seconds.

        Raises:
            ViolationError: It is a FIFO, a device, or a file of the kernel's such as one of /proc.
        """
        from sandboxlib.engine import files

        writing = files.write(self._live(), path, data, mode=mode, parents=parents, seconds=timeout)
        complete(writing)

    def list(
        self, path: Path = ".", *, max_entries: int | None = ENTRIES, timeout: float | None = None
    ) -> list[str]:
        """
        Return the names in a folder, sorted.

        Args:
            path: A link is followed.
            max_entries: How many it may have.
            timeout: Seconds.

        Raises:
            TooLargeError: It has more.
        """
        from sandboxlib.engine import files

        return complete(files.names(self._live(), path, max_entries=max_entries, seconds=timeout))

    def stat(self, path: Path, *, follow: bool = True, timeout: float | None = None) -> os.stat_result:
        """Look at a file as one would from inside, owners included; at a link itself without *follow*."""
        from sandboxlib.engine import files

        return complete(files.stat(self._live(), path, follow=follow, seconds=timeout))

    def exists(self, path: Path, *, timeout: float | None = None) -> bool:
        """Tell whether there is something; a link that leads nowhere is nothing."""
        from sandboxlib.engine import files

        return complete(files.exists(self._live(), path, seconds=timeout))

    def mkdir(
        self,
        path: Path,
        mode: int = 0o755,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        timeout: float | None = None,
    ) -> None:
        """
        Make a folder.

        Args:
            path: What to make.
            mode: Permission bits, as they are; those made by *parents* have 0o755.
            parents: Make the folders on the way, where they are missing.
            exist_ok: A folder that is there already is fine.
            timeout: Seconds.
        """
        from sandboxlib.engine import files

        making = files.mkdir(self._live(), path, mode, parents=parents, exist_ok=exist_ok, seconds=timeout)
        complete(making)

    def remove(self, path: Path, *, recursive: bool = False, timeout: float | None = None) -> None:
        """
        Remove a file, a link itself, or an empty folder.

        Args:
            path: What to remove.
            recursive: A folder with all that is in it; links in it are not followed.
            timeout: Seconds.
        """
        from sandboxlib.engine import files

        complete(files.remove(self._live(), path, recursive=recursive, seconds=timeout))

    def rename(self, old: Path, new: Path, *, timeout: float | None = None) -> None:
        """Give another name; what has it is replaced, as the kernel does it."""
        from sandboxlib.engine import files

        complete(files.rename(self._live(), old, new, seconds=timeout))

    def copy_in(self, source: Path, target: Path, *, timeout: float | None = None) -> None:
        """
        Copy a file or a folder with all that is in it into the sandbox.

        *target* is what the copy is called, not a folder to put it into; folders on
        the way are made, a folder that is there is added to, files are replaced.
        Permission bits and times are kept, links stay links, holes stay holes; owners, set-uid and
        set-gid bits, and extended attributes are not copied.

        Args:
            source: A path of the host; if it is a link it is followed, but none in it is.
            target: A path inside.
            timeout: Seconds.

        Raises:
            ViolationError: There is a FIFO, a socket or a device in it.
        """
        from sandboxlib.engine.copy_in import copy_in

        complete(copy_in(self._live(), source, target, seconds=timeout))

    def copy_out(
        self,
        source: Path,
        target: Path,
        *,
        max_size: int | str | None = COPIED,
        max_entries: int | None = ENTRIES,
        timeout: float | None = None,
    ) -> None:
        """
        Copy a file or a folder with all that is in it out of the sandbox.

        As `copy_in`. What is made belongs to the calling user, whose umask holds;
        folders stay open to their owner. Links are copied as they are: they may
        lead anywhere, so do not follow them.

        Args:
            source: A path inside.
            target: A path of the host. No link at it or below it is followed: a file
                takes the place of a link.
            max_size: Bytes of data that all files together may have; holes are none.
            max_entries: Files, folders and links that there may be.
            timeout: Seconds.

        Raises:
            TooLargeError: There is more; what was copied until then stays.
            ViolationError: There is a FIFO, a socket or a device in it, a link where the
                target needs a folder, or something was exchanged while it was copied.
        """
        from sandboxlib.engine.copy_out import copy_out

        copying = copy_out(
            self._live(), source, target, max_size=max_size, max_entries=max_entries, seconds=timeout
        )
        complete(copying)


__all__ = ["Files"]
