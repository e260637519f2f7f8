"""
How far a build is, as events; ``print`` of one is a line for people.

They come from one thread, in order; what happens at once in several stages is told apart by ``stage``.
"""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True):
    """
    What has happened.

    Attributes:
        stage: The stage that it is about, by name; "" where it is about the build.
        step: The number of the step in it, from 1; 0 where it is about the whole stage.
    """

    stage: str = ""
    step: int = 0

    @property
    def where(self) -> str:
        """Where in the build: ``[build 3]``."""
        return f"[{self.stage}{f' {self.step}' if self.step else ''}] " if self.stage else ""


class StageStarted(Event, frozen=True):
    """
    A stage begins.

    Attributes:
        text: Its FROM.
        steps: How many it has.
    """

    text: str = ""
    steps: int = 0

    def __str__(self) -> str:
        return f"{self.where}{self.text}"


class StepStarted(Event, frozen=True):
    """
    A step begins.

    Attributes:
        text: The instruction.
        line: Of the Dockerfile.
        steps: How many the stage has.
    """

    text: str = ""
    line: int = 0
    steps: int = 0

    def __str__(self) -> str:
        return f"[{self.stage} {self.step}/{self.steps}] {self.text}"


class StepCached(Event, frozen=True):
    """
    A step need not be carried out: its result is there from before.

    Attributes:
        key: Of the cache; "" for a step that makes no files.
        size: Bytes of its layer, compressed; 0 if it has none.
    """

    key: str = ""
    size: int = 0

    def __str__(self) -> str:
        return f"{self.where}cached"


class StepOutput(Event, frozen=True):
    """
    A RUN has written something.

    Attributes:
        stream: 1 for its output, 2 for its errors.
        data: What, with the values of secrets taken out.
    """

    stream: int = 1
    data: bytes = b""

    def __str__(self) -> str:
        text = self.data.decode(errors="replace").rstrip("\n")
        return "\n".join(f"{self.where}{line}" for line in text.split("\n"))


class StepFinished(Event, frozen=True):
    """
    A step is done; its layer may still be being packed.

    Attributes:
        seconds: How long it took.
    """

    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.where}done in {self.seconds:.1f} s"


class StepFailed(Event, frozen=True):
    """
    A step cannot be carried out; the build ends with an error.

    Attributes:
        message: Why.
    """

    message: str = ""

    def __str__(self) -> str:
        return f"{self.where}failed: {self.message}"


class LayerPacked(Event, frozen=True):
    """
    A step's layer is in the store.

    Attributes:
        digest: Of its blob.
        size: Bytes of it, compressed.
        seconds: How long packing took.
    """

    digest: str = ""
    size: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.where}packed {self.size / 1e6:.1f} MB as {self.digest[:19]} in {self.seconds:.1f} s"


class Pulling(Event, frozen=True):
    """
    An image that is needed is fetched.

    Attributes:
        reference: Its name.
        digest: The blob that is on its way; "" where it is the image as a whole.
        kind: As of `Progress`: ``resolving``, ``downloading``, ``unpacking``, …
        current: Bytes that are done.
        total: Bytes in all, as far as that is known; else 0.
    """

    reference: str = ""
    digest: str = ""
    kind: str = ""
    current: int = 0
    total: int = 0

    def __str__(self) -> str:
        of = f" {self.current / 1e6:.1f} of {self.total / 1e6:.1f} MB" if self.total else ""
        return f"{self.reference}: {self.kind}{of}"


class Warning(Event, frozen=True):  # noqa: A001 - what it is
    """
    Something is likely not meant.

    Attributes:
        rule: A short name for it.
        line: Of the Dockerfile; 0 where no line is to blame.
        message: What, in a sentence.
    """

    rule: str = ""
    line: int = 0
    message: str = ""

    def __str__(self) -> str:
        return f"warning: {f'line {self.line}: ' if self.line else ''}{self.message} ({self.rule})"


class BuildFinished(Event, frozen=True):
    """
    The image is there.

    Attributes:
        digest: Of its manifest.
        names: What it is called.
        seconds: How long the build took.
        cached: How many steps were there from before.
        steps: How many there are.
    """

    digest: str = ""
    names: tuple[str, ...] = ()
    seconds: float = 0.0
    cached: int = 0
    steps: int = 0

    def __str__(self) -> str:
        named = f" as {', '.join(self.names)}" if self.names else ""
        cached = f"{self.cached} of {self.steps} steps cached"
        return f"built {self.digest[:19]}{named} in {self.seconds:.1f} s ({cached})"


__all__ = [
    "BuildFinished",
    "Event",
    "LayerPacked",
    "Pulling",
    "StageStarted",
    "StepCached",
    "StepFailed",
    "StepFinished",
    "StepOutput",
    "StepStarted",
    "Warning",
]
