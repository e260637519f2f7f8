"""
Registries for tests, on loopback: Docker's own, a token server for it, and a proxy that makes faults.

The registry is Debian's docker-registry in a process of its own. The token server and the proxy are threads
of the test. All of them end with their ``with`` block.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import io
import json
import os
import random
import select
import socket
import socketserver
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, urlsplit

CHUNK = 64 << 10


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# --- keys and certificates ------------------------------------------------------------------------------


@dataclasses.dataclass
class Keys:
    """An authority of the test's own, and a certificate by it for localhost and 127.0.0.1."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, *, client: bool = False) -> Keys:
        folder.mkdir(parents=True, exist_ok=True)
        keys = cls(folder / "ca.crt", folder / "server.crt", folder / "server.key")

        def openssl(*arguments: str | Path) -> None:
            subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder)

        new = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
        openssl(*new, "-x509", "-keyout", "ca.key", "-out", keys.ca, "-subj", "/CN=Test authority")
        openssl(*new, "-keyout", keys.key, "-out", "server.csr", "-subj", "/CN=localhost")
        (folder / "names").write_text("subjectAltName=DNS:localhost,DNS:registry.test,IP:127.0.0.1\n")
        sign = ("x509", "-req", "-days", "2", "-CA", keys.ca, "-CAkey", "ca.key", "-CAcreateserial")
        openssl(*sign, "-in", "server.csr", "-out", keys.certificate, "-extfile", "names")
        if client:
            openssl(*new, "-keyout", "client.key", "-out", "client.csr", "-subj", "/CN=client")
            openssl(*sign, "-in", "client.csr", "-out", "client.cert")
        return keys


# --- Docker's registry ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Server:
    """A running registry."""

    port: int
    folder: Path
    tls: bool = False

    @property
    def name(self) -> str:
        """As it is written in a reference."""
        return f"localhost:{self.port}"

    def blob(self, digest: str) -> Path:
        """The file with a blob."""
        text = digest.partition(":")[2]
        return self.folder / "docker/registry/v2/blobs/sha256" / text[:2] / text / "data"


@contextlib.contextmanager
def serve(
    folder: Path,
    *,
    keys: Keys | None = None,
    users: dict[str, str] | None = None,
    token: TokenServer | None = None,
    client_ca: Path | None = None,
) -> Iterator[Server]:
    """
    Run a registry: with TLS if it has *keys*, with Basic for *users*, or with the tokens of *token*.
    """
    server = Server(free_port(), folder / "storage", keys is not None)
    server.folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(server.folder)},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": {"addr": f"127.0.0.1:{server.port}", "secret": "for tests"},
    }
    if keys is not None:
        config["http"]["tls"] = {"certificate": str(keys.certificate), "key": str(keys.key)}
        if client_ca is not None:
            config["http"]["tls"]["clientcas"] = [str(client_ca)]
    if users:
        passwords = folder / "htpasswd"
        lines = []
        for user, password in users.items():
            command = ["htpasswd", "-niBC", "4", user]
            lines.append(
                subprocess.run(command, input=password, capture_output=True, text=True, check=True).stdout
            )
        passwords.write_text("".join(lines))
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(passwords)}}
    if token is not None:
        config["auth"] = {
            "token": {
                "realm": token.realm,
                "service": token.service,
                "issuer": token.issuer,
                "rootcertbundle": str(token.keys.certificate),
            }
        }
    path = folder / "config.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    env = {"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"}
    with open(folder / "registry.log", "wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(path)], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env
        )
    try:
        wait_for(server.port, process, folder / "registry.log")
        yield server
    finally:
        process.kill()
        process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"docker-registry does not run: {log.read_text()}") from None
            time.sleep(0.02)


