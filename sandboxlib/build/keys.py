"""
What a step's result depends on, as one number: the name of what the cache keeps.

Two steps with the same key make the same files, so the second need not be carried out. What decides
nothing stays out: times of files, names of images, proxies, what a secret or a cache holds.

Spec: Dockerfile reference, "Impact on build caching".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sandboxlib.build.files import FILE, FOLDER, Files
from sandboxlib.build.operations import Copy, FromText, Mount, Run, Source, Workdir
from sandboxlib.build.selection import Item, Taken

#: Changes whenever the same step comes to make other files than before.
VERSION = 1


def digest(*parts: Any) -> str:
    """One number for plain values: text, numbers, lists of these. Order counts."""
    # Text that is no UTF-8 is spelled out, so no two values look alike.
    raw = json.dumps([VERSION, *parts], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(raw.encode("ascii")).hexdigest()


def of_image(image_digest: str, platform: str) -> str:
    """Of what a base image begins with: its content, not its name."""
    return digest("image", image_digest, platform)


def of_nothing(platform: str) -> str:
    """Of ``FROM scratch``."""
    return digest("nothing", platform)


def of_run(
    run: Run, parent: str, origins: Sequence[str], versions: Mapping[str, str], epoch: int | None
) -> str:
    """
    Of a RUN.

    Args:
        run: What runs.
        parent: Of what is there before.
        origins: For each mount what is in it, "" where that decides nothing.
        versions: Of secrets, by their IDs: a caller's own word for what they hold.
        epoch: The time that everything new gets.
    """
    mounted = [_mount(mount, origin, versions) for mount, origin in zip(run.mounts, origins, strict=True)]
    return digest(
        "run", parent, run.argv, run.env, run.user, run.cwd, mounted, run.network, run.insecure, run.devices,
        run.script, epoch,
    )  # fmt: skip


def _mount(mount: Mount, origin: str, versions: Mapping[str, str]) -> list[Any]:
    common = [mount.type, mount.target]
    match mount.type:
        case "bind":
            return [*common, origin, mount.source, mount.readonly]
        case "cache":
            # What is in it decides nothing, and so it does not matter which one it is.
            return [*common, mount.readonly]
        case "tmpfs":
            return [*common, mount.size]
        case "secret":
            return [
                *common,
                mount.id,
                mount.env,
                mount.mode,
                mount.uid,
                mount.gid,
                versions.get(mount.id, ""),
            ]
    return [*common, mount.id, mount.mode, mount.uid, mount.gid]


def of_workdir(workdir: Workdir, parent: str, epoch: int | None) -> str:
    """Of a WORKDIR."""
    return digest("workdir", parent, workdir.path, workdir.user, epoch)


def of_copy(copy: Copy, parent: str, sources: Sequence[str], epoch: int | None) -> str:
    """
    Of a COPY or ADD.

    Args:
        copy: What it says.
        parent: Of what is there before; with ``--link`` it does not count.
        sources: For each source what is taken of it, see `of_source`.
        epoch: The time that everything new gets.
    """
    return digest(
        "copy", "" if copy.link else parent, list(sources), copy.destination, copy.chown, copy.chmod,
        copy.link, copy.parents, copy.exclude, copy.unpack, copy.add, epoch,
    )  # fmt: skip


def of_source(source: Source, identity: str) -> str:
    """
    Of one source by where it is from: for what is known without looking at its files.

    Args:
        source: What it says.
        identity: Of the tree or the file: a stage's key, an image's digest, a checksum.
    """
    if isinstance(source.origin, FromText):
        return digest("text", source.origin.content, source.path)
    return digest("from", identity, source.path, source.pivot)


def of_taken(files: Files, taken: Iterable[Taken], *, owners: bool) -> str:
    """
    Of one source by what is in its files.

    Args:
        files: The tree.
        taken: What is selected of it.
        owners: They are kept, and so count.
    """
    whole = hashlib.sha256()
    first: dict[tuple[int, ...], str] = {}
    for match in taken:
        whole.update(digest("match", "" if match.folder else match.name, match.folder).encode())
        for item in match.items:
            whole.update(_item(files, item, first, owners=owners).encode("ascii"))
    return whole.hexdigest()


def _item(files: Files, item: Item, first: dict[tuple[int, ...], str], *, owners: bool) -> str:
    node = item.node
    linked = first.setdefault(node.same, item.below) if node.same is not None else item.below
    found = [
        item.below,
        node.kind,
        node.mode if node.kind != "link" else 0,
        [node.uid, node.gid] if owners else 0,
        node.target,
        node.device,
        linked if linked != item.below else "",
        files.digest(item.path, node) if node.kind in {FILE, FOLDER} else "",
    ]
    return json.dumps(found, ensure_ascii=True, separators=(",", ":"))


__all__ = [
    "VERSION", "digest", "of_copy", "of_image", "of_nothing", "of_run", "of_source", "of_taken", "of_workdir",
]  # fmt: skip
