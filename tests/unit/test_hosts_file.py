"""The file of names that sandboxes share: lines come and go, and the others never move."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sandboxlib.engine import hosts


def names(path: Path) -> list[str]:
    return [line.rstrip() for line in path.read_text().splitlines() if not line.startswith("#")]


def test_a_gap_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    hosts.create(str(path), ["10.0.0.2 one", "10.0.0.3 another", "10.0.0.4 last"])
    inode, size = path.stat().st_ino, path.stat().st_size
    hosts.change(str(path), remove=["10.0.0.3 another"])
    assert "another" not in path.read_text()
    hosts.change(str(path), add=["10.0.0.5 new"])
    assert names(path)[2:] == ["10.0.0.2 one", "10.0.0.5 new", "10.0.0.4 last"]
    assert (path.stat().st_ino, path.stat().st_size) == (inode, size)
    hosts.change(str(path), add=["10.0.0.6 more"])
    assert names(path)[-1] == "10.0.0.6 more"


def test_a_file_that_has_gone_is_left_alone(tmp_path: Path) -> None:
    hosts.change(str(tmp_path / "none"), add=["10.0.0.2 one"])
    assert list(tmp_path.iterdir()) == []


LINES = st.lists(
    st.tuples(st.booleans(), st.integers(2, 9), st.sampled_from(["a", "bb", "ccccccc"])), max_size=30
)


@given(LINES)
def test_what_is_there_is_what_came_and_has_not_gone(
    tmp_path_factory: object, changes: list[tuple[bool, int, str]]
) -> None:
    path = tmp_path_factory.mktemp("names") / "hosts"  # type: ignore[attr-defined]
    hosts.create(str(path), [])
    head, there = names(path), []
    for come, number, name in changes:
        line = f"10.0.0.{number} {name}"
        if come and line not in there:
            hosts.change(str(path), add=[line])
            there.append(line)
        elif not come:
            hosts.change(str(path), remove=[line])
            there = [other for other in there if other != line]
    assert sorted(names(path)) == sorted(head + there)


def test_name_servers_on_the_hosts_loopback_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "resolv"
    hosts.resolver(str(path), ("10.0.0.1", "fd00::1"), ("a.example", "b.example"), reachable=True)
    assert path.read_text() == "nameserver 10.0.0.1\nnameserver fd00::1\nsearch a.example b.example\n"
    hosts.resolver(str(path), None, (), reachable=True)
    assert "nameserver 127." not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
