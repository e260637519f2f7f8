"""Images for trio programs: the verbs of `Image`, awaited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import trio

from sandboxlib.doors import doors
from sandboxlib.engine import images
from sandboxlib.images import AnyImage, OnProgress, Path
from sandboxlib.trio_waiter import TRIO

if TYPE_CHECKING:
    from sandboxlib.image.archive import Given
    from sandboxlib.image.prune import Pruned

# In the class that has a verb of this name.
_List = list


def _here(on_progress: OnProgress | None) -> OnProgress | None:
    """Call it in trio's own thread, where a program expects its functions to run."""
    if on_progress is None:
        return None
    return lambda event: trio.from_thread.run_sync(on_progress, event)


@doors
class AsyncImage(AnyImage):
    """
    An image in this user's store; attributes and verbs as `Image`.

    What waits does so in a thread: cancelled, it has stopped before the scope is left. What was
    fetched by then stays, and the next call goes on from there.
    """

    @classmethod
    async def pull(
        cls,
        reference: str,
        *,
        platform: str | None = None,
        on_progress: OnProgress | None = None,
        insecure: bool = False,
        ca: Path | None = None,
        credentials: tuple[str, str] | None = None,
    ) -> Self:
        """Fetch an image from its registry; as `Image.pull`."""
        facts = await TRIO.work(
            lambda: images.pull(
                reference,
                platform=platform,
                on_progress=_here(on_progress),
                insecure=insecure,
                ca=ca,
                credentials=credentials,
                cancelled=TRIO.check,
            )
        )
        return cls.of(facts)

    @classmethod
    async def from_rootfs(
        cls,
        source: Given,
        *,
        name: str,
        config: Mapping[str, Any] | None = None,
        platform: str | None = None,
        created: str | None = None,
    ) -> Self:
        """Make an image of one layer; as `Image.from_rootfs`."""
        facts = await TRIO.work(
            lambda: images.from_rootfs(
                source, name=name, config=config, platform=platform, created=created, cancelled=TRIO.check
            )
        )
        return cls.of(facts)

    @classmethod
    async def load(cls, path: Given) -> _List[Self]:
        """Bring in all images of an archive; as `Image.load`."""
        found = await TRIO.work(lambda: images.load(path, cancelled=TRIO.check))
        return [cls.of(facts) for facts in found]

    @classmethod
    async def get(cls, name: str) -> Self:
        """Return the image of this name, digest or ID; as `Image.get`."""
        return cls.of(await TRIO.work(lambda: images.get(name)))

    @classmethod
    async def list(cls) -> _List[Self]:
        """All images in the store; as `Image.list`."""
        return [cls.of(facts) for facts in await TRIO.work(images.every)]

    @classmethod
    async def remove(cls, name: str) -> None:
        """Take a name from its image; as `Image.remove`."""
        await TRIO.work(lambda: images.remove(name))

    @classmethod
    async def prune(cls, *, all: bool = False) -> Pruned:
        """Remove what nothing needs; as `Image.prune`."""
        return await TRIO.work(lambda: images.prune(all=all))

    async def tag(self, name: str) -> Self:
        """Give it one more name; as `Image.tag`."""
        return self.of(await TRIO.work(lambda: images.tag(self.digest, name)))

    async def push(
        self,
        target: str | None = None,
        *,
        on_progress: OnProgress | None = None,
        insecure: bool = False,
        ca: Path | None = None,
        credentials: tuple[str, str] | None = None,
    ) -> str:
        """Send it to a registry; as `Image.push`."""
        return await TRIO.work(
            lambda: images.push(
                self.digest,
                target or self.reference,
                on_progress=_here(on_progress),
                insecure=insecure,
                ca=ca,
                credentials=credentials,
                cancelled=TRIO.check,
            )
        )

    async def save(self, path: Path, *, format: str = "oci") -> None:
        """Write it to a file; as `Image.save`."""
        chosen = [(self.reference, self.digest)]
        await TRIO.work(lambda: images.save(chosen, path, format, TRIO.check))


__all__ = ["AsyncImage"]
