"""``python -m benchmarks [NAME...]``: measure, each in a fresh program; the output is README.md's tables."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("start", "memory", "importing", "throughput", "roundtrip", "images", "network")


def main(names: list[str]) -> None:
    """Run those in *names*, or all."""
    if strange := [name for name in names if name not in NAMES]:
        sys.exit(f"there is no benchmark {strange[0]!r}; there are {', '.join(NAMES)}")
    for name in names or NAMES:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
