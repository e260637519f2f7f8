"""Many sandboxes, one after another and at once: the last is as cheap as the first, and nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest
from kernel.probe.outside import WHO, program

#: What the last may cost, in what the first did.
MOST = 1.5

COUNTED = """
import gc, subprocess, time, leaks
def memory():
    gc.collect()
    fields = open("/proc/self/statm").read().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
def use(sandbox):
    assert sandbox.run(["echo", "x"]).stdout == b"x\\n"
def timed(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
def cost(function):
    # Beside it, what the machine takes for a plain process: others are at work on it, too.
    return timed(function), timed(lambda: subprocess.run(["true"], check=True))
for _ in range(20):
    with make(facts["arguments"]) as sandbox:
        use(sandbox)
before, number = leaks.snapshot(), facts["number"]
"""

ONE_AFTER_ANOTHER = (
    COUNTED
    + """
def one():
    with make(facts["arguments"]) as sandbox:
        use(sandbox)
times = [cost(one) for _ in range(number // 2)]
half = memory()
times += [cost(one) for _ in range(number // 2)]
more = memory() - half
print(json.dumps([times, leaks.since(before), more]))
"""
)

AT_ONCE = (
    COUNTED
    + """
import contextlib
def one():
    use(stack.enter_context(make(facts["arguments"])))
def all_at_once():
    global stack
    with contextlib.ExitStack() as stack:
        times = [cost(one) for _ in range(number)]
        alive = len(open(f"/proc/self/task/{os.getpid()}/children").read().split())
    return times, alive
all_at_once()
half = memory()
times, alive = all_at_once()
more = memory() - half
print(json.dumps([times, leaks.since(before), more, alive]))
"""
)

COMMANDS = (
    COUNTED
    + """
with make(facts["arguments"]) as sandbox:
    times = [cost(lambda: use(sandbox)) for _ in range(number // 2)]
    half = memory()
    times += [cost(lambda: use(sandbox)) for _ in range(number // 2)]
    more = memory() - half
    inside = report(sandbox, "processes")["processes"]
print(json.dumps([times, leaks.since(before), more, len(inside)]))
"""
)


def steady(who: str, script: str, number: int, patience: float, last: int) -> Iterator[list[Any]]:
    """
    Measure until the cost has not grown, at most three times: what grows with each sandbox does so each time.

    What else the machine does makes a single look worth little. Yields what else each run tells.
    """
    growth = MOST
    for _ in range(3):
        arguments = "memory='64M', pids=20" if who == "root" else ""
        times, *found = program(who, script, number=number, arguments=arguments, patience=patience)
        growth = grown(times, last)
        yield found
        if growth < MOST:
            break
    assert growth < MOST


def grown(times: list[tuple[float, float]], number: int) -> float:
    """How much more the last of them took than the first, in plain processes, by medians."""

    def typical(part: list[tuple[float, float]]) -> float:
        return median(ours for ours, _ in part) / median(plain for _, plain in part)

    return typical(times[-number:]) / typical(times[:number])


@WHO
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_one_after_another_leave_nothing_and_cost_the_same(who: str) -> None:
    for left, more in steady(who, ONE_AFTER_ANOTHER, 2000, 580, 100):
        assert left == []
        # By then all caches are full.
        assert more < 1 << 20


@WHO
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_at_once_leave_nothing_and_cost_the_same(who: str) -> None:
    for left, more, alive in steady(who, AT_ONCE, 200, 280, 50):
        assert alive == 200
        assert left == []
        assert more < 1 << 20


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thousands_of_commands_in_one_sandbox_cost_the_same() -> None:
    for left, more, inside in steady("root", COMMANDS, 3000, 280, 300):
        assert left == []
        assert more < 1 << 20
        assert inside == 1
