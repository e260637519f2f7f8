"""
What a registry asks for when it answers 401: the challenges of ``WWW-Authenticate``.

A header may have several challenges, and a comma stands between two of them as well as between the
parameters of one. What follows a comma is a parameter if ``=`` and a value follow, else the name of the
next scheme.

Spec: RFC 9110, 11.6.1 and appendix A; distribution, "Token authentication specification".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - the grammar's token
_SCHEME = re.compile(_TOKEN)
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))(?=[ \t]*(?:,|$))')
#: What some schemes have in place of parameters, such as Negotiate.
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))")
_BETWEEN = re.compile(r"[ \t,]*")
_ESCAPED = re.compile(r"\\(.)")
#: Characters of all headers that are looked at; what asks for more is no registry.
_LONGEST = 16_384


class Challenge(NamedTuple):
    """
    One way to say who one is.

    Attributes:
        scheme: In small letters: ``basic``, ``bearer``.
        parameters: By name, in small letters.
    """

    scheme: str
    parameters: dict[str, str]


def parse(headers: Iterable[str]) -> list[Challenge]:
    """
    Read the challenges of all headers of this name, in their order.

    What cannot be read ends its header; the challenges before it count.
    """
    found: list[Challenge] = []
    for header in headers:
        text, position = header[:_LONGEST].rstrip(), 0
        current: Challenge | None = None
        while True:
            between = _BETWEEN.match(text, position)
            position = between.end() if between else position
            if position == len(text):
                break
            parameter = _PARAMETER.match(text, position)
            if parameter and current is not None:
                name, quoted, plain = parameter.groups()
                value = plain if quoted is None else _ESCAPED.sub(r"\1", quoted)
                # The first one counts: a second would let two readers see two different realms.
                current.parameters.setdefault(name.lower(), value)
                position = parameter.end()
                continue
            scheme = _SCHEME.match(text, position)
            if parameter or not scheme or text[scheme.end() : scheme.end() + 1] not in ("", " ", "\t", ","):
                break
            current = Challenge(scheme[0].lower(), {})
            found.append(current)
            position = scheme.end()
            blank = _BETWEEN.match(text, position)
            after = blank.end() if blank else position
            # "Negotiate abc==" has one, "Basic, Bearer realm=…" does not, for the comma.
            if "," not in text[position:after] and not _PARAMETER.match(text, after):
                token = _TOKEN68.match(text, after)
                position = token.end() if token else position
    return found


__all__ = ["Challenge", "parse"]
