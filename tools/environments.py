"""
What works where, from what tests have passed: the table of docs/environments.md.

    python tools/environments.py NAME=RECORD... > docs/environments.md

A record is a file with the IDs of tests that passed, as a run writes it when SANDBOXLIB_RECORD names
one; `./do lab` and `./do test` make one for each way to be allowed, SANDBOXLIB_KEEP_RECORDS=FOLDER keeps
them. A row is a file of tests/kernel, by the first line of its docstring.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

KERNEL = Path(__file__).resolve().parent.parent / "tests" / "kernel"

HEAD = """# What works where

Made by `tools/environments.py` from the tests that passed in each environment: how many of a file's tests
did, of all that passed in any. Fewer is not a fault: the others need what that environment does not have,
and said so.

| environment | what it is |
|---|---|
| `host` | root, Linux 6.18, cgroup v1 and a bare v2, Landlock, nftables, all namespaces |
| `root` | root in the lab: Linux 6.1, cgroup v2 alone, one CPU, no Landlock, nftables or time namespace |
| `user` | a user there with subordinate IDs and a delegated cgroup |
| `session` | a user there with neither |
"""


@functools.cache
def titles() -> dict[str, str]:
    """The first line of each file's docstring, by the file's name."""
    found = {}
    for path in sorted(KERNEL.glob("test_*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or path.stem
        found[path.name] = text.splitlines()[0].rstrip(".")
    return found


def passed(lines: Iterable[str]) -> dict[str, set[str]]:
    """The tests of tests/kernel among *lines*, by file."""
    found: dict[str, set[str]] = {}
    for line in lines:
        path, _, test = line.strip().partition("::")
        if test and path.startswith("tests/kernel/"):
            found.setdefault(path.rpartition("/")[2], set()).add(test)
    return found


def table(records: Mapping[str, Iterable[str]]) -> str:
    """The whole page, for records by the names of their environments."""
    found = {name: passed(lines) for name, lines in records.items()}
    lines = [
        HEAD,
        f"| | {' | '.join(f'`{name}`' for name in found)} |",
        f"|---|{'---|' * len(found)}",
    ]
    for file, title in titles().items():
        every = set().union(*(tests.get(file, set()) for tests in found.values()))
        cells = []
        for tests in found.values():
            number = len(tests.get(file, ()))
            cells.append(
                "all" if number == len(every) > 0 else f"{number} of {len(every)}" if number else "–"
            )
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Print the page for records that are given as NAME=RECORD."""
    records = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals:
            sys.exit(f"{argument!r} is not NAME=RECORD")
        records[name] = Path(path).read_text().splitlines()
    sys.stdout.write(table(records))


if __name__ == "__main__":
    main(sys.argv[1:])
