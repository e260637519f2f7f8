"""
Which repositories blobs came from and went to: a registry can take them from there, unsent.

A file for each repository has its name and the digests, a line each. It is a hint: what it says may have
become wrong, then the blob is sent.

Spec: distribution-spec 1.1, "Mounting a blob from another repository".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandboxlib.image.blobs import Blobs
    from sandboxlib.reference import Reference

#: Repositories that a registry is asked to look in for one blob.
MOST = 3
#: Bytes of one file: digests of some thousand layers.
_LONGEST = 1 << 18


def note(store: Blobs, name: Reference, digests: Iterable[str]) -> None:
    """The repository of *name* has the blobs *digests*."""
    folder, repository = _folder(store), f"{name.registry}/{name.repository}"
    path = os.path.join(folder, hashlib.sha256(repository.encode()).hexdigest())
    # What cannot be noted costs some time at the next push, which is no reason to fail now.
    with contextlib.suppress(OSError):
        known = _read(path)
        lines = [digest for digest in dict.fromkeys(digests) if digest not in known[1]]
        if not known[0]:
            lines.insert(0, repository)
        if not lines:
            return
        # Several programs may write at once; each line is there as a whole, in whatever order.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, "".join(f"{line}\n" for line in lines).encode())
        finally:
            os.close(fd)


def known(store: Blobs, registry: str) -> dict[str, list[str]]:
    """The repositories of *registry* that have a blob, those that were noted last first, by its digest."""
    found: dict[str, list[str]] = {}
    for path in _files(store):
        with contextlib.suppress(OSError):
            repository, digests = _read(path)
            host, _, name = repository.partition("/")
            if host == registry and name:
                for digest in digests:
                    found.setdefault(digest, []).append(name)
    return found


def forget(store: Blobs) -> None:
    """Forget what is known of blobs that the store does not have any more."""
    for path in _files(store):
        with contextlib.suppress(OSError):
            _, digests = _read(path)
            if not any(store.has(digest) for digest in digests) or os.stat(path).st_size > _LONGEST:
                os.unlink(path)


def _folder(store: Blobs) -> str:
    return os.path.join(store.path, "origins")


def _files(store: Blobs) -> list[str]:
    """The file of each repository, the youngest first."""
    found: list[tuple[float, str]] = []
    with contextlib.suppress(OSError):
        found += ((entry.stat().st_mtime, entry.path) for entry in os.scandir(_folder(store)))
    return [path for _, path in sorted(found, reverse=True)]


def _read(path: str) -> tuple[str, set[str]]:
    """The repository and the digests of a file; nothing where it is not there."""
    from sandboxlib.reference import is_digest

    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(2 * _LONGEST).splitlines()
    except FileNotFoundError:
        return "", set()
    digests = {line for line in lines if is_digest(line)}
    return next((line for line in lines if "/" in line), ""), digests


__all__ = ["MOST", "forget", "known", "note"]
