"""The rules by which tests skip, fail or run: what a green run is worth depends on them."""

from __future__ import annotations

from pathlib import Path

import pytest

import needs

TESTS = Path(__file__).parent.parent


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test suite of its own under our conftest, with two needs that are known beforehand."""
    for name in (
        *("SANDBOXLIB_MUST_RUN", "SANDBOXLIB_RECORD", "SANDBOXLIB_FAILED", "SANDBOXLIB_PASSED_ELSEWHERE"),
    ):
        monkeypatch.delenv(name, raising=False)
    # Other plugins play no part in it, and take a second a run to load.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini(f"[pytest]\npythonpath = {TESTS}\naddopts = --strict-markers -rs\nmarkers = slow: slow")
    pytester.makeconftest((TESTS / "conftest.py").read_text())
    pytester.makepyfile(
        test_suite="""
        import pytest

        @pytest.mark.kernel("5.0")
        def test_met(): pass

        @pytest.mark.kernel("999.0")
        def test_unmet(): pass

        @pytest.mark.tool("true", "no-such-program")
        def test_half_met(): pass
        """
    )
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return suite.runpytest_subprocess(*arguments)


def test_an_unmet_need_skips_with_its_reason(suite: pytest.Pytester) -> None:
    result = run(suite)
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines_random([
        "*needs kernel(999.0): this is Linux *",
        "*needs tool(no-such-program): no-such-program is not installed*",
    ])  # fmt: skip


@pytest.mark.parametrize(
    "must_run, passed, failed, skipped",
    [
        ("all", 1, 2, 0),
        ("kernel", 1, 1, 1),
        ("tool", 1, 1, 1),
        ("kernel:999.0, tool:no-such-program", 1, 2, 0),
        ("kernel:5.0,tool:true", 1, 0, 2),
        ("all,-kernel", 1, 1, 1),
        ("all,-tool:no-such-program", 1, 1, 1),
        ("root,", 1, 0, 2),
    ],
)
def test_a_mandatory_need_fails_when_unmet(
    suite: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    must_run: str,
    passed: int,
    failed: int,
    skipped: int,
) -> None:
    monkeypatch.setenv("SANDBOXLIB_MUST_RUN", must_run)
    # A failure in the setup of a test is an error in pytest's words; it ends the run with 1 all the same.
    result = run(suite)
    result.assert_outcomes(passed=passed, errors=failed, skipped=skipped)
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK)


def test_a_misspelt_need_is_refused(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXLIB_MUST_RUN", "cgroup3,root")
    result = run(suite)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*SANDBOXLIB_MUST_RUN names no need: cgroup3"])


def test_a_misspelt_mark_is_refused(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_more="import pytest\n@pytest.mark.cgroup3\ndef test_it(): pass\n")
    run(suite).assert_outcomes(errors=1)


def test_what_passed_elsewhere_may_skip(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    record = suite.path / "there.passed"
    record.write_text("test_suite.py::test_unmet\n")
    monkeypatch.setenv("SANDBOXLIB_MUST_RUN", "all")
    monkeypatch.setenv("SANDBOXLIB_PASSED_ELSEWHERE", str(record))
    result = run(suite)
    result.assert_outcomes(passed=1, errors=1, skipped=1)
    result.stdout.fnmatch_lines(["*passed elsewhere; needs kernel(999.0)*"])


def test_the_record_names_only_what_passed(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.makepyfile(
        test_more="""
        import pytest

        def test_failing(): assert False

        @pytest.fixture
        def broken():
            yield
            assert False

        def test_failing_afterwards(broken): pass

        def test_good(): pass
        """
    )
    record, failures = suite.path / "here.passed", suite.path / "here.failed"
    monkeypatch.setenv("SANDBOXLIB_RECORD", str(record))
    monkeypatch.setenv("SANDBOXLIB_FAILED", str(failures))
    run(suite)
    assert record.read_text() == "test_more.py::test_good\ntest_suite.py::test_met\n"
    assert failures.read_text().splitlines() == [
        *("test_more.py::test_failing", "test_more.py::test_failing_afterwards"),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import pytest\ndef test_it(): pytest.skip('not today')",
        "import pytest\n@pytest.mark.skip(reason='not today')\ndef test_it(): pass",
        "import pytest\n@pytest.mark.skipif(True, reason='not today')\ndef test_it(): pass",
        "import pytest\npytest.importorskip('no_such_module')\ndef test_it(): pass",
    ],
)
def test_where_all_is_mandatory_nothing_skips_by_itself(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    suite.makepyfile(test_more=source)
    assert run(suite, "test_more.py").ret in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
    monkeypatch.setenv("SANDBOXLIB_MUST_RUN", "all")
    result = run(suite, "test_more.py")
    assert result.ret not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
    result.stdout.fnmatch_lines(["*skipped without a mark for what it needs*"])


def test_each_need_says_what_it_is() -> None:
    for name, (usage, _) in needs.NEEDS.items():
        text = usage.split(": ", 1)
        assert text[0].startswith(name)
        assert text[1].endswith(".")


@pytest.mark.parametrize("version", [1, 2])
def test_a_missing_controller_says_which_there_are(version: int) -> None:
    reason = needs.missing_controller((version,), "no-such-controller")
    assert reason is not None
    assert reason.startswith("controllers that the tests may use here are v1: ")


def test_where_the_lab_is_shared_each_test_runs_once_in_it_and_those_of_limits_everywhere(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.makepyfile(
        test_suite="""
        import pytest

        @pytest.mark.parametrize("number", range(12))
        def test_of_any(number): pass

        @pytest.mark.cgroup("memory")
        def test_of_a_limit(): pass

        @pytest.mark.root
        def test_of_root(): pass
        """
    )

    def listed(place: str) -> list[str]:
        monkeypatch.setenv("SANDBOXLIB_LAB", place)
        lines = run(suite, "--collect-only", "-q").stdout.lines
        return sorted(line.partition("::")[2] for line in lines if "::" in line)

    monkeypatch.delenv("SANDBOXLIB_LAB_SHARED", raising=False)
    whole = listed("user")
    assert len(whole) == 14
    monkeypatch.setenv("SANDBOXLIB_LAB_SHARED", "1")
    places = {place: listed(place) for place in ("root", "user", "session")}
    assert [place for place, names in places.items() if "test_of_root" in names] == ["root"]
    assert all("test_of_a_limit" in names for names in places.values())
    shared = sorted(name for names in places.values() for name in names if "of_any" in name)
    assert shared == [name for name in whole if "of_any" in name]
    assert listed("qemu") == whole
