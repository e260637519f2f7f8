"""
Programs that keep passwords: ``docker-credential-NAME get``, ``store`` and ``erase``.

They speak JSON over their standard input and output. The registry's name goes to the standard input, so
that no password is ever an argument that others can see in /proc.

Spec: docker-credential-helpers, README.md, "Development".
"""

from __future__ import annotations

import re
import subprocess
from typing import Any, NamedTuple

from sandboxlib.errors import ImageError

#: Seconds that a helper may take: it may ask somebody to unlock a key ring.
TIMEOUT = 60.0
_LIMIT = 1 << 20
#: A name, never a path: the file with the name may come from somewhere else.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MISSING = "credentials not found in native keychain"


class Login(NamedTuple):
    """What a helper knows of a registry; `username` is ``<token>`` if the secret is an identity token."""

    username: str
    secret: str

    def __repr__(self) -> str:
        return f"Login(username={self.username!r}, secret=…)"


def get(name: str, server: str) -> Login | None:
    """
    What helper *name* keeps for *server*; None if that is nothing.

    Raises:
        ImageError: There is no such helper, or it failed.
    """
    import msgspec

    raw = _run(name, "get", server.encode(), server)
    if raw is None:
        return None
    try:
        answer: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise ImageError(f"docker-credential-{name} did not answer with JSON", server) from None
    username, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise ImageError(f"docker-credential-{name} answered without Username and Secret", server)
    return Login(username, secret) if secret else None


def store(name: str, server: str, login: Login) -> None:
    """
    Have helper *name* keep a login.

    Raises:
        ImageError: There is no such helper, or it failed.
    """
    import msgspec

    entry = {"ServerURL": server, "Username": login.username, "Secret": login.secret}
    _run(name, "store", msgspec.json.encode(entry), server)


def erase(name: str, server: str) -> None:
    """
    Have helper *name* forget a login.

    Raises:
        ImageError: There is no such helper, or it failed.
    """
    _run(name, "erase", server.encode(), server)


def _run(name: str, verb: str, text: bytes, server: str) -> bytes | None:
    """What the helper wrote; None if it keeps nothing for this server."""
    if not _NAME.fullmatch(name):
        raise ImageError(f"{name!r} cannot be the name of a credential helper", server)
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run([program, verb], input=text, capture_output=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError:
        raise ImageError(f"the credential helper {program} is not installed", server) from None
    except subprocess.TimeoutExpired:
        raise ImageError(f"{program} {verb} did not end within {TIMEOUT:.0f} s", server) from None
    except OSError as error:
        raise ImageError(f"{program} {verb}: {error.strerror}", server) from None
    if len(done.stdout) > _LIMIT:
        raise ImageError(f"{program} {verb} wrote more than {_LIMIT} bytes", server)
    if done.returncode == 0:
        return done.stdout
    if verb != "store" and _MISSING in done.stdout.decode(errors="replace"):
        return None
    # Not what it wrote: nobody knows whether a secret is in it.
    raise ImageError(f"{program} {verb} failed with status {done.returncode}", server)


__all__ = ["TIMEOUT", "Login", "erase", "get", "store"]
