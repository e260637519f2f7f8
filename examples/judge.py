"""An online judge: compile a submission, run it on each input, and give a verdict with what it used."""

import sys
from typing import NamedTuple

from sandboxlib import Limits, Outcome, Sandbox


class Case(NamedTuple):
    """One test: what is fed, and what has to come out."""

    given: str
    expected: str


CASES = [Case("3 4 5\n", "12\n"), Case("1\n", "1\n")]
SUBMISSIONS = {
    "right": "print(sum(map(int, input().split())))",
    "lazy": "print(12)",
    "slow": "while True: pass",
    "greedy": "x = bytearray(1 << 30)",
    "broken": "1 / 0",
    "misspelt": "print(sum(",
}
#: CPU seconds are generous: how fast a machine is decides no verdict here.
LIMITS = Limits(cpu_time=4, wall_time=60, memory="32M", pids=8)
VERDICTS = {Outcome.CPU_TIME: "TLE", Outcome.WALL_TIME: "TLE", Outcome.OUT_OF_MEMORY: "MLE"}


def judge(sb: Sandbox, source: str) -> str:
    """The verdict on one submission: of its first case that fails, or AC."""
    sb.files.write("/work/main.py", source)
    compiled = sb.run([sys.executable, "-m", "py_compile", "main.py"], limits=LIMITS)
    if compiled.returncode:
        return "CE"
    used = 0
    for number, case in enumerate(CASES, 1):
        done = sb.run(
            [sys.executable, "-I", "-S", "main.py"],
            input=case.given,
            text=True,
            limits=LIMITS,
            max_output="64K",
            overflow="kill",
        )
        used = max(used, done.usage.memory_peak or 0)
        if done.outcome is not Outcome.EXITED:
            return f"{VERDICTS.get(done.outcome, 'RE')} on case {number}"
        if done.returncode:
            return f"RE on case {number}"
        if done.stdout != case.expected:
            return f"WA on case {number}"
    return f"AC, {used >> 20} MiB at most"


with Sandbox(memory="256M", pids=64) as sandbox:
    for name, text in SUBMISSIONS.items():
        print(f"{name}: {judge(sandbox, text)}")