# --- servers that are threads ---------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    """Ends its connections, and with them its threads, when it is closed."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._context = context
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        try:
            if self._context is not None:
                # In this thread: a client that does not begin keeps nobody else waiting.
                request = self._context.wrap_socket(request, server_side=True)
                with self._guard:
                    self._open.add(request)
            super().process_request_thread(request, client_address)
        except (OSError, ValueError):
            request.close()
        finally:
            with self._guard:
                self._open = {one for one in self._open if one.fileno() >= 0 and one is not request}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are what the tests are about."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        with self._guard:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self.server_close()


def tls(keys: Keys) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.certificate, keys.key)
    return context


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class TokenServer:
    """
    Gives out tokens, signed as docker-registry verifies them.

    Attributes:
        users: Passwords by name; an empty dictionary lets everybody in.
        allowed: Which scopes are granted, by user; None grants all.
        lifetime: Seconds that a token is good for.
        requests: What was asked: method, parameters, and the header Authorization.
        refresh: Refresh tokens that are taken, each with its user.
    """

    service = "registry of the tests"
    issuer = "issuer of the tests"

    def __init__(self, keys: Keys, *, secure: bool = False) -> None:
        self.keys = keys
        self.users: dict[str, str] = {}
        self.allowed: Callable[[str, str], bool] = lambda _user, _scope: True
        self.lifetime = 300
        self.requests: list[tuple[str, dict[str, list[str]], str]] = []
        self.refresh: dict[str, str] = {}
        self.raw: bytes | None = None
        owner = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                owner._serve(self, parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                owner._serve(self, parse_qs(body.decode()))

        self._server = _Server(Handler, tls(keys) if secure else None)
        self.realm = f"{'https' if secure else 'http'}://localhost:{self._server.port}/token?kept=1"

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def _serve(self, handler: _Handler, asked: dict[str, list[str]]) -> None:
        login = handler.headers.get("Authorization", "")
        self.requests.append((handler.command, asked, login))
        if self.raw is not None:
            handler.answer(200, self.raw)
            return
        user = ""
        if handler.command == "POST":
            user = self.refresh.get(asked.get("refresh_token", [""])[0], "")
            if not user:
                handler.answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"no such refresh token"}]}')
                return
        elif login.startswith("Basic "):
            user, _, password = base64.b64decode(login[6:]).decode().partition(":")
            if self.users.get(user) != password:
                handler.answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}')
                return
        scopes = [one for text in asked.get("scope", []) for one in text.split()]
        token = self.sign(user, [one for one in scopes if self.allowed(user, one)])
        name = "access_token" if handler.command == "POST" else "token"
        handler.answer(200, json.dumps({name: token, "expires_in": self.lifetime}).encode())

    def sign(self, user: str, scopes: list[str]) -> str:
        der = ssl.PEM_cert_to_DER_cert(self.keys.certificate.read_text())
        now = int(time.time())
        access = []
        for one in scopes:
            kind, rest = one.split(":", 1)
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": self.issuer,
            "sub": user,
            "aud": self.service,
            "iat": now,
            "nbf": now - 10,
            "exp": now + self.lifetime,
            "jti": os.urandom(8).hex(),
            "access": access,
        }

        def packed(raw: bytes) -> str:
            return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

        text = f"{packed(json.dumps(header).encode())}.{packed(json.dumps(claims).encode())}"
        command = ["openssl", "dgst", "-sha256", "-sign", str(self.keys.key)]
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
        return f"{text}.{packed(done.stdout)}"


@dataclasses.dataclass
class Fault:
    """
    What the proxy does to requests.

    Attributes:
        method, path: Which requests: a method, and a part of the path with its query.
        times: How often.
        skip: How many of these requests go through before.
        status, headers, body: Answer this in place of the registry.
        cut: Break off after this many bytes of the registry's body.
        flip: Change one byte of the body.
        redirect: Send the client to this URL; the path is added.
        stall: Stop in the middle of the body until this is set.
        eat: Break off after this many bytes of the request's body.
        drop: Leave these headers of the request out.
        lose: Have the registry answer, and break off in place of handing the answer on.
    """

    method: str
    path: str
    times: int = 1_000_000
    skip: int = 0
    status: int = 0
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    flip: bool = False
    redirect: str = ""
    stall: threading.Event | None = None
    eat: int | None = None
    drop: tuple[str, ...] = ()
    lose: bool = False


