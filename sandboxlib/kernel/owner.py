"""
Whose the things on this machine are that the kernel does not free by itself.

Each has a name that says whose it is, ``sandboxlib-<pid namespace>-<pid>-<start time>-<number>``. The owner
is not the process but what ends with it, and when it executes another program: a lock, on a file of the
run-time folder that is close-on-exec. It is of the kind that a forked child does not have, and that is gone
when the process is, whether or not its parent has asked for its status. The number's upper half is random,
so what one program leaves behind is never mistaken for another's.

Kernel: fcntl(2), record locks; proc_pid_stat(5).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import struct
import threading

from sandboxlib.kernel import folders
from sandboxlib.kernel.descriptor import Fd, openat
from sandboxlib.kernel.syscall import failed

PREFIX = "sandboxlib-"
_NAME = re.compile(PREFIX + r"(\d+)-(\d+)-(\d+)-(\d+)", re.ASCII)
_FILE = re.compile(r"owner-(\d+-\d+-\d+-\d+)", re.ASCII)
#: The lower bits of a name's number count, the upper ones are the owner's key.
_COUNTED = 32
# struct flock: a lock to write, from the start, of one byte.
_LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_FLAGS = os.O_RDWR | os.O_NOFOLLOW

# The token with the pid it was made for, and the keys of this process's owners: made anew after a fork.
_token = (0, "")
_keys: tuple[int, set[int]] = (0, set())


def owner_token() -> str:
    """
    This process as ``<inode of its pid namespace>-<pid>-<start time in ticks>``.

    The start time tells it from a later process with the same pid.

    Kernel: proc_pid_stat(5), field 22.
    """
    global _token  # noqa: PLW0603 - a cache for as long as the process is the same
    pid = os.getpid()
    if _token[0] != pid:
        inode = os.stat("/proc/self/ns/pid").st_ino
        _token = (pid, f"{inode}-{pid}-{_start_time('self')}")
    return _token[1]


def _own_keys() -> set[int]:
    global _keys  # noqa: PLW0603 - as above
    pid = os.getpid()
    if _keys[0] != pid:
        _keys = (pid, set())
    return _keys[1]


class Owner:
    """
    This program, as it is now, as the owner of what has names that it gave out.

    The file of its lock is there as long as it owns something, so that a program which uses nothing leaves
    nothing. Whoever ends one later takes its part: a sandbox has an owner, and does not ask who that is.
    """

    def __init__(self, run_folder: str) -> None:
        self._folder = run_folder
        self._pid = os.getpid()
        self._key = 0
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        self._file = Fd()
        # Of the file, from before it is made until it is gone.
        self._path = ""
        self._locked = False
        self._holders: set[object] = set()

    def hold(self, holder: object) -> None:
        """
        Have the lock from here on, for *holder*, who may then ask for names. Idempotent.

        Raises:
            ViolationError: The run-time folder is not this user's alone.
            KernelError: The lock cannot be had.
        """
        with self._lock:
            self._holders.add(holder)
            if not self._locked:
                self._take()

    def drop(self, holder: object) -> None:
        """Nothing of *holder*'s is left. Idempotent."""
        with self._lock:
            self._holders.discard(holder)
            if self._path and not self._holders:
                self._locked = False
                if self._pid == os.getpid():
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self._path)
                self._file.close()
                self._path = ""

    def name(self) -> str:
        """A name that nothing else has, without `PREFIX`, for whoever has it held."""
        assert self._locked
        return f"{owner_token()}-{self._key << _COUNTED | next(self._numbers)}"

    def _take(self) -> None:
        folders.own(self._folder).close()
        while True:
            self._key = int.from_bytes(os.urandom(4), "little") >> 1
            _own_keys().add(self._key)
            self._path = os.path.join(self._folder, _file(owner_token(), self._key))
            try:
                openat(self._path, _FLAGS | os.O_CREAT | os.O_EXCL, why="who owns what", into=self._file)
            except FileExistsError:
                continue
            # Until it is locked, somebody who tidies up may take it for a dead program's.
            fd = self._file.fileno()
            if _locked(fd) and _is_there(self._path, fd):
                self._locked = True
                return


