"""
Messages to the kernel's networking, and its answers.

One request carries many messages, so that what a sandbox needs is made in one call. The socket decides
whose network it is: it is given, and may come from another namespace. The messages of each subsystem are
in modules of their own: `links`, `routes`, `traffic`, `nftables`, `conntrack`.

Kernel: netlink(7), rtnetlink(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sandboxlib.errors import KernelError

ROUTE, NETFILTER = 0, 12
REQUEST, ACK, DUMP, EXCL, CREATE, REPLACE = 0x1, 0x4, 0x300, 0x200, 0x400, 0x100
NESTED = 0x8000
_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED = 0x10
#: How often a list is asked for again that changed while it was told.
_TRIES = 5
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12
#: Of an error that has more to say: NLM_F_ACK_TLVS, NLM_F_CAPPED; NLMSGERR_ATTR_MSG.
_ACK_TLVS, _CAPPED, _WORDS = 0x200, 0x100, 1

HEADER = struct.Struct("=IHHII")
_ERROR_NUMBER = struct.Struct("=i")


class Message(NamedTuple):
    """
    One request.

    Attributes:
        kind: Its number.
        flags: Besides that it is a request.
        body: What follows the header.
        text: For errors, as ip(8) would write it.
        ignore: Errnos that are no failure here.
    """

    kind: int
    flags: int
    body: bytes
    text: str
    ignore: tuple[int, ...] = ()


def attribute(kind: int, *parts: bytes) -> bytes:
    """One attribute, or with *parts* that are attributes, one that holds them."""
    data = b"".join(parts)
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def text(kind: int, value: str) -> bytes:
    """An attribute that is text."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """An attribute that is a number of 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message, or of one that holds others, by number."""
    return dict(each_attribute(data))


def each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The same in order, for what holds several of one number."""
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        yield kind & 0x3FFF, data[at + 4 : at + size]
        at += size + -size % 4


def open_socket(protocol: int = ROUTE) -> socket.socket:
    """A socket in this thread's network namespace; the caller closes it."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)


def with_words(sock: socket.socket) -> None:
    """Have the kernel say in words why it refuses something. Kernel: NETLINK_EXT_ACK, NETLINK_CAP_ACK."""
    for option in (_CAP_ACK, _EXT_ACK):
        sock.setsockopt(_SOL_NETLINK, option, 1)


def strict(sock: socket.socket) -> None:
    """Have the kernel heed what a request for a list asks for. Kernel: NETLINK_GET_STRICT_CHK."""
    sock.setsockopt(_SOL_NETLINK, _STRICT, 1)


def packed(one: Message, sequence: int) -> bytes:
    """A message as it is sent, without a wish for an answer."""
    head = HEADER.pack(HEADER.size + len(one.body), one.kind, one.flags | REQUEST, sequence, 0)
    return head + one.body + bytes(-len(one.body) % 4)


def carry_out(sock: socket.socket, messages: Iterable[Message], step: str = "") -> None:
    """
    Send *messages* in one go, and hear how each fared; the kernel goes on after one that failed.

    Raises:
        KernelError: The first that failed.
    """
    sent = list(messages)
    if not sent:
        return
    sock.send(b"".join(packed(one._replace(flags=one.flags | ACK), at) for at, one in enumerate(sent)))
    failed: KernelError | None = None
    waiting = set(range(len(sent)))
    while waiting:
        for kind, sequence, body in received(sock):
            if kind != _ERROR or sequence not in waiting:
                continue
            waiting.discard(sequence)
            code = -_ERROR_NUMBER.unpack_from(body)[0]
            if code and code not in sent[sequence].ignore and failed is None:
                failed = KernelError(code, sent[sequence].text, step)
    if failed is not None:
        raise failed


def received(sock: socket.socket, flags: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """The messages of one datagram: kind, sequence number, and what follows the header."""
    for kind, _, sequence, data in _datagram(sock, flags):
        yield kind, sequence, data


def _datagram(sock: socket.socket, flags: int = 0) -> Iterator[tuple[int, int, int, bytes]]:
    data = sock.recv(1 << 17, flags)
    at = 0
    while at + HEADER.size <= len(data):
        size, kind, marks, sequence, _ = HEADER.unpack_from(data, at)
        yield kind, marks, sequence, data[at + HEADER.size : at + size]
        at += size + -size % 4


def answers(sock: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """All that is there by now; the kernel answers within the call that asks. As `received`."""
    while True:
        try:
            yield from received(sock, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return


def refusal(body: bytes) -> int:
    """The errno of an answer of kind ``NLMSG_ERROR``; 0 if it is none."""
    return -int(_ERROR_NUMBER.unpack_from(body)[0])


def words(body: bytes) -> str:
    """What such an answer says in words, where it was asked to (`with_words`)."""
    if len(body) < 4 + HEADER.size:
        return ""
    # The header that is quoted there is the request's; with CAP_ACK nothing else of it.
    for kind, data in each_attribute(body[4 + HEADER.size :]):
        if kind == _WORDS:
            return data.rstrip(b"\0").decode(errors="replace")
    return ""


def ask(sock: socket.socket, one: Message) -> bytes:
    """
    Ask for one thing.

    Returns:
        What follows the header of the answer.

    Raises:
        KernelError: There is none such.
    """
    sock.send(packed(one, 1))
    while True:
        for kind, sequence, body in received(sock):
            if sequence != 1:
                continue
            if kind == _ERROR:
                raise KernelError(refusal(body) or errno.ENOENT, one.text)
            return body


def dump(sock: socket.socket, kind: int, body: bytes) -> list[bytes]:
    """
    Ask for a list; what each entry holds.

    A list that changes while it is told is asked for again, a few times.

    Raises:
        KernelError: The kernel gives none.
    """
    found: list[bytes] = []
    for _ in range(_TRIES):
        found, whole = _dumped(sock, kind, body)
        if whole:
            break
    return found


def _dumped(sock: socket.socket, kind: int, body: bytes) -> tuple[list[bytes], bool]:
    sock.send(HEADER.pack(HEADER.size + len(body), kind, REQUEST | DUMP, 1, 0) + body)
    found: list[bytes] = []
    whole = True
    while True:
        for answer, flags, _, data in _datagram(sock):
            whole = whole and not flags & _DUMP_INTERRUPTED
            if answer == _DONE:
                return found, whole
            if answer == _ERROR:
                raise KernelError(refusal(data), "recvmsg(<netlink>)", "a list of the kernel's")
            found.append(data)


__all__ = [
    "ACK",
    "CREATE",
    "EXCL",
    "NESTED",
    "NETFILTER",
    "REPLACE",
    "ROUTE",
    "Message",
    "answers",
    "ask",
    "attribute",
    "attributes",
    "carry_out",
    "dump",
    "each_attribute",
    "number",
    "open_socket",
    "packed",
    "received",
    "refusal",
    "strict",
    "text",
    "with_words",
    "words",
]
