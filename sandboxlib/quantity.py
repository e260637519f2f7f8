"""
What users write for sizes, CPUs, times and paths, brought into one form.

Base units everywhere: bytes, seconds, CPUs. Each function takes the field's
name first, so that the `SpecError` it raises can say which argument was wrong.
"""

from __future__ import annotations

import os
import posixpath
import re

from sandboxlib.errors import SpecError

# So few digits that no number is too long for int() or too large for float().
_SIZE = re.compile(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([bkmgtp]?)(?:i?b)?\s*", re.IGNORECASE | re.ASCII)
_FACTOR = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}

#: The largest number that every kernel interface takes.
MAX = (1 << 63) - 1
# A hundred years: in milliseconds it still fits all timers.
_LONGEST = 100 * 366 * 86400
# CONFIG_NR_CPUS of the largest machines.
_MOST_CPUS = 8192


def size(field: str, value: object, *, minimum: int = 0) -> int:
    """
    Read a size in bytes: a whole number, or a string such as ``"256M"``.

    Multiples are binary and the letter's case and a trailing ``B`` or ``iB`` do
    not matter, as Docker reads them: ``"1.5g"``, ``"64KiB"``, ``"512b"``.

    Raises:
        SpecError: It is not a size, or below *minimum*.
    """
    allowed = f'a size of at least {minimum} bytes, such as 268435456 or "256M"'
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise SpecError(field, value, allowed)
        number = (
            round(float(match[1]) * _FACTOR[match[2].lower()])
            if "." in match[1]
            else int(match[1]) * _FACTOR[match[2].lower()]
        )
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise SpecError(field, value, allowed)
    if not minimum <= number <= MAX:
        raise SpecError(field, value, allowed)
    return number


def seconds(field: str, value: object) -> float:
    """Read a time in seconds: a number above zero. Raises: SpecError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LONGEST:
        raise SpecError(field, value, "a number of seconds above 0, and at most a hundred years")
    return float(value)


def count(field: str, value: object, *, minimum: int = 1, maximum: int = MAX) -> int:
    """Read a whole number within bounds. Raises: SpecError."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        top = "" if maximum == MAX else f" and at most {maximum}"
        raise SpecError(field, value, f"a whole number of at least {minimum}{top}")
    return value


def cpus(field: str, value: object) -> float:
    """Read a number of CPUs such as 0.5 or 2; the kernel's least is 0.01. Raises: SpecError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.01 <= value <= _MOST_CPUS:
        raise SpecError(field, value, f"a number of CPUs from 0.01 to {_MOST_CPUS}, such as 0.5")
    return float(value)


def cpu_list(field: str, value: object) -> tuple[int, ...]:
    """
    Read a CPU or memory-node list as the kernel writes it: ``"0-3,6"``.

    A list or tuple of numbers is taken too. Returns the numbers, sorted.

    Kernel: cpuset(7), List format.
    """
    allowed = 'a list such as "0-3,6" or (0, 1)'
    numbers: set[int] = set()
    if isinstance(value, str):
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part, re.ASCII)
            if (
                match is None
                or (match[2] and int(match[2]) < int(match[1]))
                or int(match[2] or match[1]) > 8191
            ):
                raise SpecError(field, value, allowed)
            numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    elif isinstance(value, (list, tuple, set, frozenset, range)):
        for item in value:
            numbers.add(count(field, item, minimum=0, maximum=8191))
    else:
        raise SpecError(field, value, allowed)
    if not numbers:
        raise SpecError(field, value, allowed)
    return tuple(sorted(numbers))


def text(field: str, value: object, *, empty: bool = False) -> str:
    """Read a string without NUL. Raises: SpecError."""
    if not isinstance(value, str) or "\0" in value or not (value or empty) or not encodes(value):
        raise SpecError(
            field, value, "a string without NUL" if empty else "a string that is not empty and has no NUL"
        )
    return value


def absolute(field: str, value: object) -> str:
    """
    Read an absolute path, and make it plain: no ``.``, ``..``, or double slash.

    ``..`` is refused rather than resolved: what it means depends on links.

    Raises:
        SpecError: It is relative, has ``..`` or a NUL, or is not a path.
    """
    allowed = "an absolute path without '..' and NUL"
    try:
        path = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        raise SpecError(field, value, allowed) from None
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not path.startswith("/") or "\0" in path or ".." in path.split("/") or not encodes(path):
        raise SpecError(field, value, allowed)
    plain: str = posixpath.normpath(path)
    # Two slashes at the start would stay: POSIX leaves their meaning open.
    return plain[1:] if plain.startswith("//") else plain


def encodes(value: str) -> bool:
    """Can it be handed to the kernel? Surrogates that do not stand for a byte cannot."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True
