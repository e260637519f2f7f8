"""
The process that `sandboxlib.image.apart` starts: root over a user's ids, for one job.

All modules are loaded before it becomes that: afterwards it may have no right to read them.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

import attrs

from sandboxlib.errors import SandboxError
from sandboxlib.image import wire
from sandboxlib.image.content import How
from sandboxlib.image.lowers import tell
from sandboxlib.image.merge import dress, merge
from sandboxlib.image.omitted import Omitted
from sandboxlib.image.owner import Owner
from sandboxlib.image.pack import pack_here
from sandboxlib.image.unpack import Limits, Policy, remove_here, unpack_here
from sandboxlib.kernel.syscall import syscall

_CLONE_NEWUSER = 0x10000000


class _Gone(Exception):  # noqa: N818 - never seen by anybody
    """The program that this process works for has ended."""


def _say(fd: int, what: dict[str, Any]) -> None:
    data = memoryview(json.dumps(what).encode() + b"\n")
    while data:
        data = data[os.write(fd, data) :]


def _enter(job: dict[str, Any]) -> None:
    """Become root of a new user namespace, once the program has written its maps."""
    syscall("unshare", _CLONE_NEWUSER)
    _say(job["report"], {"ready": True})
    if os.read(job["control"], 1) != b"1":
        raise _Gone
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.umask(0o022)


def _do(job: dict[str, Any]) -> dict[str, Any]:
    owner = Owner(**job["owner"])
    control = select.poll()
    control.register(job["control"], select.POLLIN)

    def cancelled() -> None:
        if control.poll(0):
            raise _Gone

    if job["job"] == "unpack":
        with os.fdopen(job.get("source", 0), "rb", buffering=0) as source:
            done = unpack_here(
                source,
                job["folder"],
                owner,
                job["lowers"],
                Limits(**job["limits"]),
                Policy(**job["policy"]),
                lambda count: _say(job["report"], {"progress": count}),
                cancelled,
            )
        return attrs.asdict(done)
    if job["job"] == "merge":
        # Who is not in the map stays the one that the kernel shows for it.
        merge(job["lowers"], job["folder"], job["mark"], lambda uid, gid: (uid, gid), cancelled)
        for path, uid, gid in job["owners"]:
            os.chown(path, uid, gid, dir_fd=job["folder"], follow_symlinks=False)
        dress(job["folder"], job["mode"], job["mtime"])
        return {}
    if job["job"] == "look":
        return {"found": tell(job["lowers"], job["mark"], map(os.fsencode, job["paths"]))}
    if job["job"] == "remove":
        remove_here(job["folder"], job["name"])
        return {}

    def write(data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(job["out"], rest) :]

    omit = Omitted.of_words(job["omit"])
    return attrs.asdict(
        pack_here(job["folder"], write, owner, How(*job["how"]), omit=omit, cancelled=cancelled)
    )


def main(job: dict[str, Any]) -> None:
    """Do the job and say how it went."""
    try:
        _enter(job)
        _say(job["report"], {"result": _do(job)})
    except SandboxError as error:
        _say(job["report"], {"error": wire.encode_error(error)})
    except (_Gone, BrokenPipeError):
        sys.exit(1)


__all__ = ["main"]
