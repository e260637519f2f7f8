"""
Copies of files and trees into a sandbox.

Both sides may change under the copy, and the sandbox's side is not to be trusted: each
folder is opened anew from the top of its tree, without a link on the way, and each file
is made anew under a name that did not exist. Copied are folders, files with the permission
bits and times, links as links, and holes as holes. Not copied are owners, set-uid and set-gid
bits, extended attributes, and that two names are one file.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import struct
from functools import partial
from typing import TYPE_CHECKING

from sandboxlib.engine.files import (
    Path,
    about,
    check_regular,
    locate,
    make_folders,
    requests,
    split,
    worked,
)
from sandboxlib.engine.host_files import (
    OPEN_FOLDER,
    OPEN_READ,
    host_path,
    is_sparse,
    on_host,
    open_below,
    read_piece,
    refuse_odd,
    steady,
)
from sandboxlib.engine.walk import FILE, FOLDER, PARENT, TOP, Requests, at, opening, shown
from sandboxlib.kernel.descriptor import openat
from sandboxlib.plan.flags import (
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    O_CREAT,
    O_DIRECTORY,
    O_EXCL,
    O_NOFOLLOW,
    O_PATH,
    O_WRONLY,
)
from sandboxlib.plan.steps import Call

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine


_TIMES = struct.Struct("=4q")
_CREATE = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW


async def copy_in(engine: Engine, source: Path, target: Path, *, seconds: float | None = None) -> None:
    """Copy a file or folder of the host to the path *target* inside."""
    outside, inside = host_path("source", source), locate(engine.spec, target, "target")
    with on_host("open", outside):
        refuse_odd(os.stat(outside).st_mode, outside)
        opened = openat(outside, OPEN_READ)
    with opened as fd:
        found = os.fstat(fd)
        refuse_odd(found.st_mode, outside)
        verb = f"files.copy_in({source!r})"
        async with requests(engine, verb=verb, seconds=seconds) as asked, about(inside):
            above, name = split(inside, "target")
            await make_folders(asked, above, 0o755)
            why = f"copy to {shown(inside)}"
            await asked.ask(opening(AT_FDCWD, above, O_PATH | O_DIRECTORY, why, out=PARENT, links=True))
            if modes.S_ISDIR(found.st_mode):
                await _Into(engine, asked, fd, outside, why).folder(name, found)
            else:
                await _Into(engine, asked, fd, outside, why).file(fd, found, PARENT, name, outside)


def _times(found: os.stat_result) -> bytes:
    return _TIMES.pack(*divmod(found.st_atime_ns, 10**9), *divmod(found.st_mtime_ns, 10**9))


class _Into:
    """One copy into a sandbox: from below the host's descriptor *top*."""

    def __init__(self, engine: Engine, asked: Requests, top: int, source: bytes, why: str) -> None:
        self._engine = engine
        self._asked = asked
        self._top = top
        self._source = source
        self._why = why

    async def file(self, fd: int, found: os.stat_result, parent: int, name: bytes, path: bytes) -> None:
        """Copy the open file *fd* to *name* in the folder *parent* of the helper's."""
        why, bits = self._why, found.st_mode & 0o777
        self._asked.later(
            # What was there goes: nothing is written through a link or into a file of two names.
            at("unlinkat", parent, name, 0, why=why, ignore=(errno.ENOENT,)),
            Call(
                "openat",
                (parent, name, _CREATE, bits),
                why,
                out=FILE,
                text=f"{parent}, {shown(name)}, {_CREATE}",
            ),
        )
        # It is made along with its first bytes.
        if not await self._content(fd, found, path):
            await self._asked.ask()
        self._asked.later(Call("utimensat", (FILE, 0, _times(found), 0), why))

    async def _content(self, fd: int, found: os.stat_result, path: bytes) -> int:
        """Copy what is in *fd* to `FILE`; holes stay holes. Returns where the last data ends."""
        sparse, stands = is_sparse(found), 0
        while True:
            begin, data = await worked(
                self._engine, found.st_size, partial(read_piece, fd, stands, path, sparse)
            )
            if not data:
                break
            if begin != stands:
                await self._asked.ask(Call("lseek", (FILE, begin, os.SEEK_SET), self._why))
            await self._asked.write(FILE, memoryview(data), self._why)
            stands = begin + len(data)
            if not sparse and 0 < found.st_size == stands:
                # As long as it was: there is no need to see its end.
                break
        if sparse and stands < found.st_size:
            await self._asked.ask(Call("ftruncate", (FILE, found.st_size), self._why))
            return found.st_size
        return stands

    async def folder(self, name: bytes, found: os.stat_result) -> None:
        """Copy the folder to *name* in `PARENT`, into what is there already."""
        asked, why = self._asked, self._why
        await asked.ask(
            at("mkdirat", PARENT, name, found.st_mode & 0o777, why=why, ignore=(errno.EEXIST,)),
            opening(PARENT, name, O_PATH | O_DIRECTORY | O_NOFOLLOW, why, out=TOP),
        )
        folders = [(b"", found)]
        for path, _ in folders:
            async with steady(path):
                folders += await self._fill(path)
        # In the end, for what is made in a folder changes its time.
        for path, entry in reversed(folders):
            times = Call("utimensat", (FOLDER, b".", _times(entry), 0), why)
            await asked.ask(opening(TOP, path, O_PATH | O_DIRECTORY, why, out=FOLDER), times)

    async def _fill(self, path: bytes) -> list[tuple[bytes, os.stat_result]]:
        asked, why = self._asked, self._why
        folders = []
        with open_below(self._top, path, OPEN_FOLDER) as here:
            await asked.ask(opening(TOP, path, O_PATH | O_DIRECTORY, why, out=FOLDER))
            for name in sorted(map(os.fsencode, os.listdir(here))):
                full = b"/".join(part for part in (self._source, path, name) if part)
                with on_host("lstat", full):
                    found = os.stat(name, dir_fd=here, follow_symlinks=False)
                refuse_odd(found.st_mode, full)
                if modes.S_ISDIR(found.st_mode):
                    bits = found.st_mode & 0o777
                    await asked.ask(at("mkdirat", FOLDER, name, bits, why=why, ignore=(errno.EEXIST,)))
                    folders.append((path + b"/" + name if path else name, found))
                elif modes.S_ISLNK(found.st_mode):
                    with on_host("readlink", full):
                        link = os.readlink(name, dir_fd=here)
                    await asked.ask(
                        at("unlinkat", FOLDER, name, 0, why=why, ignore=(errno.ENOENT,)),
                        Call("symlinkat", (link, FOLDER, name), why, text=f"{shown(link)}, {shown(name)}"),
                        Call("utimensat", (FOLDER, name, _times(found), AT_SYMLINK_NOFOLLOW), why),
                    )
                else:
                    await self._one(here, name, full)
        return folders

    async def _one(self, here: int, name: bytes, full: bytes) -> None:
        with on_host("open", full):
            opened = openat(name, OPEN_READ | os.O_NOFOLLOW, at=here)
        with opened as fd:
            found = os.fstat(fd)
            check_regular(found.st_mode, full)
            await self.file(fd, found, FOLDER, name, full)


__all__ = ["copy_in"]
