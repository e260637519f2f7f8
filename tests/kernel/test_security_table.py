"""Each protection has its tests, and the page that lists them is the table of the code."""

from __future__ import annotations

import ast
from pathlib import Path

from kernel.probe.table import EVIDENCE, PAGE, page

from sandboxlib.plan.protections import PROTECTIONS


def test_every_protection_is_shown_by_a_test() -> None:
    assert EVIDENCE.keys() == {row.name for row in PROTECTIONS}
    trees = [ast.parse(path.read_text()) for path in Path(__file__).parent.glob("test_*.py")]
    there = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    missing = {name for names in EVIDENCE.values() for name in names} - there
    assert not missing


def test_the_page_lists_the_table() -> None:
    text = PAGE.read_text()
    assert text == page(text), "run: python tests/kernel/probe/table.py"
