"""
The file tree that a sandbox begins with, as a value.

Kernel: pivot_root(2), Documentation/filesystems/overlayfs.rst, tmpfs(5).
Spec: runtime-spec config.md, Root.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, cast

import attrs

from sandboxlib import quantity
from sandboxlib.doors import door
from sandboxlib.errors import SpecError
from sandboxlib.merged import Folder, Merged
from sandboxlib.mount import below
from sandboxlib.namespace import choice, flag, items
from sandboxlib.ranges import Ranges
from sandboxlib.reference import Reference, is_digest

if TYPE_CHECKING:
    from sandboxlib.alone import OpenRootfs
    from sandboxlib.images import AnyImage

RootfsKind = Literal["host", "directory", "overlay", "empty", "image"]
#: How layers are laid over each other.
Driver = Literal["overlay", "copy"]
DRIVERS = ("overlay", "copy")

#: What the writable part holds by default: enough for a build, little against a machine's memory.
SIZE = 256 << 20
INODES = 65536
#: The least that can be asked for: a handful of files.
LEAST = 64 << 10

#: Folders of the host view that are private, empty and writable.
WRITABLE = ("/tmp", "/home", "/root", "/var/tmp", "/run", "/work")

#: overlayfs takes no more lower layers (OVL_MAX_STACK of fs/overlayfs/params.h).
MAX_LAYERS = 500

# Which arguments each kind has besides `readonly`.
_FIELDS: dict[str, tuple[str, ...]] = {
    "host": ("paths", "size", "nr_inodes"),
    "directory": ("path",),
    "overlay": ("lower", "storage", "driver", "size", "nr_inodes"),
    "empty": ("size", "nr_inodes"),
    # The layers are filled in where the image was looked up: see sandboxlib.engine.image.
    "image": ("reference", "lower", "storage", "driver", "size", "nr_inodes"),
}
_READONLY = {"host": True, "directory": True, "overlay": False, "empty": False, "image": False}


@attrs.frozen(init=False, repr=False)
class Rootfs:
    """
    A root file system; made by `host`, `directory`, `overlay`, `empty` or `image`.

    Attributes:
        kind: The name of the method that made it.
        readonly: The root itself cannot be written; mounts on it may.
        paths: Further paths of the host that ``host`` shows.
        path: The folder that ``directory`` shows.
        lower: The layers of ``overlay``, the topmost first; those of an image once it was looked up.
        reference: The image's name that ``image`` was given, or its digest.
        storage: ``tmpfs``, or the folder on disk where what is written lies while it runs;
            None where a kind has no upper layer.
        driver: How layers are laid over each other: ``overlay`` by the kernel, ``copy`` by copying them
            to *storage* first; None for the first that this host can.
        size: Bytes that can be written, in all; None where a disk is the only limit.
        nr_inodes: Files and folders that can be made, in all; None as above.
        wanted: Folders that an image asks for, once it was looked up.
        ids: Its users' and groups' numbers that a sandbox has not anyway, once it was looked up.
        merged: What the layers show together, once they were looked at.

    Raises:
        SpecError: A value makes no sense, or does not belong to this kind.

    Example:
        >>> Rootfs.overlay(lower=["/srv/base"], size="64M")
        Rootfs.overlay(lower=['/srv/base'], size=67108864)
    """

    kind: RootfsKind
    readonly: bool
    paths: tuple[str, ...]
    path: str | None
    lower: tuple[str, ...]
    reference: str | None
    storage: str | None
    driver: Driver | None
    size: int | None
    nr_inodes: int | None
    wanted: tuple[Folder, ...]
    ids: tuple[Ranges, Ranges]
    merged: Merged | None

    def __init__(
        self,
        kind: str,
        *,
        readonly: bool | None = None,
        paths: Iterable[str | os.PathLike[str]] = (),
        path: str | os.PathLike[str] | None = None,
        lower: Iterable[str | os.PathLike[str]] = (),
        reference: str | AnyImage | None = None,
        storage: str | os.PathLike[str] | None = None,
        driver: str | None = None,
        size: int | str | None = None,
        nr_inodes: int | None = None,
        wanted: tuple[Folder, ...] = (),
        ids: tuple[Ranges, Ranges] = ((), ()),
        merged: Merged | None = None,
    ) -> None:
        chosen = cast("RootfsKind", choice("kind", kind, _FIELDS))
        given = {
            "paths": paths,
            "path": path,
            "lower": lower,
            "reference": reference,
            "storage": storage,
            "driver": driver,
            "size": size,
            "nr_inodes": nr_inodes,
        }
        for field, value in given.items():
            if field not in _FIELDS[kind] and value is not None and value != ():
                raise SpecError(field, value, f"left out: Rootfs.{kind} has none")
        if "storage" in _FIELDS[kind]:
            storage = "tmpfs" if storage in (None, "tmpfs") else quantity.absolute("storage", storage)
        # What lies on a disk is bounded by it; what lies in memory is bounded always.
        bounded = "size" in _FIELDS[kind] and storage in (None, "tmpfs")
        self.__attrs_init__(
            kind=chosen,
            readonly=_READONLY[kind] if readonly is None else flag("readonly", readonly),
            paths=_paths(paths) if kind == "host" else (),
            path=quantity.absolute("path", path) if kind == "directory" else None,
            lower=_lower(lower, kind) if kind == "overlay" or (kind == "image" and lower) else (),
            reference=image_reference("reference", reference) if kind == "image" else None,
            storage=cast("str | None", storage),
            driver=cast("Driver | None", None if driver is None else choice("driver", driver, DRIVERS)),
            size=_bound(
                quantity.size("size", size, minimum=LEAST) if size is not None else None, SIZE, bounded
            ),
            nr_inodes=_bound(
                quantity.count("nr_inodes", nr_inodes, minimum=16) if nr_inodes is not None else None,
                INODES,
                bounded,
            ),
            wanted=_wanted(wanted),
            ids=_ids(ids),
            merged=_merged(merged),
        )
        if kind == "host" and not self.readonly:
            raise SpecError("readonly", readonly, "True, or left out: the host's folders stay as they are")

    @classmethod
    def host(
        cls,
        *,
        paths: Iterable[str | os.PathLike[str]] = (),
        size: int | str | None = None,
        nr_inodes: int | None = None,
    ) -> Rootfs:
        """
        Return the view of the host's own system: programs and libraries, but nobody's files.

        The default of every sandbox. What it shows is read-only, and `WRITABLE` lists
        the folders that are private and empty.

        Args:
            paths: Further folders or files of the host to show, read-only, at the same place.
            size: Bytes, or a string such as ``"1G"``, that all writable folders hold together; 256M.
            nr_inodes: How many files and folders; 65536.

        Raises:
            SpecError: A value makes no sense.
        """
        return cls("host", paths=paths, size=size, nr_inodes=nr_inodes)

    @classmethod
    def directory(cls, path: str | os.PathLike[str], *, readonly: bool = True) -> Rootfs:
        """
        Return the folder *path* of the host as root; what is written stays in it.

        Raises:
            SpecError: The path is relative.
        """
        return cls("directory", path=path, readonly=readonly)

    @classmethod
    def overlay(
        cls,
        lower: Iterable[str | os.PathLike[str]],
        *,
        size: int | str | None = None,
        nr_inodes: int | None = None,
        storage: str | os.PathLike[str] = "tmpfs",
        driver: Driver | None = None,
        readonly: bool = False,
    ) -> Rootfs:
        """
        Return folders of the host laid over each other, with writes kept apart from them.

        Args:
            lower: Folders, the topmost first; none of them is changed.
            size: Bytes, or a string such as ``"64M"``, that can be written; 256M in memory.
            nr_inodes: How many files and folders can be made; 65536 in memory.
            storage: ``tmpfs``, or a folder on disk in which what is written lies while it runs.
            driver: ``overlay``, or ``copy``, for which *storage* has to be a folder; None for the first that
                this host can, which the plan's notes name if it is not the first of all.
            readonly: Nothing can be written.

        Raises:
            SpecError: A value makes no sense, or one layer contains another.

        Kernel: Documentation/filesystems/overlayfs.rst.
        """
        return cls(
            "overlay",
            lower=lower,
            size=size,
            nr_inodes=nr_inodes,
            storage=storage,
            driver=driver,
            readonly=readonly,
        )

    @classmethod
    def empty(
        cls, *, size: int | str | None = None, nr_inodes: int | None = None, readonly: bool = False
    ) -> Rootfs:
        """
        Return a root with nothing but /dev, /proc and what is mounted, in memory.

        Args:
            size: Bytes, or a string such as ``"64M"``, that can be written; 256M.
            nr_inodes: How many files and folders can be made; 65536.
            readonly: Nothing can be written but to mounts.

        Raises:
            SpecError: A value makes no sense.
        """
        return cls("empty", size=size, nr_inodes=nr_inodes, readonly=readonly)

    @classmethod
    def image(
        cls,
        reference: str | AnyImage,
        *,
        size: int | str | None = None,
        nr_inodes: int | None = None,
        storage: str | os.PathLike[str] = "tmpfs",
        driver: Driver | None = None,
        readonly: bool = False,
    ) -> Rootfs:
        """
        Return the files of an image, as `overlay` of its layers.

        Args:
            reference: Such as ``"app:1"`` or ``"registry.example:5000/team/app@sha256:…"``, a digest
                ``"sha256:…"`` of one in the store, or an `Image`.
            size: As for `overlay`.
            nr_inodes: As for `overlay`.
            storage: As for `overlay`.
            driver: As for `overlay`.
            readonly: Nothing can be written.

        Raises:
            SpecError: A value makes no sense.
        """
        return cls(
            "image",
            reference=reference,
            size=size,
            nr_inodes=nr_inodes,
            storage=storage,
            driver=driver,
            readonly=readonly,
        )

    @door
    def open(self) -> OpenRootfs:
        """
        Mount the tree alone, without a sandbox.

        Returns:
            A context manager with ``path``, ``changes()`` and ``close()``; closing
            unmounts it and removes what was written.

        Raises:
            UnsupportedError: This host cannot make it.
            KernelError: A system call failed; nothing is left behind.
        """
        from sandboxlib.alone import open_rootfs

        return open_rootfs(self)

    def __repr__(self) -> str:
        given = [repr(value) for value in (self.path, self.reference) if value is not None]
        given.extend(
            f"{name}={list(getattr(self, name))}"
            for name in ("paths", "lower")
            if getattr(self, name) and self.kind != "image"
        )
        on_disk = self.storage not in (None, "tmpfs")
        defaults = {
            "size": None if on_disk else SIZE,
            "nr_inodes": None if on_disk else INODES,
            "storage": "tmpfs",
            "driver": None,
            "readonly": _READONLY[self.kind],
        }
        given.extend(
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name) not in (None, default)
        )
        return f"Rootfs.{self.kind}({', '.join(given)})"


def _wanted(value: object) -> tuple[Folder, ...]:
    if isinstance(value, tuple) and all(isinstance(folder, Folder) for folder in value):
        return value
    raise SpecError("wanted", value, "left out: it is filled in where an image is looked up")


def _ids(value: object) -> tuple[Ranges, Ranges]:
    if isinstance(value, tuple) and len(value) == 2 and all(map(_is_ranges, value)):
        return value
    raise SpecError("ids", value, "left out: it is filled in where an image is looked up")


def _is_ranges(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(run, tuple) and [*map(type, run)] == [int, int] for run in value
    )


def _merged(value: object) -> Merged | None:
    if value is None or isinstance(value, Merged):
        return value
    raise SpecError("merged", value, "left out: it is filled in where layers are looked at")


def image_reference(field: str, value: object) -> str:
    """
    Check the name of an image; whether it exists is not known here.

    Returns:
        A name, or a digest: of an `Image` it is the digest, which always means the same.

    Raises:
        SpecError: It is neither, nor an `Image`.
    """
    module = sys.modules.get("sandboxlib.images")
    if module is not None and isinstance(value, module.AnyImage):
        return cast("str", value.digest)
    if not (isinstance(value, str) and is_digest(value)):
        Reference.parse(value, field)
    return cast("str", value)


def _bound(value: int | None, default: int, bounded: bool) -> int | None:
    return default if value is None and bounded else value


def _paths(value: object) -> tuple[str, ...]:
    found = set()
    for item in items("paths", value, "a list of absolute paths"):
        path = quantity.absolute("paths", item)
        if path == "/" or any(below(path, folder) for folder in ("/proc", "/sys", "/dev")):
            raise SpecError("paths", item, "paths below '/', and outside of /proc, /sys and /dev")
        found.add(path)
    # Parents come before what they contain.
    return tuple(sorted(found))


def _lower(value: object, kind: str) -> tuple[str, ...]:
    allowed = "a list of one or more absolute paths, the topmost layer first"
    layers = tuple(quantity.absolute("lower", item) for item in items("lower", value, allowed))
    if not layers:
        raise SpecError("lower", value, allowed)
    # An image's can be copied, as many as they are: `sandboxlib.plan.overlay` looks.
    if len(layers) > MAX_LAYERS and kind == "overlay":
        raise SpecError("lower", len(layers), f"at most {MAX_LAYERS} layers, as overlayfs takes")
    # The kernel refuses this too, with the ELOOP of a symbolic link that nobody made. Sorted by their
    # parts, a folder stands right before what it contains.
    parts = sorted(path.rstrip("/").split("/") for path in layers)
    for outer, inner in pairwise(parts):
        if inner[: len(outer)] == outer:
            found = ["/".join(path) or "/" for path in (outer, inner)]
            raise SpecError("lower", found, "folders of which none contains another")
    return layers
