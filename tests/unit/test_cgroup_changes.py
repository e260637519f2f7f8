"""Writes that can be taken back, in folders that stand for cgroups"""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxlib.errors import KernelError
from sandboxlib.kernel.cgroup.changes import Changes, former

FORMER = {
    # file, what it holds, what is written: what to write to have it back.
    ("pids.max", "max\n", "5"): [("pids.max", "max")],
    ("cpu.max", "50000 100000\n", "max 100000"): [("cpu.max", "50000 100000")],
    ("cpuset.cpus", "\n", "1"): [("cpuset.cpus", "\n")],
    ("cpuset.cpus", "", "1"): [("cpuset.cpus", "\n")],
    ("cpuset.cpus.partition", "isolated invalid (Cpu list in cpuset.cpus not exclusive)\n", "member"): [
        ("cpuset.cpus.partition", "isolated")
    ],
    ("io.weight", "default 100\n8:0 50\n", "default 7"): [("io.weight", "default 100")],
    ("io.weight", "100\n", "default 7"): [("io.weight", "100")],
    ("io.max", "8:0 rbps=1 wbps=max riops=max wiops=max\n", "8:0 rbps=2"): [
        ("io.max", "8:0 rbps=1 wbps=max riops=max wiops=max")
    ],
    ("io.max", "8:16 rbps=1 wbps=max riops=max wiops=max\n", "8:0 rbps=2"): [
        ("io.max", "8:0 rbps=max wbps=max riops=max wiops=max")
    ],
    ("io.latency", "", "8:0 target=5"): [("io.latency", "8:0 target=0")],
    ("blkio.throttle.read_bps_device", "8:0 9\n", "8:0 5"): [("blkio.throttle.read_bps_device", "8:0 9")],
    ("blkio.throttle.read_bps_device", "", "8:0 5"): [("blkio.throttle.read_bps_device", "8:0 0")],
    ("devices.allow", "", "c 1:3 rwm"): [],
}


@pytest.mark.parametrize(("given", "expected"), FORMER.items(), ids=[" ".join(given) for given in FORMER])
def test_what_a_file_holds_is_what_brings_it_back(
    given: tuple[str, str, str], expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    name, held, text = given
    (tmp_path / name).write_text(held)
    assert former(f"{tmp_path}/{name}", text) == [(f"{tmp_path}/{name}", back) for name, back in expected]


@pytest.mark.parametrize(
    ("listed", "lines"),
    [("a *:* rwm\n", ["a"]), ("c 1:3 rwm\nb 8:0 r\n", ["c 1:3 rwm", "b 8:0 r"]), ("", [])],
)
def test_devices_are_denied_all_and_allowed_one_by_one(listed: str, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "devices.list").write_text(listed)
    allow, deny = f"{tmp_path}/devices.allow", f"{tmp_path}/devices.deny"
    assert former(deny, "a") == [(deny, "a"), *((allow, line) for line in lines)]


def test_what_cannot_be_read_holds_nothing(tmp_path: Path) -> None:
    assert former(f"{tmp_path}/memory.reclaim", "1M") == []


def test_changes_are_taken_back_the_last_first(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text("old\n")
    changes = Changes()
    changes.write(f"{tmp_path}/one", "new")
    changes.write(f"{tmp_path}/one", "NEW")
    changes.write(f"{tmp_path}/two", "new")
    error = ValueError()
    changes.take_back(error)
    assert [(tmp_path / name).read_text().strip() for name in ("one", "two")] == ["old", "old"]
    assert not getattr(error, "__notes__", [])


def test_what_is_refused_was_not_changed_and_what_cannot_be_set_back_is_told(tmp_path: Path) -> None:
    changes = Changes()
    (tmp_path / "gone").write_text("old\n")
    (tmp_path / "kept").write_text("old\n")
    changes.write(f"{tmp_path}/gone", "new")
    changes.write(f"{tmp_path}/kept", "new")
    with pytest.raises(KernelError):
        changes.write(f"{tmp_path}/no/such/folder", "new")
    (tmp_path / "gone").unlink()
    (tmp_path / "gone").mkdir()
    error = ValueError()
    changes.take_back(error)
    assert (tmp_path / "kept").read_text().strip() == "old"
    notes = getattr(error, "__notes__", [])
    assert len(notes) == 1
    assert "could not be set back" in notes[0]
    assert "gone" in notes[0]
