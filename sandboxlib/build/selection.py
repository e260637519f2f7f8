"""
Which files a COPY or ADD takes: its sources, with patterns, links and exclusions.

Pure: it asks a tree, and opens no file.

Spec: Dockerfile reference, "COPY", "Pattern matching", "COPY --parents", "COPY --exclude".
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

import msgspec

from sandboxlib.build.files import FILE, FOLDER, SOCKET, Files, Node, resolve
from sandboxlib.build.patterns import Ignore, State, cleaned, is_wild, literal, segment

#: Files of one COPY.
MOST = 2_000_000
_DEEPEST = 1000


class SelectionError(ValueError):
    """A source is not there, or cannot be taken."""


class Item(msgspec.Struct, frozen=True):
    """
    One file or folder that is taken.

    Attributes:
        path: In the tree that it is from.
        node: What it is.
        below: Where it goes below the destination; "" for the destination itself.
    """

    path: str
    node: Node
    below: str


class Taken(msgspec.Struct, frozen=True):
    """
    What one match of a source comes to.

    Attributes:
        name: The last part of what was matched, which a file is called in a folder.
        folder: It is one, and what is in it is taken.
        items: Folders before what is in them.
    """

    name: str
    folder: bool
    items: tuple[Item, ...]


def select(
    files: Files, path: str, *, exclude: Sequence[str] = (), parents: bool = False, pivot: int = 0
) -> list[Taken]:
    """
    Find what a source means.

    Args:
        files: Where it is.
        path: May be a pattern.
        exclude: Patterns of what is left out, from the top of each match.
        parents: Folders on the way come along: all goes below the destination as it lies there.
        pivot: Characters of *path* that are no part of what comes along.

    Raises:
        SelectionError: It is not there, nothing matches, or there are too many.
    """
    ignore = Ignore(cleaned(exclude))
    wild = is_wild(path)
    matches = list(_matches(files, path, deep=parents)) if wild else [_plain(files, path)]
    if not matches:
        raise SelectionError(f"nothing matches {path!r}")
    if parents:
        depth = path[:pivot].count("/")
        return [_with_parents(files, matches, depth, ignore)]
    every = (_taken(files, match, ignore, named=wild) for match in matches)
    return [taken for taken in every if taken is not None]


def _plain(files: Files, path: str) -> str:
    name = literal(path)
    if files.look(resolve(files, name)) is None:
        raise SelectionError(f"there is no {name!r}")
    return name


def _matches(files: Files, path: str, *, deep: bool) -> Iterator[str]:
    """What a pattern matches, part by part, in order; with *deep*, ``**`` is any number of folders."""

    def below(here: str, parts: Sequence[str]) -> Iterator[str]:
        if not parts:
            yield here
            return
        part, rest = parts[0], parts[1:]
        if deep and part == "**":
            yield from below(here, rest)
            for name, node in _children(files, here):
                if node.kind == FOLDER:
                    yield from below(posixpath.join(here, name), parts)
        elif not is_wild(part):
            child = posixpath.join(here, literal(part))
            if files.look(resolve(files, child)) is not None:
                yield from below(child, rest)
        else:
            pattern = segment(part)
            for name, _ in _children(files, here):
                if pattern.match(name):
                    yield from below(posixpath.join(here, name), rest)

    # Two ways of "**" may lead to the same.
    yield from dict.fromkeys(below("", path.split("/")))


def _children(files: Files, path: str) -> list[tuple[str, Node]]:
    real = resolve(files, path)
    node = files.look(real)
    if node is None or node.kind != FOLDER:
        return []
    return list(files.children(real))


def _taken(files: Files, match: str, ignore: Ignore, *, named: bool) -> Taken | None:
    real = resolve(files, match)
    node = files.look(real)
    if node is None:
        # A pattern matches links that lead nowhere as well.
        raise SelectionError(f"{match!r} is a symbolic link to nothing that is here")
    name = posixpath.basename(match)
    if (named or node.kind != FOLDER) and name and ignore.look(name)[0]:
        return None
    if node.kind == FOLDER:
        return Taken(name, True, tuple(_bounded(_inside(files, real, "", ignore, None))))
    if node.kind == SOCKET:
        raise SelectionError(f"{match!r} is a socket")
    return Taken(name, False, (Item(real, node, ""),))


class _Open(msgspec.Struct):
    """A folder that is being gone through; *held*: it is taken only if something in it is."""

    names: Iterator[tuple[str, Node]]
    path: str
    below: str
    state: State
    held: Item | None = None


def _inside(files: Files, top: str, below: str, ignore: Ignore, state: State) -> Iterator[Item]:
    """All that is in a folder, without sockets, which are of no use to anybody later."""
    ways = [_Open(iter(files.children(top)), top, below, state)]
    while ways:
        way = ways[-1]
        found = next(way.names, None)
        if found is None:
            ways.pop()
            continue
        name, node = found
        item = Item(posixpath.join(way.path, name), node, posixpath.join(way.below, name))
        out, inner = ignore.look(item.below, way.state)
        if node.kind == FOLDER:
            if out and not ignore.may_keep(item.below):
                continue
            if len(ways) > _DEEPEST:
                raise SelectionError(f"folders are nested more than {_DEEPEST} deep at {item.path[:100]!r}")
            ways.append(
                _Open(iter(files.children(item.path)), item.path, item.below, inner, item if out else None)
            )
        if out or node.kind == SOCKET:
            continue
        for each in ways:
            if each.held is not None:
                yield each.held
                each.held = None
        yield item


def _bounded(items: Iterator[Item]) -> Iterator[Item]:
    for count, item in enumerate(items, 1):
        if count > MOST:
            raise SelectionError(f"more than {MOST} files at once")
        yield item


def _with_parents(files: Files, matches: Sequence[str], depth: int, ignore: Ignore) -> Taken:
    """All matches with the folders on the way to them, below what stands before the pivot."""
    found: dict[str, Item] = {}
    for match in matches:
        parts = match.split("/")
        for count in range(depth + 1, len(parts)):
            above = resolve(files, "/".join(parts[:count]))
            node = files.look(above)
            if node is not None:
                below = "/".join(parts[depth:count])
                found.setdefault(below, Item(above, node, below))
        real = resolve(files, match)
        node = files.look(real)
        if node is None:
            raise SelectionError(f"{match!r} is a symbolic link to nothing that is here")
        below = "/".join(parts[depth:])
        if below and ignore.excludes(below) and not ignore.may_keep(below):
            continue
        if below:
            found[below] = Item(real, node, below)
        if node.kind == FOLDER:
            for item in _bounded(_inside(files, real, below, ignore, _state(ignore, below))):
                found[item.below] = item
    return Taken("", True, tuple(found[below] for below in sorted(found, key=lambda each: each.split("/"))))


def _state(ignore: Ignore, path: str) -> State:
    state: State = None
    parts = path.split("/") if path else []
    for count in range(1, len(parts) + 1):
        state = ignore.look("/".join(parts[:count]), state)[1]
    return state


def is_regular(taken: Taken) -> bool:
    """Is it one file, which may be an archive?"""
    return not taken.folder and taken.items[0].node.kind == FILE


__all__ = ["Item", "SelectionError", "Taken", "is_regular", "select"]
