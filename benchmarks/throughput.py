"""Bytes a second through a command's stdout, kept and streamed, beside `subprocess`."""

from __future__ import annotations

import argparse
import subprocess
from typing import IO

import trio

from benchmarks import measure
from benchmarks.measure import Bar
from sandboxlib import PIPE, AsyncSandbox, Sandbox

CHUNK = 1 << 16


def drain(stream: IO[bytes] | None) -> int:
    """Read to the end; how many bytes."""
    assert stream is not None
    total = 0
    while chunk := stream.read(CHUNK):
        total += len(chunk)
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=256)
    options = parser.parse_args()
    size = options.megabytes << 20
    command = ["head", "-c", str(size), "/dev/zero"]
    with Sandbox(memory="4G") as sandbox:

        def kept_plainly() -> None:
            assert len(subprocess.run(command, capture_output=True, check=True).stdout) == size

        def kept() -> None:
            assert len(sandbox.run(command, max_output=2 * size, check=True).stdout) == size

        def streamed_plainly() -> None:
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                assert drain(process.stdout) == size

        def streamed() -> None:
            with sandbox.popen(command, stdout=PIPE) as process:
                assert drain(process.stdout) == size

        async def kept_on_trio() -> None:
            async with AsyncSandbox(memory="4G") as other:
                done = await other.run(command, max_output=2 * size, check=True)
                assert len(done.stdout) == size

        async def streamed_on_trio() -> None:
            async with AsyncSandbox(memory="4G") as other, await other.popen(command, stdout=PIPE) as process:
                assert process.stdout is not None
                total = 0
                while chunk := await process.stdout.receive_some():
                    total += len(chunk)
                assert total == size

        async def streamed_plainly_on_trio() -> None:
            process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            total = 0
            while chunk := await process.stdout.receive_some():
                total += len(chunk)
            assert total == size
            await process.stdout.aclose()
            await process.wait()

        actions: dict[str, measure.Action] = {
            "subprocess.run, kept": kept_plainly,
            "sb.run, kept": kept,
            "subprocess.Popen, streamed": streamed_plainly,
            "sb.popen, streamed": streamed,
            "trio process, streamed": lambda: trio.run(streamed_plainly_on_trio),
            "run on trio, with its sandbox": lambda: trio.run(kept_on_trio),
            "popen on trio, with its sandbox": lambda: trio.run(streamed_on_trio),
        }
        times = measure.interleave(actions, options.rounds, warm_up=1)
    print(f"## Bulk output\n\n{measure.machine()}; {options.megabytes} MiB, {options.rounds} rounds\n")
    measure.show_times(times)
    measure.show_bars(
        [
            Bar(f"bytes a second, {way}", times[plain].median / times[own].median, 0.9, at_least=True)
            for way, own, plain in (
                ("kept", "sb.run, kept", "subprocess.run, kept"),
                ("streamed", "sb.popen, streamed", "subprocess.Popen, streamed"),
                ("kept, on trio", "run on trio, with its sandbox", "subprocess.run, kept"),
                ("streamed, on trio", "popen on trio, with its sandbox", "trio process, streamed"),
            )
        ]
    )


if __name__ == "__main__":
    main()
