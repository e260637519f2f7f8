"""The list of what runs costs the program little, whatever runs: long lines, many, and those who fork on"""

from __future__ import annotations

import pytest
from kernel.probe.outside import WHO, program

from sandboxlib import Security
from sandboxlib.blocking import PIPE, Sandbox
from sandboxlib.errors import SpecError, TooLargeError

pytestmark = [pytest.mark.userns, pytest.mark.timeout(180)]

#: Says that its arguments are a gigabyte of nothing.
LARGE = """
import ctypes, mmap, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_size_t]
size = 1 << 30
at = libc.mmap(None, size, 1, 0x4022, -1, 0)  # PROT_READ; MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
with open("/proc/self/stat") as file:
    fields = [0, 0, 0, *file.read().rpartition(")")[2].split()]
of = lambda *numbers: [int(fields[number]) for number in numbers]
values = [*of(26, 27, 45, 46, 47), libc.sbrk(0) or of(47)[0], *of(28), at, at + size, *of(50, 51)]
values[5] = values[4]
struct = (ctypes.c_uint64 * 13)(*values, 0, 0xFFFFFFFF << 32)
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
rv = libc.prctl(35, 14, ctypes.addressof(struct), ctypes.sizeof(struct), 0)
print(rv, ctypes.get_errno(), flush=True)
time.sleep(1000)
"""

#: How long a call takes, and how many megabytes the program has grown by it.
COST = """
import resource, time
from sandboxlib.blocking import PIPE, Sandbox
from sandboxlib.errors import KernelError, TimeoutExpired
def cost(function):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    found = function()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return found, time.monotonic() - began, grown >> 10
"""


@WHO
@pytest.mark.checkpoint
def test_a_command_line_of_a_gigabyte_is_cut(who: str) -> None:
    # By default nobody can say so.
    script = (
        COST
        + """
with make("security=Security(seccomp='unconfined')") as sandbox:
    process = sandbox.popen(["python3", "-I", "-S", "-c", facts["large"]], stdout=PIPE)
    said = process.stdout.readline().decode()
    found, seconds, grown = cost(sandbox.processes)
    line = sum(map(len, found[0].command))
    short = sandbox.processes(max_size=100)
    process.kill()
    process.wait()
    process.stdout.close()
print(json.dumps([said, seconds, grown, line, len(short[0].command)]))
"""
    )
    said, seconds, grown, line, short = program(who, script, large=LARGE)
    assert said == "0 0\n"
    assert seconds < 5
    assert grown < 50
    # Of NUL bytes only: each ends an argument of no bytes.
    assert line == 0
    assert short == 100


@WHO
@pytest.mark.hardware
def test_many_long_lines_are_cut_more(who: str) -> None:
    script = (
        COST
        + """
SOURCE = '''
import os, subprocess, sys, time
line = ["x" * 120000] * 10
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        os.execv("/bin/sh", ["sh", "-c", "read x", *line])
print("on", flush=True)
time.sleep(1000)
'''
with Sandbox() as sandbox:
    process = sandbox.popen(["python3", "-I", "-S", "-c", SOURCE, "100"], stdin=PIPE, stdout=PIPE)
    process.stdout.readline()
    for _ in range(500):
        time.sleep(0.02)
        if sum(info.command[0] == "sh" for info in sandbox.processes(max_size=10)) == 100:
            break
    found, seconds, grown = cost(lambda: sandbox.processes(max_size="1M"))
    lengths = [sum(map(len, info.command)) for info in found if info.command[0] == "sh"]
    whole = sandbox.processes(max_size="2M")
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
print(json.dumps([seconds, grown, len(lengths), max(lengths), sum(lengths)]))
"""
    )
    seconds, grown, number, longest, together = program(who, script, patience=120)
    assert number == 100
    assert longest <= 1 << 20
    assert together > 64 << 20 or longest >= 1_000_000
    assert seconds < 15
    assert grown < 600


def test_more_than_there_may_be_is_told() -> None:
    with Sandbox() as sandbox:
        processes = [sandbox.popen(["sleep", "1000"]) for _ in range(4)]
        assert len(sandbox.processes(max_entries=5)) == 4
        with pytest.raises(TooLargeError, match=r"more than 3 entries.*max_entries="):
            sandbox.processes(max_entries=3)
        for process in processes:
            process.kill()
            process.wait()
            process._process.release()


@pytest.mark.parametrize(
    "arguments",
    [{"max_size": -1}, {"max_size": "x"}, {"max_entries": 1.5}, {"timeout": -1}, {"timeout": "1"}],
)
def test_bounds_that_make_no_sense_are_refused(arguments: dict[str, object]) -> None:
    with Sandbox() as sandbox, pytest.raises(SpecError, match=next(iter(arguments))):
        sandbox.processes(**arguments)  # type: ignore[arg-type]


@pytest.mark.root
def test_as_many_groups_as_may_be_hide_no_number() -> None:
    source = """
import os, time
os.setgroups(range(1000, 9000))
print(os.getpid(), flush=True)
time.sleep(1000)
"""
    with Sandbox(security=Security(capabilities=["CAP_SETGID"])) as sandbox:
        process = sandbox.popen(["python3", "-I", "-S", "-c", source], stdout=PIPE)
        inside = int(process.stdout.readline())
        (info,) = sandbox.processes()
        assert (info.pid, info.host_pid) == (inside, process.pid)
        process.kill()
        process.wait()
        process.stdout.close()
        process._process.release()


#: As many as may be, all busy; each makes room for another one.
BOMB = """
import os
os.write(1, b"r")
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            for _ in range(20000):
                pass
            if os.fork():
                os._exit(0)
    except OSError:
        pass
"""


@WHO
@pytest.mark.hardware
def test_a_fork_bomb_holds_neither_the_list_nor_the_loop(who: str) -> None:
    script = (
        COST
        + """
import trio
from sandboxlib import AsyncSandbox, Security
gaps = []
async def watch():
    while True:
        began = time.monotonic()
        await trio.sleep(0.05)
        gaps.append(time.monotonic() - began)
async def main():
    async with trio.open_nursery() as nursery:
        # Without a cgroup it is RLIMIT_NPROC that bounds it.
        bound = {"pids": 60} if not os.getuid() else {"security": Security(rlimits={"nproc": 60})}
        async with AsyncSandbox(**bound) as sandbox:
            process = await sandbox.popen(["python3", "-I", "-S", "-c", facts["bomb"]], stdout=PIPE)
            await process.stdout.receive_some()
            await trio.sleep(0.5)
            nursery.start_soon(watch)
            taken = []
            # Without one, as root alone: it takes ten.
            for seconds in (2,) if os.getuid() else (2, None):
                began = time.monotonic()
                try:
                    taken.append(len(await sandbox.processes(timeout=seconds)))
                except (KernelError, TimeoutExpired) as error:
                    taken.append(type(error).__name__)
                taken.append(time.monotonic() - began)
            process.kill()
            await process.stdout.aclose()
            process._process.release()
        nursery.cancel_scope.cancel()
    return taken, max(gaps)
print(json.dumps(trio.run(main)))
"""
    )
    taken, gap = program(who, script, patience=120, bomb=BOMB)
    # However slow the machine: far from the minute that it was.
    assert all(seconds < 25 for seconds in taken[1::2])
    assert gap < 5
