"""The table of what works where is made of records, and the page in the documentation has all rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environments() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environments", CHECKOUT / "tools/environments.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_cell_says_how_many_passed_of_all_that_did(environments: ModuleType) -> None:
    page = environments.table(
        {
            "host": ["tests/kernel/test_files.py::test_a", "tests/kernel/test_files.py::test_b[x]"],
            "user": ["tests/kernel/test_files.py::test_a", "tests/unit/test_lines.py::test_z"],
            "session": [],
            "qemu": ["tests/kernel/test_files.py::test_a", "tests/kernel/test_wait.py::test_c"],
            "selinux": ["tests/kernel/test_wait.py::test_c"],
        }
    )
    title = environments.titles()["test_files.py"]
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {title} |")]
    # Where only chosen tests ran, none passed says nothing.
    assert row.endswith("| all | 1 of 2 | – |  | 1 |")
    assert "| | `host` | `user` | `session` | `selinux` | `qemu` |" in page
    assert "test_z" not in page


def test_the_page_has_a_row_for_each_file_of_tests(environments: ModuleType) -> None:
    page = (CHECKOUT / "docs/environments.md").read_text(encoding="utf-8")
    assert page.startswith(environments.HEAD)
    assert [title for title in environments.titles().values() if f"\n| {title} |" not in page] == []
