"""
What an ADD gets from the network: a file by its URL, or a Git repository.

Spec: Dockerfile reference, "ADD", "Adding files from a URL", "Adding files from a Git repository".
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote, urlsplit

from sandboxlib.build.operations import FromGit, FromUrl, Source

_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{1,64}", re.ASCII)
_SCP = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^\s]+", re.ASCII)


def is_git(text: str) -> bool:
    """Is it the address of a repository?"""
    address = text.partition("#")[0]
    if address.startswith(("git://", "ssh://")) or _SCP.fullmatch(address):
        return True
    return is_http(address) and urlsplit(address).path.rstrip("/").endswith(".git")


def is_http(text: str) -> bool:
    """Is it a URL that a file can be got from?"""
    return text.startswith(("http://", "https://"))


def source(text: str, checksum: str, *, keep: bool) -> Source | None:
    """
    What *text* stands for; None if it is a path.

    Args:
        text: As ADD has it.
        checksum: What ``--checksum`` says.
        keep: ``--keep-git-dir``.

    Raises:
        ValueError: There is no host in it, no name for the file, or the checksum is none for it.
    """
    if is_git(text):
        return Source(_git(text, checksum, keep=keep), "")
    if not is_http(text):
        return None
    if checksum and not _CHECKSUM.fullmatch(checksum):
        raise ValueError(
            f"the checksum of a file is sha256: and 64 of the characters 0-9a-f, not {checksum[:80]!r}"
        )
    parts = urlsplit(text)
    if not parts.hostname:
        raise ValueError(f"there is no host in {text[:100]!r}")
    name = posixpath.basename(posixpath.normpath(unquote(parts.path))) if parts.path else ""
    if "\0" in name or "/" in name or name in {".", ".."}:
        name = ""
    return Source(FromUrl(text, checksum), name)


def _git(text: str, checksum: str, *, keep: bool) -> FromGit:
    if checksum and not _COMMIT.fullmatch(checksum):
        raise ValueError(f"the checksum of a repository is the beginning of a commit, not {checksum[:80]!r}")
    address, _, fragment = text.partition("#")
    ref, _, folder = fragment.partition(":")
    if ref.startswith("-") or address.startswith("-"):
        raise ValueError(f"{text[:100]!r} is no repository: a part of it begins with '-'")
    folder = posixpath.normpath(posixpath.join("/", folder)).lstrip("/")
    return FromGit(address, ref, folder, checksum, keep)


__all__ = ["is_git", "is_http", "source"]
