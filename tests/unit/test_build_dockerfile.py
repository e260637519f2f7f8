"""A Dockerfile's text becomes instructions; what is none is refused with its line."""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
import time

import pytest

from sandboxlib.build.dockerfile import LONGEST, Dockerfile, Instruction, parse
from sandboxlib.errors import BuildError, DockerfileError, UnsupportedError


def one(text: str) -> Instruction:
    """The instruction behind a FROM."""
    return parse(f"FROM scratch\n{text}").instructions[1]


def test_an_instruction_knows_its_lines_and_its_text() -> None:
    found = parse("FROM a AS b\n\n# a comment\nrun make \\\n  # in between\n  all\n").instructions
    assert [(each.name, each.line, each.end) for each in found] == [("FROM", 1, 1), ("RUN", 4, 6)]
    assert found[1].text == "run make   all"
    assert found[1].args == ("make   all",)


@pytest.mark.parametrize(
    "text, name, flags, args, json",
    [
        ("COPY --from=a --chown=1:2 x y /z/", "COPY", ("--from=a", "--chown=1:2"), ("x", "y", "/z/"), False),
        ('COPY ["a b", "/c d/"]', "COPY", (), ("a b", "/c d/"), True),
        ('COPY "a b" /c', "COPY", (), ('"a b"', "/c"), False),
        ('CMD ["a", "b c"]', "CMD", (), ("a", "b c"), True),
        ("CMD ['a']", "CMD", (), ("['a']",), False),
        ('RUN ["a"] && b', "RUN", (), ('["a"] && b',), False),
        ("ENV a=1 b='2 3'", "ENV", (), ("a", "1", "b", "'2 3'"), False),
        ("ENV a 1 2", "ENV", (), ("a", "1 2"), False),
        ("EXPOSE 80 81/udp", "EXPOSE", (), ("80", "81/udp"), False),
        ("HEALTHCHECK --retries=2 CMD a b", "HEALTHCHECK", ("--retries=2",), ("CMD", "a b"), False),
        ("VOLUME /a /b", "VOLUME", (), ("/a", "/b"), False),
        ("ARG a=1 b", "ARG", (), ("a=1", "b"), False),
        ("RUN --mount=type=cache,target=/c x", "RUN", ("--mount=type=cache,target=/c",), ("x",), False),
        ("RUN --mount=type=bind -- --x", "RUN", ("--mount=type=bind",), ("--x",), False),
        ("MAINTAINER a <b>", "MAINTAINER", (), ("a <b>",), False),
    ],
)
def test_flags_and_arguments(
    text: str, name: str, flags: tuple[str, ...], args: tuple[str, ...], json: bool
) -> None:
    found = one(text)
    assert (found.name, found.flags, found.args, found.json) == (name, flags, args, json)


def test_what_is_written_without_an_equals_sign_is_told_apart() -> None:
    assert one("ENV a=1").delimited
    assert not one("ENV a 1").delimited


def test_a_here_document_belongs_to_its_instruction() -> None:
    found = parse("FROM a\nRUN <<EOF\nx\n\ny\nEOF\nRUN z\n").instructions
    (doc,) = found[1].heredocs
    assert (doc.name, doc.content, doc.expand) == ("EOF", "x\n\ny\n", True)
    assert (found[1].line, found[1].end, found[2].line) == (2, 6, 7)


def test_a_quoted_name_keeps_a_document_as_it_is() -> None:
    assert [doc.expand for doc in one("COPY <<\"A\" <<'B' <<C /d/\nA\nB\nC\n").heredocs] == [
        False,
        False,
        True,
    ]


def test_a_dash_takes_leading_tabs_away() -> None:
    (doc,) = one("COPY <<-EOF /x\n\t\ta\n\t b\n\tEOF\n").heredocs
    assert (doc.content, doc.raw) == ("a\n b\n", "\t\ta\n\t b\n")


def test_triggers_are_read_as_what_they_trigger() -> None:
    found = one("ONBUILD COPY --from=a b c")
    assert (found.name, found.trigger, found.flags) == ("COPY", True, ("--from=a",))
    assert found.expression == "COPY --from=a b c"


def test_a_trigger_may_have_a_here_document() -> None:
    found = parse("FROM a\nONBUILD RUN <<EOF\nONBUILD RUN x\nEOF\nRUN y\n").instructions
    assert [(each.name, each.trigger) for each in found] == [("FROM", False), ("RUN", True), ("RUN", False)]
    assert found[1].expression == "RUN <<EOF\nONBUILD RUN x\nEOF"


def test_what_only_looks_like_a_trigger_stays_as_it_is() -> None:
    found = parse("FROM a\nCOPY <<EOF /x\nONBUILD RUN y\nEOF\nRUN a \\\n ONBUILD RUN b\n").instructions
    assert found[1].heredocs[0].content == "ONBUILD RUN y\n"
    assert found[2].args == ("a  ONBUILD RUN b",)
    assert not any(each.trigger for each in found)


