"""
Rule sets for the kernel's packet filter: by libnftables where it is, else by nft(8).

A text is one transaction: all of it holds, or nothing.
"""

from __future__ import annotations

import ctypes
import subprocess
from functools import lru_cache
from typing import Any

from sandboxlib.errors import KernelError, UnsupportedError
from sandboxlib.kernel.netlink import NETFILTER, attributes, dump, open_socket

#: NFNL_SUBSYS_NFTABLES, and NF_INET_FORWARD; families as nft(8) writes them.
_GETCHAIN, _FORWARD = 10 << 8 | 4, 2
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
LIBRARY = "libnftables.so.1"
HINT = "install libnftables1 (nftables-libs on other distributions), or the package nftables"


@lru_cache(1)
def _library() -> Any:
    try:
        lib = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    for name in ("nft_ctx_free", "nft_ctx_buffer_error", "nft_ctx_get_error_buffer"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return lib


def apply(text: str, binary: str = "") -> None:
    """
    Load *text*, in the language of nft(8), into this thread's network namespace.

    Args:
        text: All of it is loaded, or nothing.
        binary: The path of nft, to be used where there is no library.

    Raises:
        UnsupportedError: There is neither library nor program.
        KernelError: It was refused; nothing of it holds.
    """
    library = _library()
    if library is not None:
        problem = _by_library(library, text)
    elif binary and binary != "library":
        done = subprocess.run(
            [binary, "-f", "-"], input=text, capture_output=True, text=True, check=False, env={}
        )
        problem = done.stderr.strip() or "it ended with an error" if done.returncode else ""
    else:
        raise UnsupportedError("a firewall for a bridge", "libnftables or nft(8)", HINT)
    if problem:
        raise KernelError(22, "nft(-f -)", "rules of the sandboxes' networks", problem.splitlines()[0])


def _by_library(library: Any, text: str) -> str:
    # One for each call: it belongs to the network namespace that it was made in, and to one thread.
    context = library.nft_ctx_new(0)
    try:
        library.nft_ctx_buffer_error(context)
        if library.nft_run_cmd_from_buffer(context, text.encode()):
            return (library.nft_ctx_get_error_buffer(context) or b"").decode(errors="replace") or "refused"
        return ""
    finally:
        library.nft_ctx_free(context)


def dropping() -> list[str]:
    """
    Chains of all tables that drop what is forwarded unless one of their rules allows it.

    Raises:
        KernelError: The kernel has no nftables, or does not tell.

    Kernel: NFT_MSG_GETCHAIN, include/uapi/linux/netfilter/nf_tables.h.
    """
    found = []
    with open_socket(NETFILTER) as sock:
        # NFPROTO_UNSPEC: those of every family.
        for data in dump(sock, _GETCHAIN, bytes(4)):
            known = attributes(data[4:])
            hook = attributes(known.get(4, b"")).get(1)
            policy = known.get(5)
            if hook is not None and policy is not None and data[0] in _FAMILIES:
                number, verdict = (int.from_bytes(part, "big") for part in (hook, policy))
                if (number, verdict) == (_FORWARD, 0):
                    table, chain = (known[kind].rstrip(b"\0").decode(errors="replace") for kind in (1, 3))
                    found.append(f"{_FAMILIES[data[0]]} {table} {chain}")
    return found


__all__ = ["HINT", "apply", "dropping"]
