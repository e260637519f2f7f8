"""Numbers in runs: who owns the files of a tree."""

from __future__ import annotations

from collections.abc import Iterable

#: (first, how many), in order, none touching another.
Ranges = tuple[tuple[int, int], ...]


def ranges(numbers: Iterable[int]) -> Ranges:
    """
    Numbers as runs of them.

    Example:
        >>> ranges([7, 0, 1, 2])
        ((0, 3), (7, 1))
    """
    return united((number, 1) for number in numbers)


def united(given: Iterable[tuple[int, int]], least: int = 0) -> Ranges:
    """
    All that is in one of *given*, from *least* on.

    Example:
        >>> united([(5, 3), (0, 2), (2, 1), (6, 9)], 1)
        ((1, 2), (5, 10))
    """
    found: list[tuple[int, int]] = []
    for first, count in sorted(given):
        start, end = max(first, least), first + count
        if start >= end:
            continue
        if found and start <= sum(found[-1]):
            before = found[-1][0]
            found[-1] = (before, max(end, sum(found[-1])) - before)
        else:
            found.append((start, end - start))
    return tuple(found)


def joined(given: Ranges, most: int) -> Ranges:
    """
    At most *most* ranges that hold all of *given*: those with the least between them are made one.

    Example:
        >>> joined(((0, 1), (10, 1), (12, 1)), 2)
        ((0, 1), (10, 3))
    """
    if len(given) <= most:
        return given
    gaps = [given[at][0] - sum(given[at - 1]) for at in range(1, len(given))]
    # Between which ranges a gap stays: the widest.
    kept = sorted(sorted(range(1, len(given)), key=lambda at: (-gaps[at - 1], at))[: most - 1])
    starts, ends = [0, *kept], [*kept, len(given)]
    return tuple(
        (given[start][0], sum(given[end - 1]) - given[start][0])
        for start, end in zip(starts, ends, strict=True)
    )


__all__ = ["Ranges", "joined", "ranges", "united"]
