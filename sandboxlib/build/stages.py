"""
The stages of a Dockerfile: how they are named, what they begin with, and which ones a target needs.

Spec: Dockerfile reference, "FROM", "Understand how ARG and FROM interact", "Automatic platform ARGs
in the global scope".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from sandboxlib.build import mounts
from sandboxlib.build.dockerfile import Dockerfile, Instruction
from sandboxlib.build.flags import Flags
from sandboxlib.build.variables import expand
from sandboxlib.errors import DockerfileError
from sandboxlib.image.platform import normal, own, parse_platform
from sandboxlib.reference import Reference, is_digest

SCRATCH = "scratch"
_NAME = re.compile(r"[a-z][a-z0-9._-]*", re.ASCII)
#: Arguments that every RUN has where they are given, and that decide nothing.
PROXIES = frozenset(
    name
    for each in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (each, each.upper())
)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is asked of a build.

    Attributes:
        target: The stage that becomes the image; None for the last.
        args: Build arguments.
        platform: Of the image, such as ``linux/amd64``; None for this machine's.
        contexts: The names of the contexts that are given besides the one that every build has.
        images: Names that stand for another image, or another one than they say.
        labels: Added to the image's.
        network: Of RUN where it says nothing: ``default``, ``none`` or ``host``.
    """

    target: str | None = None
    args: Mapping[str, str] = {}
    platform: str | None = None
    contexts: frozenset[str] = frozenset()
    images: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}
    network: str = "default"


class Draft(msgspec.Struct):
    """
    A stage as it stands in the file.

    Attributes:
        number: From 0.
        name: In small letters; "" if it has none.
        start: Its FROM.
        base: What it begins with, its variables replaced; the name of a stage in small letters.
        above: The number of the stage that it begins with, or None.
        platform: Of what it begins with.
        body: What follows.
        triggered: What its base triggers stands before that.
    """

    number: int
    name: str
    start: Instruction
    base: str
    above: int | None
    platform: str
    body: list[Instruction]
    triggered: bool = False

    @property
    def title(self) -> str:
        """What people see."""
        return self.name or f"stage-{self.number}"


