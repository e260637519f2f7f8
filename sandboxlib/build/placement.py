"""
Where the files of a COPY or ADD go, and what has to be made for that: the entries of a layer.

Pure: it asks the trees, and makes nothing.

Spec: Dockerfile reference, "COPY", "Destination", "COPY --chown", "COPY --chmod"; where it is silent,
BuildKit and buildah, which agree.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

import msgspec

from sandboxlib.build.files import FOLDER, LINK, Empty, Files, LoopError, Node, resolve
from sandboxlib.build.modes import Change
from sandboxlib.build.selection import Taken

#: What a name must not begin with in a layer: there it would remove files.
WHITEOUT = ".wh."
_LONGEST_PATH, _LONGEST_NAME = 4095, 255


class PlacementError(ValueError):
    """The files cannot go where they are to."""


class Entry(msgspec.Struct, frozen=True):
    """
    One entry of the layer.

    Attributes:
        path: Where, from the top, without a slash before it.
        node: What is made, with its mode and its owner there.
        files: The tree that it is from, or None for a folder that only has to be there.
        source: The path in that.
        hardlink: The path of an entry that is the same file; "" if it is one on its own.
    """

    path: str
    node: Node
    files: Files | None = None
    source: str = ""
    hardlink: str = ""


class Owner(msgspec.Struct, frozen=True):
    """Whose files become. Attributes: uid, gid."""

    uid: int = 0
    gid: int = 0


class Placement:
    """
    The entries of one layer, while sources are put in one after the other.

    Args:
        state: What is there before; nothing for ``--link``.
        destination: Absolute; ends with a slash where it has to be a folder.
        owner: Whose files become; None where they keep their own.
        change: What their modes become; None where they keep their own.
        now: The time of folders that have to be made, in nanoseconds.
        time: That of all that is put in; None where it keeps its own.

    Raises:
        PlacementError: The destination cannot be.
    """

    def __init__(
        self,
        state: Files | None,
        destination: str,
        *,
        owner: Owner | None,
        change: Change | None,
        now: int,
        time: int | None = None,
    ) -> None:
        self._state = state if state is not None else Empty()
        self._made: dict[str, Entry] = {}
        self._view = _View(self._state, self._made)
        self._change = change
        self._owner = owner
        self._now = now
        self._time = time
        # Where a folder really is, as long as no link has come in between.
        self._tops: dict[str, str] = {}
        self._folder = destination.endswith("/")
        self._destination = self._resolved(destination)

    def put(self, files: Files, taken: Sequence[Taken], *, several: bool) -> None:
        """
        Put what a source comes to in.

        Args:
            files: The tree that it is from.
            taken: What was selected.
            several: It is not the only source, so the destination has to be a folder.

        Raises:
            PlacementError: A folder would be a file, or a file a folder, or the like.
        """
        several = several or len(taken) > 1
        for each in taken:
            if each.folder:
                self._put_folder(files, each)
            else:
                self.put_file(each.name, files, each.items[0].path, each.items[0].node, several=several)

    def _put_folder(self, files: Files, taken: Taken) -> None:
        self.make_folder(self._destination)
        for item in taken.items:
            parent, _, name = item.below.rpartition("/")
            top = self._tops.get(parent)
            if top is None:
                # A link to a folder leads there, as for tar -x.
                top = self._resolved(posixpath.join(self._destination, parent))
                self.make_folder(top)
                self._tops[parent] = top
            self._put(posixpath.join(top, name), item.node, files, item.path)

    def put_file(self, name: str, files: Files, source: str, node: Node, *, several: bool) -> None:
        """
        Put in one file.

        Args:
            name: What it is called in a folder.
            files: The tree that it is from.
            source: Its path there.
            node: What it is.
            several: As for `put`.

        Raises:
            PlacementError: A folder is in its place, or it needs one.
        """
        there = self._view.look(self._destination)
        path = self._destination
        if self._folder or (there is not None and there.kind == FOLDER):
            path = posixpath.join(path, name)
            if not name:
                raise PlacementError("the file has no name: write one as the destination")
        elif several:
            raise PlacementError(
                f"several files need a folder as the destination: /{path}/, with a slash at its end"
            )
        self.make_folder(posixpath.dirname(path))
        self._put(path, node, files, source)

    def _resolved(self, path: str) -> str:
        try:
            return resolve(self._view, path)
        except LoopError as error:
            raise PlacementError(str(error)) from None

    def make_folder(self, path: str) -> None:
        """
        Have a folder there, with those above it.

        What is there stays as it is, and comes along in the layer: a reader that unpacks it alone
        would else make it up.

        Raises:
            PlacementError: Something else is there.
        """
        missing: list[str] = []
        while path and not (path in self._made and self._made[path].node.kind == FOLDER):
            missing.append(path)
            path = posixpath.dirname(path)
        for each in reversed(missing):
            there = self._view.look(each)
            if there is None:
                owner = self._owner or Owner()
                self._add(Entry(each, Node(FOLDER, 0o755, owner.uid, owner.gid, mtime=self._now)))
            elif there.kind != FOLDER:
                raise PlacementError(f"/{each} is a {there.kind}, and has to be a folder")
            else:
                self._add(Entry(each, there, self._state, each))

    def _put(self, path: str, node: Node, files: Files, source: str) -> None:
        there = self._view.look(path)
        if node.kind == FOLDER:
            if there is not None and there.kind == LINK:
                real = self._resolved(path)
                target = self._view.look(real)
                if target is not None and target.kind == FOLDER:
                    self.make_folder(real)
                    return
            if there is not None and there.kind != FOLDER:
                raise PlacementError(f"/{path} is a {there.kind}, and a folder cannot take its place")
        elif there is not None and there.kind == FOLDER:
            raise PlacementError(f"/{path} is a folder, and a {node.kind} cannot take its place")
        self._add(Entry(path, self._dressed(node), files, source))

    def _dressed(self, node: Node) -> Node:
        uid, gid = (node.uid, node.gid) if self._owner is None else (self._owner.uid, self._owner.gid)
        mode = node.mode
        if self._change is not None and node.kind != LINK:
            mode = self._change(mode, node.kind == FOLDER) & 0o7777
        time = node.mtime if self._time is None else self._time
        return msgspec.structs.replace(node, mode=mode, uid=uid, gid=gid, mtime=time)

    def _add(self, entry: Entry) -> None:
        name = posixpath.basename(entry.path)
        if name.startswith(WHITEOUT):
            raise PlacementError(f"/{entry.path}: a layer cannot hold a name that begins with {WHITEOUT}")
        if len(entry.path.encode("utf-8", "surrogateescape")) > _LONGEST_PATH:
            raise PlacementError(f"a path of more than {_LONGEST_PATH} bytes: /{entry.path[:100]}…")
        if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
            raise PlacementError(f"a name of more than {_LONGEST_NAME} bytes: {name[:100]}…")
        if entry.node.kind in {"char", "block"} and entry.files is not self._state:
            raise PlacementError(f"{entry.source}: a device is not copied")
        if entry.node.kind == LINK:
            self._tops.clear()
        self._made[entry.path] = entry

    def entries(self) -> Iterator[Entry]:
        """All of them, folders before what is in them; names of one file as links to the first."""
        first: dict[tuple[object, ...], str] = {}
        for path in sorted(self._made, key=lambda each: each.split("/")):
            entry = self._made[path]
            if entry.node.same is not None and entry.node.kind != FOLDER:
                known = first.setdefault((id(entry.files), *entry.node.same), path)
                if known != path:
                    yield msgspec.structs.replace(entry, hardlink=known)
                    continue
            yield entry


class _View(Empty):
    """The tree as it is with what was put in."""

    def __init__(self, state: Files, made: dict[str, Entry]) -> None:
        self._state = state
        self._made = made

    def look(self, path: str) -> Node | None:
        entry = self._made.get(path)
        return entry.node if entry is not None else self._state.look(path)


__all__ = ["WHITEOUT", "Entry", "Owner", "Placement", "PlacementError"]
