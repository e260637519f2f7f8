"""Programs for what matters most, one by one; tests/property and tests/oracle do it by the thousand."""

from __future__ import annotations

import subprocess
import sys

import attrs
import pytest

from sandboxlib.errors import SpecError, UnsupportedError
from sandboxlib.seccomp import Action, Arg, Op, Profile, Rule, compile, default  # noqa: A004
from sandboxlib.seccomp.abi import ABIS, X32_BIT, table
from sandboxlib.seccomp.bpf import JEQ, JGE, Graph

from oracle.machine import Machine

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
X86_64, I386, AARCH64, ARM = (ABIS[name].audit for name in ("x86_64", "i386", "aarch64", "arm"))


def answer(profile: Profile, name: str, *args: int, abi: str = "x86_64", machine: str = "x86_64") -> int:
    program = Machine(compile(profile, arch=machine))
    return program.run(ABIS[abi].audit, table(abi)[name] + ABIS[abi].offset, args)


# --- the number and the ABI -------------------------------------------------------------------------------


def test_what_no_rule_names_gets_the_default() -> None:
    profile = Profile(rules=[Rule(names=["read", "statx"])])
    assert answer(profile, "read") == ALLOW
    assert answer(profile, "write") == EPERM


def test_a_call_newer_than_the_profile_gets_enosys() -> None:
    profile = Profile(rules=[Rule(names=["read", "statx"])])
    assert answer(profile, "io_pgetevents") == ENOSYS
    assert Machine(compile(profile, arch="x86_64")).run(X86_64, 100_000) == ENOSYS


@pytest.mark.parametrize("fallback", [Action.ALLOW, Action.LOG])
def test_a_deny_list_lets_newer_calls_pass(fallback: Action) -> None:
    profile = Profile(rules=[Rule(names=["read"], action=Action.ERRNO)], default=fallback)
    passes = {Action.ALLOW: ALLOW, Action.LOG: 0x7FFC0000}[fallback]
    assert answer(profile, "mseal") == passes
    assert Machine(compile(profile, arch="x86_64")).run(X86_64, 0xFFFFFFFF) == passes


def test_a_profile_without_rules_is_its_default() -> None:
    assert answer(Profile(), "mseal") == EPERM
    assert answer(Profile(default=Action.TRAP), "read") == 0x30000


@pytest.mark.parametrize("number", [X32_BIT, X32_BIT + 1, X32_BIT + 520, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE])
def test_x32_is_killed(number: int) -> None:
    assert Machine(compile(default(), arch="x86_64")).run(X86_64, number) == KILL


def test_the_number_minus_one_is_no_call_of_x32() -> None:
    assert Machine(compile(default(), arch="x86_64")).run(X86_64, 0xFFFFFFFF) == ENOSYS


@pytest.mark.parametrize(
    "machine, foreign", [("x86_64", I386), ("x86_64", AARCH64), ("aarch64", ARM), ("aarch64", X86_64)]
)
def test_a_foreign_abi_is_killed(machine: str, foreign: int) -> None:
    program = Machine(compile(default(), arch=machine))
    assert {program.run(foreign, number) for number in (0, 1, 20, 172, 39, X32_BIT)} == {KILL}


@pytest.mark.parametrize("abi, machine", [("i386", "x86_64"), ("x32", "x86_64"), ("arm", "aarch64")])
def test_a_foreign_abi_is_let_in_by_name(abi: str, machine: str) -> None:
    profile = Profile(rules=[Rule(names=["getppid", "write", "recvmsg"])], architectures=[abi])
    assert answer(profile, "write", abi=abi, machine=machine) == ALLOW
    assert answer(profile, "recvmsg", abi=abi, machine=machine) == ALLOW
    assert answer(profile, "kill", abi=abi, machine=machine) == EPERM
    assert answer(profile, "statx", abi=abi, machine=machine) in (EPERM, ENOSYS)
    assert answer(profile, "write", abi=machine, machine=machine) == ALLOW


def test_an_abi_of_another_machine_is_not_let_in() -> None:
    profile = Profile(rules=[Rule(names=["read"])], architectures=["arm"])
    assert Machine(compile(profile, arch="x86_64")).run(ARM, 3) == KILL


def test_private_calls_of_arm_do_not_count_as_new() -> None:
    profile = Profile(rules=[Rule(names=["read", "cacheflush"])], architectures=["arm"])
    assert answer(profile, "cacheflush", abi="arm", machine="aarch64") == ALLOW
    assert answer(profile, "breakpoint", abi="arm", machine="aarch64") == ENOSYS
    assert answer(profile, "statx", abi="arm", machine="aarch64") == ENOSYS


