"""
What is mounted into a sandbox besides its root, as values: folders of the host, memory, volumes.

Every mount is nosuid and nodev, always: a set-uid file or a device node on a shared
folder would work for whoever can reach the folder outside.

Kernel: mount_setattr(2), tmpfs(5).  Spec: runtime-spec config.md, Mounts.
"""

from __future__ import annotations

import os
import re
from typing import Literal, cast

import attrs

from sandboxlib import quantity
from sandboxlib.doors import door
from sandboxlib.errors import SpecError
from sandboxlib.namespace import choice, flag

MountKind = Literal["bind", "tmpfs", "volume"]

#: The least that a memory file system takes: one page.
PAGE = 4096

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
# Which arguments each kind has besides its destination, `readonly` and `noexec`.
_FIELDS: dict[str, tuple[str, ...]] = {
    "bind": ("source", "recursive", "optional"),
    "tmpfs": ("size", "nr_inodes", "mode"),
    "volume": ("source", "size"),
}


@attrs.frozen(init=False, repr=False)
class Mount:
    """
    One mount of a sandbox; made by `bind`, `tmpfs` or `Volume.at`.

    Attributes:
        kind: ``bind``, ``tmpfs`` or ``volume``.
        destination: Absolute path inside; folders on the way are made where they are missing.
        source: The host's path for ``bind``, the name for ``volume``, else None.
        readonly: Nothing can be written through it, in mounts below it either.
        noexec: Nothing can be executed from it.
        recursive: Mounts of the host below *source* come along.
        optional: A source that does not exist is left out instead of refused.
        size: Limit in bytes; None leaves it to the sandbox's default for ``tmpfs``.
        nr_inodes: Limit of files and folders; None as above.
        mode: Permission bits of a ``tmpfs``.

    Raises:
        SpecError: A value makes no sense, or does not belong to this kind.

    Example:
        >>> Mount.bind("/data", "/data", readonly=True)
        Mount.bind('/data', '/data', readonly=True)
    """

    kind: MountKind
    destination: str
    source: str | None = None
    readonly: bool = False
    noexec: bool = False
    recursive: bool = True
    optional: bool = False
    size: int | None = None
    nr_inodes: int | None = None
    mode: int = 0o1777

    def __init__(
        self,
        kind: str,
        destination: str | os.PathLike[str],
        *,
        source: str | os.PathLike[str] | None = None,
        readonly: bool = False,
        noexec: bool = False,
        recursive: bool = True,
        optional: bool = False,
        size: int | str | None = None,
        nr_inodes: int | None = None,
        mode: int = 0o1777,
    ) -> None:
        chosen = cast("MountKind", choice("kind", kind, _FIELDS))
        place = _destination(destination)
        if kind == "tmpfs" and source is not None:
            raise SpecError("source", source, "left out: a tmpfs begins empty")
        self.__attrs_init__(
            kind=chosen,
            destination=place,
            source=None if kind == "tmpfs" else _source(kind, source),
            readonly=flag("readonly", readonly),
            noexec=flag("noexec", noexec),
            recursive=flag("recursive", recursive),
            optional=flag("optional", optional),
            size=None if size is None else quantity.size("size", size, minimum=PAGE),
            # The root folder of the file system is one; with no more it could hold nothing.
            nr_inodes=None if nr_inodes is None else quantity.count("nr_inodes", nr_inodes, minimum=2),
            mode=quantity.count("mode", mode, minimum=0, maximum=0o7777),
        )
        for field in attrs.fields(Mount)[5:]:
            if field.name not in _FIELDS[kind] and getattr(self, field.name) != field.default:
                raise SpecError(field.name, getattr(self, field.name), f"left out: a {kind} has none")

    @classmethod
    def bind(
        cls,
        source: str | os.PathLike[str],
        destination: str | os.PathLike[str],
        *,
        readonly: bool = False,
        recursive: bool = True,
        noexec: bool = False,
        optional: bool = False,
    ) -> Mount:
        """
        Return a mount that shows the host's file or folder *source* at *destination*.

        Writable unless *readonly*, as Docker's ``-v``. The source is looked up when the
        sandbox starts, and has to exist by then unless *optional*.

        Raises:
            SpecError: A path is relative, or the destination belongs to the sandbox itself.

        Kernel: open_tree(2), and mount_setattr(2) with AT_RECURSIVE: Linux 5.12.
        """
        return cls(
            "bind",
            destination,
            source=source,
            readonly=readonly,
            recursive=recursive,
            noexec=noexec,
            optional=optional,
        )

    @classmethod
    def tmpfs(
        cls,
        destination: str | os.PathLike[str],
        *,
        size: int | str | None = None,
        mode: int = 0o1777,
        nr_inodes: int | None = None,
        noexec: bool = False,
        readonly: bool = False,
    ) -> Mount:
        """
        Return an empty file system in memory, which counts as the sandbox's memory.

        Args:
            destination: Where, inside.
            size: Bytes or a string such as ``"64M"``; never unlimited.
            mode: Permission bits of its root folder; everyone's like /tmp by default.
            nr_inodes: How many files and folders it can hold.
            noexec: Nothing can be executed from it.
            readonly: It stays empty.

        Raises:
            SpecError: A value makes no sense.

        Kernel: tmpfs(5).
        """
        return cls(
            "tmpfs", destination, size=size, mode=mode, nr_inodes=nr_inodes, noexec=noexec, readonly=readonly
        )

    def __repr__(self) -> str:
        fields = [field for field in attrs.fields(Mount)[3:] if getattr(self, field.name) != field.default]
        show = {field.name: oct if field.name == "mode" else repr for field in fields}
        given = [f"{name}={function(getattr(self, name))}" for name, function in show.items()]
        if self.kind == "volume":
            size = "" if self.size is None else f", size={self.size}"
            given = [text for text in given if not text.startswith("size=")]
            return f"Volume({self.source!r}{size}).at({', '.join([repr(self.destination), *given])})"
        first = [repr(self.source)] if self.kind == "bind" else []
        return f"Mount.{self.kind}({', '.join([*first, repr(self.destination), *given])})"


