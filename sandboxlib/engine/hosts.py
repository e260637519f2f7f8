"""
Names and name servers: the files that sandboxes see as /etc/hosts and /etc/resolv.conf.

All sandboxes of a network see one file of names, mounted so that they can only read it. A mount is
of the file itself, so it is changed in place, a line at a time: a name that comes is written into
a gap or at the end, and one that goes leaves a gap; no other line moves.

Spec: hosts(5), resolv.conf(5).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable

_HEAD = "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost\n"
#: What systemd-resolved asks; its own address is the host's loopback.
_RESOLV = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")


def create(path: str, lines: Iterable[str]) -> None:
    """Make a file of names."""
    _write(path, _HEAD + "".join(f"{line}\n" for line in lines))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o644)
        file.write(text)


def lines(v4: str, v6: str, names: Iterable[str]) -> list[str]:
    """The lines of one sandbox."""
    text = " ".join(names)
    return [f"{address} {text}" for address in (v4, v6) if address and text]


def change(path: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
    """Put lines into a file of names, and take others out. A file that has gone is left alone."""
    try:
        file = open(path, "r+b", buffering=0)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        unwanted = {line.encode() for line in remove}
        gaps: list[tuple[int, int]] = []
        at = 0
        for line in file.read().splitlines(keepends=True):
            text = line.rstrip()
            if text in unwanted:
                os.pwrite(file.fileno(), b"#".ljust(len(line) - 1), at)
                text = b"#"
            if text == b"#":
                gaps.append((len(line) - 1, at))
            at += len(line)
        for wanted in add:
            new = wanted.encode()
            fitting = min((gap for gap in gaps if gap[0] >= len(new)), default=None)
            if fitting is None:
                os.pwrite(file.fileno(), new + b"\n", at)
                at += len(new) + 1
            else:
                gaps.remove(fitting)
                os.pwrite(file.fileno(), new.ljust(fitting[0]), fitting[1])


def resolver(path: str, dns: tuple[str, ...] | None, search: tuple[str, ...], *, reachable: bool) -> None:
    """
    Make the file that says which name servers are asked.

    Args:
        path: Of the file.
        dns: Addresses; None for the host's, but those on its loopback, which is not the sandbox's.
        search: Domains; the host's where none are given, unless the servers are.
        reachable: The host's servers can be reached from where this is read.
    """
    servers, domains, options = list(dns or ()), list(search), ""
    if dns is None:
        found: list[str] = []
        for source in _RESOLV:
            found, theirs, options = _read(source)
            domains = domains or theirs
            if found:
                break
        servers = found if reachable else []
    text = "".join(f"nameserver {server}\n" for server in servers)
    if domains:
        text += f"search {' '.join(domains)}\n"
    _write(path, text + options)


def _read(path: str) -> tuple[list[str], list[str], str]:
    servers, domains, options = [], [], ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                word, *rest = line.split() or [""]
                if word == "nameserver" and rest and _is_elsewhere(rest[0]):
                    servers.append(rest[0])
                elif word in ("search", "domain"):
                    domains = rest
                elif word == "options" and rest:
                    options += f"options {' '.join(rest)}\n"
    except FileNotFoundError:
        pass
    return servers[:3], domains, options


def _is_elsewhere(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False  # such as one of an interface: fe80::1%eth0
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)


__all__ = ["change", "create", "lines", "resolver"]
