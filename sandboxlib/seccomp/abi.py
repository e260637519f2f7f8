"""
The calling conventions (ABIs) that a seccomp filter can meet, and their system calls.

An x86_64 kernel takes calls of three ABIs from any program, whatever it was built for: its own, i386
(``int 0x80``) and x32 (a bit in the number). An aarch64 kernel takes its own and arm. A filter that
looks at the number alone is fooled by the others: the same number is another call there.

Kernel: seccomp(2), "Caveats"; linux/audit.h.
"""

from __future__ import annotations

import functools
import importlib
from typing import NamedTuple

from sandboxlib.errors import UnsupportedError

#: The bit that marks an x32 number (asm/unistd.h); x32 has x86_64's audit number.
X32_BIT = 0x40000000

#: arm has a few calls of its own from here on (arch/arm/include/uapi/asm/unistd.h); they are not
#: newer than the others, so they say nothing about how much a profile's author knew.
ARM_PRIVATE = 0x0F0000


class Abi(NamedTuple):
    """
    One calling convention.

    Attributes:
        name: Our name for it, and the name of its table.
        audit: What the kernel puts into ``seccomp_data.arch``.
        wide: Whether arguments are compared as 64 bits. x32 is compared as 32, as libseccomp does.
        offset: What is added to the table's numbers.
    """

    name: str
    audit: int
    wide: bool
    offset: int = 0


ABIS = {
    "x86_64": Abi("x86_64", 0xC000003E, wide=True),
    "i386": Abi("i386", 0x40000003, wide=False),
    "x32": Abi("x32", 0xC000003E, wide=False, offset=X32_BIT),
    "aarch64": Abi("aarch64", 0xC00000B7, wide=True),
    "arm": Abi("arm", 0x40000028, wide=False),
}

#: The ABIs besides its own that a machine's kernel takes; each is opted in by name.
FOREIGN = {"x86_64": ("x32", "i386"), "aarch64": ("arm",)}


def covered(arch: str, opted_in: frozenset[str]) -> tuple[Abi, ...]:
    """
    Return the ABIs that a filter on machine *arch* answers for, the machine's own first.

    Raises:
        UnsupportedError: There are no tables for this machine.
    """
    if arch not in FOREIGN:
        raise UnsupportedError(
            f"a seccomp filter on {arch}",
            " or ".join(FOREIGN),
            "give security=Security(seccomp='unconfined')",
        )
    return (ABIS[arch], *(ABIS[name] for name in FOREIGN[arch] if name in opted_in))


@functools.cache
def table(name: str) -> dict[str, int]:
    """Return name -> number (without `Abi.offset`) of every system call of an ABI, up to Linux 6.19."""
    text: str = importlib.import_module(f"sandboxlib.seccomp.tables.{name}").TABLE
    calls = {}
    number = 0
    for word in text.split():
        if word[0].isdigit():
            number = int(word)
        else:
            calls[word] = number
            number += 1
    return calls