class Outline:
    """
    The stages, before anything is known of base images.

    Attributes:
        drafts: All of them.
        globals: Variables that FROM sees.
        unset: Those that a FROM names and that nobody has set, as (line, name).
        target: The number of the stage that is wanted.
        platform: Of the image.

    Raises:
        DockerfileError: The text makes no sense, as far as that can be seen now.
    """

    def __init__(self, dockerfile: Dockerfile, request: Request) -> None:
        self.dockerfile = dockerfile
        self.request = request
        self.platform = str(own() if request.platform is None else parse_platform(request.platform))
        self.unset: list[tuple[int, str]] = []
        self.drafts: list[Draft] = []
        before, groups = self._groups()
        self.globals = self._arguments(before, groups)
        for start, body in groups:
            self._add(start, body)
        self.target = self._target()

    def refuse(self, about: Instruction, message: str) -> DockerfileError:
        """The error for what is wrong with one instruction."""
        return DockerfileError(message, self.dockerfile.name, about.line, about.text)

    def _groups(self) -> tuple[list[Instruction], list[tuple[Instruction, list[Instruction]]]]:
        before: list[Instruction] = []
        groups: list[tuple[Instruction, list[Instruction]]] = []
        for each in self.dockerfile.instructions:
            if each.name == "FROM" and not each.trigger:
                groups.append((each, []))
            elif groups:
                groups[-1][1].append(each)
            elif each.name == "ARG" and not each.trigger:
                before.append(each)
            else:
                raise self.refuse(each, "before the first FROM there can be ARG only")
        if not groups:
            raise DockerfileError("there is no FROM in it, so nothing to begin with", self.dockerfile.name)
        return before, groups

    def _arguments(
        self, before: Sequence[Instruction], groups: Sequence[tuple[Instruction, list[Instruction]]]
    ) -> dict[str, str]:
        args = self.request.args
        build, target = own(), normal(parse_platform(self.platform))
        known: dict[str, str] = {}
        for prefix, platform in (("BUILD", build), ("TARGET", target)):
            known |= {
                f"{prefix}PLATFORM": str(platform),
                f"{prefix}OS": platform.os,
                f"{prefix}ARCH": platform.architecture,
                f"{prefix}VARIANT": platform.variant or "",
            }
        last = groups[-1][0].args
        known["TARGETSTAGE"] = self.request.target or (last[2].lower() if len(last) == 3 else "")
        # What is given for a name of these takes its place.
        known |= {name: args[name] for name in known if name in args}
        for each in before:
            for name, default in self.pairs(each):
                if name in args:
                    known[name] = args[name]
                elif default is not None:
                    known[name] = self.expanded(each, default, known)
        return known

    def pairs(self, each: Instruction) -> Iterator[tuple[str, str | None]]:
        """Names and defaults of an ARG."""
        if each.flags:
            raise self.refuse(each, "ARG has no flags")
        if not each.args:
            raise self.refuse(each, "ARG needs a name")
        for arg in each.args:
            name, equals, default = arg.partition("=")
            if not name:
                raise self.refuse(each, "ARG needs a name before its '='")
            yield name, default if equals else None

    def expanded(self, about: Instruction, text: str, known: Mapping[str, str]) -> str:
        """*text* with its variables replaced."""
        try:
            found = expand(text, known, self.dockerfile.escape)
        except ValueError as error:
            raise self.refuse(about, str(error)) from None
        self.unset += [(about.line, name) for name in sorted(found.unset)]
        return found.text

    def _add(self, start: Instruction, body: list[Instruction]) -> None:
        try:
            flags = Flags(start)
            name = _stage_name(start.args)
        except ValueError as error:
            raise self.refuse(start, str(error)) from None
        base = self.expanded(start, start.args[0], self.globals)
        if not base:
            raise self.refuse(
                start, f"the image {start.args[0]!r} has no name once its variables are replaced"
            )
        platform = self.platform
        if written := flags.one("platform"):
            platform = self.expanded(start, written, self.globals)
            try:
                platform = str(parse_platform(platform))
            except ValueError as error:
                raise self.refuse(start, str(error)) from None
        above = self.named(base.lower(), len(self.drafts))
        if above is not None:
            platform = self.drafts[above].platform if not written else platform
        number = len(self.drafts)
        if above is None and base != SCRATCH and (name or "").lower() not in self._given:
            self._check(start, base)
        self.drafts.append(Draft(number, (name or "").lower(), start, base, above, platform, list(body)))

    @property
    def _given(self) -> frozenset[str]:
        return self.request.contexts | self.request.images.keys()

    def _check(self, about: Instruction, name: str) -> None:
        """Refuse what cannot be the name of an image."""
        if name in self._given or is_digest(name):
            return
        try:
            Reference.parse(name)
        except ValueError as error:
            raise self.refuse(about, str(error)) from None

    def named(self, name: str, before: int) -> int | None:
        """The last stage of this name before the one with the number *before*."""
        for draft in reversed(self.drafts[:before]):
            if draft.name and draft.name == name.lower():
                return draft.number
        return None

    def _target(self) -> int:
        wanted = self.request.target
        if wanted is None:
            return len(self.drafts) - 1
        found = self.named(wanted, len(self.drafts))
        if found is None and wanted.isdecimal() and int(wanted) < len(self.drafts):
            found = int(wanted)
        if found is None:
            names = [draft.name for draft in self.drafts if draft.name]
            close = difflib.get_close_matches(wanted.lower()[:60], names, n=1)
            hint = (
                f"did you mean {close[0]}?"
                if close
                else f"there are {', '.join(names) or 'none with a name'}"
            )
            raise DockerfileError(f"there is no stage {wanted[:60]!r}: {hint}", self.dockerfile.name)
        return found

    def origin(self, about: Instruction, name: str, draft: Draft) -> int | str:
        """
        What ``from`` stands for in a stage: the number of another, or the name of a context or an image.

        Raises:
            DockerfileError: It is a stage that does not stand before this one.
        """
        if name in self._given:
            return name
        found = self.named(name, draft.number)
        if found is None and name.isdecimal():
            found = int(name)
            if found >= len(self.drafts):
                raise self.refuse(about, f"there is no stage {found}: there are {len(self.drafts)}, from 0")
        if found is None:
            found = next((each.number for each in self.drafts if each.name == name.lower()), None)
        if found is None:
            if name != SCRATCH:
                self._check(about, name)
            return name
        if found >= draft.number:
            raise self.refuse(
                about, f"the stage {name!r} has to stand before the one that takes files from it"
            )
        return found

    def origins(self, draft: Draft) -> Iterator[tuple[Instruction, int | str]]:
        """Where the instructions of a stage take files from, triggers of other stages left out."""
        for each in draft.body:
            if each.trigger:
                continue
            for name in self._names(each):
                yield each, self.origin(each, name, draft)

    def _names(self, each: Instruction) -> Iterator[str]:
        try:
            if each.name == "COPY" and (name := Flags(each).one("from")):
                if expand(name, {}, self.dockerfile.escape, keep_unset=True).text != name or "$" in name:
                    raise ValueError(
                        "--from takes no variable: name a stage by FROM with the variable, and copy from that"
                    )
                yield name
            elif each.name == "RUN":
                for mount in Flags(each).all("mount"):
                    if name := mounts.origin_name(mount):
                        yield name
        except ValueError as error:
            raise self.refuse(each, str(error)) from None

    def reachable(self) -> list[Draft]:
        """The stages that the target needs, each behind those that it needs."""
        found: set[int] = set()
        waiting = [self.target]
        while waiting:
            number = waiting.pop()
            if number in found:
                continue
            found.add(number)
            draft = self.drafts[number]
            if draft.name in self._given:
                continue
            if draft.above is not None:
                waiting.append(draft.above)
            waiting += [origin for _, origin in self.origins(draft) if isinstance(origin, int)]
        return [self.drafts[number] for number in sorted(found)]


def _stage_name(args: Sequence[str]) -> str | None:
    if len(args) == 1:
        return None
    if len(args) != 3 or args[1].lower() != "as":
        raise ValueError("FROM is followed by an image alone, or by an image, AS, and a name")
    name = args[2].lower()
    if not _NAME.fullmatch(name) or name == SCRATCH:
        raise ValueError(
            f"{args[2][:60]!r} is no name of a stage: a letter, then letters, digits, '.', '_' and '-'"
        )
    return name


__all__ = ["PROXIES", "SCRATCH", "Draft", "Outline", "Request"]
