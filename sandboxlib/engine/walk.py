"""
Trees of files behind a helper: opened, listed and removed, whatever they contain.

Nothing here follows a link below its top, and no path is looked up by the program
itself: the helper opens, by openat2(2) from a descriptor that it holds, and hands out
what it opened.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from math import inf
from typing import TypeVar

from sandboxlib.bounds import Bound
from sandboxlib.engine.entries import DT_DIR, DT_UNKNOWN, STATS, entries_of, look, stats_of
from sandboxlib.engine.session import Answer, Helper, Told
from sandboxlib.errors import KernelError, printable
from sandboxlib.kernel.descriptor import Fd
from sandboxlib.plan.flags import (
    AT_FDCWD,
    AT_REMOVEDIR,
    NOTHING,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_PATH,
    O_RDONLY,
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    Named,
)
from sandboxlib.plan.steps import Call, Extents, Read, Report, Step

T = TypeVar("T")

#: What a helper has opened stands here, see each function.
PARENT, TOP, FOLDER, FILE = (
    Named(30, "<parent>"),
    Named(31, "<top>"),
    Named(32, "<folder>"),
    Named(33, "<file>"),
)

_HOW = struct.Struct("=3Q")
_EXTENT = struct.Struct("=2q")
#: Parts of a file that are told at once, and bytes of a hole that is not worth a step of its own.
_EXTENTS, _SMALL_HOLE = 1024, 32 << 10
#: Names of at most 255 bytes that fit into one request that removes them.
_BATCH = 128
#: Bytes of names that are told at once, and of a file that are written at once.
_NAMES, PIECE = 1 << 18, 60 << 10
#: Folders in one that are remembered at once.
_FOLDERS = 1000
# The kernel takes paths of 4095 bytes, and goes a long way for each: deeper folders are brought up
# before they are emptied.
_LONG = 1000
_AGAIN = 64
_PATH_MAX = 4096
#: Seconds between two tries for what may be there in a moment.
_REST = 0.01


def shown(path: bytes) -> str:
    """A path for printing."""
    return f'"{printable(os.fsdecode(path))}"'


def opening(
    base: int, path: bytes, flags: Named, why: str, *, out: Named = FILE, mode: int = 0, links: bool = False
) -> Call:
    """
    Open *path* below the descriptor *base*, without leaving it.

    With *links* they are followed, and "/" and ".." end at *base* as they do at a root.
    """
    how = RESOLVE_IN_ROOT if links else RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    how |= RESOLVE_NO_MAGICLINKS
    packed = _HOW.pack(flags | O_CLOEXEC, mode, how)
    args = (base, path or b".", packed, _HOW.size)
    return Call("openat2", args, why, out=out, text=f"{base}, {shown(path)}, {flags}, {mode:#o}, {how}")


def at(name: str, base: int, path: bytes, *args: int, why: str, ignore: tuple[int, ...] = ()) -> Call:
    """A call such as unlinkat or mkdirat on one name in the folder *base*."""
    text = ", ".join([str(base), shown(path), *map(str, args)])
    return Call(name, (base, path, *args), why, ignore=ignore, text=text)


class Requests:
    """
    What is asked of one helper; steps that can wait go along with the next request.

    Attributes:
        helper: Who carries them out.
        deadline: When all of it has to be done.
    """

    def __init__(self, helper: Helper, deadline: float = inf) -> None:
        self.helper = helper
        self.deadline = deadline
        self._waiting: list[Step] = []
        self._unseen: list[bytes] = []

    def later(self, *steps: Step) -> None:
        """Carry out *steps* before those of the next request."""
        self._waiting += steps

    async def ask(self, *steps: Step) -> Answer:
        """
        Carry out *steps*; what is told is numbered from the first of them on.

        Raises:
            KernelError: One failed; those after it were not tried. EAGAIN: somebody inside has a lease on
                what is opened, or renames all the time. ETIMEDOUT: the deadline came first.
        """
        together = (*self._waiting, *steps)
        before, self._waiting = len(self._waiting), []
        for again in range(_AGAIN):
            try:
                found = await self.helper.ask(*together, deadline=self.deadline)
            except KernelError as error:
                # Something was renamed anywhere on the machine while ".." was looked up: openat2(2). Or
                # whoever has a lease is asked to give it up, and is not waited for.
                if error.errno != errno.EAGAIN or again == _AGAIN - 1:
                    raise
            else:
                told = tuple(each._replace(step=each.step - before) for each in found.told)
                return found._replace(told=told)
            if again:
                await self.helper.pause(_REST, self.deadline)
        raise AssertionError

    async def finish(self) -> None:
        """Carry out what is still to be done."""
        if self._waiting:
            await self.ask()

    async def descriptor(self, *steps: Call) -> Fd:
        """Carry out *steps*; what the last one opened is handed out."""
        answer = await self.ask(*steps, Report("ready", "hand it out", steps[-1].out))
        return answer.fds[0]

    async def look(self, fd: int, why: str) -> os.stat_result:
        """What is open as *fd*, as the helper sees it."""
        return seen(fd, (await self.ask(look(fd, b"", why=why))).told[0])

    async def opened(self, opening: Call, why: str) -> os.stat_result:
        """Open something by *opening*, where it stands from now on, and see what it is."""
        return seen(opening.out, (await self.ask(opening, look(opening.out, b"", why=why))).told[0])

    async def looks(self, base: int, names: Iterable[bytes], why: str) -> list[tuple[bytes, os.stat_result]]:
        """What each of *names* in the folder *base* is; those that are gone are left out."""
        found = []
        for batch in _batches(names, STATS):
            (told,) = (await self.ask(look(base, *batch, why=why))).told
            for name, each in zip(batch, stats_of(told.data), strict=True):
                if not isinstance(each, int):
                    found.append((name, each))
                elif each != errno.ENOENT:
                    raise KernelError(each, f"statx({base}, {shown(name)})", why)
        return found

    async def enter(self, base: int, path: bytes, why: str) -> None:
        """Open a folder below *base*, as `FOLDER`."""
        await self.ask(opening(base, path, O_RDONLY | O_DIRECTORY, why, out=FOLDER))
        self._unseen = []

    async def contents(self, why: str) -> list[tuple[bytes, os.stat_result]]:
        """Some more of the names in the folder that was entered, and what they are; none at its end."""
        while self._unseen or (more := await self.entries(why)):
            if not self._unseen:
                self._unseen = [name for name, _ in more]
            batch, self._unseen = self._unseen[:STATS], self._unseen[STATS:]
            if found := await self.looks(FOLDER, batch, why):
                return found
        return []

    async def link(self, base: int, name: bytes, why: str) -> bytes:
        """Where the link *name* in the folder *base* leads."""
        call = Call("readlinkat", (base, name, bytes(_PATH_MAX), _PATH_MAX), why, tell=2)
        return (await self.ask(call)).told[0].data

    async def names(self, base: int, path: bytes, why: str, bound: Bound | None = None) -> list[bytes]:
        """
        The names in a folder below *base*, sorted; it stays open as `FOLDER`.

        Raises:
            TooLargeError: There are more than *bound* lets in.
        """
        await self.enter(base, path, why)
        found: list[bytes] = []
        while more := await self.entries(why):
            found += [name for name, _ in more]
            if bound is not None:
                bound.count(len(more))
        return sorted(found)

    async def entries(self, why: str) -> list[tuple[bytes, int]]:
        """Some more of what is in the open `FOLDER`, with its kind as in dirent.h; none at its end."""
        told = (await self.ask(Read("getdents64", FOLDER, _NAMES, why))).told
        return [entry for each in told for entry in entries_of(each.data)]

    async def read(self, fd: int, size: int, why: str) -> bytes:
        """Read at most *size* bytes from where an open file stands; none at its end."""
        return b"".join([each.data for each in (await self.ask(Read("read", fd, size, why))).told])

    async def extents(self, fd: int, begin: int, why: str) -> list[tuple[int, int]]:
        """
        Where an open file has data, from offset *begin* on: (begin, end) of some parts, none at its end.

        Small holes count as data. On a file system that does not tell, all of it does.
        """
        (told,) = (await self.ask(Extents(fd, begin, _EXTENTS, why))).told
        found: list[tuple[int, int]] = []
        for first, last in _EXTENT.iter_unpack(told.data):
            if found and first - found[-1][1] < _SMALL_HOLE:
                found[-1] = (found[-1][0], last)
            else:
                found.append((first, last))
        return found

    async def write(self, fd: int, data: memoryview, why: str) -> None:
        """Write all of *data*. Raises: KernelError: ENOSPC, and the like."""
        while data:
            piece = bytes(data[:PIECE])
            data = data[(await self.ask(Call("write", (fd, piece, len(piece)), why))).value :]


def seen(fd: int, told: Told) -> os.stat_result:
    """What `look` told of an open descriptor alone. Raises: KernelError."""
    (found,) = stats_of(told.data)
    if isinstance(found, int):
        raise KernelError(found, f'statx({fd}, "", AT_EMPTY_PATH)', "see what it is")
    return found


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


async def remove(requests: Requests, parent: int, name: bytes) -> None:
    """
    Remove *name* in the folder *parent*, with all that is in it; links are removed, not followed.

    Raises:
        KernelError: Something in it cannot be removed: it is mounted on, or immutable.
    """
    why = f"remove {shown(name)}"
    try:
        await requests.ask(at("unlinkat", parent, name, 0, why=why))
        return
    except KernelError as error:
        if error.errno != errno.EISDIR:
            raise
    await requests.ask(opening(parent, name, O_PATH | O_DIRECTORY | O_NOFOLLOW, why, out=TOP))
    # Depth first: a folder is looked at, then those in it, then it is looked at again and goes.
    folders: list[tuple[bytes, int]] = [(b"", 0)]
    brought_up = 0
    while folders:
        path, tries = folders.pop()
        left = await _empty(requests, path, why)
        if left is None:
            continue
        if left:
            # Whoever works against it may make folders as fast as they are removed.
            if tries == _AGAIN:
                raise KernelError(errno.ENOTEMPTY, f"unlinkat({shown(name)}, AT_REMOVEDIR)", why)
            # One that has more folders than are remembered at once is looked at as often as that takes.
            folders.append((path, tries if len(left) == _FOLDERS else tries + 1))
            for child in left:
                below = path + b"/" + child if path else child
                if len(below) > _LONG:
                    brought_up += 1
                    below = await _bring_up(requests, path, child, b".removing-%d" % brought_up, why)
                folders.append((below, 0))
        elif path:
            above, _, last = path.rpartition(b"/")
            again = (errno.ENOENT, errno.ENOTEMPTY)
            await requests.ask(
                opening(TOP, above, O_PATH | O_DIRECTORY, why, out=FOLDER),
                at("unlinkat", FOLDER, last, AT_REMOVEDIR, why=why, ignore=again),
            )
    await requests.ask(at("unlinkat", parent, name, AT_REMOVEDIR, why=why))


async def _bring_up(requests: Requests, path: bytes, child: bytes, name: bytes, why: str) -> bytes:
    """Rename a folder to *name* at the top, where there is a short way to it; returns where it is."""
    here = opening(TOP, path, O_PATH | O_DIRECTORY, why, out=FOLDER)
    text = f"{FOLDER}, {shown(child)}, {TOP}, {shown(name)}, 0"
    try:
        await requests.ask(here, Call("renameat2", (FOLDER, child, TOP, name, 0), why, text=text))
    except KernelError as error:
        # An overlay does not rename what lies in a layer below, where no such depth is made by chance.
        if error.errno != errno.EXDEV:
            raise
        return path + b"/" + child
    return name


async def _empty(requests: Requests, path: bytes, why: str) -> list[bytes] | None:
    """
    Remove all but folders from a folder.

    Returns:
        The folders that are left, `_FOLDERS` of them at most; None if it is gone itself.
    """
    try:
        await requests.ask(opening(TOP, path, O_RDONLY | O_DIRECTORY, why, out=FOLDER))
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    let = (errno.EISDIR, errno.ENOENT)
    while True:
        # From the beginning: what is removed while a folder is read may hide others that come after it.
        await requests.ask(Call("lseek", (FOLDER, 0, os.SEEK_SET), why))
        left: list[bytes] = []
        removed = False
        while len(left) < _FOLDERS and (entries := await requests.entries(why)):
            left += [name for name, kind in entries if kind == DT_DIR]
            for names in _batches((name for name, kind in entries if kind != DT_DIR), _BATCH):
                await requests.ask(*(at("unlinkat", FOLDER, each, 0, why=why, ignore=let) for each in names))
                # Not all file systems tell in a list what is a folder.
                kinds = dict(entries)
                unknown = [name for name in names if kinds[name] == DT_UNKNOWN]
                left += [name for name, _ in await requests.looks(FOLDER, unknown, why)]
                removed = True
        if left or not removed:
            return left[:_FOLDERS]


__all__ = ["AT_FDCWD", "FILE", "FOLDER", "NOTHING", "PARENT", "TOP", "Requests", "at", "opening", "remove"]
