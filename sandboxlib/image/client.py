"""
One registry: its manifests and blobs, and requests that are logged in and tried again.

Spec: distribution-spec 1.1.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image import auth, trust
from sandboxlib.image.answers import ERROR_LIMIT, RegistryError, UnreachableError, refusal, shown
from sandboxlib.image.auth import Credentials
from sandboxlib.image.connection import Answer, Transport, origin
from sandboxlib.image.digests import DIGEST, digest_by, named
from sandboxlib.image.model import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from sandboxlib.image.retry import PASSING, Patience
from sandboxlib.image.stopping import Stop
from sandboxlib.image.tokens import Authenticator, Scopes, scope
from sandboxlib.image.working import Crew, never
from sandboxlib.reference import HUB, Reference

T = TypeVar("T")

MANIFEST_LIMIT = 4 << 20
#: Docker Hub's API is not where its name says.
_HUB_HOST = "registry-1.docker.io"
_ACCEPT = f"{OCI_MANIFEST}, {OCI_INDEX}, {DOCKER_MANIFEST}, {DOCKER_LIST}"

Body = bytes | Callable[[], Iterable[bytes]] | None


class Fetched(NamedTuple):
    """A manifest as it came: its bytes, what the registry says they are, and their digest."""

    raw: bytes
    media_type: str
    digest: str


class Client:
    """
    A client of one registry; close it, or use it in a ``with`` block.

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
        own = origin(url) == origin(base)
        for last in (False, True):
            sent = dict(headers or {})
            login = self._authenticator.header(scopes, repository) if own else ""
            if login:
                sent["Authorization"] = login
            content = body() if callable(body) else body
            answer = self.transport.send(method, url, sent, content, follow=follow)
            if answer.status != 401 or last or origin(answer.url) != origin(base):
                return answer
            with answer:
                text = answer.start(ERROR_LIMIT)
                again = self._authenticator.refused(answer, scopes, repository, login)
            if not again:
                raise refusal(401, text, f"{method} {_path(url)}", self.about(repository))
        raise AssertionError  # the second round returns or raises

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
            asked = ""
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
                    asked = answer.header("Retry-After")
                    status = answer.status
                    text = answer.start(ERROR_LIMIT)
                error: ImageError = refusal(status, text, tried, self.about(repository))
                passing = status in PASSING
            except UnreachableError as failure:
                error = failure
                passing = failure.passing
            except RegistryError as failure:
                # A token server's.
                error, passing = failure, failure.status in PASSING
            pause = patience.pause(asked) if passing else None
            if pause is None:
                raise error
            self.stop.wait(pause)

    def _read(self, answer: Answer, limit: int, tried: str) -> None:
        try:
            answer.content = answer.body(limit, f"the answer to {tried}")
        except BaseException:
            answer.close()
            raise

    def about(self, repository: str) -> str:
        """What an error is about."""
        return f"{self.name}/{repository}" if repository else self.name

    # --- manifests and blobs ------------------------------------------------------------------------

    def ping(self) -> None:
        """
        Ask whether it is a registry, and whether it takes the login.

        Raises:
            ImageError: It is none, or it does not.
        """

        def ask() -> None:
            with self.request("GET", "/v2/", tried="asking for version 2 of the API", scopes=()) as answer:
                answer.start(ERROR_LIMIT)

        self.work(ask)

    def digest(self, repository: str, name: str) -> str:
        """
        What a tag, or a digest, leads to, without its content; empty where the registry does not say.

        Raises:
            ImageError: There is none, or it is not to be had.
        """
        return self.work(lambda: self._digest(self.repository(repository), named(name)))

    def _digest(self, repository: str, name: str) -> str:
        with self.request(
            "HEAD",
            f"/v2/{repository}/manifests/{name}",
            tried=f"looking for {name}",
            scopes=(scope(repository, "pull"),),
            repository=repository,
            headers={"Accept": _ACCEPT},
            follow=True,
            allowed=(200, 405),
        ) as answer:
            answer.start(ERROR_LIMIT)
            said = answer.header("Docker-Content-Digest")
            return said if answer.status == 200 and DIGEST.fullmatch(said) else ""

    def manifest(self, repository: str, name: str) -> Fetched:
        """
        A manifest or an index, by tag or digest.

        Raises:
            ImageError: There is none, its digest is another, or it is longer than `MANIFEST_LIMIT`.
        """
        return self.work(lambda: self._manifest(self.repository(repository), named(name)))

    def _manifest(self, repository: str, name: str) -> Fetched:
        what = f"the manifest {name}"
        with self.request(
            "GET",
            f"/v2/{repository}/manifests/{name}",
            tried=f"fetching {what}",
            scopes=(scope(repository, "pull"),),
            repository=repository,
            headers={"Accept": _ACCEPT},
            follow=True,
            limit=MANIFEST_LIMIT,
        ) as answer:
            raw = answer.content
            said = answer.header("Docker-Content-Digest")
            media_type = answer.header("Content-Type").partition(";")[0].strip()
        for wanted in (name, said):
            if DIGEST.fullmatch(wanted) and digest_by(wanted, raw) != wanted:
                text = f"{what} has another digest than {wanted}: it was changed on the way"
                raise ImageError(text, self.about(repository))
        return Fetched(raw, media_type, f"sha256:{hashlib.sha256(raw).hexdigest()}")

    def open_blob(self, repository: str, digest: str, offset: int = 0) -> Answer:
        """
        Begin to fetch a blob, from *offset* on if the registry can; one try, whatever the status is.

        Raises:
            ImageError: No answer, no token, or an answer that makes no sense.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        return self.once(
            "GET",
            f"/v2/{repository}/blobs/{digest}",
            scopes=(scope(repository, "pull"),),
            repository=repository,
            headers=headers,
            follow=True,
        )

    def put_manifest(self, repository: str, name: str, raw: bytes, media_type: str) -> Answer:
        """
        Give a manifest to the registry, as it is; its blobs have to be there. The answer is closed.

        Raises:
            ImageError: The registry refuses it, or has taken another.
        """
        if not media_type.isascii() or not media_type.isprintable():
            raise ImageError(f"{shown(media_type)!r} is no media type", self.about(repository))
        with self.request(
            "PUT",
            f"/v2/{repository}/manifests/{name}",
            tried=f"pushing the manifest {shown(name)}",
            scopes=(scope(repository, "pull", "push"),),
            repository=repository,
            headers={"Content-Type": media_type, "Content-Length": str(len(raw))},
            body=raw,
            allowed=(200, 201, 202),
        ) as answer:
            answer.start(ERROR_LIMIT)
            said = answer.header("Docker-Content-Digest")
        if DIGEST.fullmatch(said) and digest_by(said, raw) != said:
            raise ImageError(
                f"the registry has taken {name} as {said}, which is not what was sent", self.about(repository)
            )
        return answer


def _path(url: str) -> str:
    return "/" + url.partition("//")[2].partition("/")[2].partition("?")[0]


__all__ = ["MANIFEST_LIMIT", "Body", "Client", "Fetched"]
