"""The removal of several things: one that cannot be removed does not keep the others."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Iterable

from sandboxlib.errors import SandboxError


def each(remove: Callable[[str], object], names: Iterable[str]) -> None:
    """
    Call *remove* for each of *names*.

    Raises:
        SandboxError: The first that it failed with; notes tell of the others.
    """
    problems: list[SandboxError] = []
    for name in list(names):
        try:
            remove(name)
        except SandboxError as problem:
            problems.append(problem)
    _tell(problems)


async def each_awaited(remove: Callable[[str], Awaitable[object]], names: Iterable[str]) -> None:
    """As `each`, with what has to be awaited."""
    problems: list[SandboxError] = []
    for name in list(names):
        try:
            await remove(name)
        except SandboxError as problem:
            problems.append(problem)
    _tell(problems)


def warn(problem: SandboxError) -> None:
    """
    Tell of what a program that was killed has left and that cannot be removed.

    It is no error of whoever finds it, whose work does not depend on it; the next program tries again.
    """
    text = f"what a program that was killed has left cannot be removed: {problem}"
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _tell(problems: list[SandboxError]) -> None:
    if problems:
        for other in problems[1:]:
            problems[0].add_note(f"and: {other}")
        raise problems[0]


__all__ = ["each", "each_awaited", "warn"]
