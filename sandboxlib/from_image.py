"""The verbs of a sandbox that are about its image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from sandboxlib.bounds import COPIED, ENTRIES
from sandboxlib.doors import doors
from sandboxlib.engine.waiter import complete

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.images import Image


@doors
class FromImage:
    """A part of `sandboxlib.Sandbox`."""

    def _live(self) -> Engine:
        raise NotImplementedError

    @property
    def image(self) -> Image | None:
        """The image that it began with; None without one."""
        held = self._live().held
        if held is None:
            return None
        from sandboxlib.images import Image

        return Image.get(held.image.digest)

    def commit(
        self,
        name: str,
        *,
        message: str = "",
        author: str = "",
        config: Mapping[str, Any] | None = None,
        created: str | None = None,
        max_size: int | str | None = COPIED,
        max_entries: int | None = ENTRIES,
        timeout: float | None = None,
    ) -> Image:
        """
        Make an image: its own, and one layer more with exactly what has changed.

        It is paused meanwhile. What lies in mounts and in the image's volumes is left out.

        Args:
            name: What the image is to be called.
            message: Why; the history has it.
            author: Who.
            config: What is to be different in its configuration: ``{"Cmd": ["run"]}``.
            created: When, as RFC 3339 has it. The same changes at the same time are the same to the byte.
            max_size: How many bytes of data there may be, with holes, which a layer has as zeros.
            max_entries: How many files, folders and links there may be.
            timeout: Seconds.

        Raises:
            UnsupportedError: It did not begin with an image.
            SpecError: An argument makes no sense.
            TooLargeError: There is more than *max_size* or *max_entries* lets in.
            TimeoutExpired: *timeout* seconds have passed; there is no image then.
        """
        from sandboxlib.engine.commit import Most, commit
        from sandboxlib.images import Image

        options = {"message": message, "author": author, "config": config, "created": created}
        most = Most(max_size, max_entries, timeout)
        return Image.of(complete(commit(self._live(), name, **options, most=most)))

    def export(
        self,
        target: str | os.PathLike[str] | IO[bytes],
        *,
        max_size: int | str | None = COPIED,
        max_entries: int | None = ENTRIES,
        timeout: float | None = None,
    ) -> None:
        """
        Write its file tree, without what is mounted in it, as a plain tar to a path or an open file.

        Holes of 1 MiB or more in a file stay holes, in GNU tar's format 1.0, which others read too.

        Args:
            target: Where to.
            max_size: How many bytes of data there may be, without the holes.
            max_entries: How many files, folders and links there may be.
            timeout: Seconds.

        Raises:
            SpecError: An argument makes no sense.
            TooLargeError: There is more than *max_size* or *max_entries* lets in.
            TimeoutExpired: *timeout* seconds have passed.
        """
        from sandboxlib.engine.commit import Most, export

        complete(export(self._live(), target, Most(max_size, max_entries, timeout)))


__all__ = ["FromImage"]
