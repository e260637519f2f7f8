"""What ``RUN --mount=`` says. Spec: Dockerfile reference, "RUN --mount"."""

from __future__ import annotations

import csv
import difflib
import posixpath
import re
from collections.abc import Callable
from typing import Any

from sandboxlib.build.operations import FromContext, Mount, Nothing, Origin
from sandboxlib.quantity import size as size_of

_TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
_SHARING = ("shared", "private", "locked")
#: Keys with the name that they have here, and the types of mounts that know them.
_KEYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "type": ("type", _TYPES),
    "target": ("target", _TYPES),
    "dst": ("target", _TYPES),
    "destination": ("target", _TYPES),
    "source": ("source", ("bind", "cache", "secret")),
    "src": ("source", ("bind", "cache", "secret")),
    "from": ("from", ("bind", "cache")),
    "readonly": ("readonly", ("bind", "cache", "tmpfs", "secret", "ssh")),
    "ro": ("readonly", ("bind", "cache", "tmpfs", "secret", "ssh")),
    "readwrite": ("readwrite", ("bind", "cache", "tmpfs")),
    "rw": ("readwrite", ("bind", "cache", "tmpfs")),
    "id": ("id", ("cache", "secret", "ssh")),
    "sharing": ("sharing", ("cache",)),
    "required": ("required", ("secret", "ssh")),
    "mode": ("mode", ("cache", "secret", "ssh")),
    "uid": ("uid", ("cache", "secret", "ssh")),
    "gid": ("gid", ("cache", "secret", "ssh")),
    "size": ("size", ("tmpfs",)),
    "env": ("env", ("secret",)),
}
_SWITCHES = {"readonly", "readwrite", "required"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MOST = 2**32 - 2


def fields(text: str) -> list[tuple[str, str | None]]:
    """
    Split it into its keys and values, the latter as they stand; None for a key without one.

    Raises:
        ValueError: It is not a list with commas between its parts.
    """
    if "\n" in text or "\r" in text:
        raise ValueError("--mount is one line")
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise ValueError(f"--mount={text[:60]} is no list with commas: {error}") from None
    found = []
    for part in rows[0] if rows else ():
        key, equals, value = part.partition("=")
        found.append((key.strip().lower(), value if equals else None))
    return found


def origin_name(text: str) -> str:
    """The ``from=`` of a mount, "" if it has none: it decides which stages are needed. Raises: ValueError."""
    for key, value in fields(text):
        if key == "from" and value:
            if re.search(r"\$.", value):
                raise ValueError(
                    "from= takes no variable: name a stage by FROM with the variable, and mount from that"
                )
            return value
    return ""


def parse(text: str, cwd: str, expand: Callable[[str], str], origin: Callable[[str], Origin]) -> Mount:
    """
    Read one.

    Args:
        text: What stands behind ``--mount=``.
        cwd: What a relative target begins at.
        expand: Replaces variables.
        origin: What ``from=`` stands for.

    Raises:
        ValueError: It is none; says what is allowed.
    """
    values: dict[str, str | None] = {}
    for key, value in fields(text):
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1)
            allowed = f"did you mean {close[0]}?" if close else f"there are {', '.join(_KEYS)}"
            raise ValueError(f"--mount has no {key[:40]!r}: {allowed}")
        name = _KEYS[key][0]
        if value is None and name not in _SWITCHES:
            raise ValueError(f"--mount needs a value for {key}: {key}=…")
        if name in values:
            raise ValueError(f"--mount has {key} twice")
        values[name] = value if value is None or name == "from" else expand(value)
    kind = (values.pop("type", None) or "bind").lower()
    if kind not in _TYPES:
        raise ValueError(f"--mount has no type {kind[:40]!r}: there are {', '.join(_TYPES)}")
    for name in values:
        known = next(types for own, types in _KEYS.values() if own == name)
        if kind not in known:
            raise ValueError(f"a mount of type {kind} has no {name}; {' and '.join(known)} have")
    return _mount(kind, values, cwd, origin)


def _mount(kind: str, values: dict[str, str | None], cwd: str, origin: Callable[[str], Origin]) -> Mount:
    target = values.get("target") or ""
    source = posixpath.normpath(posixpath.join("/", values.get("source") or "")).lstrip("/")
    found: dict[str, Any] = {"type": kind, "readonly": _readonly(kind, values)}
    if kind in {"secret", "ssh"}:
        found |= _private(kind, values, target)
        target = found.pop("target")
    elif not target:
        raise ValueError(f"a mount of type {kind} needs a target: target=/path")
    if kind == "cache":
        found["id"] = values.get("id") or posixpath.normpath(posixpath.join("/", cwd, target))
        found["sharing"] = (values.get("sharing") or "shared").lower()
        if found["sharing"] not in _SHARING:
            raise ValueError(f"sharing is one of {', '.join(_SHARING)}, not {found['sharing'][:40]!r}")
    if kind in {"bind", "cache"}:
        name = values.get("from") or ""
        found["source"] = source
        found["origin"] = origin(name) if name else Nothing() if kind == "cache" else FromContext()
    if "size" in values:
        found["size"] = _size(values["size"] or "")
    for name, base in (("uid", 10), ("gid", 10), ("mode", 8)):
        if name in values:
            found[name] = _number(name, values[name] or "", base)
    if target:
        target = posixpath.normpath(posixpath.join("/", cwd, target))
        target = "/" + target.lstrip("/")
        if target == "/":
            raise ValueError("nothing can be mounted over the root: target=/path")
    return Mount(target=target, **found)


def _readonly(kind: str, values: dict[str, str | None]) -> bool:
    for name, means in (("readonly", True), ("readwrite", False)):
        if name in values:
            return means if _true(name, values[name]) else not means
    return kind in {"bind", "secret", "ssh"}


def _private(kind: str, values: dict[str, str | None], target: str) -> dict[str, Any]:
    """What is said of a secret or an agent."""
    required = "required" in values and _true("required", values["required"])
    if kind == "ssh":
        return {"id": values.get("id") or "default", "required": required, "target": target}
    if values.get("source") and values.get("id"):
        raise ValueError("a secret is named by id, or by source, not by both")
    name = values.get("id") or values.get("source") or posixpath.basename(target)
    if not name:
        raise ValueError("a secret needs an id: id=name")
    env = values.get("env") or ""
    if env and not _NAME.fullmatch(env):
        raise ValueError(f"env is the name of a variable, not {env[:40]!r}")
    if not target and not env:
        target = f"/run/secrets/{posixpath.basename(name)}"
    return {"id": name, "required": required, "env": env, "target": target}


def _true(name: str, value: str | None) -> bool:
    if value is None or value.lower() in {"1", "t", "true"}:
        return True
    if value.lower() in {"0", "f", "false"}:
        return False
    raise ValueError(f"{name} is true or false, not {value[:40]!r}")


def _number(name: str, value: str, base: int) -> int:
    digits = "01234567" if base == 8 else "0123456789"
    number = int(value, base) if value and len(value) < 12 and not value.strip(digits) else -1
    if not 0 <= number <= (0o7777 if base == 8 else _MOST):
        allowed = "an octal mode such as 0755" if base == 8 else f"a number up to {_MOST}"
        raise ValueError(f"{name} is {allowed}, not {value[:40]!r}")
    return number


def _size(value: str) -> int:
    return size_of("size", value)


__all__ = ["fields", "origin_name", "parse"]
