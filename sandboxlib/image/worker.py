"""
What has to be done in a user namespace with subordinate IDs: by a fresh Python in one.

It is told by its arguments what to do, gets the folders and files as descriptors, and answers in lines
of JSON. Its IDs are written by newuidmap(1) and newgidmap(1), which check that they are the user's.

Kernel: user_namespaces(7); unshare(2), which only a process with one thread may call for this.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import attrs

from sandboxlib.errors import ImageError, KernelError, SandboxError, UnsupportedError, ViolationError

if TYPE_CHECKING:
    from sandboxlib.image.extract import Limits
    from sandboxlib.image.locks import Cancelled
    from sandboxlib.image.owner import Owner, Ranges
    from sandboxlib.image.pack import Packed
    from sandboxlib.image.unpack import Unpacked

_TOOLS = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"
_CLONE_NEWUSER = 0x10000000
#: Seconds between two looks at whether it is to be given up.
_LOOK = 0.1


def unpack_inside(
    source: IO[bytes],
    folder: int,
    owner: Owner,
    lowers: Sequence[int],
    limits: Limits,
    progress: Callable[[int], object] | None,
    cancelled: Cancelled,
) -> Unpacked:
    """`sandboxlib.image.unpack.unpack`, for an owner with a range."""
    from sandboxlib.image.unpack import Unpacked

    task = {"do": "unpack", "limits": attrs.asdict(limits), "lowers": len(lowers)}
    found = _ask(task, owner, (source.fileno(), folder, *lowers), cancelled, progress=progress)
    return Unpacked(*found)


def remove_inside(folder: int, name: str, owner: Owner) -> None:
    """`sandboxlib.image.unpack.remove_tree`, for an owner with a range."""
    _ask({"do": "remove", "name": name}, owner, (folder,), lambda: None)


def pack_inside(
    kind: str,
    folder: int,
    write: Callable[[bytes], object],
    owner: Owner,
    left_out: Collection[bytes],
    cancelled: Cancelled,
) -> Packed:
    """`sandboxlib.image.pack.pack_tree` and ``pack_changes``, for an owner with a range."""
    from sandboxlib.image.pack import Packed

    task = {"do": "pack", "kind": kind, "left_out": sorted(map(os.fsdecode, left_out))}
    return Packed(*_ask(task, owner, (folder,), cancelled, write=write))


# ---- on this side ---------------------------------------------------------------------------------


def _ask(
    task: dict[str, Any],
    owner: Owner,
    fds: tuple[int, ...],
    cancelled: Cancelled,
    *,
    progress: Callable[[int], object] | None = None,
    write: Callable[[bytes], object] | None = None,
) -> list[Any]:
    """Have a worker do *task*; returns what it answers, raises what it raised."""
    with _worker(task, owner, fds) as (process, answers, data):
        lines = _Lines()
        answer: dict[str, Any] | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(answers, selectors.EVENT_READ)
            selector.register(data, selectors.EVENT_READ)
            while selector.get_map():
                cancelled()
                for key, _ in selector.select(_LOOK):
                    raw = os.read(key.fd, 1 << 20)
                    if not raw:
                        selector.unregister(key.fd)
                    elif key.fd == data:
                        assert write is not None
                        write(raw)
                    else:
                        for line in lines.feed(raw):
                            found = json.loads(line)
                            if "progress" not in found:
                                answer = found
                            elif progress is not None:
                                progress(found["progress"])
        _, said = process.communicate()
    if answer is None:
        text = said.decode(errors="replace").strip()[-2000:] or f"status {process.returncode}"
        raise KernelError(5, "a process in a user namespace of subordinate IDs", "work on a layer", text)
    if "error" in answer:
        raise _raised(answer["error"])
    result: list[Any] = answer["result"]
    return result


class _Lines:
    def __init__(self) -> None:
        self._rest = b""

    def feed(self, raw: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + raw).split(b"\n")
        return lines


@contextmanager
def _worker(
    task: dict[str, Any], owner: Owner, fds: tuple[int, ...]
) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """A worker; a descriptor with its answers, and one with data. It is gone when the block is left."""
    tools = [_tool(f"new{which}map") for which in ("uid", "gid")]
    answers, answering = os.pipe2(os.O_CLOEXEC)
    data, writing = os.pipe2(os.O_CLOEXEC)
    ours = [answers, data]
    theirs = [answering, writing]
    process = None
    try:
        task = {**task, "fds": fds, "answer": answering, "data": writing, "owner": attrs.asdict(owner)}
        script = f"import sys; sys.path[:] = {sys.path!r}\nfrom sandboxlib.image.worker import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", script, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(*fds, *theirs),
            env={"LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        while theirs:
            os.close(theirs.pop())
        # It says so when it has its user namespace.
        if os.read(answers, 1) != b"\n":
            said = (process.stderr.read() if process.stderr else b"").decode(errors="replace").strip()
            raise UnsupportedError(
                "files with subordinate IDs", "leave to make a user namespace", said[-500:]
            )
        for tool, ranges in zip(tools, (owner.uid_map, owner.gid_map), strict=True):
            _map(tool, process.pid, ranges)
        assert process.stdin is not None
        process.stdin.write(b"!")
        process.stdin.flush()
        yield process, answers, data
    finally:
        for fd in (*ours, *theirs):
            os.close(fd)
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stderr):
                if pipe is not None:
                    pipe.close()


def _tool(name: str) -> str:
    found = shutil.which(name, path=_TOOLS)
    if found is None:
        raise UnsupportedError(
            "subordinate IDs", f"{name}(1)", "install the package uidmap (or shadow-utils)"
        )
    return found


def _map(tool: str, pid: int, ranges: Ranges) -> None:
    numbers = [str(number) for line in ranges for number in line]
    done = subprocess.run([tool, str(pid), *numbers], capture_output=True, text=True, check=False)
    if done.returncode:
        which = os.path.basename(tool)[3:6]
        call = f"{os.path.basename(tool)}({pid}, {' '.join(numbers)})"
        raise KernelError(1, call, "write the ID maps", f"{done.stderr.strip()}; see /etc/sub{which}")


_KINDS: dict[str, Callable[..., SandboxError]] = {
    "ImageError": ImageError,
    "ViolationError": ViolationError,
    "UnsupportedError": UnsupportedError,
    "KernelError": KernelError,
}


def _raised(error: list[Any]) -> SandboxError:
    kind, *arguments = error
    return _KINDS[kind](*arguments)


def _said(error: SandboxError) -> list[Any]:
    """An error so that `_raised` makes the same of it."""
    match error:
        case KernelError():
            return ["KernelError", error.errno, error.call, error.step, error.hint]
        case UnsupportedError():
            return ["UnsupportedError", error.feature, error.needs, error.hint]
        case ViolationError():
            return ["ViolationError", str(error).removeprefix(f"{error.path}: "), error.path]
        case ImageError():
            return ["ImageError", str(error).removeprefix(f"{error.reference}: "), error.reference]
    raise error


# ---- on the other side ----------------------------------------------------------------------------


def main() -> None:
    """Be a worker."""
    from sandboxlib.kernel.syscall import syscall

    task = json.loads(sys.argv[1])
    answer = task["answer"]
    syscall("unshare", _CLONE_NEWUSER)
    os.write(answer, b"\n")
    if sys.stdin.buffer.read(1) != b"!":
        sys.exit("nobody has given it IDs")
    os.setresgid(0, 0, 0)
    os.setgroups([])
    os.setresuid(0, 0, 0)
    os.umask(0)
    try:
        said: dict[str, Any] = {"result": _do(task)}
    except SandboxError as error:
        said = {"error": _said(error)}
    os.write(answer, json.dumps(said).encode() + b"\n")


def _do(task: dict[str, Any]) -> list[Any]:
    from sandboxlib.image.owner import Owner

    # Inside, the numbers are those of the image.
    owner = Owner("range", *(tuple(map(tuple, task["owner"][name])) for name in ("uid_map", "gid_map")))
    fds = task["fds"]
    if task["do"] == "unpack":
        from sandboxlib.image.extract import Limits
        from sandboxlib.image.unpack import unpack_here

        def tell(read: int) -> None:
            os.write(task["answer"], json.dumps({"progress": read}).encode() + b"\n")

        with open(fds[0], "rb") as source:
            limits = Limits(**task["limits"])
            return list(unpack_here(source, fds[1], owner, fds[2:], limits, tell, lambda: None))
    if task["do"] == "remove":
        from sandboxlib.image.removal import remove_at

        remove_at(fds[0], os.fsencode(task["name"]))
        return []
    from sandboxlib.image.pack import pack_here

    with open(task["data"], "wb", buffering=1 << 20) as file:
        left_out = frozenset(map(os.fsencode, task["left_out"]))
        return list(pack_here(task["kind"], fds[0], file.write, owner, None, left_out, lambda: None))


__all__ = ["main", "pack_inside", "remove_inside", "unpack_inside"]
