"""
Settings of this host's network that bridges need, below /proc/sys; each is as it was when nobody needs it.

IPv4 is forwarded where the interface at which a packet arrives says so. So it is said for our bridges and
for the interfaces that are there, not for the host: ``ip_forward`` stays as it is, an interface that comes
later forwards nothing, and whoever else needs it (Docker, libvirt) finds it off and switches it on for
himself. IPv6 knows only the whole host. Rules see to it that nothing passes between others' interfaces by our
doing, see `sandboxlib.engine.rules`.

Kernel: Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import errno
import socket

from sandboxlib.engine.ledger import Book, Net, Opened
from sandboxlib.errors import KernelError, UnsupportedError
from sandboxlib.kernel import links, routes
from sandboxlib.kernel.netlink import open_socket
from sandboxlib.kernel.syscall import read_file, write_file

_SYS = "/proc/sys/"
#: Bytes that the longest of them has, and more.
_SIZE = 64
_ALL = {"4": "net/ipv4/ip_forward", "6": "net/ipv6/conf/all/forwarding"}
_DEFAULT6 = "net/ipv6/conf/default/forwarding"
#: Somewhere outside, to which nobody has a route of its own (RFC 5737).
_ELSEWHERE = "203.0.113.1"


def _conf(version: str, link: str, name: str) -> str:
    return f"net/ipv{version}/conf/{link}/{name}"


def value(setting: str) -> str:
    """What a setting holds; empty where there is no such. Raises: KernelError."""
    try:
        return read_file(_SYS + setting, size=_SIZE).strip().decode()
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return ""
        raise


def put(setting: str, wanted: str, what: str, instead: str = "") -> bool:
    """
    See to it that a setting holds *wanted*; returns whether it did not.

    Raises:
        UnsupportedError: /proc/sys cannot be written to; *instead* is what else can be done.
    """
    if value(setting) == wanted:
        return False
    try:
        write_file(_SYS + setting, wanted)
    except KernelError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        name = setting.replace("/", ".")
        hint = f"make /proc/sys writable where this program runs, or set {name} to {wanted} there"
        raise UnsupportedError(
            what, f"a {_SYS}{setting} that can be written to", f"{hint}{f', {instead}' if instead else ''}"
        ) from error
    return True


def is_ours(link: str) -> bool:
    """Is it a bridge or a port of sandboxes?"""
    return link.startswith(("sbx-", "sbxv", "sbxi"))


def _others() -> list[str]:
    return sorted(link for link in links.names() if link != "lo" and not is_ours(link))


def families(net: Net) -> tuple[str, ...]:
    """Of which families the host hands packets on from a network."""
    return () if not net.forwards else tuple(each for each in "46" if (net.v4 if each == "4" else net.v6))


def note(book: Book, net: Net) -> None:
    """Enter what will be switched on for a network, before it is."""
    for family in families(net):
        if value(_ALL[family]) == "1":
            # On without us: it was so, or somebody has switched it on since.
            if family == "4":
                book.forwarding.pop("4", None)
            continue
        opened = book.forwarding.setdefault(family, Opened())
        for link in _others():
            _note_link(opened, family, link)
        if family == "6":
            _enter(opened, _ALL["6"], "1")


def _note_link(opened: Opened, family: str, link: str) -> None:
    if family == "6":
        # A router heeds no other's advertisements, unless told that it should all the same.
        if value(_conf("6", link, "accept_ra")) == "1":
            _enter(opened, _conf("6", link, "accept_ra"), "2")
    elif value(_conf("4", link, "forwarding")) == "0":
        _enter(opened, _conf("4", link, "forwarding"), "1")
    if link not in opened.links:
        opened.links.append(link)


def _enter(opened: Opened, setting: str, wanted: str) -> None:
    if all(known != setting for known, _, _ in opened.settings):
        opened.settings.append([setting, value(setting), wanted])


def switch_on(book: Book) -> None:
    """
    Switch on what was noted, once the rules stand that go with it.

    Raises:
        UnsupportedError: /proc/sys cannot be written to.
    """
    for family, opened in book.forwarding.items():
        for setting, _, wanted in opened.settings:
            if value(setting):
                put(setting, wanted, "a network with a way out", _instead(family))
        if family == "6" and value(_DEFAULT6) == "1" and value(_ALL["6"]) == "1":
            # Interfaces that come later begin as they would have; and who else needs it says so here.
            write_file(_SYS + _DEFAULT6, "0")


def _instead(family: str) -> str:
    return f"or set {_ALL[family].replace('/', '.')} to 1 where this host is set up, or use internal=True"


def settle(net: Net) -> bool:
    """
    See to the settings of a network's own bridge; returns whether one had to be mended.

    Raises:
        UnsupportedError: /proc/sys cannot be written to.
    """
    what = f"network {net.name!r}"
    mended = False
    if net.v4 and net.forwards:
        mended = put(_conf("4", net.bridge, "forwarding"), "1", "a network with a way out", _instead("4"))
    if net.localnet:
        mended |= put(_conf("4", net.bridge, "route_localnet"), "1", what)
    if net.v6:
        # Nobody on it tells this host where to send things.
        for setting in ("disable_ipv6", "accept_ra"):
            mended |= put(_conf("6", net.bridge, setting), "0", what)
    return mended


def allow_localnet(net: Net) -> bool:
    """Let the host's 127.0.0.1 be a source on a bridge, and nowhere else. Raises: UnsupportedError."""
    net.localnet = True
    return put(_conf("4", net.bridge, "route_localnet"), "1", f"a port published by network {net.name!r}")


def has_new_way(book: Book, sock: socket.socket) -> bool:
    """Does the way out lead over an interface that has come since forwarding was switched on?"""
    opened = book.forwarding.get("4")
    if opened is None:
        return False
    link = routes.way(sock, _ELSEWHERE)
    try:
        return bool(link) and socket.if_indextoname(link) not in opened.links
    except OSError:
        return False


def reset(book: Book) -> list[str]:
    """
    Set all back as it was, but what others have set since.

    Returns:
        What was set back.
    """
    done = []
    for family, opened in book.forwarding.items():
        # Who needs it for himself has switched it on: for IPv4 he found it off, for IPv6 the default.
        theirs = value(_ALL["4"]) == "1" if family == "4" else value(_DEFAULT6) == "1"
        for setting, before, ours in reversed(opened.settings):
            # What we did not get to set, or somebody else has set, is not to be set back.
            if value(setting) == ours and not (theirs and setting.endswith("forwarding")):
                write_file(_SYS + setting, before)
                done.append(setting)
    book.forwarding = {}
    return done


def elsewhere(book: Book) -> bool:
    """Are there bridges of other books' programs here, which need forwarding too?"""
    own = {net.bridge for net in (*book.networks.values(), *book.leaving)}
    with open_socket() as sock:
        return any(link.name.startswith("sbx-") and link.name not in own for link in links.every(sock))


__all__ = [
    "allow_localnet",
    "elsewhere",
    "families",
    "has_new_way",
    "is_ours",
    "note",
    "put",
    "reset",
    "settle",
    "switch_on",
    "value",
]
