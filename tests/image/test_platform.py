"""Which image of an index is for a machine."""

from __future__ import annotations

import os

import pytest

from sandboxlib.errors import ImageError, SpecError
from sandboxlib.image import model
from sandboxlib.image.model import Descriptor, Index
from sandboxlib.image.platform import Platform, choose, normal, own, parse_platform


def index(*platforms: str | Platform | None) -> Index:
    """An index with an image for each; the size tells which."""
    return Index(
        schema_version=2,
        manifests=tuple(
            Descriptor(
                model.OCI_MANIFEST,
                "sha256:" + "0" * 64,
                number,
                platform=_unchanged(each) if isinstance(each, str) else each,
            )
            for number, each in enumerate(platforms)
        ),
    )


def _unchanged(text: str) -> Platform:
    """As it stands there: images are not named as this library would."""
    os_, architecture, *variant = text.split("/")
    return Platform(architecture, os_, variant[0] if variant else None)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/i686", "linux/386"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_a_platform_has_one_name(text: str, same: str) -> None:
    assert str(parse_platform(text)) == same
    assert parse_platform(same) == normal(parse_platform(text)) == parse_platform(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "amd64",
        "linux/",
        "/amd64",
        "linux/arm64/v8/x",
        "linux/ am",
        "linux/a\n",
        "linux/é",
        "x" * 65,
        None,
        3,
    ],
)
def test_what_is_no_platform_is_refused(text: object) -> None:
    with pytest.raises(SpecError, match="platform"):
        parse_platform(text)


def test_the_own_one_is_this_machines() -> None:
    assert own().os == "linux"
    assert own() == parse_platform(f"linux/{os.uname().machine}")


@pytest.mark.parametrize(
    ("wanted", "offered", "which"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64/v3", ["linux/amd64"], 0),
        ("linux/amd64", ["linux/x86_64"], 0),
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/arm64", ["linux/arm/v7", "linux/aarch64"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], 2),
        ("linux/arm", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
        # Of two that are alike the first is taken, as others do.
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/mips64/softfloat", ["linux/mips64/hardfloat", "linux/mips64/softfloat"], 1),
    ],
)
def test_the_nearest_that_runs_is_chosen(wanted: str, offered: list[str], which: int) -> None:
    assert choose(index(*offered), parse_platform(wanted)).size == which


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("linux/amd64", ["linux/arm64", "windows/amd64"]),
        ("linux/amd64", ["linux/386"]),
        ("linux/amd64", ["linux/amd64/v2"]),
        ("linux/arm64", ["linux/arm64/v9"]),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm"]),
        ("linux/mips64/softfloat", ["linux/mips64/hardfloat"]),
        ("linux/amd64", []),
    ],
)
def test_what_does_not_run_is_not_chosen(wanted: str, offered: list[str]) -> None:
    with pytest.raises(ImageError, match=f"not there for {wanted}"):
        choose(index(*offered), parse_platform(wanted))


def test_the_error_says_what_there_is_but_not_what_nobody_has() -> None:
    found = index("linux/arm64/v8", "linux/s390x", "unknown/unknown", None)
    with pytest.raises(ImageError, match=r"there are: linux/arm64, linux/s390x$"):
        choose(found, parse_platform("linux/amd64"))
    with pytest.raises(ImageError, match="none with a platform"):
        choose(index(None, None), parse_platform("linux/amd64"))


def test_the_only_one_is_for_all_if_it_does_not_say() -> None:
    assert choose(index(None), parse_platform("linux/amd64")).size == 0


def test_a_strange_variant_does_not_stop_the_choice() -> None:
    found = index("linux/amd64/" + "9" * 5000, "linux/amd64/vv", "linux/amd64/", "linux/amd64")
    assert choose(found, parse_platform("linux/amd64")).size == 2
