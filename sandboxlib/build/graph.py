"""
What a build is going to do, as plain data: stages, and in each its steps in order.

Nothing here depends on what is in a context or what is cached: it is what the Dockerfile, the
arguments and the configurations of base images say. ``print(graph)`` shows all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from sandboxlib.build.operations import Copy, FromContext, FromImage, FromStage, Op, Origin, Run, Workdir
from sandboxlib.image.model import Config


class Step(msgspec.Struct, frozen=True):
    """
    One instruction, understood.

    Attributes:
        number: Within its stage, from 1; FROM has none.
        line: Of the Dockerfile; that of FROM for what a base image triggers.
        text: As it stands there.
        created_by: What the image's history says of it; "" for nothing.
        op: What it does to files; None where it only changes the configuration.
    """

    number: int
    line: int
    text: str
    created_by: str
    op: Op | None = None


class Warned(msgspec.Struct, frozen=True):
    """
    What is likely not meant.

    Attributes:
        rule: A short name of it; those that Docker's checks have are called the same.
        line: Of the Dockerfile.
        text: What, in a sentence.
    """

    rule: str
    line: int
    text: str


class Stage(msgspec.Struct, frozen=True):
    """
    One FROM and what follows it.

    Attributes:
        number: From 0, in the Dockerfile's order.
        name: Of the stage, or ``stage-N``.
        line: Of its FROM.
        text: Its FROM.
        base: What it begins with.
        platform: Of its files, such as ``linux/amd64``.
        steps: In order.
        config: What the image says of commands, after the last step.
        author: Who, by MAINTAINER.
    """

    number: int
    name: str
    line: int
    text: str
    base: Origin
    platform: str
    steps: tuple[Step, ...]
    config: Config
    author: str = ""

    @property
    def needs(self) -> frozenset[int]:
        """The stages that have to be there before."""
        origins = [self.base, *(origin for step in self.steps if step.op for origin in step.op.origins)]
        return frozenset(origin.number for origin in origins if isinstance(origin, FromStage))


class Graph(msgspec.Struct, frozen=True):
    """
    All that a build does.

    Attributes:
        stages: Those that the target needs, each behind those that it needs.
        target: The number of the one that becomes the image.
        file: The Dockerfile, as errors call it.
        epoch: The time that everything new gets, in seconds since 1970; None for now.
        warnings: What is likely not meant.
    """

    stages: tuple[Stage, ...]
    target: int
    file: str = "Dockerfile"
    epoch: int | None = None
    warnings: tuple[Warned, ...] = ()

    def stage(self, number: int) -> Stage:
        """The stage of this number."""
        return next(stage for stage in self.stages if stage.number == number)

    @property
    def contexts(self) -> frozenset[str]:
        """The names of contexts that are read; "" is the one that every build has."""
        return frozenset(origin.name for origin in self._origins if isinstance(origin, FromContext))

    @property
    def images(self) -> frozenset[FromImage]:
        """The images that are begun with, or copied or mounted from."""
        return frozenset(origin for origin in self._origins if isinstance(origin, FromImage))

    @property
    def _origins(self) -> Iterator[Origin]:
        for stage in self.stages:
            yield stage.base
            for step in stage.steps:
                if step.op is not None:
                    yield from step.op.origins

    def __str__(self) -> str:
        return "\n".join(line for stage in self.stages for line in _lines(stage, self.target))


def _lines(stage: Stage, target: int) -> Iterator[str]:
    needs = ", ".join(map(str, sorted(stage.needs)))
    about = [
        f"on {stage.platform}",
        f"needs {needs}" if needs else "",
        "the image" if stage.number == target else "",
    ]
    yield f"stage {stage.number} {stage.name} from {stage.base}: {', '.join(filter(None, about))}"
    for step in stage.steps:
        yield f"  {step.number:>3} line {step.line:<4} {_short(step.text)}"
        yield from (f"{'':17}{line}" for line in _of(step.op))


def _of(op: Op | None) -> Iterator[str]:
    match op:
        case Run():
            yield f"run {_short(' '.join(op.argv))}"
            rights = ", insecure" if op.insecure else ""
            yield f"    as {op.user or 'root'} in {op.cwd}, network {op.network}{rights}"
            yield from (f"    mount {mount}" for mount in op.mounts)
        case Copy():
            for source in op.sources:
                what = (
                    f"{source.origin}:/{source.path}"
                    if isinstance(source.origin, _TREES)
                    else str(source.origin)
                )
                yield f"copy {what} to {op.destination}{' (linked)' if op.link else ''}"
        case Workdir():
            yield f"mkdir {op.path}"


_TREES = (FromContext, FromImage, FromStage)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:97]}…"


__all__ = ["Graph", "Stage", "Step", "Warned"]
