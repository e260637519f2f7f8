"""The kernel's numbers in plan/flags.py are those of the kernel's own headers."""

from __future__ import annotations

import resource
import subprocess

import pytest

from sandboxlib.namespace import KINDS
from sandboxlib.plan import flags
from sandboxlib.plan.flags import NAMESPACES, RLIMITS, Named

HEADERS = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/fs.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <linux/sockios.h>
#include <sched.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#define SHOW(name) printf("%s %llu\\n", #name, (unsigned long long)(name));
"""
# The C library's own header of the mount API cannot stand beside the kernel's.
LIBC_HEADERS = "#include <stdio.h>\n#include <sys/mount.h>\n" + HEADERS.splitlines(keepends=True)[-1]
FROM_LIBC = ("MNT_DETACH",)
NAMES = {name: value for name, value in vars(flags).items() if isinstance(value, Named) and name != "NOTHING"}
#: Several flags under one name of ours.
TOGETHER = {
    "SECUREBITS_LOCKED": (
        "SECBIT_NOROOT|SECBIT_NOROOT_LOCKED|SECBIT_NO_SETUID_FIXUP|SECBIT_NO_SETUID_FIXUP_LOCKED"
        "|SECBIT_KEEP_CAPS_LOCKED|SECBIT_NO_CAP_AMBIENT_RAISE|SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED"
    )
}
MASK = (1 << 64) - 1


@pytest.fixture(scope="module", name="compiled")
def compiled_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Each name's number, from the compiler."""
    expressions = [TOGETHER.get(name, name) for name in NAMES] + [
        f"RLIMIT_{name.upper()}" for name in RLIMITS
    ]
    found: dict[str, int] = {}
    for headers, wanted in (
        (HEADERS, [name for name in expressions if name not in FROM_LIBC]),
        (LIBC_HEADERS, FROM_LIBC),
    ):
        source = tmp_path_factory.mktemp("flags") / "flags.c"
        shown = "\n".join(f"SHOW({expression})" for expression in wanted)
        source.write_text(f"{headers}int main(void) {{\n{shown}\nreturn 0; }}\n")
        program = source.with_suffix("")
        subprocess.run(["gcc", "-o", program, source], check=True)
        lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
        found |= {name: int(number) for name, _, number in (line.rpartition(" ") for line in lines)}
    return found


@pytest.mark.tool("gcc")
@pytest.mark.parametrize("name", NAMES)
def test_a_flag_has_the_headers_number(name: str, compiled: dict[str, int]) -> None:
    assert NAMES[name] & MASK == compiled[TOGETHER.get(name, name)] & MASK


@pytest.mark.parametrize("name", NAMES.keys() - TOGETHER.keys())
def test_a_flag_prints_as_its_name(name: str) -> None:
    assert str(NAMES[name]) == name


@pytest.mark.tool("gcc")
@pytest.mark.parametrize("name", RLIMITS)
def test_a_resource_has_the_headers_number(name: str, compiled: dict[str, int]) -> None:
    assert RLIMITS[name] == compiled[f"RLIMIT_{name.upper()}"]
    # Python was compiled with some of them.
    assert getattr(resource, f"RLIMIT_{name.upper()}", RLIMITS[name]) == RLIMITS[name]


def test_every_kind_of_namespace_has_its_flag_and_its_file() -> None:
    assert {kind: file for kind, (_, file) in NAMESPACES.items()} == dict(KINDS)
    assert [flag for flag, _ in NAMESPACES.values() if not str(flag).startswith("CLONE_NEW")] == []
    assert len({int(flag) for flag, _ in NAMESPACES.values()}) == len(NAMESPACES)


def test_flags_are_joined_by_number_and_by_name() -> None:
    joined = flags.O_PATH | flags.O_CLOEXEC
    assert joined == int(flags.O_PATH) | int(flags.O_CLOEXEC)
    assert str(joined) == "O_PATH|O_CLOEXEC"
    assert str(flags.NOTHING | flags.O_PATH) == str(flags.O_PATH | flags.NOTHING) == "O_PATH"
    assert str(flags.NOTHING) == "0"
    assert str(flags.O_PATH | 0x40) == "O_PATH|0x40"
