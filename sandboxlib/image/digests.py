"""Digests and tags, where a registry's answers and paths have them."""

from __future__ import annotations

import hashlib
import re

from sandboxlib.reference import Reference

DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)


def named(name: str) -> str:
    """
    A tag or a digest, checked: it becomes a part of a path.

    Raises:
        SpecError: It is neither.
    """
    sign = "@" if ":" in name else ":"
    Reference.parse(f"localhost/a{sign}{name}", "name")
    return name


def digest_by(example: str, raw: bytes) -> str:
    """The digest of *raw*, by the algorithm of another digest."""
    algorithm = example.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"


__all__ = ["DIGEST", "digest_by", "named"]
