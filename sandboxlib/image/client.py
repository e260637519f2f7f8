"""
One registry: its manifests and blobs.

Spec: distribution-spec 1.1.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from sandboxlib.errors import ImageError
from sandboxlib.image.answers import ERROR_LIMIT, shown
from sandboxlib.image.connection import Answer
from sandboxlib.image.digests import DIGEST, digest_by, named
from sandboxlib.image.model import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from sandboxlib.image.session import Session
from sandboxlib.image.tokens import scope

MANIFEST_LIMIT = 4 << 20
_ACCEPT = f"{OCI_MANIFEST}, {OCI_INDEX}, {DOCKER_MANIFEST}, {DOCKER_LIST}"


class Fetched(NamedTuple):
    """A manifest as it came: its bytes, what the registry says they are, and their digest."""

    raw: bytes
    media_type: str
    digest: str


class Client(Session):
    """One registry's manifests and blobs; see `Session` for how it is made."""

    def ping(self) -> None:
        """
        Ask whether it is a registry, and whether it takes the login.

        Raises:
            ImageError: It is none, or it does not.
        """

        def ask() -> None:
            with self.request(
                "GET", "/v2/", tried="asking for version 2 of the API", scopes=(), follow=True
            ) as answer:
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


__all__ = ["MANIFEST_LIMIT", "Client", "Fetched"]