@dataclasses.dataclass
class Seen:
    """One request that the proxy got."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class Proxy:
    """
    Stands before a registry, keeps a log of what is asked, and makes faults.

    Attributes:
        log: What was asked, in its order.
        faults: What goes wrong; the first one that fits a request counts.
    """

    hop: ClassVar = {"connection", "transfer-encoding", "keep-alive"}

    def __init__(self, port: int, *, keys: Keys | None = None) -> None:
        self.upstream = port
        self.log: list[Seen] = []
        self.faults: list[Fault] = []
        self._guard = threading.Lock()
        owner = self

        class Handler(_Handler):
            def _any(self) -> None:
                owner._serve(self)

            def do_CONNECT(self) -> None:
                owner._tunnel(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815

        self._server = _Server(Handler, tls(keys) if keys else None)

    @property
    def name(self) -> str:
        return f"localhost:{self._server.port}"

    @property
    def port(self) -> int:
        return self._server.port

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            if fault.stall is not None:
                fault.stall.set()
        self._server.__exit__()

    def asked(self, method: str, part: str) -> list[Seen]:
        """The requests with this method and a path that has this part."""
        return [seen for seen in self.log if seen.method == method and part in seen.path]

    def _fault(self, seen: Seen) -> Fault | None:
        with self._guard:
            self.log.append(seen)
            for fault in self.faults:
                if fault.method == seen.method and fault.path in seen.path and fault.times > 0:
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def _tunnel(self, handler: _Handler) -> None:
        """Connect a client to the registry, whatever host it asks for."""
        seen = Seen("CONNECT", handler.path, {name.title(): value for name, value in handler.headers.items()})
        self.log.append(seen)
        handler.close_connection = True
        with socket.create_connection(("127.0.0.1", self.upstream)) as upstream:
            handler.send_response_only(200)
            handler.end_headers()
            ends = {handler.connection: upstream, upstream: handler.connection}
            while True:
                ready, _, _ = select.select(list(ends), [], [], 30)
                for sock in ready:
                    data = sock.recv(CHUNK)
                    if not data:
                        return
                    ends[sock].sendall(data)
                if not ready:
                    return

    def _serve(self, handler: _Handler) -> None:
        # A client of an HTTP proxy sends the whole URL.
        path = urlsplit(handler.path)._replace(scheme="", netloc="").geturl()
        seen = Seen(handler.command, path, {name.title(): value for name, value in handler.headers.items()})
        fault = self._fault(seen)
        length = int(handler.headers.get("Content-Length", 0))
        if fault is not None and fault.eat is not None:
            handler.rfile.read(fault.eat)
            handler.close_connection = True
            return
        if fault is not None and (fault.status or fault.redirect):
            handler.rfile.read(length)
            headers = dict(fault.headers)
            if fault.redirect:
                headers["Location"] = fault.redirect + path
            seen.status = fault.status or 307
            handler.answer(seen.status, fault.body, headers)
            return
        dropped = {name.lower() for name in fault.drop} if fault else set()
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        try:
            upstream.putrequest(handler.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() not in self.hop | dropped:
                    upstream.putheader(name, value)
            upstream.endheaders()
            while length:
                data = handler.rfile.read(min(CHUNK, length))
                if not data:
                    return
                length -= len(data)
                upstream.send(data)
            self._answer(handler, upstream.getresponse(), seen, fault)
        finally:
            upstream.close()

    def _answer(
        self, handler: _Handler, response: http.client.HTTPResponse, seen: Seen, fault: Fault | None
    ) -> None:
        seen.status = response.status
        if fault is not None and fault.lose:
            handler.close_connection = True
            return
        handler.send_response(response.status)
        promised = response.headers.get("Content-Length")
        for name, value in response.headers.items():
            if name.lower() not in self.hop:
                handler.send_header(name, value)
        if promised is None and handler.command != "HEAD" and response.status != 204:
            handler.send_header("Connection", "close")
            handler.close_connection = True
        handler.end_headers()
        if handler.command == "HEAD":
            return
        while data := response.read(CHUNK):
            if fault is not None and fault.flip and not seen.sent:
                data = bytes([data[0] ^ 1]) + data[1:]
            if fault is not None and fault.stall is not None and not seen.sent:
                handler.wfile.write(data[: len(data) // 2])
                fault.stall.wait(30)
                data = data[len(data) // 2 :]
            if fault is not None and fault.cut is not None and seen.sent + len(data) > fault.cut:
                handler.wfile.write(data[: fault.cut - seen.sent])
                handler.close_connection = True
                return
            handler.wfile.write(data)
            seen.sent += len(data)
        if promised is not None and seen.sent < int(promised):
            handler.close_connection = True  # Docker's registry does so with 416


@contextlib.contextmanager
def raw(answer: bytes) -> Iterator[int]:
    """A server that says the same to everybody, whatever it is, and hangs up; its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(5)
            with contextlib.suppress(OSError):
                self.request.recv(65536)
                self.request.sendall(answer)

    class Listener(socketserver.ThreadingTCPServer):
        daemon_threads = False
        allow_reuse_address = True

    with Listener(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


# --- images ---------------------------------------------------------------------------------------------


def layout(
    folder: Path, *, layers: int = 2, size: int = 100_000, seed: str = "a", tag: str = "1"
) -> dict[str, Any]:
    """
    Write an image as an OCI layout folder, without compression; its manifest.

    The layers are tar files with one file each, of bytes that do not repeat.
    """
    (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    described = []
    for number in range(layers):
        content = random.Random(f"{seed}{number}").randbytes(size)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo(f"file{number}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        raw = buffer.getvalue()
        described.append(
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": _put(folder, raw),
                "size": len(raw),
            }
        )
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [one["digest"] for one in described]},
        "history": [{"created_by": f"layer {number}"} for number in range(layers)],
    }
    raw = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": _put(folder, raw),
            "size": len(raw),
        },
        "layers": described,
    }
    return finish(folder, manifest, tag)


