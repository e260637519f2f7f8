"""A code interpreter: cells of one session share their files; one that hangs is ended, errors are told."""

import sys
from typing import Self

from sandboxlib import Completed, ExitError, Sandbox, TimeoutExpired

CELLS = [
    "numbers = [n * n for n in range(5)]; open('squares', 'w').write(repr(numbers)); print(len(numbers))",
    "print(sum(eval(open('squares').read())))",
    "while True: pass",
    "open('/etc/shadow')",
    "import os; print(os.path.getsize('squares'), 'bytes are still there')",
]


class Interpreter:
    """Runs cells of Python in a sandbox that lives as long as the session."""

    def __init__(self) -> None:
        self.sandbox = Sandbox(memory="256M", pids=32, lifetime=3600)

    def __enter__(self) -> Self:
        self.sandbox.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.sandbox.close()

    def run(self, cell: str, patience: float = 5) -> str:
        """What the cell prints, or what came in its way."""
        try:
            done: Completed = self.sandbox.run(
                [sys.executable, "-c", cell], text=True, timeout=patience, check=True, max_output="64K"
            )
        except TimeoutExpired as error:
            return f"ended after {error.timeout:g} seconds"
        except ExitError as error:
            return str(error.stderr).strip().splitlines()[-1]
        return str(done.stdout).strip()


with Interpreter() as session:
    for number, cell in enumerate(CELLS, 1):
        print(f"[{number}] {session.run(cell)}")
    print("files:", *(change.path for change in session.sandbox.changes()))
