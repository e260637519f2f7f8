"""
Named volumes: folders that outlive sandboxes, shared by those that mount them.

A volume is a folder below ``/var/lib/sandboxlib/volumes``, or a user's
``$XDG_DATA_HOME/sandboxlib/volumes``, or ``$SANDBOXLIB_STATE_DIR/volumes`` where that is set.
Who uses one holds a shared lock on a file beside it,
which the kernel drops when the program ends, however it ends; who removes one needs the lock
for itself alone.

Kernel: flock(2).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from sandboxlib.engine.current import program
from sandboxlib.engine.outside import remove_below
from sandboxlib.engine.waiter import BLOCKING, complete
from sandboxlib.errors import KernelError, SpecError, StateError, UnsupportedError
from sandboxlib.image import locks
from sandboxlib.kernel import folders
from sandboxlib.kernel.descriptor import Fd, openat
from sandboxlib.kernel.folders import state_folder
from sandboxlib.kernel.removal import each_awaited, warn
from sandboxlib.kernel.syscall import failed
from sandboxlib.mount import Volume, named

if TYPE_CHECKING:
    from sandboxlib.engine.waiter import Waiter

# No name of a volume begins with a dot.
_REMOVED, _LOCK = ".removed-", ".lock-"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def folder() -> str:
    """The folder of all volumes."""
    return os.path.join(state_folder(), "volumes")


def volume_path(name: str) -> str:
    """Where the files of volume *name* lie, whether or not it was made yet."""
    return os.path.join(folder(), name)


def acquire(name: str, size: int | None, lock: Fd) -> tuple[bool, Fd]:
    """
    Make volume *name* if it does not exist, and keep it from being removed for as long as *lock* is open.

    Returns:
        Whether it is new, and its folder.

    Raises:
        UnsupportedError: A limit that nothing here can hold.
        KernelError: It cannot be made.
        ViolationError: Somebody else may write where volumes are.
    """
    if size is not None:
        raise UnsupportedError(
            f"a limit on the size of volume {name!r}",
            f"a file system at {folder()} that counts by folder",
            "leave size= out, or put the volumes on a file system of this size",
        )
    # Only the owner may enter: what lies in there is of other users, as far as the kernel knows.
    folders.own(state_folder()).close()
    folders.own(folder()).close()
    # Held for itself alone only for the moment of a removal.
    locks.take(_lock_of(name), shared=True, into=lock)
    path = volume_path(name)
    try:
        os.mkdir(path, 0o755)
        made = True
    except FileExistsError:
        made = False
    except OSError as error:
        raise failed(error, f'mkdir("{path}")', f"volume {name!r}") from None
    opened = openat(path, _OPEN, why=f"volume {name!r}")
    if made:
        os.fchmod(opened.fileno(), 0o755)
    return made, opened


def release(name: str, lock: Fd) -> None:
    """Let go of a volume. Idempotent."""
    if lock:
        path = _lock_of(name)
        # Whoever waits for it sees that it is gone, and makes it anew.
        if locks.try_(lock.fileno()) and locks.is_(path, lock.fileno()):
            os.unlink(path)
        lock.close()


def _lock_of(name: str) -> str:
    # Not the volume itself: that is open to what runs inside, which could lock it for ever.
    return os.path.join(folder(), _LOCK + name)


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
    if not os.path.isdir(path):
        raise StateError(f"there is no volume {name!r}")
    folders.own(folder()).close()
    lock_path = _lock_of(name)
    with openat(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, why=f"volume {name!r}") as lock:
        if not locks.try_(lock) or not locks.is_(lock_path, lock):
            raise StateError(f"volume {name!r} is in use")
        # From here on the name is free, and a program that ends now leaves what `prune_volumes` removes.
        removed = _REMOVED + os.urandom(8).hex()
        try:
            os.rename(path, os.path.join(folder(), removed))
        except FileNotFoundError:
            raise StateError(f"there is no volume {name!r}") from None
        except OSError as error:
            raise failed(error, f'rename("{path}")', f"volume {name!r}") from None
        finally:
            os.unlink(lock_path)
    complete(_remove(BLOCKING, removed))
    try:
        complete(remove_remains(BLOCKING))
    except KernelError as problem:
        warn(problem)


async def _remove(waiter: Waiter, name: str) -> None:
    """Remove what was taken out of the way, unless somebody does so already."""
    lock_path = _lock_of(name)
    with openat(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, why="remove a volume") as lock:
        if not locks.try_(lock) or not locks.is_(lock_path, lock):
            return
        try:
            with (
                contextlib.suppress(FileNotFoundError),  # somebody was quicker
                openat(folder(), os.O_PATH | os.O_DIRECTORY) as fd,
            ):
                await remove_below(waiter, program().host, fd, name)
        finally:
            os.unlink(lock_path)


async def remove_remains(waiter: Waiter) -> None:
    """
    Remove what is left of volumes whose removal was begun, by programs that have ended.

    Raises:
        KernelError: Something cannot be removed; all else is, and notes tell of what is not.
    """
    try:
        left = [name for name in os.listdir(folder()) if name.startswith(_REMOVED)]
    except FileNotFoundError:
        return
    await each_awaited(lambda name: _remove(waiter, name), left)


def prune_volumes() -> tuple[str, ...]:
    """Remove the volumes that no sandbox uses, and what was left of others; returns their names."""
    gone = []
    for name in sorted(_names()):
        try:
            remove_volume(name)
        except StateError:
            continue  # in use, or gone already
        gone.append(name)
    complete(remove_remains(BLOCKING))
    return tuple(gone)


__all__ = ["acquire", "folder", "list_volumes", "prune_volumes", "release", "remove_volume", "volume_path"]
