"""
What a registry says when it refuses, and answers that are read no further than a bound.

Spec: distribution-spec 1.1, "Error Codes".
"""

from __future__ import annotations

from typing import Any

from sandboxlib.errors import ImageError

#: Bytes of an answer that only says why not.
ERROR_LIMIT = 64 << 10
_SHOWN = 300

_HINTS = {
    "UNAUTHORIZED": "the repository needs a login, or does not exist; see login()",
    "DENIED": "the login may not do this, or the repository does not exist",
    "NAME_UNKNOWN": "there is no such repository, or it is empty",
    "MANIFEST_UNKNOWN": "the repository has no such tag or digest",
    "TOOMANYREQUESTS": "the registry limits how much is asked of it: log in, or wait",
    "UNSUPPORTED": "this registry does not offer it, or its configuration forbids it",
}
#: Where the registry gives no code of its own.
_BY_STATUS = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}


class RegistryError(ImageError):
    """
    A registry refused a request.

    Attributes:
        status: The HTTP status.
        code: The registry's own code, such as ``MANIFEST_UNKNOWN``; may be empty.
        retry_after: When to ask again, as the header of this name says it; may be empty.
    """

    def __init__(
        self, message: str, reference: str = "", *, status: int = 0, code: str = "", retry_after: str = ""
    ) -> None:
        self.status = status
        self.code = code
        self.retry_after = retry_after
        super().__init__(message, reference)


class UnreachableError(ImageError):
    """
    A registry could not be reached, or stopped in the middle of an answer.

    Attributes:
        passing: Another try may do better.
        plain: What answered does not speak TLS, or nothing answered at all.
    """

    def __init__(
        self, message: str, reference: str = "", *, passing: bool = True, plain: bool = False
    ) -> None:
        self.passing = passing
        self.plain = plain
        super().__init__(message, reference)


def shown(text: object) -> str:
    """What somebody else has written, for an error: one line, not long, nothing that a terminal obeys."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(text)[: 4 * _SHOWN])
    line = " ".join(line.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def decode(raw: bytes, what: str, reference: str = "") -> dict[str, Any]:
    """
    Read a JSON object.

    Raises:
        ImageError: It is none.
    """
    import msgspec

    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise ImageError(f"{what} is not a JSON object", reference) from None


def refusal(status: int, body: bytes, tried: str, reference: str, retry_after: str = "") -> RegistryError:
    """
    Make an error of an answer.

    Args:
        status: The HTTP status.
        body: What came with it, at most `ERROR_LIMIT` bytes.
        tried: What had been asked, such as ``GET the manifest``.
        reference: Registry and repository.
        retry_after: The header of this name.
    """
    code, said = "", ""
    try:
        errors = decode(body, "", "").get("errors")
    except ImageError:
        errors = None
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        first = errors[0]
        code = shown(first.get("code") or "")
        said = shown(first.get("message") or "")
    code = code or _BY_STATUS.get(status, "")
    text = f"{tried}: the registry answered {status}"
    text += f" {code}" if code else ""
    text += f" ({said})" if said else ""
    if hint := _HINTS.get(code):
        text += f"; hint: {hint}"
    return RegistryError(text, reference, status=status, code=code, retry_after=retry_after)


__all__ = ["ERROR_LIMIT", "RegistryError", "UnreachableError", "decode", "refusal", "shown"]
