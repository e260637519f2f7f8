"""
Signals by the names that people and images write.

Kernel: signal(7). Names beyond its table are those of kill -l: RTMIN+3, which Docker reads the same.
"""

from __future__ import annotations

import re
import signal

#: As signal(7) has them for programs: the C library keeps two below for itself.
_RTMIN, _RTMAX = 34, 64
_REALTIME = re.compile(r"RT(MIN|MAX)(?:([+-])([0-9]{1,2}))?", re.ASCII)
#: Synonyms of signal(7) that Python has not on every machine.
_MORE = {
    "CLD": signal.SIGCHLD,
    "IO": signal.SIGIO,
    "IOT": signal.SIGABRT,
    "POLL": signal.SIGIO,
    "STKFLT": 16,
    "UNUSED": signal.SIGSYS,
}


def number_of(name: str) -> int | None:
    """
    The number of a signal: ``SIGTERM``, ``term``, ``15``, ``SIGRTMIN+3``; None where it is none.

    Example:
        >>> number_of("sigrtmax-1")
        63
    """
    if name.isascii() and name.isdigit():
        number = int(name[:9])
        return number if 0 < number <= _RTMAX else None
    short = name.upper().removeprefix("SIG")
    if match := _REALTIME.fullmatch(short):
        end, sign, count = match.groups()
        number = (_RTMIN if end == "MIN" else _RTMAX) + int(f"{sign or '+'}{count or 0}")
        return number if _RTMIN <= number <= _RTMAX else None
    if short in _MORE:
        return int(_MORE[short])
    known = getattr(signal, f"SIG{short}", None)
    return int(known) if isinstance(known, signal.Signals) else None


__all__ = ["number_of"]