def test_a_machine_without_tables_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="riscv64"):
        compile(default(), arch="riscv64")


# --- rules ------------------------------------------------------------------------------------------------


def test_of_rules_that_match_the_strictest_answers_whatever_their_order() -> None:
    loose = Rule(names=["ioctl"])
    strict = Rule(names=["ioctl"], action=Action.ERRNO, errno=5, args=[Arg.int32(1, 7)])
    worst = Rule(names=["ioctl"], action=Action.KILL_PROCESS, args=[Arg(0, Op.EQ, 9)])
    for rules in ([loose, strict, worst], [worst, strict, loose], [strict, worst, loose]):
        profile = Profile(rules=rules)
        assert answer(profile, "ioctl", 0, 1) == ALLOW
        assert answer(profile, "ioctl", 0, 7) == 0x50005
        assert answer(profile, "ioctl", 9, 7) == KILL


def test_of_two_error_numbers_the_earlier_answers() -> None:
    rules = [Rule(names=["ioctl"], action=Action.ERRNO, errno=number) for number in (25, 5)]
    assert answer(Profile(rules=rules), "ioctl") == 0x50000 | 25


def test_all_conditions_of_a_rule_must_hold() -> None:
    profile = Profile(
        rules=[Rule(names=["read"], args=[Arg(0, Op.GE, 3), Arg(0, Op.LE, 5), Arg(2, Op.NE, 0)])]
    )
    assert answer(profile, "read", 4, 0, 1) == ALLOW
    assert answer(profile, "read", 2, 0, 1) == EPERM
    assert answer(profile, "read", 6, 0, 1) == EPERM
    assert answer(profile, "read", 4, 0, 0) == EPERM


@pytest.mark.parametrize(
    "op, below, same, above",
    [
        (Op.NE, True, False, True),
        (Op.LT, True, False, False),
        (Op.LE, True, True, False),
        (Op.EQ, False, True, False),
        (Op.GE, False, True, True),
        (Op.GT, False, False, True),
    ],
)
def test_comparisons_are_of_64_bits(op: Op, below: bool, same: bool, above: bool) -> None:
    value = 0x1_8000_0001
    profile = Profile(rules=[Rule(names=["lseek"], args=[Arg(1, op, value)])])
    # Each is on one side of the value for its high half, and on the other for its low half.
    for smaller in (value - 1, 0xFFFFFFFF, 0x1_0000_0002, 0, 1):
        assert (answer(profile, "lseek", 0, smaller) == ALLOW) is below
    for larger in (value + 1, 0x2_0000_0000, 0x1_FFFF_FFFF, (1 << 64) - 1):
        assert (answer(profile, "lseek", 0, larger) == ALLOW) is above
    assert (answer(profile, "lseek", 0, value) == ALLOW) is same


@pytest.mark.parametrize("mask", [0xF0, 0x1, 0xF0_0000_0000, 0x8000_0000_0000_0001, (1 << 64) - 1, 0])
def test_masked_comparisons_see_only_the_mask(mask: int) -> None:
    value = 0x50_0000_0050
    profile = Profile(rules=[Rule(names=["lseek"], args=[Arg(1, Op.MASKED_EQ, value, mask)])])
    for other in (value, value ^ 1, value ^ 0x10, value ^ (1 << 36), value ^ (1 << 63), ~value, 0):
        assert (answer(profile, "lseek", 0, other) == ALLOW) is ((other ^ value) & mask == 0)


def test_an_int_is_compared_without_what_the_kernel_drops() -> None:
    profile = Profile(rules=[Rule(names=["ioctl"], action=Action.TRAP, args=[Arg.int32(1, 0x5412)])])
    assert answer(profile, "ioctl", 0, 0x5412) == 0x30000
    assert answer(profile, "ioctl", 0, 0x5412 | 1 << 32) == 0x30000
    assert answer(profile, "ioctl", 0, 0x5412 | 0xFFFFFFFF << 32) == 0x30000
    assert answer(profile, "ioctl", 0, 0x5413) == EPERM


def test_arguments_of_32_bit_abis_are_32_bits() -> None:
    rule = Rule(names=["personality"], args=[Arg(0, Op.EQ, (1 << 64) - 1)])
    profile = Profile(rules=[rule], architectures=["i386"])
    assert answer(profile, "personality", 0xFFFFFFFF, abi="i386") == ALLOW
    assert answer(profile, "personality", 0xFFFFFFFF) == EPERM


