"""
Builds `sandboxlib._native`: first the launcher, then the extension that carries it.

Used by setuptools through ``cffi_modules``; nothing here runs after the build.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
FREESTANDING = [
    "-std=c11",
    *WARNINGS[1:],
    "-Os",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-pic",
    "-static",
    "-nostdlib",
    "-nostartfiles",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-s",
]
# With CLONE_VM two processes use one stack in turn: nothing may live below its pointer.
ARCHITECTURE = {"x86_64": ["-mno-red-zone", "-fcf-protection=none"], "aarch64": ["-mno-outline-atomics"]}
# Saves two pages of padding; not every linker knows it.
SMALLER = ["-Wl,-z,noseparate-code", "-Wl,-z,norelro"]


def compiler() -> list[str]:
    """The C compiler, as setuptools would choose it."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def target() -> str:
    """The machine that is built for; ``_PYTHON_HOST_PLATFORM`` names it when cross-compiling."""
    machine = os.environ.get("_PYTHON_HOST_PLATFORM", "").removeprefix("linux-") or platform.machine()
    if machine not in ARCHITECTURE:
        raise SystemExit(f"sandboxlib can be built for x86_64 and aarch64, not for {machine}")
    return machine


def launcher() -> bytes:
    """Compile the launcher and return it as a static ELF program."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "launcher")
        base = [*compiler(), *FREESTANDING, *ARCHITECTURE[target()], str(HERE / "launcher.c"), "-o", str(out)]
        if subprocess.run([*base, *SMALLER], capture_output=True, check=False).returncode:
            subprocess.run(base, check=True)
        return out.read_bytes()


def image_header(program: bytes) -> str:
    """The launcher as a C array."""
    rows = [program[at : at + 16] for at in range(0, len(program), 16)]
    lines = [", ".join(f"0x{byte:02x}" for byte in row) for row in rows]
    return "static const unsigned char sbx_launcher_image[] = {\n\t" + ",\n\t".join(lines) + "\n};\n"


generated = HERE / "generated"
generated.mkdir(exist_ok=True)
(generated / "launcher_image.h").write_text(image_header(launcher()))

ffibuilder = FFI()
ffibuilder.cdef((HERE / "native.cdef.h").read_text())
ffibuilder.set_source(
    "sandboxlib._native",
    (HERE / "native.c").read_text(),
    include_dirs=[str(HERE), str(generated)],
    extra_compile_args=[*WARNINGS, "-O2"],
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
    depends=[str(path) for path in (*HERE.glob("*.h"), *HERE.glob("*.c"))],
)

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(HERE.parent), verbose=True)
