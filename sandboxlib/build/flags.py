"""The flags of instructions: which there are, and what each may be."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from sandboxlib.build.dockerfile import Instruction

#: For each instruction its flags: "" has one value, "*" several, "?" is true or false.
FLAGS: Mapping[str, Mapping[str, str]] = {
    "FROM": {"platform": ""},
    "RUN": {"mount": "*", "network": "", "security": "", "device": "*"},
    "COPY": {"from": "", "chown": "", "chmod": "", "link": "?", "parents": "?", "exclude": "*"},
    "ADD": {
        "chown": "", "chmod": "", "link": "?", "keep-git-dir": "?", "checksum": "", "unpack": "?",
        "exclude": "*",
    },
    "HEALTHCHECK": {"interval": "", "timeout": "", "start-period": "", "start-interval": "", "retries": ""},
}  # fmt: skip


class Flags:
    """
    The flags of one instruction, by name.

    Raises:
        ValueError: One is unknown, stands twice, or has no value that it may have.
    """

    def __init__(self, instruction: Instruction) -> None:
        known = FLAGS.get(instruction.name, {})
        self._values: dict[str, list[str]] = {}
        for flag in instruction.flags:
            name, equals, value = flag.removeprefix("--").partition("=")
            kind = known.get(name)
            if kind is None:
                raise ValueError(_unknown(instruction.name, name, known))
            if name in self._values and kind != "*":
                raise ValueError(f"the flag --{name} stands twice")
            if kind == "?":
                value = value.lower() if equals else "true"
                if value not in {"true", "false"}:
                    raise ValueError(f"the flag --{name} is true or false, not {value[:40]!r}")
            elif not equals:
                raise ValueError(f"the flag --{name} needs a value: --{name}=…")
            self._values.setdefault(name, []).append(value)

    def one(self, name: str) -> str:
        """The value of a flag; "" if it is not there."""
        return self._values.get(name, [""])[0]

    def all(self, name: str) -> tuple[str, ...]:
        """All values of a flag."""
        return tuple(self._values.get(name, ()))

    def true(self, name: str) -> bool | None:
        """Whether it is; None if it is not there."""
        return {"true": True, "false": False, "": None}[self.one(name)]


def _unknown(instruction: str, name: str, known: Mapping[str, str]) -> str:
    text = f"{instruction} has no flag --{name[:40]}"
    if not known:
        return f"{text}: it has none"
    close = difflib.get_close_matches(name[:40], known, n=1)
    if close:
        return f"{text}: did you mean --{close[0]}?"
    return f"{text}: there are {', '.join(f'--{each}' for each in known)}"


__all__ = ["FLAGS", "Flags"]
