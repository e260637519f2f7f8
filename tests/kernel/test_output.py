"""What happens to output: kept, cut, told line by line; the same through both faces."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

from sandboxlib import PIPE, AsyncSandbox, Completed, Outcome, Sandbox, SpecError

pytestmark = [pytest.mark.userns]

Run = Callable[..., Completed]


def _blocking(*args: Any, **options: Any) -> Completed:
    with Sandbox() as sandbox:
        return sandbox.run(*args, **options)


def _trio(*args: Any, **options: Any) -> Completed:
    async def main() -> Completed:
        async with AsyncSandbox() as sandbox:
            return await sandbox.run(*args, **options)

    return trio.run(main)


@pytest.fixture(params=[_blocking, _trio], ids=["blocking", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param  # type: ignore[no-any-return]


def python(source: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", source]


def test_past_the_limit_head_and_tail_are_kept(run: Run) -> None:
    done = run(python("print('a' * 50_000 + 'b' * 50_000 + 'c' * 50_000, end='')"), max_output=1000)
    assert done.stdout == b"a" * 500 + b"c" * 500
    assert done.stdout_truncated == 149_000
    assert done.outcome is Outcome.EXITED


def test_past_the_limit_the_command_is_killed_if_asked(run: Run) -> None:
    done = run(["sh", "-c", "yes & yes"], max_output="64K", overflow="kill", timeout=50)
    assert (done.outcome, done.returncode) == (Outcome.OUTPUT_LIMIT, -9)
    assert len(done.stdout) == 64 << 10


def test_output_as_long_as_the_limit_is_not_past_it(run: Run) -> None:
    done = run(python("print('x' * 1000, end='')"), max_output=1000, overflow="kill")
    assert (done.outcome, done.stdout_truncated, len(done.stdout)) == (Outcome.EXITED, 0, 1000)


def test_each_line_is_told_as_it_comes_and_kept_too(run: Run) -> None:
    told: list[tuple[str, object, float]] = []
    source = "import sys, time\nprint('one', flush=True); time.sleep(0.4); print('two', file=sys.stderr)"
    done = run(
        python(source), text=True, on_line=lambda name, line: told.append((name, line, time.monotonic()))
    )
    assert [entry[:2] for entry in told] == [("stdout", "one\n"), ("stderr", "two\n")]
    assert told[1][2] - told[0][2] > 0.2
    assert (done.stdout, done.stderr) == ("one\n", "two\n")


def test_lines_are_bytes_where_no_text_is_asked_for(run: Run) -> None:
    told: list[object] = []
    run(["printf", "a\\nb"], on_line=lambda _, line: told.append(line))
    assert told == [b"a\n", b"b"]


def test_what_a_listener_raises_ends_the_command(run: Run) -> None:
    def refuse(name: str, line: object) -> None:
        raise ValueError(f"not {line!r}")

    with pytest.raises(ValueError, match="not b'y"):
        run(["sh", "-c", "while :; do echo y; done"], on_line=refuse)


@pytest.mark.parametrize("options", [{"overflow": "drop"}, {"overflow": None}, {"on_line": 3}])
def test_what_makes_no_sense_is_refused_before_anything_runs(run: Run, options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(options))):
        run(["true"], **options)


def test_lines_of_a_process() -> None:
    with Sandbox() as sandbox:
        with sandbox.popen(["printf", "a\\nb\\nc"], stdout=PIPE) as process:
            assert list(process.lines()) == [b"a\n", b"b\n", b"c"]
        with sandbox.popen(["printf", "ž\\n"], stdout=PIPE) as process:
            assert list(process.lines(encoding="utf-8")) == ["ž\n"]
        with sandbox.popen(["printf", "a\\n"], stdout=PIPE, text=True) as process:
            with pytest.raises(SpecError, match="encoding"):
                next(process.lines(encoding="utf-8"))
            with pytest.raises(SpecError, match="stream"):
                next(process.lines("stderr"))
            assert list(process.lines()) == ["a\n"]
