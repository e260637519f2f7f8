"""
What a tree of files looks like to a build, whatever it is: a context, a stage, an image, a mapping.

Paths begin at the top of the tree, without a slash before them; "" is the top itself. Names that are
no UTF-8 are as `os.fsdecode` has them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import msgspec

FOLDER, FILE, LINK, FIFO, CHAR, BLOCK, SOCKET = "folder", "file", "link", "fifo", "char", "block", "socket"
#: Links that are followed on one way, as the kernel does.
_MOST_LINKS = 40


class Node(msgspec.Struct, frozen=True):
    """
    What is at a path.

    Attributes:
        kind: ``folder``, ``file``, ``link``, ``fifo``, ``char``, ``block`` or ``socket``.
        mode: Permissions, set-id bits among them.
        uid, gid: Its owner; 0 where that is of no account.
        size: Bytes of a file.
        mtime: When it was changed, in nanoseconds since 1970.
        target: Of a link.
        device: Of a device.
        same: What two names of one file have in common; None where it has but one.
    """

    kind: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    same: tuple[int, ...] | None = None


class Files(Protocol):
    """A tree. What it says of a path it says once and for all: another answer would be another build."""

    def look(self, path: str) -> Node | None:
        """What is there; links are not followed. None if it is nothing, or left out."""

    def children(self, path: str) -> Iterable[tuple[str, Node]]:
        """What is in a folder, by name, in order."""

    def read(self, path: str, node: Node) -> Iterator[bytes]:
        """The content of a file, in pieces: as many bytes as it was said to have. Raises: ChangedError."""

    def digest(self, path: str, node: Node) -> str:
        """What tells a file or a folder, with its extended attributes, from others; "" for a plain folder."""

    def attributes(self, path: str, node: Node) -> Mapping[bytes, bytes]:
        """Its extended attributes, as far as images have them."""


class LoopError(ValueError):
    """Links lead in a circle, or on and on."""


class ChangedError(ValueError):
    """A tree is not any more what it was a moment ago, or cannot be read."""


def resolve(files: Files, path: str, *, last: bool = True) -> str:
    """
    Follow the links of *path*, as if the tree were all that there is.

    Args:
        files: The tree.
        path: Need not be there: what is missing is kept as it stands.
        last: The last part too.

    Returns:
        The path without links in it.

    Raises:
        LoopError: Links lead in a circle.
    """
    waiting = [part for part in path.split("/") if part not in {"", "."}][::-1]
    found: list[str] = []
    links = 0
    while waiting:
        part = waiting.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            # Above the top is the top.
            del found[-1:]
            continue
        here = posixpath.join(*found, part)
        node = files.look(here) if waiting or last else None
        if node is None or node.kind != LINK:
            found.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise LoopError(f"the symbolic links at {path!r} lead in a circle")
        if node.target.startswith("/"):
            found.clear()
        waiting += node.target.split("/")[::-1]
    return "/".join(found)


class Empty:
    """No files at all."""

    def look(self, path: str) -> Node | None:
        """The top alone."""
        return None if path else Node(FOLDER)

    def children(self, path: str) -> Iterable[tuple[str, Node]]:
        """None."""
        del path
        return ()

    def read(self, path: str, node: Node) -> Iterator[bytes]:
        """Nothing is there."""
        del node
        raise ChangedError(f"there is no {path!r}")

    def digest(self, path: str, node: Node) -> str:
        """Nothing is there."""
        del path, node
        return ""

    def attributes(self, path: str, node: Node) -> Mapping[bytes, bytes]:
        """None."""
        del path, node
        return {}


__all__ = [
    "BLOCK",
    "CHAR",
    "FIFO",
    "FILE",
    "FOLDER",
    "LINK",
    "SOCKET",
    "ChangedError",
    "Empty",
    "Files",
    "LoopError",
    "Node",
    "resolve",
]
