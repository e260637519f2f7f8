"""Filters that a test starts a program under: calls that a host lacks, or a container engine forbids."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sandboxlib import seccomp

UNDER_FILTER = Path(__file__).parent / "oracle" / "under_filter.py"
CLONE_NEWUSER = 0x10000000


def failing(names: Iterable[str], number: int, *, flag: int = 0) -> dict[str, Any]:
    """A rule in Docker's JSON: calls fail with errno *number*; only where *flag* is in the first argument."""
    rule: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": number}
    if flag:
        rule["args"] = [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": flag, "valueTwo": flag}]
    return rule


def compiled(*rules: dict[str, Any]) -> bytes:
    """The program of a filter that lets all else pass."""
    text = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
    return seccomp.compile(seccomp.Profile.from_json(text), arch=platform.machine())


def under(folder: Path, *rules: dict[str, Any]) -> list[str]:
    """The beginning of a command line that runs the rest under a filter; its file is in *folder*."""
    (folder / "filter").write_bytes(compiled(*rules))
    return [sys.executable, str(UNDER_FILTER), str(folder / "filter")]
