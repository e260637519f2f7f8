"""Copies of files and trees out of a sandbox; see `sandboxlib.engine.copy_in` for what is copied, and how."""

from __future__ import annotations

import errno
import os
import stat as modes
from functools import partial
from typing import TYPE_CHECKING

from sandboxlib.bounds import COPIED, ENTRIES, Bound, bytes_bound, entries_bound
from sandboxlib.engine.files import (
    BEGINNING,
    CHUNK,
    ODD,
    Path,
    about,
    begun,
    locate,
    requests,
    worked,
)
from sandboxlib.engine.host_files import (
    OPEN_FOLDER,
    host_path,
    is_sparse,
    on_host,
    open_below,
    refuse_odd,
    steady,
    without,
    write_at,
)
from sandboxlib.engine.walk import FILE, FOLDER, TOP, Requests, opening, shown
from sandboxlib.errors import KernelError, SpecError, ViolationError
from sandboxlib.kernel.descriptor import openat
from sandboxlib.plan.flags import (
    AT_FDCWD,
    O_NOFOLLOW,
    O_PATH,
    O_RDONLY,
)
from sandboxlib.plan.steps import Call

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine


async def copy_out(
    engine: Engine,
    source: Path,
    target: Path,
    *,
    max_size: int | str | None = COPIED,
    max_entries: int | None = ENTRIES,
    seconds: float | None = None,
) -> None:
    """Copy a file or folder inside to the path *target* of the host."""
    verb = f"files.copy_out({source!r})"
    bounds = bytes_bound(max_size, verb), entries_bound(max_entries, verb)
    inside, outside = locate(engine.spec, source, "source"), host_path("target", target)
    above, _, name = outside.rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        raise SpecError("target", target, "a path that ends in a name")
    above = above or (b"/" if outside.startswith(b"/") else b".")
    why = f"copy from {shown(inside)}"
    async with requests(engine, verb=verb, seconds=seconds) as asked, about(inside):
        found = await asked.opened(opening(AT_FDCWD, inside, O_PATH, why, out=TOP, links=True), why)
        refuse_odd(found.st_mode, inside)
        with on_host("mkdir", above):
            os.makedirs(above, exist_ok=True)
            opened = openat(above, OPEN_FOLDER)
        with opened as parent:
            out = _OutOf(engine, asked, inside, why, *bounds)
            if modes.S_ISDIR(found.st_mode):
                await out.folder(parent, name, found)
            else:
                call = opening(AT_FDCWD, inside, O_RDONLY | ODD, why, links=True)
                await out.file(call, parent, name, inside)


