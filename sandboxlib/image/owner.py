"""Whose the files of unpacked layers are on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Literal

import attrs

from sandboxlib.errors import SpecError, UnsupportedError
from sandboxlib.host import Host
from sandboxlib.ranges import Ranges

#: (inside, outside, count), as user_namespaces(7) has them.
IdMap = tuple[tuple[int, int, int], ...]
_MOST = 1 << 32


def _known_kind(_: object, __: object, value: str) -> None:
    if value not in ("root", "range", "single"):
        raise SpecError("kind", value, "'root', 'range' or 'single'")


def _triples(value: Iterable[Iterable[int]]) -> IdMap:
    found = []
    for part in value:
        inside, outside, count = part
        found.append((inside, outside, count))
    return tuple(found)


def _id_map(_: object, field: attrs.Attribute[IdMap], value: IdMap) -> None:
    for part in value:
        if any(number < 0 for number in part) or part[2] == 0:
            raise SpecError(field.name, value, "triples (inside, outside, count) of whole numbers")
        if max(part[0], part[1]) + part[2] > _MOST:
            raise SpecError(field.name, value, "ids below 4294967296")


class OwnerError(UnsupportedError):
    """
    A layer has a file of somebody who has no ID in the map by which it is unpacked.

    Attributes:
        uids, gids: All owners of that layer, where they are known.
    """

    uids: Ranges = ()
    gids: Ranges = ()


@attrs.frozen
class Owner:
    """
    Whose ids the files of a layer get on disk.

    Attributes:
        kind: ``root``: the program is root, and files have the ids that the image names; they are
            mounted id-mapped. ``range``: a user with subordinate ids: the files have the ids of
            the image as a user namespace with the maps below shows them. ``single``: a user
            without: all is the user's own.
        uid_map, gid_map: For ``range``: (inside, outside, count) as user_namespaces(7) has them.

    Example:
        >>> Owner("root").key
        'root'
    """

    kind: Literal["root", "range", "single"] = attrs.field(validator=_known_kind)
    uid_map: IdMap = attrs.field(default=(), converter=_triples, validator=_id_map)
    gid_map: IdMap = attrs.field(default=(), converter=_triples, validator=_id_map)

    def __attrs_post_init__(self) -> None:
        """Check that the maps are there exactly where they are used."""
        for name, value in (("uid_map", self.uid_map), ("gid_map", self.gid_map)):
            if (self.kind == "range") != bool(value):
                raise SpecError(name, value, "given for the kind 'range', and for no other")

    @classmethod
    def of(cls, host: Host) -> Owner:
        """The best that this program can do on *host*."""
        if host.privileged:
            return cls("root")
        if host.subuids and host.subgids:
            return cls(
                "range", ((0, host.uid, 1), (1, *host.subuids)), ((0, host.gid, 1), (1, *host.subgids))
            )
        return cls("single")

    def has(self, uid: int, gid: int) -> bool:
        """Do files get these owners on disk?"""
        return self.kind != "range" or (_in(self.uid_map, uid) and _in(self.gid_map, gid))

    @property
    def key(self) -> str:
        """A name for a folder: trees with equal keys, and only those, can be shared."""
        if self.kind == "root":
            return "root"
        if self.kind == "single":
            return f"single-{os.geteuid()}"
        return "range-" + hashlib.sha256(repr((self.uid_map, self.gid_map)).encode()).hexdigest()[:16]

    @property
    def marks(self) -> str:
        """
        What the names of overlayfs's own extended attributes begin with.

        Kernel: Documentation/filesystems/overlayfs.rst, the mount option userxattr.
        """
        return "trusted.overlay." if self.kind == "root" else "user.overlay."


def _in(lines: IdMap, number: int) -> bool:
    return any(first <= number < first + count for first, _, count in lines)


__all__ = ["IdMap", "Owner", "OwnerError"]
