"""
Filters at an interface: small programs that see each packet which comes or goes by it.

A program is of classic BPF, as a socket's filter is: the kernel checks it, compiles it, and lets go of it
with the interface. It is no part of the host's rules: who flushes those does not reach it.

Kernel: Documentation/networking/filter.rst, tc-bpf(8), net/sched/cls_bpf.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sandboxlib.errors import UnsupportedError
from sandboxlib.kernel.netlink import CREATE, EXCL, Message, attribute, number, text

_NEWQDISC, _NEWTFILTER = 36, 44
TC = struct.Struct("=BxxxiIII")
#: TC_H_CLSACT, and the two places at it: what comes, and what goes.
_CLSACT, _CLSACT_HANDLE, COMES, GOES = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2, 0xFFFFFFF3
#: What a program returns: TC_ACT_UNSPEC, let further filters see it; TC_ACT_SHOT.
PASS, DROP = 0xFFFFFFFF, 2
_SIZES = {4: 0x00, 2: 0x08, 1: 0x10}
_LOAD, _JUMP, _RETURN, _AND, _TAX = 0x20, 0x05, 0x06, 0x54, 0x07
_EQUAL, _GREATER_OR_EQUAL, _ANY_BIT, _ALWAYS, _BY_X = 0x10, 0x30, 0x40, 0x00, 0x08
_LENGTH = 0x80
#: SKF_AD_OFF, with SKF_AD_MARK and SKF_AD_VLAN_TAG_PRESENT.
_MARK, _VLAN = 0xFFFFF000 + 20, 0xFFFFF000 + 48
_INSTRUCTION = struct.Struct("=HBBI")
_VALUE = struct.Struct("=I")


class Hole(NamedTuple):
    """Part of a value that is filled in later. Attributes: name, of the value; at, its first byte there."""

    name: str
    at: int = 0


class _Instruction(NamedTuple):
    code: int
    value: int | Hole
    yes: str = ""
    no: str = ""


class Template:
    """A program that lacks values, which each of its kind has others of: to put it together takes long."""

    def __init__(self, code: bytes, holes: list[tuple[int, int, Hole]]) -> None:
        self._code = code
        self._holes = holes

    def fill(self, values: Mapping[str, bytes]) -> bytes:
        """The program with these values."""
        code = bytearray(self._code)
        for place, size, (name, at) in self._holes:
            _VALUE.pack_into(code, place, int.from_bytes(values[name][at : at + size], "big"))
        return bytes(code)


class Program:
    """
    A program, put together step by step.

    What jumps names a label, or "pass" or "drop"; what does not jump goes on with the next step. A load
    from behind the packet's end lets it pass (a return of 0 is TC_ACT_OK): so lengths are asked first.
    """

    def __init__(self) -> None:
        self._steps: list[_Instruction] = []
        self._labels: dict[str, int] = {}
        self._fresh = 0
        self._sizes: dict[int, int] = {}

    def label(self, name: str) -> None:
        """Here is *name*."""
        self._labels[name] = len(self._steps)

    def _next(self) -> str:
        self._fresh += 1
        return f"#{self._fresh}"

    def _jump(self, how: int, value: int | Hole, yes: str, no: str) -> None:
        after = self._next()
        self._steps.append(_Instruction(_JUMP | how, value, yes or after, no or after))
        self.label(after)

    def load(self, offset: int, size: int) -> None:
        """Load 1, 2 or 4 bytes of the packet, from its Ethernet header on."""
        self._steps.append(_Instruction(_LOAD | _SIZES[size], offset))

    def keep(self, mask: int | Hole) -> None:
        """Keep these bits of what was loaded."""
        self._steps.append(_Instruction(_AND, mask))

    def equal(self, value: int | Hole, yes: str = "", no: str = "") -> None:
        """Compare what was loaded; a hole is of 4 bytes, or of as many as `bytes_are` loads."""
        self._jump(_EQUAL, value, yes, no)

    def any_bit(self, value: int, yes: str = "", no: str = "") -> None:
        """Is one of these bits set in what was loaded?"""
        self._jump(_ANY_BIT, value, yes, no)

    def at_least(self, value: int, yes: str = "", no: str = "") -> None:
        """Is what was loaded as much?"""
        self._jump(_GREATER_OR_EQUAL, value, yes, no)

    def go(self, label: str) -> None:
        """Go on at *label*."""
        self._steps.append(_Instruction(_JUMP | _ALWAYS, 0, label))

    def length(self, least: int, no: str = "drop") -> None:
        """Is the packet as long, its Ethernet header included?"""
        self._steps.append(_Instruction(_LENGTH, 0))
        self.at_least(least, no=no)

    def same_words(self, first: int, second: int, yes: str = "", no: str = "") -> None:
        """Are the words at these two places the same?"""
        self.load(first, 4)
        self._steps.append(_Instruction(_TAX, 0))
        self.load(second, 4)
        self._jump(_EQUAL | _BY_X, 0, yes, no)

    def bytes_are(self, offset: int, wanted: bytes | str, no: str, size: int = 0, mask: str = "") -> None:
        """
        Compare bytes of the packet, words as far as can be.

        Args:
            offset: Where they are.
            wanted: What they are to be; a text is the name of a value that is filled in.
            no: Where to go on if they are not.
            size: How many, for a name.
            mask: The name of a mask, of which the value has no other bits.
        """
        count = size if isinstance(wanted, str) else len(wanted)
        at = 0
        while at < count:
            step = next(step for step in (4, 2, 1) if step <= count - at)
            self.load(offset + at, step)
            if mask:
                self.keep(Hole(mask, at))
            self._sizes[len(self._steps)] = step
            if isinstance(wanted, str):
                self.equal(Hole(wanted, at), no=no)
            else:
                self.equal(int.from_bytes(wanted[at : at + step], "big"), no=no)
            at += step

    def untagged(self) -> None:
        """Drop what is of a VLAN."""
        self.load(_VLAN, 4)
        self.equal(0, no="drop")

    def marked(self, mark: int, yes: str = "", no: str = "") -> None:
        """Has the packet one of these bits in its mark?"""
        self.load(_MARK, 4)
        self.any_bit(mark, yes, no)

    def template(self) -> Template:
        """The program as the kernel takes it, but for its holes."""
        steps = list(self._steps)
        places = {**self._labels, "pass": len(steps), "drop": len(steps) + 1}
        steps += [_Instruction(_RETURN, PASS), _Instruction(_RETURN, DROP)]
        found, holes = [], []
        for at, (code, value, yes, no) in enumerate(steps):
            number = 0 if isinstance(value, Hole) else value
            if isinstance(value, Hole):
                holes.append((at * _INSTRUCTION.size + 4, self._sizes.get(at, 4), value))
            if code == _JUMP | _ALWAYS:
                found.append(_INSTRUCTION.pack(code, 0, 0, places[yes] - at - 1))
            elif yes:
                # How far a comparison can jump has 8 bits: the longest program here has fewer steps.
                found.append(_INSTRUCTION.pack(code, places[yes] - at - 1, places[no] - at - 1, number))
            else:
                found.append(_INSTRUCTION.pack(code, 0, 0, number))
        return Template(b"".join(found), holes)


def place(link: int) -> Message:
    """Make room for filters at the interface with index *link*."""
    body = TC.pack(0, link, _CLSACT_HANDLE, _CLSACT, 0) + text(1, "clsact")
    return Message(_NEWQDISC, CREATE | EXCL, body, f"tc qdisc add dev {link} clsact")


def attach(link: int, side: int, program: bytes) -> Message:
    """
    Let *program* see what `COMES` or `GOES` by an interface, before all other filters there.

    What it drops has gone; what it passes is seen by the next.
    """
    count = attribute(4, struct.pack("=H", len(program) // _INSTRUCTION.size))
    # TCA_BPF_FLAG_ACT_DIRECT: what the program returns is what becomes of the packet.
    options = count + attribute(5, program) + text(7, "sandboxlib") + number(8, 1)
    body = TC.pack(0, link, 1, side, 1 << 16 | socket.htons(3)) + text(1, "bpf") + attribute(2, options)
    way = "ingress" if side == COMES else "egress"
    return Message(_NEWTFILTER, CREATE | EXCL, body, f"tc filter add dev {link} {way} bpf direct-action")


def is_filter(call: str) -> bool:
    """Is this the text of one of the messages here?"""
    return call.startswith("tc ")


def refused(what: str) -> UnsupportedError:
    """The error where the kernel cannot filter at an interface."""
    return UnsupportedError(
        what,
        "a kernel with CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_ACT and CONFIG_NET_CLS_BPF",
        "load sch_ingress and cls_bpf with modprobe(8)",
    )


def guarded(sides: Sequence[tuple[int, int, bytes]]) -> list[Message]:
    """All that is needed for filters (link, side, program) at interfaces that have none."""
    links = dict.fromkeys(link for link, _, _ in sides)
    return [*map(place, links), *(attach(*side) for side in sides)]


__all__ = [
    "COMES", "DROP", "GOES", "PASS", "TC", "Hole", "Program", "Template", "attach", "guarded", "is_filter",
    "place", "refused",
]  # fmt: skip
