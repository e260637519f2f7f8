"""
The folders of this library's: for what ends with a boot, and for what outlives programs.

Both may lie where others can make names too. So whose a folder is and who may write to it is looked at
before anything in it is believed, and on the way to it nothing may be another user's.

Spec: XDG Base Directory Specification. Kernel: proc_sys_kernel(5), overflowuid.
"""

from __future__ import annotations

import errno
import os
import stat

from sandboxlib import quantity
from sandboxlib.errors import KernelError, ViolationError
from sandboxlib.kernel.descriptor import Fd, openat

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
#: Whom the kernel shows in place of users that a user namespace does not have: those of the host above.
_NOBODY = 65534
#: As many links on one way as the kernel follows: path_resolution(7).
_LINKS = 40


def run_folder(uid: int) -> str:
    """
    Where user *uid* keeps locks and what names running sandboxes; it need not be there yet.

    Below /run for root; for others what ``$XDG_RUNTIME_DIR`` names, if it is his alone, and else, in place of
    a name in /tmp that anybody could make first, a folder of his own state.

    Raises:
        SpecError: As `state_folder`.
    """
    # Root of a user namespace need not be root of the machine's files.
    if uid == 0 and os.access("/run", os.W_OK):
        return "/run/sandboxlib"
    for runtime in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        if runtime.startswith("/") and _serves(runtime, uid):
            return os.path.join(runtime, f"sandboxlib-{uid}")
    state = state_folder()
    above = os.path.dirname(state)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if os.access(above, os.W_OK) and not _fault(above, uid):
        return os.path.join(state, "run")
    # A user without a home: what somebody else has there is refused when it is to be used.
    return f"/tmp/sandboxlib-{uid}"


def state_folder() -> str:
    """
    Where this user's volumes and images lie: all that outlives a program.

    Raises:
        SpecError: SANDBOXLIB_STATE_DIR is set, and is no absolute path.
    """
    if chosen := os.environ.get("SANDBOXLIB_STATE_DIR"):
        return quantity.absolute("SANDBOXLIB_STATE_DIR", chosen)
    # Root of a user namespace need not be root of the machine's files.
    if os.geteuid() == 0 and os.access("/var/lib", os.W_OK):
        return "/var/lib/sandboxlib"
    data = os.environ.get("XDG_DATA_HOME", "")
    # The XDG base directory specification: what is relative is to be ignored.
    data = data if data.startswith("/") else os.path.expanduser("~/.local/share")
    return os.path.join(data, "sandboxlib")


def own(path: str, mode: int = 0o700, *, make: bool = True) -> Fd:
    """
    Open the folder *path*, which is made where it is missing, with those above it, unless *make* is False.

    Raises:
        ViolationError: It is another user's, or others may write to it, or to what leads there.
        KernelError: It cannot be made or opened.
    """
    try:
        fd = openat(path, _FOLDER, why="a folder of this library's")
    except FileNotFoundError:
        if not make:
            raise
        _make(path, mode)
        fd = openat(path, _FOLDER, why="a folder of this library's")
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise ViolationError(f"not a folder but something else, such as a link: {_REMEDY}", path) from None
    found, uid = os.fstat(fd.fileno()), os.geteuid()
    if fault := _whose(found, uid) or _fault(os.path.dirname(path), uid):
        raise ViolationError(f"{fault}: {_REMEDY}", path)
    return fd


_REMEDY = "remove it, or have XDG_RUNTIME_DIR or SANDBOXLIB_STATE_DIR name a folder that is yours alone"


def is_own(path: str) -> bool:
    """Is the folder *path* there, and what `own` would open?"""
    try:
        own(path, make=False).close()
    except (KernelError, ViolationError):
        return False
    return True


def _make(path: str, mode: int) -> None:
    above = os.path.dirname(path)
    if not os.path.lexists(above):
        _make(above, 0o700)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno is None:
            raise
        raise KernelError(error.errno, f'mkdir("{path}")', "a folder of this library's") from None


def _whose(found: os.stat_result, uid: int) -> str:
    """What is wrong with a folder of ours; empty if nothing is."""
    if found.st_uid != uid:
        return f"it belongs to user {found.st_uid}, not to {uid}"
    if _is_shared(found, uid):
        return f"others may write to it (its mode is {stat.S_IMODE(found.st_mode):04o})"
    return ""


def _is_shared(found: os.stat_result, uid: int) -> bool:
    """May others write to it? A group of root's, or that is the user's alone, are no others."""
    alone = found.st_gid in (0, uid) and (not found.st_gid or found.st_gid == os.getegid())
    return bool(found.st_mode & (stat.S_IWOTH | (0 if alone else stat.S_IWGRP)))


def _serves(runtime: str, uid: int) -> bool:
    """Is it a folder of the user's alone, as it has to be? Another's is often inherited, by su(1)."""
    try:
        found = os.stat(runtime)
    except OSError as error:
        if error.errno is None:
            raise
        return False
    return stat.S_ISDIR(found.st_mode) and not _whose(found, uid) and not _fault(runtime, uid)


def _fault(path: str, uid: int) -> str:
    """
    Why somebody else could exchange what *path* leads to; empty where nobody can.

    Each folder on the way is root's or the user's, and so are the links; where others may write, only
    owners remove names.
    """
    trusted = (0, uid, _NOBODY)
    at, left = "/", [part for part in path.split("/") if part not in ("", ".")][::-1]
    links = 0
    while True:
        try:
            found = os.lstat(at)
        except OSError as error:
            if error.errno is None:
                raise
            return f"{at}, on the way to it: {error.strerror}"
        if stat.S_ISLNK(found.st_mode):
            if found.st_uid not in trusted:
                return f"{at} is a link of user {found.st_uid}'s on the way to it"
            links += 1
            if links > _LINKS:
                return f"{at} is a link that leads to itself"
            target = os.readlink(at)
            left += [part for part in target.split("/") if part not in ("", ".")][::-1]
            at = "/" if target.startswith("/") else os.path.dirname(at)
            continue
        if found.st_uid not in trusted:
            return f"{at}, on the way to it, belongs to user {found.st_uid}"
        if _is_shared(found, uid) and not found.st_mode & stat.S_ISVTX:
            return f"others may write to {at}, on the way to it"
        if not left:
            return ""
        part = left.pop()
        at = os.path.dirname(at) if part == ".." else os.path.join(at, part)


__all__ = ["is_own", "own", "run_folder", "state_folder"]
