"""
The layers below as one tree, in which links are followed as at a root, and lead nowhere else.

Kernel: path_resolution(7), symlink(7).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from typing import NamedTuple

from sandboxlib.image.folders import LONGEST_PATH, MOST_LINKS, Below


class Found(NamedTuple):
    """
    Where a path leads.

    Attributes:
        path: Without links in it, without a slash before it; what is missing of it is its end.
        state: What stands there; None where something is missing.
        missing: Paths of what is missing, parents first.
    """

    path: bytes
    state: os.stat_result | None
    missing: tuple[bytes, ...] = ()


class View:
    """
    The tree of the open folders *layers*, which are borrowed, the topmost first.

    Args:
        layers: Descriptors.
        marks: What the names of overlayfs's own attributes begin with.
    """

    def __init__(self, layers: Sequence[int], *marks: str) -> None:
        self._below = Below(layers, *marks)

    def look(self, path: bytes) -> os.stat_result | None:
        """What stands at a path without links; None where nothing does, or nobody may look."""
        try:
            found = self._below.find(path)
        except PermissionError:
            # A folder of a subordinate user's: what is in it is the business of whoever may look.
            return None
        if found is None:
            return None
        os.close(found[0])
        return found[1]

    def link(self, path: bytes) -> bytes:
        """The target of the link that stands at a path without links."""
        found = self._below.find(path)
        assert found is not None
        folder, _ = found
        try:
            return os.readlink(path.rpartition(b"/")[2], dir_fd=folder)
        finally:
            os.close(folder)

    def read(self, path: bytes, limit: int) -> bytes:
        """At most *limit* bytes of the file at *path*; none where there is no such file."""
        found = self.resolve(path)
        if found is None or found.state is None or not stat.S_ISREG(found.state.st_mode):
            return b""
        holder = self._below.find(found.path)
        assert holder is not None
        folder, _ = holder
        try:
            name = found.path.rpartition(b"/")[2]
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        with open(fd, "rb") as file:
            return file.read(limit)

    def resolve(self, path: bytes, made: Collection[bytes] = (), *, follow: bool = True) -> Found | None:
        """
        Where *path* leads; *made*: folders that there are besides.

        With *follow* a link at the end is followed, too. None: it leads through what is no folder, or in a
        circle.
        """
        here, links = b"", 0
        state: os.stat_result | None = None
        missing: list[bytes] = []
        todo = path.split(b"/")[::-1]
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                here, state = here.rpartition(b"/")[0], None
                missing = [each for each in missing if here == each or here.startswith(each + b"/")]
                continue
            here = here + b"/" + part if here else part
            if len(here) > LONGEST_PATH:
                return None
            state = None
            if missing or here in made:
                if here not in made:
                    missing.append(here)
                continue
            state = self.look(here)
            if state is None:
                missing.append(here)
                continue
            if stat.S_ISLNK(state.st_mode) and (todo or follow):
                links += 1
                if links > MOST_LINKS:
                    return None
                target = self.link(here)
                todo += target.split(b"/")[::-1]
                here = b"" if target.startswith(b"/") else here.rpartition(b"/")[0]
            elif any(each not in (b"", b".") for each in todo) and not stat.S_ISDIR(state.st_mode):
                return None
        return Found(here, state, tuple(missing))


__all__ = ["Found", "View"]
