"""
Which servers are believed: certificates, plain HTTP, and proxies on the way.

Spec: docker, "Verify repository client with certificates"; containers-certs.d(5).
"""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sandboxlib.errors import ImageError, SpecError, UnsupportedError

if TYPE_CHECKING:
    import ssl

INSECURE = "SANDBOXLIB_INSECURE_REGISTRIES"


def host_of(authority: str) -> str:
    """The host of ``host``, ``host:port`` or ``[::1]:port``, without brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Can only this machine have answered? True for localhost and what is below it, 127.0.0.0/8 and ::1."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_internal(host: str) -> bool:
    """Is it this machine, or an address that means something only in a network of its own?"""
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_global
    except ValueError:
        return is_loopback(host)


def may_be_plain(registry: str, insecure: bool | None) -> bool:
    """
    Whether a registry may be spoken to without TLS where it has none.

    Args:
        registry: Host, with its port if it has one.
        insecure: Whether the caller lets it; if not, the address and the environment may.
    """
    if insecure:
        return True
    listed = {entry.strip() for entry in os.environ.get(INSECURE, "").split(",")} - {""}
    return is_loopback(host_of(registry)) or registry in listed


def folders(registry: str) -> list[str]:
    """Where certificates for one registry may lie."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    above = (os.path.join(config, "containers"), "/etc/containers", "/etc/docker")
    return [os.path.join(folder, "certs.d", registry) for folder in above]


def context(registry: str, ca: str | None, *, own: bool) -> ssl.SSLContext:
    """
    How servers are verified.

    Args:
        registry: Whose folders of certificates count.
        ca: A file with more certificates of authorities.
        own: The registry itself, which the client's certificate is for; not the hosts that it sends to.

    Raises:
        SpecError: *ca* is no such file.
        ImageError: A certificate in a folder cannot be read.
    """
    import ssl

    # Verifies, and knows SSL_CERT_FILE.
    made = ssl.create_default_context()
    if ca is not None:
        try:
            made.load_verify_locations(cafile=ca)
        except OSError:
            raise SpecError("ca", ca, "the path of a file with certificates as PEM") from None
    for folder in folders(registry):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue  # there is none, or it is not for this user
        for name in names:
            path = os.path.join(folder, name)
            try:
                if name.endswith(".crt"):
                    made.load_verify_locations(cafile=path)
                elif name.endswith(".cert") and own:
                    made.load_cert_chain(path, f"{path.removesuffix('.cert')}.key")
            except OSError as error:
                raise ImageError(
                    f"cannot be used as a certificate: {error.strerror or error}", path
                ) from None
    return made


class Proxy:
    """
    A proxy and how to log in to it; its password is in no text.

    Attributes:
        url: Without user name and password.
        login: ``user:password``, or empty.
    """

    def __init__(self, text: str) -> None:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.scheme not in ("http", "https"):
            raise UnsupportedError(
                f"a proxy that speaks {parts.scheme}",
                "a proxy that speaks http",
                "see HTTPS_PROXY and NO_PROXY",
            )
        try:
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            port = ""
        if not parts.hostname:
            raise ImageError("HTTP_PROXY or HTTPS_PROXY is not the URL of a proxy")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = f"{parts.scheme}://{host}{port}"
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        self.login = f"{user}:{password}" if user or password else ""


def proxy_for(url: str) -> Proxy | None:
    """
    The proxy that the environment names for a URL; None for a direct way, always so on this machine.

    Raises:
        UnsupportedError: The proxy does not speak HTTP.
        ImageError: What is named is not a proxy.
    """
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    if is_loopback(parts.hostname or ""):
        return None
    named = getproxies()
    text = named.get(parts.scheme) or named.get("all")
    if not text or proxy_bypass(parts.netloc):
        return None
    return Proxy(text)


__all__ = [
    "INSECURE",
    "Proxy",
    "context",
    "folders",
    "host_of",
    "is_internal",
    "is_loopback",
    "may_be_plain",
    "proxy_for",
]
