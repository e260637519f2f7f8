"""
Who a user of an image is, by the image's own /etc/passwd and /etc/group.

Files: passwd(5), group(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from sandboxlib.errors import ImageError
from sandboxlib.image.view import View
from sandboxlib.kernel.descriptor import openat

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
        user: ``name``, ``uid``, ``name:group``, ``uid:gid``, ``:gid``; empty for root.
        layers: Folders, the topmost first.
        image: For errors.

    Raises:
        ImageError: There is no such user or group in the image.
    """
    name, _, group = user.partition(":")
    name = name or "0"
    with _files(layers) as view:
        users = list(_lines(view, "passwd", 7))
        if (number := _number(name)) is not None:
            uid = number
            entry = next((line for line in users if line[2] == str(uid)), None)
        else:
            entry = next((line for line in users if line[0] == name), None)
            if entry is None or (found_uid := _number(entry[2])) is None:
                raise ImageError(f"it has no user {name[:100]!r} in its /etc/passwd", image)
            uid = found_uid
        gid = (_number(entry[3]) if entry is not None else None) or 0
        home = entry[5] if entry is not None and entry[5].startswith("/") else "/"
        groups: tuple[int, ...] = ()
        if group or entry is not None:
            lines = [(line, _number(line[2])) for line in _lines(view, "group", 4)]
            known = [(line, each) for line, each in lines if each is not None]
            if (number := _number(group)) is not None:
                gid = number
            elif group:
                found = next((each for line, each in known if line[0] == group), None)
                if found is None:
                    raise ImageError(f"it has no group {group[:100]!r} in its /etc/group", image)
                gid = found
            elif entry is not None:
                # As Docker: those that list the user, unless a group was given.
                listed = {each for line, each in known if entry[0] in line[3].split(",")}
                groups = tuple(sorted(listed - {gid}))
    return Account(uid, gid, groups, home)


def _number(text: str) -> int | None:
    """An ID; None for a name, and for a number that is none."""
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > _MAX_ID:
        return None
    return int(text)


@contextmanager
def _files(layers: Sequence[str]) -> Iterator[View]:
    """The tree of the layers, as far as they are unpacked: for a plan alone they need not be."""
    with ExitStack() as stack:
        fds = []
        for layer in layers:
            with suppress(FileNotFoundError):
                fds.append(stack.enter_context(openat(layer, os.O_PATH | os.O_DIRECTORY)))
        yield View(fds, "trusted.overlay.", "user.overlay.")


def _lines(view: View, name: str, fields: int) -> Iterator[list[str]]:
    raw = view.read(b"etc/" + name.encode(), _LONGEST)
    for line in raw.decode(errors="surrogateescape").splitlines():
        parts = line.split(":")
        if len(parts) == fields and not line.startswith("#"):
            yield parts


__all__ = ["Account", "account"]
