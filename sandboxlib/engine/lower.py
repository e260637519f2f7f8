"""
What the layers of an overlay show, looked at before a start is planned.

What is missing to mount on is made in a layer of the sandbox's own, so it has to be known; and the root of an
overlay is its upper layer's, which has to be made like the one below. Nothing of the layers is changed.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from functools import lru_cache
from typing import TYPE_CHECKING

import attrs

from sandboxlib.errors import ImageError
from sandboxlib.image import attributes
from sandboxlib.image.view import View
from sandboxlib.kernel.descriptor import openat
from sandboxlib.merged import Folder, Link, Merged
from sandboxlib.plan.targets import Targets, targets

if TYPE_CHECKING:
    from sandboxlib.host import Host
    from sandboxlib.image.owner import IdMap
    from sandboxlib.spec import SandboxSpec

_PLACE = os.O_PATH | os.O_DIRECTORY
_WHY = "look at the layers"


def looked_at(spec: SandboxSpec, host: Host) -> SandboxSpec:
    """
    Return *spec* with what its layers show, if it has layers and they are there.

    Raises:
        ImageError: Something stands where a sandbox has to have a folder.
        KernelError: A layer cannot be read.
    """
    rootfs = spec.rootfs
    if rootfs is None or rootfs.kind not in ("overlay", "image") or not rootfs.lower:
        return spec
    on_image = rootfs.kind == "image"
    # Those of an image are the store's, which a plan may name before they are unpacked.
    if on_image and not all(map(os.path.isdir, rootfs.lower)):
        return spec
    from sandboxlib.engine.image import owner_of

    owner = owner_of(host, spec.namespace("user"))
    maps = None if host.privileged else (owner.uid_map, owner.gid_map)
    asked = targets(spec, rootfs, host)
    # Layers of a store stay as they are.
    look = _kept if on_image else _look
    merged = look(rootfs.lower, owner.marks, asked, maps)
    return attrs.evolve(spec, rootfs=attrs.evolve(rootfs, merged=merged))


def _look(layers: tuple[str, ...], marks: str, asked: Targets, maps: tuple[IdMap, IdMap] | None) -> Merged:
    with ExitStack() as stack:
        fds = [stack.enter_context(openat(path, _PLACE, why=_WHY)) for path in layers]
        view = View(fds, marks)
        folders: dict[bytes, Folder] = {}
        links: list[Link] = []

        def inside(state: os.stat_result) -> tuple[int, int]:
            if maps is None:
                return state.st_uid, state.st_gid
            return _inside(state.st_uid, maps[0]), _inside(state.st_gid, maps[1])

        def made() -> set[bytes]:
            return {path for path, folder in folders.items() if not folder.shown}

        def above(path: bytes) -> None:
            for at in (at for at, byte in enumerate(path) if byte == 0x2F):
                folders.setdefault(path[:at], Folder("/" + os.fsdecode(path[:at]), shown=True))

        def missing(paths: tuple[bytes, ...], last: Folder | None) -> None:
            for number, path in enumerate(paths, 1):
                shown = "/" + os.fsdecode(path)
                above(path)
                own = last if number == len(paths) else None
                folders[path] = Folder(shown) if own is None else attrs.evolve(own, path=shown)

        for path in asked.systems:
            name = os.fsencode(path.strip("/"))
            state = view.look(name)
            if state is None:
                missing((name,), None)
            elif stat.S_ISLNK(state.st_mode):
                uid, gid = inside(state)
                links.append(Link(path, view.link(name), uid, gid, state.st_mtime_ns))
            elif not stat.S_ISDIR(state.st_mode):
                raise ImageError(f"in it {path} is neither a folder nor a link", layers[0])
        for folder in asked.folders:
            found = view.resolve(os.fsencode(folder.path), made())
            if found is not None:
                missing(found.missing, folder)
        files: list[str] = []
        lacks: list[str] = []
        for path in asked.files:
            found = view.resolve(os.fsencode(path), made())
            if found is None or (found.state is not None and stat.S_ISDIR(found.state.st_mode)):
                lacks.append(path)
            elif found.missing:
                missing(found.missing[:-1], None)
                above(found.missing[-1])
                files.append("/" + os.fsdecode(found.missing[-1]))
        root = os.fstat(fds[0])
        uid, gid = inside(root)
        return Merged(
            mode=stat.S_IMODE(root.st_mode),
            uid=uid,
            gid=gid,
            mtime=root.st_mtime_ns,
            xattrs=_attributes(fds[0]),
            folders=tuple(folders[path] for path in sorted(folders)),
            files=tuple(dict.fromkeys(files)),
            links=tuple(links),
            lacks=tuple(lacks),
        )


_kept = lru_cache(64)(_look)


def _inside(number: int, lines: IdMap) -> int:
    """A number as a user's sandbox has it; root's for one that is nobody's there, and for the user's own."""
    for first, outside, count in lines:
        if outside <= number < outside + count:
            return first + number - outside
    return 0


def _attributes(fd: int) -> tuple[tuple[str, bytes], ...]:
    try:
        found = attributes.read_all(attributes.path_of(fd, b"."))
    except PermissionError:
        return ()
    return tuple((os.fsdecode(name), value) for name, value in sorted(found.items()))


__all__ = ["looked_at"]
