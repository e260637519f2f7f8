"""
Name servers: the file that sandboxes see as /etc/resolv.conf, and which of the host's servers they can ask.

Spec: resolv.conf(5), systemd-resolved.service(8).
"""

from __future__ import annotations

import ipaddress
import os
from typing import Literal

import attrs

from sandboxlib.kernel.descriptor import openat

#: What systemd-resolved asks; its own address is the host's loopback, and it answers nobody else.
_SOURCES = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
_STUBS = ("127.0.0.53", "127.0.0.54")
#: MAXNS of resolv.h: more are not asked.
_MOST = 3

Kind = Literal["elsewhere", "near", "local", "link"]


@attrs.frozen
class NameServers:
    """
    Those of this host.

    Attributes:
        every: Which sandboxes can be let ask, in order.
        local: One on the host's loopback, for the host alone; or empty.
        links: IPv6's link-local ones, which belong to an interface: nobody else can ask them.
        search: Domains in which names are looked for.
        options: Lines for the file.
    """

    every: tuple[str, ...] = ()
    local: str = ""
    links: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: str = ""

    @property
    def near(self) -> list[str]:
        """IPv4's link-local ones of them, as clouds have them: the host has to let them through."""
        return [text for text in self.every if kind_of(text) == "near"]

    @property
    def missing(self) -> str:
        """Why a sandbox has none to ask, in words."""
        known = [*self.links, *([self.local] if self.local else [])]
        which = f"this host's ({', '.join(known)}) cannot be asked from here"
        return f"{which if known else 'this host has none'}: give dns="


def kind_of(text: str) -> Kind | None:
    """What a name server's address is; None if it is none. A scope makes it a link's."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.is_loopback or address.is_unspecified:
        return "local"
    if address.is_link_local:
        return "near" if address.version == 4 else "link"
    return "elsewhere"


def of_host(sources: tuple[str, ...] = _SOURCES) -> NameServers:
    """Read this host's."""
    found = NameServers()
    for number, source in enumerate(sources):
        read = _read(source)
        if number == 0:
            found = read
        elif read.every and not found.every:
            found = attrs.evolve(read, local=found.local, search=found.search or read.search)
    return found


def _read(path: str) -> NameServers:
    """Read one file; as long as it stays as it is, only once."""
    try:
        now = os.stat(path)
    except OSError:
        return NameServers()
    mark = now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns, now.st_size
    if _known.get(path, (None,))[0] != mark:
        _known[path] = mark, _parsed(path)
    return _known[path][1]


_known: dict[str, tuple[tuple[int, ...], NameServers]] = {}


def _parsed(path: str) -> NameServers:
    every: list[str] = []
    others: dict[str, list[str]] = {"local": [], "link": []}
    search: list[str] = []
    options = ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                word, *rest = line.split() or [""]
                kind = kind_of(rest[0]) if word == "nameserver" and rest else None
                if kind is not None:
                    others.get(kind, every).append(rest[0])
                elif word in ("search", "domain"):
                    search = rest
                elif word == "options" and rest:
                    options += f"options {' '.join(rest)}\n"
    except FileNotFoundError:
        pass
    # 0.0.0.0 and :: are the host itself, too (inet(4)); systemd-resolved's answers on the loopback only.
    local = [
        "127.0.0.1" if text == "0.0.0.0" else text for text in others["local"] if ":" not in text
    ]  # fmt: skip
    local = [text for text in local if text not in _STUBS]
    return NameServers(
        tuple(every), local[0] if local else "", tuple(others["link"]), tuple(search), options
    )  # fmt: skip


def resolver(
    path: str,
    dns: tuple[str, ...] | None,
    search: tuple[str, ...],
    *,
    reachable: bool,
    servers: NameServers | None = None,
    versions: tuple[int, ...] = (4, 6),
    gateway: str = "",
) -> None:
    """
    Make the file that says which name servers are asked.

    Args:
        path: Of the file.
        dns: Addresses; None for the host's, but those on its loopback, which is not the sandbox's.
        search: Domains; the host's where none are given, unless the servers are.
        reachable: The host's servers can be reached from where this is read.
        servers: The host's; None to read them.
        versions: Of IP, that the sandbox has.
        gateway: Who answers for a server on the host's loopback; empty if nobody does.
    """
    chosen, domains, options, note = list(dns or ()), list(search), "", ""
    if dns is None:
        servers = of_host() if servers is None else servers
        domains, options = domains or list(servers.search), servers.options
        if reachable:
            chosen = [text for text in servers.every if (6 if ":" in text else 4) in versions][:_MOST]
            if not chosen and servers.local and gateway:
                chosen = [gateway]
            if not chosen:
                note = f"# no name server: {servers.missing}\n"
    text = note + "".join(f"nameserver {server}\n" for server in chosen)
    if domains:
        text += f"search {' '.join(domains)}\n"
    fd = openat(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with open(path, "w", encoding="utf-8", opener=fd.opener) as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text + options)


__all__ = ["NameServers", "kind_of", "of_host", "resolver"]
