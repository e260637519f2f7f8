"""
A decision graph, and the classic BPF program that walks it.

A filter is a chain of questions "how does this word of the call compare with that constant?". We
build it as a graph whose equal parts are one node, and write the program from its end to its start:
BPF jumps only forward, so all targets of a question are known by the time it is written. A jump
reaches 255 instructions; for a target that is farther the nearest copy of an answer is written again,
or an unconditional jump, which reaches everywhere, is put in between.

For constant answers the kernel runs the program once per system call number while it is loaded
(since Linux 5.11, kernel/seccomp.c, seccomp_cache_prepare), so its length and depth are the cost of
loading; it follows only the instructions that are used here.

Kernel: Documentation/networking/filter.rst; linux/bpf_common.h; struct seccomp_data of seccomp(2).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from sandboxlib.errors import SpecError

# Words of struct seccomp_data, as byte offsets; arguments are little-endian on every machine we know.
NUMBER = 0
ARCH = 4

#: The kernel's limit, BPF_MAXINSNS.
LIMIT = 4096

FULL = 0xFFFFFFFF

_LD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JA = 0x05  # BPF_JMP | BPF_JA
_RET = 0x06  # BPF_RET | BPF_K
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45

# A jump reaches 255; a trampoline for the other target may still come in between.
_NEAR = 252


def low(index: int) -> int:
    """Return the offset of the low 32 bits of argument *index*."""
    return 16 + 8 * index


def high(index: int) -> int:
    """Return the offset of the high 32 bits of argument *index*."""
    return 20 + 8 * index


class Graph:
    """
    Nodes, numbered from 0; equal nodes have equal numbers.

    A node is an answer ``(value,)`` or a question ``(word, mask, op, constant, yes, no)``: is
    ``word & mask`` op constant? *yes* and *no* are nodes that were made before it.
    """

    def __init__(self) -> None:
        self.nodes: list[tuple[int, ...]] = []
        self._known: dict[tuple[int, ...], int] = {}

    def _node(self, node: tuple[int, ...]) -> int:
        known = self._known.get(node)
        if known is None:
            known = self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return known

    def answer(self, value: int) -> int:
        """Return the node that ends the filter with *value*."""
        return self._node((value,))

    def ask(self, word: int, op: int, constant: int, yes: int, no: int, mask: int = FULL) -> int:
        """Return the node that asks one question; the answer's node itself if both ways lead there."""
        if op == JEQ:
            # What both branches ask about the same word again is known there.
            yes = self.follow(yes, {(word, mask): constant})
            no = self._skip(no, word, mask, constant)
        if yes == no:
            return yes
        return self._node((word, mask, op, constant, yes, no))

    def follow(self, index: int, facts: Mapping[tuple[int, int], int]) -> int:
        """
        Return where *index* leads when something is known.

        Args:
            index: A node.
            facts: ``(word, mask) -> value`` for each known ``word & mask == value``.
        """
        while True:
            node = self.nodes[index]
            if len(node) == 1:
                return index
            word, mask, op, constant, yes, no = node
            value = facts.get((word, mask))
            if value is None:
                return index
            holds = (
                value == constant
                if op == JEQ
                else value > constant
                if op == JGT
                else value >= constant
                if op == JGE
                else bool(value & constant)
            )
            index = yes if holds else no

    def _skip(self, index: int, word: int, mask: int, constant: int) -> int:
        """Return where *index* leads once ``word & mask != constant`` is known."""
        while (node := self.nodes[index])[:4] == (word, mask, JEQ, constant):
            index = node[5]
        return index

    def program(self, root: int) -> bytes:
        """
        Return the instructions (``struct sock_filter``, 8 bytes each) that walk the graph from *root*.

        Raises:
            SpecError: There are more than the kernel takes.
        """
        order = self._order(root)
        needs_load = self._loads(order, root)
        out: list[tuple[int, int, int, int]] = []
        answers: dict[int, int] = {}
        # Where a node starts when its word must be loaded, and when it is in the accumulator already.
        loaded: dict[int, int] = {}
        bare: dict[int, int] = {}

        def reach(target: int, node: tuple[int, ...]) -> int:
            there = self.nodes[target]
            if len(there) == 1:
                position = answers.get(there[0], -LIMIT * 2)
                if len(out) - position > _NEAR:
                    position = answers[there[0]] = len(out)
                    out.append((_RET, 0, 0, there[0]))
                return position
            position = (bare if there[:2] == node[:2] else loaded)[target]
            if len(out) - position > _NEAR:
                out.append((_JA, 0, 0, len(out) - position - 1))
                position = len(out) - 1
            return position

        for index in order:
            node = self.nodes[index]
            if len(node) == 1:
                continue
            word, mask, op, constant, yes, no = node
            jt, jf = reach(yes, node), reach(no, node)
            here = len(out)
            out.append((op, here - jt - 1, here - jf - 1, constant))
            bare[index] = here
            if index in needs_load:
                if mask != FULL:
                    out.append((_AND, 0, 0, mask))
                out.append((_LD, 0, 0, word))
                loaded[index] = len(out) - 1
            if len(out) > LIMIT:
                break
        if len(self.nodes[root]) == 1:
            out.append((_RET, 0, 0, self.nodes[root][0]))
        if len(out) > LIMIT:
            raise SpecError("seccomp", f"more than {LIMIT} instructions", f"a profile of at most {LIMIT}")
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in reversed(out))

    def _order(self, root: int) -> list[int]:
        """Return the nodes below *root*, each after the nodes that it leads to."""
        order: list[int] = []
        seen: set[int] = set()
        # By hand: a chain of questions may be longer than Python's stack is deep.
        stack = [(root, False)]
        while stack:
            index, done = stack.pop()
            if done:
                order.append(index)
            elif index not in seen:
                seen.add(index)
                stack.append((index, True))
                node = self.nodes[index]
                if len(node) > 1:
                    stack += [(node[5], False), (node[4], False)]
        return order

    def _loads(self, order: list[int], root: int) -> set[int]:
        """Return the nodes that are reached from where another word is in the accumulator."""
        needs = {root}
        for index in order:
            node = self.nodes[index]
            if len(node) > 1:
                needs.update(target for target in node[4:] if self.nodes[target][:2] != node[:2])
        return needs
