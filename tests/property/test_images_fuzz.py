"""Whatever a layer or a document holds: an error is one of ours, and nothing is written outside."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxlib.errors import SandboxError
from sandboxlib.image import model
from sandboxlib.image.extract import Limits
from sandboxlib.reference import Reference

from layers import END, entry, folder, link, listing, pax, raw_entry, symlink, tar, unpacked, zipped

SMALL = Limits(size=1 << 20, entries=200)
PARTS = st.sampled_from(
    [b"a", b"b", b"..", b".", b"", b".wh.a", b".wh..wh..opq", b".wh.", b"\xff", b"n" * 255, b"n" * 256]
)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(b"/".join)
TARGETS = st.one_of(
    NAMES, st.sampled_from([b"/", b"/etc/passwd", b"../../../../../../etc", b"/proc/self/root", b""])
)


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """An entry, with headers before it or without, right or wrong."""
    name, target = draw(NAMES), draw(TARGETS)
    kind = draw(
        st.sampled_from(
            [b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"x", b"g", b"L", b"K", b"Z"]
        )
    )
    content = draw(st.binary(max_size=600)) if kind in b"0\0" + b"7SxgLKZ" else b""
    fields = {
        "mode": draw(st.integers(0, 0o7777)),
        "uid": draw(st.sampled_from([0, 1000, 8**7 - 1])),
        "link": target[:100],
    }
    raw = raw_entry(name[:100], content, kind, **fields)
    records = draw(
        st.dictionaries(
            st.sampled_from(
                [
                    "path",
                    "linkpath",
                    "size",
                    "uid",
                    "mtime",
                    "GNU__sparse__size",
                    "GNU__sparse__map",
                    "SCHILY__xattr__user__x",
                ]
            ),
            st.one_of(
                NAMES, TARGETS, st.integers(-5, 1 << 70).map(lambda n: b"%d" % n), st.binary(max_size=40)
            ),
            max_size=2,
        )
    )
    return (pax(**records) if records else b"") + raw


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(entries(), max_size=8), st.booleans(), st.integers(0, 600))
def test_no_layer_writes_outside(parts: list[bytes], compressed: bool, cut: int) -> None:
    raw = b"".join(parts) + END
    blob = zipped(raw) if compressed else raw
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / "outside").mkdir()
        (top / "outside/secret").write_text("secret")
        (top / "low").mkdir()
        (top / "low/a").symlink_to(top / "outside")
        (top / "low/b").mkdir()
        # Any of ours will do.
        with suppress(SandboxError):
            unpacked(
                top / "tree",
                blob[: len(blob) - cut] if cut > 500 else blob,
                limits=SMALL,
                lowers=[top / "low"],
            )
        assert sorted(os.listdir(top)) == ["low", "outside", "tree"]
        assert listing(top / "outside") == {"secret": ("-", "secret")}
        assert sorted(os.listdir(top / "low")) == ["a", "b"]
        for folder_, _, _ in os.walk(top / "tree"):
            os.chmod(folder_, 0o700)


GOOD = tar(
    folder("a"),
    entry("a/file", b"content" * 50),
    symlink("s", "a/file"),
    link("h", "a/file"),
    entry("a/.wh.gone"),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_layer_with_wrong_bytes_is_an_error_of_ours_or_none(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(GOOD)
    for at, value in changes:
        raw[at] = value
    with tempfile.TemporaryDirectory() as name:
        with suppress(SandboxError):
            unpacked(Path(name) / "tree", bytes(raw), limits=SMALL)
        assert os.listdir(name) == ["tree"]
        for folder_, _, _ in os.walk(Path(name) / "tree"):
            os.chmod(folder_, 0o700)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.just("sha256:" + "0" * 64),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "schemaVersion",
                    "mediaType",
                    "config",
                    "layers",
                    "manifests",
                    "digest",
                    "size",
                    "platform",
                    "rootfs",
                    "diff_ids",
                    "os",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=200)))
def test_documents_are_read_or_refused(raw: bytes) -> None:
    for read in (model.decode_manifest, model.decode_config):
        try:
            read(raw)
        except SandboxError:
            continue


@given(st.text(alphabet="aA0-_.:/@ \n\0é", max_size=30))
def test_names_are_read_the_same_again_or_refused(text: str) -> None:
    try:
        found = Reference.parse(text)
    except SandboxError:
        return
    assert Reference.parse(str(found)) == found
    assert Reference.parse(found.familiar) == found
