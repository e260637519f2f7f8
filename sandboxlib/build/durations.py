"""Lengths of time as Go writes them: ``1h30m``, ``1.5s``. Spec: Go's time.ParseDuration."""

from __future__ import annotations

import re

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(r"(\d*)(?:\.(\d*))?(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_MOST = (1 << 63) - 1


def parse(text: str) -> int:
    """
    Nanoseconds.

    Raises:
        ValueError: It is no length of time.

    Example:
        >>> parse("1m30s")
        90000000000
    """
    wrong = ValueError(f"{text[:40]!r} is no length of time such as 90s, 1m30s or 500ms")
    rest = text.lstrip("+") if text[:1] == "+" else text
    if rest == "0":
        return 0
    if len(rest) > 100 or not rest:
        raise wrong
    total = at = 0
    while at < len(rest):
        found = _PART.match(rest, at)
        if not found or not (found[1] or found[2]):
            raise wrong
        unit = _UNITS[found[3]]
        fraction = found[2] or ""
        total += int(found[1] or 0) * unit
        total += int(fraction or 0) * unit // 10 ** len(fraction)
        at = found.end()
    if total > _MOST:
        raise wrong
    return total


def text_of(nanoseconds: int) -> str:
    """As Go prints it: ``5m0s``."""
    if nanoseconds < 10**9:
        for unit, size in (("ms", 10**6), ("µs", 10**3), ("ns", 1)):
            if nanoseconds >= size:
                return f"{_decimal(nanoseconds, size)}{unit}"
        return "0s"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{_decimal(rest, 10**9)}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    digits = str(rest).zfill(len(str(size)) - 1).rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)


__all__ = ["parse", "text_of"]
