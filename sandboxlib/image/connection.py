"""
HTTP to one registry and to the hosts that it sends to, over urllib3.

Nothing is followed, decoded or tried again behind one's back: a redirect may lead to another host, which
must not see the login, and only who asked knows whether to ask again. Every failure of the network, of TLS
and of the other side's grammar leaves as an `UnreachableError`.
"""

from __future__ import annotations

import base64
import errno
import os
import select
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urljoin, urlsplit

from sandboxlib.errors import ImageError
from sandboxlib.image import trust
from sandboxlib.image.answers import UnreachableError, shown
from sandboxlib.image.stopping import Stop

if TYPE_CHECKING:
    from socket import socket

    import urllib3

CONNECT_TIMEOUT = 15.0
#: Seconds without a byte.
READ_TIMEOUT = 60.0
REDIRECTS = 5
CHUNK = 1 << 20
#: Statuses that send elsewhere.
TRANSFER = {301, 302, 303, 307, 308}
_AGENT = "sandboxlib"
_POLL = 0.1


class Answer:
    """
    An answer whose body is not read yet; close it, in the thread that asked.

    Attributes:
        status: The HTTP status.
        url: Where it came from, after all redirects.
        content: The body, where it was read together with the head.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str, stop: Stop) -> None:
        self.status = response.status
        self.url = url
        self._response = response
        self._stop = stop
        self._whole = False
        self.content = b""

    def header(self, name: str) -> str:
        """A header's value; empty if it is not there."""
        return self._response.headers.get(name, "")

    def headers(self, name: str) -> list[str]:
        """The values of all headers of this name."""
        return list(self._response.headers.getlist(name))

    def read(self, size: int = CHUNK) -> bytes:
        """
        The next bytes of the body; empty at its end.

        Raises:
            UnreachableError: The other side stopped before the end.
        """
        self._stop.check()
        try:
            data = self._response.read(size, decode_content=False)
        except _failures() as error:
            self._stop.check()
            raise _unreachable(error, self.url) from None
        # What was shut down looks like what has ended.
        self._stop.check()
        self._whole = not data
        return data or b""

    def body(self, limit: int, what: str) -> bytes:
        """
        The whole body.

        Raises:
            ImageError: It is longer than *limit* bytes.
            UnreachableError: The other side stopped before the end.
        """
        parts, size = [], 0
        while data := self.read(min(CHUNK, limit + 1 - size)):
            parts.append(data)
            size += len(data)
            if size > limit:
                raise ImageError(f"{what} is longer than {limit} bytes", self.url.partition("?")[0])
        return b"".join(parts)

    def start(self, limit: int) -> bytes:
        """At most *limit* bytes of the body, as far as they come."""
        try:
            return self.body(limit, "")
        except ImageError:
            return b""

    def close(self) -> None:
        """Give the connection back, or close it where something is left in it."""
        self._stop.leave()
        if self._whole:
            self._response.release_conn()
        else:
            self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Transport:
    """The connections that are made for one registry. Its methods may be called by several threads."""

    def __init__(self, registry: str, *, ca: str | None, stop: Stop) -> None:
        self._registry = registry
        self._ca = ca
        self._stop = stop
        self._lock = threading.Lock()
        self._managers: dict[tuple[str, bool], urllib3.PoolManager] = {}

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for manager in self._managers.values():
                manager.clear()
            self._managers.clear()

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
        *,
        follow: bool = False,
    ) -> Answer:
        """
        Send one request and read the head of the answer, which the caller closes.

        Args:
            method: Such as ``GET``.
            url: Whole.
            headers: Those named in `_SECRET` go to no other host.
            body: Bytes, or pieces of them with a Content-Length among the headers.
            follow: Follow redirects, at most `REDIRECTS` of them.

        Raises:
            UnreachableError: There was no answer.
            ImageError: It leads where no registry has to lead.
        """
        sent = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **headers}
        for _ in range(REDIRECTS + 1):
            answer = self._send(method, url, sent, body)
            target = answer.header("Location") if follow and answer.status in TRANSFER else ""
            if not target:
                return answer
            with answer:
                answer.start(CHUNK)
                url = self.join(url, target)
            if origin(url) != origin(answer.url):
                sent = {name: value for name, value in sent.items() if name.lower() not in _SECRET}
        raise ImageError(f"sends from one place to another more than {REDIRECTS} times", self._registry)

    def join(self, base: str, target: str) -> str:
        """
        The URL that a ``Location`` names, seen from *base*.

        Raises:
            ImageError: It is none for http, or one without TLS seen from one with it.
        """
        try:
            url = urljoin(base, target)
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
            url = ""
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ImageError(f"sends to {shown(target)!r}, which is not a URL of http", self._registry)
        secure = urlsplit(base).scheme == "https"
        if secure and parts.scheme == "http" and not trust.is_loopback(parts.hostname):
            raise ImageError(f"sends from https to http, to {shown(parts.netloc)}", self._registry)
        return url

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None
    ) -> Answer:
        self._stop.check()
        manager = self._manager(url)
        try:
            response = manager.urlopen(
                method,
                url,
                body=body,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except _failures() as error:
            self._stop.leave()
            self._stop.check()
            raise _unreachable(error, url) from None
        except BaseException:
            self._stop.leave()
            raise
        return Answer(response, url, self._stop)

    def _manager(self, url: str) -> urllib3.PoolManager:
        import urllib3

        proxy = trust.proxy_for(url)
        own = urlsplit(url).netloc == urlsplit(f"https://{self._registry}").netloc
        key = (proxy.url if proxy else "", own)
        with self._lock:
            if found := self._managers.get(key):
                return found
            options: dict[str, Any] = {
                "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
                "maxsize": 8,
                "blocksize": CHUNK,
                "ssl_context": trust.context(self._registry, self._ca, own=own),
            }
            if proxy:
                login = base64.b64encode(proxy.login.encode()).decode()
                sent = {"Proxy-Authorization": f"Basic {login}"} if login else None
                made: urllib3.PoolManager = urllib3.ProxyManager(proxy.url, proxy_headers=sent, **options)
            else:
                made = urllib3.PoolManager(**options)
            made.pool_classes_by_scheme = _pools(self._stop)
            self._managers[key] = made
            return made


_SECRET = {"authorization", "cookie"}


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what may see the same secrets."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").lower(), port


