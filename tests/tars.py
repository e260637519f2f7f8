"""Tar files for tests of images."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sandboxlib.image.owner import Owner

ROOT, SINGLE = Owner("root"), Owner("single")
#: Who the tests are: root keeps owners, others have all files.
MINE = ROOT if os.geteuid() == 0 else SINGLE


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One entry: a file, or what *fields* of TarInfo say."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o644, 1_700_000_000
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def folder(name: str, mode: int = 0o755, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A folder."""
    return entry(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic link."""
    return entry(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """A hard link."""
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def tar(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    """A tar file of them."""
    raw = io.BytesIO()
    with tarfile.open(
        fileobj=raw, mode="w", format=format, encoding="utf-8", errors="surrogateescape"
    ) as file:
        for info, content in entries:
            file.addfile(info, io.BytesIO(content))
    return raw.getvalue()


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A folder, open."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def listing(path: Path) -> dict[str, tuple[str, str]]:
    """What is below *path*: its kind and its content or target."""
    found = {}
    for top, folders, files in os.walk(path):
        for name in (*folders, *files):
            each = Path(top, name)
            mode = each.lstat().st_mode
            kind = stat.filemode(mode)[0]
            content = (
                os.readlink(each) if stat.S_ISLNK(mode) else each.read_text() if stat.S_ISREG(mode) else ""
            )
            found[str(each.relative_to(path))] = (kind, content)
    return found


def diff_id(raw: bytes) -> str:
    """The digest of a tar file."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def zipped(raw: bytes) -> bytes:
    """The same, compressed by gzip, without a time."""
    return gzip.compress(raw, 1, mtime=0)
