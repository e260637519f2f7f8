"""
What starting costs: a whole sandbox with one command, and one more command in it.

Beside `subprocess`, bubblewrap, runc and sandlock, and from a program that holds 2 GB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import measure, others
from benchmarks.measure import Action
from sandboxlib import Sandbox

COLD, WARM = "with Sandbox() as sb: sb.run([true])", "sb.run([true]) in a live one"
PLAIN, BWRAP, RUNC, SANDLOCK = "subprocess.run([true])", "bwrap --unshare-all", "runc run", "sandlock"
LARGE = ", from a program of 2 GB"


def cold() -> None:
    """A sandbox for one command: all protections on, its cgroup included."""
    with Sandbox() as sandbox:
        sandbox.run([others.TRUE], check=True)


def serve(size: int) -> None:
    """Hold *size* bytes, and measure what stdin names, one line each."""
    held = bytearray(size)
    # Every page is there.
    held[::4096] = b"x" * len(held[::4096])
    with Sandbox() as sandbox:
        actions: dict[str, Action] = {
            COLD: cold,
            WARM: lambda: sandbox.run([others.TRUE], check=True),
            PLAIN: others.plain,
        }
        print("ready", flush=True)
        for line in sys.stdin:
            began = time.perf_counter()
            actions[line.strip()]()
            print(time.perf_counter() - began, flush=True)
    assert len(held) == size


@contextmanager
def program(size: int) -> Iterator[dict[str, Action]]:
    """Another program that holds *size* bytes; what it can be asked to measure."""
    command = [sys.executable, "-m", "benchmarks.start", "--serve", str(size)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the large program did not start")

        def ask(name: str) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{name}\n")
            return float(process.stdout.readline())

        yield {name: lambda name=name: ask(name) for name in (COLD, WARM, PLAIN)}  # type: ignore[misc]
        process.stdin.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandboxlib-benchmark-")))
        sandbox = stack.enter_context(Sandbox())
        candidates: dict[str, Action | None] = {
            PLAIN: others.plain,
            COLD: cold,
            WARM: lambda: sandbox.run([others.TRUE], check=True),
            BWRAP: others.bubblewrap(),
            RUNC: others.runc(folder),
            SANDLOCK: others.sandlock(),
        }
        small, large = stack.enter_context(program(1)), stack.enter_context(program(2 << 30))
        for name in (COLD, WARM, PLAIN):
            # Both are asked in the same way, so that the way costs the same.
            candidates[f"{name}, asked of another program"] = small[name]
            candidates[name + LARGE] = large[name]
        times = measure.interleave({name: do for name, do in candidates.items() if do}, options.rounds)
    print(f"## Start\n\n{measure.machine()}; {options.rounds} rounds\n")
    measure.show_times(times)
    asked = ", asked of another program"
    measure.show_bars(
        [
            *measure.ratio("sandbox and command, to bubblewrap", times, COLD, BWRAP, 0.5),
            *measure.ratio("sandbox and command, to runc", times, COLD, RUNC, 0.1),
            *measure.ratio("sandbox and command, to sandlock", times, COLD, SANDLOCK, 1),
            *measure.ratio("a further command, to subprocess", times, WARM, PLAIN, 1.3),
            *measure.ratio("sandbox and command, 2 GB to small", times, COLD + LARGE, COLD + asked, 1.1),
            *measure.ratio("a further command, 2 GB to small", times, WARM + LARGE, WARM + asked, 1.1),
        ]
    )
    absent = [name for name, do in candidates.items() if do is None]
    if absent:
        print(f"Not here, so not measured: {', '.join(absent)}.\n")


if __name__ == "__main__":
    main()
