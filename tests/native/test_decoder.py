"""The launcher takes no program that would lead it out of bounds; under ASan and UBSan."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxlib.kernel import program

from programs import REAL, one_of_each, real

pytestmark = [pytest.mark.tool("gcc"), pytest.mark.timeout(180)]

HEADER = struct.Struct("=BBHIiiHHI6Q")
SYSCALL, WRITE, POINTER, CLONE, CHILD_WRITE, REPORT, EXEC, SERVE, INIT, CONNECT, CHILD_OPEN = range(1, 12)
READ, EXTENTS, STATS, FITS, FILES = 12, 13, 14, 15, 16
NAMES = ["SYSCALL", "WRITE", "POINTER", "CLONE", "CHILD_WRITE", "REPORT", "EXEC", "SERVE", "INIT"]
NAMES += ["CONNECT", "CHILD_OPEN", "READ", "EXTENTS", "STATS", "FITS", "FILES"]
ABSOLUTE, EACH, TELL = 2, 4, 8
HUGE = (1 << 64) - 1


class Passes(Protocol):
    def __call__(self, code: bytes) -> bool: ...


def record(
    op: int,
    *args: int,
    data: bytes = b"",
    pointers: int = 0,
    size: int | None = None,
    flags: int = 0,
    out: int = -1,
) -> bytes:
    """A record as it would not be made by the library."""
    numbers = [*args, 0, 0, 0, 0, 0, 0][:6]
    length = HEADER.size + len(data) if size is None else size
    return HEADER.pack(op, pointers, flags, length, 0, out, 0, 0, 0, *numbers) + data


STRINGS = b"/bin/a\0\0"
EMPTY = bytes(16)

# Each would make the launcher read or write what is not the record's: they must be refused, and without the
# check each must be noticed by the harness.
DANGEROUS = {
    "a string without an end": record(SYSCALL, 72, pointers=1, data=b"aaaaaaaa"),
    "a path before the record": record(WRITE, 0, HUGE - 4096, 0, 0, 72, 1, pointers=0b10010, data=STRINGS),
    "a path behind the record": record(WRITE, 0, 80, 0, 0, 72, 1, pointers=0b10010, data=STRINGS),
    "data longer than the record": record(WRITE, 0, 72, 0, 0, 72, 9, pointers=0b10010, data=STRINGS),
    "a length that wraps": record(WRITE, 0, 72, 0, 0, 72, HUGE, pointers=0b10010, data=STRINGS),
    "a length that is an address": record(WRITE, 0, 72, 0, 0, 72, 80, pointers=0b110010, data=STRINGS * 12),
    "a path for the child's file that is a number": record(
        CHILD_WRITE, 0, 72, 0, 0, 72, 1, pointers=0b10000, data=STRINGS
    ),
    "an address put behind the next record": record(POINTER, 80, 72)
    + record(SYSCALL, 72, pointers=1, data=EMPTY[:8]),
    "an address put where none comes after": record(POINTER, 72, 72),
    "an address put over strings that were counted": record(POINTER, 72, 72)
    + record(EXEC, 1, 6, 1, 72, data=b"\0" * 8),
    "more strings than there are": record(EXEC, 1, 8, 0, 72, data=b"\0" * 8),
    "strings that wrap when added up": record(EXEC, 1, 1 << 63, 1 << 63, 72, data=STRINGS),
    "strings without an end": record(EXEC, 1, 1, 0, 72, data=b"aaaaaaaa"),
    "an address longer than the record": record(CONNECT, 3, 72, 9, 0, pointers=2, data=STRINGS),
    "the path of a child's file behind the record": record(CHILD_OPEN, 0, 80, pointers=2, data=STRINGS),
    "the path of a child's file that is a number": record(CHILD_OPEN, 0, 72, data=STRINGS),
    "a child's part longer than the program": record(CLONE, 0, 0, 80) + record(REPORT),
    "a program shorter than a header": record(REPORT)[:-8],
    "a record that ends within another's header": record(REPORT) + record(REPORT)[:16],
    "an absolute path that is no buffer": record(SYSCALL, HUGE - 4096, flags=ABSOLUTE),
    "more names to look at than there are": record(STATS, 9, 72, 3, data=STRINGS, pointers=2),
    "more files to read than there are": record(FILES, 72, 3, 9, data=STRINGS, pointers=1),
    "files to read that have no end": record(FILES, 72, 1, 9, data=b"aaaaaaaa", pointers=1),
    "files to read that are a number": record(FILES, HUGE - 4096, 1, 9),
    "names to look at that have no end": record(STATS, 9, 72, 1, data=b"aaaaaaaa", pointers=2),
    "names to look at that are a number": record(STATS, 9, HUGE - 4096, 1),
    "more names to look at than there is room for": record(STATS, 9, 72, 97, data=bytes(104), pointers=2),
    "what is to be told is a number": record(SYSCALL, HUGE - 4096, flags=TELL, out=0),
    "what is to be told is no argument": record(SYSCALL, 72, data=EMPTY, pointers=1, flags=TELL, out=70),
    "what is to be told lies behind the record": record(
        SYSCALL, 0, 96, data=EMPTY, pointers=2, flags=TELL, out=1
    ),
    "a header that is not aligned": record(REPORT, size=76, data=bytes(4)) + record(REPORT),
}

# Harmless to memory, but not what the language says.
MALFORMED = {
    "more arguments than memory": record(EXEC, 1, 1 << 33, 0, 72, data=STRINGS),
    "a record longer than the program": record(REPORT, size=80),
    "a record of no size": record(REPORT, size=0),
    "a record smaller than its header": record(REPORT, size=64),
    "an operation that there is not": record(18),
    "what is to be told is more than there is room for": record(
        SYSCALL, 72, data=bytes(24584), pointers=1, flags=TELL, out=0
    ),
    "what is to be told comes of no call": record(REPORT, 72, data=EMPTY, pointers=1, flags=TELL, out=0),
    "what is to be told comes of many calls": record(
        SYSCALL, 72, data=EMPTY, pointers=1, flags=TELL | EACH, out=0
    ),
    "what is read is put into the record": record(READ, 72, data=EMPTY, pointers=1),
    "a file is a place in the record": record(EXTENTS, 72, data=EMPTY, pointers=1),
    "no operation": record(0),
    "a seventh argument": record(SYSCALL, pointers=64, data=EMPTY),
    "nothing to execute": record(EXEC, 0, 1, 0, 72, data=STRINGS),
    "no name of what is executed": record(EXEC, 1, 0, 0, 72, data=STRINGS),
    "a clone within a clone": record(CLONE, 0, 0, 144) + record(CLONE, 0, 0, 72) + record(REPORT),
    "a child's part that ends within a record": record(CLONE, 0, 0, 8) + record(REPORT),
    "an address put into the header": record(POINTER, 24, 72) + record(SYSCALL, data=EMPTY),
    "an address that is not aligned": record(POINTER, 76, 72) + record(SYSCALL, data=EMPTY),
}


@pytest.mark.parametrize("name", REAL)
def test_what_the_library_makes_passes(name: str, passes: Passes) -> None:
    assert passes(real(name))


@pytest.mark.parametrize("code", one_of_each().values(), ids=one_of_each())
def test_each_record_passes(code: bytes, passes: Passes) -> None:
    assert passes(code)


def test_the_table_names_every_operation() -> None:
    from sandboxlib._native import lib

    assert [getattr(lib, f"SBX_{name}") for name in NAMES] == list(range(1, 17))
    # All pieces together, cut at the records' ends.
    found, code = set(), b"".join(one_of_each().values())
    while code:
        found.add(code[0])
        code = code[HEADER.unpack_from(code)[3] :]
    assert found == set(range(1, 17))


REFUSED = DANGEROUS | MALFORMED


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED)
def test_it_is_refused(code: bytes, passes: Passes) -> None:
    assert not passes(code)
    # Nor as what a child does, nor behind what is right.
    assert not passes(program.clone(0, code, 0))
    assert not passes(program.report("ready", -1, 0) + code)


@pytest.mark.parametrize("code", DANGEROUS.values(), ids=DANGEROUS)
def test_the_harness_would_notice_it_without_the_check(code: bytes, harness: Path) -> None:
    done = subprocess.run(
        [harness, "unchecked"], input=struct.pack("=I", len(code)) + code, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert b"AddressSanitizer" in done.stderr or b"runtime error" in done.stderr or b"harness:" in done.stderr


@pytest.mark.parametrize("name", REAL)
def test_no_program_passes_that_was_cut_short_within_a_record(name: str, passes: Passes) -> None:
    code = real(name)
    ends = {0}
    at = 0
    while at < len(code):
        size, op, child = HEADER.unpack_from(code, at)[3], code[at], HEADER.unpack_from(code, at)[12]
        at += size + (child if op == CLONE else 0)
        ends.add(at)
    step = max(1, len(code) // 400)
    assert [cut for cut in range(0, len(code), step) if passes(code[:cut]) and cut not in ends] == []


text = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b""))


@given(
    paths=st.lists(text, min_size=1, max_size=5),
    argv=st.lists(text, min_size=1, max_size=9),
    env=st.lists(text, max_size=9),
)
def test_every_command_can_be_said(
    paths: list[bytes], argv: list[bytes], env: list[bytes], passes: Passes
) -> None:
    assert passes(program.execute(paths, argv, env, 1))


@given(
    args=st.lists(st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=40), max_size=6),
    at=st.integers(0, 3),
)
def test_every_call_can_be_said(args: list[int | bytes], at: int, passes: Passes) -> None:
    code = program.call("openat", args, 1)
    assert passes(code)
    # An address fits where a buffer of the call is.
    assert passes(program.pointer(8 * at, 0, 0) + code) == (len(code) - HEADER.size >= 8 * at + 8)


@pytest.mark.parametrize("seed", range(1, 4))
def test_mutated_programs_stay_in_bounds_or_are_refused(seed: int, harness: Path, tmp_path: Path) -> None:
    files = []
    for number, code in enumerate([*map(real, REAL), b"".join(one_of_each().values())]):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(code)
    done = subprocess.run(
        [harness, "fuzz", str(seed), "100000", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["passed"] + result["refused"] == 100000
    # Neither side of the check is left out, and no operation is.
    assert min(result["passed"], result["refused"]) > 10000
    assert min(result["records"][SYSCALL : FITS + 1]) > 100


# Not a need: the fuzzer above is always there, and this one sees branches besides.
if shutil.which("clang"):

    def test_libfuzzer_finds_nothing(build: Callable[..., Path], tmp_path: Path) -> None:
        fuzzer = build("clang", "-DLIBFUZZER", "-fsanitize=fuzzer")
        for number, code in enumerate([*map(real, REAL), *one_of_each().values()]):
            (tmp_path / str(number)).write_bytes(code)
        options = [
            "-runs=200000",
            "-max_total_time=15",
            "-max_len=20000",
            "-seed=1",
            f"-artifact_prefix={tmp_path}/",
        ]
        done = subprocess.run([fuzzer, *options, tmp_path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "DONE" in done.stderr
