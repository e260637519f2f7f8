"""Any profile, compiled, answers as its definition says; and it is a program that the kernel takes."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxlib.seccomp import Action, Arg, Op, Profile, Rule, Scope, compile  # noqa: A004
from sandboxlib.seccomp.abi import ABIS, ARM_PRIVATE, FOREIGN, X32_BIT, table

from oracle.classes import argument_lists
from oracle.machine import Machine

ANSWER = {
    Action.KILL_PROCESS: 0x80000000,
    Action.KILL_THREAD: 0x00000000,
    Action.TRAP: 0x00030000,
    Action.ERRNO: 0x00050000,
    Action.LOG: 0x7FFC0000,
    Action.ALLOW: 0x7FFF0000,
}
ORDER = list(Action)


# --- the definition, in the words of sandboxlib/seccomp/profile.py -----------------------------------------


def holds(arg: Arg, value: int, bits: int) -> bool:
    window = (1 << bits) - 1
    left, right = value & window, arg.value & window
    return {
        Op.NE: left != right,
        Op.LT: left < right,
        Op.LE: left <= right,
        Op.EQ: left == right,
        Op.GE: left >= right,
        Op.GT: left > right,
        Op.MASKED_EQ: left & arg.mask == right & arg.mask,
    }[arg.op]


def defined(
    profile: Profile, rules: Iterable[Rule], machine: str, audit: int, number: int, args: list[int]
) -> int:
    """Return what *profile*, of whose rules *rules* apply, says about a call on *machine*."""
    covered = [machine, *(name for name in FOREIGN[machine] if name in profile.architectures)]
    own = [ABIS[name] for name in covered if ABIS[name].audit == audit]
    default = ANSWER[profile.default] | (profile.default_errno or 0)
    newer = ANSWER[Action.ERRNO] | errno.ENOSYS
    if profile.default in (Action.ALLOW, Action.LOG) or not profile.rules:
        newer = default
    if not own:
        return ANSWER[Action.KILL_PROCESS]
    if machine == "x86_64" and audit == ABIS[machine].audit:
        if number == 0xFFFFFFFF:
            return newer
        own = [abi for abi in own if bool(abi.offset) == (number >= X32_BIT)]
        if not own:
            return ANSWER[Action.KILL_PROCESS]
    (abi,) = own
    number -= abi.offset
    calls = table(abi.name)
    named = {calls[name] for rule in profile.rules for name in rule.names if name in calls}
    top = max((n for n in named if n < ARM_PRIVATE), default=-1)
    if number not in named and number > top:
        return newer
    bits = 64 if abi.name == machine else 32
    matching = [
        rule
        for rule in rules
        if any(calls.get(name) == number for name in rule.names)
        and all(holds(arg, args[arg.index], bits) for arg in rule.args)
    ]
    if not matching:
        return default
    rule = min(matching, key=lambda rule: ORDER.index(rule.action))
    return ANSWER[rule.action] | (rule.errno or 0)


# --- profiles ---------------------------------------------------------------------------------------------

WORD = st.one_of(
    st.sampled_from([0, 1, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 6),
)
ARG = st.one_of(
    st.builds(Arg, st.integers(0, 5), st.sampled_from([op for op in Op if op is not Op.MASKED_EQ]), WORD),
    st.builds(Arg, st.integers(0, 5), st.just(Op.MASKED_EQ), WORD, WORD),
    st.builds(Arg.int32, st.integers(0, 5), WORD),
)
NAMES = sorted(
    {"read", "openat", "socket", "cacheflush", "statmount", "umount", *list(table("x86_64"))[::17]}
)
CAPABILITIES = st.frozensets(st.sampled_from(["CAP_SYS_ADMIN", "CAP_NET_RAW", "CAP_BPF"]))
SCOPE = st.builds(
    Scope,
    capabilities=CAPABILITIES,
    arches=st.frozensets(st.sampled_from(["x86_64", "aarch64", "s390x"])),
    min_kernel=st.one_of(st.none(), st.tuples(st.integers(3, 7), st.integers(0, 20))),
)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    action = draw(st.sampled_from(list(Action)))
    return Rule(
        names=draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6)),
        action=action,
        errno=draw(st.integers(0, 4095)) if action is Action.ERRNO else None,
        args=draw(st.lists(ARG, max_size=4)),
        includes=draw(st.one_of(st.just(Scope()), SCOPE)),
        excludes=draw(st.one_of(st.just(Scope()), SCOPE)),
    )


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    action = draw(st.sampled_from(list(Action)))
    return Profile(
        rules=draw(st.lists(rules(), max_size=12)),
        default=action,
        default_errno=draw(st.integers(0, 4095)) if action is Action.ERRNO else None,
        architectures=draw(st.frozensets(st.sampled_from(["i386", "x32", "arm"]))),
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    profile=profiles(),
    machine=st.sampled_from(sorted(FOREIGN)),
    capabilities=CAPABILITIES,
    kernel=st.tuples(st.integers(3, 7), st.integers(0, 20)),
)
def test_a_compiled_profile_answers_as_it_is_defined(
    profile: Profile, machine: str, capabilities: frozenset[str], kernel: tuple[int, int]
) -> None:
    program = Machine(compile(profile, arch=machine, capabilities=capabilities, kernel=kernel))
    applied = [rule for rule in profile.rules if rule.applies(machine, capabilities, kernel)]
    for name in [*ABIS, "other"]:
        audit, offset, calls = 0xC0000015, 0, table("x86_64")
        if name in ABIS:
            audit, offset, calls = ABIS[name].audit, ABIS[name].offset, table(name)
        conditions: dict[int, list[tuple[int, int, int]]] = {}
        for rule in profile.rules:
            for called in rule.names:
                if called in calls:
                    places = conditions.setdefault(calls[called], [])
                    places.extend((arg.index, arg.value, arg.mask) for arg in rule.args)
        numbers = {n + step for n in conditions for step in (-1, 0, 1)} | {0, 471, 600, ARM_PRIVATE, 0xFFFF}
        for number in {(n + offset) & 0xFFFFFFFF for n in numbers} | {X32_BIT - 1, X32_BIT, 0xFFFFFFFF}:
            for args in argument_lists(conditions.get(number - offset, ()), 25):
                expected = defined(profile, applied, machine, audit, number, args)
                assert program.run(audit, number, args) == expected, (name, number, [*map(hex, args)])


# --- long programs ----------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=st.lists(WORD, min_size=150, max_size=300, unique=True), op=st.sampled_from([Op.EQ, Op.GT, Op.NE])
)
def test_jumps_reach_beyond_255_instructions(values: list[int], op: Op) -> None:
    # One call with hundreds of conditions stands between the others and their answers, and its own
    # conditions are farther from their answer than a jump reaches. Two argument words alternate.
    chain = [
        Rule(
            names=["ioctl"], action=Action.ERRNO, errno=5, args=[Arg(n % 2, op, value), Arg(3, Op.EQ, value)]
        )
        for n, value in enumerate(values)
    ]
    others = [Rule(names=["read", "socket", "clone", "statx"], action=Action.LOG, args=[Arg(2, Op.EQ, 7)])]
    profile = Profile(rules=[*chain, *others, Rule(names=["write", "mseal"])])
    program = Machine(compile(profile, arch="x86_64"))
    assert len(program.code) > 300
    audit = ABIS["x86_64"].audit
    calls = table("x86_64")
    for name in ("ioctl", "read", "socket", "clone", "statx", "write", "mseal", "mount"):
        for value in [*values[:: len(values) // 10], values[-1], 7]:
            for args in ([value, value, 7, value], [0, value, 8, value], [value, 1, 7, 0]):
                expected = defined(profile, profile.rules, "x86_64", audit, calls[name], [*args, 0, 0])
                assert program.run(audit, calls[name], args) == expected, (name, args)