def _pools(stop: Stop) -> dict[str, type[Any]]:
    """Pools whose connections can be ended by *stop* at any time."""
    from http.client import HTTPResponse

    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Plain(HTTPConnection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._head: HTTPResponse | None = None
            self.response_class = self._begin  # type: ignore[assignment]

        def _new_conn(self) -> socket:
            return _connect(self._dns_host, self.port, stop)

        def request(self, *args: Any, **options: Any) -> None:
            if self.sock is not None:
                stop.enter(self.sock)  # kept open from an earlier request, maybe another thread's
            super().request(*args, **options)

        def _begin(self, *args: Any, **options: Any) -> HTTPResponse:
            self._head = HTTPResponse(*args, **options)
            return self._head

        def getresponse(self) -> Any:
            try:
                return super().getresponse()
            except BaseException:
                # A head that makes no sense has the socket already, and nobody else would close it.
                if self._head is not None:
                    self._head.close()
                raise
            finally:
                self._head = None

    class Secure(Plain, HTTPSConnection):
        pass

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _connect(host: str, port: int | None, stop: Stop) -> socket:
    """A connection to the first address of *host* that takes one; looks at *stop* meanwhile."""
    import socket

    where = f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a name"
        passing = error.errno != socket.EAI_NONAME if isinstance(error, OSError) else False
        raise UnreachableError(f"its address is not known: {reason}", where, passing=passing) from None
    deadline = time.monotonic() + CONNECT_TIMEOUT
    reason = "it has no address"
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            code = sock.connect_ex(address)
            while code == errno.EINPROGRESS:
                stop.check()
                poll = select.poll()
                poll.register(sock, select.POLLOUT)
                if poll.poll(_POLL * 1000):
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                elif time.monotonic() > deadline:
                    code = errno.ETIMEDOUT
            if code == 0:
                sock.settimeout(READ_TIMEOUT)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                stop.enter(sock)
                return sock
        except BaseException:
            sock.close()
            raise
        sock.close()
        reason = os.strerror(code)
    raise UnreachableError(f"no connection: {reason}", where, plain=True)


def _failures() -> tuple[type[Exception], ...]:
    import urllib3.exceptions

    return urllib3.exceptions.HTTPError, OSError, HTTPException, ValueError


def _unreachable(error: BaseException, url: str) -> UnreachableError:
    """An error of urllib3, in words; without the URL's query, which may be signed."""
    import urllib3.exceptions

    where = urlsplit(url).netloc
    causes: list[BaseException] = [error]
    # The reason lies in one of these, several times over.
    while len(causes) < 8:
        last = causes[-1]
        inner = [getattr(last, "original_error", None), getattr(last, "reason", None), *last.args]
        below = next((one for one in inner if isinstance(one, BaseException) and one not in causes), None)
        if below is None:
            break
        causes.append(below)
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"its certificate is not trusted: {cause.verify_message}"
            text += "; hint: ca= names a file with the certificate of its authority"
            return UnreachableError(text, where, passing=False)
        if isinstance(cause, ssl.SSLError):
            reason = (cause.reason or "").replace("_", " ").lower() or "the connection was closed"
            # A server that does not speak TLS answers with what is no record of it.
            other = any(word in reason for word in ("wrong version", "http request", "record layer"))
            plain = other or "eof" in reason
            return UnreachableError(f"TLS: {shown(reason)}", where, passing=not other, plain=plain)
        if isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError):
            return UnreachableError(f"no answer for {READ_TIMEOUT:.0f} s", where)
        if isinstance(cause, urllib3.exceptions.LocationValueError | UnicodeError):
            return UnreachableError("is not a URL that can be asked", where, passing=False)
        if isinstance(cause, ValueError):
            # Its text would be the header, and that may be a login.
            return UnreachableError("what was to be sent is not fit for HTTP", where, passing=False)
    last = causes[-1]
    closed = isinstance(last, ConnectionError | HTTPException)
    return UnreachableError(f"the connection broke: {shown(last)}", where, plain=closed)


__all__ = ["CHUNK", "REDIRECTS", "TRANSFER", "Answer", "Transport", "origin"]
