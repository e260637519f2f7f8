"""
Work on files that are not the user's own: done by a process that is root over the user's ids.

It is a fresh Python, for a program with threads cannot enter a user namespace; it writes no file
but below the folders that it is given.

Kernel: user_namespaces(7), newuidmap(1).
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, final

from sandboxlib import errors
from sandboxlib.errors import KernelError, UnsupportedError
from sandboxlib.image import wire
from sandboxlib.image.compression import CHUNK_IN, Readable
from sandboxlib.image.owner import IdMap, Owner
from sandboxlib.kernel.syscall import write_file

_START = (
    "import json, sys; job = json.loads(sys.argv[1]); sys.path[:] = job['path']; "
    "from sandboxlib.image.worker import main; main(job)"
)
_FOLDERS = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"
_PATIENCE_MS = 100
_STDERR = 1 << 16
_PIPE = 1 << 20
_STEP = "work as root of the user's ids"


def own_ids() -> Owner:
    """The user's own ids alone, as root's: a map that everybody may write."""
    return Owner("range", ((0, os.geteuid(), 1),), ((0, os.getegid(), 1),))


def write_maps(pid: int, owner: Owner) -> None:
    """
    Write the maps of a process that has a new user namespace.

    Raises:
        UnsupportedError: newuidmap(1) or newgidmap(1) is not installed.
        KernelError: A range is not the user's.
    """
    if os.geteuid() == 0 or (owner.uid_map, owner.gid_map) == (own_ids().uid_map, own_ids().gid_map):
        if os.geteuid():
            # Without it only who has CAP_SETGID may write gid_map.
            write_file(f"/proc/{pid}/setgroups", "deny")
        for which, numbers in (("uid", owner.uid_map), ("gid", owner.gid_map)):
            write_file(f"/proc/{pid}/{which}_map", "".join(f"{a} {b} {c}\n" for a, b, c in numbers))
        return
    for which, numbers in (("uid", owner.uid_map), ("gid", owner.gid_map)):
        _write_by_tool(pid, which, numbers)


def _write_by_tool(pid: int, which: str, numbers: IdMap) -> None:
    name = f"new{which}map"
    tool = shutil.which(name, path=_FOLDERS)
    if tool is None:
        raise UnsupportedError(
            "subordinate IDs", f"{name}(1)", "install the package uidmap (or shadow-utils)"
        )
    command = [tool, str(pid), *(str(number) for part in numbers for number in part)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = f"{done.stderr.strip()}; see /etc/sub{which}"
        raise KernelError(errno.EPERM, f"{name}({', '.join(command[1:])})", "write the ID maps", hint)


@final
class Worker:
    """
    One process with one job.

    Args:
        job: What to do, see `sandboxlib.image.worker`.
        ids: The maps of its user namespace.
        fds: Descriptors for it, by their names in *job*; borrowed.
        source: What to pump into its standard input.
        write: Where to what it writes goes.
        progress: Called with the numbers that it reports.
        cancelled: Called often; raises to give up.
    """

    def __init__(
        self,
        job: dict[str, Any],
        ids: Owner,
        fds: dict[str, int | list[int]],
        *,
        source: Readable | None = None,
        write: Callable[[bytes], object] | None = None,
        progress: Callable[[int], None] | None = None,
        cancelled: Callable[[], None] | None = None,
    ) -> None:
        self._job = job
        self._ids = ids
        self._fds = fds
        self._source = source
        self._write = write
        self._progress = progress
        self._cancelled = cancelled
        self._lines = b""
        self._stderr = b""
        self._pending = memoryview(b"")
        self._answer: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """
        Do the job; when this is left the process has ended, in every case.

        Raises:
            SandboxError: As the job itself does, and if there can be no such process.
        """
        with _pipe() as report, _pipe() as control, _pipe() as out:
            process = self._start(report[1], control[0], out[1])
            try:
                for pair, side in ((report, 1), (control, 0), (out, 1)):
                    os.close(pair[side])
                    pair[side] = -1
                self._serve(process, report[0], control[1], out[0])
                status = process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
            finally:
                for stream in (process.stdin, process.stderr):
                    if stream is not None:
                        with suppress(BrokenPipeError):
                            stream.close()
        if "error" in self._answer:
            raise wire.decode_error(self._answer["error"])
        if "result" not in self._answer:
            text = self._stderr.decode(errors="replace").strip()
            raise KernelError(errno.ECHILD, f"worker({self._job['job']})", _STEP, text or f"status {status}")
        found: dict[str, Any] = self._answer["result"]
        return found

    def _start(self, report: int, control: int, out: int) -> subprocess.Popen[bytes]:
        if not sys.executable:
            raise UnsupportedError("a worker process", "the path of a Python interpreter in sys.executable")
        # The same modules as here, wherever they come from; -I and -S: nothing of the user's before.
        package = os.path.dirname(os.path.dirname(os.path.abspath(errors.__file__)))
        path = [os.path.abspath(each) for each in sys.path if each] + [package]
        job = {**self._job, **self._fds, "path": path, "report": report, "control": control, "out": out}
        passed = [report, control, out]
        for value in self._fds.values():
            passed += value if isinstance(value, list) else [value]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, json.dumps(job)],
            stdin=subprocess.DEVNULL if self._source is None else subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=passed,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the program, which ends the worker
            bufsize=0,
        )

    def _serve(self, process: subprocess.Popen[bytes], report: int, control: int, out: int) -> None:
        """Read what comes and pump what goes, until the process has closed all."""
        assert process.stderr is not None
        poll = select.poll()
        reading: dict[int, Callable[[bytes], None]] = {
            report: lambda data: self._reported(data, process.pid, control),
            process.stderr.fileno(): self._complained,
            out: self._wrote,
        }
        for fd in reading:
            poll.register(fd, select.POLLIN)
        pump = process.stdin.fileno() if process.stdin is not None else -1
        if pump >= 0:
            os.set_blocking(pump, False)
            poll.register(pump, select.POLLOUT)
        while reading:
            if self._cancelled is not None:
                self._cancelled()
            for fd, _ in poll.poll(_PATIENCE_MS):
                if fd == pump:
                    if not self._pump(pump):
                        poll.unregister(pump)
                        assert process.stdin is not None
                        process.stdin.close()
                        pump = -1
                    continue
                data = os.read(fd, _PIPE)
                if data:
                    reading[fd](data)
                else:
                    poll.unregister(fd)
                    del reading[fd]

    def _pump(self, fd: int) -> bool:
        assert self._source is not None
        if not self._pending:
            self._pending = memoryview(self._source.read(CHUNK_IN))
            if not self._pending:
                return False
        try:
            self._pending = self._pending[os.write(fd, self._pending) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False  # it has ended, and says why
        return True

    def _reported(self, data: bytes, pid: int, control: int) -> None:
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "ready" in said:
                write_maps(pid, self._ids)
                os.write(control, b"1")
            elif "progress" in said:
                if self._progress is not None:
                    self._progress(said["progress"])
            else:
                self._answer = said

    def _complained(self, data: bytes) -> None:
        self._stderr = (self._stderr + data)[-_STDERR:]

    def _wrote(self, data: bytes) -> None:
        if self._write is not None:
            self._write(data)


@contextmanager
def _pipe() -> Iterator[list[int]]:
    ends = list(os.pipe2(os.O_CLOEXEC))
    try:
        yield ends
    finally:
        for fd in ends:
            if fd >= 0:
                os.close(fd)


def plain_file(source: Readable) -> int:
    """The descriptor of *source*, at the place where it is to be read, if it is a file; else -1."""
    if not isinstance(source, (io.FileIO, io.BufferedReader)):
        return -1
    try:
        fd = source.fileno()
        if stat.S_ISREG(os.fstat(fd).st_mode):
            # What has been read ahead is read again.
            os.lseek(fd, source.tell(), os.SEEK_SET)
            return fd
    except OSError:
        return -1  # a file of Python's own, such as one that decompresses
    return -1


def words(owner: Owner) -> dict[str, Any]:
    """An owner as JSON has it."""
    return {"kind": owner.kind, "uid_map": owner.uid_map, "gid_map": owner.gid_map}


def unpack_apart(
    source: Readable,
    folder: int,
    owner: Owner,
    lowers: Sequence[int],
    options: dict[str, Any],
    progress: Callable[[int], None] | None,
    cancelled: Callable[[], None],
) -> dict[str, Any]:
    """Unpack in a worker; see `sandboxlib.image.unpack.unpack`."""
    fds: dict[str, int | list[int]] = {"folder": folder, "lowers": list(lowers)}
    file = plain_file(source)
    if file >= 0:
        fds["source"] = file
    job = {"job": "unpack", "owner": words(owner), **options}
    return Worker(
        job,
        owner,
        fds,
        source=None if file >= 0 else source,
        progress=progress,
        cancelled=cancelled,
    ).run()


def remove_apart(folder: int, name: str, owner: Owner) -> None:
    """Remove a tree in a worker. Raises: KernelError."""
    job = {"job": "remove", "owner": words(owner), "name": name}
    Worker(job, owner, {"folder": folder}).run()


def merge_apart(
    lowers: Sequence[int],
    folder: int,
    owner: Owner,
    mark: str,
    cancelled: Callable[[], None],
    *,
    owners: Sequence[tuple[str, int, int]] = (),
    mode: int = 0o755,
    mtime: int | None = None,
) -> None:
    """
    Copy layers into one folder in a worker; see `sandboxlib.image.merge`. Raises: KernelError.

    *owners* are paths in it with the users and groups that they are to have; *mode* and *mtime* are its own.
    """
    ids = owner if owner.kind == "range" else own_ids()
    given = list(owners) if owner.kind == "range" else []
    job = {"job": "merge", "owner": words(owner), "mark": mark, "owners": given, "mode": mode, "mtime": mtime}
    Worker(job, ids, {"folder": folder, "lowers": list(lowers)}, cancelled=cancelled).run()


def look_apart(
    lowers: Sequence[int], owner: Owner, mark: str, paths: Sequence[bytes]
) -> dict[str, dict[str, list[int]]]:
    """Look at layers in a worker, which may read all of them; see `sandboxlib.image.lowers.tell`."""
    ids = owner if owner.kind == "range" else own_ids()
    job = {"job": "look", "owner": words(owner), "mark": mark, "paths": [os.fsdecode(path) for path in paths]}
    found: dict[str, dict[str, list[int]]] = Worker(job, ids, {"lowers": list(lowers)}).run()["found"]
    return found


def pack_apart(
    folder: int,
    write: Callable[[bytes], object],
    owner: Owner,
    options: dict[str, Any],
    cancelled: Callable[[], None],
) -> dict[str, Any]:
    """Pack in a worker; see `sandboxlib.image.pack`."""
    ids = owner if owner.kind == "range" else own_ids()
    job = {"job": "pack", "owner": words(owner), **options}
    return Worker(job, ids, {"folder": folder}, write=write, cancelled=cancelled).run()


__all__ = [
    "Worker",
    "look_apart",
    "merge_apart",
    "own_ids",
    "pack_apart",
    "remove_apart",
    "unpack_apart",
    "write_maps",
]
