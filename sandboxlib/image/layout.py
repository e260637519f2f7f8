"""
The folder of a store, as it is made and as it has to be.

Spec: image-spec image-layout.md.
"""

from __future__ import annotations

import contextlib
import os

import msgspec

from sandboxlib.errors import ImageError
from sandboxlib.image import model, reserve
from sandboxlib.image.blobs import sync_folder, write_file

_FOLDERS = ("blobs/sha256", "layers", "leases", "locks", "origins", "partial", "removed")
_OURS = {folder.partition("/")[0] for folder in _FOLDERS} | {"index.json", "oci-layout", reserve.NAME}
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class _Layout(msgspec.Struct):
    version: str = msgspec.field(name="imageLayoutVersion")


def prepare(path: str) -> None:
    """
    Make what is missing of the folder *path*.

    Raises:
        ImageError: It is a layout of another version, or something else.
        OSError: It cannot be made.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    if not os.path.isdir(path):
        raise ImageError("it is no folder", path)
    file = os.path.join(path, "oci-layout")
    version = _version(file)
    if version is None and (strange := sorted(set(os.listdir(path)) - _OURS)):
        raise ImageError(f"it is no store of images: it has {strange[0]!r} in it", path)
    if version is not None and not version.startswith("1."):
        raise ImageError(f"it is a layout of version {version!r}, and 1.0.0 is known", path)
    found = os.stat(path)
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        # Images have setuid programs: nobody else may reach them.
        os.chmod(path, 0o700)
    for folder in _FOLDERS:
        os.makedirs(os.path.join(path, folder), mode=0o755, exist_ok=True)
    if version is None:
        for above in (os.path.join(path, "blobs"), os.path.dirname(path)):
            sync_folder(above)
        write_file(file, _LAYOUT, os.path.join(path, "partial"))


def _version(file: str) -> str | None:
    """Of the layout; None if there is none yet."""
    try:
        with open(file, "rb") as opened:
            return model.decode(opened.read(4096), _Layout, file).version
    except FileNotFoundError:
        return None


__all__ = ["prepare"]
