"""
Whatever is in a layer: it is unpacked, or refused by an error of ours; outside nothing changes.

Layers are made of entries that want out, and then damaged; so most of them get past the first
header, where bytes by chance would end.
"""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sandboxlib.errors import ImageError, UnsupportedError, ViolationError
from sandboxlib.image.pack import pack_changes, pack_tree
from sandboxlib.image.unpack import Limits, Policy, remove_tree, unpack

import layers

LIMITS = Limits(bytes=1 << 20, entries=64)
KEEP = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

PART = st.sampled_from(
    [
        b"a",
        b"b",
        b"c",
        b"..",
        b".",
        b"",
        b"outside",
        b".wh.a",
        b".wh..wh..opq",
        b".wh..",
        b".wh..wh.x",
        b"\xff",
    ]
)
NAME = st.lists(PART, min_size=1, max_size=4).map(b"/".join)
TARGET = st.one_of(
    NAME,
    NAME.map(lambda name: b"/" + name),
    st.sampled_from([b"/", b"../outside", b"/proc/self/cwd", b"OUT"]),
)
XATTR = st.sampled_from(
    [
        b"user.a",
        b"trusted.overlay.redirect",
        b"user.overlay.opaque",
        b"security.capability",
        b"system.posix_acl_access",
        b"",
        b"no-namespace",
        b"user.",
        b"user.\0",
        b"user." + b"n" * 300,
    ]
)
PAX_KEY = st.one_of(
    st.sampled_from(
        [
            b"path",
            b"linkpath",
            b"size",
            b"uid",
            b"gid",
            b"mtime",
            b"GNU.sparse.map",
            b"GNU.sparse.size",
            b"GNU.sparse.major",
            b"GNU.sparse.minor",
            b"GNU.sparse.realsize",
            b"GNU.sparse.name",
            b"GNU.sparse.offset",
            b"GNU.sparse.numbytes",
            b"hdrcharset",
        ]
    ),
    XATTR.map(lambda name: b"SCHILY.xattr." + name),
    XATTR.map(lambda name: b"LIBARCHIVE.xattr." + name),
)
PAX_VALUE = st.one_of(
    st.binary(max_size=12),
    NAME,
    st.integers(-2, 1 << 40).map(lambda n: b"%d" % n),
    st.sampled_from([b"0,1", b"1"]),
)
NUMBER = st.one_of(
    st.integers(0, 0o7777777),
    st.binary(max_size=8),
    st.integers(-(1 << 62), 1 << 62).map(lambda n: layers.base256(n, 12)[-8:]),
)


def entry(
    name: bytes, flag: bytes, data: bytes, target: bytes, mode: int, uid: int | bytes, magic: bytes
) -> bytes:
    size = len(data) if flag in (b"0", b"7", b"\0", b"S") else 0
    top = layers.header(name[:100], flag, size, mode=mode, uid=uid, target=target[:100], magic=magic)
    return top + layers.padded(data[:size])


ENTRY = st.one_of(
    st.builds(
        entry,
        NAME,
        st.sampled_from([bytes([code]) for code in b"0012344556677\0SDVN"]),
        st.binary(max_size=700),
        TARGET,
        st.integers(0, 0o7777),
        st.one_of(st.just(0), st.just(0), NUMBER),
        st.sampled_from([b"ustar\x0000", b"ustar  \0", b""]),
    ),
    st.builds(layers.symlink, NAME.map(lambda name: name[:100]), TARGET),
    st.builds(
        layers.pax, st.lists(st.tuples(PAX_KEY, PAX_VALUE), max_size=3), st.sampled_from([b"x", b"g", b"X"])
    ),
    st.builds(layers.long_name, NAME, st.sampled_from([b"L", b"K"])),
)
LAYER = st.lists(ENTRY, max_size=8).map(b"".join)


@contextmanager
def place() -> Iterator[tuple[Path, Path]]:
    """A folder for layers beside one that must stay as it is."""
    with tempfile.TemporaryDirectory(prefix="layers-fuzz-") as name:
        top = Path(name)
        (top / "out").mkdir()
        (top / "outside").mkdir()
        (top / "outside" / "file").write_bytes(b"mine")
        before = everything(top)
        yield top, top / "out"
        with layers.opened(top) as (fd,):
            remove_tree(fd, "out", layers.SINGLE)
        assert everything(top) == before


