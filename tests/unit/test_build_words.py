"""Variables, patterns, modes and times in the words of a Dockerfile."""

from __future__ import annotations

import time

import pytest

from sandboxlib.build import durations, modes
from sandboxlib.build.patterns import Ignore, PatternError, is_wild, rules, segment
from sandboxlib.build.variables import VariableError, expand
from sandboxlib.errors import SpecError

SET = {"a": "x", "empty": "", "path": "/usr/lib/libfoo.so.1", "two": "b c", "stars": "a*b*c"}


@pytest.mark.parametrize(
    "text, want",
    [
        ("$a", "x"),
        ("${a}b", "xb"),
        ("$ab", ""),
        ("\\$a", "$a"),
        ("'$a'", "$a"),
        ('"$a"', "x"),
        ('"\\$a \\" \\x"', '$a " \\x'),
        ("a\\ b", "a b"),
        ("$", "$"),
        ("$$a", "a"),
        ("$1x", "x"),
        ("a$", "a$"),
        ("${none-w}", "w"),
        ("${empty-w}", ""),
        ("${empty:-w}", "w"),
        ("${a:-w}", "x"),
        ("${none+w}", ""),
        ("${empty+w}", "w"),
        ("${empty:+w}", ""),
        ("${a:+w}", "w"),
        ("${a?no}", "x"),
        ("${a:?no}", "x"),
        ("${none:-${empty:-$a}}", "x"),
        ("${none:-'$a}'}", "$a}"),
        ("${path#*/}", "usr/lib/libfoo.so.1"),
        ("${path##*/}", "libfoo.so.1"),
        ("${path%.*}", "/usr/lib/libfoo.so"),
        ("${path%%.*}", "/usr/lib/libfoo"),
        ("${path#?usr}", "/lib/libfoo.so.1"),
        ("${path#no}", "/usr/lib/libfoo.so.1"),
        ("${path/lib/LIB}", "/usr/LIB/libfoo.so.1"),
        ("${path//lib/LIB}", "/usr/LIB/LIBfoo.so.1"),
        ("${path//o/}", "/usr/lib/libf.s.1"),
        ("${path/*/x}", "x"),
        ("${path//?/x}", "x" * 20),
        ("${path/u*b/U}", "/Ufoo.so.1"),
        ("${path/\\/usr/}", "/lib/libfoo.so.1"),
        ("${stars/\\*/+}", "a+b*c"),
        ("${stars//\\*/+}", "a+b+c"),
        ("${none##*/}", ""),
        ("${none/x/y}", ""),
        ("<<EOF", "<<EOF"),
        ("", ""),
    ],
)
def test_every_form_of_a_variable(text: str, want: str) -> None:
    assert expand(text, SET).text == want


@pytest.mark.parametrize(
    "text, message",
    [
        ("${a", "no '}'"),
        ("${a:-x", "no '}'"),
        ("${", "no '}'"),
        ("${}", "no variable"),
        ("${:x}", "no variable|no operator"),
        ("${a!b}", "no operator"),
        ("${a:=b}", "no operator"),
        ("${a/b}", "no '/'"),
        ("'a", "single quote"),
        ('"a', "double quote"),
        ("${none:?it is missing}", "none: it is missing"),
        ("${none?}", "none must be set"),
        ("${empty:?}", "empty must not be empty"),
        ("${a#\\x}", "escapes"),
        ("${a:-" * 60 + "}" * 60, "too deeply"),
    ],
)
def test_what_is_no_form_of_a_variable_is_refused(text: str, message: str) -> None:
    with pytest.raises(VariableError, match=message):
        expand(text, SET)


def test_words_are_split_where_nothing_is_quoted() -> None:
    assert expand('a "b c" d\\ e $two "$two"', SET).words == ("a", "b c", "d e", "b", "c", "b c")


def test_what_was_used_and_what_was_missed() -> None:
    found = expand("$a ${b} ${c:-d} ${e+f}", SET)
    assert (set(found.used), set(found.unset)) == ({"a"}, {"b"})


def test_another_escape_character() -> None:
    assert expand("`$a \\$a", SET, "`").text == "$a \\x"


def test_a_document_has_no_quotes() -> None:
    assert expand("'$a' \"b", SET, quotes_mean_nothing=True).text == "'x' \"b"


def test_what_is_not_set_may_stay() -> None:
    assert expand("$a $b ${c:-d}", SET, keep_unset=True).text == "x $b ${c:-d}"


@pytest.mark.parametrize(
    "text", ["${v##" + "*a" * 50 + "b}", "${v//" + "*a" * 50 + "b/x}", "${v%" + "?*a" * 30 + "}"]
)
def test_no_pattern_takes_long(text: str) -> None:
    begun = time.process_time()
    expand(text, {"v": "a" * 20_000})
    assert time.process_time() - begun < 10


def test_a_word_does_not_grow_without_bounds() -> None:
    with pytest.raises(VariableError, match="more than"):
        expand("$v" * 10_000, {"v": "x" * 10_000})


