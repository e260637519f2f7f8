"""
Logins: where Docker and podman keep them, and how one is added or taken away.

Files are looked at in podman's order, and the first that knows the registry decides:

1. ``$REGISTRY_AUTH_FILE``; where it is set, it is the only one
2. ``$XDG_RUNTIME_DIR/containers/auth.json``
3. ``$XDG_CONFIG_HOME/containers/auth.json``, ``~/.config`` by default
4. ``$DOCKER_CONFIG/config.json``, ``~/.docker`` by default

In each, ``credHelpers`` goes before ``auths``, and that before ``credsStore``. The keys of ``auths`` are
registries or, podman's way, repositories and what is above them: the longest decides.

Spec: containers-auth.json(5); docker login, "Credential stores".
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Any

import attrs

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image import helper
from sandboxlib.reference import HUB

#: The key that Docker has had for its own registry from the beginning.
HUB_KEY = "https://index.docker.io/v1/"
_LIMIT = 4 << 20
#: The user name by which a helper says that the secret is an identity token.
_TOKEN_USER = "<token>"  # noqa: S105


@attrs.frozen(kw_only=True)
class Credentials:
    """
    A login to a registry; its secrets are not in its `repr`.

    Attributes:
        username: Empty where there is only a token.
        password: For Basic, and for fetching tokens.
        identity_token: An OAuth2 refresh token, which tokens are got for in place of a password.
        registry_token: A bearer token, which is sent as it is.
    """

    username: str = ""
    password: str = attrs.field(default="", repr=False)
    identity_token: str = attrs.field(default="", repr=False)
    registry_token: str = attrs.field(default="", repr=False)

    @classmethod
    def of(cls, value: object) -> Credentials:
        """
        Take what a caller gives: credentials, or a pair of user name and password.

        Raises:
            SpecError: It is neither.
        """
        if isinstance(value, Credentials):
            return value
        if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value):
            return cls(username=value[0], password=value[1])
        # Not the value itself: a password may be in it.
        raise SpecError(
            "credentials", type(value).__name__, "Credentials, or a tuple of user name and password"
        )


def files() -> tuple[str, ...]:
    """Where logins may be kept, in the order in which they are looked for."""
    if path := os.environ.get("REGISTRY_AUTH_FILE"):
        return (path,)
    home = os.path.expanduser("~")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    docker = os.environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")
    found = [os.path.join(folder, "containers", "auth.json") for folder in (runtime, config) if folder]
    return (*found, os.path.join(docker, "config.json"))


def find(registry: str, repository: str = "") -> Credentials | None:
    """
    The login for a repository, or for a registry; None if there is none.

    Args:
        registry: As in a `Reference`.
        repository: Empty for the registry itself.

    Raises:
        ImageError: A file is not as it has to be, or a helper failed.
    """
    for path in files():
        content = _read(path)
        if content is None:
            continue
        found = _find_in(content, path, registry, repository)
        if found is not None:
            return found
    return None


def _find_in(content: dict[str, Any], path: str, registry: str, repository: str) -> Credentials | None:
    helpers = _part(content, "credHelpers", path)
    for key in _keys(registry):
        if isinstance(name := helpers.get(key), str) and name:
            return _from_helper(name, key)
    entries: dict[str, Any] = {}
    for key, entry in _part(content, "auths", path).items():
        entries.setdefault(_normal(key), entry)
    name = f"{registry}/{repository}" if repository else registry
    while name:
        for key in (name, *_keys(name)):
            found = _from_entry(entries.get(_normal(key)), path, key)
            if found is not None:
                return found
        name = name.rpartition("/")[0]
    if isinstance(default := content.get("credsStore"), str) and default:
        for key in _keys(registry):
            kept = _from_helper(default, key)
            if kept is not None:
                return kept
    return None


def _keys(registry: str) -> tuple[str, ...]:
    """The names that a registry has in these files, the one that is written first."""
    if registry == HUB:
        return HUB_KEY, HUB, "index.docker.io", "registry-1.docker.io"
    return (registry,)


def _normal(key: str) -> str:
    """A key without the scheme and the version of the API, which old files have."""
    if key in (HUB_KEY, HUB_KEY.rstrip("/")):
        return HUB
    bare = key.removeprefix("https://").removeprefix("http://")
    if bare != key:
        # A URL is a registry's: what follows the host is the path of its API.
        return bare.partition("/")[0]
    return bare.rstrip("/")


def _from_helper(name: str, key: str) -> Credentials | None:
    login = helper.get(name, key)
    if login is None:
        return None
    if login.username == _TOKEN_USER:
        return Credentials(identity_token=login.secret)
    return Credentials(username=login.username, password=login.secret)


def _from_entry(entry: object, path: str, key: str) -> Credentials | None:
    """One entry of ``auths``; one without content says that a helper has it."""
    if not isinstance(entry, dict):
        return None

    def text(name: str) -> str:
        value = entry.get(name)
        return value if isinstance(value, str) else ""

    username, password = text("username"), text("password")
    if encoded := text("auth"):
        try:
            username, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise ImageError(
                f"auths[{key!r}].auth is not the base64 of a user name, ':' and a password", path
            )
        # Docker pads it with zeros.
        password = password.strip("\0")
    found = Credentials(
        username="" if username == _TOKEN_USER else username,
        password="" if username == _TOKEN_USER else password,
        identity_token=text("identitytoken") or (password if username == _TOKEN_USER else ""),
        registry_token=text("registrytoken"),
    )
    return None if found == Credentials() or not any(_secrets(found)) else found


def _secrets(login: Credentials) -> tuple[str, ...]:
    return login.password, login.identity_token, login.registry_token


def _read(path: str) -> dict[str, Any] | None:
    """The content of a file with logins; None where there is none that this user may read."""
    import msgspec

    try:
        # Not a pipe or a device, which would block for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}", path) from None
    try:
        with open(fd, "rb") as file:
            raw = file.read(_LIMIT + 1)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}", path) from None
    if len(raw) > _LIMIT:
        raise ImageError(f"is longer than {_LIMIT} bytes", path)
    try:
        return msgspec.json.decode(raw or b"{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        # Not the decoder's own words, which may quote.
        raise ImageError("is not the JSON of logins", path) from None


def _part(content: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    value = content.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ImageError(f"{name} is not an object", path)
    return value


def save(registry: str, login: Credentials) -> str:
    """
    Keep a login, with the helper that the file names if it names one.

    It goes where the registry is known already, else to ``$REGISTRY_AUTH_FILE``, else to Docker's file,
    which podman and skopeo read too. All else in the file stays as it was.

    Returns:
        The file's path.

    Raises:
        ImageError: The file cannot be read or written, or a helper failed.
    """
    paths = files()
    path = next((known for known in paths if _knows(known, registry)), paths[-1])
    key = _keys(registry)[0]
    with _changing(path) as content:
        entries = content["auths"] = _part(content, "auths", path)
        _forget(entries, registry)
        if name := _helper_of(content, path, registry):
            user, secret = login.username, login.password
            if login.identity_token:
                user, secret = _TOKEN_USER, login.identity_token
            helper.store(name, key, helper.Login(user, secret))
            entries[key] = {}
        else:
            pair = f"{login.username}:{login.password}"
            entries[key] = {"auth": base64.b64encode(pair.encode()).decode()}
            if login.identity_token:
                entries[key]["identitytoken"] = login.identity_token
    return path


def erase(registry: str) -> bool:
    """
    Forget the login to a registry, in all files and helpers; False if there was none.

    Raises:
        ImageError: A file cannot be read or written, or a helper failed.
    """
    gone = False
    for path in files():
        if not _knows(path, registry):
            continue
        with _changing(path) as content:
            if name := _helper_of(content, path, registry):
                for key in _keys(registry):
                    if helper.get(name, key) is not None:
                        helper.erase(name, key)
                        gone = True
            gone |= _forget(_part(content, "auths", path), registry)
    return gone


def _knows(path: str, registry: str) -> bool:
    """Would this file, or the helper that it names, be asked for this registry?"""
    content = _read(path)
    if content is None:
        return False
    if _helper_of(content, path, registry):
        return True
    return any(_is(key, registry) for key in _part(content, "auths", path))


def _is(key: str, registry: str) -> bool:
    return _normal(key) == registry or key in _keys(registry)


def _helper_of(content: dict[str, Any], path: str, registry: str) -> str:
    helpers = _part(content, "credHelpers", path)
    names = [*map(helpers.get, _keys(registry)), content.get("credsStore")]
    return next((name for name in names if isinstance(name, str) and name), "")


def _forget(entries: dict[str, Any], registry: str) -> bool:
    keys = [key for key in entries if _is(key, registry)]
    for key in keys:
        del entries[key]
    return bool(keys)


@contextlib.contextmanager
def _changing(path: str) -> Iterator[dict[str, Any]]:
    """The content of a file, which is replaced by what the block makes of it; one program at a time."""
    import msgspec

    # What is linked to stays linked to.
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(f"cannot be written: {error.strerror}", path) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = _read(path) or {}
        _part(content, "auths", path)
        yield content
        text = msgspec.json.format(msgspec.json.encode(content), indent=4) + b"\n"
        temporary = f"{path}.{os.getpid()}-{os.urandom(4).hex()}"
        try:
            # Nobody else may read it, not for a moment either.
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except OSError as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise ImageError(f"cannot be written: {error.strerror}", path) from None
    finally:
        os.close(lock)


__all__ = ["HUB_KEY", "Credentials", "erase", "files", "find", "save"]
