"""
Names: the file that sandboxes see as /etc/hosts.

All sandboxes of a network see one file of names, mounted so that they can only read it. A mount is
of the file itself, so it is changed in place, a line at a time: a name that comes is written into
a gap or at the end, and one that goes leaves a gap; no other line moves.

Spec: hosts(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sandboxlib.engine.resolver import resolver
from sandboxlib.kernel.descriptor import openat

if TYPE_CHECKING:
    from sandboxlib.engine.ledger import Book, Member

_HEAD = "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost\n"


def create(path: str, lines: Iterable[str]) -> None:
    """Make a file of names."""
    fd = openat(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with open(path, "w", encoding="utf-8", opener=fd.opener) as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(_HEAD + "".join(f"{line}\n" for line in lines))


def lines(v4: str, v6: str, names: Iterable[str]) -> list[str]:
    """The lines of one sandbox."""
    text = " ".join(names)
    return [f"{address} {text}" for address in (v4, v6) if address and text]


def change(path: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
    """
    Put lines into a file of names, and take others out. A file that has gone is left alone.

    A line that is there already is not put in once more, and one that is not there need not be taken out.
    """
    try:
        file = open(path, "r+b", buffering=0)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        unwanted = {line.encode() for line in remove}
        wanted = {line.encode(): None for line in add}
        gaps: list[tuple[int, int]] = []
        at = 0
        for line in file.read().splitlines(keepends=True):
            text = line.rstrip()
            wanted.pop(text, None)
            if text in unwanted:
                os.pwrite(file.fileno(), b"#".ljust(len(line) - 1), at)
                text = b"#"
            if text == b"#":
                gaps.append((len(line) - 1, at))
            at += len(line)
        for new in wanted:
            fitting = min((gap for gap in gaps if gap[0] >= len(new)), default=None)
            if fitting is None:
                os.pwrite(file.fileno(), new + b"\n", at)
                at += len(new) + 1
            else:
                gaps.remove(fitting)
                os.pwrite(file.fileno(), new.ljust(fitting[0]), fitting[1])


def rename(book: Book, member: Member, *, add: bool) -> None:
    """Let all on its network find a sandbox by its names; or no longer."""
    found = lines(member.v4, member.v6, member.names)
    if found:
        files = {other.hosts for other in book.on(member.network) if other.hosts}
        for path in files:
            change(path, **{"add" if add else "remove": found})


__all__ = ["change", "create", "lines", "rename", "resolver"]
