"""The trio face of a sandbox's files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandboxlib.bounds import COPIED, ENTRIES, READ
from sandboxlib.doors import doors
from sandboxlib.engine import files
from sandboxlib.engine.copy_in import copy_in
from sandboxlib.engine.copy_out import copy_out
from sandboxlib.files import Path

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine


@doors
class AsyncFiles:
    """
    Files inside a live sandbox; the attribute ``files`` of an `AsyncSandbox`.

    The methods are those of `Files`, awaited; see there.
    """

    def __init__(self, live: Callable[[], Engine]) -> None:
        self._live = live

    async def read(
        self, path: Path, *, max_size: int | str | None = READ, timeout: float | None = None
    ) -> bytes:
        """Return the content of a file; as `Files.read`."""
        return await files.read(self._live(), path, max_size=max_size, seconds=timeout)

    async def read_text(
        self,
        path: Path,
        encoding: str = "utf-8",
        errors: str = "strict",
        *,
        max_size: int | str | None = READ,
        timeout: float | None = None,
    ) -> str:
        """Return the content of a file as text; line ends stay as they are. As `read`."""
        return (await self.read(path, max_size=max_size, timeout=timeout)).decode(encoding, errors)

    async def write(
        self,
        path: Path,
        data: bytes | str,
        *,
        mode: int = 0o644,
        parents: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Write a file, in place of what it held; as `Files.write`."""
        await files.write(self._live(), path, data, mode=mode, parents=parents, seconds=timeout)

    async def list(
        self, path: Path = ".", *, max_entries: int | None = ENTRIES, timeout: float | None = None
    ) -> list[str]:
        """Return the names in a folder, sorted; as `Files.list`."""
        return await files.names(self._live(), path, max_entries=max_entries, seconds=timeout)

    async def stat(self, path: Path, *, follow: bool = True, timeout: float | None = None) -> os.stat_result:
        """Look at a file as one would from inside; as `Files.stat`."""
        return await files.stat(self._live(), path, follow=follow, seconds=timeout)

    async def exists(self, path: Path, *, timeout: float | None = None) -> bool:
        """Tell whether there is something; a link that leads nowhere is nothing."""
        return await files.exists(self._live(), path, seconds=timeout)

    async def mkdir(
        self,
        path: Path,
        mode: int = 0o755,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Make a folder; as `Files.mkdir`."""
        live = self._live()
        await files.mkdir(live, path, mode, parents=parents, exist_ok=exist_ok, seconds=timeout)

    async def remove(self, path: Path, *, recursive: bool = False, timeout: float | None = None) -> None:
        """Remove a file, a link itself, or a folder; as `Files.remove`."""
        await files.remove(self._live(), path, recursive=recursive, seconds=timeout)

    async def rename(self, old: Path, new: Path, *, timeout: float | None = None) -> None:
        """Give another name; what has it is replaced, as the kernel does it."""
        await files.rename(self._live(), old, new, seconds=timeout)

    async def copy_in(self, source: Path, target: Path, *, timeout: float | None = None) -> None:
        """Copy a file or a folder into the sandbox; as `Files.copy_in`."""
        await copy_in(self._live(), source, target, seconds=timeout)

    async def copy_out(
        self,
        source: Path,
        target: Path,
        *,
        max_size: int | str | None = COPIED,
        max_entries: int | None = ENTRIES,
        timeout: float | None = None,
    ) -> None:
        """Copy a file or a folder out of the sandbox; as `Files.copy_out`."""
        live = self._live()
        await copy_out(live, source, target, max_size=max_size, max_entries=max_entries, seconds=timeout)


__all__ = ["AsyncFiles"]
