"""
Which of the images of an index is for a machine.

Spec: image-spec image-index.md, "Platform Variants"; the names are GOOS and GOARCH of Go.
"""

from __future__ import annotations

import os
import re

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image.model import Descriptor, Index, Platform

#: Other names of architectures, with the variant that they imply.
_OTHER = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
}
#: Variants that are the same as none at all.
_PLAIN = {("arm64", "v8"): "", ("arm64", "8"): "", ("amd64", "v1"): "", ("arm", ""): "v7"}
_PART = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def parse_platform(text: object, field: str = "platform") -> Platform:
    """
    Read ``os/architecture/variant``, of which the last may be left out.

    Raises:
        SpecError: It is none.
    """
    parts = text.split("/") if isinstance(text, str) else []
    if not 2 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
        raise SpecError(field, text, 'a platform such as "linux/amd64" or "linux/arm64/v8"')
    return normal(Platform(parts[1], parts[0], parts[2] if len(parts) == 3 else None))


def own() -> Platform:
    """This machine's."""
    return normal(Platform(os.uname().machine, "linux"))


def normal(platform: Platform) -> Platform:
    """The same platform, by its usual names."""
    architecture, variant = platform.architecture.lower(), (platform.variant or "").lower()
    architecture, implied = _OTHER.get(architecture, (architecture, ""))
    if variant.isdigit():
        variant = f"v{variant}"
    variant = _PLAIN.get((architecture, variant or implied), variant or implied)
    return Platform(
        architecture, platform.os.lower(), variant or None, platform.os_version, platform.os_features
    )


def _rank(offered: Platform, wanted: Platform) -> int | None:
    """How well *offered* runs on *wanted*: smaller is better, None not at all."""
    offered = normal(offered)
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    mine, theirs = (
        int((each.variant or "v0")[1:] or 0) if _numbered(each.variant) else None
        for each in (wanted, offered)
    )
    if mine is None or theirs is None:
        return 0 if offered.variant == wanted.variant else None
    # What is made for less runs on more, not the other way round.
    return mine - theirs if theirs <= mine else None


def _numbered(variant: str | None) -> bool:
    return variant is None or re.fullmatch(r"v\d{1,3}", variant) is not None


def choose(index: Index, wanted: Platform, what: str = "index") -> Descriptor:
    """
    Choose the image for *wanted*: of the same variant, else the nearest that runs on it.

    Raises:
        ImageError: There is none; lists those that there are.
    """
    wanted = normal(wanted)
    ranked = [
        (rank, number)
        for number, found in enumerate(index.manifests)
        if found.platform is not None and (rank := _rank(found.platform, wanted)) is not None
    ]
    if ranked:
        return index.manifests[min(ranked)[1]]
    plain = [found for found in index.manifests if found.platform is None]
    if len(plain) == len(index.manifests) == 1:
        return plain[0]
    # Attestations and the like stand there as well, for a platform that nobody has.
    known = {str(normal(found.platform)) for found in index.manifests if found.platform is not None}
    offered = ", ".join(sorted(known - {"unknown/unknown"})) or "none with a platform"
    raise ImageError(f"it is not there for {wanted}; there are: {offered}", what)


__all__ = ["Platform", "choose", "normal", "own", "parse_platform"]
