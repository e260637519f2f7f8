"""
The text of a Dockerfile, as instructions with their flags, arguments and here-documents.

The splitting of lines is e2b-dockerfile-utils', which follows BuildKit. What it leaves out is added
here: triggers of ONBUILD with here-documents, the directives that it does not hand out, and bounds
on what a hostile text may cost.

Spec: Dockerfile reference, "Format", "Parser directives", "Here-Documents".
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

import msgspec

from sandboxlib.errors import DockerfileError, UnsupportedError

if TYPE_CHECKING:
    from e2b_dockerfile_utils import DockerfileInstruction

#: Bytes of a Dockerfile: far more than people write, and read within a second or two.
LONGEST = 4 << 20
#: Bytes of one line, its continuations not counted.
LONGEST_LINE = 1 << 20
INSTRUCTIONS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_DIRECTIVES = ("syntax", "escape", "check")
#: ONBUILD with something behind it that is no comment.
_ONBUILD = re.compile(r"[ \t\v\f\r]*ONBUILD(?=[ \t\v\f\r]+[^\s#])", re.IGNORECASE)
_LINE = re.compile(r"^Dockerfile parse error(?: on line (\d+))?: ", re.ASCII)


class Heredoc(msgspec.Struct, frozen=True):
    """
    A document that stands in the lines after its instruction.

    Attributes:
        name: The word that ends it.
        content: Its lines, each with its end; without leading tabs where it began with ``<<-``.
        expand: No part of its name was quoted: variables in it are replaced.
        raw: Its lines as they stand there.
    """

    name: str
    content: str
    expand: bool
    raw: str


class Instruction(msgspec.Struct, frozen=True):
    """
    One instruction, not yet understood.

    Attributes:
        name: In capitals. Of a trigger the name of what ONBUILD is to do.
        flags: Such as ``--from=build``, without quotes.
        args: As the kind of instruction has them: names and values in turn for ENV and LABEL, the rest
            as it stands for RUN in its shell form.
        json: The arguments were a JSON array.
        heredocs: The documents that belong to it.
        line: Where it begins, from 1.
        end: The last line of it.
        text: All of it on one line, as it was written, without the documents.
        trigger: It stands behind ONBUILD.
        delimited: Of ENV and LABEL: written with ``=``.
    """

    name: str
    flags: tuple[str, ...]
    args: tuple[str, ...]
    json: bool
    heredocs: tuple[Heredoc, ...]
    line: int
    end: int
    text: str
    trigger: bool = False
    delimited: bool = True

    @property
    def expression(self) -> str:
        """What an image keeps of a trigger: the instruction with its documents, without ONBUILD."""
        return "\n".join((self.text, *(f"{doc.raw}{doc.name}" for doc in self.heredocs)))


class Dockerfile(msgspec.Struct, frozen=True):
    """
    A Dockerfile that has been read.

    Attributes:
        name: What errors call it.
        instructions: From the first.
        escape: The character that takes their meaning from others, and a line's end its own.
        directives: What its first lines say to whoever reads it, by name.
        warnings: What is likely not meant, as (line, text).
    """

    name: str
    instructions: tuple[Instruction, ...]
    escape: str = "\\"
    directives: tuple[tuple[str, str], ...] = ()
    warnings: tuple[tuple[int, str], ...] = ()


def parse(text: str | bytes, name: str = "Dockerfile") -> Dockerfile:
    """
    Read a Dockerfile.

    Args:
        text: UTF-8 where it is bytes; what is not stays as it is. A byte order mark is passed over.
        name: What errors call it.

    Raises:
        DockerfileError: It is none; says the line, and what is allowed there.
        UnsupportedError: The package that reads it is not installed.
    """
    whole = text if isinstance(text, str) else text.decode("utf-8", "surrogateescape")
    if len(whole) > LONGEST:
        raise DockerfileError(f"it has more than {LONGEST} characters", name)
    whole = whole.removeprefix("\ufeff")
    lines = whole.split("\n")
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise DockerfileError("there is a zero byte in it: is it UTF-16, or no text?", name, number)
        if len(line) > LONGEST_LINE:
            raise DockerfileError(f"a line of more than {LONGEST_LINE} characters", name, number)
    escape, directives = _head(lines, name)
    found = _instructions(lines, escape, name)
    warnings = [(each.line, f"an empty line within {each.text[:60]!r}") for each in _gaps(found, lines)]
    return Dockerfile(name, tuple(found), escape, tuple(directives.items()), tuple(warnings))


def _head(lines: list[str], name: str) -> tuple[str, dict[str, str]]:
    """The directives, which end where anything else comes; and no comment before the first instruction."""
    found: dict[str, str] = {}
    ended = False
    for number, line in enumerate(lines):
        stripped = line.strip()
        if not stripped.startswith("#"):
            ended = True
            if stripped:
                break
            continue
        key, equals, value = (part.strip() for part in stripped[1:].partition("="))
        key = key.lower()
        if ended or not equals or key not in _DIRECTIVES or not value:
            ended = True
        elif key in found:
            raise DockerfileError(f"only one {key} directive is allowed", name, number + 1, line)
        elif key == "escape" and value not in {"\\", "`"}:
            raise DockerfileError("the escape directive is \\ or `", name, number + 1, line)
        else:
            found[key] = value
        # The parser need not look at it: it would take its time over long ones.
        lines[number] = ""
    return found.get("escape", "\\"), found


def _instructions(lines: list[str], escape: str, name: str) -> list[Instruction]:
    text = list(lines)
    if escape != "\\":
        # Its directive was the first line that was not empty, and is blank now.
        text[0] = f"#escape={escape}"
    # A trigger is read as the instruction that it is; the lines that only look like one stay as they are.
    looks = {number for number, line in enumerate(text, 1) if _ONBUILD.match(line)}
    found = _parsed(_masked(text, looks), name)
    triggers = looks & {each.start_line for each in found}
    if triggers != looks:
        found = _parsed(_masked(text, triggers), name)
    return [_instruction(each, each.start_line in triggers, name) for each in found]


def _masked(lines: list[str], triggers: set[int]) -> str:
    masked = [
        _ONBUILD.sub("", line, count=1) if number in triggers else line
        for number, line in enumerate(lines, 1)
    ]
    return "\n".join(masked)


def _parsed(text: str, name: str) -> list[DockerfileInstruction]:
    try:
        import e2b_dockerfile_utils as parser
    except ImportError as error:
        raise UnsupportedError(
            "building from a Dockerfile", f"the package {error.name}", "pip install e2b-dockerfile-utils"
        ) from None
    try:
        found: list[DockerfileInstruction] = parser.parse_dockerfile_ast(text).instructions
        return found
    except parser.DockerfileSyntaxError as error:
        line = error.line or 0
        written = text.split("\n")[line - 1].strip() if line else ""
        raise DockerfileError(_explained(_LINE.sub("", str(error))), name, line, written) from None
    except RecursionError:
        raise DockerfileError("brackets or braces are nested too deeply in it", name) from None


def _explained(message: str) -> str:
    """The parser's message, with what is allowed."""
    unknown = message.removeprefix("unknown instruction: ")
    if unknown == message:
        return message
    shown = unknown if len(unknown) <= 60 else f"{unknown[:60]}…"
    text = f"unknown instruction {shown!r}"
    close = difflib.get_close_matches(unknown[:30].upper(), INSTRUCTIONS, n=1)
    if close:
        return f"{text}: did you mean {close[0]}?"
    return f"{text}: the instructions are {', '.join(INSTRUCTIONS)}"


