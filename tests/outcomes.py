"""
How commands end that stay just below a limit, meet it, or go beyond.

The outcome has to be the same every time, be the program idle or busy. The tests look a few times; this looks
as often as is asked for, and prints what it found, for all limits or for those that are named::

    .nox/test/bin/python tests/outcomes.py 200 [LIMIT...]
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import trio
import trio.lowlevel

from sandboxlib import AsyncSandbox, Limits, Outcome, Sandbox

#: The lab's machines are ten times slower, and have one CPU.
LAB = bool(os.environ.get("SANDBOXLIB_LAB"))
SLOW = 10 if LAB else 1

PLACES = ("before", "at", "after")
FACES = ("blocking", "trio")
Found = Counter[tuple[Outcome, int]]


def python(source: str) -> list[str]:
    """A command that runs *source*, with as little as may be around it."""
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", source]


class Step(NamedTuple):
    """A limit, a command, how it ends, and by which status if that says more."""

    limits: Limits
    command: list[str]
    outcome: Outcome
    returncode: int | None = None


class Case(NamedTuple):
    """
    A limit.

    Attributes:
        before, at, after: A command that stays just below it, one that meets it, and one that goes beyond.
        controller: The one of the cgroup that it needs, if any.
    """

    before: Step
    at: Step
    after: Step
    controller: str = ""


def _sleep(limit: float, seconds: float, outcome: Outcome) -> Step:
    return Step(Limits(wall_time=limit * SLOW), ["sleep", str(seconds * SLOW)], outcome)


def _spin(seconds: float, outcome: Outcome) -> Step:
    command = python(f"import time\nwhile time.process_time() < {seconds * SLOW}: pass")
    return Step(Limits(cpu_time=0.2 * SLOW), command, outcome)


def _fill(mib: int, outcome: Outcome) -> Step:
    return Step(Limits(memory="32M"), python(f"b = bytearray({mib} << 20)"), outcome)


#: Forks so many children, which all live at one time.
_FORKS = """
import os
read, write = os.pipe()
for _ in range({}):
    if os.fork() == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
"""


def _forks(number: int, returncode: int) -> Step:
    # What a fork that is refused does to it is the command's own matter.
    return Step(Limits(pids=6), python(_FORKS.format(number)), Outcome.EXITED, returncode)


def _write(size: int, outcome: Outcome) -> Step:
    return Step(Limits(output=100_000), ["head", f"-c{size}", "/dev/zero"], outcome)


def _file(size: int, outcome: Outcome, returncode: int) -> Step:
    command = ["dd", "if=/dev/zero", "of=/work/file", f"bs={size}", "count=1", "status=none"]
    return Step(Limits(file_size=10_000), command, outcome, returncode)


_EXITED = Outcome.EXITED
CASES = {
    "output": Case(_write(99_999, _EXITED), _write(100_000, _EXITED), _write(100_001, Outcome.OUTPUT_LIMIT)),
    # A busy machine may take its time to wake who sleeps: then it was no longer before.
    "wall": Case(
        _sleep(1.0, 0.2, _EXITED), _sleep(0.2, 0.2, Outcome.WALL_TIME), _sleep(0.2, 0.3, Outcome.WALL_TIME)
    ),
    "CPU": Case(_spin(0.1, _EXITED), _spin(0.2, Outcome.CPU_TIME), _spin(0.3, Outcome.CPU_TIME), "cpu"),
    "memory": Case(
        _fill(20, _EXITED), _fill(32, Outcome.OUT_OF_MEMORY), _fill(40, Outcome.OUT_OF_MEMORY), "memory"
    ),
    "pids": Case(_forks(4, 0), _forks(5, 0), _forks(6, 1), "pids"),
    "size": Case(_file(9_999, _EXITED, 0), _file(10_000, _EXITED, 0), _file(10_001, Outcome.SIGNALED, -25)),
}


@contextmanager
def busy_threads() -> Iterator[None]:
    """Threads that hardly let anybody else have the interpreter."""
    over = False

    def spin() -> None:
        while not over:
            pass

    threads = [threading.Thread(target=spin) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over = True
        for thread in threads:
            thread.join()


async def _hog() -> None:
    while True:
        await trio.lowlevel.checkpoint()
        time.sleep(0.05)  # noqa: ASYNC251 - it holds the loop, as others do who compute


async def _on_trio(step: Step, number: int, *, busy: bool) -> Found:
    found: Found = Counter()
    async with AsyncSandbox() as sandbox, trio.open_nursery() as nursery:
        if busy:
            nursery.start_soon(_hog)
        for _ in range(number):
            done = await sandbox.run(step.command, limits=step.limits)
            found[done.outcome, done.returncode] += 1
        nursery.cancel_scope.cancel()
    return found


def _blocking(step: Step, number: int, *, busy: bool) -> Found:
    found: Found = Counter()
    with Sandbox() as sandbox, busy_threads() if busy else nullcontext():
        for _ in range(number):
            done = sandbox.run(step.command, limits=step.limits)
            found[done.outcome, done.returncode] += 1
    return found


def outcomes(name: str, place: str, number: int, face: str, *, busy: bool) -> Found:
    """How the command of a case ended, each of *number* times."""
    step: Step = getattr(CASES[name], place)
    if face == "trio":
        return trio.run(lambda: _on_trio(step, number, busy=busy))
    return _blocking(step, number, busy=busy)


def is_right(name: str, place: str, found: Found) -> bool:
    """Is that what it should be, every time?"""
    step: Step = getattr(CASES[name], place)
    return all(
        outcome is step.outcome and step.returncode in (None, returncode) for outcome, returncode in found
    )


def main(number: int, names: Sequence[str] = (), print_line: Callable[[str], object] = print) -> int:
    """Look *number* times at each of the limits, and tell; the exit status is 1 where one ended otherwise."""
    wrong = 0
    for name in names or CASES:
        for place in PLACES:
            for busy in (False, True):
                found: Found = Counter()
                for face in FACES:
                    found += outcomes(name, place, number // len(FACES), face, busy=busy)
                right = is_right(name, place, found)
                wrong += not right
                said = ", ".join(f"{n} x {outcome.value} {code}" for (outcome, code), n in found.items())
                print_line(
                    f"{name:8}{place:8}{'busy' if busy else 'idle':6}{said}{'' if right else '  WRONG'}"
                )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
