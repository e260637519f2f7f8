"""What is preloaded into User-mode Linux, so that it boots on a CPU with more state than it knows."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).parents[2] / "tools" / "lab" / "__main__.py"

# A tracer that hands back a part of the state, as User-mode Linux does where the CPU has more than it knows.
TRACER = """
import ctypes, errno, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
TRACEME, PEEKDATA, POKEDATA, GETREGSET, SETREGSET, XSTATE = 0, 2, 5, 0x4204, 0x4205, 0x202
FIRST_AVX, HEADER, AVX = 160, 512, 576

class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]

def ptrace(request, pid, address=0, data=None):
    ctypes.set_errno(0)
    result = libc.ptrace(request, pid, ctypes.c_void_p(address), data)
    # Only -1 says that there is an errno to look at.
    return result, errno.errorcode.get(ctypes.get_errno(), "") if result == -1 else ""

def read():
    state = ctypes.create_string_buffer(1 << 16)
    part = Part(ctypes.addressof(state), len(state))
    assert ptrace(GETREGSET, pid, XSTATE, ctypes.byref(part)) == (0, "")
    return bytearray(state.raw[: part.size])

def write(data):
    state = ctypes.create_string_buffer(bytes(data), len(data))
    return ptrace(SETREGSET, pid, XSTATE, ctypes.byref(Part(ctypes.addressof(state), len(data))))

word = ctypes.c_long(-1)
pid = os.fork()
if not pid:
    ptrace(TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)
os.waitpid(pid, 0)
state = read()
state[HEADER] |= 0b111  # x87, SSE and AVX are in use
state[FIRST_AVX : FIRST_AVX + 16] = b"s" * 16
state[AVX : AVX + 256] = b"a" * 256
print("whole:", *write(state))
print("read back:", read() == state)
part = bytearray(state[: AVX + 64])
part[FIRST_AVX : FIRST_AVX + 16] = b"S" * 16
part[AVX : AVX + 64] = b"A" * 64
print("part:", *write(part))
now = read()
print("new:", now[: len(part)] == part, "rest", now[len(part) :] == state[len(part) :])
strange = bytearray(state)
strange[HEADER + 16] = 1  # reserved
print("strange:", *write(strange))
print("peek:", *ptrace(PEEKDATA, pid, ctypes.addressof(word)))
print("nowhere:", *ptrace(PEEKDATA, pid, 8))
print("poke:", *ptrace(POKEDATA, pid, ctypes.addressof(word), 5))
print("peek again:", *ptrace(PEEKDATA, pid, ctypes.addressof(word)))
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print("nobody:", *ptrace(PEEKDATA, pid, ctypes.addressof(word)))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled as the lab does it."""
    spec = importlib.util.spec_from_file_location("lab", LAB)
    assert spec is not None
    assert spec.loader is not None
    lab = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lab)
    folder = tmp_path_factory.mktemp("lab")
    made: Path = lab.xstate_library(folder)
    assert made == lab.xstate_library(folder)
    assert os.listdir(folder) == [made.name]
    return made


def trace(preload: str) -> dict[str, str]:
    environment = {**os.environ, "LD_PRELOAD": preload}
    command = [sys.executable, "-c", TRACER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.tool("linux.uml")
def test_the_kernel_takes_back_no_part_of_the_state_and_the_library_makes_it_whole(library: Path) -> None:
    without = trace("")
    assert without["part"] == "-1 EFAULT"
    assert without["new"] == "False rest True"
    found = trace(str(library))
    assert found["part"].split() == ["0"]
    assert found["new"] == "True rest True"


@pytest.mark.tool("linux.uml")
def test_all_else_is_as_without_the_library(library: Path) -> None:
    without, found = trace(""), trace(str(library))
    for line in ("part", "new"):
        del without[line], found[line]
    assert found == without
    assert without["strange"].startswith("-1 E")
    assert without["peek"].split() == ["-1"]
    assert without["peek again"].split() == ["5"]
    assert without["nowhere"] == "-1 EIO"
    assert without["nobody"] == "-1 ESRCH"