# ---- patterns ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern, name, verdict",
    [
        ("*", "anything", True),
        ("*.py", "a.py", True),
        ("*.py", "a.pyc", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[^a-c]x", "dx", True),
        ("arr[[]0].txt", "arr[0].txt", True),
        ("\\*", "*", True),
        ("\\*", "x", False),
        ("*a*b*", "xaxbx", True),
        ("*ab", "aab", True),
        ("a*", "a\nb", True),
        ("[]a]", None, None),
        ("[a", None, None),
        ("a\\", None, None),
        ("[]", None, None),
        ("[a-]", None, None),
    ],
)
def test_a_part_of_a_path(pattern: str, name: str | None, verdict: bool | None) -> None:
    if name is None:
        with pytest.raises(PatternError):
            segment(pattern)
    else:
        assert (segment(pattern).match(name) is not None) is verdict


def test_what_is_wild() -> None:
    assert [is_wild(text) for text in ("a", "*", "\\*", "a[b]", "?")] == [False, True, False, True, True]


@pytest.mark.parametrize(
    "lines, out, kept",
    [
        ("*.log", ["a.log"], ["d/a.log", "a.txt"]),
        ("**/*.log", ["a.log", "d/a.log", "d/e/a.log"], ["a.txt"]),
        ("d", ["d", "d/a", "d/e/a"], ["e/d"]),
        ("/d/", ["d/a"], ["e"]),
        ("d/*\n!d/keep", ["d/a", "d/e/f"], ["d/keep", "d"]),
        ("*\n!src", ["a"], ["src", "src/x"]),
        ("*\n!src/**/*.py\n", ["a", "src/x.c"], ["src/x.py", "src/a/b/x.py"]),
        ("!keep\nkeep", ["keep"], []),
        ("# a comment\n  \n\t x \n", ["x"], ["# a comment"]),
        ("./a/../b", ["b"], ["a"]),
        ("../a", [], ["a"]),
        ("a?b", ["axb"], ["a/b"]),
        ("**", ["a", "a/b"], []),
        ("**/a", ["a", "b/a", "b/c/a"], ["ab"]),
        ("a/**", ["a/b", "a/b/c"], ["a"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["b"]),
        ("**.md", ["a.md", "d/a.md"], ["a.txt"]),
    ],
)
def test_what_dockerignore_leaves_out(lines: str, out: list[str], kept: list[str]) -> None:
    ignore = Ignore(rules(lines))
    assert [path for path in (*out, *kept) if ignore.excludes(path)] == out


@pytest.mark.parametrize("text", ["!", "! ", "[a", "a\\", "x\0y", "**a**b**c**d**e"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(PatternError):
        Ignore(rules(text))


def test_a_folder_that_is_left_out_may_hold_what_is_not() -> None:
    ignore = Ignore(rules("a\nb\n!a/x/y\n!c/**\n"))
    assert [path for path in ("a", "a/x", "a/z", "b", "c", "c/d/e") if ignore.may_keep(path)] == [
        "a",
        "a/x",
        "c",
        "c/d/e",
    ]


def test_no_rule_takes_long() -> None:
    path = "/".join(["aa"] * 1000)
    begun = time.process_time()
    for text in ("**/a*/" * 50 + "b", "*a" * 50 + "b", "**a**a*b", "/".join(["*a*a*"] * 100)):
        Ignore(rules(text)).look(path)
    assert time.process_time() - begun < 10


# ---- modes and times ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, before, folder, after",
    [
        ("755", 0o600, False, 0o755),
        ("0644", 0o777, True, 0o644),
        ("4755", 0, False, 0o4755),
        ("+x", 0o644, False, 0o755),
        ("u+x", 0o644, False, 0o744),
        ("go-rwx", 0o777, False, 0o700),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("u=rwX,go=rX", 0o600, True, 0o755),
        ("u=rwX,go=rX", 0o700, False, 0o755),
        ("g=u", 0o640, False, 0o660),
        ("a+t", 0o755, True, 0o1755),
        ("u+s,g+s", 0o755, False, 0o6755),
        ("+w", 0o444, False, 0o644),
        ("o=", 0o777, False, 0o770),
        ("u+r-w", 0o200, False, 0o400),
    ],
)
def test_modes(text: str, before: int, folder: bool, after: int) -> None:
    assert oct(modes.parse(text)(before, folder)) == oct(after)


@pytest.mark.parametrize("text", ["", "8", "77777", "u", "u+y", "x+r", "u=rw,", "0o755", " 755", "+x "])
def test_what_is_no_mode_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--chmod"):
        modes.parse(text)


@pytest.mark.parametrize(
    "text, nanoseconds, printed",
    [
        ("30s", 30 * 10**9, "30s"),
        ("5m", 300 * 10**9, "5m0s"),
        ("1h30m", 5400 * 10**9, "1h30m0s"),
        ("1.5s", 1_500_000_000, "1.5s"),
        ("500ms", 500_000_000, "500ms"),
        ("1us", 1000, "1µs"),
        ("0", 0, "0s"),
        ("0s", 0, "0s"),
        ("1m0.25s", 60_250_000_000, "1m0.25s"),
    ],
)
def test_times(text: str, nanoseconds: int, printed: str) -> None:
    assert durations.parse(text) == nanoseconds
    assert durations.text_of(nanoseconds) == printed


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1d", "1s2", "9" * 30 + "h", ".s", "1 s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no length of time"):
        durations.parse(text)
