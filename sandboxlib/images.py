"""Images: files and defaults to begin sandboxes with, in a store of the user's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import attrs

from sandboxlib.doors import door, doors
from sandboxlib.engine import images
from sandboxlib.engine.waiter import BLOCKING

if TYPE_CHECKING:
    from sandboxlib.image.archive import Given
    from sandboxlib.image.facts import Facts, History, Layer
    from sandboxlib.image.progress import Progress
    from sandboxlib.image.prune import Pruned

Path = str | os.PathLike[str]
OnProgress = Callable[["Progress"], object]
# In the classes that have a verb of this name.
_List = list


@attrs.frozen(eq=False, repr=False)
@doors
class AnyImage:
    """
    What an image is; the faces add its verbs.

    Equal to another with the same digest, whatever their names.

    Attributes:
        reference: The name that it was asked for by, whole: ``docker.io/library/app:1``; empty for an
            image that has none.
        digest: Of its manifest, such as ``sha256:…``: it decides what is in it.
        id: The digest of its configuration, which Docker shows as the ID.
        size: Bytes of its layers as they are sent, compressed.
        layers: From the lowest.
        config: What its configuration says of commands, in OCI's names: ``Env``, ``Cmd``, ``Entrypoint``,
            ``User``, ``WorkingDir``, ``Volumes``, ``ExposedPorts``, ``Labels``, ``StopSignal``.
        history: How it was made, from the first step.
        platform: Such as ``linux/amd64``.
        created: When it was made, as RFC 3339 has it; empty if that is not said.

    Spec: image-spec manifest.md, config.md.
    """

    reference: str
    digest: str
    id: str
    size: int
    layers: tuple[Layer, ...]
    config: Mapping[str, Any] = attrs.field(converter=MappingProxyType)
    history: tuple[History, ...]
    platform: str
    created: str

    @classmethod
    def of(cls, facts: Facts) -> Self:
        """The value for what the store knows."""
        return cls(**facts._asdict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyImage) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.reference or self.digest}>"


@doors
class Image(AnyImage):
    """
    An image in this user's store.

    Example:
        >>> base = Image.from_rootfs("rootfs.tar.gz", name="base:1", config={"Cmd": ["sh"]})  # doctest: +SKIP
        >>> Sandbox(image=base)  # doctest: +SKIP
    """

    @classmethod
    def pull(
        cls,
        reference: str,
        *,
        platform: str | None = None,
        on_progress: OnProgress | None = None,
        insecure: bool = False,
        ca: Path | None = None,
        credentials: tuple[str, str] | None = None,
    ) -> Self:
        """
        Fetch an image from its registry, as far as it is not here; unpack nothing yet.

        Args:
            reference: Such as ``"registry.example:5000/team/app:1.2"``; short names are Docker Hub's.
            platform: Such as ``"linux/arm64/v8"``; this machine's where nothing is said.
            on_progress: Called with each `Progress`.
            insecure: Plain HTTP will do where TLS is not spoken; it always does for this machine itself.
            ca: File with the certificates to trust.
            credentials: User and password; those of Docker's and podman's files where nothing is said.

        Raises:
            ImageError: The registry refuses, or what it sends is not what the digests say.
            SpecError: An argument makes no sense.
        """
        return cls.of(
            images.pull(
                reference,
                platform=platform,
                on_progress=on_progress,
                insecure=insecure,
                ca=ca,
                credentials=credentials,
                cancelled=BLOCKING.check,
            )
        )

    @classmethod
    def from_rootfs(
        cls,
        source: Given,
        *,
        name: str,
        config: Mapping[str, Any] | None = None,
        platform: str | None = None,
        created: str | None = None,
    ) -> Self:
        """
        Make an image of one layer.

        Args:
            source: A folder, or a tar file: plain, or compressed by gzip, zstd, xz or bzip2. A path, ``"-"``
                for standard input, or a file that is open for reading bytes, which may be a pipe.
            name: What it is to be called.
            config: In OCI's names: ``{"Cmd": ["sh"], "Env": ["A=b"]}``.
            platform: Such as ``"linux/amd64"``; this machine's where nothing is said.
            created: When, as RFC 3339 has it: for images that are the same to the byte; now where
                nothing is said.

        Raises:
            SpecError: There is no such file, or a field of *config* is none.
            ImageError: It is no tar file.
            ViolationError: It grows beyond measure when it is not compressed any more.
        """
        return cls.of(
            images.from_rootfs(
                source,
                name=name,
                config=config,
                platform=platform,
                created=created,
                cancelled=BLOCKING.check,
            )
        )

    @classmethod
    def load(cls, path: Given) -> _List[Self]:
        """
        Bring in all images of an archive: an OCI layout as a folder or a tar, or what ``docker save`` makes.

        Args:
            path: A folder, or a tar file, which may be compressed as a whole; as *source* of `from_rootfs`.

        Raises:
            ImageError: It is none of these, or not whole; nothing was brought in.
        """
        return [cls.of(facts) for facts in images.load(path, cancelled=BLOCKING.check)]

    @classmethod
    def get(cls, name: str) -> Self:
        """
        Return the image of this name, digest or ID in the store.

        Raises:
            ImageError: There is none.
        """
        return cls.of(images.get(name))

    @classmethod
    def list(cls) -> _List[Self]:
        """All images in the store, one for each name, by name; those without one last."""
        return [cls.of(facts) for facts in images.every()]

    @classmethod
    def remove(cls, name: str) -> None:
        """
        Take a name from its image, and the image out of the store with its last one.

        A digest or an ID takes all names of the image.

        Raises:
            ImageError: There is none.
            StateError: It would go, and a sandbox uses it.
        """
        images.remove(name)

    @classmethod
    def prune(cls, *, all: bool = False) -> Pruned:
        """
        Remove what has no name, and what no image needs.

        Args:
            all: Images with names too. What a sandbox uses stays.
        """
        return images.prune(all=all)

    def tag(self, name: str) -> Self:
        """Give it one more name, taken from whatever had it. Raises: SpecError: It is no name."""
        return self.of(images.tag(self.digest, name))

    def push(
        self,
        target: str | None = None,
        *,
        on_progress: OnProgress | None = None,
        insecure: bool = False,
        ca: Path | None = None,
        credentials: tuple[str, str] | None = None,
    ) -> str:
        """
        Send it to a registry, as far as it is not there; arguments as `pull`.

        Args:
            target: What it is to be called there; its own name where nothing is said.
            on_progress, insecure, ca, credentials: As `pull`.

        Returns:
            The digest of its manifest.

        Raises:
            ImageError: The registry refuses.
        """
        return images.push(
            self.digest,
            target or self.reference,
            on_progress=on_progress,
            insecure=insecure,
            ca=ca,
            credentials=credentials,
            cancelled=BLOCKING.check,
        )

    def save(self, path: Path, *, format: str = "oci") -> None:
        """
        Write it to a file that `load`, podman and skopeo read.

        Args:
            path: A file that is made, or a folder for ``oci-dir``.
            format: ``oci`` (a tar of an OCI layout), ``oci-dir``, or ``docker`` (for ``docker load``).
        """
        save([self], path, format=format)


@door
def save(chosen: Sequence[AnyImage], path: Path, *, format: str = "oci") -> None:
    """Write several images to one archive; as `Image.save`."""
    images.save([(image.reference, image.digest) for image in chosen], path, format, BLOCKING.check)


__all__ = ["AnyImage", "Image", "save"]
