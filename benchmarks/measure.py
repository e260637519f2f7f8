"""Measuring side by side: one run of each in turn, so that what else the machine does meets all."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Action = Callable[[], object]


class Times(NamedTuple):
    """Seconds of many runs of one thing."""

    runs: tuple[float, ...]

    @property
    def least(self) -> float:
        """The run that was disturbed least."""
        return min(self.runs)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.runs)


def interleave(actions: Mapping[str, Action], rounds: int, warm_up: int = 3) -> dict[str, Times]:
    """
    Run each of *actions* once, then each again, *rounds* times in all.

    An action may return how many seconds it took, where it knows better than we do.
    """
    found: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for number in range(-warm_up, rounds):
        # Each goes first as often as the others.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            told = actions[name]()
            took = time.perf_counter() - began
            if number >= 0:
                found[name].append(told if isinstance(told, float) else took)
    return {name: Times(tuple(runs)) for name, runs in found.items()}


class Bar(NamedTuple):
    """
    A figure with what it has to be.

    Attributes:
        figure: What was measured, in words.
        value: As a number, in the bar's unit.
        bar: The number that it must not be above; below it, if *at_least*.
        at_least: More is better.
        unit: Of both.
    """

    figure: str
    value: float
    bar: float
    at_least: bool = False
    unit: str = "×"

    @property
    def held(self) -> bool:
        """Is the bar held?"""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "holds" if self.held else "**missed**"
        return (
            f"| {self.figure} | {self.value:.3g} {self.unit} | {sign} {self.bar:g} {self.unit} | {verdict} |"
        )


def show_times(times: Mapping[str, Times]) -> None:
    """Print a table of milliseconds."""
    print("| | least, ms | median, ms |\n|---|---|---|")
    for name, found in times.items():
        print(f"| {name} | {1000 * found.least:.2f} | {1000 * found.median:.2f} |")
    print()


def show_bars(bars: list[Bar]) -> None:
    """Print a table of figures beside their bars."""
    print("| figure | measured | bar | |\n|---|---|---|---|")
    for bar in bars:
        print(bar)
    print()


def ratio(figure: str, times: Mapping[str, Times], one: str, other: str, bar: float) -> list[Bar]:
    """*one* as a multiple of *other*, by the medians; nothing if *other* could not be measured."""
    if one not in times or other not in times:
        return []
    return [Bar(figure, times[one].median / times[other].median, bar)]


def machine() -> str:
    """One line on what this was measured on."""
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                model = line.partition(":")[2].strip()
                break
    load = os.getloadavg()[0]
    python = platform.python_version()
    return f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {python}, load {load:.1f}"
