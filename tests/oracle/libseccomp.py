"""
libseccomp as an oracle: the same rules, compiled by somebody else.

Spec: seccomp_init(3), seccomp_rule_add(3), seccomp_export_bpf(3); libseccomp 2.5.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from typing import Self

#: libseccomp's own names for the ABIs: AUDIT_ARCH_* except for x32, which the kernel has no value for.
TOKEN = {
    "x86_64": 0xC000003E,
    "i386": 0x40000003,
    "x32": 0x4000003E,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
}
OPS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}

KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000
_ATTR_BAD_ARCH = 2
_ATTR_OPTIMIZE = 8


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


#: For ``pytest.mark.library``.
SONAME = "libseccomp.so.2"


def load() -> ctypes.CDLL:
    """Return the library with its functions typed."""
    library = ctypes.CDLL(SONAME)
    context, word = ctypes.c_void_p, ctypes.c_uint32
    library.seccomp_init.restype = context
    library.seccomp_init.argtypes = [word]
    library.seccomp_release.argtypes = [context]
    library.seccomp_arch_add.argtypes = [context, word]
    library.seccomp_arch_remove.argtypes = [context, word]
    library.seccomp_attr_set.argtypes = [context, ctypes.c_int, word]
    library.seccomp_rule_add_array.argtypes = [
        context,
        word,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    ]
    library.seccomp_export_bpf.argtypes = [context, ctypes.c_int]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_syscall_resolve_name_arch.argtypes = [word, ctypes.c_char_p]
    library.seccomp_syscall_resolve_num_arch.argtypes = [word, ctypes.c_int]
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    return library


class Filter:
    """
    A filter that libseccomp builds; close it with `with`.

    Args:
        library: What `load` returned.
        abis: The ABIs it covers, the machine's own first.
        default: The answer, as the kernel's 32-bit number, for what no rule names.
    """

    def __init__(self, library: ctypes.CDLL, abis: Sequence[str], default: int) -> None:
        self._library = library
        self._context = library.seccomp_init(default)
        assert self._context, "seccomp_init"
        self.default = default
        self._check(library.seccomp_attr_set(self._context, _ATTR_BAD_ARCH, KILL_PROCESS), "bad arch")
        # The first ABI is added before this machine's is taken away: a filter is never without one.
        for abi in abis:
            self._check(library.seccomp_arch_add(self._context, TOKEN[abi]), abi, errno.EEXIST)
        for abi, token in TOKEN.items():
            if abi not in abis:
                self._check(library.seccomp_arch_remove(self._context, token), abi, errno.EEXIST)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.seccomp_release(self._context)

    def knows(self, name: str) -> int | None:
        """Return the number of a call on this machine, negative for what other machines have, or None."""
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        return None if number == -1 else int(number)

    def has(self, abi: str, name: str) -> bool:
        """
        Return whether a call has a number in an ABI.

        On i386 the calls that socketcall and ipc multiplex have negative ones, besides their own.
        """
        number = self._library.seccomp_syscall_resolve_name_arch(TOKEN[abi], name.encode())
        return bool(number >= 0 or -300 < number < -100) or (abi == "x86_64" and number == -1)

    def rule(self, action: int, number: int, args: Sequence[tuple[int, str, int, int]] = ()) -> None:
        """
        Add a rule: an answer, a number as `knows` returns it, and comparisons that all must hold.

        Each comparison is (index, op, first, second); the second is used by MASKED_EQ alone, whose
        first is the mask. The library translates the number for other ABIs.
        """
        # libseccomp refuses a rule that says what the default says; it changes nothing.
        if action == self.default:
            return
        array = (_Comparison * len(args))(*[_Comparison(i, OPS[op], a, b) for i, op, a, b in args])
        # A rule that is there already is refused, too.
        status = self._library.seccomp_rule_add_array(self._context, action, number, len(args), array)
        self._check(status, f"rule {number} {args}", errno.EEXIST)

    def program(self, *, optimize: bool = False) -> bytes:
        """Return the program as the kernel would get it."""
        if optimize:
            self._check(self._library.seccomp_attr_set(self._context, _ATTR_OPTIMIZE, 2), "optimize")
        with open(os.memfd_create("filter"), "w+b") as file:
            self._check(self._library.seccomp_export_bpf(self._context, file.fileno()), "export")
            file.seek(0)
            return file.read()

    @staticmethod
    def _check(status: int, what: str, fine: int = 0) -> None:
        assert status == 0 or -status == fine, f"{what}: {os.strerror(-status)}"
