"""
Modes of files, as --chmod and chmod(1) take them.

Spec: Dockerfile reference, "COPY --chmod"; POSIX chmod, "Extended description".
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sandboxlib.errors import SpecError

#: What a mode becomes: (permissions as they were, it is a folder).
Change = Callable[[int, bool], int]

_OCTAL = re.compile(r"[0-7]{1,7}", re.ASCII)
_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)", re.ASCII)
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)", re.ASCII)
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007, "a": 0o7777}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "t": 0o1000}
#: What nobody is given by a clause that names nobody: the usual umask.
_UMASK = 0o022


def parse(text: str, field: str = "--chmod") -> Change:
    """
    Read a mode: octal such as ``755``, or symbolic such as ``u=rwX,go=rX``.

    Raises:
        SpecError: It is neither.

    Example:
        >>> oct(parse("u=rwX,go=rX")(0o600, False))
        '0o644'
    """
    if _OCTAL.fullmatch(text):
        mode = int(text, 8)
        if mode > 0o7777:
            raise SpecError(field, text, "an octal mode up to 7777")
        return lambda _, __: mode
    clauses: list[tuple[str, list[tuple[str, str]]]] = []
    for part in text.split(","):
        found = _CLAUSE.fullmatch(part)
        if found is None:
            raise SpecError(field, text, "an octal mode such as 755, or a symbolic one such as u=rwX,go=rX")
        clauses.append((found[1], _ACTION.findall(found[2])))

    def change(mode: int, folder: bool) -> int:
        for who, actions in clauses:
            for operator, what in actions:
                mode = _applied(mode, folder, who, operator, what)
        return mode

    return change


def _applied(mode: int, folder: bool, who: str, operator: str, what: str) -> int:
    whose = 0
    for each in who or "a":
        whose |= _WHO[each]
    bits = _wanted(mode, folder, who, what)
    if operator == "+":
        return mode | bits
    if operator == "-":
        return mode & ~bits
    # What is not named stays for a folder: its set-id bits, as with chmod(1).
    kept = mode & 0o6000 if folder and "s" not in what else 0
    return mode & ~whose | bits | kept


def _wanted(mode: int, folder: bool, who: str, what: str) -> int:
    whose = 0
    for each in who or "a":
        whose |= _WHO[each]
    bits = 0
    if what in {"u", "g", "o"} and what:
        three = mode >> {"u": 6, "g": 3, "o": 0}[what] & 7
        bits = three << 6 | three << 3 | three
    else:
        for each in what:
            if each == "X":
                bits |= 0o111 if folder or mode & 0o111 else 0
            elif each == "s":
                bits |= 0o6000
            else:
                bits |= _BITS[each]
    bits &= whose | (0o1000 if "t" in what and not who else 0)
    return bits if who else bits & ~_UMASK


__all__ = ["Change", "parse"]
