"""
How often to ask again, and after how long.

Spec: RFC 9110, 10.2.3 (Retry-After); distribution-spec 1.1, "Error Codes" (TOOMANYREQUESTS).
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from sandboxlib.errors import ImageError
from sandboxlib.image.answers import RegistryError, UnreachableError

#: Statuses after which the same request may be answered better.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
#: What says that too much is asked of it.
_LIMITED = 429
TRIES = 5
_FIRST = 0.25
_LONGEST = 10.0
#: A limit passes when its window has, which is a minute more often than a second: all pauses for it together.
LIMITED_TRIES = 6
_LIMITED_LONGER = 8
_LIMITED_LONGEST = 32.0
#: Seconds beyond which nobody wants to wait for a registry that asks for it.
BEARABLE = 60.0


class Patience:
    """Counts the tries of one request, or of one download as long as it does not move on."""

    def __init__(self) -> None:
        self._tries = 0

    def renew(self) -> None:
        """Begin to count anew: something has moved on."""
        self._tries = 0

    def after(self, error: ImageError, *, passes: bool = False) -> float | None:
        """
        How many seconds to wait after *error*; None to give up, for it stays, or has come too often.

        *passes*: Another try may do better, whatever the error is.
        """
        if isinstance(error, RegistryError):
            passes = passes or error.status in PASSING
            asked, limited = error.retry_after, error.status == _LIMITED
        else:
            passes = passes or (isinstance(error, UnreachableError) and error.passing)
            asked, limited = "", False
        return self.pause(asked, limited=limited) if passes else None

    def pause(self, asked: str = "", *, limited: bool = False) -> float | None:
        """
        How many seconds to wait before the next try; None to give up.

        Args:
            asked: The header ``Retry-After``.
            limited: Too much is asked of the registry.
        """
        self._tries += 1
        wanted = seconds(asked)
        # Who says how long need not be guessed at.
        limited = limited and not wanted
        if self._tries >= (LIMITED_TRIES if limited else TRIES) or wanted > BEARABLE:
            return None
        first, most = (_LIMITED_LONGER * _FIRST, _LIMITED_LONGEST) if limited else (_FIRST, _LONGEST)
        longest = min(first * (1 << self._tries - 1), most)
        # Jitter: many programs that were sent away together do not come back together.
        return max(longest * (0.5 + random.random() / 2), wanted)  # noqa: S311 - no secret


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


__all__ = ["BEARABLE", "LIMITED_TRIES", "PASSING", "TRIES", "Patience", "seconds"]
