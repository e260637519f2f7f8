"""The trio face of a sandbox's files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandboxlib.engine import copy, files
from sandboxlib.files import Path

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine


class AsyncFiles:
    """
    Files inside a live sandbox; the attribute ``files`` of an `AsyncSandbox`.

    The methods are those of `Files`, awaited; see there.
    """

    def __init__(self, live: Callable[[], Engine]) -> None:
        self._live = live

    async def read(self, path: Path) -> bytes:
        """Return the content of a file; as `Files.read`."""
        return await files.read(self._live(), path)

    async def read_text(self, path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content of a file as text; line ends stay as they are."""
        return (await self.read(path)).decode(encoding, errors)

    async def write(self, path: Path, data: bytes | str, *, mode: int = 0o644, parents: bool = False) -> None:
        """Write a file, in place of what it held; as `Files.write`."""
        await files.write(self._live(), path, data, mode=mode, parents=parents)

    async def list(self, path: Path = ".") -> list[str]:
        """Return the names in a folder, sorted."""
        return await files.names(self._live(), path)

    async def stat(self, path: Path, *, follow: bool = True) -> os.stat_result:
        """Look at a file as one would from inside; as `Files.stat`."""
        return await files.stat(self._live(), path, follow=follow)

    async def exists(self, path: Path) -> bool:
        """Tell whether there is something; a link that leads nowhere is nothing."""
        return await files.exists(self._live(), path)

    async def mkdir(
        self, path: Path, mode: int = 0o755, *, parents: bool = False, exist_ok: bool = False
    ) -> None:
        """Make a folder; as `Files.mkdir`."""
        await files.mkdir(self._live(), path, mode, parents=parents, exist_ok=exist_ok)

    async def remove(self, path: Path, *, recursive: bool = False) -> None:
        """Remove a file, a link itself, or a folder; as `Files.remove`."""
        await files.remove(self._live(), path, recursive=recursive)

    async def rename(self, old: Path, new: Path) -> None:
        """Give another name; what has it is replaced, as the kernel does it."""
        await files.rename(self._live(), old, new)

    async def copy_in(self, source: Path, target: Path) -> None:
        """Copy a file or a folder into the sandbox; as `Files.copy_in`."""
        await copy.copy_in(self._live(), source, target)

    async def copy_out(self, source: Path, target: Path) -> None:
        """Copy a file or a folder out of the sandbox; as `Files.copy_out`."""
        await copy.copy_out(self._live(), source, target)


__all__ = ["AsyncFiles"]
