"""The launcher that the extension carries: small, static, and with nothing in it that came from elsewhere."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from sandboxlib._native import lib
from sandboxlib.errors import KernelError
from sandboxlib.kernel import launcher
from sandboxlib.kernel.descriptor import Fd

NATIVE = Path(__file__).parents[2] / "_native"
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_TLS, PT_GNU_STACK = 1, 2, 3, 7, 0x6474E551
EXECUTABLE, WRITABLE = 1, 2


class Segment(NamedTuple):
    kind: int
    flags: int
    file_size: int
    memory_size: int


@pytest.fixture(scope="module", name="image")
def image_fixture() -> bytes:
    fd = Fd()
    assert lib.sbx_launcher_open(fd.cell) >= 0
    with open("<launcher>", "rb", opener=fd.opener) as file:
        file.seek(0)
        return file.read()


@pytest.fixture(scope="module", name="segments")
def segments_fixture(image: bytes) -> list[Segment]:
    (offset,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    found = []
    for i in range(count):
        kind, flags, _, _, _, file_size, memory_size, _ = struct.unpack_from(
            "<IIQQQQQQ", image, offset + i * size
        )
        found.append(Segment(kind, flags, file_size, memory_size))
    return found


def test_it_is_an_executable_for_this_machine(image: bytes) -> None:
    assert image[:6] == b"\x7fELF\x02\x01"
    kind, machine = struct.unpack_from("<HH", image, 16)
    assert kind == 2, "neither position-independent nor a library: it needs no relocation"
    assert machine == {"x86_64": 62, "aarch64": 183}[os.uname().machine]


def test_it_is_smaller_than_two_pages(image: bytes) -> None:
    assert len(image) < 8192


def test_it_needs_no_interpreter_and_no_library(segments: list[Segment]) -> None:
    assert not {PT_INTERP, PT_DYNAMIC, PT_TLS} & {segment.kind for segment in segments}


def test_nothing_of_it_is_writable_and_executable(segments: list[Segment]) -> None:
    loaded = [segment for segment in segments if segment.kind in (PT_LOAD, PT_GNU_STACK)]
    assert loaded
    assert [segment for segment in loaded if segment.flags & EXECUTABLE and segment.flags & WRITABLE] == []


def test_its_stack_is_not_executable(segments: list[Segment]) -> None:
    # Without this segment the kernel would make it so: elf(5), PT_GNU_STACK.
    assert [segment.flags & EXECUTABLE for segment in segments if segment.kind == PT_GNU_STACK] == [0]


def test_it_takes_less_memory_than_a_hundred_kilobytes(segments: list[Segment]) -> None:
    assert sum(segment.memory_size for segment in segments if segment.kind == PT_LOAD) < 100_000


def test_nothing_of_the_machine_that_built_it_is_in_it(image: bytes) -> None:
    texts = re.findall(rb"[\x20-\x7e]{6,}", image)
    assert [text for text in texts if b"/home" in text or b"/usr" in text or b"/tmp" in text] == []


def test_nobody_can_change_it() -> None:
    opened = Fd()
    lib.sbx_launcher_open(opened.cell)
    with opened as fd:
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals == seals
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"\x90", 0)


@pytest.mark.tool("gcc")
@pytest.mark.parametrize("source, mode", [("launcher.c", "-ffreestanding"), ("native.c", "-fhosted")])
def test_the_sources_compile_without_a_warning(source: str, mode: str, tmp_path: Path) -> None:
    header = "static const unsigned char sbx_launcher_image[] = { 0 };\n"
    (tmp_path / "launcher_image.h").write_text(header)
    text = (NATIVE / source).read_text()
    if source == "native.c":
        # What cffi adds is what uses its functions.
        names = re.findall(r"^static \w+ (sbx_\w+)\(", text, re.MULTILINE)
        text += "".join(
            f"void *use_{name}(void);\nvoid *use_{name}(void) {{ return (void *){name}; }}\n"
            for name in names
        )
    (tmp_path / source).write_text(text)
    flags = ["-Wall", "-Wextra", "-Wshadow", "-Wvla", "-Werror", "-O2", mode, f"-I{NATIVE}", f"-I{tmp_path}"]
    subprocess.run(["gcc", "-std=gnu11", *flags, "-c", source, "-o", os.devnull], cwd=tmp_path, check=True)


@pytest.mark.leaks
@pytest.mark.parametrize(
    "code", [b"\0" * 72, b"\1", b"\xff" * 720], ids=["no operation", "less than a header", "nonsense"]
)
def test_it_refuses_a_malformed_program_and_says_so(code: bytes) -> None:
    launch = launcher.Launch()
    launch.begin(code)
    report = launch.hear()
    assert report is not None
    assert (report.kind, report.error) == (launcher.FAILED, 22)
    assert launch.hear() is None
    os.waitid(os.P_PID, launch.launcher, os.WEXITED | os.WNOWAIT)
    assert launch.reap_launcher()
    assert launch.pid == 0
    launch.hang_up()


@pytest.mark.leaks
def test_a_program_that_is_too_long_is_refused_before_anything_starts() -> None:
    with pytest.raises(KernelError) as caught:
        launcher.Launch().begin(bytes((16 << 20) + 1))
    assert caught.value.errno == 7
