"""Encodes launcher programs: the language of ``_native/protocol.h``."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from sandboxlib._native import lib
from sandboxlib.kernel.syscall import number

_HEADER = struct.Struct("=BBHIiiHHI6Q")
_SIZE = _HEADER.size
_MASK = (1 << 64) - 1
_numbers: dict[str, int] = {}

#: Names that are looked at by one record, and bytes that are told of each.
STATS, STAT = int(lib.SBX_ROOM) // int(lib.SBX_STAT), int(lib.SBX_STAT)
CONTROL, PROGRAM, FIRST = int(lib.SBX_CONTROL), int(lib.SBX_PROGRAM), int(lib.SBX_FIRST)
REPORT_KINDS = {"child": int(lib.SBX_CHILD), "ready": int(lib.SBX_READY)}


def _record(
    op: int,
    args: Sequence[int | bytes],
    index: int,
    *,
    nr: int = 0,
    out: int = -1,
    flags: int = 0,
    ignore: tuple[int, ...] = (),
) -> bytes:
    numbers = [0, 0, 0, 0, 0, 0]
    pointers = 0
    data = b""
    for i, arg in enumerate(args):
        if isinstance(arg, int):
            numbers[i] = arg & _MASK
        else:
            # Eight-byte alignment, so that structs in it are aligned too.
            numbers[i] = _SIZE + len(data)
            pointers |= 1 << i
            data += arg + bytes(8 - len(arg) % 8)
    first, second = (*ignore, 0, 0)[:2]
    size = _SIZE + len(data)
    return _HEADER.pack(op, pointers, flags, size, nr, out, first, second, index, *numbers) + data


def call(
    name: str,
    args: Sequence[int | str | bytes],
    index: int,
    *,
    out: int = -1,
    ignore: tuple[int, ...] = (),
    positive: bool = False,
    absolute: bool = False,
    each: int = 0,
    tell: int = -1,
) -> bytes:
    """One system call; strings and buffers become pointers into the record. What stands in *tell* is told."""
    nr = _numbers.get(name)
    if nr is None:
        nr = _numbers[name] = number(name)
    flags = (lib.SBX_POSITIVE if positive else 0) | (lib.SBX_ABSOLUTE if absolute else 0)
    plain: list[int | bytes] = [os.fsencode(arg) if isinstance(arg, str) else arg for arg in args]
    if each:
        flags |= lib.SBX_EACH
        plain += [0] * (5 - len(plain)) + [each]
    if tell >= 0:
        flags |= lib.SBX_TELL
        out = tell
    return _record(lib.SBX_SYSCALL, plain, index, nr=nr, out=out, flags=flags, ignore=ignore)


def write(
    path: str, data: bytes, index: int, directory: int, flags: int, mode: int, ignore: tuple[int, ...]
) -> bytes:
    """Open, write, close."""
    return _record(
        lib.SBX_WRITE, (directory, os.fsencode(path), flags, mode, data, len(data)), index, ignore=ignore
    )


def pointer(at: int, offset: int, index: int) -> bytes:
    """In the next record, whose first buffer stands behind its header: an address into it."""
    return _record(lib.SBX_POINTER, (_SIZE + at, _SIZE + offset), index)


def clone(flags: int, child: bytes, index: int, cgroup: int = -1, *, timed: bool = False) -> bytes:
    """Clone, and what the child does; *timed*: for `watch`."""
    return _record(lib.SBX_CLONE, (flags, cgroup, len(child), int(timed)), index) + child


def watch(nanoseconds: int, tell: int, group: int, index: int) -> bytes:
    """Kill the child after *nanoseconds*, and *group* unless that is -1; tell *tell* how long it lived."""
    return _record(lib.SBX_WATCH, (nanoseconds, tell, group), index)


def child_write(name: str, data: bytes, index: int) -> bytes:
    """Write to a file in the child's folder of /proc."""
    return _record(lib.SBX_CHILD_WRITE, (0, name.encode(), 0, 0, data, len(data)), index)


def child_open(name: str, flags: int, out: int, index: int) -> bytes:
    """Open a file in the child's folder of /proc."""
    return _record(lib.SBX_CHILD_OPEN, (0, name.encode(), flags), index, out=out)


def report(kind: str, fd: int, index: int) -> bytes:
    """Tell the program something, and pass it a descriptor."""
    return _record(lib.SBX_REPORT, (REPORT_KINDS[kind], fd), index)


def execute(paths: Sequence[bytes], argv: Sequence[bytes], env: Sequence[bytes], index: int) -> bytes:
    """Execute the first of *paths* that can be."""
    data = b"\0".join((*paths, *argv, *env)) + b"\0"
    data += bytes(-len(data) % 8 or 8)
    return (
        _HEADER.pack(
            lib.SBX_EXEC,
            0,
            0,
            _SIZE + len(data),
            0,
            -1,
            0,
            0,
            index,
            len(paths),
            len(argv),
            len(env),
            _SIZE,
            0,
            0,
        )
        + data
    )


def serve(index: int) -> bytes:
    """Carry out programs from the control socket."""
    return _record(lib.SBX_SERVE, (), index)


def init(owner: int, tie: int, milliseconds: int, index: int) -> bytes:
    """Be pid 1 until the process *owner* or the pipe *tie* ends, or the time is over unless it is 0."""
    return _record(lib.SBX_INIT, (owner, milliseconds, tie), index)


def read(name: str, fd: int, size: int, index: int, *, ignore: tuple[int, ...] = ()) -> bytes:
    """Tell what the call *name* reads from *fd*, until nothing comes or *size* bytes have."""
    return _record(lib.SBX_READ, (fd, size), index, nr=number(name), ignore=ignore)


def stats(fd: int, names: Sequence[bytes], flags: int, index: int) -> bytes:
    """Tell what each of *names* in a folder is."""
    data = b"".join([name + b"\0" for name in names])
    return _record(lib.SBX_STATS, (fd, data, len(names), flags), index)


def files(names: Sequence[bytes], most: int, index: int) -> bytes:
    """Tell what stands in each of the files *names*, *most* bytes at most."""
    data = b"".join([name + b"\0" for name in names])
    return _record(lib.SBX_FILES, (data, len(names), most), index)


def fits(fd: int, most: int, index: int) -> bytes:
    """Fail where the number in a file is above *most*."""
    return _record(lib.SBX_FITS, (fd, most), index)


def extents(fd: int, begin: int, count: int, index: int) -> bytes:
    """Tell where a file has data, from *begin* on, at *count* places at most."""
    return _record(lib.SBX_EXTENTS, (fd, begin, count), index)


def connect(fd: int, address: bytes, milliseconds: int, index: int, *, ignore: tuple[int, ...] = ()) -> bytes:
    """Connect, again until someone listens."""
    return _record(lib.SBX_CONNECT, (fd, address, len(address), milliseconds), index, ignore=ignore)
