"""A pool of workers under trio: jobs from a queue, each worker with a sandbox of its own and limits."""

import math
import sys

import trio

from sandboxlib import AsyncSandbox, Limits

WORKERS = 3
JOBS = list(range(1, 13))
SOURCE = "import math, sys; print(math.factorial(int(sys.argv[1])))"


async def work(
    number: int, jobs: trio.MemoryReceiveChannel[int], results: dict[int, tuple[int, int]]
) -> None:
    """Take jobs until there are no more; whatever one does stays in this worker's sandbox."""
    async with AsyncSandbox(memory="128M", pids=16) as sandbox:
        async for job in jobs:
            done = await sandbox.run(
                [sys.executable, "-I", "-c", SOURCE, str(job)],
                text=True,
                limits=Limits(wall_time=60),
                check=True,
            )
            results[job] = (number, int(done.stdout))


async def main() -> None:
    """Hand out the jobs, and check what came back."""
    results: dict[int, tuple[int, int]] = {}
    send, receive = trio.open_memory_channel[int](0)
    async with trio.open_nursery() as nursery:
        for number in range(WORKERS):
            nursery.start_soon(work, number, receive.clone(), results)
        receive.close()
        async with send:
            for job in JOBS:
                await send.send(job)
    assert all(found == math.factorial(job) for job, (_, found) in results.items())
    print(f"{len(results)} jobs done by {len({worker for worker, _ in results.values()})} workers")


trio.run(main)
