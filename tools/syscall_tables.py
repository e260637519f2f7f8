# noqa: INP001 - a script
"""
Write sandboxlib/seccomp/tables/*.py: the names and numbers of the system calls, by ABI.

Run it from the repository's root with a folder in which these packages of Debian 12 have been
unpacked by ``dpkg -x`` (``apt-get download`` fetches them; no newer kernel has to run)::

    linux-headers-6.12*-cloud-amd64     x86_64, i386 and x32 as the kernel's own build wrote them
    linux-libc-dev-arm64-cross          aarch64
    linux-libc-dev-armhf-cross          arm (EABI)

    python tools/syscall_tables.py FOLDER

The two cross packages are older. That is no loss: since Linux 5.1 a new call has the same number
everywhere (the kernel's scripts/syscall.tbl), so what they lack is taken from x86_64. tests/oracle
compares every name with what libseccomp says about it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

#: From this number on all architectures agree (Linux 5.1, commit 39036cd27273).
SHARED = 424

#: Calls that are newer than the headers: Linux 6.13, 6.15, 6.17 and 6.19.
NEWER = {
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
    "listns": 470,
}

#: Newer, and of x86_64 alone: Linux 6.18.
NEWER_X86_64 = {"uprobe": 336}

#: Shared numbers that an ABI leaves out: arm has no secret memory (arch/arm/tools/syscall.tbl).
ABSENT = {"arm": {"memfd_secret"}}

X32_BIT = 0x40000000


def defines(header: Path, include: Path | None = None) -> dict[str, int]:
    """Return name -> number of every ``__NR_name`` that the C preprocessor sees in *header*."""
    command = ["cc", "-E", "-dM", "-nostdinc", "-undef", "-D__ARM_EABI__"]
    command += ["-I", str(include)] if include else []
    text = subprocess.run([*command, str(header)], check=True, capture_output=True, text=True).stdout
    macros = dict(re.findall(r"^#define (\w+) (.+)$", text, re.MULTILINE))

    def value(expression: str) -> int:
        names = re.sub(r"\b[A-Za-z_]\w*", lambda match: str(value(macros[match[0]])), expression)
        if not re.fullmatch(r"[\s\d()+xa-fA-F]+", names):
            raise SystemExit(f"{header}: cannot read {expression!r}")
        return sum(int(number, 0) for number in re.findall(r"0x[0-9a-fA-F]+|\d+", names))

    calls = {}
    for macro, expression in macros.items():
        match = re.fullmatch(r"__(?:ARM_)?NR_(?!SYSCALL_|OABI_|BASE)(\w+)", macro)
        if match and match[1] not in {"syscalls", "arch_specific_syscall"}:
            calls[match[1]] = value(expression)
    return calls


def compact(calls: dict[str, int]) -> list[str]:
    """Return lines of a number followed by the names of that call and of those right after it."""
    names: dict[int, list[str]] = {}
    for name, number in calls.items():
        names.setdefault(number, []).append(name)
    lines: list[list[str]] = []
    following = -1
    for number in sorted(names):
        # An alias is a second line for the same number: a line is a run without branches.
        for index, name in enumerate(sorted(names[number])):
            if number != following or index:
                lines.append([str(number)])
            lines[-1].append(name)
            following = number + 1
    return [" ".join(line) for line in lines]


def write(abi: str, calls: dict[str, int], folder: Path) -> None:
    """Write one table as a Python module."""
    lines = []
    for line in compact(calls):
        lines += textwrap.wrap(line, 108, subsequent_indent="  ", break_on_hyphens=False)
    text = f'"""The system calls of the {abi} ABI; written by tools/syscall_tables.py."""\n\n'
    text += 'TABLE = """\n' + "\n".join(lines) + '\n"""\n'
    (folder / f"{abi}.py").write_text(text)


def main(root: Path) -> None:
    """Read the headers below *root* and write the five tables."""
    (x86,) = root.glob("**/linux-headers-*/arch/x86/include/generated/uapi/asm")
    tables = {
        "x86_64": defines(x86 / "unistd_64.h") | NEWER | NEWER_X86_64,
        "i386": defines(x86 / "unistd_32.h") | NEWER,
        "x32": {
            name: number - X32_BIT
            for name, number in (defines_x32(x86 / "unistd_x32.h") | shifted(NEWER)).items()
        },
    }
    shared = {name: number for name, number in tables["x86_64"].items() if SHARED <= number < 512}
    for abi, machine in (("aarch64", "aarch64-linux-gnu"), ("arm", "arm-linux-gnueabihf")):
        (include,) = root.glob(f"**/{machine}/include")
        tables[abi] = defines(include / "asm" / "unistd.h", include) | {
            name: number for name, number in shared.items() if name not in ABSENT.get(abi, ())
        }
    folder = Path("sandboxlib/seccomp/tables")
    for abi, calls in tables.items():
        write(abi, calls, folder)


def defines_x32(header: Path) -> dict[str, int]:
    """Return the calls of x32, whose header writes them as ``(__X32_SYSCALL_BIT + n)``."""
    text = header.read_text().replace("__X32_SYSCALL_BIT", str(X32_BIT))
    return {
        name: int(bit) + int(number)
        for name, bit, number in re.findall(r"#define __NR_(\w+) \((\d+) \+ (\d+)\)", text)
    }


def shifted(calls: dict[str, int]) -> dict[str, int]:
    """Return *calls* with the bit that marks an x32 number."""
    return {name: number + X32_BIT for name, number in calls.items()}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