def replace(folder: Path, manifest: dict[str, Any], config: dict[str, Any], tag: str = "1") -> dict[str, Any]:
    """Give the image of a layout folder another config and manifest; the manifest as it is then."""
    raw = json.dumps(config).encode()
    described = {"mediaType": manifest["config"]["mediaType"], "digest": _put(folder, raw), "size": len(raw)}
    kept = {name: value for name, value in manifest.items() if name != "digest"}
    return finish(folder, kept | {"config": described}, tag)


def finish(folder: Path, manifest: dict[str, Any], tag: str) -> dict[str, Any]:
    """Write a manifest and an index into a layout folder; the manifest with its digest."""
    raw = json.dumps(manifest).encode()
    entry = {"mediaType": manifest["mediaType"], "digest": _put(folder, raw), "size": len(raw)}
    named = entry | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    return manifest | {"digest": entry["digest"]}


def _put(folder: Path, raw: bytes) -> str:
    text = hashlib.sha256(raw).hexdigest()
    (folder / "blobs/sha256" / text).write_bytes(raw)
    return f"sha256:{text}"


def skopeo(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run skopeo, without a policy of whom to trust."""
    return subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, check=check
    )


def put(folder: Path, target: str, *options: str, tag: str = "1") -> None:
    """Push an image of `layout` by skopeo, as it is: ``put(folder, "localhost:5000/app:1")``."""
    flags = ("--dest-tls-verify=false", "--preserve-digests", *options)
    skopeo("copy", *flags, f"oci:{folder}:{tag}", f"docker://{target}")
