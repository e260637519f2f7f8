"""Lines of subuid(5) and subgid(5): what is taken from them, and what is said of those that are no good."""

from __future__ import annotations

import pytest

from sandboxlib.kernel.subids import parse

NAMES = ("ann", "1000")


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["bob:100000:65536", "ann:165536:65536"], (165536, 65536)),
        (["1000:200000:100"], (200000, 100)),
        (["ann:100000:10", "ann:300000:65536", "1000:200000:20"], (300000, 65536)),
        (["ann:nonsense", "ann:300000:65536"], (300000, 65536)),
        (["  ann:100000:65536  "], (100000, 65536)),
        (["annette:100000:65536", "#ann:100000:65536", ""], None),
    ],
)
def test_the_largest_range_of_the_user_is_taken(lines: list[str], found: tuple[int, int] | None) -> None:
    assert parse(lines, NAMES, 1000) == (found, "")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("ann:100000", "NAME:START:COUNT"),
        ("ann:100000:65536:1", "NAME:START:COUNT"),
        ("ann:0x1000:5", "NAME:START:COUNT"),
        ("ann:100000:-5", "NAME:START:COUNT"),
        ("ann:١٠٠:65536", "NAME:START:COUNT"),
        ("ann:100000:0", "no usable range"),
        ("ann:4294967290:100", "no usable range"),
        ("ann:0:65536", "root's own ID"),
        ("ann:500:65536", "own ID 1000"),
        ("ann:1000:1", "own ID 1000"),
    ],
)
def test_a_line_that_is_no_good_is_named_with_its_number(line: str, word: str) -> None:
    found, fault = parse(["# who has what", line], NAMES, 1000)
    assert found is None
    assert fault.startswith("line 2 ")
    assert word in fault
    assert repr(line) in fault
