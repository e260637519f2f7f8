"""
What the layers of an overlay show together, as far as a sandbox stands on it.

It is looked at before a start is planned (`sandboxlib.engine.lower`): what is missing to mount on is then
made in a layer below all others, where it changes nothing of what they have, and the root as theirs is.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Folder:
    """
    A folder that is there for a sandbox, whatever its layers have.

    Attributes:
        path: Absolute, without a link in it where it is about to be made.
        uid, gid: Its owner inside, if it has to be made.
        kept: It belongs to what the sandbox shows, also where it is exported.
        shown: The layers have it, and theirs is seen; it is made for what is in it.
    """

    path: str
    uid: int = 0
    gid: int = 0
    kept: bool = False
    shown: bool = False


@attrs.frozen
class Link:
    """
    A link of the layers' in whose place a folder stands that a file system is mounted on.

    Attributes:
        path: Absolute.
        target: As it stands in it.
        uid, gid: Its owner inside.
        mtime: In nanoseconds.
    """

    path: str
    target: bytes
    uid: int
    gid: int
    mtime: int


@attrs.frozen(kw_only=True)
class Merged:
    """
    The tree that the layers show.

    Attributes:
        mode, uid, gid: Of its root; the owner as it is inside.
        mtime: Of its root, in nanoseconds; None where it is not known.
        xattrs: Of its root.
        folders: Those that are missing, with those above them and above the files, parents first.
        files: Those that are missing, to mount others on.
        links: Those that are covered.
        lacks: Files that are to be mounted, and have no place here: on the way to it something is no folder.
    """

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()
    folders: tuple[Folder, ...] = ()
    files: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    lacks: tuple[str, ...] = ()


__all__ = ["Folder", "Link", "Merged"]
