"""Many sandboxes, one after another and at once: the last is as cheap as the first, and nothing is left."""

from __future__ import annotations

from statistics import median

import pytest
from kernel.probe.outside import WHO, program

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


def grown(times: list[tuple[float, float]], number: int) -> float:
    """How much more the last of them took than the first, in plain processes, by medians."""

    def typical(part: list[tuple[float, float]]) -> float:
        return median(ours for ours, _ in part) / median(plain for _, plain in part)

    return typical(times[-number:]) / typical(times[:number])


@WHO
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_thousand_one_after_another_leave_nothing_and_cost_the_same(who: str) -> None:
    arguments = "memory='64M', pids=20" if who == "root" else ""
    times, left, more = program(who, ONE_AFTER_ANOTHER, number=2000, arguments=arguments, patience=580)
    assert left == []
    # By then all caches are full.
    assert more < 1 << 20
    assert grown(times, 100) < 1.5


@WHO
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_hundred_at_once_leave_nothing_and_cost_the_same(who: str) -> None:
    arguments = "memory='64M', pids=20" if who == "root" else ""
    times, left, more, alive = program(who, AT_ONCE, number=200, arguments=arguments, patience=280)
    assert alive == 200
    assert left == []
    assert more < 1 << 20
    assert grown(times, 50) < 1.5


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_thousands_of_commands_in_one_sandbox_cost_the_same() -> None:
    arguments = "memory='64M', pids=20"
    times, left, more, inside = program("root", COMMANDS, number=3000, arguments=arguments, patience=280)
    assert left == []
    assert more < 1 << 20
    assert inside == 1
    assert grown(times, 300) < 1.5
