"""
Patterns of file names: those of COPY and ADD, and those of .dockerignore.

Both become regular expressions that need no more than one way through a name: what a run of any
characters has taken is never given back where that could not help.

Spec: Go's filepath.Match; Dockerfile reference, "COPY" and ".dockerignore file".
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence

import msgspec

#: Bytes of a file with patterns, and how many it may have.
LONGEST = 1 << 20
MOST = 10_000
_WILD = re.compile(r"[*?\[\\]")
#: How many "**" may stand beside other characters: each multiplies what a match may cost.
_MOST_WITHIN = 2


class PatternError(ValueError):
    """It is no pattern."""


def is_wild(text: str) -> bool:
    """Does it have anything that stands for more than itself?"""
    at = 0
    while at < len(text):
        if text[at] in "*?[":
            return True
        at += 1 + (text[at] == "\\")
    return False


def literal(text: str) -> str:
    """What a pattern that is not wild stands for."""
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def segment(pattern: str) -> re.Pattern[str]:
    """
    One part of a path, as filepath.Match has it.

    Raises:
        PatternError: A bracket is not closed, or nothing is escaped.
    """
    return re.compile(_joined(_parts(pattern)), re.DOTALL)


#: One part of a regular expression; and what stands for "*" and for "**/".
_RUN, _FOLDERS = "*", "**/"


def _parts(pattern: str, *, folders: bool = False) -> list[str]:
    """A pattern as parts of a regular expression; with *folders* "**" goes across them."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            if folders and pattern[at : at + 1] == "*":
                at += 1 + (pattern[at + 1 : at + 2] == "/")
                if parts[-1:] != [_FOLDERS]:
                    parts.append(_FOLDERS)
            elif parts[-1:] != [_RUN]:
                parts.append(_RUN)
        elif character == "?":
            parts.append("[^/]")
        elif character == "[":
            found, at = _class(pattern, at)
            parts.append(found)
        elif character == "\\":
            if at == len(pattern):
                raise PatternError(f"the pattern {pattern!r} ends in a backslash, which escapes nothing")
            parts.append(re.escape(pattern[at]))
            at += 1
        else:
            parts.append(re.escape(character))
    return parts


def _class(pattern: str, at: int) -> tuple[str, int]:
    """The class that begins behind the bracket at *at*, and where it ends."""
    wrong = PatternError(f"the pattern {pattern!r} has a bracket that is not as it has to be")
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges: list[str] = []

    def one(at: int) -> tuple[str, int]:
        character = pattern[at : at + 1]
        if not character or character in "-]":
            raise wrong
        if character == "\\":
            at += 1
            character = pattern[at : at + 1]
            if not character:
                raise wrong
        return character, at + 1

    while not (ranges and pattern[at : at + 1] == "]"):
        low, at = one(at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = one(at + 1)
        # One that is upside down has nothing in it.
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    inside = "".join(ranges)
    if not inside:
        return ("[^/]" if negated else "(?!)"), at + 1
    return f"[{'^/' if negated else ''}{inside}]", at + 1


def _joined(parts: Sequence[str], end: str = r"\Z") -> str:
    """
    A regular expression of them.

    Between two runs there is a piece of known length: its first place is as good as any, and so is
    kept to (an atomic group). The last piece has but one place, at the end.
    """
    pieces: list[list[str]] = [[]]
    for part in parts:
        if part == _RUN:
            pieces.append([])
        else:
            pieces[-1].append(part)
    first, *rest = ("".join(piece) for piece in pieces)
    if not rest:
        return first + end
    *middle, last = rest
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle) + f"[^/]*{last}{end}"


class Rule(msgspec.Struct, frozen=True):
    """
    One line of .dockerignore.

    Attributes:
        pattern: Cleaned: without spaces around it, a slash before it, and parts that lead nowhere.
        keeps: It began with ``!``.
    """

    pattern: str
    keeps: bool

    def __str__(self) -> str:
        return f"!{self.pattern}" if self.keeps else self.pattern


def rules(text: str | bytes) -> tuple[Rule, ...]:
    """
    Read a .dockerignore.

    Raises:
        PatternError: A line is none; says which.
    """
    whole = text if isinstance(text, str) else text.decode("utf-8", "surrogateescape")
    if len(whole) > LONGEST:
        raise PatternError(f"it has more than {LONGEST} characters")
    return cleaned(line for line in whole.removeprefix("\ufeff").split("\n") if not line.startswith("#"))


