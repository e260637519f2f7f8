"""
Named volumes: folders that outlive sandboxes, shared by those that mount them.

A volume is a folder below ``/var/lib/sandboxlib/volumes``, or a user's
``$XDG_DATA_HOME/sandboxlib/volumes``, or ``$SANDBOXLIB_STATE_DIR/volumes`` where that is set.
Who uses one holds a shared lock on the folder itself,
which the kernel drops when the program ends, however it ends; who removes one needs the lock
for itself alone.

Kernel: flock(2).
"""

from __future__ import annotations

import fcntl
import os

from sandboxlib import quantity
from sandboxlib.engine.current import program
from sandboxlib.engine.outside import remove_below
from sandboxlib.engine.waiter import BLOCKING, complete
from sandboxlib.errors import KernelError, SpecError, StateError, UnsupportedError
from sandboxlib.mount import Volume, named

# No name of a volume begins with a dot.
_REMOVED = ".removed-"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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


def folder() -> str:
    """The folder of all volumes."""
    return os.path.join(state_folder(), "volumes")


def volume_path(name: str) -> str:
    """Where the files of volume *name* lie, whether or not it was made yet."""
    return os.path.join(folder(), name)


def acquire(name: str, size: int | None) -> tuple[int, bool]:
    """
    Make volume *name* if it does not exist.

    Returns:
        A descriptor that keeps it from being removed, owned by the caller; and whether it is new.

    Raises:
        UnsupportedError: A limit that nothing here can hold.
        KernelError: It cannot be made.
    """
    if size is not None:
        raise UnsupportedError(
            f"a limit on the size of volume {name!r}",
            f"a file system at {folder()} that counts by folder",
            "leave size= out, or put the volumes on a file system of this size",
        )
    path = volume_path(name)
    try:
        os.makedirs(os.path.dirname(state_folder()), exist_ok=True)
        for above in (state_folder(), folder()):
            # Only the owner may enter: what lies in there is of other users, as far as the kernel knows.
            _mkdir(above, 0o700)
        while True:
            made = _mkdir(path, 0o755)
            try:
                fd = os.open(path, _OPEN)
            except FileNotFoundError:
                continue  # removed in between
            # Held for itself alone only for the moment of a removal.
            fcntl.flock(fd, fcntl.LOCK_SH)
            if _is(path, fd):
                break
            os.close(fd)
        if made:
            os.fchmod(fd, 0o755)
    except OSError as error:
        raise KernelError(error.errno or 0, f'mkdir("{path}")', f"volume {name!r}") from None
    return fd, made


def _mkdir(path: str, mode: int) -> bool:
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return False
    return True


def _is(path: str, fd: int) -> bool:
    """Is what *path* names now what *fd* is?"""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def list_volumes() -> tuple[Volume, ...]:
    """All volumes of this user, by name."""
    return tuple(Volume(name) for name in sorted(_names()))


def _names() -> list[str]:
    found = []
    try:
        entries = os.listdir(folder())
    except FileNotFoundError:
        return []
    for name in entries:
        try:
            found.append(named("name", name))
        except SpecError:
            continue  # not a volume: what is being removed, or somebody else's
    return found


def remove_volume(name: str) -> None:
    """
    Remove volume *name* with all that is in it.

    Raises:
        StateError: A sandbox uses it, or there is no such volume.
        KernelError: It cannot be removed.
    """
    path = volume_path(name)
    try:
        fd = os.open(path, _OPEN)
    except FileNotFoundError:
        raise StateError(f"there is no volume {name!r}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"volume {name!r} is in use") from None
        if not _is(path, fd):
            raise StateError(f"there is no volume {name!r}")
        # From here on the name is free, and a program that ends now leaves what `prune_volumes` removes.
        removed = _REMOVED + os.urandom(8).hex()
        os.rename(path, os.path.join(folder(), removed))
    finally:
        os.close(fd)
    _remove(removed)


def _remove(name: str) -> None:
    fd = os.open(folder(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        complete(remove_below(BLOCKING, program().host, fd, name))
    except FileNotFoundError:
        return  # another program was quicker
    finally:
        os.close(fd)


def prune_volumes() -> tuple[str, ...]:
    """Remove the volumes that no sandbox uses, and what was left of others; returns their names."""
    gone = []
    for name in sorted(_names()):
        try:
            remove_volume(name)
        except StateError:
            continue  # in use, or gone already
        gone.append(name)
    try:
        left = [name for name in os.listdir(folder()) if name.startswith(_REMOVED)]
    except FileNotFoundError:
        left = []
    for name in left:
        _remove(name)
    return tuple(gone)


__all__ = ["acquire", "folder", "list_volumes", "prune_volumes", "remove_volume", "volume_path"]