def everything(top: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for path in (top / "outside", top / "outside/file"):
        state = path.lstat()
        found.append((path, state.st_mode, state.st_mtime_ns, state.st_nlink, state.st_uid, state.st_size))
    names = sorted(os.listdir(top / "outside")), [name for name in os.listdir(top) if name != "out"]
    return [*found, names]


def attempt(data: bytes, out: Path, *, below: bool = False) -> bool:
    """Unpack; True if it was accepted."""
    owner = layers.ROOT if os.geteuid() == 0 else layers.SINGLE
    lowers = [out] if below else []
    target = out if not below else out / "upper"
    if below:
        target.mkdir()
    data = data.replace(b"OUT" + bytes(30), os.fsencode(out.parent / "outside")[:33].ljust(33, b"\0"))
    event("below" if below else "alone")
    with layers.opened(target, *lowers) as (fd, *under):
        try:
            unpack(io.BytesIO(data), fd, owner, lowers=under, limits=LIMITS, policy=Policy(devices="skip"))
        except (ImageError, ViolationError, UnsupportedError) as error:
            event(f"refused: {type(error).__name__}")
            return False
    event("accepted")
    return True


@KEEP
@given(LAYER)
def test_no_layer_reaches_outside(data: bytes) -> None:
    with place() as (_, out):
        attempt(data + layers.END, out)


@KEEP
@given(LAYER, LAYER)
def test_no_layer_reaches_outside_through_one_below(first: bytes, second: bytes) -> None:
    with place() as (_, out):
        if attempt(first + layers.END, out):
            attempt(second + layers.END, out, below=True)


@KEEP
@given(LAYER, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_headers_are_refused_or_mean_something(data: bytes, damage: list[tuple[int, int]]) -> None:
    broken = bytearray(data + layers.END)
    for at, value in damage:
        broken[at % len(broken)] = value
    for start in range(0, len(broken) - 511, 512):
        # Checksums are put right, or little would get past them.
        if broken[start + 257 : start + 262] == b"ustar":
            broken[start + 148 : start + 156] = b" " * 8
            broken[start + 148 : start + 156] = b"%06o\0 " % sum(broken[start : start + 512])
    with place() as (_, out):
        attempt(bytes(broken), out)


@KEEP
@given(
    st.binary(max_size=2000),
    st.sampled_from([b"", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"]),
)
def test_bytes_by_chance_are_no_layer(data: bytes, start: bytes) -> None:
    with place() as (_, out):
        attempt(start + data, out)


@KEEP
@given(LAYER, st.data())
def test_damaged_blobs_are_refused(data: bytes, draw: st.DataObject) -> None:
    blob = bytearray(gzip.compress(data + layers.END))
    at = draw.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= draw.draw(st.integers(1, 255))
    with place() as (_, out):
        attempt(bytes(blob[: draw.draw(st.integers(at, len(blob)))]), out)


@settings(KEEP, max_examples=150)
@given(LAYER)
def test_what_was_unpacked_packs_to_the_same_again(data: bytes) -> None:
    owner = layers.ROOT if os.geteuid() == 0 else layers.SINGLE
    with place() as (top, out):
        if owner.kind == "single" or not attempt(data + layers.END, out):
            return
        again = top / "out" / "again"
        packers: tuple[Callable[..., object], ...] = (pack_tree, pack_changes)
        for pack in packers:
            first = io.BytesIO()
            with layers.opened(out) as (fd,):
                pack(fd, first.write, owner)
            again.mkdir()
            state = out.stat()
            with layers.opened(again) as (fd,):
                unpack(io.BytesIO(first.getvalue()), fd, owner)
                second = io.BytesIO()
                pack(fd, second.write, owner)
            assert second.getvalue() == first.getvalue()
            with layers.opened(out) as (fd,):
                remove_tree(fd, "again", owner)
            os.utime(out, ns=(state.st_mtime_ns, state.st_mtime_ns))
