"""
Copies of files and trees into a sandbox and out of it.

Both sides may change under the copy, and the sandbox's side is not to be trusted: each
folder is opened anew from the top of its tree, without a link on the way, and each file
is made anew under a name that did not exist. Copied are folders, files with the permission
bits and times, and links as links. Not copied are owners, set-uid and set-gid
bits, extended attributes, and that two names are one file.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from sandboxlib.engine.files import (
    CHUNK,
    ODD,
    Path,
    about,
    locate,
    make_folders,
    regular,
    requests,
    split,
    worked,
    write_all,
)
from sandboxlib.engine.walk import FILE, FOLDER, PARENT, TOP, Requests, at, opening, shown
from sandboxlib.errors import KernelError, SpecError, ViolationError
from sandboxlib.kernel.descriptor import Fd, openat
from sandboxlib.kernel.syscall import failed, syscall
from sandboxlib.plan.flags import (
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    O_CREAT,
    O_DIRECTORY,
    O_EXCL,
    O_NOFOLLOW,
    O_PATH,
    O_RDONLY,
    O_WRONLY,
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
)
from sandboxlib.plan.steps import Call

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine

_HOW = struct.Struct("=3Q")
_TIMES = struct.Struct("=4q")
_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_CREATE = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW


def _host(field: str, path: object) -> bytes:
    try:
        found = os.fsencode(path)  # type: ignore[arg-type]
    except (TypeError, UnicodeError):
        raise SpecError(field, path, "a path of the host: str, bytes or os.PathLike") from None
    if not found or b"\0" in found:
        raise SpecError(field, path, "a path that is not empty and has no NUL")
    return found


@contextmanager
def _kernel(call: str, path: bytes) -> Iterator[None]:
    """What fails on the host is a `KernelError` that names its path."""
    try:
        yield
    except KernelError:
        raise
    except OSError as error:
        name = os.fsdecode(path)
        found = failed(error, f'{call}("{name}")', "a file of the host")
        found.filename = name
        raise found from None


@contextmanager
def _without(name: bytes, folder: int) -> Iterator[None]:
    """Whatever comes within, *name* in *folder* is gone."""
    try:
        yield
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        raise


def _below(top: int, path: bytes, flags: int) -> Fd:
    """Open *path* below *top*, on the host, with no link on the way. Kernel: openat2(2)."""
    how, fd = _HOW.pack(flags | os.O_CLOEXEC, 0, _BELOW), Fd()
    call = f"openat2({top}, {shown(path)})"
    try:
        syscall("openat2", top, (path or b".") + b"\0", how, _HOW.size, call=call, into=fd)
    except KernelError as error:
        if error.errno in (errno.ELOOP, errno.EXDEV):
            message = "a symbolic link took the place of a folder while it was copied"
            raise ViolationError(message, os.fsdecode(path)) from error
        raise
    return fd


@asynccontextmanager
async def _steady(path: bytes) -> AsyncIterator[None]:
    """Within, a link on the way means that something was exchanged."""
    try:
        yield
    except KernelError as error:
        if error.errno == errno.ELOOP:
            raise ViolationError(
                "a symbolic link is where a file or folder was", os.fsdecode(path)
            ) from error
        raise


def _refuse(mode: int, path: bytes) -> None:
    kinds = (
        (modes.S_ISFIFO, "a FIFO"),
        (modes.S_ISSOCK, "a socket"),
        (modes.S_ISCHR, "a device"),
        (modes.S_ISBLK, "a device"),
    )
    for test, name in kinds:
        if test(mode):
            raise ViolationError(f"{name} is not copied", os.fsdecode(path))


def _pump(source: int, target: int, path: bytes) -> None:
    """Copy bytes, a piece at a time."""
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    while True:
        with _kernel("read", path):
            count = os.readv(source, [buffer])
        if not count:
            return
        write_all(target, view[:count], path)


# ---- into the sandbox ---------------------------------------------------------------------


async def copy_in(engine: Engine, source: Path, target: Path) -> None:
    """Copy a file or folder of the host to the path *target* inside."""
    outside, inside = _host("source", source), locate(engine.spec, target, "target")
    with _kernel("open", outside):
        _refuse(os.stat(outside).st_mode, outside)
        opened = openat(outside, _READ)
    with opened as fd:
        found = os.fstat(fd)
        _refuse(found.st_mode, outside)
        async with about(inside), requests(engine) as asked:
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
        opened = await self._asked.descriptor(
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
        with opened as made:
            await worked(self._engine, found.st_size, lambda: _pump(fd, made, path))
        self._asked.later(Call("utimensat", (FILE, 0, _times(found), 0), why))

    async def folder(self, name: bytes, found: os.stat_result) -> None:
        """Copy the folder to *name* in `PARENT`, into what is there already."""
        asked, why = self._asked, self._why
        await asked.ask(
            at("mkdirat", PARENT, name, found.st_mode & 0o777, why=why, ignore=(errno.EEXIST,)),
            opening(PARENT, name, O_PATH | O_DIRECTORY | O_NOFOLLOW, why, out=TOP),
        )
        folders = [(b"", found)]
        for path, _ in folders:
            async with _steady(path):
                folders += await self._fill(path)
        # In the end, for what is made in a folder changes its time.
        for path, entry in reversed(folders):
            times = Call("utimensat", (FOLDER, b".", _times(entry), 0), why)
            await asked.ask(opening(TOP, path, O_PATH | O_DIRECTORY, why, out=FOLDER), times)

    async def _fill(self, path: bytes) -> list[tuple[bytes, os.stat_result]]:
        asked, why = self._asked, self._why
        folders = []
        with _below(self._top, path, _FOLDER) as here:
            await asked.ask(opening(TOP, path, O_PATH | O_DIRECTORY, why, out=FOLDER))
            for name in sorted(map(os.fsencode, os.listdir(here))):
                full = b"/".join(part for part in (self._source, path, name) if part)
                with _kernel("lstat", full):
                    found = os.stat(name, dir_fd=here, follow_symlinks=False)
                _refuse(found.st_mode, full)
                if modes.S_ISDIR(found.st_mode):
                    bits = found.st_mode & 0o777
                    await asked.ask(at("mkdirat", FOLDER, name, bits, why=why, ignore=(errno.EEXIST,)))
                    folders.append((path + b"/" + name if path else name, found))
                elif modes.S_ISLNK(found.st_mode):
                    with _kernel("readlink", full):
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
        with _kernel("open", full):
            opened = openat(name, _READ | os.O_NOFOLLOW, at=here)
        with opened as fd:
            await self.file(fd, regular(fd, full), FOLDER, name, full)


# ---- out of the sandbox -------------------------------------------------------------------


async def copy_out(engine: Engine, source: Path, target: Path) -> None:
    """Copy a file or folder inside to the path *target* of the host."""
    inside, outside = locate(engine.spec, source, "source"), _host("target", target)
    above, _, name = outside.rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        raise SpecError("target", target, "a path that ends in a name")
    above = above or (b"/" if outside.startswith(b"/") else b".")
    why = f"copy from {shown(inside)}"
    async with about(inside), requests(engine) as asked:
        with await asked.descriptor(opening(AT_FDCWD, inside, O_PATH, why, out=TOP, links=True)) as fd:
            found = os.fstat(fd)
        _refuse(found.st_mode, inside)
        with _kernel("mkdir", above):
            os.makedirs(above, exist_ok=True)
            opened = openat(above, _FOLDER)
        with opened as parent:
            out = _OutOf(engine, asked, inside, why)
            if modes.S_ISDIR(found.st_mode):
                await out.folder(parent, name, found)
            else:
                call = opening(AT_FDCWD, inside, O_RDONLY | ODD, why, links=True)
                await out.file(await asked.descriptor(call), parent, name, inside)


class _OutOf:
    """One copy out of a sandbox, from the folder `TOP` of the helper's."""

    def __init__(self, engine: Engine, asked: Requests, source: bytes, why: str) -> None:
        self._engine = engine
        self._asked = asked
        self._source = source
        self._why = why

    async def file(self, opened: Fd, parent: int, name: bytes, path: bytes) -> None:
        """Copy the file *opened*, which is taken over, to *name* in the host's folder *parent*."""
        # A name of its own first: what is there stays until the copy is whole, and is then
        # replaced, link or not, in one go.
        fresh = b".%s.%s" % (os.urandom(6).hex().encode(), name[:200])
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with opened as fd, _without(fresh, parent):
            found = regular(fd, path)
            with openat(fresh, flags, found.st_mode & 0o777, at=parent, why="a file of the host") as made:
                await worked(self._engine, found.st_size, lambda: _pump(fd, made, path))
                with _kernel("utimensat", name):
                    os.utime(made, ns=(found.st_atime_ns, found.st_mtime_ns))
            with _kernel("rename", name):
                os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)

    async def folder(self, parent: int, name: bytes, found: os.stat_result) -> None:
        """Copy the folder to *name* in the host's folder *parent*, into what is there already."""
        self._mkdir(parent, name, found)
        try:
            with _kernel("open", name):
                opened = openat(name, _FOLDER | os.O_NOFOLLOW, at=parent)
        except KernelError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise ViolationError("not a folder; a link is not followed", os.fsdecode(name)) from error
        with opened as top:
            folders = [(b"", found)]
            for path, _ in folders:
                async with _steady(path):
                    folders += await self._fill(top, path)
            for path, entry in reversed(folders):
                with _below(top, path, _FOLDER) as here, _kernel("utimensat", path):
                    os.utime(here, ns=(entry.st_atime_ns, entry.st_mtime_ns))

    @staticmethod
    def _mkdir(parent: int, name: bytes, found: os.stat_result) -> None:
        with _kernel("mkdir", name):
            try:
                # Its new owner can go on working with it, whatever it was inside.
                os.mkdir(name, found.st_mode & 0o777 | 0o700, dir_fd=parent)
            except FileExistsError:
                return

    async def _fill(self, top: int, path: bytes) -> list[tuple[bytes, os.stat_result]]:
        asked, why = self._asked, self._why
        folders = []
        with _below(top, path, _FOLDER) as here:
            for name in await asked.names(TOP, path, why):
                full = b"/".join(part for part in (self._source, path, name) if part)
                with await asked.descriptor(opening(FOLDER, name, O_PATH | O_NOFOLLOW, why)) as fd:
                    found = os.fstat(fd)
                    _refuse(found.st_mode, full)
                    if modes.S_ISLNK(found.st_mode):
                        with _kernel("readlink", full):
                            link = os.readlink(b"", dir_fd=fd)
                        self._link(here, name, link, found)
                        continue
                if modes.S_ISDIR(found.st_mode):
                    self._mkdir(here, name, found)
                    folders.append((path + b"/" + name if path else name, found))
                else:
                    call = opening(FOLDER, name, O_RDONLY | O_NOFOLLOW | ODD, why)
                    await self.file(await asked.descriptor(call), here, name, full)
        return folders

    @staticmethod
    def _link(here: int, name: bytes, link: bytes, found: os.stat_result) -> None:
        fresh = b".%s.link" % os.urandom(6).hex().encode()
        with _without(fresh, here), _kernel("symlink", name):
            os.symlink(link, fresh, dir_fd=here)
            times = (found.st_atime_ns, found.st_mtime_ns)
            os.utime(fresh, ns=times, dir_fd=here, follow_symlinks=False)
            os.rename(fresh, name, src_dir_fd=here, dst_dir_fd=here)


__all__ = ["copy_in", "copy_out"]
