"""
Requests to one registry: logged in, there and where it sends to, and tried again.

Spec: distribution-spec 1.1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image import auth, trust
from sandboxlib.image.answers import ERROR_LIMIT, RegistryError, UnreachableError, refusal
from sandboxlib.image.auth import Credentials
from sandboxlib.image.connection import CHUNK, REDIRECTS, TRANSFER, Answer, Transport, origin
from sandboxlib.image.retry import Patience
from sandboxlib.image.stopping import Stop
from sandboxlib.image.tokens import Authenticator, Scopes
from sandboxlib.image.working import Crew, never
from sandboxlib.reference import HUB, Reference

T = TypeVar("T")

#: Docker Hub's API is not where its name says.
_HUB_HOST = "registry-1.docker.io"

Body = bytes | Callable[[], Iterable[bytes]] | None


class Session:
    """
    Asks one registry; close it, or use it in a ``with`` block.

    Several threads may use it at once, unless *cancelled* is given: what gives up one call gives up all.

    Args:
        registry: Host, with its port if it has one; ``docker.io`` for Docker Hub.
        insecure: Speak HTTP where the registry has no TLS. If not, that is done on this machine only, and
            with those that the environment variable SANDBOXLIB_INSECURE_REGISTRIES lists. Where there is
            TLS its certificate has to be right in any case.
        credentials: The login; None looks in Docker's and podman's files.
        ca: A file with certificates of more authorities to trust.
        cancelled: Raises to give up; called several times a second while anything waits.
        stop: Ends all requests from another thread; *cancelled* is not called then.

    Raises:
        SpecError: *registry* or *credentials* are none.
    """

    def __init__(
        self,
        registry: str,
        *,
        insecure: bool | None = None,
        credentials: Credentials | tuple[str, str] | None = None,
        ca: str | None = None,
        cancelled: Callable[[], None] | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.name = Reference.parse(f"{registry}/a/b", "registry").registry
        port = self.name.rpartition(":")[2]
        if port.isdigit() and not 0 < int(port) < 65_536:
            raise SpecError("registry", registry, "a host, with a port from 1 to 65535 or without")
        self.host = _HUB_HOST if self.name == HUB else self.name
        given = None if credentials is None else Credentials.of(credentials)
        self.stop = Stop() if stop is None else stop
        self._cancelled = None if stop is not None else cancelled
        self.transport = Transport(self.host, ca=ca, stop=self.stop)
        self._authenticator = Authenticator(
            self.name, self.transport, lambda repository: given or auth.find(self.name, repository)
        )
        self._plain = trust.may_be_plain(self.name, insecure)
        self._lock = threading.Lock()
        self._base = ""
        #: For hosts that this one sends to, each by what is asked for there.
        self._elsewhere: dict[tuple[tuple[str, str, int], str], Authenticator] = {}

    def close(self) -> None:
        """Close all connections."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def work(self, function: Callable[[], T]) -> T:
        """Call what asks the registry so that it can be given up."""
        if self._cancelled is None or self._cancelled is never:
            return function()
        with Crew(self.stop, self._cancelled, threads=1) as crew:
            return crew.run(function)

    def repository(self, name: str) -> str:
        """
        The whole name of a repository here.

        Raises:
            SpecError: It cannot be one.
        """
        return Reference.parse(f"{self.name}/{name}", "repository").repository

    # --- requests -----------------------------------------------------------------------------------

    def base(self) -> str:
        """
        How the registry's URLs begin, found out by the first request: ``https://host:5000``.

        Raises:
            UnreachableError: Nothing there speaks HTTP, or only without TLS, which was not asked for.
        """
        with self._lock:
            if self._base:
                return self._base
            base = f"https://{self.host}"
            if self._plain:
                try:
                    self._greet(base)
                except UnreachableError as error:
                    # A certificate that is not trusted is no reason to do without.
                    if not error.plain:
                        raise
                    base = f"http://{self.host}"
                    try:
                        self._greet(base)
                    except UnreachableError:
                        raise error from None
            self._base = base
            return base

    def _greet(self, base: str) -> None:
        with self.transport.send("GET", f"{base}/v2/", {}) as answer:
            answer.start(ERROR_LIMIT)

    def once(
        self,
        method: str,
        url: str,
        *,
        scopes: Scopes,
        repository: str,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        follow: bool = False,
    ) -> Answer:
        """
        Send one request, logged in, and a second time with a new token if the first is refused.

        Args:
            method: Such as ``GET``.
            url: Whole, or a path here.
            scopes: What it needs of a token.
            repository: What it is about; empty for the registry itself.
            headers: More headers.
            body: Bytes, or what makes an iterable of them.
            follow: Follow redirects.

        Raises:
            ImageError: No answer, no token, or an answer that makes no sense.
        """
        base = self.base()
        url = base + url if url.startswith("/") else url
        for _ in range(REDIRECTS + 1):
            answer = self._logged_in(method, url, scopes, repository, headers or {}, body)
            target = answer.header("Location") if follow and answer.status in TRANSFER else ""
            if not target:
                return answer
            with answer:
                answer.start(CHUNK)
                url = self.transport.join(answer.url, target)
        raise ImageError(f"sends from one place to another more than {REDIRECTS} times", self.name)

    def _logged_in(
        self, method: str, url: str, scopes: Scopes, repository: str, headers: Mapping[str, str], body: Body
    ) -> Answer:
        """Send a request to one host with the login for that host, and a second time if it asks for one."""
        base = self.base()
        own = origin(url) == origin(base)
        where = (origin(url), repository)
        if not own:
            # What is asked for may have another name there, so its challenge says what it takes.
            scopes = ()
        for last in (False, True):
            with self._lock:
                authenticator = self._authenticator if own else self._elsewhere.get(where)
            sent = dict(headers)
            login = authenticator.header(scopes, repository) if authenticator is not None else ""
            if login:
                sent["Authorization"] = login
            content = body() if callable(body) else body
            answer = self.transport.send(method, url, sent, content)
            if answer.status != 401 or last:
                return answer
            if authenticator is None:
                with self._lock:
                    authenticator = self._elsewhere.setdefault(where, self._other(url))
            # A store of files, to which registries send with a signature in the URL, may ask for more.
            if not own and not authenticator.can_answer(answer, repository):
                return answer
            with answer:
                text = answer.start(ERROR_LIMIT)
                again = authenticator.refused(answer, scopes, repository, login)
            if not again:
                raise self.refusal(answer, text, f"{method} {_path(url)}", repository)
        raise AssertionError  # the second round returns or raises

    def _other(self, url: str) -> Authenticator:
        """Logs in to the host of *url*: by what is kept for that, never by what was given for this one."""
        parts = urlsplit(url)
        name = parts.netloc

        def find(repository: str) -> Credentials | None:
            if parts.scheme != "https" and not trust.may_be_plain(name, insecure=None):
                return None
            return auth.find(name, repository)

        return Authenticator(name, self.transport, find)

    def request(
        self,
        method: str,
        url: str,
        *,
        tried: str,
        scopes: Scopes,
        repository: str = "",
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        follow: bool = False,
        allowed: Collection[int] = (200,),
        limit: int = 0,
    ) -> Answer:
        """
        Send a request until it is answered, and the answer read if *limit* is given; see `once`.

        Args:
            method: Such as ``GET``.
            url: Whole, or a path here.
            tried: What it is, for errors.
            scopes: What it needs of a token.
            repository: What it is about.
            headers: More headers.
            body: Bytes, or what makes an iterable of them.
            follow: Follow redirects.
            allowed: Statuses that are answers; all others are errors.
            limit: Bytes that the body may have, which becomes the answer's `content`.

        Raises:
            RegistryError: The registry refuses.
            ImageError: No answer after several tries, no token, or an answer that makes no sense.
        """
        patience = Patience()
        while True:
            try:
                answer = self.once(
                    method,
                    url,
                    scopes=scopes,
                    repository=repository,
                    headers=headers,
                    body=body,
                    follow=follow,
                )
                if answer.status in allowed:
                    if limit:
                        self._read(answer, limit, tried)
                    return answer
                with answer:
                    error: ImageError = self.refusal(answer, answer.start(ERROR_LIMIT), tried, repository)
            except (UnreachableError, RegistryError) as failure:
                error = failure  # the network's, or a token server's
            pause = patience.after(error)
            if pause is None:
                raise error
            self.stop.wait(pause)

    def refusal(self, answer: Answer, text: bytes, tried: str, repository: str) -> RegistryError:
        """The error that *answer* is, whose body begins with *text*."""
        return refusal(answer.status, text, tried, self.about(repository), answer.header("Retry-After"))

    def _read(self, answer: Answer, limit: int, tried: str) -> None:
        try:
            answer.content = answer.body(limit, f"the answer to {tried}")
        except BaseException:
            answer.close()
            raise

    def about(self, repository: str) -> str:
        """What an error is about."""
        return f"{self.name}/{repository}" if repository else self.name


def _path(url: str) -> str:
    return "/" + url.partition("//")[2].partition("/")[2].partition("?")[0]


__all__ = ["Body", "Session"]
