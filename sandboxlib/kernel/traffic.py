"""
Bandwidth: a token bucket for each way.

What goes to a sandbox waits at the interface on the bridge. What comes from it cannot wait where
it arrives: it is sent on to an interface that is nothing but a queue (ifb).

Kernel: tc-tbf(8), tc-u32(8), tc-mirred(8), include/uapi/linux/pkt_sched.h and pkt_cls.h.
"""

from __future__ import annotations

import errno
import socket
import struct

from sandboxlib.errors import KernelError, UnsupportedError
from sandboxlib.kernel import links
from sandboxlib.kernel.netlink import Message, attribute, carry_out
from sandboxlib.kernel.packet_filter import COMES
from sandboxlib.kernel.packet_filter import TC as _TC

_NEWQDISC, _NEWTFILTER = 36, 44
_CREATE = 0x400 | 0x200
_ROOT = 0xFFFFFFFF
_LEAST_BURST = 32768


def _bucket(link: int, rate: int) -> Message:
    # In a hundredth of a second; and the largest packet that the kernel hands over in one piece.
    burst = max(rate // 100, _LEAST_BURST)
    most = (1 << 32) - 1
    # Link layer 1 is Ethernet: the kernel computes times itself, without a table of ours.
    spec = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, min(rate, most))
    parameters = spec + bytes(12) + struct.pack("=III", min(burst + rate // 20, most), 0, 0)
    options = attribute(1, parameters) + attribute(6, struct.pack("=I", min(burst, most)))
    if rate > most:
        options += attribute(4, struct.pack("=Q", rate))
    body = _TC.pack(0, link, 0x10000, _ROOT, 0) + attribute(1, b"tbf\0") + attribute(2, options)
    return Message(_NEWQDISC, _CREATE, body, f"tc qdisc add dev {link} root tbf rate {rate}bps")


def _redirect(link: int, other: int) -> Message:
    every = struct.pack("=BBBxHHhhI", 1, 0, 1, 0, 0, 0, 0, 0) + bytes(16)
    action = attribute(2, struct.pack("=IIiiiiI", 0, 0, 4, 0, 0, 1, other))
    actions = attribute(1, attribute(1, b"mirred\0"), attribute(2, action))
    options = attribute(5, every) + attribute(7, actions)
    # After the port's own filter, which is the first.
    head = _TC.pack(0, link, 0, COMES, 2 << 16 | socket.htons(3))
    return Message(
        _NEWTFILTER,
        _CREATE,
        head + attribute(1, b"u32\0") + attribute(2, options),
        f"tc filter add dev {link} ingress u32 match u32 0 0 action mirred egress redirect dev {other}",
    )


def shape(sock: socket.socket, link: str, queue: str, rate: int) -> None:
    """
    Let *rate* bytes a second pass *link* each way, which has filters; *queue* is made for one of them.

    Raises:
        UnsupportedError: This kernel has no token buckets.
        KernelError: Another failure.
    """
    try:
        carry_out(sock, [links.ifb(queue), links.up(queue)])
        first, second = links.index(link), links.index(queue)
        carry_out(sock, [_bucket(first, rate), _bucket(second, rate), _redirect(first, second)], "bandwidth")
    except KernelError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOENT):
            raise UnsupportedError(
                "rate= of a network",
                "a kernel with CONFIG_IFB, NET_SCH_TBF, NET_CLS_U32, NET_ACT_MIRRED",
                "load ifb, sch_tbf, cls_u32 and act_mirred with modprobe(8)",
            ) from error
        raise


__all__ = ["shape"]
