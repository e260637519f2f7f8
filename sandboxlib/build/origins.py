"""Where the files of a stage, or of an instruction in it, are from."""

from __future__ import annotations

from collections.abc import Mapping

from sandboxlib.build.operations import FromContext, FromImage, FromStage, Nothing, Origin
from sandboxlib.build.stages import SCRATCH, Draft, Outline
from sandboxlib.image.model import ImageConfig

#: What is known of images: the digest of each one's manifest, and its configuration.
Known = Mapping[FromImage, tuple[str, ImageConfig]]


def base_of(outline: Outline, draft: Draft) -> Origin:
    """What a stage begins with."""
    if draft.name in outline.request.contexts or draft.name in outline.request.images:
        return _named(outline, draft.name, draft.platform)
    if draft.above is not None:
        return FromStage(draft.above, outline.drafts[draft.above].title)
    return _named(outline, draft.base, draft.platform)


def _named(outline: Outline, name: str, platform: str) -> Origin:
    if name in outline.request.contexts:
        return FromContext(name)
    if name == SCRATCH:
        return Nothing()
    return FromImage(outline.request.images.get(name, name), platform)


def origin_of(outline: Outline, found: int | str, draft: Draft) -> Origin:
    """What `Outline.origin` has found in a stage: files are taken from an image of the stage's platform."""
    if isinstance(found, int):
        return FromStage(found, outline.drafts[found].title)
    return _named(outline, found, draft.platform)


__all__ = ["Known", "base_of", "origin_of"]