@attrs.frozen(init=False)
class Volume:
    """
    A named folder that outlives sandboxes and is shared by all that mount it.

    It is made when a sandbox first mounts it. A value only names it: two with one name
    are the same volume.

    Args:
        name: Letters, digits, ``_``, ``.`` and ``-``, as Docker's names.
        size: Limit in bytes, or a string such as ``"1G"``, set when it is made.

    Raises:
        SpecError: A value makes no sense.

    Example:
        >>> Volume("models").at("/models", readonly=True).source
        'models'
    """

    name: str
    size: int | None

    def __init__(self, name: str, *, size: int | str | None = None) -> None:
        self.__attrs_init__(
            name=named("name", name),
            size=None if size is None else quantity.size("size", size, minimum=PAGE),
        )

    def at(
        self, destination: str | os.PathLike[str], readonly: bool = False, *, noexec: bool = False
    ) -> Mount:
        """Return the mount of this volume at *destination*. Raises: SpecError."""
        return Mount(
            "volume", destination, source=self.name, size=self.size, readonly=readonly, noexec=noexec
        )

    @classmethod
    @door
    def list(cls) -> tuple[Volume, ...]:
        """Return all volumes of this user, by name."""
        from sandboxlib.engine.volumes import list_volumes

        return list_volumes()

    @classmethod
    @door
    def prune(cls) -> tuple[str, ...]:
        """Remove all volumes that no sandbox uses; return their names."""
        from sandboxlib.engine.volumes import prune_volumes

        return prune_volumes()

    @classmethod
    @door
    def remove(cls, name: str) -> None:
        """
        Remove the volume *name* and all that is in it.

        Raises:
            SpecError: It is not a name.
            StateError: A sandbox uses it, or there is no such volume.
        """
        checked = named("name", name)
        from sandboxlib.engine.volumes import remove_volume

        remove_volume(checked)

    @property
    @door
    def path(self) -> str:
        """Where its files lie on the host; worked out from the name, whether or not it was made yet."""
        from sandboxlib.engine.volumes import volume_path

        return volume_path(self.name)


def named(field: str, value: object) -> str:
    """Read a name as Docker has them for volumes and networks. Raises: SpecError."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        allowed = "a name of letters, digits, '_', '.' and '-' that begins with a letter or digit"
        raise SpecError(field, value, allowed)
    return value


def below(path: str, folder: str) -> bool:
    """Tell whether plain absolute *path* is *folder* or below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _source(kind: str, value: object) -> str:
    return named("source", value) if kind == "volume" else quantity.absolute("source", value)


def _destination(value: object) -> str:
    path = quantity.absolute("destination", value)
    if path == "/":
        raise SpecError("destination", value, "a folder below '/'; what '/' is, rootfs= says")
    for folder in ("/proc", "/sys"):
        if below(path, folder):
            raise SpecError("destination", value, f"outside of {folder}, which is the kernel's")
    # Shared memory is an ordinary tmpfs, and the usual way to give a program more of it.
    if below(path, "/dev") and path != "/dev/shm":
        raise SpecError(
            "destination", value, "outside of /dev, but for /dev/shm; Security(devices=) hands devices in"
        )
    return path
