"""Argument classes: for each comparison the values around its boundary, with and without high bits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator

TOP = 1 << 64
#: (argument, value, mask) of every comparison a call is subject to.
Comparison = tuple[int, int, int]


def boundaries(value: int, mask: int) -> set[int]:
    """Values at which a comparison with *value* under *mask* may change its answer, and their neighbours."""
    near = {value - 1, value, value + 1, value & mask, value | ~mask, value ^ mask, 0, 1, -1}
    # Above 32 bits: what an int argument may carry unseen; and the halves swapped.
    far = {n + (1 << bit) for n in near for bit in (31, 32, 63)} | {value >> 32, value << 32}
    single = {(value & mask) ^ (1 << bit) for bit in range(64) if mask >> bit & 1 and mask.bit_count() < 20}
    return {n % TOP for n in near | far | single}


def argument_lists(comparisons: Iterable[Comparison], limit: int = 600) -> Iterator[list[int]]:
    """
    Yield lists of six arguments that tell every outcome of *comparisons* apart.

    All combinations where there are at most *limit*; else each argument's values once with the
    others at values that fulfil a comparison, and random combinations up to *limit*.
    """
    by_argument: dict[int, set[int]] = {}
    for index, value, mask in comparisons:
        by_argument.setdefault(index, set()).update(boundaries(value, mask))
    axes = [sorted(by_argument.get(index, {0})) for index in range(6)]
    total = 1
    for axis in axes:
        total *= len(axis)
    if total <= limit:
        yield from map(list, itertools.product(*axes))
        return
    chance = random.Random(total)
    hits = [sorted({v & m for i, v, m in comparisons if i == index} or {0}) for index in range(6)]
    for index in range(6):
        for value in axes[index]:
            args = [chance.choice(hit) for hit in hits]
            args[index] = value
            yield args
    # Every combination of values that fulfil some comparison: where "all of them" is decided.
    for combination in itertools.islice(itertools.product(*hits), limit):
        yield list(combination)
    for _ in range(limit):
        yield [chance.choice(axis) for axis in axes]