def cleaned(lines: Iterable[str]) -> tuple[Rule, ...]:
    """Those of lines without comments; empty ones are passed over. Raises: PatternError."""
    found: list[Rule] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        if "\0" in text:
            raise PatternError(f"line {number} has a zero byte")
        keeps = text.startswith("!")
        text = text[keeps:].strip()
        if not text:
            raise PatternError(f"line {number} has nothing behind its '!'")
        text = posixpath.normpath(re.sub("/+", "/", text))
        found.append(Rule(text.removeprefix("/") or "/", keeps))
        if len(found) > MOST:
            raise PatternError(f"there are more than {MOST} patterns")
    return tuple(found)


#: For each rule whether it matched a folder on the way; None where none did.
State = tuple[bool, ...] | None


class Ignore:
    """
    What a build leaves out of its context.

    A rule that matches a folder matches all below it; of several that match, the last decides.

    Raises:
        PatternError: A rule is none.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._each = [(_compiled(rule.pattern), rule.keeps) for rule in self.rules]
        self._kept = [rule.pattern.split("/") for rule in self.rules if rule.keeps]
        # Without exceptions there is nothing to weigh: all at once.
        every = "|".join(f"(?:{_regex(rule.pattern)})" for rule in self.rules)
        self._any = re.compile(every, re.DOTALL) if every and not self._kept else None

    def __bool__(self) -> bool:
        return bool(self.rules)

    def look(self, path: str, above: State = None) -> tuple[bool, State]:
        """
        Is *path* left out?

        Args:
            path: From the top of the context, with its parts between single slashes.
            above: What this said of the folder that it is in.

        Returns:
            Whether it is, and what to say when asked of what is in it.
        """
        if self._any is not None:
            return self._any.match(path) is not None, None
        if not self.rules:
            return False, None
        state = []
        out = False
        for number, (compiled, keeps) in enumerate(self._each):
            found = above is not None and above[number]
            # A rule that could change nothing is not asked.
            if not found and keeps == out:
                found = compiled.match(path) is not None
            state.append(found)
            if found:
                out = not keeps
        return out, tuple(state)

    def may_keep(self, folder: str) -> bool:
        """Could anything in a *folder* that is left out be taken in all the same?"""
        parts = folder.split("/")
        return any(_could(kept, parts) for kept in self._kept)

    def excludes(self, path: str) -> bool:
        """Is *path* left out, with all that is said of the folders on the way?"""
        state: State = None
        out = False
        parts = path.split("/")
        for number in range(1, len(parts) + 1):
            out, state = self.look("/".join(parts[:number]), state)
            if out and not self._kept:
                return True
        return out


def _could(kept: list[str], folder: list[str]) -> bool:
    for wanted, part in zip(kept, folder, strict=False):
        if "**" in wanted:
            return True
        if wanted != part and not _WILD.search(wanted):
            return False
    return len(kept) > len(folder)


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(_regex(pattern), re.DOTALL)


def _regex(pattern: str) -> str:
    parts = _parts(pattern, folders=True)
    if pattern.startswith("**") and parts[1:] and not is_wild(pattern[2:]) and "\\" not in pattern:
        rest = pattern[2:]
        # "**/x" is x in any folder; "**x" is whatever ends in x.
        return f".*{re.escape(rest)}\\Z" if rest[0] != "/" else f"(?:.*/)?{re.escape(rest[1:])}\\Z"
    pieces: list[list[str]] = [[]]
    for part in parts:
        if part == _FOLDERS:
            pieces.append([])
        else:
            pieces[-1].append(part)
    first, *rest_ = pieces
    if not rest_:
        return _joined(first)
    *middle, last = rest_
    if sum(piece[-1:] != ["/"] for piece in middle) > _MOST_WITHIN:
        raise PatternError(
            f"the pattern {pattern!r} has more than {_MOST_WITHIN} '**' within parts of a path"
        )
    text = _joined(first, "")
    for piece in middle:
        # Where it ends with a folder its first place is as good as any.
        found = f"(?:.*?/)??{_joined(piece, '')}"
        text += f"(?>{found})" if piece[-1:] == ["/"] else f"(?:.*/)?{_joined(piece, '')}"
    return text + (f"(?:.*/)?{_joined(last)}" if last else r".*\Z")


__all__ = ["Ignore", "PatternError", "Rule", "State", "cleaned", "is_wild", "literal", "rules", "segment"]
