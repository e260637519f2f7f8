"""
Pulling: from a registry into the store, several layers at once, each going on where it was broken off.

The image's name is the last thing that is written: whoever finds it finds all its blobs. Until then a lease
keeps what was fetched from being pruned.

Spec: distribution-spec 1.1, "Pulling manifests" and "Pulling blobs"; image-spec, image-layout.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from urllib.parse import urlsplit

from sandboxlib.errors import ImageError
from sandboxlib.image import origins, trust
from sandboxlib.image.answers import ERROR_LIMIT, RegistryError, UnreachableError, shown
from sandboxlib.image.auth import Credentials
from sandboxlib.image.blobs import Sink
from sandboxlib.image.client import MANIFEST_LIMIT, Client, Fetched
from sandboxlib.image.connection import Answer, origin
from sandboxlib.image.model import (
    DOCKER_CONFIG,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    decode_manifest,
)
from sandboxlib.image.platform import Platform, choose, own, parse_platform
from sandboxlib.image.progress import Progress
from sandboxlib.image.retry import Patience
from sandboxlib.image.stopping import Stop
from sandboxlib.image.store import Store
from sandboxlib.image.working import Crew, never
from sandboxlib.reference import Reference

#: Layers that are fetched at the same time.
AT_ONCE = 4
#: Indexes that may lead to one another.
_DEPTH = 3
#: Bytes after which a download that breaks off again and again counts as moving on.
_MOVED = 1 << 20
#: Bytes that are read at once, and lost when the connection breaks in the middle of them.
_PIECE = 256 << 10
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_FOREIGN = ("foreign", "nondistributable")

OnConfig = Callable[[Manifest, ImageConfig], object]
OnLayer = Callable[[Manifest, ImageConfig, int], object]


def is_foreign(layer: Descriptor) -> bool:
    """May a layer lie elsewhere than in the registry, because it must not be passed on?"""
    return bool(layer.urls) and any(word in layer.media_type for word in _FOREIGN)


def pull(
    store: Store,
    reference: Reference | str,
    *,
    platform: Platform | str | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    on_config: OnConfig | None = None,
    on_layer: OnLayer | None = None,
    cancelled: Callable[[], None] = never,
    insecure: bool | None = None,
    credentials: Credentials | tuple[str, str] | None = None,
    ca: str | None = None,
) -> Descriptor:
    """
    Fetch an image, as far as the store has it not.

    Args:
        store: Where to.
        reference: What; its digest decides where it has one.
        platform: Such as ``linux/arm64``; None is this machine's.
        on_progress: Gets what happens.
        on_config: Called with the manifest and the config before any layer is fetched; raises to refuse it.
        on_layer: Called with the manifest, the config and the number of each layer, lowest first, as soon as
            it and all below it are in the store, while others are fetched still.
        cancelled: Raises to give up; called several times a second.
        insecure: Speak HTTP where the registry has no TLS; see `Session`.
        credentials: The login; None looks in Docker's and podman's files.
        ca: A file with certificates of more authorities to trust.

    All callbacks are called in the caller's thread; what they raise ends the pull and leaves it.

    Returns:
        The image's manifest for the platform; its name is in the store now.

    Raises:
        SpecError: An argument makes no sense.
        ImageError: There is no such image, it is not for the platform, it is not as it has to be, or the
            registry cannot be reached. What was fetched of it is used by the next pull.
    """
    name = Reference.parse(reference) if isinstance(reference, str) else reference
    wanted = parse_platform(platform) if isinstance(platform, str) else platform
    stop = Stop()
    client = Client(name.registry, insecure=insecure, credentials=credentials, ca=ca, stop=stop)
    with client, Crew(stop, cancelled, on_progress, AT_ONCE) as crew:
        return _Pull(store, name, wanted, client, crew).run(on_config, on_layer)


class _Pull:
    def __init__(
        self, store: Store, name: Reference, platform: Platform | None, client: Client, crew: Crew
    ) -> None:
        self._store = store
        self._name = name
        self._about = str(name)
        self._platform = platform
        self._client = client
        self._crew = crew
        #: Indexes on the way to the manifest.
        self._indexes: list[bytes] = []

    def run(self, on_config: OnConfig | None, on_layer: OnLayer | None) -> Descriptor:
        self._crew.say(Progress("resolving", self._about))
        descriptor, manifest, raw = self._crew.run(self._find)
        with ExitStack() as kept:
            with self._store.growing(self._crew.cancelled):
                for index in self._indexes:
                    self._store.add(index)
                self._store.add(raw)
                kept.enter_context(self._store.lease(descriptor))
            config = self._config(manifest)
            if on_config is not None:
                on_config(manifest, config)
            # And once more: from now on it is known what is in the layers, too, which *on_layer* may unpack.
            kept.enter_context(self._store.lease(descriptor))
            self._layers(manifest, config, on_layer)
            self._store.tag(self._name, descriptor)
            here = [one.digest for one in (manifest.config, *manifest.layers) if not is_foreign(one)]
            origins.note(self._store, self._name, here)
        self._crew.say(Progress("done", self._about, descriptor.digest))
        self._crew.drain()
        return descriptor

    # --- manifests ----------------------------------------------------------------------------------

    def _find(self) -> tuple[Descriptor, Manifest, bytes]:
        """The manifest for the platform, by way of an index or two."""
        fetched = self._top()
        described: Descriptor | None = None
        for _ in range(_DEPTH):
            found = decode_manifest(fetched.raw, fetched.media_type, self._about)
            if isinstance(found, Manifest):
                break
            self._indexes.append(fetched.raw)
            described = choose(found, self._platform or own())
            fetched = self._listed(described)
        else:
            raise ImageError(f"more than {_DEPTH} indexes lead to one another", self._about)
        if found.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
            kind = shown(found.artifact_type or found.config.media_type)
            raise ImageError(f"is not an image, but something of the type {kind}", self._about)
        media_type = found.media_type or fetched.media_type
        platform = described.platform if described else None
        descriptor = Descriptor(media_type, fetched.digest, len(fetched.raw), platform=platform)
        return descriptor, found, fetched.raw

    def _top(self) -> Fetched:
        """What the name leads to; a tag that leads where it led before is not fetched."""
        name, client = self._name, self._client
        digest = name.digest
        if not digest and self._store.resolve(name) is not None:
            digest = client.digest(name.repository, name.tag)
        if digest and (kept := self._kept(digest)) is not None:
            return kept
        return client.manifest(name.repository, name.digest or name.tag)

    def _listed(self, descriptor: Descriptor) -> Fetched:
        """The manifest that an index lists."""
        fetched = self._kept(descriptor.digest)
        if fetched is None:
            fetched = self._client.manifest(self._name.repository, descriptor.digest)
        if len(fetched.raw) != descriptor.size:
            text = f"{descriptor.digest} has {len(fetched.raw)} bytes, and {descriptor.size} in the index"
            raise ImageError(text, self._about)
        return fetched._replace(media_type=descriptor.media_type)

    def _kept(self, digest: str) -> Fetched | None:
        """A manifest of the store; None if it has none that is whole."""
        if not self._store.has(digest):
            return None
        try:
            return Fetched(self._store.read(digest, MANIFEST_LIMIT), "", digest)
        except ImageError:
            return None  # the one that is fetched takes its place

    # --- blobs --------------------------------------------------------------------------------------

    def _config(self, manifest: Manifest) -> ImageConfig:
        self._crew.run(lambda: self._blob(manifest.config))
        config = self._store.config(manifest)
        if self._platform is not None:
            check(config, self._platform, self._about)
        return config

    def _layers(self, manifest: Manifest, config: ImageConfig, on_layer: OnLayer | None) -> None:
        futures: dict[str, Future[None]] = {}
        for layer in manifest.layers:
            if layer.digest not in futures:
                futures[layer.digest] = self._crew.start(partial(self._blob, layer))
        ready = 0
        for done in self._crew.done(len(futures)):
            done.result()
            while ready < len(manifest.layers) and futures[manifest.layers[ready].digest].done():
                futures[manifest.layers[ready].digest].result()
                if on_layer is not None:
                    on_layer(manifest, config, ready)
                ready += 1

    def _blob(self, descriptor: Descriptor) -> None:
        """See that the store has a blob."""
        download = Download(self._client, self._name.repository, descriptor, self._say)
        try:
            new = self._store.fetch(descriptor, download, cancelled=self._client.stop.check)
        except (UnreachableError, RegistryError):
            raise
        except ImageError:
            if download.fresh:
                raise
            # What was there before, of another attempt, need not have been the beginning of the same.
            new = self._store.fetch(descriptor, download, cancelled=self._client.stop.check)
        if not new:
            self._crew.say(
                Progress("exists", self._about, descriptor.digest, descriptor.size, descriptor.size)
            )

    def _say(self, descriptor: Descriptor, offset: int) -> None:
        self._crew.say(Progress("downloading", self._about, descriptor.digest, offset, descriptor.size))


def check(config: ImageConfig, platform: Platform, about: str) -> None:
    """
    Refuse an image without an index that is for another platform than the one that was asked for.

    Raises:
        ImageError: It is.
    """
    # The names that one platform may have are made one by `choose`.
    given = Platform(config.architecture, config.os, config.variant)
    described = Descriptor(OCI_MANIFEST, f"sha256:{'0' * 64}", 0, platform=given)
    try:
        choose(Index(schema_version=2, manifests=(described,)), platform)
    except ImageError:
        raise ImageError(f"is for {given}, and not for {platform}", about) from None


class Download:
    """
    Fetches one blob; is what `Store.fetch` calls.

    Attributes:
        fresh: All of the content came at once, and nothing was there before.
    """

    def __init__(
        self,
        client: Client,
        repository: str,
        descriptor: Descriptor,
        say: Callable[[Descriptor, int], object],
    ) -> None:
        self._client = client
        self._repository = repository
        self._descriptor = descriptor
        self._say = say
        self._offset = 0
        self.fresh = False

    def __call__(self, file: Sink, offset: int) -> None:
        """
        Append the blob's bytes from *offset* on to *file*.

        Raises:
            ImageError: They are not to be had.
        """
        self._offset = offset
        self.fresh = not offset
        places = ["", *(self._descriptor.urls or ())] if is_foreign(self._descriptor) else [""]
        for last, place in enumerate(places, 1 - len(places)):
            try:
                self._fetch(file, place)
                return
            except (RegistryError, UnreachableError):
                # The registry may have a foreign layer all the same; if not, the other places are asked.
                if not last:
                    raise

    def _fetch(self, file: Sink, place: str) -> None:
        patience = Patience()
        moved = self._offset
        while self._offset < self._descriptor.size:
            self.fresh = self.fresh and not self._offset
            try:
                with self._open(place) as answer:
                    self._receive(answer, file)
                continue
            except (UnreachableError, RegistryError) as error:
                failure: ImageError = error
            if self._offset - moved >= _MOVED:
                moved = self._offset
                patience.renew()
            pause = patience.after(failure)
            if pause is None:
                raise failure
            self._client.stop.wait(pause)

    def _open(self, place: str) -> Answer:
        if not place:
            return self._client.open_blob(self._repository, self._descriptor.digest, self._offset)
        headers = {"Range": f"bytes={self._offset}-"} if self._offset else {}
        base = self._client.base()
        url = self._client.transport.join(base, place)
        # An image must not make its user's machine ask what only that machine can reach.
        if trust.is_internal(urlsplit(url).hostname or "") and not trust.is_internal(
            urlsplit(base).hostname or ""
        ):
            raise ImageError(
                f"a layer is said to be at {shown(place)}, which is no public address", self._about
            )
        return self._client.transport.send("GET", url, headers, follow=True)

    def _receive(self, answer: Answer, file: Sink) -> None:
        """Append what comes; it may break off, and then `_offset` says where."""
        size = self._descriptor.size
        skip = 0
        if answer.status == 206:
            found = _CONTENT_RANGE.fullmatch(answer.header("Content-Range").strip())
            if not found or int(found[1]) != self._offset or found[3] not in ("*", str(size)):
                said = shown(answer.header("Content-Range")) or "nothing"
                text = f"asked for bytes {self._offset} to {size - 1}, and the registry sends {said}"
                raise ImageError(text, self._about)
        elif answer.status == 200:
            # All of it, for who cannot send a part: what is there already is passed over.
            skip = self._offset
        else:
            self._refused(answer)
        while data := answer.read(_PIECE):
            if skip >= len(data):
                skip -= len(data)
                continue
            data, skip = data[skip:], 0
            file.write(data)  # which refuses what is too much
            self._offset += len(data)
            self._say(self._descriptor, self._offset)
        if self._offset < size:
            raise UnreachableError(f"the answer ended after {self._offset} of {size} bytes", self._about)

    def _refused(self, answer: Answer) -> None:
        text = answer.start(ERROR_LIMIT)
        if answer.status == 416:
            raise ImageError(f"the registry has no byte {self._offset} of it", self._about)
        tried = f"fetching {self._descriptor.digest}"
        elsewhere = origin(answer.url) != origin(self._client.base())
        if elsewhere and answer.status in (401, 403):
            # The permission that the registry has put into the URL has run out: it makes a new one.
            raise UnreachableError(
                f"{tried}: {shown(urlsplit(answer.url).netloc)} answered {answer.status}", self._about
            )
        raise self._client.refusal(answer, text, tried, self._repository)

    @property
    def _about(self) -> str:
        return f"{self._client.about(self._repository)}@{self._descriptor.digest}"


__all__ = ["AT_ONCE", "Download", "OnConfig", "OnLayer", "is_foreign", "pull"]
