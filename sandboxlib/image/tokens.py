"""
Saying who one is: Basic, and bearer tokens that are fetched, kept by scope and fetched anew.

The first request carries nothing. Its 401 says which way the registry wants; from then on every request
carries what its scope needs, and another 401 makes one more token, once for each request.

Spec: RFC 7617; distribution, "Token authentication specification" and "OAuth2 token authentication".
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from sandboxlib.errors import ImageError
from sandboxlib.image import trust
from sandboxlib.image.answers import ERROR_LIMIT, decode, refusal, shown
from sandboxlib.image.auth import Credentials
from sandboxlib.image.challenge import Challenge, parse
from sandboxlib.image.connection import Answer, Transport

_LIMIT = 1 << 20
#: Seconds that a token is good for where its maker does not say, and at least, as Docker has it.
_SHORTEST = 60.0
_LONGEST = 86_400.0
#: Seconds before its end from which on a token is not used any more.
_MARGIN = 5.0
_CLIENT = "sandboxlib"

Scopes = tuple[str, ...]


def scope(repository: str, *actions: str) -> str:
    """What a token allows in a repository: ``repository:team/app:pull,push``."""
    return f"repository:{repository}:{','.join(actions)}"


class Authenticator:
    """
    What goes into ``Authorization`` of the requests to one registry. Several threads may call its methods.

    Args:
        registry: As in a `Reference`, for errors.
        transport: What token servers are asked through.
        find: Looks for the login; called when the registry asks for one, and once for each repository.
    """

    def __init__(
        self, registry: str, transport: Transport, find: Callable[[str], Credentials | None]
    ) -> None:
        self._registry = registry
        self._transport = transport
        self._find = find
        self._lock = threading.RLock()
        self._logins: dict[str, Credentials | None] = {}
        self._challenge: Challenge | None = None
        self._secure = True
        self._tokens: dict[Scopes, tuple[str, float]] = {}
        #: Refresh tokens that a token server gave in place of a password.
        self._refresh: dict[tuple[str, str], str] = {}

    def header(self, scopes: Scopes, repository: str) -> str:
        """
        The value for ``Authorization``; empty as long as the registry has not asked for any.

        Raises:
            ImageError: A token was not to be had.
        """
        # Held while a token is fetched: other threads want the same one.
        with self._lock:
            challenge = self._challenge
            if challenge is None:
                return ""
            if challenge.scheme == "basic":
                login = self._login(repository)
                return _basic(login) if login and login.password else ""
            token, until = self._tokens.get(scopes, ("", 0.0))
            if not token or time.monotonic() >= until:
                token, until = self._fetch(challenge, scopes, repository)
                self._tokens[scopes] = token, until
            return f"Bearer {token}"

    def can_answer(self, answer: Answer, repository: str) -> bool:
        """Does a 401 ask for what can be had here: a token from somewhere, or a login that is known?"""
        for challenge in parse(answer.headers("WWW-Authenticate")):
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                return True
            if challenge.scheme == "basic":
                with self._lock:
                    login = self._login(repository)
                if login and login.password:
                    return True
        return False

    def refused(self, answer: Answer, scopes: Scopes, repository: str, sent: str) -> bool:
        """
        Take a 401 in; True if another try may do better.

        Args:
            answer: The registry's own, not that of another host.
            scopes: What the request needs.
            repository: What it is about.
            sent: The header that the request had.

        Raises:
            ImageError: The registry asks for a way that is not known here.
        """
        challenges = parse(answer.headers("WWW-Authenticate"))
        with self._lock:
            known = {challenge.scheme: challenge for challenge in reversed(challenges)}
            chosen = known.get("bearer") or known.get("basic")
            if chosen is None:
                names = (
                    ", ".join(shown(challenge.scheme) for challenge in challenges)
                    or "nothing that can be read"
                )
                text = f"asks for a login by {names}; known here are Basic and Bearer"
                raise ImageError(text, self._registry)
            self._challenge = chosen
            self._secure = urlsplit(answer.url).scheme == "https"
            if chosen.scheme == "basic":
                login = self._login(repository)
                return bool(login and login.password) and not sent
            # Another thread may have got a new one already.
            token, _ = self._tokens.get(scopes, ("", 0.0))
            if sent == f"Bearer {token}":
                self._tokens.pop(scopes, None)
            return True

    def _login(self, repository: str) -> Credentials | None:
        if repository not in self._logins:
            self._logins[repository] = self._find(repository)
        return self._logins[repository]

    def _fetch(self, challenge: Challenge, scopes: Scopes, repository: str) -> tuple[str, float]:
        """A new token and the time until which it is good."""
        login = self._login(repository)
        if login and login.registry_token:
            if not _sendable(login.registry_token):
                raise ImageError("its token in the file of logins cannot be sent", self._registry)
            return login.registry_token, float("inf")
        realm = challenge.parameters.get("realm", "")
        service = challenge.parameters.get("service", "")
        self._check(realm)
        # Where it is not known what the request needs, the registry has said so.
        wanted = scopes or tuple(challenge.parameters.get("scope", "").split())
        refresh = (login.identity_token if login else "") or self._refresh.get((realm, service), "")
        if refresh:
            form = {"grant_type": "refresh_token", "refresh_token": refresh}
            answer = self._post(realm, form | {"service": service, "client_id": _CLIENT}, wanted)
        else:
            answer = self._get(realm, service, wanted, login)
        made = time.monotonic()
        with answer:
            if answer.status != 200:
                text, again = answer.start(ERROR_LIMIT), answer.header("Retry-After")
                raise refusal(answer.status, text, "fetching a token", self._registry, again)
            content = decode(answer.body(_LIMIT, "the token server's answer"), "the token server's answer")
        token = content.get("token") or content.get("access_token")
        if not isinstance(token, str) or not _sendable(token):
            raise ImageError("the token server's answer has no token", self._registry)
        if (
            isinstance(more := content.get("refresh_token"), str)
            and more
            and not (login and login.identity_token)
        ):
            self._refresh[realm, service] = more
        return token, made + _lifetime(content) - _MARGIN

    def _check(self, realm: str) -> None:
        """Refuse a token server that others could listen to or that is no URL."""
        try:
            parts = urlsplit(realm)
            host = parts.hostname or ""
        except ValueError:
            host = ""
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
            raise ImageError(f"its token server {shown(realm)!r} is not a URL of http", self._registry)
        if parts.scheme == "http" and self._secure and not trust.is_loopback(host):
            text = (
                f"speaks https, and its token server {shown(parts.netloc)} does not: no login is sent there"
            )
            raise ImageError(text, self._registry)

    def _get(self, realm: str, service: str, scopes: Scopes, login: Credentials | None) -> Answer:
        query = [("service", service)] if service else []
        query += [("scope", one) for one in scopes]
        headers = {}
        if login and login.password:
            query.append(("account", login.username))
            headers["Authorization"] = _basic(login)
        parts = urlsplit(realm)
        joined = "&".join(filter(None, (parts.query, urlencode(query))))
        url = urlunsplit((parts.scheme, parts.netloc, parts.path or "/", joined, ""))
        return self._transport.send("GET", url, headers, follow=True)

    def _post(self, realm: str, form: dict[str, str], scopes: Scopes) -> Answer:
        body = urlencode(form | {"scope": " ".join(scopes)}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(body))}
        return self._transport.send("POST", realm, headers, body)


def _sendable(token: str) -> bool:
    """Can it be in a header, without being two of them?"""
    return bool(token) and token.isascii() and token.isprintable()


def _basic(login: Credentials) -> str:
    pair = f"{login.username}:{login.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _lifetime(content: dict[str, Any]) -> float:
    seconds = content.get("expires_in")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return _SHORTEST
    return float(min(max(seconds, _SHORTEST), _LONGEST))


__all__ = ["Authenticator", "Scopes", "scope"]