class _OutOf:
    """One copy out of a sandbox, from the folder `TOP` of the helper's."""

    def __init__(
        self, engine: Engine, asked: Requests, source: bytes, why: str, data: Bound, entries: Bound
    ) -> None:
        self._engine = engine
        self._asked = asked
        self._source = source
        self._why = why
        self._data = data
        self._entries = entries

    async def file(self, call: Call, parent: int, name: bytes, path: bytes) -> None:
        """Copy the file that *call* opens to *name* in the host's folder *parent*."""
        # A name of its own first: what is there stays until the copy is whole, and is then
        # replaced, link or not, in one go.
        fresh = b".%s.%s" % (os.urandom(6).hex().encode(), name[:200])
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        found, first = await begun(self._asked, call, path, self._why)
        with without(fresh, parent):
            with openat(fresh, flags, found.st_mode & 0o777, at=parent, why="a file of the host") as made:
                await self._content(made, found, first, path)
                with on_host("utimensat", name):
                    os.utime(made, ns=(found.st_atime_ns, found.st_mtime_ns))
            with on_host("rename", name):
                os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)

    async def _content(self, made: int, found: os.stat_result, first: bytes, path: bytes) -> None:
        """Copy what is in `FILE`, of which *first* was read, to *made*; holes stay holes."""
        if not is_sparse(found):
            self._data.count(len(first), f"{self._why}, {shown(path)}")
            write_at(made, 0, first, path)
            if len(first) == BEGINNING:
                await self._part(made, len(first), None, found, path)
            return
        at, size = 0, found.st_size
        while at < size and (extents := await self._asked.extents(FILE, at, self._why)):
            for begin, end in extents:
                await self._asked.ask(Call("lseek", (FILE, begin, os.SEEK_SET), self._why))
                if not await self._part(made, begin, end, found, path):
                    # It became shorter meanwhile.
                    size = 0
            at = extents[-1][1]
        with on_host("ftruncate", path):
            os.ftruncate(made, found.st_size)

    async def _part(self, made: int, begin: int, end: int | None, found: os.stat_result, path: bytes) -> bool:
        """Copy what comes from `FILE`, to offset *begin* of *made*; was there something up to *end*?"""
        where = f"{self._why}, {shown(path)}"
        while end is None or begin < end:
            piece = await self._asked.read(FILE, CHUNK if end is None else min(CHUNK, end - begin), self._why)
            if not piece:
                return False
            self._data.count(len(piece), where)
            await worked(self._engine, found.st_size, partial(write_at, made, begin, piece, path))
            begin += len(piece)
        return True

    async def folder(self, parent: int, name: bytes, found: os.stat_result) -> None:
        """Copy the folder to *name* in the host's folder *parent*, into what is there already."""
        self._mkdir(parent, name, found)
        try:
            with on_host("open", name):
                opened = openat(name, OPEN_FOLDER | os.O_NOFOLLOW, at=parent)
        except KernelError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise ViolationError("not a folder; a link is not followed", os.fsdecode(name)) from error
        with opened as top:
            folders = [(b"", found)]
            for path, _ in folders:
                async with steady(path):
                    folders += await self._fill(top, path)
            for path, entry in reversed(folders):
                with open_below(top, path, OPEN_FOLDER) as here, on_host("utimensat", path):
                    os.utime(here, ns=(entry.st_atime_ns, entry.st_mtime_ns))

    @staticmethod
    def _mkdir(parent: int, name: bytes, found: os.stat_result) -> None:
        with on_host("mkdir", name):
            try:
                # Its new owner can go on working with it, whatever it was inside.
                os.mkdir(name, found.st_mode & 0o777 | 0o700, dir_fd=parent)
            except FileExistsError:
                return

    async def _fill(self, top: int, path: bytes) -> list[tuple[bytes, os.stat_result]]:
        asked, why = self._asked, self._why
        folders = []
        with open_below(top, path, OPEN_FOLDER) as here:
            await asked.enter(TOP, path, why)
            while batch := await asked.contents(why):
                for name, found in batch:
                    below = path + b"/" + name if path else name
                    full = b"/".join((self._source, below))
                    self._entries.path(below)
                    refuse_odd(found.st_mode, full)
                    if modes.S_ISLNK(found.st_mode):
                        self._link(here, name, await self._target(name, full), found)
                    elif modes.S_ISDIR(found.st_mode):
                        self._mkdir(here, name, found)
                        folders.append((below, found))
                    else:
                        call = opening(FOLDER, name, O_RDONLY | O_NOFOLLOW | ODD, why)
                        await self.file(call, here, name, full)
        return folders

    async def _target(self, name: bytes, full: bytes) -> bytes:
        try:
            return await self._asked.link(FOLDER, name, self._why)
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            raise ViolationError("something else is where a link was", os.fsdecode(full)) from error

    @staticmethod
    def _link(here: int, name: bytes, link: bytes, found: os.stat_result) -> None:
        fresh = b".%s.link" % os.urandom(6).hex().encode()
        with without(fresh, here), on_host("symlink", name):
            os.symlink(link, fresh, dir_fd=here)
            times = (found.st_atime_ns, found.st_mtime_ns)
            os.utime(fresh, ns=times, dir_fd=here, follow_symlinks=False)
            os.rename(fresh, name, src_dir_fd=here, dst_dir_fd=here)


__all__ = ["copy_out"]