@pytest.mark.parametrize("action", [Action.ERRNO, Action.KILL_PROCESS, Action.LOG])
def test_a_denied_name_that_does_not_exist_is_refused(action: Action) -> None:
    profile = Profile(rules=[Rule(names=["read", "moutn"], action=action)], default=Action.ALLOW)
    with pytest.raises(SpecError, match="moutn"):
        compile(profile, arch="x86_64")


@pytest.mark.parametrize("name", ["umount", "s390_sthyi", "riscv_flush_icache", "swapcontext", "socketcall"])
def test_a_denied_name_of_another_machine_is_passed_over(name: str) -> None:
    profile = Profile(rules=[Rule(names=["read", name], action=Action.ERRNO)], default=Action.ALLOW)
    assert answer(profile, "read") == EPERM
    assert answer(profile, "write") == ALLOW


def test_an_allowed_name_that_does_not_exist_is_passed_over() -> None:
    # An allow-list may be for a kernel that is newer than these tables.
    profile = Profile(rules=[Rule(names=["read", "quantum_entangle"])])
    assert answer(profile, "read") == ALLOW


def test_a_program_longer_than_the_kernel_takes_is_refused() -> None:
    chain = [
        Rule(names=["ioctl"], args=[Arg(n % 2, Op.GE, n << 33), Arg(2, Op.LE, n)]) for n in range(1, 800)
    ]
    with pytest.raises(SpecError, match="4096"):
        compile(Profile(rules=chain), arch="x86_64")


def test_a_compiled_profile_is_kept() -> None:
    profile = Profile(rules=[Rule(names=["read"])])
    equal = attrs.evolve(profile)
    assert compile(profile, arch="x86_64") is compile(equal, arch="x86_64", capabilities=())


# --- the graph --------------------------------------------------------------------------------------------


def test_equal_questions_are_one_node() -> None:
    graph = Graph()
    yes, no = graph.answer(ALLOW), graph.answer(EPERM)
    assert graph.ask(0, JGE, 5, yes, no) == graph.ask(0, JGE, 5, yes, no)
    assert graph.ask(0, JGE, 5, yes, yes) == yes


def test_what_is_known_is_not_asked_again() -> None:
    graph = Graph()
    yes, no = graph.answer(ALLOW), graph.answer(EPERM)
    second = graph.ask(16, JEQ, 7, yes, no)
    assert graph.ask(16, JEQ, 7, yes, second) == second
    assert graph.ask(16, JEQ, 8, second, no) == no


def test_a_graph_of_one_answer_is_one_instruction() -> None:
    graph = Graph()
    program = Machine(graph.program(graph.answer(ALLOW)))
    assert len(program.code) == 1
    assert program.run(X86_64, 0) == ALLOW


def test_a_far_question_is_reached() -> None:
    # The last question is asked from both ends of a chain that is longer than a jump.
    graph = Graph()
    yes, no = graph.answer(ALLOW), graph.answer(EPERM)
    node = far = graph.ask(24, JEQ, 1, yes, no)
    for number in range(600):
        node = graph.ask(16, JEQ, number, far, node)
    program = Machine(graph.program(node))
    for number in (0, 1, 299, 300, 598, 599, 600):
        assert program.run(X86_64, 0, [number, 1]) == ALLOW
        assert program.run(X86_64, 0, [number, 2]) == EPERM


# --- loading it -------------------------------------------------------------------------------------------


def test_importing_the_package_loads_next_to_nothing() -> None:
    code = "import sys, sandboxlib.seccomp; print([m for m in sys.modules if 'seccomp' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['sandboxlib.seccomp']"


def test_the_default_program_needs_no_compiler() -> None:
    code = (
        "import sys; from sandboxlib.seccomp import default_program as p; p(arch='x86_64');"
        "print(sorted(m for m in sys.modules if m.startswith(('sandboxlib.', 'attr', 'json'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sandboxlib.seccomp.programs" in done.stdout
    assert "compiler" not in done.stdout
    assert "profile" not in done.stdout


def test_only_the_tables_of_covered_abis_are_loaded() -> None:
    code = (
        "import sys; from sandboxlib.seccomp import compile, default; compile(default(), arch='aarch64');"
        "print([m for m in sys.modules if m.startswith('sandboxlib.seccomp.tables.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['sandboxlib.seccomp.tables.aarch64']"


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import sandboxlib.seccomp

    with pytest.raises(AttributeError, match="nonsense"):
        sandboxlib.seccomp.nonsense  # noqa: B018
