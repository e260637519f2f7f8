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
and said so. The last environments run only the tests that need them.
"""

ENVIRONMENTS = {
    "host": "root, Linux 6.18, cgroup v1 and a bare v2, Landlock, nftables, all namespaces",
    "root": "root in the lab: Linux 6.1, cgroup v2 alone, one CPU, no Landlock, nftables or time namespace",
    "user": "a user there with subordinate IDs and a delegated cgroup",
    "session": "a user there with neither",
    "systemd": "a user there who has logged in: systemd is process 1, each program asks it for a cgroup",
    "scope": "the same, asked for a cgroup by the tests' own program",
    "selinux": "root there, with SELinux in place of AppArmor",
    "qemu": "root in QEMU: Linux 6.12, cgroup v2 with cpuset and pressure, Landlock, nftables",
    "qemu-user": "a user in QEMU: Linux 6.1, a delegated cgroup with cpuset and pressure",
}
#: Where only some tests run: what did not pass there was not tried.
CHOSEN = ("systemd", "scope", "selinux", "qemu", "qemu-user")


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
    found = {name: passed(records[name]) for name in ENVIRONMENTS if name in records}
    lines = [HEAD, "| environment | what it is |", "|---|---|"]
    lines += [f"| `{name}` | {ENVIRONMENTS[name]} |" for name in found]
    lines += ["", f"| | {' | '.join(f'`{name}`' for name in found)} |", f"|---|{'---|' * len(found)}"]
    for file, title in titles().items():
        every = set().union(*(tests.get(file, set()) for tests in found.values()))
        cells = []
        for name, tests in found.items():
            number = len(tests.get(file, ()))
            if not number:
                cells.append("" if name in CHOSEN else "–")
            elif name in CHOSEN:
                cells.append(str(number))
            else:
                cells.append("all" if number == len(every) else f"{number} of {len(every)}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Print the page for records that are given as NAME=RECORD."""
    records = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or name not in ENVIRONMENTS:
            sys.exit(f"{argument!r} is not NAME=RECORD with one of {', '.join(ENVIRONMENTS)}")
        records[name] = Path(path).read_text().splitlines()
    sys.stdout.write(table(records))


if __name__ == "__main__":
    main(sys.argv[1:])
