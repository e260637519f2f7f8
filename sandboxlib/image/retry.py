"""
How often to ask again, and after how long.

Spec: RFC 9110, 10.2.3 (Retry-After); distribution-spec 1.1, "Error Codes" (TOOMANYREQUESTS).
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: Statuses after which the same request may be answered better.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
TRIES = 5
_FIRST = 0.25
_LONGEST = 10.0
#: Seconds beyond which nobody wants to wait for a registry that asks for it.
BEARABLE = 60.0


class Patience:
    """Counts the tries of one request, or of one download as long as it does not move on."""

    def __init__(self) -> None:
        self._tries = 0

    def renew(self) -> None:
        """Begin to count anew: something has moved on."""
        self._tries = 0

    def pause(self, asked: str = "") -> float | None:
        """
        How many seconds to wait before the next try; None to give up.

        Args:
            asked: The header ``Retry-After``.
        """
        self._tries += 1
        if self._tries >= TRIES:
            return None
        longest = min(_FIRST * (1 << self._tries - 1), _LONGEST)
        # Jitter: many programs that were sent away together do not come back together.
        pause = longest * (0.5 + random.random() / 2)  # noqa: S311 - no secret
        wanted = seconds(asked)
        if wanted > BEARABLE:
            return None
        return max(pause, wanted)


def seconds(asked: str) -> float:
    """The seconds that a ``Retry-After`` asks for; 0 if it cannot be read."""
    text = asked.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError, OverflowError):
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)


__all__ = ["BEARABLE", "PASSING", "TRIES", "Patience", "seconds"]
