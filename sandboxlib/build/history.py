"""
What the history of an image says of its steps, in the words that Docker's has.

Spec: image-spec config.md, "history"; the texts are those of BuildKit, so that tools which read
them know them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sandboxlib.build import durations
from sandboxlib.image.model import Health

_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}
#: Behind what a builder has done, and not only noted.
_DONE = " # buildkit"


def quoted(words: Iterable[str]) -> str:
    """Words in brackets, each in double quotes, as Go prints them with %q."""
    return f"[{' '.join(map(_quoted, words))}]"


def _quoted(word: str) -> str:
    return (
        '"'
        + "".join(_ESCAPES.get(each) or (each if each.isprintable() else _number(each)) for each in word)
        + '"'
    )


def _number(character: str) -> str:
    code = ord(character)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def pairs(instruction: str, values: Iterable[tuple[str, str]]) -> str:
    """Of ENV and LABEL."""
    return " ".join((instruction, *(f"{name}={value}" for name, value in values)))


def arguments(values: Iterable[tuple[str, str | None]]) -> str:
    """Of ARG."""
    return " ".join(("ARG", *(name if value is None else f"{name}={value}" for name, value in values)))


def run(argv: Sequence[str], args: Mapping[str, str]) -> str:
    """Of RUN, with the arguments that it sees."""
    seen = [f"{name}={value}" for name, value in args.items()]
    return " ".join(("RUN", *([f"|{len(seen)}", *seen] if seen else ()), *argv)) + _DONE


def copy(
    instruction: str, sources: Iterable[str], destination: str, *, chown: str, chmod: str, parents: bool
) -> str:
    """Of COPY and ADD."""
    words = [instruction]
    words += ["--parents"] if parents else []
    words += [f"--chown={chown}"] if chown else []
    words += [f"--chmod={chmod}"] if chmod else []
    return " ".join((*words, *sources, destination)) + _DONE


def health(found: Health) -> str:
    """Of HEALTHCHECK."""
    times = " ".join(
        f"{name}:{durations.text_of(value or 0)}"
        for name, value in (
            ("Interval", found.interval),
            ("Timeout", found.timeout),
            ("StartPeriod", found.start_period),
            ("StartInterval", found.start_interval),
        )
    )
    return f"HEALTHCHECK {{Test:[{' '.join(found.test or ())}] {times} Retries:{found.retries or 0}}}"


def listed(instruction: str, words: Iterable[str]) -> str:
    """Of VOLUME, EXPOSE and SHELL."""
    return f"{instruction} [{' '.join(words)}]"


__all__ = ["arguments", "copy", "health", "listed", "pairs", "quoted", "run"]
