"""
What a step does to files, as plain data; and where the files that it takes are from.

Nothing here depends on what is in a context or what is cached.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec


class Nothing(msgspec.Struct, frozen=True, tag="nothing"):
    """No files at all: ``scratch``."""

    def __str__(self) -> str:
        return "scratch"


class FromImage(msgspec.Struct, frozen=True, tag="image"):
    """
    The files of an image.

    Attributes:
        name: As it is asked for.
        platform: Which one of it, such as ``linux/amd64``.
        digest: Of its manifest.
    """

    name: str
    platform: str
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.platform})"


class FromStage(msgspec.Struct, frozen=True, tag="stage"):
    """What another stage has made. Attributes: number, of the stage, from 0; name, to show."""

    number: int
    name: str

    def __str__(self) -> str:
        return f"stage {self.name}"


class FromContext(msgspec.Struct, frozen=True, tag="context"):
    """Files that were given to the build. Attributes: name; "" is the context that every build has."""

    name: str = ""

    def __str__(self) -> str:
        return f"context {self.name}" if self.name else "context"


class FromText(msgspec.Struct, frozen=True, tag="text"):
    """A file that stands in the Dockerfile. Attributes: content."""

    content: str

    def __str__(self) -> str:
        return f"{len(self.content)} characters of the Dockerfile"


class FromUrl(msgspec.Struct, frozen=True, tag="url"):
    """
    A file from the network.

    Attributes:
        url: Where it is.
        checksum: Such as ``sha256:…``; "" where none is demanded.
    """

    url: str
    checksum: str = ""

    def __str__(self) -> str:
        return self.url


class FromGit(msgspec.Struct, frozen=True, tag="git"):
    """
    A tree of a Git repository.

    Attributes:
        remote: Where it is, without what stands behind ``#``.
        ref: A branch, a tag or a commit; "" for the one that it has by default.
        folder: Of the tree; "" for all of it.
        checksum: How the commit's number begins; "" where none is demanded.
        keep: The folder .git comes along.
    """

    remote: str
    ref: str = ""
    folder: str = ""
    checksum: str = ""
    keep: bool = False

    def __str__(self) -> str:
        return "#".join(filter(None, (self.remote, ":".join(filter(None, (self.ref, self.folder))))))


Origin = Nothing | FromImage | FromStage | FromContext | FromText | FromUrl | FromGit


class Source(msgspec.Struct, frozen=True):
    """
    One source of a COPY or ADD.

    Attributes:
        origin: Where its files are.
        path: From the top of that, without a slash before it; may be a pattern. Of a text or a URL the
            file's name.
        pivot: With ``--parents``: how many of the path's first characters are no part of what is made.
    """

    origin: Origin
    path: str
    pivot: int = 0


class Mount(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    What a RUN has mounted while it runs.

    Attributes:
        type: ``bind``, ``cache``, ``tmpfs``, ``secret`` or ``ssh``.
        target: Where, absolute; "" for a secret that is a variable alone.
        origin: Whose files they are, for bind and cache.
        source: The path in these.
        readonly: It cannot be written to.
        id: Of a cache, a secret or an agent.
        sharing: Of a cache: ``shared``, ``private`` or ``locked``.
        required: Without the secret or the agent the step fails.
        mode: Of a cache's folder, a secret's file, an agent's socket; None for the usual one.
        uid, gid: Its owner.
        size: Bytes of a tmpfs at most; 0 for the usual.
        env: The variable that a secret comes as.
    """

    type: str
    target: str = ""
    origin: Origin = Nothing()
    source: str = ""
    readonly: bool = False
    id: str = ""
    sharing: str = "shared"
    required: bool = False
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size: int = 0
    env: str = ""

    def __str__(self) -> str:
        where = f" at {self.target}" if self.target else f" as ${self.env}"
        what = f" {self.id}" if self.id else "" if self.type == "tmpfs" else f" {self.origin}:/{self.source}"
        return f"{self.type}{what}{where}{' (read-only)' if self.readonly and self.type == 'bind' else ''}"


class Run(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """
    A command that is run in the stage's files.

    Attributes:
        argv: The command.
        env: Its variables, by name.
        user: Who runs it, as USER says; "" for root.
        cwd: Where.
        mounts: What else it sees.
        network: ``default``, ``none`` or ``host``.
        insecure: It asks for all rights that the builder has.
        devices: Of the host, which it asks for.
        script: The file below /dev/pipes that it is, where a here-document has its own interpreter.
        proxies: Variables that it has besides, which decide nothing.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    user: str
    cwd: str
    mounts: tuple[Mount, ...] = ()
    network: str = "default"
    insecure: bool = False
    devices: tuple[str, ...] = ()
    script: tuple[str, str] | None = None
    proxies: tuple[tuple[str, str], ...] = ()

    @property
    def origins(self) -> Iterator[Origin]:
        """Where files come from."""
        return (mount.origin for mount in self.mounts)


class Copy(msgspec.Struct, frozen=True, kw_only=True, tag="copy"):
    """
    Files that are put into the stage's.

    Attributes:
        sources: What, in order.
        destination: Where, absolute; ends with a slash where it has to be a folder.
        chown: Whose they become, ``user:group``; "" for root's, or of another stage their own.
        chmod: Their mode, octal or symbolic; "" for their own.
        link: They make a layer that does not look at those below it.
        parents: The folders on the way to them come along.
        exclude: Patterns of what is left out.
        unpack: Archives among them are unpacked; None where that is as usual.
        add: It is an ADD.
    """

    sources: tuple[Source, ...]
    destination: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()
    unpack: bool | None = None
    add: bool = False

    @property
    def origins(self) -> Iterator[Origin]:
        """Where files come from."""
        return (source.origin for source in self.sources)


class Workdir(msgspec.Struct, frozen=True, kw_only=True, tag="workdir"):
    """
    A folder that is there, made with those above it where it is missing.

    Attributes:
        path: Absolute.
        user: Whose it becomes, as USER says.
    """

    path: str
    user: str = ""

    @property
    def origins(self) -> Iterator[Origin]:
        """None."""
        return iter(())


Op = Run | Copy | Workdir


__all__ = [
    "Copy",
    "FromContext",
    "FromGit",
    "FromImage",
    "FromStage",
    "FromText",
    "FromUrl",
    "Mount",
    "Nothing",
    "Op",
    "Origin",
    "Run",
    "Source",
    "Workdir",
]
