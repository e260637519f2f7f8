"""How the library writes the launcher's language: each byte of a record has its meaning."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxlib._native import lib
from sandboxlib.engine.encode import Values, encode, precompile
from sandboxlib.errors import KernelError
from sandboxlib.kernel import program
from sandboxlib.plan.flags import CLONE_PARENT
from sandboxlib.plan.steps import Call, Clone, Report, Step, Template, Variable, Write

HEADER = struct.Struct("=BBHIiiHHI6Q")
MASK = (1 << 64) - 1


class Record(NamedTuple):
    op: int
    pointers: int
    flags: int
    size: int
    nr: int
    out: int
    ignore: tuple[int, int]
    number: int
    args: tuple[int, ...]
    data: bytes

    def text(self, argument: int) -> bytes:
        """The string that an argument points to."""
        assert self.pointers >> argument & 1
        return self.data[self.args[argument] - HEADER.size :].split(b"\0")[0]


def records(code: bytes) -> list[Record]:
    found = []
    while code:
        op, pointers, flags, size, nr, out, first, second, index, *args = HEADER.unpack_from(code)
        found.append(
            Record(
                op,
                pointers,
                flags,
                size,
                nr,
                out,
                (first, second),
                index,
                tuple(args),
                code[HEADER.size : size],
            )
        )
        code = code[size:]
    return found


def only(code: bytes) -> Record:
    (found,) = records(code)
    return found


def test_numbers_are_passed_as_they_are_and_negative_ones_in_twos_complement() -> None:
    found = only(program.call("openat", (-100, 7, MASK), 5))
    assert found.op == lib.SBX_SYSCALL
    assert found.nr == lib.SYS_openat
    assert found.args == (MASK - 99, 7, MASK, 0, 0, 0)
    assert (found.pointers, found.number, found.out, found.ignore) == (0, 5, -1, (0, 0))


def test_strings_end_and_buffers_are_aligned() -> None:
    found = only(program.call("fsconfig", (11, 1, "size", b"\1\2\3", 0), 1))
    assert found.pointers == 0b01100
    assert (found.text(2), found.text(3)) == (b"size", b"\1\2\3")
    assert found.args[2] % 8 == found.args[3] % 8 == 0
    assert found.size == HEADER.size + len(found.data)
    assert found.size % 8 == 0
    assert found.data[-1] == 0


@pytest.mark.parametrize("length", [0, 7, 8, 9, 16])
def test_a_buffer_that_fills_its_words_is_followed_by_nul(length: int) -> None:
    found = only(program.call("write", (3, b"x" * length, length), 1))
    assert found.text(1) == b"x" * length
    assert found.data[-1] == 0


def test_what_comes_back_and_what_is_no_failure() -> None:
    found = only(
        program.call("mkdirat", (8, "a", 0o755), 2, out=9, ignore=(17, 30), positive=True, absolute=True)
    )
    assert (found.out, found.ignore) == (9, (17, 30))
    assert found.flags == lib.SBX_POSITIVE | lib.SBX_ABSOLUTE


def test_a_call_for_each_bit_has_the_bits_as_its_sixth_argument() -> None:
    found = only(program.call("prctl", (24, 0, 0, 0, 0), 1, each=0b101))
    assert found.flags == lib.SBX_EACH
    assert found.args == (24, 0, 0, 0, 0, 0b101)


def test_a_file_is_written_by_path_and_data() -> None:
    found = only(program.write("etc/hosts", b"a\0b", 1, 8, 0o301, 0o644, (17,)))
    assert found.op == lib.SBX_WRITE
    assert found.text(1) == b"etc/hosts"
    assert found.data[found.args[4] - HEADER.size :][: found.args[5]] == b"a\0b"
    assert (found.args[0], found.args[2], found.args[3], found.ignore) == (8, 0o301, 0o644, (17, 0))


def test_the_address_of_a_filter_is_put_into_the_call_behind() -> None:
    pointer, call = records(program.pointer(8, 16, 1) + program.call("seccomp", (1, 0, bytes(24)), 2))
    assert pointer.op == lib.SBX_POINTER
    assert pointer.args[:2] == (call.args[2] + 8, call.args[2] + 16)


def test_a_command_is_its_paths_arguments_and_variables_one_after_the_other() -> None:
    found = only(program.execute([b"/a", b"/b"], [b"a", b""], [b"X="], 7))
    assert found.op == lib.SBX_EXEC
    assert found.args[:3] == (2, 2, 1)
    assert found.data[found.args[3] - HEADER.size :].split(b"\0")[:5] == [b"/a", b"/b", b"a", b"", b"X="]


def test_a_clone_says_how_long_its_childs_part_is() -> None:
    child = program.call("setsid", (), 2) + program.report("ready", 4, 3)
    found = records(program.clone(0x8000, child, 1))
    assert [record.op for record in found] == [lib.SBX_CLONE, lib.SBX_SYSCALL, lib.SBX_REPORT]
    assert found[0].args[0] == 0x8000
    assert found[0].args[2] == len(child)
    assert found[2].args[:2] == (lib.SBX_READY, 4)


@pytest.mark.parametrize(
    "code, op, args",
    [
        (program.child_write("uid_map", b"0 1 1", 1), "SBX_CHILD_WRITE", {5: 5}),
        (program.child_open("ns/user", 0x80000, 14, 1), "SBX_CHILD_OPEN", {2: 0x80000}),
        (program.connect(5, b"addr", 250, 1), "SBX_CONNECT", {0: 5, 2: 4, 3: 250}),
        (program.init(5, 6, 1500, 1), "SBX_INIT", {0: 5, 1: 1500, 2: 6}),
        (program.serve(1), "SBX_SERVE", {}),
    ],
)
def test_the_other_records(code: bytes, op: str, args: dict[int, int]) -> None:
    found = only(code)
    assert found.op == getattr(lib, op)
    assert {i: found.args[i] for i in args} == args


def test_a_call_that_is_unknown_is_an_error() -> None:
    with pytest.raises((AttributeError, KernelError)):
        program.call("no_such_call", (), 1)


STEPS: tuple[Step, ...] = (
    Call("setsid", (), "why"),
    Call("fchownat", (8, "upper", Variable("ids"), Variable("ids"), 0), "why"),
    Clone(
        CLONE_PARENT,
        (Call("getcwd", (bytes(8), 8), "why"), Write(Template("{cgroup}/cgroup.procs"), "0", "why")),
        "why",
    ),
    Report("ready", "why"),
)


def test_steps_are_numbered_through_with_those_of_a_child() -> None:
    values: Values = {"ids": 5, "cgroup": "/sys/fs/cgroup/x"}
    found = records(encode(STEPS, values))
    assert [record.number for record in found] == [0, 1, 2, 3, 4, 5]
    assert found[1].args[2:4] == (5, 5)
    assert found[4].text(1) == b"/sys/fs/cgroup/x/cgroup.procs"


@given(st.integers(0, 1 << 32), st.text("abcdef/", max_size=30), st.integers(0, 1 << 20))
def test_what_is_compiled_beforehand_is_the_same_in_the_end(number: int, path: str, index: int) -> None:
    values: Values = {"ids": number, "cgroup": path}
    assert precompile(STEPS, index).fill(values) == encode(STEPS, values, index)
