"""A line there and a line back over pipes: a sandboxed process beside a plain one, on both faces."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import IO

import trio

from benchmarks import measure
from sandboxlib import PIPE, AsyncProcess, AsyncSandbox, Sandbox

ECHO = [
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import sys\nfor line in sys.stdin: print(line, end='', flush=True)",
]
LINE = b"a line of text\n"


def over_files(write: IO[bytes], read: IO[bytes], rounds: int) -> float:
    """Seconds for so many round trips."""
    began = time.perf_counter()
    for _ in range(rounds):
        write.write(LINE)
        write.flush()
        assert read.readline() == LINE
    return time.perf_counter() - began


async def over_streams(process: AsyncProcess | trio.Process, rounds: int) -> float:
    """The same over trio's streams."""
    assert process.stdin is not None
    assert process.stdout is not None
    began = trio.current_time()
    for _ in range(rounds):
        await process.stdin.send_all(LINE)
        answer = b""
        while len(answer) < len(LINE):
            answer += await process.stdout.receive_some()
    return trio.current_time() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--trips", type=int, default=1000)
    options = parser.parse_args()
    trips = options.trips

    def plain() -> float:
        with subprocess.Popen(ECHO, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            return over_files(process.stdin, process.stdout, trips)

    def sandboxed() -> float:
        with Sandbox() as sandbox, sandbox.popen(ECHO, stdin=PIPE, stdout=PIPE) as process:
            took = over_files(process.stdin, process.stdout, trips)
            process.stdin.close()
            return took

    async def plain_trio() -> float:
        process = await trio.lowlevel.open_process(ECHO, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        took = await over_streams(process, trips)
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.aclose()
        await process.stdout.aclose()
        await process.wait()
        return took

    async def sandboxed_trio() -> float:
        async with AsyncSandbox() as sandbox, await sandbox.popen(ECHO, stdin=PIPE, stdout=PIPE) as process:
            took = await over_streams(process, trips)
            assert process.stdin is not None
            await process.stdin.aclose()
        return took

    actions: dict[str, measure.Action] = {
        "subprocess": plain,
        "sandbox": sandboxed,
        "trio process": lambda: trio.run(plain_trio),
        "sandbox on trio": lambda: trio.run(sandboxed_trio),
    }
    times = measure.interleave(actions, options.rounds, warm_up=1)
    print(f"## Round trips\n\n{measure.machine()}; {trips} round trips, {options.rounds} rounds\n")
    measure.show_times(times)
    measure.show_bars(
        [
            *measure.ratio("a round trip, to subprocess", times, "sandbox", "subprocess", 1.1),
            *measure.ratio(
                "a round trip on trio, to a trio process", times, "sandbox on trio", "trio process", 1.1
            ),
        ]
    )


if __name__ == "__main__":
    main()
