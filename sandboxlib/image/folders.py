"""
The folders of one layer, as they stand on those of the layers below.

An entry ``lib/x`` of a layer may come to lie in ``usr/lib`` because ``lib`` is a link in a layer
below, and a folder that is in no entry may be one below with a mode and an owner of its own.
Names are resolved here, part by part, and links end at the layer's root as they do at a real one;
what comes out is a path without links, which is opened by openat2(2) so that none can be met.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence

from sandboxlib.errors import ImageError, ViolationError
from sandboxlib.image import attributes
from sandboxlib.image.tarstream import shown
from sandboxlib.kernel.files import openat2
from sandboxlib.kernel.syscall import failed

#: PATH_MAX and NAME_MAX, without and with the zero at the end: limits.h.
LONGEST_PATH = 4095
LONGEST_NAME = 255
MOST_LINKS = 40  # as the kernel: path_resolution(7)
_OPEN = 32
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_whiteout(found: os.stat_result) -> bool:
    """Does this hide what is below it? Kernel: overlayfs.rst, "whiteouts and opaque directories"."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def look(folder: int, name: bytes) -> os.stat_result | None:
    """What stands in an open folder, or None."""
    try:
        return os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return None


class OpenFolders:
    """Folders below *root*, which is borrowed, by paths without links; a few are kept open."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def __getitem__(self, path: bytes) -> int:
        """A descriptor, borrowed until the next call."""
        if not path:
            return self._root
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        fd = openat2(self._root, path, os.O_PATH | os.O_DIRECTORY)
        self._open[path] = fd
        if len(self._open) > _OPEN:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def close(self) -> None:
        """Close all."""
        while self._open:
            os.close(self._open.popitem()[1])


class Below:
    """
    The layers below, topmost first, as an overlay of them would show them.

    Attributes:
        used: Something was found there, so that the tree depends on them.
        top: The topmost, or -1.
    """

    def __init__(self, layers: Sequence[int], *marks: str) -> None:
        self._layers = layers
        self.top = layers[0] if layers else -1
        self._opaque = [f"{each}opaque" for each in marks]
        self.used = False

    def find(self, path: bytes) -> tuple[int, os.stat_result] | None:
        """An open folder, which the caller closes, with what stands at *path*; no link is followed."""
        parts = path.split(b"/")
        for layer in self._layers:
            found, last = self._in_layer(layer, parts)
            if found is not None:
                self.used = True
                return found
            if last:
                break
        return None

    def names(self) -> list[bytes]:
        """All names at the root."""
        found: set[bytes] = set()
        for layer in self._layers:
            fd = os.open(b".", _LISTED, dir_fd=layer)
            try:
                found.update(map(os.fsencode, os.listdir(fd)))
            finally:
                os.close(fd)
        self.used = self.used or bool(found)
        return sorted(found)

    def _in_layer(self, layer: int, parts: list[bytes]) -> tuple[tuple[int, os.stat_result] | None, bool]:
        """Look into one layer: what stands there, in its folder; and whether it hides those below."""
        fd = os.open(b".", _FOLDER, dir_fd=layer)
        hides = False
        try:
            for number, part in enumerate(parts):
                found = look(fd, part)
                if found is None:
                    break
                last = number == len(parts) - 1
                if is_whiteout(found) or not (last or stat.S_ISDIR(found.st_mode)):
                    hides = True
                    break
                if last:
                    given, fd = fd, -1
                    return (given, found), True
                above, fd = fd, os.open(part, _FOLDER, dir_fd=fd)
                os.close(above)
                hides = hides or self._is_opaque(fd)
            return None, hides
        finally:
            if fd >= 0:
                os.close(fd)

    def _is_opaque(self, fd: int) -> bool:
        path = attributes.path_of(fd, b".")
        return any(_value(path, mark) == b"y" for mark in self._opaque)


def _value(path: bytes, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


class Folder:
    """What a folder is to become at the end: its mode and time."""

    __slots__ = ("mode", "mtime")

    def __init__(self, mode: int, mtime: int) -> None:
        self.mode = mode
        self.mtime = mtime


class Folders:
    """
    The folders of the layer that is being made.

    Attributes:
        fds: They, open.
        made: By path, what they become at the end.
        opaque: Paths of those that hide what is below.
        now: The time of folders that no entry names.
        first: The time of the first entry; None before there is one.
    """

    def __init__(self, root: int, lowers: Sequence[int], marks: str, *, chown: bool) -> None:
        self.fds = OpenFolders(root)
        self.below = Below(lowers, marks)
        self.made: dict[bytes, Folder] = {}
        self.opaque: set[bytes] = set()
        self.now = 0
        self.first: int | None = None
        self._chown = chown
        self._mark = f"{marks}opaque"
        self._known: dict[bytes, bytes] = {b"": b""}
        self._white: list[bytes] = []

    def path_of(self, name: bytes) -> bytes:
        """
        The path without links of the folder that *name* means; it is made where it is missing.

        Raises:
            ImageError: Something that is no folder stands there.
            ViolationError: Links that lead in a circle, or to a path that is too long.
        """
        known = self._known.get(name)
        if known is not None:
            return known
        path, links = b"", 0
        todo = name.split(b"/")[::-1]
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                path = path.rpartition(b"/")[0]
                continue
            below = path + b"/" + part if path else part
            if len(below) > LONGEST_PATH:
                raise ViolationError(f"a path of more than {LONGEST_PATH} bytes", shown(name))
            if below in self.made:
                path = below
                continue
            target = self._step(path, part, below)
            if target is None:
                path = below
                continue
            links += 1
            if links > MOST_LINKS:
                raise ViolationError("symbolic links that lead in a circle", shown(name))
            todo += target.split(b"/")[::-1]
            if target.startswith(b"/"):
                path = b""
        self._known[name] = path
        return path

    def _step(self, parent: bytes, part: bytes, path: bytes) -> bytes | None:
        """Go into one folder, making it if it is missing; where a link stands, its target."""
        fd = self.fds[parent]
        found = look(fd, part)
        if found is not None and not is_whiteout(found):
            if stat.S_ISLNK(found.st_mode):
                return os.readlink(part, dir_fd=fd)
            if stat.S_ISDIR(found.st_mode):
                self.made[path] = Folder(stat.S_IMODE(found.st_mode), self.now)
                return None
            raise ImageError(f"{shown(path)}: not a folder, and something is to be in it")
        beneath = None if found is not None else self.find_below(path)
        if beneath is None:
            self.make(parent, part, path, hides=found is not None)
            return None
        lower, state = beneath
        try:
            if stat.S_ISLNK(state.st_mode):
                return os.readlink(part, dir_fd=lower)
            self.make(parent, part, path, hides=False)
            if stat.S_ISDIR(state.st_mode):
                self.made[path] = Folder(stat.S_IMODE(state.st_mode), state.st_mtime_ns)
                if self._chown:
                    os.chown(part, state.st_uid, state.st_gid, dir_fd=fd, follow_symlinks=False)
                for name, value in attributes.read_all(attributes.path_of(lower, part)).items():
                    os.setxattr(attributes.path_of(fd, part), name, value, follow_symlinks=False)
            return None
        finally:
            os.close(lower)

    def find_below(self, path: bytes) -> tuple[int, os.stat_result] | None:
        """What the layers below show through at *path*, see `Below.find`."""
        if self.opaque and self._is_hidden(path):
            return None
        return self.below.find(path)

    def make(self, parent: bytes, part: bytes, path: bytes, *, hides: bool) -> None:
        """Make a folder; *hides*: in place of what this layer has had there, even if only a whiteout."""
        fd = self.fds[parent]
        if hides:
            os.unlink(part, dir_fd=fd)
        # Open to its owner until the end, whatever its mode.
        os.mkdir(part, 0o700, dir_fd=fd)
        if self._chown:
            os.chown(part, 0, 0, dir_fd=fd, follow_symlinks=False)
        self.made[path] = Folder(0o755, self.now)
        if hides:
            self.hide(path)

    def white_out(self, parent: bytes, name: bytes, path: bytes, *, useful: bool) -> None:
        """
        Hide what the layers below have at *path*; *useful*: if they have something.

        A whiteout of nothing shows: in a folder that has nothing below it to be merged with overlayfs lists
        it, as a name that nobody can open.
        """
        if useful:
            below = self.find_below(path)
            if below is None:
                return
            os.close(below[0])
            self._white.append(path)
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=self.fds[parent])

    def _forget_whiteouts(self) -> None:
        """Remove those whose folder has come to hide all that is below since they were made."""
        for path in self._white if self.opaque else ():
            parent, _, name = path.rpartition(b"/")
            if self._is_hidden(path) and parent in self.made:
                found = look(self.fds[parent], name)
                if found is not None and is_whiteout(found):
                    os.unlink(name, dir_fd=self.fds[parent])

    def _is_hidden(self, path: bytes) -> bool:
        """Does a folder of this layer hide what is below *path*?"""
        parts = path.split(b"/")
        return any(b"/".join(parts[:count]) in self.opaque for count in range(len(parts)))

    def hide(self, path: bytes) -> None:
        """Make the folder *path* hide what is below it."""
        if path in self.opaque:
            return
        try:
            os.setxattr(attributes.path_of(self.fds[path], b"."), self._mark, b"y")
        except OSError as error:
            call = f'setxattr("{shown(path)}", "{self._mark}", "y")'
            hint = "the store has to be on a file system with extended attributes of this kind"
            raise failed(error, call, "hide what is below a folder", hint) from None
        self.opaque.add(path)

    def _hide_all(self) -> None:
        """Hide all that is below, name by name: at the root of a layer overlayfs heeds no mark."""
        for name in self.below.names():
            found = look(self.fds[b""], name)
            if found is None:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=self.fds[b""])
            elif stat.S_ISDIR(found.st_mode):
                self.hide(name)

    def forget(self, path: bytes) -> None:
        """The folder *path* is gone."""
        self.made.pop(path, None)
        self.opaque.discard(path)

    def changed(self) -> None:
        """A folder or a link is gone: names may mean something else now."""
        self._known = {b"": b""}
        self.fds.close()

    def _root(self) -> None:
        """Where no entry names it, the root is the one of the layer below."""
        if b"" in self.made:
            return
        top = self.below.top
        if top < 0:
            self.made[b""] = Folder(0o755, self.first or 0)
            return
        state = os.fstat(top)
        self.made[b""] = Folder(stat.S_IMODE(state.st_mode), state.st_mtime_ns)
        if self._chown:
            os.chown(b".", state.st_uid, state.st_gid, dir_fd=self.fds[b""])
        for name, value in attributes.read_all(attributes.path_of(top, b".")).items():
            os.setxattr(attributes.path_of(self.fds[b""], b"."), name, value)

    def finish(self) -> None:
        """Give all folders their modes and times, the deepest first."""
        self._root()
        self._forget_whiteouts()
        if b"" in self.opaque:
            self._hide_all()
        for path in sorted(self.made, key=lambda path: (-path.count(b"/") if path else 1, path)):
            folder = self.made[path]
            parent, _, name = path.rpartition(b"/")
            try:
                fd = os.open(name or b".", _LISTED, dir_fd=self.fds[parent])
            except OSError as error:
                raise failed(error, f'open("{shown(path)}")', "finish a folder") from None
            try:
                os.utime(fd, ns=(folder.mtime, folder.mtime))
                os.fchmod(fd, folder.mode)
            finally:
                os.close(fd)


__all__ = [
    "LONGEST_NAME",
    "LONGEST_PATH",
    "MOST_LINKS",
    "Below",
    "Folder",
    "Folders",
    "OpenFolders",
    "is_whiteout",
    "look",
]
