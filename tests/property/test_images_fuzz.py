"""Whatever a layer or a document holds: an error is one of ours, and nothing is written outside."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxlib.errors import SandboxError
from sandboxlib.image import model
from sandboxlib.reference import Reference

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
