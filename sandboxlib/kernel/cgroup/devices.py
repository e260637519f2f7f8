"""
Device rules on cgroup v2: a BPF program that the kernel asks at each open and mknod.

The program is an allow-list, one comparison after the other; what no rule allows is
refused. `emit` is pure; the rest are two calls of bpf(2).

Kernel: BPF_PROG_TYPE_CGROUP_DEVICE, Linux ≥ 4.15; the context is struct
bpf_cgroup_dev_ctx of <linux/bpf.h>.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable

from sandboxlib.cgroup_fields import DeviceRule
from sandboxlib.errors import KernelError, UnsupportedError
from sandboxlib.kernel.descriptor import Fd, openat
from sandboxlib.kernel.syscall import address, syscall

# One instruction: opcode, registers (source in the high half), jump offset, constant.
_INSN = struct.Struct("=BBhi")

# Opcodes of <linux/bpf.h> and <linux/bpf_common.h>: class, size or operation, mode or source.
_LOAD_WORD = 0x61  # BPF_LDX | BPF_W | BPF_MEM
_MOVE_NUMBER = 0xB4  # BPF_ALU | BPF_MOV | BPF_K
_MOVE = 0xBC  # BPF_ALU | BPF_MOV | BPF_X
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_SHIFT_RIGHT = 0x74  # BPF_ALU | BPF_RSH | BPF_K
_JUMP_UNEQUAL = 0x55  # BPF_JMP | BPF_JNE | BPF_K
_EXIT = 0x95  # BPF_JMP | BPF_EXIT

_ACCESS = {"m": 1, "r": 2, "w": 4}
_ALL = 7
_KIND = {"b": 1, "c": 2}

# Registers: r1 comes in as the context, then is scratch.
_RESULT, _SCRATCH, _KIND_REG, _ACCESS_REG, _MAJOR_REG, _MINOR_REG = range(6)

_PROG_LOAD, _PROG_ATTACH = 5, 8
_PROG_TYPE_CGROUP_DEVICE = 15
_ATTACH_TYPE_CGROUP_DEVICE = 6
# Programs of the groups above and below are asked too, and each has to agree.
_ALLOW_MULTI, _REPLACE = 2, 4


def emit(rules: Iterable[DeviceRule]) -> bytes:
    """
    Compile an allow-list into eBPF instructions.

    Example:
        >>> len(emit([])) // 8      # six instructions to read the context, two to refuse
        8
    """
    code = [
        # The first word is the access in its high half and the kind in its low one.
        _insn(_LOAD_WORD, _KIND_REG, source=_SCRATCH, offset=0),
        _insn(_MOVE, _ACCESS_REG, source=_KIND_REG),
        _insn(_AND, _KIND_REG, number=0xFFFF),
        _insn(_SHIFT_RIGHT, _ACCESS_REG, number=16),
        _insn(_LOAD_WORD, _MAJOR_REG, source=_SCRATCH, offset=4),
        _insn(_LOAD_WORD, _MINOR_REG, source=_SCRATCH, offset=8),
    ]
    for rule in rules:
        block = _block(rule)
        code += block
        if len(block) == 2:
            # It allows everything: what would follow can never run, and the verifier
            # refuses a program with such a part.
            return b"".join(code)
    code += [_insn(_MOVE_NUMBER, _RESULT, number=0), _insn(_EXIT)]
    return b"".join(code)


def _block(rule: DeviceRule) -> list[bytes]:
    # Each test is (instructions before the jump, register, number): unequal skips the rest.
    tests: list[tuple[list[bytes], int, int]] = []
    if rule.kind != "a":
        tests.append(([], _KIND_REG, _KIND[rule.kind]))
    allowed = sum(_ACCESS[letter] for letter in rule.access)
    if allowed != _ALL:
        # An access that asks for anything beyond what is allowed leaves a bit.
        beyond = [_insn(_MOVE, _SCRATCH, source=_ACCESS_REG), _insn(_AND, _SCRATCH, number=_ALL & ~allowed)]
        tests.append((beyond, _SCRATCH, 0))
    if rule.major is not None:
        tests.append(([], _MAJOR_REG, rule.major))
    if rule.minor is not None:
        tests.append(([], _MINOR_REG, rule.minor))
    block = [_insn(_MOVE_NUMBER, _RESULT, number=1), _insn(_EXIT)]
    for before, register, number in reversed(tests):
        block = [*before, _insn(_JUMP_UNEQUAL, register, offset=len(block), number=number), *block]
    return block


def _insn(opcode: int, register: int = 0, *, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    return _INSN.pack(opcode, source << 4 | register, offset, number)


def attach(folder: str, rules: Iterable[DeviceRule], old: int = -1) -> Fd:
    """
    Put the rules in force for a group and all below it.

    Args:
        folder: The group.
        rules: The allow-list.
        old: The program that this one replaces, in one step; -1 for none.

    Returns:
        The program, for a later replacement. The rules stay in force until the group is removed,
        whether it is closed or not.

    Raises:
        UnsupportedError: This program may not load device rules, or the kernel has none.
        KernelError: Another reason.

    Kernel: bpf(2), BPF_PROG_LOAD and BPF_PROG_ATTACH; BPF_F_REPLACE is Linux ≥ 5.6.
    """
    code, license_ = emit(rules), b"Apache-2.0\0"
    load = bytearray(
        struct.pack(
            "=IIQQIIQII",
            _PROG_TYPE_CGROUP_DEVICE,
            len(code) // 8,
            address(code),
            address(license_),
            0,
            0,
            0,
            0,
            0,
        )
    )
    program = Fd()
    try:
        call = "bpf(BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_DEVICE)"
        syscall("bpf", _PROG_LOAD, load, len(load), call=call, into=program)
    except KernelError as problem:
        if problem.errno in (errno.EPERM, errno.EACCES):
            needs = "CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN, in the first user namespace"
            raise UnsupportedError("devices", needs, "run as root, or hand in no device at all") from problem
        if problem.errno in (errno.EINVAL, errno.ENOSYS):
            raise UnsupportedError(
                "devices", "a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
            ) from problem
        raise
    with openat(folder, os.O_RDONLY | os.O_DIRECTORY) as target:
        flags = _ALLOW_MULTI | (_REPLACE if old >= 0 else 0)
        fields = target, program.fileno(), _ATTACH_TYPE_CGROUP_DEVICE, flags, max(old, 0)
        request = bytearray(struct.pack("=IIIII", *fields))
        call = f'bpf(BPF_PROG_ATTACH, "{folder}", BPF_CGROUP_DEVICE)'
        syscall("bpf", _PROG_ATTACH, request, len(request), call=call)
    return program
