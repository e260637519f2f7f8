"""
Names of images, as Docker reads them.

A short name is one of Docker Hub's: ``ubuntu`` is ``docker.io/library/ubuntu:latest``. The first part
is a registry where it cannot be anything else: it has a dot or a port, or is ``localhost``.

Spec: distribution-spec 1.1, "Pulling manifests"; image-spec descriptor.md, digests.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sandboxlib.errors import SpecError

HUB = "docker.io"
#: Bytes of a repository that every registry takes: the host before it is not counted.
_LONGEST = 255
#: Bytes of a host: RFC 1035, 2.3.4.
_LONGEST_HOST = 253

# "_" is in no name that a registrar hands out, and in many of a network of one's own.
_LABEL = r"[a-zA-Z0-9_](?:[a-zA-Z0-9_-]*[a-zA-Z0-9_])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::\d{{1,5}})?", re.ASCII)
_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)
_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Reference(NamedTuple):
    """
    The name of an image.

    Attributes:
        registry: Host, with a port if it has one: ``docker.io``, ``localhost:5000``.
        repository: Such as ``library/ubuntu``.
        tag: Such as ``latest``; empty where there is only a digest.
        digest: Such as ``sha256:…``, which decides where it is given; else empty.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: object, field: str = "image") -> Reference:
        """
        Read a name, short or whole.

        Args:
            text: Such as ``"ubuntu"`` or ``"host:5000/team/app:1.2@sha256:…"``.
            field: What errors call it.

        Raises:
            SpecError: It is not one; says which part, and what that may be.
        """

        def refuse(allowed: str) -> SpecError:
            return SpecError(field, text, f"the name of an image, {allowed}")

        if not isinstance(text, str) or not text:
            raise refuse('such as "registry.example:5000/team/app:1.2"')
        rest, at, digest = text.partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise refuse("whose digest is sha256: and 64, or sha512: and 128, of the characters 0-9a-f")
        # A colon before a slash is a port's.
        before, _, last = rest.rpartition("/")
        last, colon, tag = last.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise refuse("whose tag has 1 to 128 letters, digits, '_', '.' and '-', not '.' or '-' first")
        name = f"{before}/{last}" if before else last
        if rest.startswith("/") or not last:
            raise refuse("whose parts between '/' are not empty")
        registry, repository = _split(name)
        if not _REGISTRY.fullmatch(registry):
            raise refuse(f"whose registry is a host, with a port or without (here it is {registry!r})")
        for part in repository.split("/"):
            if not _PART.fullmatch(part):
                raise refuse(
                    "whose parts are lower-case letters and digits, with '.', '_', '__' or '-' between them "
                    f"(one is {part!r})"
                )
        if len(repository) > _LONGEST:
            raise refuse(f"of at most {_LONGEST} characters without registry, tag and digest")
        if len(registry.partition(":")[0]) > _LONGEST_HOST:
            raise refuse(f"whose registry is a host of at most {_LONGEST_HOST} characters")
        if not before and not tag and not digest and _ID.fullmatch(name):
            raise refuse("and not 64 characters that could be an ID")
        return cls(registry, repository, tag or ("" if digest else "latest"), digest)

    @property
    def familiar(self) -> str:
        """As short as people write it, and no shorter than is read as the same."""
        name = str(self) if self.digest else str(self).removesuffix(":latest")
        for prefix in (f"{HUB}/library/", f"{HUB}/"):
            short = name.removeprefix(prefix)
            # A repository may look like a host: docker.io/a.b/c.
            if short != name and self._is(short):
                return short
        return name

    def _is(self, text: str) -> bool:
        try:
            return Reference.parse(text) == self
        except SpecError:
            return False

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.repository}{tag}{'@' if self.digest else ''}{self.digest}"


def is_digest(text: str) -> bool:
    """Is it a digest alone, such as ``sha256:…``?"""
    return _DIGEST.fullmatch(text) is not None


def _split(name: str) -> tuple[str, str]:
    """The registry and the repository of a name without tag and digest."""
    first, slash, rest = name.partition("/")
    # No repository has capitals: what has is a host.
    if slash and (first == "localhost" or re.search(r"[.:\[A-Z]", first)):
        registry, repository = first, rest
    else:
        registry, repository = HUB, name
    # Other names of the same registry.
    if registry in ("index.docker.io", "registry-1.docker.io"):
        registry = HUB
    if registry == HUB and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository


__all__ = ["HUB", "Reference", "is_digest"]
