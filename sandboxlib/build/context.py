"""
The files that are given to a build: a folder, or a mapping from names to contents.

A folder may change while it is read, by whoever can write there: nothing is opened by a path that
could lead out of it, nothing is waited for, and what is not what it was said to be is an error.

Kernel: openat2(2), Linux 5.6.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import final

from sandboxlib.build.files import (
    BLOCK,
    CHAR,
    FIFO,
    FILE,
    FOLDER,
    LINK,
    SOCKET,
    ChangedError,
    Empty,
    Node,
)
from sandboxlib.build.hashes import Hashes, Stamp
from sandboxlib.build.patterns import Ignore, State
from sandboxlib.errors import SpecError
from sandboxlib.kernel.files import openat2

_KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: FOLDER,
    stat.S_IFLNK: LINK,
    stat.S_IFIFO: FIFO,
    stat.S_IFCHR: CHAR,
    stat.S_IFBLK: BLOCK,
    stat.S_IFSOCK: SOCKET,
}
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG)
_PIECE = 1 << 20
#: Attributes that are a file's own and mean something elsewhere.
_OWN = (b"user.", b"security.capability")


def node_of(found: os.stat_result, target: str = "") -> Node:
    """What stat(2) says, as a build sees it."""
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), SOCKET)
    return Node(
        kind,
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_size if kind == FILE else 0,
        found.st_mtime_ns,
        target,
        (os.major(found.st_rdev), os.minor(found.st_rdev)) if kind in {CHAR, BLOCK} else (0, 0),
        (found.st_dev, found.st_ino) if found.st_nlink > 1 and kind != FOLDER else None,
    )


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@final
class FolderFiles:
    """
    The files of a folder, as far as nothing says that they are left out.

    Their owners do not count: they are of this machine.

    Args:
        folder: Its descriptor; owned, see `close`.
        ignore: What is left out.
        hashes: What the files hold.
    """

    def __init__(self, folder: int, ignore: Ignore, hashes: Hashes) -> None:
        self._top = folder
        self._ignore = ignore
        self._hashes = hashes
        self._nodes: dict[str, tuple[Node, Stamp] | None] = {}
        self._children: dict[str, tuple[tuple[str, Node], ...]] = {}
        self._states: dict[str, tuple[bool, State]] = {"": (False, None)}

    def close(self) -> None:
        """Close the folder. Idempotent."""
        if self._top >= 0:
            os.close(self._top)
            self._top = -1

    # ---- what is there ---------------------------------------------------------------------

    def look(self, path: str) -> Node | None:
        """What is there; None if it is nothing, or left out."""
        if path not in self._nodes:
            self._nodes[path] = self._found(path)
        found = self._nodes[path]
        return None if found is None else found[0]

    def _found(self, path: str) -> tuple[Node, Stamp] | None:
        parent, _, name = path.rpartition("/")
        if not path:
            state = os.fstat(self._top)
            return node_of(state), _stamp(state)
        if parent in self._children:
            # All of it has been listed, and this was not among it.
            return None
        out = self._left_out(path)
        if out and not self._ignore.may_keep(path):
            return None
        with contextlib.suppress(_Gone):
            fd = self._folder(parent)
            try:
                return self._entry(fd, name, path, out=out)
            finally:
                os.close(fd)
        return None

    def _entry(self, fd: int, name: str, path: str, *, out: bool) -> tuple[Node, Stamp] | None:
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(found.st_mode) else ""
        except OSError as error:
            if error.errno in (*_NOT_THERE, errno.EINVAL):
                return None
            raise ChangedError(f"{path!r} cannot be looked at: {os.strerror(error.errno or 0)}") from None
        if out and not (stat.S_ISDIR(found.st_mode) and self.children(path)):
            return None
        return node_of(found, target), _stamp(found)

    def _left_out(self, path: str) -> bool:
        return self._state(path)[0] if self._ignore else False

    def _state(self, path: str) -> tuple[bool, State]:
        known = self._states.get(path)
        if known is None:
            out, above = self._state(posixpath.dirname(path))
            known = self._ignore.look(path, above)
            if out and not self._ignore.may_keep(path) and known[1] is None:
                known = True, None
            self._states[path] = known
        return known

    def _folder(self, path: str) -> int:
        try:
            return openat2(self._top, os.fsencode(path) or b".", os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise _Gone from None
            raise ChangedError(f"{path!r} cannot be listed: {os.strerror(error.errno or 0)}") from None

    def children(self, path: str) -> tuple[tuple[str, Node], ...]:
        """What is in a folder, by name, in order."""
        known = self._children.get(path)
        if known is None:
            known = self._children[path] = tuple(self._listed(path))
        return known

    def _listed(self, path: str) -> Iterator[tuple[str, Node]]:
        try:
            fd = self._folder(path)
        except _Gone:
            raise ChangedError(f"{path!r} was a folder, and is none any more") from None
        try:
            names = sorted(entry.name for entry in os.scandir(fd))
            for name in names:
                below = f"{path}/{name}" if path else name
                out = self._left_out(below)
                if out and not self._ignore.may_keep(below):
                    continue
                found = self._nodes.get(below)
                if found is None:
                    found = self._nodes[below] = self._entry(fd, name, below, out=out)
                if found is not None:
                    yield name, found[0]
        finally:
            os.close(fd)

    # ---- what is in it ---------------------------------------------------------------------

    def read(self, path: str, node: Node) -> Iterator[bytes]:
        """The content of a file, in pieces. Raises: ChangedError: It is not what it was."""
        fd = self._opened(path)
        try:
            left = node.size
            while left:
                piece = os.read(fd, min(left, _PIECE))
                if not piece:
                    break
                left -= len(piece)
                yield piece
            self._check(path, fd)
        finally:
            os.close(fd)

    def digest(self, path: str, node: Node) -> str:
        """What tells it from others."""
        if node.kind == FOLDER:
            extra = _encoded(self.attributes(path, node))
            return hashlib.sha256(extra).hexdigest() if extra else ""
        found = self._nodes[path]
        assert found is not None
        known = self._hashes.get(found[1])
        if known is None:
            fd = self._opened(path)
            try:
                known = self._hashes.take(fd, _encoded(_attributes(fd)))
                self._check(path, fd)
            finally:
                os.close(fd)
            self._hashes.put(found[1], known)
        return known

    def attributes(self, path: str, node: Node) -> Mapping[bytes, bytes]:
        """Its extended attributes, as far as they mean something elsewhere."""
        if node.kind == FILE:
            fd = self._opened(path)
        elif node.kind == FOLDER:
            try:
                fd = self._folder(path)
            except _Gone:
                raise ChangedError(f"{path!r} is not there any more") from None
        else:
            return {}
        try:
            return _attributes(fd)
        finally:
            os.close(fd)

    def _opened(self, path: str) -> int:
        try:
            # Not blocking: should a FIFO have come in its place.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
            fd = openat2(self._top, os.fsencode(path), flags)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise ChangedError(f"{path!r} is not there any more") from None
            raise ChangedError(f"{path!r} cannot be read: {os.strerror(error.errno or 0)}") from None
        try:
            self._check(path, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check(self, path: str, fd: int) -> None:
        known = self._nodes.get(path)
        if known is None or _stamp(os.fstat(fd)) != known[1]:
            raise ChangedError(f"{path!r} was changed while the build read it")


class _Gone(Exception):  # noqa: N818 - no error: it is answered here
    """A folder is not there."""


def _attributes(fd: int) -> dict[bytes, bytes]:
    try:
        names = [os.fsencode(name) for name in os.listxattr(fd)]
        return {name: os.getxattr(fd, name) for name in sorted(names) if name.startswith(_OWN)}
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA):
            return {}
        raise


def _encoded(values: Mapping[bytes, bytes]) -> bytes:
    return b"".join(
        len(part).to_bytes(8, "little") + part for pair in sorted(values.items()) for part in pair
    )


@final
class MappingFiles(Empty):
    """
    Files that are nowhere on disk.

    Args:
        given: Contents by path; text is UTF-8. A path that ends with a slash is an empty folder.
        ignore: What is left out.
        now: The time of all of it, in nanoseconds.
        field: What errors call it.

    Raises:
        SpecError: A path leads out of it, is there as a file and as a folder, or a content is none.
    """

    def __init__(
        self, given: Mapping[str, bytes | str], ignore: Ignore, *, now: int = 0, field: str = "context"
    ) -> None:
        self._content: dict[str, bytes] = {}
        self._nodes: dict[str, Node] = {"": Node(FOLDER, mtime=now)}
        folders: dict[str, None] = {"": None}
        for name, content in given.items():
            path = _checked(name, field)
            if not isinstance(content, (bytes, str)):
                raise SpecError(field, content, f"bytes or text for {name!r}")
            if not name.endswith("/"):
                self._content[path] = content.encode() if isinstance(content, str) else bytes(content)
            parts = path.split("/")
            for count in range(1, len(parts) + name.endswith("/")):
                folders.setdefault("/".join(parts[:count]))
        for path in folders:
            if path in self._content:
                raise SpecError(field, path, "a file or a folder, not both")
        every = dict.fromkeys(folders, Node(FOLDER, mtime=now))
        every |= {path: Node(FILE, 0o644, size=len(raw), mtime=now) for path, raw in self._content.items()}
        kept = {path for path in every if path and not ignore.excludes(path)}
        for path in kept:
            while path:
                self._nodes[path] = every[path]
                path = posixpath.dirname(path)  # noqa: PLW2901 - up to the top
        self._children: dict[str, list[tuple[str, Node]]] = {}
        for path in sorted(self._nodes):
            if path:
                parent, _, name = path.rpartition("/")
                self._children.setdefault(parent, []).append((name, self._nodes[path]))

    def look(self, path: str) -> Node | None:
        """What is there."""
        return self._nodes.get(path)

    def children(self, path: str) -> Iterable[tuple[str, Node]]:
        """What is in a folder."""
        return sorted(self._children.get(path, ()))

    def read(self, path: str, node: Node) -> Iterator[bytes]:
        """The content of a file."""
        del node
        yield self._content[path]

    def digest(self, path: str, node: Node) -> str:
        """What tells a file from others."""
        return hashlib.sha256(self._content[path]).hexdigest() if node.kind == FILE else ""

    def close(self) -> None:
        """Nothing is open."""


def _checked(name: object, field: str) -> str:
    if not isinstance(name, str) or not name or "\0" in name:
        raise SpecError(field, name, "paths that are text, without a zero byte")
    path = posixpath.normpath(name)
    if path.startswith(("/", "../")) or path in {".", ".."}:
        raise SpecError(field, name, "paths below the top of the context, such as 'src/main.py'")
    return path


__all__ = ["FolderFiles", "MappingFiles", "node_of"]
