# noqa: INP001 - a script
"""
Write sandboxlib/seccomp/programs.py: the default profile without capabilities, compiled beforehand.

Run it from the repository's root after a change to the default profile or to the compiler; a test
fails until it has been run::

    python tools/seccomp_programs.py
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from sandboxlib.seccomp import compile, default  # noqa: A004 - as in re.compile
from sandboxlib.seccomp.abi import FOREIGN
from sandboxlib.seccomp.allowed import CHECKED, REFUSED
from sandboxlib.seccomp.denied import DENIED

HEAD = '''"""The default profile as programs, by machine; written by tools/seccomp_programs.py."""

# fmt: off
'''


def main() -> None:
    """Write the module."""
    opening = {"CAP_SYS_ADMIN"}.union(
        *(row.needs for row in CHECKED), *(row.opened_by for row in (*REFUSED, *DENIED))
    )
    text = (
        HEAD
        + "#: Capabilities that open anything; with others the program is the same.\nOPENING = frozenset({\n"
    )
    text += (
        "".join(f'    "{name}",\n' for name in sorted(opening)) + "})\n\n#: In hexadecimal.\nPROGRAMS = {\n"
    )
    for arch in FOREIGN:
        code = compile(default(), arch=arch).hex()
        text += (
            f'    "{arch}": (\n'
            + "".join(f'        "{line}"\n' for line in textwrap.wrap(code, 96))
            + "    ),\n"
        )
    Path("sandboxlib/seccomp/programs.py").write_text(text + "}\n")


if __name__ == "__main__":
    main()
