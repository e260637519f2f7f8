"""A limit on processes holds for the program's own commands, on both versions of cgroups"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio

from sandboxlib import AsyncSandbox
from sandboxlib.blocking import PIPE, Process, Sandbox
from sandboxlib.errors import KernelError

pytestmark = [pytest.mark.userns, pytest.mark.cgroup("pids")]

#: Pid 1 counts as well.
LIMIT = 10


def refused(error: KernelError) -> bool:
    return error.errno == errno.EAGAIN and "limit" in str(error)


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Those that were started, to be let go of in the end."""
    found: list[Process] = []
    yield found
    for process in found:
        process.wait()
        process._process.release()


def test_as_many_commands_run_as_the_limit_lets(processes: list[Process]) -> None:
    with Sandbox(pids=LIMIT) as sandbox:
        for _ in range(LIMIT - 1):
            processes.append(sandbox.popen(["sleep", "1000"]))  # noqa: PERF401 - each is to be let go of
        for _ in range(5):
            with pytest.raises(KernelError) as caught:
                sandbox.popen(["sleep", "1000"])
            assert refused(caught.value)
        with pytest.raises(KernelError):
            sandbox.popen(["sleep", "1000"], tty=True)
        assert len(sandbox.processes()) == LIMIT - 1
        pids = sandbox.stats().pids
        assert pids is not None
        assert pids.current == LIMIT
        # One that ends makes room for one.
        processes[0].kill()
        processes[0].wait()
        assert sandbox.run(["echo", "on"]).stdout == b"on\n"


FILL = """
import os, time
made = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(1000)
    except OSError as error:
        print(made, error.errno, flush=True)
        break
    made += 1
time.sleep(1000)
"""


def test_processes_inside_leave_no_room(processes: list[Process]) -> None:
    with Sandbox(pids=LIMIT) as sandbox:
        processes.append(sandbox.popen(["python3", "-c", FILL], stdout=PIPE))
        assert processes[0].stdout.readline() == f"{LIMIT - 2} {errno.EAGAIN}\n".encode()
        for _ in range(LIMIT):
            with pytest.raises(KernelError) as caught:
                sandbox.run(["true"])
            assert refused(caught.value)
        pids = sandbox.stats().pids
        assert pids is not None
        assert pids.current == LIMIT
        processes[0].stdout.close()
        processes[0].kill()


def test_a_limit_that_is_changed_counts_at_once(processes: list[Process]) -> None:
    with Sandbox(pids=3) as sandbox:
        processes += [sandbox.popen(["sleep", "1000"]) for _ in range(2)]
        with pytest.raises(KernelError):
            sandbox.run(["true"])
        sandbox.update(pids=4)
        sandbox.run(["true"])
        processes.append(sandbox.popen(["sleep", "1000"]))
        with pytest.raises(KernelError):
            sandbox.run(["true"])
        # Below what there is: nobody is killed for it, and nobody comes in.
        sandbox.update(pids=2)
        with pytest.raises(KernelError):
            sandbox.run(["true"])
        sandbox.update(pids="max")
        sandbox.run(["true"])


def test_of_many_threads_at_once_exactly_as_many_get_in(processes: list[Process]) -> None:
    with Sandbox(pids=LIMIT) as sandbox:
        errors: list[KernelError] = []
        gate = threading.Barrier(3 * LIMIT)

        def start() -> None:
            gate.wait()
            try:
                processes.append(sandbox.popen(["sleep", "1000"]))
            except KernelError as error:
                errors.append(error)

        threads = [threading.Thread(target=start) for _ in range(3 * LIMIT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # One that was refused may not have been reaped yet when the next one looks, so fewer may get in by
        # one or two; never more.
        assert LIMIT - 3 <= len(processes) <= LIMIT - 1
        assert all(map(refused, errors))
        pids = sandbox.stats().pids
        assert pids is not None
        assert pids.current <= LIMIT


async def test_of_many_tasks_at_once_never_more_get_in() -> None:
    async with AsyncSandbox(pids=LIMIT) as sandbox, trio.open_nursery() as nursery:
        found, refusals, all_answered = 0, 0, trio.Event()

        async def start() -> None:
            nonlocal found, refusals
            process = None
            with suppress(KernelError):
                process = await sandbox.popen(["sleep", "1000"])
            found, refusals = found + (process is not None), refusals + (process is None)
            if found + refusals == 3 * LIMIT:
                all_answered.set()
            if process is not None:
                await process.wait()

        for _ in range(3 * LIMIT):
            nursery.start_soon(start)
        await all_answered.wait()
        assert LIMIT - 3 <= found <= LIMIT - 1
        pids = (await sandbox.stats()).pids
        assert pids is not None
        assert pids.current <= LIMIT
        await sandbox.close()
