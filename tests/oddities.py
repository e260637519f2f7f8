"""An image with all that is odd and that other tools take: its layers, and the tree that they are."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layers
from layers import base256, file, folder, header, link, padded, pax, symlink

BUSYBOX = shutil.which("busybox") or ""
APPLETS = (
    "sh",
    "cat",
    "chmod",
    "chown",
    "echo",
    "env",
    "find",
    "id",
    "ls",
    "mkdir",
    "pwd",
    "rm",
    "stat",
    "touch",
)
PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbig:x:70000:80000::/:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1001:\nextra:x:2000:app\nlarge:x:90000:app\n"
SECOND = 10**9
#: 6 x 2^32 seconds and more: years that tar's octal digits have no room for.
FAR = 1 << 33
CAPABILITY = (0x02000001).to_bytes(4, "little") + (1 << 10).to_bytes(4, "little") + bytes(12)

LARGE: dict[str, Any] = {"uid": base256(3_000_000_000, 8), "gid": 70_001, "mode": 0o640}

#: Path to: kind, mode, user, group, time in nanoseconds, content or target, extended attributes.
Tree = dict[str, tuple[str, int, int, int, int, bytes, dict[str, bytes]]]


def busybox(etc: bytes = b"") -> bytes:
    """The entries of a small system: a root, programs, users in /etc, or in *etc*, which has them."""
    entries = folder(b"./", 0o711, uid=5, gid=6, mtime=1111)
    entries += folder(b"bin", mtime=1000) + file(b"bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755)
    for applet in APPLETS:
        entries += symlink(b"bin/" + applet.encode(), b"busybox")
    if etc:
        return entries + etc
    entries += folder(b"etc", 0o751, uid=7, gid=8, mtime=2222)
    return entries + file(b"etc/passwd", PASSWD, mtime=3333) + file(b"etc/group", GROUP, mtime=3334)


def odd_layers(*, devices: bool = False, gnu: bool = True) -> list[bytes]:
    """
    Three layers: each oddity of its own, with what has to be hidden, replaced and merged between them.

    *devices*: With a device node, which podman makes and a sandbox does not. *gnu*: With a list of names of
    GNU tar's, which podman refuses, and marks that carry something, which it cannot send on.
    """
    hidden = file(b"hidden", b"in what a mark carries") if gnu else b""
    first = (
        busybox()
        + folder(b"proc", 0o555, mtime=4444)
        + folder(b"big", 0o750, uid=70_000, gid=base256(4_000_000_000, 8), mtime=5)
        + file(b"big/file", b"of a large number", **LARGE)
        + symlink(b"big/link", b"file", uid=70_000, gid=70_001)
        + link(b"big/hard", b"big/file", **LARGE)
        + file(b"set-uid", b"x", mode=0o6755, uid=1000)
        + folder(b"sticky", 0o1777) + folder(b"closed", 0o000, uid=3)
        + header(b"fifo", b"6", mode=0o622, uid=1)
        + (header(b"null", b"3", mode=0o666, device=(1, 3)) if devices else b"")
        + file("n\u00e4me".encode(), b"") + file(b"\xff\xfe", b"no text") + file(b"new\nline", b"")
        + pax({b"path": b"d/" * 60 + b"far", b"mtime": b"1.5"}) + file(b"x", b"far away")
        + pax({b"mtime": b"-5"}) + file(b"before", b"1970") + file(b"after", b"2106", mtime=base256(FAR, 12))
        + pax({b"SCHILY.xattr.user.colour": b"\x00blue\xff"}) + file(b"attributes", b"has some")
        + pax({b"SCHILY.xattr.security.capability": CAPABILITY}) + file(b"able", b"", mode=0o755)
        + folder(b"gone") + file(b"gone/x", b"") + folder(b"replaced") + file(b"replaced/old", b"")
        + file(b"opaque/below", b"") + folder(b"opaque/in", mtime=6) + file(b"opaque/in/x", b"")
        + symlink(b"lib", b"usr/lib") + folder(b"usr/lib", 0o711, uid=2, mtime=7)
        + file(b"was-file", b"") + folder(b"was-folder") + file(b"was-folder/x", b"")
        + symlink(b"dangling", b"/nowhere/at/all") + symlink(b"loop", b"loop")
        + (header(b"listed/", b"D", 3, mode=0o711) + padded(b"Yx\0") if gnu else folder(b"listed", 0o711))
    )  # fmt: skip
    second = (
        header(b".wh.gone", b"0", len(hidden)) + hidden
        + header(b".wh..wh.plnk", b"0", len(hidden)) + hidden
        + file(b"opaque/.wh..wh..opq") + file(b"opaque/new", b"above", uid=9)
        + file(b".wh.replaced") + folder(b"replaced", 0o700, uid=4, mtime=8) + file(b"replaced/new", b"")
        + file(b"lib/through", b"a link", mtime=9)
        + file(b"fresh/.wh.nothing") + file(b".wh.nothing")
        + folder(b"was-file", mtime=10) + file(b"was-folder", b"now a file")
    )  # fmt: skip
    third = link(b"second-name", b"big/file", **LARGE) + folder(b"etc", 0o755, uid=7, gid=8, mtime=2223)
    return [layers.layer(first), layers.layer(second), layers.layer(third)]


def of_tar(raw: bytes) -> Tree:
    """The tree that a whole tar archive has: each path once."""
    found: Tree = {}
    names: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(raw), errors="surrogateescape") as tar:
        for member in tar:
            path = member.name.removeprefix("./").strip("/") or "."
            if member.islnk():
                names[path] = member.linkname.removeprefix("./").strip("/")
                found[path] = found[names[path]]
                continue
            kind = {b"0": "file", b"2": "link", b"5": "folder", b"6": "fifo"}[member.type]
            content = tar.extractfile(member).read() if kind == "file" else member.linkname.encode()  # type: ignore[union-attr]
            attributes = {
                name.removeprefix("SCHILY.xattr."): value.encode(errors="surrogateescape")
                for name, value in member.pax_headers.items()
                if name.startswith("SCHILY.xattr.")
            }
            mtime = int(member.mtime // 1) * SECOND
            # podman's export writes the bits of the kind, too.
            found[path] = (kind, member.mode & 0o7777, member.uid, member.gid, mtime, content, attributes)
    return found


def expected(change: Callable[[Tree], Any] | None = None) -> Tree:
    """What the layers are together, in whole seconds."""
    none: dict[str, bytes] = {}
    plain = 10**9 * SECOND
    large = ("file", 0o640, 3_000_000_000, 70_001, plain, b"of a large number", none)

    def regular(
        content: bytes = b"", mode: int = 0o644, uid: int = 0, mtime: int = plain, **more: Any
    ) -> Any:
        return ("file", mode, uid, more.get("gid", 0), mtime, content, more.get("attributes", none))

    def directory(mode: int = 0o755, uid: int = 0, gid: int = 0, mtime: int = plain) -> Any:
        return ("folder", mode, uid, gid, mtime, b"", none)

    def leads(target: bytes, uid: int = 0, gid: int = 0) -> Any:
        return ("link", 0o777, uid, gid, plain, target, none)

    tree: Tree = {
        ".": directory(0o711, 5, 6, 1111 * SECOND),
        "bin": directory(mtime=1000 * SECOND),
        "bin/busybox": regular(Path(BUSYBOX).read_bytes(), 0o755),
        **{f"bin/{applet}": leads(b"busybox") for applet in APPLETS},
        "etc": directory(0o755, 7, 8, 2223 * SECOND),
        "etc/passwd": regular(PASSWD, mtime=3333 * SECOND),
        "etc/group": regular(GROUP, mtime=3334 * SECOND),
        "proc": directory(0o555, mtime=4444 * SECOND),
        "big": directory(0o750, 70_000, 4_000_000_000, 5 * SECOND),
        "big/file": large, "big/hard": large, "second-name": large,
        "big/link": leads(b"file", 70_000, 70_001),
        "set-uid": regular(b"x", 0o6755, 1000),
        "sticky": directory(0o1777), "closed": directory(0, 3),
        "fifo": ("fifo", 0o622, 1, 0, plain, b"", none),
        "n\u00e4me": regular(), "\udcff\udcfe": regular(b"no text"), "new\nline": regular(),
        **{"/".join("d" * depth): directory(mtime=1 * SECOND) for depth in range(1, 61)},
        "d/" * 60 + "far": regular(b"far away", mtime=1 * SECOND),
        "before": regular(b"1970", mtime=-5 * SECOND), "after": regular(b"2106", mtime=FAR * SECOND),
        "attributes": regular(b"has some", attributes={"user.colour": b"\x00blue\xff"}),
        "able": regular(mode=0o755, attributes={"security.capability": CAPABILITY}),
        "replaced": directory(0o700, 4, mtime=8 * SECOND), "replaced/new": regular(),
        "opaque": directory(), "opaque/new": regular(b"above", uid=9),
        "lib": leads(b"usr/lib"), "usr": directory(mtime=7 * SECOND),
        "usr/lib": directory(0o711, 2, mtime=7 * SECOND),
        "usr/lib/through": regular(b"a link", mtime=9 * SECOND),
        "fresh": directory(),
        "was-file": directory(mtime=10 * SECOND), "was-folder": regular(b"now a file"),
        "dangling": leads(b"/nowhere/at/all"), "loop": leads(b"loop"),
        "listed": directory(0o711),
    }  # fmt: skip
    if change is not None:
        change(tree)
    return tree


def difference(one: Tree, other: Tree) -> list[str]:
    """What differs, in words that are short enough to be read."""

    def shown(tree: Tree, path: str) -> str:
        if path not in tree:
            return "nothing"
        kind, mode, uid, gid, mtime, content, attributes = tree[path]
        return f"{kind} {mode:o} {uid}:{gid} {mtime} {content[:40]!r} {attributes}"

    paths = sorted(one.keys() | other.keys())
    return [
        f"{path[-40:]!r}: {shown(one, path)} and {shown(other, path)}"
        for path in paths
        if one.get(path) != other.get(path)
    ]
