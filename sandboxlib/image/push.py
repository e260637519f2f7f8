"""
Pushing: from the store to a registry, blobs first, several at once, and what lists them last.

Manifests go byte by byte as they are, so an image has the same digest there as here.

Spec: distribution-spec 1.1, "Pushing manifests"; "Pushing manifests with subject".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image import origins
from sandboxlib.image.auth import Credentials
from sandboxlib.image.client import MANIFEST_LIMIT, Client
from sandboxlib.image.model import Descriptor, Index, Manifest, decode_manifest
from sandboxlib.image.progress import Progress
from sandboxlib.image.registry import refer
from sandboxlib.image.stopping import Stop
from sandboxlib.image.store import Store
from sandboxlib.image.transfer import AT_ONCE, is_foreign
from sandboxlib.image.uploads import PART, Upload
from sandboxlib.image.working import Crew, never
from sandboxlib.reference import Reference

_DEPTH = 3


def push(
    store: Store,
    source: Descriptor | Reference | str,
    target: Reference | str,
    *,
    mount_from: Sequence[str] = (),
    part: int = PART,
    on_progress: Callable[[Progress], object] | None = None,
    cancelled: Callable[[], None] = never,
    insecure: bool | None = None,
    credentials: Credentials | tuple[str, str] | None = None,
    ca: str | None = None,
) -> str:
    """
    Bring an image, or an index with all images that it lists, to a registry.

    Args:
        store: Where from.
        source: What: its name or digest in the store, or the descriptor of its manifest or index.
        target: What it is called there. Without a tag it has its digest alone; a digest has to be its own.
        mount_from: Repositories of the same registry that may have its layers: the registry takes from there
            what it can. So it does from those that the store knows to have them.
        part: Bytes up to which a blob goes in one request; a bigger one goes in chunks of this size.
        on_progress: Gets what happens.
        cancelled: Raises to give up; called several times a second.
        insecure: Speak HTTP where the registry has no TLS; see `Session`.
        credentials: The login; None looks in Docker's and podman's files.
        ca: A file with certificates of more authorities to trust.

    All callbacks are called in the caller's thread; what they raise ends the push and leaves it.

    Returns:
        The digest.

    Raises:
        SpecError: An argument makes no sense.
        ImageError: The store does not have all of it, or the registry refuses it or cannot be reached.
    """
    name = Reference.parse(target, "target") if isinstance(target, str) else target
    if part < 1:
        raise SpecError("part", part, "a number of bytes, 1 or more")
    descriptor = source if isinstance(source, Descriptor) else store.resolve(source)
    if descriptor is None:
        raise ImageError("is not in the store", str(source))
    if name.digest and name.digest != descriptor.digest:
        raise SpecError("target", str(name), f"a name without digest, or with {descriptor.digest}")
    stop = Stop()
    client = Client(name.registry, insecure=insecure, credentials=credentials, ca=ca, stop=stop)
    others = [client.repository(one) for one in mount_from]
    others = [one for one in dict.fromkeys(others) if one != name.repository]
    with store.lease(descriptor), client, Crew(stop, cancelled, on_progress, AT_ONCE) as crew:
        _Push(store, name, client, crew, others, part).run(descriptor)
    return descriptor.digest


class _Push:
    def __init__(
        self, store: Store, name: Reference, client: Client, crew: Crew, mount_from: list[str], part: int
    ) -> None:
        self._store = store
        self._name = name
        self._about = str(name)
        self._client = client
        self._crew = crew
        self._mount_from = mount_from
        self._known = origins.known(store, name.registry)
        self._part = part
        self._blobs: dict[str, Descriptor] = {}
        #: What is sent when all blobs are there, what is listed before what lists it.
        self._manifests: dict[str, tuple[Descriptor, bytes, Manifest | Index]] = {}

    def run(self, descriptor: Descriptor) -> None:
        self._crew.say(Progress("resolving", self._about))
        self._gather(descriptor, _DEPTH)
        missing = [digest for digest in self._blobs if not self._store.has(digest)]
        if missing:
            raise ImageError(
                f"the store has not {', '.join(missing)}, without which it is not whole", self._about
            )
        # What the registry would refuse it refuses before gigabytes have gone there.
        for one in self._blobs.values():
            self._crew.start(partial(self._blob, one))
        for done in self._crew.done(len(self._blobs)):
            done.result()
        self._crew.run(self._list)
        origins.note(self._store, self._name, self._blobs)
        self._crew.say(Progress("done", self._about, descriptor.digest))
        self._crew.drain()

    def _gather(self, descriptor: Descriptor, depth: int) -> None:
        if descriptor.digest in self._manifests:
            return
        raw = self._store.read(descriptor.digest, MANIFEST_LIMIT)
        found = decode_manifest(raw, descriptor.media_type, descriptor.digest)
        if isinstance(found, Index):
            if not depth:
                raise ImageError(f"more than {_DEPTH} indexes lead to one another", self._about)
            for one in found.manifests:
                if not self._store.has(one.digest):
                    text = f"the store has not {one.digest}, which the index lists"
                    raise ImageError(f"{text}; hint: push one platform's image", self._about)
                self._gather(one, depth - 1)
        else:
            for one in (found.config, *found.layers):
                # What must not be passed on stays where it is.
                if not is_foreign(one) or self._store.has(one.digest):
                    self._blobs[one.digest] = one
        self._manifests[descriptor.digest] = (descriptor, raw, found)

    def _blob(self, descriptor: Descriptor) -> None:
        upload = Upload(
            self._client,
            self._name.repository,
            descriptor.digest,
            descriptor.size,
            lambda: self._store.open_blob(descriptor.digest),
            mount_from=self._others(descriptor.digest),
            say=lambda offset: self._say("pushing", descriptor, offset),
            part=self._part,
        )
        found = upload.run()
        if found != "pushed":
            self._say(found, descriptor, descriptor.size)

    def _others(self, digest: str) -> list[str]:
        """The repositories that a blob may be taken from."""
        known = [one for one in self._known.get(digest, ()) if one != self._name.repository]
        return list(dict.fromkeys((*self._mount_from, *known[: origins.MOST])))

    def _say(self, kind: str, descriptor: Descriptor, offset: int) -> None:
        self._crew.say(Progress(kind, self._about, descriptor.digest, offset, descriptor.size))

    def _list(self) -> None:
        repository = self._name.repository
        for number, (descriptor, raw, found) in enumerate(self._manifests.values(), 1):
            last = number == len(self._manifests)
            name = self._name.tag if last and self._name.tag else descriptor.digest
            media_type = found.media_type or descriptor.media_type
            answer = self._client.put_manifest(repository, name, raw, media_type)
            subject = found.subject
            # A registry that keeps the list of what refers to it says so.
            if subject is not None and answer.header("OCI-Subject") != subject.digest:
                refer(self._client, repository, subject.digest, _entry(descriptor, media_type, found))


def _entry(descriptor: Descriptor, media_type: str, found: Manifest | Index) -> Descriptor:
    """A manifest as the list of what refers to its subject has it."""
    kind = found.artifact_type or (found.config.media_type if isinstance(found, Manifest) else "")
    return Descriptor(
        media_type,
        descriptor.digest,
        descriptor.size,
        annotations=found.annotations,
        artifact_type=kind,
    )


__all__ = ["push"]
