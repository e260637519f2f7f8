"""
The files of a live sandbox, once for all faces.

Every path is resolved inside, by a helper that stands in the sandbox's own tree: a link
to ``/etc`` leads to the sandbox's /etc, ".." ends at its root, and magic links of /proc
lead nowhere. The program reads and writes only the descriptor that it is handed, and
only if it is a regular file.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from sandboxlib import quantity
from sandboxlib.engine.request import default_cwd
from sandboxlib.engine.session import Session
from sandboxlib.engine.walk import FILE, FOLDER, PARENT, Requests, at, opening
from sandboxlib.engine.walk import remove as remove_tree
from sandboxlib.errors import KernelError, SpecError, ViolationError
from sandboxlib.kernel.syscall import syscall
from sandboxlib.plan.flags import (
    AT_FDCWD,
    AT_REMOVEDIR,
    NOTHING,
    O_CREAT,
    O_DIRECTORY,
    O_NOCTTY,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    O_TRUNC,
    O_WRONLY,
    Named,
)
from sandboxlib.plan.root import user_of
from sandboxlib.plan.steps import Call, Step

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.spec import SandboxSpec

T = TypeVar("T")
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

CHUNK = 1 << 20
# Below this a copy takes less time than handing it to a thread.
_SMALL = 64 << 10
# A FIFO that nobody reads does not hold the helper, and no terminal becomes anyone's.
ODD = O_NONBLOCK | O_NOCTTY

# CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID: what is left of the helper's rights.
_RIGHTS = 0b11111
_VERSION_3 = 0x20080522

# Files of these are the kernel's: what is written to them is a command, given with the
# program's rights. Kernel: linux/magic.h.
_KERNELS = frozenset(
    (
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0xCAFE4A11,  # bpf
        0xF97CFF8C,  # selinuxfs
        0x43415D53,  # smackfs
        0xDE5E81E4,  # efivarfs
        0x42494E4D,  # binfmt_misc
        0x62656570,  # configfs
        0x6E736673,  # nsfs
    )
)


def locate(spec: SandboxSpec, path: object, field: str = "path") -> bytes:
    """
    Read a path inside; a relative one begins where commands do.

    Raises:
        SpecError: It is no path, empty, or has a NUL.
    """
    try:
        found = os.fsencode(path)  # type: ignore[arg-type]
    except (TypeError, UnicodeError):
        raise SpecError(field, path, "a path: str, bytes or os.PathLike") from None
    if not found or b"\0" in found:
        raise SpecError(field, path, "a path that is not empty and has no NUL")
    if not found.startswith(b"/"):
        found = os.fsencode(spec.cwd or default_cwd(spec)).rstrip(b"/") + b"/" + found
    return found


def split(path: bytes, field: str = "path") -> tuple[bytes, bytes]:
    """
    Split a path into the folder, which may contain links, and the name in it.

    Raises:
        SpecError: It ends in no name.
    """
    above, _, name = path.rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        raise SpecError(field, os.fsdecode(path), "a path that ends in a name")
    return above or b"/", name


def rights(spec: SandboxSpec) -> tuple[Step, ...]:
    """
    Steps with which a helper keeps the rights over files only, and makes files for the sandbox's user.

    It is the user whom commands run as, but no permission bit stops it: as a copy
    from outside, which a sandbox's owner may make.
    """
    uid, gid = user_of(spec)
    keep = -1
    steps: list[Step] = [Call("setgroups", (0, 0), "no group of the program's", ignore=(errno.EPERM,))]
    if uid or gid:
        steps.append(Call("setresgid", (keep, gid, keep), "new files are the user's"))
        steps.append(Call("setresuid", (keep, uid, keep), "new files are the user's"))
    header, sets = struct.pack("=Ii", _VERSION_3, 0), struct.pack("=6I", _RIGHTS, _RIGHTS, 0, 0, 0, 0)
    steps.append(
        Call("capset", (header, sets), "rights over files, and no other", text="CAP_DAC_OVERRIDE, ...")
    )
    steps.append(Call("umask", (0,), "modes as given"))
    return tuple(steps)


@asynccontextmanager
async def requests(engine: Engine, *fds: int) -> AsyncIterator[Requests]:
    """A helper inside for some requests."""
    async with Session(engine, *fds) as session:
        asked = Requests(session, rights(engine.spec))
        yield asked
        await asked.finish()


@asynccontextmanager
async def about(path: bytes) -> AsyncIterator[None]:
    """Errors within name *path*, as those of `open` do."""
    try:
        yield
    except KernelError as error:
        error.filename = os.fsdecode(path)
        raise


def mode_of(mode: object, maximum: int = 0o777) -> int:
    """Read permission bits; set-uid and set-gid are none of them. Raises: SpecError."""
    return quantity.count("mode", mode, minimum=0, maximum=maximum)


def regular(fd: int, path: bytes, *, writing: bool = False) -> os.stat_result:
    """
    See to it that *fd* is a file of ordinary bytes.

    Raises:
        KernelError: EISDIR.
        ViolationError: It is a FIFO, a device, or one of the kernel's files.
    """
    found = os.fstat(fd)
    name = os.fsdecode(path)
    if modes.S_ISDIR(found.st_mode):
        raise KernelError(errno.EISDIR, f'open("{name}")', "a file inside")
    if not modes.S_ISREG(found.st_mode):
        raise ViolationError(
            "not a regular file; what it is made of would be the program's to wait for", name
        )
    if writing:
        buffer = bytearray(120)
        syscall("fstatfs", fd, buffer, call=f'fstatfs("{name}")')
        if int.from_bytes(buffer[:8], "little") & 0xFFFFFFFF in _KERNELS:
            raise ViolationError("a file of the kernel's; what is written there is not stored", name)
    return found


async def worked(engine: Engine, size: int, function: Callable[[], T]) -> T:
    """Run *function*, which moves about *size* bytes, where it holds nobody up."""
    return function() if size <= _SMALL else await engine.waiter.work(function)


def _read_all(fd: int, path: bytes) -> bytes:
    try:
        with open(fd, "rb", buffering=0, closefd=False) as file:
            return file.readall()
    except OSError as error:
        raise KernelError(error.errno or 0, f'read("{os.fsdecode(path)}")', "a file inside") from None


def write_all(fd: int, data: memoryview, path: bytes) -> None:
    """Write all of *data*. Raises: KernelError: ENOSPC, and the like."""
    try:
        while data:
            data = data[os.write(fd, data[:CHUNK]) :]
    except OSError as error:
        raise KernelError(error.errno or 0, f'write("{os.fsdecode(path)}")', "a file inside") from None


async def read(engine: Engine, path: Path) -> bytes:
    """Read a whole file; however large it is, all of it comes into memory."""
    where = locate(engine.spec, path)
    async with about(where), requests(engine) as asked:
        call = opening(AT_FDCWD, where, O_RDONLY | ODD, "read a file inside", links=True)
        with await asked.descriptor(call) as fd:
            found = regular(fd, where)
            # What the kernel makes up has a size of 0, and is small.
            return await worked(engine, found.st_size, lambda: _read_all(fd, where))


async def write(
    engine: Engine, path: Path, data: object, *, mode: int = 0o644, parents: bool = False
) -> None:
    """Write a whole file, which is made if it does not exist, and emptied first if it does."""
    where, bits = locate(engine.spec, path), mode_of(mode)
    if isinstance(data, str):
        try:
            data = data.encode()
        except UnicodeEncodeError as error:
            raise SpecError("data", data, f"a string that can be encoded: {error}") from None
    try:
        content = memoryview(data).cast("B")  # type: ignore[arg-type]
    except TypeError:
        raise SpecError("data", data, "bytes or a string") from None
    async with about(where), requests(engine) as asked:
        if parents:
            await make_folders(asked, split(where)[0], 0o755)
        flags = O_WRONLY | O_CREAT | O_TRUNC | ODD
        why = "write a file inside"
        try:
            opened = await asked.descriptor(opening(AT_FDCWD, where, flags, why, mode=bits, links=True))
        except KernelError as error:
            if error.errno != errno.ENXIO:
                raise
            raise ViolationError("not a regular file", os.fsdecode(where)) from error
        with opened as fd:
            regular(fd, where, writing=True)
            await worked(engine, len(content), lambda: write_all(fd, content, where))


async def names(engine: Engine, path: Path) -> list[str]:
    """The sorted names in a folder."""
    where = locate(engine.spec, path)
    async with about(where), requests(engine) as asked:
        call = opening(AT_FDCWD, where, O_RDONLY | O_DIRECTORY, "list a folder inside", links=True)
        with await asked.descriptor(call) as fd:
            return sorted(os.listdir(fd))


async def stat(engine: Engine, path: Path, *, follow: bool = True) -> os.stat_result:
    """Look at a file as one would from inside; at a link itself without *follow*."""
    where = locate(engine.spec, path)
    async with about(where), requests(engine) as asked:
        flags = O_PATH | (NOTHING if follow else O_NOFOLLOW)
        call = opening(AT_FDCWD, where, flags, "look at a file inside", links=True)
        with await asked.descriptor(call) as fd:
            return Owners(engine.pid).inside(os.fstat(fd))


async def exists(engine: Engine, path: Path) -> bool:
    """Tell whether there is something; a link that leads nowhere is nothing."""
    try:
        await stat(engine, path)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return False
        raise
    return True


async def mkdir(
    engine: Engine, path: Path, mode: int = 0o755, *, parents: bool = False, exist_ok: bool = False
) -> None:
    """Make a folder."""
    where, bits = locate(engine.spec, path), mode_of(mode, 0o1777)
    async with about(where), requests(engine) as asked:
        above, name = split(where)
        if parents:
            await make_folders(asked, above, 0o755)
        why = "make a folder inside"
        await asked.ask(opening(AT_FDCWD, above, O_PATH | O_DIRECTORY, why, out=PARENT, links=True))
        try:
            await asked.ask(at("mkdirat", PARENT, name, bits, why=why))
        except KernelError as error:
            if error.errno != errno.EEXIST or not exist_ok:
                raise
            # As with os.makedirs: a folder that is there is fine, a file is not.
            await asked.ask(opening(AT_FDCWD, where, O_PATH | O_DIRECTORY, why, links=True))


async def make_folders(asked: Requests, path: bytes, mode: int) -> None:
    """Make *path* and the folders above it, where they are missing; links on the way are followed."""
    why = "make the folders on the way"
    parts = [part for part in path.split(b"/") if part]
    await asked.ask(opening(AT_FDCWD, b"/", O_PATH | O_DIRECTORY, why, out=PARENT, links=True))
    for i, part in enumerate(parts):
        below = b"/" + b"/".join(parts[: i + 1])
        # On a read-only root what is needed may be there all the same.
        ignore = (errno.EEXIST, errno.EROFS)
        await asked.ask(
            at("mkdirat", PARENT, part, mode, why=why, ignore=ignore),
            opening(AT_FDCWD, below, O_PATH | O_DIRECTORY, why, out=PARENT, links=True),
        )


async def remove(engine: Engine, path: Path, *, recursive: bool = False) -> None:
    """Remove a file, a link or an empty folder; with *recursive* a folder and all that is in it."""
    where = locate(engine.spec, path)
    async with about(where), requests(engine) as asked:
        above, name = split(where)
        why = "remove inside"
        await asked.ask(opening(AT_FDCWD, above, O_PATH | O_DIRECTORY, why, out=PARENT, links=True))
        if recursive:
            await remove_tree(asked, PARENT, name)
            return
        try:
            await asked.ask(at("unlinkat", PARENT, name, 0, why=why))
        except KernelError as error:
            if error.errno != errno.EISDIR:
                raise
            await asked.ask(at("unlinkat", PARENT, name, AT_REMOVEDIR, why=why))


async def rename(engine: Engine, old: Path, new: Path) -> None:
    """Give another name, in place of what has it."""
    source, target = locate(engine.spec, old, "old"), locate(engine.spec, new, "new")
    async with about(source), requests(engine) as asked:
        (above, name), (other, second) = split(source, "old"), split(target, "new")
        why = "rename inside"
        flags: Named = O_PATH | O_DIRECTORY
        text = f"{PARENT}, {os.fsdecode(name)!r}, {FOLDER}, {os.fsdecode(second)!r}, 0"
        await asked.ask(
            opening(AT_FDCWD, above, flags, why, out=PARENT, links=True),
            opening(AT_FDCWD, other, flags, why, out=FOLDER, links=True),
            Call("renameat2", (PARENT, name, FOLDER, second, 0), why, text=text),
        )


class Owners:
    """Users and groups as a sandbox sees them. Kernel: user_namespaces(7)."""

    #: What the kernel shows for an ID that has no counterpart inside: overflowuid of proc(5).
    NOBODY = 65534

    def __init__(self, pid: int) -> None:
        self._maps = [self._lines(f"/proc/{pid}/{which}") for which in ("uid_map", "gid_map")]

    @staticmethod
    def _lines(path: str) -> list[tuple[int, int, int]]:
        found = []
        with open(path, encoding="ascii") as file:
            for line in file:
                inside, outside, count = map(int, line.split())
                found.append((inside, outside, count))
        return found

    def _inside(self, which: int, number: int) -> int:
        for inside, outside, count in self._maps[which]:
            if outside <= number < outside + count:
                return inside + number - outside
        return self.NOBODY

    def pair(self, uid: int, gid: int) -> tuple[int, int]:
        """A user and a group, as numbers inside."""
        return self._inside(0, uid), self._inside(1, gid)

    def inside(self, found: os.stat_result) -> os.stat_result:
        """The same, with the owner as it is inside."""
        fields = list(found)
        fields[modes.ST_UID], fields[modes.ST_GID] = self.pair(found.st_uid, found.st_gid)
        further = ("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns")
        more = (*further, "st_blksize", "st_blocks", "st_rdev")
        return os.stat_result(fields, {name: getattr(found, name) for name in more})


__all__ = ["FILE", "Owners", "Path", "exists", "mkdir", "names", "read", "remove", "rename", "stat", "write"]