def _file(token: str, key: int) -> str:
    return f"owner-{token}-{key}"


def _locked(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETLK, _LOCK)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise failed(error, f"fcntl({fd}, F_SETLK)", "who owns what") from None
    return True


def _is_there(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


# ---- the dead ---------------------------------------------------------------------------------


def is_dead(name: str, run_folder: str) -> bool:
    """
    Tell whether the owner of what is called *name* has certainly ended.

    To be asked after *name* was seen: an owner has its lock before it has anything else.
    """
    match = _NAME.fullmatch(name)
    return match is not None and _gone(*match.groups(), run_folder=run_folder)


def owner_of(name: str) -> str:
    """What all names of one owner have in common; empty if it is no such name."""
    match = _NAME.fullmatch(name)
    return "" if match is None else f"{match[1]}-{match[2]}-{match[3]}-{int(match[4]) >> _COUNTED}"


def _gone(
    namespace: str, pid: str, start: str, number: str, *, run_folder: str, shift: int = _COUNTED
) -> bool:
    token, key = f"{namespace}-{pid}-{start}", int(number) >> shift
    if token == owner_token():
        # Of this very process: made by it, or by the program that it was before it executed this one.
        return key not in _own_keys()
    # No file of this process's own is opened here: closing it would end its lock.
    path = os.path.join(run_folder, _file(token, key))
    with contextlib.suppress(FileNotFoundError), openat(path, _FLAGS) as fd:
        (kind,) = struct.unpack_from("h", fcntl.fcntl(fd, fcntl.F_GETLK, _LOCK))
        return bool(kind == fcntl.F_UNLCK)
    return _process_is_gone(namespace, pid, start)


def _process_is_gone(namespace: str, pid: str, start: str) -> bool:
    """The same for an owner whose lock is not to be seen here: it has another run-time folder, or had one."""
    # A /proc of another pid namespace would show other processes under these numbers.
    if namespace != owner_token().partition("-")[0] or os.readlink("/proc/self") != str(os.getpid()):
        return False
    try:
        # Asked first, since /proc may hide the processes of others (hidepid= in proc(5)).
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    except OverflowError:
        return True
    try:
        # Start times are shown by the reader's clock: in another time namespace they
        # differ for one and the same process.
        if _start_time(pid) != start and _clock(pid) == _clock("self"):
            return True
        # Nobody has asked for its status yet; or its first thread alone has ended.
        return _fields(pid)[0] == "Z" and len(os.listdir(f"/proc/{pid}/task")) == 1
    except OSError as error:
        if error.errno is None:
            raise
        # It ended meanwhile, or is another user's and hidden: the next who looks will see.
        return False


def remove_locks(run_folder: str) -> None:
    """Remove the files of dead owners, of whom nothing else is left."""
    try:
        names = os.listdir(run_folder)
    except FileNotFoundError:
        return
    for name in names:
        match = _FILE.fullmatch(name)
        if match is None:
            continue
        numbers = match[1].split("-")
        if not _gone(*numbers, run_folder=run_folder, shift=0):
            continue
        path = os.path.join(run_folder, name)
        with contextlib.suppress(FileNotFoundError), openat(path, _FLAGS) as fd:
            # Whoever makes one, and has not locked it yet, is refused the lock, and makes another.
            if _locked(fd) and _is_there(path, fd):
                os.unlink(path)


def _fields(pid: str) -> list[str]:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        # The command's name may hold spaces and brackets: count from the last bracket.
        return file.read().rpartition(")")[2].split()


def _start_time(pid: str) -> str:
    return _fields(pid)[19]


def _clock(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/time")
    except FileNotFoundError:
        # A kernel without time namespaces has one clock for all.
        return ""


__all__ = ["PREFIX", "Owner", "is_dead", "owner_of", "owner_token", "remove_locks"]
