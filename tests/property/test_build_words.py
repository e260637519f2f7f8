"""Words of Dockerfiles, against other implementations of the same rules."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from pathlib import Path

import pytest
from e2b_dockerfile_utils import PatternMatcher, ShellLex
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sandboxlib.build import modes
from sandboxlib.build.patterns import Ignore, PatternError, cleaned
from sandboxlib.build.variables import VariableError, expand

patient = settings(deadline=None, max_examples=1000, suppress_health_check=list(HealthCheck))

VARIABLES = {"a": "x", "b": "", "c": "foo/bar.tar.gz", "d": "a b", "PATH": "/usr/bin:/bin"}
PIECES = ["a", "b", "c", "z", "d", "$", "${", "}", ":", "-", "+", "?", "#", "%", "/", "*", ".", "\\", "'"]
PIECES += ['"', " ", "0", "$c", "${c%%", "${c#", "${c/", "${z:-", "${PATH", "é", "\t"]


@patient
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_variables_are_what_the_parser_s_own_lexer_makes_of_them(text: str) -> None:
    # It takes "${-x}" for a variable without a name, and an empty word in quotes for a word.
    assume(not any(f"${{{each}" in text for each in "-+?#%/"))
    assume('""' not in text and "''" not in text)
    lexer = ShellLex("\\", env=VARIABLES, skip_unset_env=False)
    try:
        want: object = (lexer.process_word(text), tuple(lexer.process_words(text)))
    except ValueError:
        want = ValueError
    try:
        found = expand(text, VARIABLES)
        got: object = (found.text, found.words)
    except VariableError:
        got = ValueError
    # An empty word is one for it where a variable in quotes is empty.
    if isinstance(want, tuple):
        want = (want[0], tuple(word for word in want[1] if word))
    assert got == want


@patient
@given(st.text(max_size=60))
def test_any_text_is_expanded_or_refused(text: str) -> None:
    with contextlib.suppress(VariableError):
        assert isinstance(expand(text, VARIABLES).text, str)


TOKENS = ["a", "b", "*", "**", "**/", "/", "?", "[ab]", "[a-b]", "\\*", ".", " ", "!", "[", "\\"]
LINES = st.lists(
    st.tuples(st.sampled_from(["", "", "!"]), st.lists(st.sampled_from(TOKENS), max_size=6)).map(
        lambda pair: pair[0] + "".join(pair[1])
    ),
    max_size=4,
)
PATHS = st.lists(st.text("ab*.", min_size=1, max_size=3), min_size=1, max_size=4).map("/".join)


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")  # the other one's
@patient
@given(LINES, PATHS)
def test_what_is_left_out_is_what_moby_s_matcher_leaves_out(lines: list[str], path: str) -> None:
    assume(not any(line.count("**") > 2 for line in lines))
    try:
        want: object = PatternMatcher(lines).matches(path)
    except ValueError:
        want = ValueError
    try:
        got: object = Ignore(cleaned(line for line in lines if not line.startswith("#"))).excludes(path)
    except PatternError:
        got = ValueError
    assert got == want


ACTION = st.tuples(
    st.sampled_from("+-="), st.sampled_from(["r", "w", "x", "X", "s", "t", "rwX", "u", "g", "o", ""])
)
CLAUSE = st.tuples(
    st.sampled_from(["", "u", "g", "o", "a", "ug", "go"]), st.lists(ACTION, min_size=1, max_size=2)
)
MODES = st.lists(CLAUSE, min_size=1, max_size=2).map(
    lambda clauses: ",".join(who + "".join(map("".join, actions)) for who, actions in clauses)
)


@settings(patient, max_examples=150)
@given(MODES, st.integers(0, 0o7777), st.booleans())
def test_modes_are_what_chmod_makes_of_them(
    tmp_path_factory: pytest.TempPathFactory, text: str, before: int, folder: bool
) -> None:
    path = Path(tmp_path_factory.mktemp("modes")) / "x"
    path.mkdir() if folder else path.touch()
    # chmod(2) itself takes set-group-ID from who is not of the group.
    before &= 0o7777 if os.geteuid() == 0 else 0o5777
    path.chmod(before)
    command = ["sh", "-c", 'umask 022; exec chmod -- "$0" "$1"', text, str(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    # It complains where the umask has had its way.
    assert not done.returncode or b"new permissions" in done.stderr
    after = stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o700)
    assert oct(modes.parse(text)(before, folder)) == oct(after)
