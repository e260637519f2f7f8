"""
The files of a live sandbox, once for all faces.

Every path is resolved inside, by a helper that stands in the sandbox's own tree: a link
to ``/etc`` leads to the sandbox's /etc, ".." ends at its root, and magic links of /proc
lead nowhere. The helper reads and writes, and only regular files; the program has no descriptor of a
file inside, since each call on one could be held there. See `sandboxlib.engine.entries`.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from sandboxlib import quantity
from sandboxlib.bounds import ENTRIES, READ, bytes_bound, entries_bound
from sandboxlib.engine.entries import look
from sandboxlib.engine.patience import patiently
from sandboxlib.engine.request import default_cwd
from sandboxlib.engine.session import Session
from sandboxlib.engine.walk import FILE, FOLDER, PARENT, Requests, at, opening, seen
from sandboxlib.engine.walk import remove as remove_tree
from sandboxlib.errors import KernelError, SpecError, ViolationError
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
from sandboxlib.plan.steps import Call, Read

if TYPE_CHECKING:
    from sandboxlib.engine.sandbox import Engine
    from sandboxlib.spec import SandboxSpec

T = TypeVar("T")
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

CHUNK = 1 << 20
#: Bytes of a file that are read along with its opening.
BEGINNING = 48 << 10
# Below this a copy takes less time than handing it to a thread.
_SMALL = 64 << 10
# A FIFO that nobody reads does not hold the helper, and no terminal becomes anyone's.
ODD = O_NONBLOCK | O_NOCTTY

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


@asynccontextmanager
async def requests(
    engine: Engine, *fds: int, verb: str = "", seconds: float | None = None
) -> AsyncIterator[Requests]:
    """
    A helper inside for the requests of one *verb*, which is named if its *seconds* are over first.

    Raises:
        TimeoutExpired: *seconds* have passed.
    """
    async with (
        Session(engine, *fds, files=True) as session,
        patiently(engine.waiter, verb, seconds) as deadline,
    ):
        asked = Requests(session, deadline)
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


async def regular(
    asked: Requests, call: Call, path: bytes, why: str, *, writing: bool = False
) -> os.stat_result:
    """
    Open a file by *call*, as `FILE`, and see to it that it is one of ordinary bytes.

    Raises:
        KernelError: EISDIR.
        ViolationError: It is a FIFO, a device, or one of the kernel's files.
    """
    kind = Call("fstatfs", (FILE, bytes(120)), why, tell=1)
    answer = await asked.ask(call, look(FILE, b"", why=why), *([kind] if writing else []))
    found = seen(FILE, answer.told[0])
    check_regular(found.st_mode, path)
    if writing and int.from_bytes(answer.told[1].data[:8], "little") & 0xFFFFFFFF in _KERNELS:
        raise ViolationError("a file of the kernel's; what is written there is not stored", os.fsdecode(path))
    return found


async def begun(asked: Requests, call: Call, path: bytes, why: str) -> tuple[os.stat_result, bytes]:
    """
    As `regular`, and read what a small file has along with that: its first `BEGINNING` bytes at most.

    Of another kind of file it may read something too, which nobody gets.
    """
    first = Read("read", FILE, BEGINNING, why, ignore=(errno.EAGAIN, errno.EISDIR))
    answer = await asked.ask(call, look(FILE, b"", why=why), first)
    found = seen(FILE, answer.told[0])
    check_regular(found.st_mode, path)
    return found, b"".join(each.data for each in answer.told[1:])


def check_regular(mode: int, path: bytes) -> None:
    """Raises: KernelError: EISDIR. ViolationError: It is a FIFO or a device."""
    name = os.fsdecode(path)
    if modes.S_ISDIR(mode):
        raise KernelError(errno.EISDIR, f'open("{name}")', "a file inside")
    if not modes.S_ISREG(mode):
        raise ViolationError(
            "not a regular file; what it is made of would be the program's to wait for", name
        )


async def worked(engine: Engine, size: int, function: Callable[[], T]) -> T:
    """Run *function*, which moves about *size* bytes, where it holds nobody up."""
    return function() if size <= _SMALL else await engine.waiter.work(function)


async def read(
    engine: Engine, path: Path, *, max_size: int | str | None = READ, seconds: float | None = None
) -> bytes:
    """Read a whole file into memory."""
    where = locate(engine.spec, path)
    bound = bytes_bound(max_size, f"files.read({path!r})")
    async with requests(engine, verb=f"files.read({path!r})", seconds=seconds) as asked, about(where):
        why = "read a file inside"
        call = opening(AT_FDCWD, where, O_RDONLY | ODD, why, links=True)
        found, first = await begun(asked, call, where, why)
        # Before more is read: it may be a hole of a terabyte. What the kernel makes up has a size of 0.
        bytes_bound(max_size, f"files.read({path!r})").count(found.st_size)
        pieces = [first]
        bound.count(len(first))
        while len(first) == BEGINNING and (piece := await asked.read(FILE, CHUNK, why)):
            pieces.append(piece)
            bound.count(len(piece))
        return b"".join(pieces)


async def write(
    engine: Engine,
    path: Path,
    data: object,
    *,
    mode: int = 0o644,
    parents: bool = False,
    seconds: float | None = None,
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
    async with requests(engine, verb=f"files.write({path!r})", seconds=seconds) as asked, about(where):
        if parents:
            await make_folders(asked, split(where)[0], 0o755)
        flags = O_WRONLY | O_CREAT | O_TRUNC | ODD
        why = "write a file inside"
        try:
            call = opening(AT_FDCWD, where, flags, why, mode=bits, links=True)
            await regular(asked, call, where, why, writing=True)
        except KernelError as error:
            if error.errno != errno.ENXIO:
                raise
            raise ViolationError("not a regular file", os.fsdecode(where)) from error
        await asked.write(FILE, content, why)


async def names(
    engine: Engine, path: Path, *, max_entries: int | None = ENTRIES, seconds: float | None = None
) -> list[str]:
    """The sorted names in a folder."""
    where = locate(engine.spec, path)
    bound = entries_bound(max_entries, f"files.list({path!r})")
    async with requests(engine, verb=f"files.list({path!r})", seconds=seconds) as asked, about(where):
        why = "list a folder inside"
        await asked.ask(opening(AT_FDCWD, where, O_RDONLY | O_DIRECTORY, why, out=FOLDER, links=True))
        found: list[str] = []
        while more := await asked.entries(why):
            bound.count(len(more))
            found += [os.fsdecode(name) for name, _ in more]
        return sorted(found)


async def stat(
    engine: Engine, path: Path, *, follow: bool = True, seconds: float | None = None
) -> os.stat_result:
    """Look at a file as one would from inside; at a link itself without *follow*."""
    where = locate(engine.spec, path)
    async with requests(engine, verb=f"files.stat({path!r})", seconds=seconds) as asked, about(where):
        flags = O_PATH | (NOTHING if follow else O_NOFOLLOW)
        why = "look at a file inside"
        return await asked.opened(opening(AT_FDCWD, where, flags, why, links=True), why)


async def exists(engine: Engine, path: Path, *, seconds: float | None = None) -> bool:
    """Tell whether there is something; a link that leads nowhere is nothing."""
    try:
        await stat(engine, path, seconds=seconds)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return False
        raise
    return True


async def mkdir(
    engine: Engine,
    path: Path,
    mode: int = 0o755,
    *,
    parents: bool = False,
    exist_ok: bool = False,
    seconds: float | None = None,
) -> None:
    """Make a folder."""
    where, bits = locate(engine.spec, path), mode_of(mode, 0o1777)
    async with requests(engine, verb=f"files.mkdir({path!r})", seconds=seconds) as asked, about(where):
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


async def remove(
    engine: Engine, path: Path, *, recursive: bool = False, seconds: float | None = None
) -> None:
    """Remove a file, a link or an empty folder; with *recursive* a folder and all that is in it."""
    where = locate(engine.spec, path)
    async with requests(engine, verb=f"files.remove({path!r})", seconds=seconds) as asked, about(where):
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


async def rename(engine: Engine, old: Path, new: Path, *, seconds: float | None = None) -> None:
    """Give another name, in place of what has it."""
    source, target = locate(engine.spec, old, "old"), locate(engine.spec, new, "new")
    async with requests(engine, verb=f"files.rename({old!r})", seconds=seconds) as asked, about(source):
        (above, name), (other, second) = split(source, "old"), split(target, "new")
        why = "rename inside"
        flags: Named = O_PATH | O_DIRECTORY
        text = f"{PARENT}, {os.fsdecode(name)!r}, {FOLDER}, {os.fsdecode(second)!r}, 0"
        await asked.ask(
            opening(AT_FDCWD, above, flags, why, out=PARENT, links=True),
            opening(AT_FDCWD, other, flags, why, out=FOLDER, links=True),
            Call("renameat2", (PARENT, name, FOLDER, second, 0), why, text=text),
        )


__all__ = ["FILE", "Path", "exists", "mkdir", "names", "read", "remove", "rename", "stat", "write"]
