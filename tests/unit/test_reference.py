"""Names of images, as Docker reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxlib import Rootfs, Sandbox, SpecError
from sandboxlib.reference import Reference

SHA = "sha256:" + "ab" * 32
SHA512 = "sha512:" + "cd" * 64


@pytest.mark.parametrize(
    "text, whole, familiar",
    [
        ("ubuntu", "docker.io/library/ubuntu:latest", "ubuntu"),
        ("ubuntu:22.04", "docker.io/library/ubuntu:22.04", "ubuntu:22.04"),
        ("team/app", "docker.io/team/app:latest", "team/app"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu:latest", "ubuntu"),
        ("index.docker.io/library/ubuntu:1", "docker.io/library/ubuntu:1", "ubuntu:1"),
        ("localhost/app", "localhost/app:latest", "localhost/app"),
        ("localhost:5000/a/b:tag", "localhost:5000/a/b:tag", "localhost:5000/a/b:tag"),
        ("host:5000/a", "host:5000/a:latest", "host:5000/a"),
        ("registry.example/a/b/c", "registry.example/a/b/c:latest", "registry.example/a/b/c"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a"),
        ("HOST/a", "HOST/a:latest", "HOST/a"),
        (f"app@{SHA}", f"docker.io/library/app@{SHA}", f"app@{SHA}"),
        (f"host:5000/a/b:tag@{SHA}", f"host:5000/a/b:tag@{SHA}", f"host:5000/a/b:tag@{SHA}"),
        (f"app:latest@{SHA512}", f"docker.io/library/app:latest@{SHA512}", f"app:latest@{SHA512}"),
        ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c"),
        ("a--b.c_d__e", "docker.io/library/a--b.c_d__e:latest", "a--b.c_d__e"),
        ("app:" + "x" * 128, "docker.io/library/app:" + "x" * 128, "app:" + "x" * 128),
        ("my_registry:5000/a", "my_registry:5000/a:latest", "my_registry:5000/a"),
        ("_r.a_b.example/a/b", "_r.a_b.example/a/b:latest", "_r.a_b.example/a/b"),
        ("A_b/c", "A_b/c:latest", "A_b/c"),
        ("my_team/app", "docker.io/my_team/app:latest", "my_team/app"),
        # The path alone is counted, and of Docker Hub's what is not written.
        ("h.example:5000/" + "a" * 255, None, "h.example:5000/" + "a" * 255),
        ("h." * 100 + "example/" + "b/" * 127 + "c", None, "h." * 100 + "example/" + "b/" * 127 + "c"),
        ("a" * 247, f"docker.io/library/{'a' * 247}:latest", "a" * 247),
    ],
)
def test_a_name_is_read_as_docker_reads_it(text: str, whole: str | None, familiar: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == (whole or f"{text}:latest")
    assert reference.familiar == familiar
    # Both forms mean the same image.
    assert Reference.parse(str(reference)) == Reference.parse(reference.familiar) == reference


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "such as"),
        (None, "such as"),
        (3, "such as"),
        ("App", "'App'"),
        ("team/App", "'App'"),
        ("a//b", "''"),
        ("/a", "between '/'"),
        ("a/", "between '/'"),
        ("a:", "tag"),
        ("a:-b", "tag"),
        ("a:" + "x" * 129, "tag"),
        ("a@sha256:12", "digest"),
        ("a@md5:" + "0" * 32, "digest"),
        ("a@", "digest"),
        ("a@sha256:" + "AB" * 32, "digest"),
        ("-a.b/c", "'-a.b'"),
        ("host:99999999/a", "'host:99999999'"),
        ("a b", "'a b'"),
        ("a\0b", "'a"),
        ("a\n", "'a"),
        ("ab" * 32, "an ID"),
        ("a__b/c-.d", "'c-.d'"),
        ("a." + "b" * 300, "255"),
        ("host.example/" + "b" * 256, "255"),
        ("host.example/" + "b/" * 127 + "cd", "255"),
        ("a" * 248, "255"),
        ("h." * 127 + "h/a", "253"),
        ("-_.example/a", "'-_.example'"),
        ("../../etc", "'..'"),
        ("http://host/a", "'http:'"),
    ],
)
def test_what_is_no_name_is_refused_with_the_part_that_is_wrong(text: object, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        Reference.parse(text, "reference")
    assert caught.value.field == "reference"
    assert said in caught.value.allowed


def test_values_that_name_images_refuse_what_is_no_name() -> None:
    with pytest.raises(SpecError, match=r"image.*tag"):
        Sandbox(image="app:-1")
    with pytest.raises(SpecError, match=r"reference.*lower-case"):
        Rootfs.image("App")
    assert Rootfs.image(f"app@{SHA}").reference == f"app@{SHA}"


PARTS = st.sampled_from(["a", "0.0", "a_b", "x-y.z", "library", "a__b", "v2"])


@given(
    registry=st.sampled_from(["docker.io", "localhost", "a.b:5000", "[::1]:80", "registry.example"]),
    path=st.lists(PARTS, min_size=1, max_size=3).map("/".join),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.sampled_from(["", SHA, SHA512]),
)
def test_what_is_written_is_read_as_it_was(registry: str, path: str, tag: str, digest: str) -> None:
    reference = Reference.parse(f"{registry}/{path}:{tag}" + (f"@{digest}" if digest else ""))
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except SpecError:
        return
    assert Reference.parse(str(reference)) == reference
