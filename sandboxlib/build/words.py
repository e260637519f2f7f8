"""
Words of instructions, and what they stand for: ports, destinations, owners, documents.

Spec: Dockerfile reference, "EXPOSE", "COPY", "Here-Documents".
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from sandboxlib.build import durations
from sandboxlib.build.flags import Flags

#: The flags of HEALTHCHECK that are lengths of time, as an image names them.
TIMES = ("interval", "timeout", "start_period", "start_interval")


def time_of(flags: Flags, name: str) -> int | None:
    """A length of time in nanoseconds; None where nothing, or 0, is said. Raises: ValueError."""
    text = flags.one(name)
    if not text:
        return None
    found = durations.parse(text)
    if found and found < 10**6:
        raise ValueError(f"--{name} is 0, or at least 1ms")
    return found or None


def retries(text: str) -> int | None:
    """How often something is tried; None where nothing, or 0, is said. Raises: ValueError."""
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"--retries is a whole number, not {text[:40]!r}")
    return int(text) or None


def environment(lines: Iterable[str]) -> dict[str, str]:
    """The variables of an image, in order."""
    found = {}
    for line in lines:
        name, _, value = line.partition("=")
        found[name] = value
    return found


def document(word: str) -> str:
    """The name of the here-document that a word stands for; "" if it stands for none."""
    match = re.fullmatch(r"\d*<<-?\s*(\S+)", word, re.ASCII)
    return re.sub(r"[\"'\\]", "", match[1]) if match else ""


def absolute(cwd: str, path: str) -> str:
    """*path* from the root, where it is relative to *cwd*."""
    return "/" + posixpath.normpath(posixpath.join("/", cwd, path)).lstrip("/")


def inside(path: str) -> str:
    """From the top, without leading there by dots; "" for the top itself."""
    return posixpath.normpath(posixpath.join("/", path)).lstrip("/")


def destination(cwd: str, text: str) -> str:
    """Where a COPY goes: absolute, and with a slash at its end where it has to be a folder."""
    if "\0" in text:
        raise ValueError("the destination has a zero byte in it")
    folder = text in {"", ".", ".."} or text.endswith(("/", "/.", "/.."))
    path = absolute(cwd, text)
    return path if path == "/" or not folder else f"{path}/"


def is_numeric(chown: str) -> bool:
    """Is it told without names whose files become?"""
    return all(part.isdecimal() for part in chown.split(":") if part)


def check_owner(chown: str) -> None:
    """Refuse what no user and group can be. Raises: ValueError."""
    user, colon, group = chown.partition(":")
    if chown and (not user or (colon and not group) or ":" in group):
        raise ValueError(f"--chown is user or user:group, not {chown[:60]!r}")
    for part in (user, group):
        if part.isdecimal() and int(part[:11]) > 2**32 - 2:
            raise ValueError(f"--chown has a number beyond {2**32 - 2}: {part[:40]}")


def ports(word: str) -> list[str]:
    """The ports that a word of EXPOSE names, such as ``80/tcp``."""
    ports, slash, protocol = word.rpartition(":")[2].partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in {"tcp", "udp", "sctp"}:
        raise ValueError(f"the protocol of {word[:40]!r} is tcp, udp or sctp")
    first, dash, last = ports.partition("-")
    numbers = [
        int(each) if each.isdecimal() and len(each) < 6 else -1 for each in (first, last if dash else first)
    ]
    if not all(0 <= number < 65536 for number in numbers) or numbers[0] > numbers[1]:
        raise ValueError(f"{word[:40]!r} is no port such as 80, 53/udp or 8000-8010")
    return [f"{number}/{protocol}" for number in range(numbers[0], numbers[1] + 1)]


__all__ = [
    "TIMES", "absolute", "check_owner", "destination", "document", "environment", "inside", "is_numeric",
    "ports", "retries", "time_of",
]  # fmt: skip
