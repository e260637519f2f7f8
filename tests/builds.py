"""What tests of builds share: trees that are nowhere on disk, and graphs from a few lines."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from sandboxlib.build import dockerfile, planner, stages
from sandboxlib.build.files import FILE, FOLDER, LINK, Node
from sandboxlib.build.graph import Graph, Stage
from sandboxlib.build.operations import FromImage
from sandboxlib.image.model import Config, ImageConfig, RootFS


class Tree:
    """
    A tree as a build sees it.

    Args:
        given: By path: bytes for a file, text for where a link leads, None for a folder, a node as it is.
    """

    def __init__(self, given: Mapping[str, bytes | str | Node | None]) -> None:
        self.nodes: dict[str, Node] = {"": Node(FOLDER)}
        self.contents: dict[str, bytes] = {}
        for path, what in given.items():
            parent = posixpath.dirname(path)
            while parent:
                self.nodes.setdefault(parent, Node(FOLDER))
                parent = posixpath.dirname(parent)
            if isinstance(what, bytes):
                self.contents[path] = what
                self.nodes[path] = Node(FILE, 0o644, size=len(what))
            elif isinstance(what, str):
                self.nodes[path] = Node(LINK, 0o777, target=what)
            else:
                self.nodes[path] = what if what is not None else Node(FOLDER)

    def look(self, path: str) -> Node | None:
        return self.nodes.get(path)

    def children(self, path: str) -> list[tuple[str, Node]]:
        return sorted(
            (each.rpartition("/")[2], node)
            for each, node in self.nodes.items()
            if each and each.rpartition("/")[0] == path
        )

    def read(self, path: str, node: Node) -> Iterator[bytes]:
        del node
        yield self.contents.get(path, b"")

    def digest(self, path: str, node: Node) -> str:
        return hashlib.sha256(self.contents.get(path, b"")).hexdigest() if node.kind == FILE else ""

    def attributes(self, path: str, node: Node) -> Mapping[bytes, bytes]:
        del path, node
        return {}


def image(**config: Any) -> ImageConfig:
    """The configuration of a base image."""
    return ImageConfig("amd64", "linux", RootFS("layers", ()), config=Config(**config))


def graph(
    text: str,
    bases: Mapping[str, ImageConfig] | None = None,
    *,
    epoch: int | None = None,
    **request: Any,
) -> Graph:
    """The graph of a Dockerfile; base images that are not given say nothing."""
    outline = stages.Outline(dockerfile.parse(text), stages.Request(**{"platform": "linux/amd64", **request}))
    known: dict[FromImage, tuple[str, ImageConfig]] = {}
    while missing := planner.missing(outline, known):
        for each in missing:
            known[each] = (f"sha256:{each.name}", (bases or {}).get(each.name, image()))
    return planner.plan(outline, known, epoch=epoch)


def last(text: str, bases: Mapping[str, ImageConfig] | None = None, **request: Any) -> Stage:
    """The stage that becomes the image."""
    found = graph(text, bases, **request)
    return found.stage(found.target)
