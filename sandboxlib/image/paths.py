"""
Folders of a layer that is being unpacked, and what lies below it in other layers.

No name is followed out of the tree: the kernel resolves each below the folder that is the root.

Kernel: openat2(2); Documentation/filesystems/overlayfs.rst, whiteouts and opaque directories.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from sandboxlib.errors import ImageError, KernelError, ViolationError
from sandboxlib.image.owner import Owner
from sandboxlib.kernel.files import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, open_in_root

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STRICT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
#: Links that are followed on the way to one name, as the kernel does.
_MOST_LINKS = 40
#: Folders that are kept open, for the next file is likely to be in one of them.
_KEPT = 16


class Below(NamedTuple):
    """Something in a layer below: its layer, what it is, and its parts from the root."""

    layer: int
    found: os.stat_result
    path: bytes


def parts_of(name: bytes, what: str = "name") -> tuple[bytes, ...]:
    """
    The parts of a name in a layer, from the root.

    Raises:
        ViolationError: It leads upwards, or has a NUL.
    """
    found = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in found:
        raise ViolationError(f"a layer has a {what} that leads upwards", shown(name))
    if b"\0" in name:
        raise ViolationError(f"a layer has a {what} with a NUL", shown(name))
    return found


def shown(name: bytes) -> str:
    """A name for people."""
    return name[:300].decode(errors="backslashreplace")


def is_whiteout(found: os.stat_result) -> bool:
    """Does it stand for something that is gone?"""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


class Folders:
    """
    The folders of a tree that is made.

    Attributes:
        top: The root of it.
        made: Folders that no entry has described, with what they are to look like in the end.
    """

    def __init__(self, top: int, owner: Owner, lowers: Sequence[int]) -> None:
        self.top = top
        self.owner = owner
        self._lowers = tuple(lowers)
        self._open: dict[tuple[bytes, ...], int] = {}
        self.made: dict[bytes, os.stat_result] = {}

    def close(self) -> None:
        """Close what is open."""
        self.forget()

    def forget(self) -> None:
        """Names may lead elsewhere now."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def forget_below(self, path: bytes, kept: int) -> None:
        """The folder *path* is gone: no name may lead into it any more. *kept* stays open."""
        for parts, fd in list(self._open.items()):
            if fd != kept:
                os.close(fd)
                del self._open[parts]
        for known in [known for known in self.made if known == path or known.startswith(path + b"/")]:
            del self.made[known]

    def open(self, parts: tuple[bytes, ...]) -> int:
        """
        Open a folder by its parts, made with those above it where they are missing.

        Returns:
            A descriptor that stays this object's, good until the next call.

        Raises:
            ImageError: Something else is in the way.
        """
        if (fd := self._open.get(parts)) is not None:
            return fd
        path = b"/".join(parts) or b"."
        try:
            fd = open_in_root(self.top, path, _FOLDER)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise self._in_the_way(error, path) from None
            fd = self._make(parts)
        while len(self._open) >= _KEPT:
            os.close(self._open.pop(next(iter(self._open))))
        self._open[parts] = fd
        return fd

    @staticmethod
    def _in_the_way(error: KernelError, path: bytes) -> Exception:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV):
            return ImageError(
                f"a layer has {shown(path)!r} as a folder, which it cannot be: {os.strerror(error.errno)}"
            )
        return error

    def _make(self, parts: tuple[bytes, ...]) -> int:
        """Walk down, and make what is missing, as it is in the layers below."""
        links = 0
        here: tuple[bytes, ...] = ()
        left = list(parts)
        fd = os.open(".", _FOLDER, dir_fd=self.top)
        try:
            while left:
                part = left.pop(0)
                if part == b"..":
                    here = here[:-1]
                    target: bytes | None = b"/" + b"/".join(here)
                    following = True
                else:
                    target = self._step(fd, (*here, part))
                    following = target is not None
                if following:
                    assert target is not None
                    if part != b"..":
                        links += 1
                        if links > _MOST_LINKS:
                            raise ImageError(f"a layer has links in a circle at {shown(b'/'.join(parts))!r}")
                        left = [each for each in target.split(b"/") if each not in (b"", b".")] + left
                        if target.startswith(b"/"):
                            here = ()
                    below = open_in_root(self.top, b"/".join(here) or b".", _FOLDER, resolve=_STRICT)
                else:
                    here = (*here, part)
                    below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
            return fd
        except KernelError as error:
            os.close(fd)
            raise self._in_the_way(error, b"/".join(parts)) from None
        except OSError as error:
            os.close(fd)
            raise ImageError(
                f"a layer has {shown(b'/'.join(parts))!r} as a folder, which it cannot be: {error.strerror}"
            ) from None
        except BaseException:
            os.close(fd)
            raise

    def _step(self, fd: int, path: tuple[bytes, ...]) -> bytes | None:
        """Have the folder *path*, whose last part is below *fd*; or return where a link there leads."""
        name = path[-1]
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        opaque = False
        if found is not None and is_whiteout(found):
            # The layer has taken away what was there, and now has a folder of its own.
            os.unlink(name, dir_fd=fd)
            found, opaque = None, True
        if found is not None:
            return os.readlink(name, dir_fd=fd) if stat.S_ISLNK(found.st_mode) else None
        below = None if opaque else self.below(path)
        if below is not None and stat.S_ISLNK(below.found.st_mode):
            return self.read_link(below)
        os.mkdir(name, 0o755, dir_fd=fd)
        if opaque:
            self.hide(name, fd)
        if below is not None and stat.S_ISDIR(below.found.st_mode):
            self.made[b"/".join(path)] = below.found
        return None

    def hide(self, name: bytes, parent: int) -> None:
        """Mark a folder so that nothing of the layers below shows through."""
        fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        try:
            os.setxattr(fd, self.owner.marks + "opaque", b"y")
        finally:
            os.close(fd)

    # ---- the layers below -----------------------------------------------------------------

    def below(self, path: tuple[bytes, ...]) -> Below | None:
        """What shows at *path* of the layers below, in which no part before the last is a link."""
        for lower in self._lowers:
            verdict, found = self._look(lower, path)
            if found is not None:
                return Below(lower, found, b"/".join(path))
            if verdict:
                return None
        return None

    def _look(self, lower: int, path: tuple[bytes, ...]) -> tuple[bool, os.stat_result | None]:
        """What is at *path* in one layer; and whether it hides those below it."""
        hides = False
        fd = os.open(".", _FOLDER, dir_fd=lower)
        try:
            for number, part in enumerate(path):
                try:
                    found = os.stat(part, dir_fd=fd, follow_symlinks=False)
                except (FileNotFoundError, PermissionError):
                    return hides, None
                if is_whiteout(found):
                    return True, None
                if number == len(path) - 1:
                    return hides, found
                if not stat.S_ISDIR(found.st_mode):
                    return True, None
                try:
                    next_fd = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                except PermissionError:
                    return hides, None
                os.close(fd)
                fd = next_fd
                with contextlib.suppress(OSError):
                    hides = hides or os.getxattr(fd, self.owner.marks + "opaque") == b"y"
        finally:
            os.close(fd)
        return hides, None

    @staticmethod
    def read_link(below: Below) -> bytes:
        """Where a link of a layer below leads."""
        fd = open_in_root(below.layer, below.path, os.O_PATH | os.O_NOFOLLOW, resolve=_STRICT)
        try:
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)

    @staticmethod
    def open_below(below: Below) -> int:
        """Open a file of a layer below for reading."""
        return open_in_root(below.layer, below.path, os.O_RDONLY | os.O_NOFOLLOW, resolve=_STRICT)


__all__ = ["Below", "Folders", "is_whiteout", "parts_of", "shown"]
