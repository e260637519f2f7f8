"""
Extended attributes of files in layers: which of them layers may have.

What the host decides about its files (SELinux, IMA, Smack), and what overlayfs writes for itself,
is not a layer's business: an attribute such as trusted.overlay.redirect would show other files.

Kernel: xattr(7), capabilities(7).
"""

from __future__ import annotations

import os

from sandboxlib.errors import ImageError

_CAPABILITY = b"security.capability"
_ALLOWED = (b"user.", b"trusted.")
_REVISION_2, _REVISION_3 = 0x02000000, 0x03000000
_SIZE_2, _SIZE_3 = 20, 24
_LONGEST_NAME, _LONGEST_VALUE = 255, 65536


def allowed(name: bytes) -> bool:
    """May a layer bring this attribute along, and is it written out?"""
    if name == _CAPABILITY:
        return True
    return name.startswith(_ALLOWED) and not name.startswith((b"trusted.overlay.", b"user.overlay."))


def check(name: bytes, value: bytes) -> None:
    """Raise ImageError for what no file system could have. Kernel: linux/limits.h, XATTR_*."""
    if b"\0" in name or name.endswith(b".") or len(name) > _LONGEST_NAME:
        raise ImageError("an extended attribute with a name that is none")
    if len(value) > _LONGEST_VALUE:
        raise ImageError(f"an extended attribute of more than {_LONGEST_VALUE} bytes")


def portable(name: bytes, value: bytes) -> bytes:
    """
    The value as it is written into layers: file capabilities without the user namespace that set them.

    Kernel: capabilities(7), "File capability extended attribute versioning".
    """
    if name == _CAPABILITY and len(value) == _SIZE_3:
        magic = int.from_bytes(value[:4], "little")
        if magic & 0xFF000000 == _REVISION_3:
            return (_REVISION_2 | magic & 0xFFFFFF).to_bytes(4, "little") + value[4:_SIZE_2]
    return value


def path_of(folder: int, name: bytes) -> bytes:
    """
    A path to what stands in an open folder, for the calls that take no descriptor.

    The last part is not followed by calls that are told so; the folder cannot be another.
    """
    return b"/proc/self/fd/%d/%s" % (folder, name)


def read_all(target: int | bytes, chosen: bool = True, most: int | None = None) -> dict[bytes, bytes]:
    """
    The attributes of an open file, or of a path whose last part is not followed; *chosen*: `allowed`.

    Raises:
        OverflowError: Their names and values have more than *most* bytes.
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno == _NOT_HERE:
            return {}
        raise
    found, size = {}, 0
    for name in map(os.fsencode, names):
        if not chosen or allowed(name):
            found[name] = os.getxattr(target, name, follow_symlinks=follow)
            size += len(name) + len(found[name])
            if most is not None and size > most:
                raise OverflowError(f"more than {most} bytes of attributes")
    return found


_NOT_HERE = 95  # EOPNOTSUPP: the file system has none

__all__ = ["allowed", "check", "path_of", "portable", "read_all"]