def _instruction(found: DockerfileInstruction, trigger: bool, name: str) -> Instruction:
    heredocs = tuple(
        Heredoc(doc.name, _chomped(doc.content) if doc.chomp else doc.content, doc.expand, doc.content)
        for doc in found.heredocs
    )
    args, delimited = found.args, True
    if found.name in {"ENV", "LABEL"}:
        delimited = all(found.args[2::3])
        args = [part for number, part in enumerate(found.args) if number % 3 < 2]
    text = found.original.strip()
    if found.name == "ONBUILD":
        if trigger:
            raise DockerfileError("ONBUILD ONBUILD is not allowed", name, found.start_line, text)
        raise DockerfileError(
            "ONBUILD needs the instruction that it is to trigger", name, found.start_line, text
        )
    return Instruction(
        found.name,
        tuple(found.flags),
        tuple(map(_whole, args)),
        found.json,
        heredocs,
        found.start_line,
        found.end_line,
        text,
        trigger,
        delimited,
    )


def _whole(text: str) -> str:
    """Without halves of characters, which JSON can spell; bytes that are no UTF-8 stay."""
    return re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", text)


def _chomped(content: str) -> str:
    return re.sub(r"^\t+", "", content, flags=re.MULTILINE)


def _gaps(found: list[Instruction], lines: list[str]) -> list[Instruction]:
    """Those that go on behind an empty line, which a later Docker may refuse."""
    gaps = []
    for each in found:
        documents = sum(doc.raw.count("\n") + 1 for doc in each.heredocs)
        own = lines[each.line - 1 : each.end - documents]
        if any(not line.strip() for line in own[:-1]):
            gaps.append(each)
    return gaps


__all__ = ["INSTRUCTIONS", "LONGEST", "Dockerfile", "Heredoc", "Instruction", "parse"]
