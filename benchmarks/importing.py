"""What `import sandboxlib` adds to the start of an interpreter."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Action, Bar

STATEMENTS = {
    "nothing": "pass",
    "import sandboxlib": "import sandboxlib",
    "from sandboxlib import Sandbox": "from sandboxlib import Sandbox",
    "import attrs": "import attrs",
    "a first sandbox with one command": "import sandboxlib; sandboxlib.run(['/bin/true'])",
}


def start(statement: str, cache: str) -> Action:
    """An interpreter that does this alone; what is compiled in the warm-up lies in *cache*, as installed."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return lambda: subprocess.run([sys.executable, "-c", statement], env=environment, check=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sandboxlib-benchmark-") as cache:
        actions = {name: start(text, cache) for name, text in STATEMENTS.items()}
        times = measure.interleave(actions, options.rounds)
    print(f"## Import\n\n{measure.machine()}; {options.rounds} rounds\n")
    measure.show_times(times)
    measure.show_bars(
        [
            Bar(
                f"{name}, over the bare interpreter",
                1000 * (times[name].median - times["nothing"].median),
                40,
                unit="ms",
            )
            for name in ("import sandboxlib", "from sandboxlib import Sandbox")
        ]
    )


if __name__ == "__main__":
    main()