def test_directives_come_first_or_not_at_all() -> None:
    assert parse("# syntax=a/b:1\n#escape=`\nFROM a").directives == (("syntax", "a/b:1"), ("escape", "`"))
    assert parse("# a comment\n# escape=`\nFROM a").escape == "\\"
    assert parse("\n# escape=`\nFROM a").escape == "\\"
    assert parse("# other=1\n# escape=`\nFROM a").escape == "\\"


def test_another_escape_character_joins_lines() -> None:
    found = parse("# escape=`\nFROM a\nRUN x `\n y\\\nRUN z")
    assert [each.args for each in found.instructions[1:]] == [("x  y\\",), ("z",)]


def test_a_byte_order_mark_and_the_line_ends_of_windows() -> None:
    found = parse(b"\xef\xbb\xbf# escape=`\r\nFROM a\r\nRUN x `\r\n  y\r\nCOPY <<E /f\r\nz\r\nE\r\n")
    assert found.escape == "`"
    assert found.instructions[1].args == ("x   y",)
    assert found.instructions[2].heredocs[0].content == "z\r\n"


def test_bytes_that_are_no_text_stay_as_they_are() -> None:
    found = parse(b"FROM a\nRUN echo \xff\n").instructions[1]
    assert found.args[0].encode("utf-8", "surrogateescape") == b"echo \xff"


def test_halves_of_characters_become_whole() -> None:
    assert one('CMD ["\\ud800", "\\u00e9"]').args == ("\ufffd", "é")


def test_an_empty_line_within_is_told() -> None:
    assert parse("FROM a\nRUN x \\\n\n y\nRUN z\n").warnings == ((2, "an empty line within 'RUN x  y'"),)
    assert parse("FROM a\nRUN <<E\n\nE\n").warnings == ()


@pytest.mark.parametrize(
    "text, line, message",
    [
        ("FRM a", 1, "did you mean FROM?"),
        ("FROM a\nCOPPY x y", 2, "did you mean COPY?"),
        ("FROM a\nxyzzy", 2, "the instructions are ADD, ARG,"),
        ("FROM a\nRUN <<EOF\nx", 2, "unterminated"),
        ("FROM a\nENV a", 2, "must have two arguments"),
        ("FROM a\nENV a=1 b", 2, "find = in"),
        ("FROM a\nCMD [1]", 2, "strings"),
        ("FROM a\nONBUILD", 2, "ONBUILD needs the instruction"),
        ("FROM a\nONBUILD # x", 2, "ONBUILD needs the instruction"),
        ("FROM a\nONBUILD ONBUILD RUN x", 2, "ONBUILD ONBUILD"),
        ("FROM a\nRUN x\0y", 2, "zero byte"),
        ("# escape=x\nFROM a", 1, "the escape directive"),
        ("# syntax=a\n# syntax=b\nFROM a", 2, "only one syntax"),
        ("FROM a\nRUN " + "x" * (2 << 20), 2, "a line of more than"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(DockerfileError, match=message) as caught:
        parse(text, "my/Dockerfile")
    assert (caught.value.file, caught.value.line) == ("my/Dockerfile", line)
    assert str(caught.value).startswith(f"my/Dockerfile:{line}: ")


def test_utf_16_is_no_text() -> None:
    with pytest.raises(DockerfileError, match="UTF-16"):
        parse("FROM a\n".encode("utf-16"))


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(DockerfileError, match="more than"):
        parse("#" * (LONGEST + 1))


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\nCMD " + "[" * 100_000,
        "#a" + " " * 500_000 + "b\nFROM a",
        "# syntax=" + " " * 500_000 + "x" + " " * 400_000 + "\nFROM a",
        "FROM a\n" + "ONBUILD RUN x\n" * 20_000,
        "FROM a\nRUN " + "\\\n" * 100_000 + "x",
        "FROM a\nCOPY <<" + "A" * 500_000 + " /x",
        "FROM a\nENV " + " ".join(f"a{number}=1" for number in range(50_000)),
        "FROM a\nCOPY " + "<<A " * 20_000 + "/x\n",
        'FROM a\nRUN --mount="' + "'" * 500_000 + " x",
    ],
)
def test_no_text_takes_long(text: str) -> None:
    begun = time.process_time()
    with contextlib.suppress(DockerfileError):
        parse(text)
    assert time.process_time() - begun < 20


def test_without_the_parser_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "e2b_dockerfile_utils", None)
    with pytest.raises(UnsupportedError, match="pip install e2b-dockerfile-utils"):
        parse("FROM a")


def test_what_was_read_is_a_value() -> None:
    found = parse("FROM a\nRUN <<E\nx\nE\n")
    assert isinstance(found, Dockerfile)
    assert hash(found) == hash(parse("FROM a\nRUN <<E\nx\nE\n"))
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize("kind", [BuildError, DockerfileError])
def test_an_error_travels(kind: type[BuildError]) -> None:
    error = kind("no", "Dockerfile", 3, "RUN x", stage="build", step=2)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert str(other) == str(error) == "Dockerfile:3: RUN x: no"
        assert (other.line, other.text, other.stage, other.step, other.completed) == (
            3,
            "RUN x",
            "build",
            2,
            None,
        )
