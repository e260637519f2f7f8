"""
Who a user of an image is, by the image's own /etc/passwd and /etc/group.

Kernel: openat2(2), Linux 5.6. Files: passwd(5), group(5).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sandboxlib.errors import ImageError
from sandboxlib.kernel.files import open_in_root

#: Bytes of such a file that are read at most.
_LONGEST = 4 << 20
_MAX_ID = (1 << 32) - 2


class Account(NamedTuple):
    """
    A user.

    Attributes:
        uid, gid: Numbers inside.
        groups: Further groups.
        home: Its folder.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def account(user: str, layers: Sequence[str], image: str) -> Account:
    """
    Look up *user*, as an image's configuration names it.

    Args:
        user: ``name``, ``uid``, ``name:group``, ``uid:gid``; empty for root.
        layers: Folders, the topmost first.
        image: For errors.

    Raises:
        ImageError: There is no such user or group in the image.
    """
    name, _, group = (user or "0").partition(":")
    users = list(_lines(layers, "passwd", 7))
    if name.isdecimal() and int(name) <= _MAX_ID:
        uid = int(name)
        entry = next((line for line in users if line[2] == str(uid)), None)
    else:
        entry = next((line for line in users if line[0] == name), None)
        if entry is None or not entry[2].isdecimal():
            raise ImageError(f"it has no user {name[:100]!r} in its /etc/passwd", image)
        uid = int(entry[2])
    gid = int(entry[3]) if entry is not None and entry[3].isdecimal() else 0
    home = entry[5] if entry is not None and entry[5].startswith("/") else "/"
    groups: tuple[int, ...] = ()
    if group or entry is not None:
        known = list(_lines(layers, "group", 4))
        if group.isdecimal() and int(group) <= _MAX_ID:
            gid = int(group)
        elif group:
            found = next((line for line in known if line[0] == group and line[2].isdecimal()), None)
            if found is None:
                raise ImageError(f"it has no group {group[:100]!r} in its /etc/group", image)
            gid = int(found[2])
        elif entry is not None:
            # As Docker: those that list the user, unless a group was given.
            groups = tuple(
                sorted(
                    int(line[2])
                    for line in known
                    if line[2].isdecimal() and entry[0] in line[3].split(",") and int(line[2]) != gid
                )
            )
    if max(uid, gid, *groups) > _MAX_ID:
        raise ImageError(f"its user {user[:100]!r} has a number that is none", image)
    return Account(uid, gid, groups, home)


def _lines(layers: Sequence[str], name: str, fields: int) -> Iterator[list[str]]:
    for line in _read(layers, name).decode(errors="surrogateescape").splitlines():
        parts = line.split(":")
        if len(parts) == fields and not line.startswith("#"):
            yield parts


def _read(layers: Sequence[str], name: str) -> bytes:
    """What /etc/*name* of the merged layers holds; empty where there is none."""
    for layer in layers:
        try:
            top = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # not unpacked yet, where only a plan is asked for
        try:
            try:
                # A file that is no file must not be waited for.
                fd = open_in_root(top, f"etc/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except FileNotFoundError:
                if _hides(top):
                    return b""
                continue
            except OSError:
                # A whiteout, which is a device that nothing drives, or something else that is no file.
                return b""
            with open(fd, "rb") as file:
                return file.read(_LONGEST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(top)
    return b""


def _hides(top: int) -> bool:
    """Does the layer hide /etc of those below it?"""
    try:
        found = os.stat("etc", dir_fd=top, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        return True
    fd = os.open("etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        marks = os.listxattr(fd)
    finally:
        os.close(fd)
    return any(mark in marks for mark in ("trusted.overlay.opaque", "user.overlay.opaque"))


__all__ = ["Account", "account"]
