"""
A classic BPF machine for seccomp, written from the kernel's documentation and nothing of ours.

It runs only the instructions that seccomp takes and refuses any other, a jump out of the program
and a program that ends without an answer, as the kernel's checker does.

Kernel: Documentation/networking/filter.rst; seccomp(2), struct seccomp_data.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

LIMIT = 4096


class Machine:
    """One filter program, unpacked once and run often."""

    def __init__(self, program: bytes) -> None:
        assert len(program) % 8 == 0, "a program is whole instructions of 8 bytes"
        self.code: list[tuple[int, int, int, int]] = list(struct.iter_unpack("<HBBI", program))
        assert 0 < len(self.code) <= LIMIT, f"{len(self.code)} instructions"
        for position, (op, jt, jf, k) in enumerate(self.code):
            targets = [k] if op == 0x05 else [jt, jf] if op & 0x07 == 0x05 else [0]
            if op != 0x06:
                assert all(position + 1 + t < len(self.code) for t in targets), "jumps out of the program"
        self.steps = 0

    def run(self, audit_arch: int, number: int, args: Sequence[int] = ()) -> int:
        """Return the 32-bit answer for one call; `steps` counts instructions over all runs."""
        values = [value & 0xFFFFFFFFFFFFFFFF for value in [*args, 0, 0, 0, 0, 0, 0][:6]]
        data = struct.unpack("<16I", struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit_arch, 0, *values))
        position = accumulator = 0
        while True:
            op, jt, jf, k = self.code[position]
            position += 1
            self.steps += 1
            if op == 0x20:  # ld [k]
                assert k % 4 == 0, f"load at {k}"
                assert k < 64, f"load at {k}"
                accumulator = data[k // 4]
            elif op == 0x54:  # and #k
                accumulator &= k
            elif op == 0x05:  # ja k
                position += k
            elif op in (0x15, 0x25, 0x35, 0x45):  # jeq, jgt, jge, jset
                holds = {
                    0x15: accumulator == k,
                    0x25: accumulator > k,
                    0x35: accumulator >= k,
                    0x45: bool(accumulator & k),
                }[op]
                position += jt if holds else jf
            elif op == 0x06:  # ret #k
                return k
            else:
                raise AssertionError(f"instruction {op:#x} is not one of seccomp's")
