"""
From a Dockerfile to its graph.

Pure: what it has to know of base images is handed in, and it says which ones.

Spec: Dockerfile reference, "FROM", "ONBUILD".
"""

from __future__ import annotations

import msgspec

from sandboxlib.build import dockerfile
from sandboxlib.build.dockerfile import Instruction
from sandboxlib.build.graph import Graph, Warned
from sandboxlib.build.instructions import StageState
from sandboxlib.build.operations import FromImage, FromStage
from sandboxlib.build.origins import Known, base_of, origin_of
from sandboxlib.build.stages import Draft, Outline
from sandboxlib.errors import DockerfileError

#: Triggers that one image may have: each is a step.
_MOST_TRIGGERS = 1000


def missing(outline: Outline, known: Known) -> frozenset[FromImage]:
    """
    The images whose configuration has to be known before `plan`.

    To be asked again with these: what they trigger may need others.

    Args:
        outline: The stages; triggers of the bases that are known are put into it.
        known: What is known by now.

    Raises:
        DockerfileError: A trigger makes no sense.
    """
    while True:
        reachable = outline.reachable()
        triggered = False
        for draft in reachable:
            triggered |= _trigger(outline, draft, known)
        if not triggered:
            break
    wanted: set[FromImage] = set()
    for draft in reachable:
        base = base_of(outline, draft)
        found = [base, *(origin_of(outline, each, draft) for _, each in outline.origins(draft))]
        wanted.update(each for each in found if isinstance(each, FromImage))
    return frozenset(wanted - known.keys())


def plan(outline: Outline, known: Known, *, epoch: int | None = None) -> Graph:
    """
    Work out what each instruction does.

    Args:
        outline: The stages; nothing is `missing` any more.
        known: What is known by now.
        epoch: The time of all that is new; None for now.

    Raises:
        DockerfileError: An instruction makes no sense where it stands.
    """
    warnings = [Warned("UndefinedVar", line, f"${name} is not set") for line, name in outline.unset]
    done: dict[int, StageState] = {}
    stages = []
    for draft in outline.reachable():
        state = StageState(outline, draft, known, done, warnings)
        for each in draft.body:
            state.take(each)
        done[draft.number] = state
        stages.append(state.stage(outline.request.labels if draft.number == outline.target else {}))
    return Graph(
        tuple(stages), outline.target, outline.dockerfile.name, epoch, tuple(dict.fromkeys(warnings))
    )


def _trigger(outline: Outline, draft: Draft, known: Known) -> bool:
    """Put what its base triggers before a stage's own instructions, once."""
    if draft.triggered:
        return False
    base = base_of(outline, draft)
    if isinstance(base, FromImage):
        if base not in known:
            return False
        config = known[base][1].config
        texts = (config.on_build if config is not None else None) or ()
        found = [_triggered(outline, draft, text) for text in texts[: _MOST_TRIGGERS + 1]]
    elif isinstance(base, FromStage):
        found = [
            msgspec.structs.replace(each, trigger=False, line=draft.start.line)
            for each in outline.drafts[base.number].body
            if each.trigger
        ]
    else:
        found = []
    if len(found) > _MOST_TRIGGERS:
        raise outline.refuse(draft.start, f"its base has more than {_MOST_TRIGGERS} triggers (ONBUILD)")
    draft.body[:0] = found
    draft.triggered = True
    return bool(found)


def _triggered(outline: Outline, draft: Draft, text: str) -> Instruction:
    try:
        parsed = dockerfile.parse(text, outline.dockerfile.name).instructions
    except DockerfileError as error:
        raise outline.refuse(draft.start, f"its base triggers {text[:100]!r}: {error.message}") from None
    if len(parsed) != 1 or parsed[0].trigger or parsed[0].name in {"FROM", "MAINTAINER"}:
        raise outline.refuse(draft.start, f"its base triggers {text[:100]!r}, which cannot be triggered")
    return msgspec.structs.replace(parsed[0], line=draft.start.line, end=draft.start.end)


__all__ = ["missing", "plan"]
