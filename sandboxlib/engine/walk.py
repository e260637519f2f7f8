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
from collections.abc import Iterable

from sandboxlib.engine.session import Answer, Helper
from sandboxlib.errors import KernelError
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
from sandboxlib.plan.steps import Call, Report, Step

#: What a helper has opened stands here, see each function.
PARENT, TOP, FOLDER, FILE = (
    Named(30, "<parent>"),
    Named(31, "<top>"),
    Named(32, "<folder>"),
    Named(33, "<file>"),
)

_HOW = struct.Struct("=3Q")
#: Names of at most 255 bytes that fit into one request.
_BATCH = 128
# The kernel takes paths of 4095 bytes, and goes a long way for each: deeper folders are brought up
# before they are emptied.
_LONG = 1000
_AGAIN = 64


def shown(path: bytes) -> str:
    """A path for printing."""
    return f'"{os.fsdecode(path)}"'


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
    """

    def __init__(self, helper: Helper, first: Iterable[Step] = ()) -> None:
        self.helper = helper
        self._waiting: list[Step] = list(first)

    def later(self, *steps: Step) -> None:
        """Carry out *steps* before those of the next request."""
        self._waiting += steps

    async def ask(self, *steps: Step) -> Answer:
        """
        Carry out *steps*.

        Raises:
            KernelError: One failed; those after it were not tried.
        """
        together = (*self._waiting, *steps)
        self._waiting = []
        for _ in range(_AGAIN):
            try:
                return await self.helper.ask(*together)
            except KernelError as error:
                # Something was renamed anywhere on the machine while "..", was looked up: openat2(2).
                if error.errno != errno.EAGAIN:
                    raise
        return await self.helper.ask(*together)

    async def finish(self) -> None:
        """Carry out what is still to be done."""
        if self._waiting:
            await self.ask()

    async def descriptor(self, *steps: Call) -> Fd:
        """Carry out *steps*; what the last one opened is handed out."""
        answer = await self.ask(*steps, Report("ready", "hand it out", steps[-1].out))
        return answer.fds[0]

    async def names(self, base: int, path: bytes, why: str) -> list[bytes]:
        """The names in a folder below *base*, sorted; it stays open as `FOLDER`."""
        with await self.descriptor(opening(base, path, O_RDONLY | O_DIRECTORY, why, out=FOLDER)) as fd:
            return sorted(map(os.fsencode, os.listdir(fd)))

    async def kind(self, base: int, name: bytes, why: str) -> os.stat_result:
        """What *name* in the folder *base* is, as the program sees it, without opening it."""
        with await self.descriptor(opening(base, name, O_PATH | O_NOFOLLOW, why)) as fd:
            return os.fstat(fd)


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
            folders.append((path, tries + 1))
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
    """Remove all but folders from a folder; returns what is left, or None if it is gone itself."""
    try:
        names = await requests.names(TOP, path, why)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    if not names:
        return []
    let = (errno.EISDIR, errno.ENOENT)
    for start in range(0, len(names), _BATCH):
        batch = names[start : start + _BATCH]
        await requests.ask(*(at("unlinkat", FOLDER, each, 0, why=why, ignore=let) for each in batch))
    return await requests.names(TOP, path, why)


__all__ = ["AT_FDCWD", "FILE", "FOLDER", "NOTHING", "PARENT", "TOP", "Requests", "at", "opening", "remove"]
