"""What a worker and its program tell each other: one JSON object in a line."""

from __future__ import annotations

from typing import Any

from sandboxlib.errors import (
    ImageError,
    KernelError,
    SandboxError,
    StateError,
    TooLargeError,
    UnsupportedError,
    ViolationError,
)
from sandboxlib.image.owner import OwnerError


def encode_error(error: SandboxError) -> dict[str, Any]:
    """Put an error of this library into words that `decode_error` understands."""
    if isinstance(error, KernelError):
        return {"kind": "kernel", "args": [error.errno, error.call, error.step, error.hint]}
    if isinstance(error, OwnerError):
        return {"kind": "owner", "args": [error.feature, error.needs, error.hint]}
    if isinstance(error, UnsupportedError):
        return {"kind": "unsupported", "args": [error.feature, error.needs, error.hint]}
    if isinstance(error, TooLargeError):
        return {"kind": "large", "args": [error.where, error.what, error.limit, error.argument]}
    if isinstance(error, ViolationError):
        return {"kind": "violation", "args": [_without(str(error), error.path), error.path]}
    if isinstance(error, ImageError):
        return {"kind": "image", "args": [_without(str(error), error.reference), error.reference]}
    return {"kind": "state", "args": [str(error)]}


def _without(text: str, prefix: str) -> str:
    return text.removeprefix(f"{prefix}: ") if prefix else text


_ERRORS: dict[str, type[SandboxError]] = {
    "kernel": KernelError,
    "owner": OwnerError,
    "unsupported": UnsupportedError,
    "violation": ViolationError,
    "image": ImageError,
    "large": TooLargeError,
    "state": StateError,
}


def decode_error(found: dict[str, Any]) -> SandboxError:
    """The error that was encoded."""
    return _ERRORS[found["kind"]](*found["args"])


__all__ = ["decode_error", "encode_error"]
