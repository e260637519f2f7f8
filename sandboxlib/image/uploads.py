"""
Blobs on their way to a registry: there already, mounted from another repository, or uploaded.

A small one goes in one PUT. A big one goes in chunks, each a PATCH; after a failure the registry says how far
it has come and the upload goes on there. Not every registry can (Docker's gives the upload up when a chunk
broke off), and then it begins again.

Spec: distribution-spec 1.1, "Pushing blobs".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO, Literal
from urllib.parse import quote, urlsplit

from sandboxlib.errors import ImageError
from sandboxlib.image.answers import ERROR_LIMIT, RegistryError, UnreachableError, shown
from sandboxlib.image.client import Client
from sandboxlib.image.connection import CHUNK, Answer
from sandboxlib.image.retry import Patience
from sandboxlib.image.tokens import Scopes, scope

#: Bytes up to which a blob goes in one request, and in each chunk of a bigger one.
PART = 16 << 20
#: What a registry may ask for as the smallest chunk.
_LARGEST_PART = 1 << 30
#: Times that an upload is begun.
_STARTS = 3
_RANGE = re.compile(r"(?:bytes[=\s])?0-(\d{1,18})")
_EMPTY = {"Content-Length": "0"}
_OCTETS = {"Content-Type": "application/octet-stream"}


class _LostError(Exception):
    """The upload cannot go on; another one may do better."""

    def __init__(self, error: ImageError) -> None:
        self.error = error


class Upload:
    """
    One blob for one repository.

    Args:
        client: The registry.
        repository: Where it goes.
        digest: The blob's.
        size: The blob's, in bytes.
        source: Opens its content.
        mount_from: Repositories of the same registry that may have it.
        say: Gets the number of bytes that are there, now and then.
        part: Bytes in one request.
    """

    def __init__(
        self,
        client: Client,
        repository: str,
        digest: str,
        size: int,
        source: Callable[[], BinaryIO],
        *,
        mount_from: Sequence[str] = (),
        say: Callable[[int], object] = lambda _: None,
        part: int = PART,
    ) -> None:
        self._client = client
        self._repository = repository
        self._digest = digest
        self._size = size
        self._source = source
        self._mount_from = mount_from
        self._say = say
        self._part = part
        self._url = ""

    def run(self) -> Literal["exists", "mounted", "pushed"]:
        """
        See that the registry has the blob.

        Returns:
            Whether it had it, has taken it from another repository, or was sent it.

        Raises:
            ImageError: It cannot be brought there.
        """
        if self._there():
            return "exists"
        patience = Patience()
        for number in range(_STARTS):
            # Mounting is tried once: what follows a lost upload is another upload.
            if self._begin(() if number else self._mount_from):
                return "mounted"
            try:
                with self._source() as file:
                    self._send(file)
                return "pushed"
            except _LostError as lost:
                pause = None if number == _STARTS - 1 else patience.after(lost.error, passes=True)
                if pause is None:
                    raise lost.error from None
                self._client.stop.wait(pause)
        raise AssertionError  # the last round returns or raises

    def _there(self) -> bool:
        with self._ask(
            "HEAD", self._path(f"blobs/{self._digest}"), "looking for", (200, 404), follow=True
        ) as answer:
            answer.start(ERROR_LIMIT)
            return answer.status == 200

    def _begin(self, mount_from: Sequence[str]) -> bool:
        """Get a place to upload to; True if the registry has mounted the blob in place of that."""
        for number, name in enumerate(mount_from, 1):
            query = f"?mount={quote(self._digest, safe=':')}&from={quote(name, safe='')}"
            try:
                if self._post(query, (scope(name, "pull"),)):
                    return True
            except RegistryError as error:
                # This login may see nothing of that repository, and may well push to this one.
                if error.status not in (400, 401, 403, 404, 405):
                    raise
                continue
            if number == len(mount_from):
                return False
            self._cancel()
        self._post("", ())
        return False

    def _post(self, query: str, more: Scopes) -> bool:
        url = self._path("blobs/uploads/") + query
        with self._ask("POST", url, "beginning to push", (201, 202), headers=_EMPTY, more=more) as answer:
            answer.start(ERROR_LIMIT)
            if answer.status == 201:
                if query:
                    return True
                raise self._error("the registry has it before anything was sent")
            self._url = ""
            self._follow(answer)
            asked = answer.header("OCI-Chunk-Min-Length")
        if asked.isascii() and asked.isdigit():
            least = int(asked[:12])
            if least > _LARGEST_PART:
                raise self._error(f"the registry wants chunks of {least} bytes at least")
            self._part = max(self._part, least)
        return False

    def _send(self, file: BinaryIO) -> None:
        offset = 0
        if self._size > self._part:
            patience = Patience()
            while offset < self._size:
                try:
                    before, offset = offset, self._patch(file, offset)
                except (UnreachableError, RegistryError) as error:
                    offset = self._after(error, patience)
                else:
                    if offset > before:
                        patience.renew()
        self._put(file, offset)

    def _patch(self, file: BinaryIO, offset: int) -> int:
        """Send one chunk; where the next one begins."""
        end = min(offset + self._part, self._size)
        headers = {**_OCTETS, "Content-Length": str(end - offset), "Content-Range": f"{offset}-{end - 1}"}
        with self._once("PATCH", self._url, headers, lambda: self._pieces(file, offset, end)) as answer:
            text = answer.start(ERROR_LIMIT)
            if answer.status not in (202, 204):
                raise self._refusal(answer, text, "pushing a chunk of")
            self._follow(answer)
            # A registry may have taken less than it was sent.
            reached = _RANGE.fullmatch(answer.header("Range"))
        return min(int(reached[1]) + 1, end) if reached and int(reached[1]) else end

    def _after(self, error: UnreachableError | RegistryError, patience: Patience) -> int:
        """Where to go on after a chunk that failed, as the registry says."""
        if (
            isinstance(error, RegistryError)
            and error.status < 500
            and error.status not in (404, 408, 416, 429)
        ):
            raise error
        pause = patience.after(error, passes=True)
        if pause is None:
            raise error
        self._client.stop.wait(pause)
        try:
            with self._once("GET", self._url, {}, None) as answer:
                answer.start(ERROR_LIMIT)
                reached = _RANGE.fullmatch(answer.header("Range"))
                if answer.status not in (200, 204) or not reached:
                    raise _LostError(error)
                self._follow(answer)
        except (UnreachableError, RegistryError):
            raise _LostError(error) from None
        # Some say "0-0" of nothing, too; if it was one byte, the next chunk is refused and all begins anew.
        offset = int(reached[1]) + 1 if int(reached[1]) else 0
        if offset > self._size:
            raise _LostError(error)
        return offset

    def _put(self, file: BinaryIO, offset: int) -> None:
        """Send the rest, which may be nothing, and say that this is all."""
        joint = "&" if urlsplit(self._url).query else "?"
        url = f"{self._url}{joint}digest={quote(self._digest, safe=':')}"
        headers = {**_OCTETS, "Content-Length": str(self._size - offset)}
        try:
            answer = self._once("PUT", url, headers, lambda: self._pieces(file, offset, self._size))
        except UnreachableError as error:
            # It may have arrived, and only the answer was lost.
            if self._arrived():
                return
            raise _LostError(error) from None
        with answer:
            text = answer.start(ERROR_LIMIT)
            if answer.status not in (201, 204):
                refused = self._refusal(answer, text, "pushing")
                if answer.status in (408, 429) or answer.status >= 500:
                    raise _LostError(refused)
                raise refused

    def _arrived(self) -> bool:
        try:
            return self._there()
        except (RegistryError, UnreachableError):
            return False

    def _cancel(self) -> None:
        """Tell the registry that nothing will be sent there; it forgets it by itself, too."""
        with suppress(ImageError), self._once("DELETE", self._url, {}, None) as answer:
            answer.start(ERROR_LIMIT)

    def _pieces(self, file: BinaryIO, offset: int, end: int) -> Iterator[bytes]:
        file.seek(offset)
        while offset < end:
            self._client.stop.check()
            data = file.read(min(CHUNK, end - offset))
            if not data:
                raise self._error(f"has only {offset} of {self._size} bytes in the store")
            yield data
            offset += len(data)
            self._say(offset)

    # --- requests -----------------------------------------------------------------------------------

    def _path(self, rest: str) -> str:
        return f"/v2/{self._repository}/{rest}"

    def _scopes(self, more: Scopes = ()) -> Scopes:
        return (scope(self._repository, "pull", "push"), *more)

    def _ask(
        self,
        method: str,
        url: str,
        tried: str,
        allowed: tuple[int, ...],
        *,
        headers: dict[str, str] | None = None,
        more: Scopes = (),
        follow: bool = False,
    ) -> Answer:
        return self._client.request(
            method,
            url,
            tried=f"{tried} {self._digest}",
            scopes=self._scopes(more),
            repository=self._repository,
            headers=headers,
            follow=follow,
            allowed=allowed,
        )

    def _once(
        self, method: str, url: str, headers: dict[str, str], body: Callable[[], Iterator[bytes]] | None
    ) -> Answer:
        return self._client.once(
            method, url, scopes=self._scopes(), repository=self._repository, headers=headers, body=body
        )

    def _follow(self, answer: Answer) -> None:
        """The upload goes on where the registry says; what is there stays valid for one request."""
        target = answer.header("Location")
        if target:
            self._url = self._client.transport.join(answer.url, target)
        if not self._url:
            raise self._error("the registry does not say where to push to")

    def _refusal(self, answer: Answer, text: bytes, tried: str) -> RegistryError:
        return self._client.refusal(answer, text, f"{tried} {self._digest}", self._repository)

    def _error(self, text: str) -> ImageError:
        return ImageError(f"{shown(self._digest)}: {text}", self._client.about(self._repository))


__all__ = ["PART", "Upload"]
