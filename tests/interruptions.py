"""
Interrupts a verb wherever Python would run a signal's handler, once for each place.

``native/interrupt.c`` finds the places: between which instructions handlers run is the interpreter's choice,
and differs from version to version. At each of them the verb is done anew and an exception is thrown in,
as Ctrl-C, a timeout of pytest's or a soft limit of Celery's would. What has to come is that very
exception, or a `SandboxError`; and when what the verb has opened is closed once more, nothing is left.

As a program it tries every place of every scenario, or those that are named::

    python tests/interruptions.py [SCENARIO...]
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(HERE), str(HERE.parent)) if path not in sys.path]

from sandboxlib.errors import SandboxError  # noqa: E402

import leaks  # noqa: E402 - the path comes first

#: Keeps what was opened, so that it can be closed again.
Keep = Callable[[Any], Any]
Scenario = Callable[[Keep], None]
#: Seconds for one try, traced, on a busy machine.
PATIENCE = 60


class Interruption(BaseException):
    """What a handler raises. Not an Exception: nobody may take it for one of his own."""


class Place(NamedTuple):
    """Where a handler runs, and for which time."""

    code: CodeType
    lasti: int
    visit: int

    def __str__(self) -> str:
        lines = {offset: line for start, end, line in self.code.co_lines() for offset in range(start, end)}
        file = self.code.co_filename.rpartition("/")[2]
        return f"{file}:{lines.get(self.lasti)} {self.code.co_qualname}+{self.lasti} (time {self.visit})"


def tracer(folder: str) -> ModuleType:
    """Build and load the C part in *folder*."""
    path = f"{folder}/interrupt{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{sysconfig.get_path('include')}"]
    subprocess.run(["gcc", *flags, str(HERE / "native/interrupt.c"), "-o", path], check=True)
    spec = importlib.util.spec_from_file_location("interrupt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Attempts:
    """Tries one scenario. Attributes: faults, what was wrong, by place."""

    def __init__(self, interrupt: ModuleType, name: str, scenario: Scenario) -> None:
        self._interrupt = interrupt
        self._name = name
        self._scenario = scenario
        self.faults: list[str] = []

    def places(self) -> list[Place]:
        """All places that the scenario passes, in order."""
        self._once(lambda: self._interrupt.watch(signal.SIGUSR1), None)
        visits: Counter[tuple[CodeType, int]] = Counter()
        found = []
        for code, lasti in self._seen or ():
            visits[code, lasti] += 1
            found.append(Place(code, lasti, visits[code, lasti]))
        return found

    def strike(self, place: Place) -> None:
        """Interrupt the scenario at *place*."""
        raised = Interruption(str(place))
        code, lasti, visit = place
        self._once(lambda: self._interrupt.strike(signal.SIGUSR1, raised, code, lasti, visit), place, raised)

    def _once(
        self, begin: Callable[[], None], place: Place | None, raised: Interruption | None = None
    ) -> None:
        # First, for it has a thread of its own.
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        before = leaks.snapshot()
        opened: list[Any] = []

        def keep(thing: Any) -> Any:
            opened.append(thing)
            return thing

        lost: list[str] = []
        sys.unraisablehook = lambda told: lost.append(f"{told.exc_type.__name__} in {told.object}")
        problem = ""
        try:
            begin()
            self._scenario(keep)
        except (Interruption, SandboxError):
            pass
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            self._seen = self._interrupt.end()
        if raised is not None:
            # Whoever keeps an exception keeps all that was in use where it came.
            raised.__traceback__ = raised.__context__ = raised.__cause__ = None
        try:
            for thing in reversed(opened):
                thing.close()
        except BaseException as error:
            problem += f" closing again: {type(error).__name__}: {error}"
        opened.clear()
        if lost and "Interruption" in lost[0]:
            # Python drops what comes while an object is deleted; then it has to have had no effect.
            lost.clear()
        left = _left(before)
        if left:
            gc.collect()
            time.sleep(0.02)
            left &= _left(before)
        faulthandler.cancel_dump_traceback_later()
        if problem or left or lost:
            self.faults.append(f"{self._name} at {place}: {problem} {sorted(left) or ''} {lost or ''}")


_OTHERS = re.compile(rf"cgroups: .*/sandboxlib-\d+-(?!{os.getpid()}-)[^/]*")


def _left(before: leaks.Snapshot) -> set[str]:
    """What is left behind by this program: others may be at work, too."""
    return {leak for leak in leaks.difference(before, leaks.snapshot()) if not _OTHERS.fullmatch(leak)}


# ---- scenarios ------------------------------------------------------------------------------------------

SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Enter *function* into the table."""
    SCENARIOS[function.__name__] = function
    return function


@scenario
def a_command(keep: Keep) -> None:
    """Start a sandbox, run a command in it, close it."""
    from sandboxlib import Sandbox

    with keep(Sandbox()) as box:
        box.run(["sh", "-c", "cat; echo no >&2"], input=b"words")


@scenario
def a_process(keep: Keep) -> None:
    """A handle, with pipes, that is killed."""
    from sandboxlib import PIPE, Sandbox

    with keep(Sandbox()) as box:
        with box.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
            process.stdin.write(b"x")
            process.stdin.close()
            process.stdout.read()
        other = box.popen(["sleep", "60"])
        other.kill()
        other.wait()


@scenario
def files(keep: Keep) -> None:
    """Files in and out, and what has changed."""
    from sandboxlib import Sandbox

    with tempfile.TemporaryDirectory(prefix="interruptions-") as folder:
        Path(folder, "in").mkdir()
        Path(folder, "in/file").write_text("x")
        Path(folder, "in/link").symlink_to("file")
        with keep(Sandbox()) as box:
            box.files.write("/tmp/a/b", b"x", parents=True)
            box.files.read("/tmp/a/b")
            box.files.copy_in(f"{folder}/in", "/tmp/in")
            box.files.copy_out("/tmp/in", f"{folder}/out")
            box.files.remove("/tmp/in", recursive=True)
            box.changes()
        names = [name for _, _, found in os.walk(f"{folder}/out") for name in found]
        assert not [name for name in names if name.startswith(".")], names


def main() -> int:
    """Try places, and print what was wrong as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS])
    parser.add_argument("--sample", type=int, help="so many places of each scenario, not all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    faulthandler.enable()
    faults = {}
    with tempfile.TemporaryDirectory(prefix="interruptions-") as folder:
        interrupt = tracer(folder)
        signal.signal(signal.SIGUSR1, interrupt.handler)
        for name in options.scenarios or SCENARIOS:
            function = SCENARIOS[name]
            # What is loaded once is there.
            function(lambda thing: thing)
            attempts = Attempts(interrupt, name, function)
            places = attempts.places()
            chosen = places
            if options.sample:
                # Each place once, then as many more as asked for.
                chosen = random.Random(options.seed).sample(places, min(options.sample, len(places)))
            for place in chosen:
                attempts.strike(place)
                if not options.json and attempts.faults and str(place) in attempts.faults[-1]:
                    print(attempts.faults[-1], flush=True)
            faults[name] = [len(chosen), len(places), attempts.faults]
            if not options.json:
                print(f"{name}: {len(chosen)} of {len(places)} places tried, {len(attempts.faults)} faults")
    if options.json:
        print(json.dumps(faults))
    return 1 if any(found[2] for found in faults.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
