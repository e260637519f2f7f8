"""Trees of files, removed whatever is in them, by descriptors and without following a link."""

from __future__ import annotations

import os
import stat

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_at(parent: int, name: bytes) -> None:
    """
    Remove *name* in the open folder *parent*, with all that is in it.

    Raises:
        FileNotFoundError: It is not there.
        OSError: It cannot be removed.
    """
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    # However deep it goes: what is open does not grow with it. Folders are brought up before they are
    # emptied, under names that nothing else has.
    top = _open(parent, name)
    try:
        number = 0
        while names := os.listdir(top):
            for each in map(os.fsencode, names):
                try:
                    os.unlink(each, dir_fd=top)
                except (IsADirectoryError, PermissionError):
                    number = _flatten(top, each, number)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _flatten(top: int, name: bytes, number: int) -> int:
    """Remove the files of the folder *name*, bring its folders up to *top*, and remove it."""
    fd = _open(top, name)
    try:
        for each in map(os.fsencode, os.listdir(fd)):
            if not stat.S_ISDIR(os.stat(each, dir_fd=fd, follow_symlinks=False).st_mode):
                os.unlink(each, dir_fd=fd)
                continue
            # A folder that may not be written cannot be moved, for its ".." changes.
            os.close(_open(fd, each))
            while True:
                number += 1
                fresh = b".removed-%d" % number
                try:
                    os.stat(fresh, dir_fd=top, follow_symlinks=False)
                except FileNotFoundError:
                    break
            os.rename(each, fresh, src_dir_fd=fd, dst_dir_fd=top)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=top)
    return number


def _open(parent: int, name: bytes) -> int:
    """Open a folder, and have it so that what is in it can be removed."""
    try:
        fd = os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        fd = os.open(name, _FOLDER, dir_fd=parent)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o700 != 0o700:
            os.fchmod(fd, 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd


__all__ = ["remove_at"]
