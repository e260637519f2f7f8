"""Limits are what they say, within five in a hundred: measured by what a program inside gets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sandboxlib import CGroup, Mount, Outcome, Sandbox

NEAR = 0.05
MIB = 1 << 20

GROW = """
import sys
kept = []
while True:
    kept.append(bytearray(b"x" * (1 << 18)))
"""
FORK = """
import os, time
number = 0
try:
    while True:
        if not os.fork():
            time.sleep(60)
            os._exit(0)
        number += 1
except OSError:
    print(number)
"""
SPIN = """
import json, sys, time
began, used = time.monotonic(), time.process_time()
while time.monotonic() - began < float(sys.argv[1]):
    pass
print(json.dumps([time.process_time() - used, time.monotonic() - began]))
"""
WRITE = """
import json, mmap, os, sys, time
fd = os.open("/disk/file", os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
block = mmap.mmap(-1, 1 << 16)
# The first of it may be had at once: the kernel counts by slices of time.
for _ in range(16):
    os.write(fd, block)
began = time.monotonic()
for _ in range(16 * 8):
    os.write(fd, block)
print(json.dumps([16 * 8 << 16, time.monotonic() - began]))
"""


@pytest.mark.cgroup("memory")
@pytest.mark.parametrize("size", [48, 96])
def test_memory_ends_where_it_is_said_to(size: int) -> None:
    with Sandbox(cgroup=CGroup(memory_max=size * MIB, memory_swap_max=0)) as sb:
        done = sb.run(["python3", "-I", "-S", "-c", GROW], timeout=300)
        assert done.outcome is Outcome.OUT_OF_MEMORY
        stats = sb.stats().memory
    assert stats is not None
    # memory.peak is told since Linux 5.19, and v1 has always had it.
    if stats.peak is not None:
        assert (1 - NEAR) * size * MIB <= stats.peak <= size * MIB


@pytest.mark.cgroup("pids")
@pytest.mark.parametrize("most", [8, 40])
def test_processes_are_counted_one_by_one(most: int) -> None:
    with Sandbox(pids=most) as sb:
        done = sb.run(["python3", "-I", "-S", "-c", FORK], timeout=300)
    # Pid 1 and the program itself count as well.
    assert int(done.stdout) == most - 2


@pytest.mark.cgroup("cpu")
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_program_gets_the_cpu_that_it_was_given(share: float) -> None:
    measured = []
    # Others may keep it from its share: what it must not have is more, at any time.
    for _ in range(4):
        with Sandbox(cpus=share) as sb:
            done = sb.run(["python3", "-I", "-S", "-c", SPIN, "4"], timeout=300)
        used, took = json.loads(done.stdout)
        measured.append(used / took)
        assert measured[-1] <= share * (1 + NEAR)
        if measured[-1] >= share * (1 - NEAR):
            return
    assert max(measured) >= share * (1 - NEAR), measured


@pytest.mark.lab
@pytest.mark.root
@pytest.mark.cgroup2("io")
@pytest.mark.parametrize("rate", [1, 4])
def test_a_disk_is_as_slow_as_it_was_made(rate: int, tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    tmp_path.chmod(0o777)
    limits = CGroup(io_max=[(name, {"wbps": rate * MIB})])
    with Sandbox(cgroup=limits, mounts=[Mount.bind(tmp_path, "/disk")]) as sb:
        done = sb.run(["python3", "-I", "-S", "-c", WRITE], timeout=300, check=True)
    written, took = json.loads(done.stdout)
    assert (1 - NEAR) * rate * MIB <= written / took <= (1 + NEAR) * rate * MIB
