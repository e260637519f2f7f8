"""
What is in a registry, beside images: its tags, its repositories, what refers to what; and logging in.

Spec: distribution-spec 1.1, "Content Discovery" and "Content Management"; Docker's registry, "Catalog".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image import auth
from sandboxlib.image.answers import ERROR_LIMIT, RegistryError, decode, shown
from sandboxlib.image.auth import Credentials
from sandboxlib.image.client import MANIFEST_LIMIT, Client
from sandboxlib.image.connection import origin
from sandboxlib.image.digests import named
from sandboxlib.image.model import OCI_INDEX, Descriptor, Index, decode_manifest, encode
from sandboxlib.image.tokens import Scopes, scope
from sandboxlib.reference import Reference

_LINK = re.compile(r"<([^<>]*)>[^,<>]*;\s*rel\s*=\s*\"?next\"?", re.IGNORECASE)
_PAGE = 1000
#: Pages that one list may have; a registry that has more does not come to an end.
_PAGES = 10_000
_CATALOGUE = ("registry:catalog:*",)


class Registry(Client):
    """One registry's client; see `Session` for how it is made."""

    def tags(self, repository: str) -> tuple[str, ...]:
        """
        All tags of a repository, as the registry sorts them.

        Raises:
            ImageError: There is no such repository, or the list is not to be had.
        """
        name = self.repository(repository)

        def fetch() -> tuple[str, ...]:
            url = f"/v2/{name}/tags/list?n={_PAGE}"
            pages = self._pages(url, f"listing the tags of {name}", (scope(name, "pull"),), name)
            return tuple(tag for page, _ in pages for tag in _texts(page, "tags", self.about(name)))

        return self.work(fetch)

    def catalogue(self) -> tuple[str, ...]:
        """
        All repositories that the registry shows to this login; many registries show none.

        Raises:
            ImageError: The list is not to be had.
        """

        def fetch() -> tuple[str, ...]:
            pages = self._pages(f"/v2/_catalog?n={_PAGE}", "listing the repositories", _CATALOGUE, "")
            return tuple(name for page, _ in pages for name in _texts(page, "repositories", self.name))

        return self.work(fetch)

    def delete(self, repository: str, name: str) -> None:
        """
        Delete a manifest by its digest, with all its tags, or one tag by its name.

        Raises:
            RegistryError: There is none, or the registry does not let anybody delete it this way.
        """
        where = self.repository(repository)
        checked = named(name)

        def ask() -> None:
            with self.request(
                "DELETE",
                f"/v2/{where}/manifests/{checked}",
                tried=f"deleting {checked}",
                scopes=(scope(where, "delete", "pull"),),
                repository=where,
                allowed=(200, 202, 204),
            ) as answer:
                answer.start(ERROR_LIMIT)

        self.work(ask)

    def referrers(self, repository: str, digest: str, *, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """
        What says in its manifest that it is about another one: signatures, lists of parts, and so on.

        Where the registry has no list of its own, there is one under a tag that is made of the digest.

        Args:
            repository: Where both are.
            digest: Of the manifest that they are about.
            artifact_type: Only those of this type.

        Raises:
            ImageError: The list is not to be had.
        """
        name = self.repository(repository)
        if ":" not in named(digest):
            raise SpecError("digest", digest, "the digest of a manifest, such as sha256:…")

        def fetch() -> tuple[Descriptor, ...]:
            listed = self._referrers(name, digest, artifact_type)
            found = _tagged(self, name, digest) if listed is None else listed
            # A registry need not heed the filter, and the list under a tag has none.
            return tuple(one for one in found if not artifact_type or one.artifact_type == artifact_type)

        return self.work(fetch)

    def _referrers(self, name: str, digest: str, artifact_type: str) -> list[Descriptor] | None:
        """The registry's own list; None if it has none."""
        url = f"/v2/{name}/referrers/{digest}"
        if artifact_type:
            url += f"?artifactType={quote(artifact_type, safe='')}"
        found: list[Descriptor] = []
        try:
            for _, raw in self._pages(url, f"listing what refers to {digest}", (scope(name, "pull"),), name):
                found += _index(raw, f"the list of what refers to {digest}").manifests
        except RegistryError as error:
            if error.status in (404, 405) and error.code not in ("NAME_UNKNOWN", "NAME_INVALID"):
                return None
            raise
        return found

    def _pages(
        self, url: str, tried: str, scopes: Scopes, repository: str
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        """All pages of a list: each as an object, and as it came."""
        seen = {url}
        for _ in range(_PAGES):
            with self.request(
                "GET",
                url,
                tried=tried,
                scopes=scopes,
                repository=repository,
                follow=True,
                limit=MANIFEST_LIMIT,
            ) as answer:
                raw = answer.content
                links = _LINK.search(", ".join(answer.headers("Link")))
                here = answer.url
            yield decode(raw, f"the answer to {tried}", self.about(repository)), raw
            if links is None:
                return
            url = self.transport.join(here, links[1])
            # The login goes with it.
            if origin(url) != origin(here) or url in seen:
                raise ImageError(
                    f"{tried}: the next page is {shown(url)}, which cannot be", self.about(repository)
                )
            seen.add(url)
        raise ImageError(f"{tried}: more than {_PAGES} pages", self.about(repository))


def refer(client: Client, repository: str, subject: str, descriptor: Descriptor) -> None:
    """
    Enter a manifest into the list, under its tag, of what refers to *subject*, for a registry without one.

    Raises:
        ImageError: The list cannot be read or written.
    """
    listed = _tagged(client, repository, subject)
    if all(one.digest != descriptor.digest for one in listed):
        index = Index(schema_version=2, media_type=OCI_INDEX, manifests=(*listed, descriptor))
        client.put_manifest(repository, _tag_of(subject), encode(index), OCI_INDEX)


def _tagged(client: Client, repository: str, digest: str) -> list[Descriptor]:
    try:
        fetched = client.manifest(repository, _tag_of(digest))
    except RegistryError as error:
        if error.status == 404:
            return []
        raise
    return list(_index(fetched.raw, f"the list of what refers to {digest}").manifests)


def _tag_of(digest: str) -> str:
    """The tag of the list of what refers to a digest."""
    algorithm, _, text = digest.partition(":")
    return f"{algorithm[:32]}-{text[:64]}"


def _index(raw: bytes, what: str) -> Index:
    found = decode_manifest(raw, OCI_INDEX, what)
    if not isinstance(found, Index):
        raise ImageError(f"{what} is not an index")
    return found


def _texts(page: dict[str, Any], name: str, about: str) -> list[str]:
    """A list of names; a registry says null for an empty one."""
    value = page.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ImageError(f"the registry's list of {name} is not a list of texts", about)
    return value


def login(
    registry: str,
    username: str,
    password: str,
    *,
    insecure: bool | None = None,
    ca: str | None = None,
    cancelled: Callable[[], None] | None = None,
) -> str:
    """
    Log in: have the registry check user name and password, then keep them.

    Args:
        registry: As in a `Reference`.
        username: Who.
        password: Or a token that the registry takes as one.
        insecure: See `Session`.
        ca: See `Session`.
        cancelled: See `Session`.

    Returns:
        The file that it is kept in, or whose helper keeps it.

    Raises:
        RegistryError: The registry does not take it; nothing is kept.
        ImageError: The registry cannot be reached, or the file cannot be written.
        SpecError: An argument makes no sense.
    """
    if not username or ":" in username:
        raise SpecError("username", username, "a name without ':'")
    if not password:
        raise SpecError("password", "", "not empty")
    given = Credentials(username=username, password=password)
    with Registry(registry, insecure=insecure, credentials=given, ca=ca, cancelled=cancelled) as client:
        client.ping()
        return auth.save(client.name, given)


def logout(registry: str) -> bool:
    """
    Forget the login to a registry; False if there was none.

    Raises:
        ImageError: A file cannot be read or written, or a helper failed.
        SpecError: *registry* is none.
    """
    return auth.erase(Reference.parse(f"{registry}/a/b", "registry").registry)


__all__ = ["Registry", "login", "logout", "refer"]
