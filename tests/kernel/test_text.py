"""Output as text that a cut has gone through: nobody loses output or verdict to it."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
import trio
from faces import Run, run_fixture
from kernel.probe.outside import WHO, program

from sandboxlib import PIPE, AsyncSandbox, ExitError, Limits, Outcome, Sandbox, TimeoutExpired

pytestmark = [pytest.mark.userns]
__all__ = ["run_fixture"]

#: Writes to both streams up to the middle of a character, and stays.
HALF = r"printf 'ok\342\202'; printf 'err\342\202' >&2; exec sleep 60"


def streams(error: TimeoutExpired | ExitError) -> tuple[Any, Any]:
    return error.stdout, error.stderr


def python(source: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", source]


def test_a_timeout_in_the_middle_of_a_character_is_a_timeout(run: Run) -> None:
    with pytest.raises(TimeoutExpired) as caught:
        run(["sh", "-c", HALF], text=True, timeout=0.5)
    assert streams(caught.value) == ("ok", "err")


def test_a_timeout_is_told_also_where_the_output_is_no_text(run: Run) -> None:
    with pytest.raises(TimeoutExpired) as caught:
        run(["sh", "-c", r"printf 'a\377b'; exec sleep 60"], text=True, timeout=0.5)
    assert streams(caught.value)[0] == "a\ufffdb"


def test_a_limit_on_time_in_the_middle_of_a_character_is_told(run: Run) -> None:
    done = run(["sh", "-c", HALF], text=True, limits=Limits(wall_time=0.5))
    assert (done.outcome, done.stdout, done.stderr) == (Outcome.WALL_TIME, "ok", "err")


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 5, 100, 1000, 1001])
def test_output_that_is_cut_in_the_middle_of_characters_is_told(run: Run, limit: int) -> None:
    done = run(python("print('€' * 1000, end='')"), text=True, max_output=limit)
    assert done.outcome is Outcome.EXITED
    assert set(done.stdout) <= {"€"}
    assert limit // 3 - 2 <= len(done.stdout) <= limit // 3
    assert done.stdout_truncated == 3000 - limit


@pytest.mark.parametrize(
    "options", [{"overflow": "kill", "max_output": 1000}, {"limits": Limits(output=1000)}]
)
def test_a_limit_on_output_in_the_middle_of_a_character_is_told(run: Run, options: dict[str, Any]) -> None:
    # Whole characters only, in pieces that are none.
    pieces = "for i in range(0, 21, 7): os.write(1, data[i:i + 7])"
    source = f"import os\ndata = '€'.encode() * 7\nwhile True:\n {pieces}"
    done = run(python(source), text=True, **options)
    assert done.outcome is Outcome.OUTPUT_LIMIT
    assert set(done.stdout) == {"€"}


def test_a_signal_in_the_middle_of_a_character_is_told(run: Run) -> None:
    done = run(["sh", "-c", r"printf 'ok\342\202'; kill -9 $$"], text=True)
    assert (done.outcome, done.returncode, done.stdout) == (Outcome.SIGNALED, -9, "ok")
    with pytest.raises(ExitError) as caught:
        run(["sh", "-c", r"printf 'ok\342\202'; kill -SEGV $$"], text=True, check=True)
    assert (caught.value.returncode, caught.value.stdout) == (-11, "ok")


@pytest.mark.cgroup("memory")
def test_out_of_memory_in_the_middle_of_a_character_is_told(run: Run) -> None:
    source = "import os\nos.write(1, b'ok\\xe2\\x82')\nb = []\nwhile True: b.append(bytearray(1 << 20))"
    done = run(python(source), text=True, limits=Limits(memory="64M"))
    assert (done.outcome, done.stdout) == (Outcome.OUT_OF_MEMORY, "ok")


def test_what_a_daemon_is_still_writing_is_no_error(run: Run) -> None:
    done = run(["sh", "-c", r"printf 'ok\342\202'; sleep 60 &"], text=True)
    assert (done.outcome, done.stdout) == (Outcome.EXITED, "ok")


def test_other_encodings_are_cut_as_well(run: Run) -> None:
    for encoding, at in (("utf-16", 1), ("utf-16-be", 1), ("utf-32-le", 2), ("gb18030", 1)):
        written = "".join(f"\\{byte:03o}" for byte in "a€".encode(encoding)[:-at])
        command = ["sh", "-c", f"printf '{written}'; exec sleep 60"]
        done = run(command, encoding=encoding, limits=Limits(wall_time=0.5))
        assert (done.outcome, done.stdout) == (Outcome.WALL_TIME, "a")


def test_what_ends_by_itself_in_the_middle_of_a_character_is_an_error_as_with_subprocess(run: Run) -> None:
    command = ["sh", "-c", r"printf 'ok\342\202'"]
    with pytest.raises(UnicodeDecodeError):
        subprocess.run(command, text=True, capture_output=True, check=False)
    with pytest.raises(UnicodeDecodeError):
        run(command, text=True)
    assert run(command, text=True, errors="replace").stdout == "ok\ufffd"


def test_lines_are_told_up_to_the_cut(run: Run) -> None:
    told: list[tuple[str, str]] = []
    with pytest.raises(TimeoutExpired) as caught:
        run(
            ["sh", "-c", r"printf 'one\ntwo\342\202'; exec sleep 60"],
            text=True,
            timeout=0.5,
            on_line=lambda name, line: told.append((name, line)),
        )
    assert told == [("stdout", "one\n"), ("stdout", "two")]
    assert streams(caught.value)[0] == "one\ntwo"


def test_lines_of_a_process_that_was_killed_are_read_to_their_end() -> None:
    with Sandbox() as sandbox:
        for text in (True, False):
            with sandbox.popen(["sh", "-c", HALF], stdout=PIPE, text=text) as process:
                timer = threading.Timer(0.3, process.kill)
                timer.start()
                assert list(process.lines(encoding=None if text else "utf-8")) == ["ok"]
                timer.join()


async def test_lines_of_a_process_that_was_killed_are_read_to_their_end_on_trio() -> None:
    async with (
        AsyncSandbox() as sandbox,
        await sandbox.popen(["sh", "-c", HALF], stdout=PIPE, text=True) as process,
        trio.open_nursery() as nursery,
    ):

        async def kill() -> None:
            await trio.sleep(0.3)
            process.kill()

        nursery.start_soon(kill)
        assert [line async for line in process.lines()] == ["ok"]


async def test_lines_that_a_process_ends_in_the_middle_are_an_error() -> None:
    command = ["printf", r"ok\342\202"]
    with pytest.raises(UnicodeDecodeError):
        async with AsyncSandbox() as sandbox, await sandbox.popen(command, stdout=PIPE) as process:
            assert [line async for line in process.lines(encoding="utf-8")] == []
    with pytest.raises(UnicodeDecodeError), Sandbox() as other, other.popen(command, stdout=PIPE) as ended:
        list(ended.lines(encoding="utf-8"))


@WHO
def test_a_users_timeout_is_one_too(who: str) -> None:
    script = """
from sandboxlib.errors import TimeoutExpired
with make("") as sandbox:
    try:
        sandbox.run(["sh", "-c", facts["half"]], text=True, timeout=0.5)
    except TimeoutExpired as error:
        print(json.dumps([error.stdout, error.stderr]))
"""
    assert program(who, script, half=HALF) == ["ok", "err"]
