"""
A `Profile` becomes a filter program for one machine.

First the ABI, then the number, then the arguments. Numbers with the same answer that lie side by side
are one range; the ranges are searched by a balanced tree of "greater or equal", so that a call costs
about ten instructions where a list of comparisons costs hundreds.

Kernel: seccomp(2); SECCOMP_RET_* of linux/seccomp.h.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable, Iterator

from sandboxlib.errors import SpecError
from sandboxlib.seccomp import bpf
from sandboxlib.seccomp.abi import ABIS, ARM_PRIVATE, X32_BIT, Abi, covered, table
from sandboxlib.seccomp.foreign import FOREIGN_NAMES
from sandboxlib.seccomp.profile import MASK32, MASK64, Action, Arg, Op, Profile, Rule

_ANSWER = {
    Action.KILL_PROCESS: 0x80000000,
    Action.KILL_THREAD: 0x00000000,
    Action.TRAP: 0x00030000,
    Action.ERRNO: 0x00050000,
    Action.LOG: 0x7FFC0000,
    Action.ALLOW: 0x7FFF0000,
}
_STRICTNESS = {action: place for place, action in enumerate(Action)}
_LETS_PASS = frozenset({Action.ALLOW, Action.LOG})

_KILL = _ANSWER[Action.KILL_PROCESS]
_ENOSYS = _ANSWER[Action.ERRNO] | errno.ENOSYS

# How many single numbers are taken out of a range before the tree is built: more make the program
# shorter and its longest path longer. 3 loads fastest.
_SINGLES = 3


def compile(  # noqa: A001 - the name says what it does, as in re.compile
    profile: Profile,
    *,
    arch: str,
    capabilities: Iterable[str] = (),
    kernel: tuple[int, int] = (0, 0),
) -> bytes:
    """
    Return the program for ``seccomp(SECCOMP_SET_MODE_FILTER)``: 8 bytes an instruction.

    Args:
        profile: What the filter shall do.
        arch: The machine, as ``os.uname().machine`` says: ``x86_64`` or ``aarch64``.
        capabilities: The sandbox's bounding set, by names such as ``CAP_NET_RAW``.
        kernel: The running kernel's major and minor version; only `Scope.min_kernel` looks at it.

    Raises:
        UnsupportedError: There are no system call tables for this machine.
        SpecError: The program would be longer than the kernel takes, or a rule forbids a call that
            does not exist anywhere (most likely a slip of the pen).

    The result is kept: the same arguments cost nothing the second time.
    """
    return _compiled(profile, arch, frozenset(capabilities), kernel)


@functools.lru_cache(maxsize=64)
def _compiled(profile: Profile, arch: str, capabilities: frozenset[str], kernel: tuple[int, int]) -> bytes:
    abis = covered(arch, profile.architectures)
    rules = [rule for rule in profile.rules if rule.applies(arch, capabilities, kernel)]
    _refuse_unknown(profile, rules)
    graph = bpf.Graph()
    # From the last ABI to the first: what none of them is, is killed.
    node = graph.answer(_KILL)
    for audit in dict.fromkeys(abi.audit for abi in reversed(abis)):
        mine = [abi for abi in abis if abi.audit == audit]
        tree = _tree(graph, list(_ranges(graph, profile, rules, mine)))
        node = graph.ask(bpf.ARCH, bpf.JEQ, audit, tree, node)
    return graph.program(node)


def _refuse_unknown(profile: Profile, rules: list[Rule]) -> None:
    """Refuse a rule that would forbid a call whose name does not exist: it would forbid nothing."""
    for rule in rules:
        if _STRICTNESS[rule.action] < _STRICTNESS[profile.default]:
            for name in rule.names:
                known = name in FOREIGN_NAMES or any(name in table(abi) for abi in ABIS)
                if not known:
                    raise SpecError("names", name, "a system call that exists, in a rule that forbids it")


def _ranges(
    graph: bpf.Graph, profile: Profile, rules: list[Rule], abis: list[Abi]
) -> Iterator[tuple[int, int]]:
    """Yield (first number, node) for ranges that cover all numbers, in order; neighbours differ."""
    default = graph.answer(_answer(profile.default, profile.default_errno))
    newer = default if profile.default in _LETS_PASS or not profile.rules else graph.answer(_ENOSYS)
    previous = -1
    for first, node in _marks(graph, profile, rules, abis, default, newer):
        if node != previous:
            yield first, node
            previous = node


def _marks(
    graph: bpf.Graph, profile: Profile, rules: list[Rule], abis: list[Abi], default: int, newer: int
) -> Iterator[tuple[int, int]]:
    following = 0
    for abi in abis:
        calls = table(abi.name)
        nodes = _leaves(graph, rules, calls, abi.wide, default)
        named = {calls[name] for rule in profile.rules for name in rule.names if name in calls}
        newest = max((number for number in named if number < ARM_PRIVATE), default=-1)
        following = abi.offset
        for number in sorted(named):
            if number + abi.offset != following:
                yield following, default if following - abi.offset <= newest else newer
            yield number + abi.offset, nodes.get(number, default)
            following = number + abi.offset + 1
        yield following, newer
    if abis[0].name == "x86_64":
        if len(abis) == 1:
            yield X32_BIT, graph.answer(_KILL)
        # -1 has the bit of x32 but is no call at all; the kernel itself says ENOSYS to it.
        yield MASK32, newer


def _leaves(
    graph: bpf.Graph, rules: list[Rule], calls: dict[str, int], wide: bool, default: int
) -> dict[int, int]:
    """Return number -> node for every call that a rule names."""
    by_number: dict[int, list[Rule]] = {}
    for rule in rules:
        for name in rule.names:
            number = calls.get(name)
            if number is not None:
                by_number.setdefault(number, []).append(rule)
    made: dict[tuple[int, ...], int] = {}
    leaves = {}
    for number, matching in by_number.items():
        key = tuple(map(id, matching))
        node = made.get(key)
        if node is None:
            node = made[key] = _leaf(graph, matching, wide, default)
        leaves[number] = node
    return leaves


def _leaf(graph: bpf.Graph, rules: list[Rule], wide: bool, default: int) -> int:
    """Return the node that answers for one call: the strictest rule that matches, or the default."""
    node = default
    # What is asked first is built last: the strictest, and of equals the earlier.
    asked = sorted(rules, key=lambda rule: _STRICTNESS[rule.action])
    for rule in reversed(asked):
        otherwise = node
        node = graph.answer(_answer(rule.action, rule.errno))
        for place in reversed(range(len(rule.args))):
            # When a condition fails, those before it held: many of the next rule's are known then.
            known = dict(filter(None, map(_fact, rule.args[:place])))
            node = _condition(graph, rule.args[place], wide, node, graph.follow(otherwise, known))
    return node


def _fact(arg: Arg) -> tuple[tuple[int, int], int] | None:
    """Return what is known of the low half of an argument that fulfils the condition, for `Graph.follow`."""
    mask = (arg.mask if arg.op is Op.MASKED_EQ else MASK64) & MASK32
    if arg.op not in (Op.EQ, Op.MASKED_EQ) or not _by_value(mask, arg.value & mask):
        return None
    return (bpf.low(arg.index), mask), arg.value & mask


def _answer(action: Action, number: int | None) -> int:
    return _ANSWER[action] | (number or 0)


def _condition(graph: bpf.Graph, arg: Arg, wide: bool, yes: int, no: int) -> int:
    """Return the node for one comparison; where arguments are 32 bits, so is what they are compared with."""
    low, high = bpf.low(arg.index), bpf.high(arg.index)
    value, op = arg.value, arg.op
    value_low, value_high = value & MASK32, value >> 32
    if op in (Op.NE, Op.LT, Op.LE):
        yes, no = no, yes
        op = {Op.NE: Op.EQ, Op.LT: Op.GE, Op.LE: Op.GT}[op]
    if op in (Op.EQ, Op.MASKED_EQ):
        mask = arg.mask if op is Op.MASKED_EQ else MASK64
        upper = yes
        if wide:
            # Another value of the same argument cannot match any more where this one's low half did;
            # skipping it lets several rules share one look at the high half.
            known = _fact(arg)
            past = graph.follow(no, dict([known])) if known else no
            upper = _equal(graph, high, mask >> 32, value_high, yes, past)
        return _equal(graph, low, mask & MASK32, value_low, upper, no)
    jump = bpf.JGE if op is Op.GE else bpf.JGT
    node = graph.ask(low, jump, value_low, yes, no)
    if wide:
        node = graph.ask(high, bpf.JGT, value_high, yes, graph.ask(high, bpf.JEQ, value_high, node, no))
    return node


def _equal(graph: bpf.Graph, word: int, mask: int, value: int, yes: int, no: int) -> int:
    """Return the node for ``word & mask == value & mask``."""
    value &= mask
    if mask == 0:
        return yes
    if _by_value(mask, value):
        return graph.ask(word, bpf.JEQ, value, yes, no, mask)
    # A test of bits leaves the word as it is, for the next question about it.
    return graph.ask(word, bpf.JSET, mask, yes, no) if value else graph.ask(word, bpf.JSET, mask, no, yes)


def _by_value(mask: int, value: int) -> bool:
    """Return whether the masked word has to be compared; for "no bit" and "this bit" there is a test."""
    return mask == bpf.FULL or (value != 0 and (value != mask or mask & (mask - 1) != 0))


def _tree(graph: bpf.Graph, ranges: list[tuple[int, int]]) -> int:
    """Return the node that finds the range of the number."""
    # Where one number alone differs from both its neighbours, "equal" is one question instead of two.
    # An entry is (first number, node around, [(number, its node), ...]).
    entries: list[tuple[int, int, list[tuple[int, int]]]] = []
    index = 0
    while index < len(ranges):
        first, node = ranges[index]
        singles: list[tuple[int, int]] = []
        while (
            len(singles) < _SINGLES
            and index + 2 < len(ranges)
            and ranges[index + 2][1] == node
            and ranges[index + 2][0] == ranges[index + 1][0] + 1
        ):
            singles.append(ranges[index + 1])
            index += 2
        entries.append((first, node, singles))
        index += 1

    def build(start: int, end: int) -> int:
        if end - start == 1:
            _, node, singles = entries[start]
            for number, single in reversed(singles):
                node = graph.ask(bpf.NUMBER, bpf.JEQ, number, single, node)
            return node
        middle = (start + end) // 2
        left, right = build(start, middle), build(middle, end)
        return graph.ask(bpf.NUMBER, bpf.JGE, entries[middle][0], right, left)

    return build(0, len(entries))
