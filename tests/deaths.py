"""
Kills programs that use all that there is, at any moment, and looks what the next one finds.

Each is a child that is forked from one that has the library loaded, and that nobody asks for its status until
the end: so it stays as a zombie. It has sandboxes with groups, layers on disk and in memory, copied layers,
volumes, an image, networks and ports, and starts and ends them, until SIGKILL comes; or until it executes
another program, which goes on with its pid. As root, in a network namespace of its own::

    python tests/deaths.py [NUMBER] [--seed N]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(HERE), str(HERE.parent)) if path not in sys.path]

import leaks  # noqa: E402 - the path comes first

_NEWNET = 0x40000000
_HOST = ("/usr", "/bin", "/lib", "/lib64")
_PORT = 7980


class Owner:
    """What each of them uses, below *place*, and in a network namespace that is the harness's own."""

    def __init__(self, place: Path) -> None:
        self.layers, self.base = place / "layers", place / "base"
        for path in (self.layers, self.base):
            path.mkdir()
        (self.base / "file").write_text("x")
        (self.base / "folder").mkdir()

    def sandboxes(self) -> list[dict[str, Any]]:
        """The arguments of all kinds of sandboxes."""
        from sandboxlib import Mount, Network, Rootfs, Volume

        host = [Mount.bind(path, path, readonly=True) for path in _HOST]
        layers, disk = [str(self.base)], str(self.layers)
        return [
            {"memory": "64M", "mounts": [Volume("kept").at("/kept")]},
            {"rootfs": Rootfs.overlay(layers), "mounts": host},
            {"rootfs": Rootfs.overlay(layers, storage=disk), "mounts": host},
            {"rootfs": Rootfs.overlay(layers, driver="copy", storage=disk), "mounts": host},
            {"image": "deaths", "mounts": host},
            {"network": Network.bridge("deaths", subnet="10.98.7.0/29"), "ports": {_PORT: 80}},
        ]

    def use(self, seed: int) -> None:
        """Start and end sandboxes, one kind after the other, from one of them on."""
        from sandboxlib import Sandbox

        kinds = self.sandboxes()
        for number in itertools.count(seed):
            with Sandbox(**kinds[number % len(kinds)]) as sandbox:
                sandbox.popen(["sleep", "1000"])
                sandbox.run(["true"])

    def left(self) -> list[str]:
        """What stands there that names somebody as its owner."""
        run = Path("/run/sandboxlib")
        found = [f"{run.name}/{path.name}" for path in run.iterdir() if path.name != "ids"]
        found += [f"layers/{path.name}" for path in self.layers.iterdir()]
        found += [f"links/{path.name}" for path in Path("/proc/self/net/dev_snmp6").iterdir()]
        return sorted(found)

    def next(self) -> list[str]:
        """The next program: it gets all of it again, the port and an address above all; what is left then."""
        from sandboxlib import Sandbox, Volume

        child = os.fork()
        if not child:
            # One of each at once: the range has addresses for five, and the port is one.
            with contextlib.ExitStack() as stack:
                for kind in self.sandboxes():
                    stack.enter_context(Sandbox(**kind)).run(["true"], check=True)
                network = self.sandboxes()[-1]["network"]
                for _ in range(4):
                    stack.enter_context(Sandbox(network=network)).run(["true"], check=True)
            Volume.remove("kept")
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return [*([f"status {status}"] if status else []), *self.left()]


def _executes(number: int, frame: object) -> None:
    os.execv("/bin/sleep", ["sleep", "1000"])


def deaths(number: int, seed: int, place: Path) -> dict[str, Any]:
    """
    Let *number* of them die.

    Returns:
        How many were killed and how many executed another program; what there was at most, and what the next
        found wrong or left, each time.
    """
    from sandboxlib import Image

    chance, owner = random.Random(seed), Owner(place)
    Image.from_rootfs(str(owner.base), name="deaths")
    # What is loaded once is there; and how long one round takes.
    began = time.monotonic()
    wrong = [f"before: {found}" for found in owner.next() if not found.startswith("links/lo")]
    longest = min(time.monotonic() - began, 1.0)
    dead, executed, most = [], 0, 0
    before = owner.left()
    for count in range(number):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGUSR1, _executes)
            try:
                owner.use(chance.randrange(100))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        chance.random()
        time.sleep(chance.uniform(0.01, longest))
        dead.append(child)
        other = count % 4 == 3
        executed += other
        os.kill(child, signal.SIGUSR1 if other else signal.SIGKILL)
        # As it dies, and not only when all is quiet again.
        if count % 10 == 9 or count == number - 1:
            _wait_for(dead)
            most = max(most, len(owner.left()) - len(before))
            wrong += [f"{count}: {found}" for found in owner.next() if found not in before]
    for child in dead:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        wrong += [] if status == -signal.SIGKILL else [f"one ended by itself, with {status}"]
    Image.remove("deaths")
    Image.prune()
    return {"killed": number - executed, "executed": executed, "most": most, "wrong": wrong}


def _wait_for(dead: list[int]) -> None:
    """Until each of them is a zombie, or another program."""
    until = time.monotonic() + 20
    for child in dead:
        while time.monotonic() < until:
            name, _, rest = Path(f"/proc/{child}/stat").read_text().rpartition(")")
            if rest.split()[0] == "Z" or name.endswith("(sleep"):
                break
            time.sleep(0.002)


def main() -> int:
    """Let them die, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    assert not ctypes.CDLL(None, use_errno=True).unshare(_NEWNET)
    place = Path(tempfile.mkdtemp(prefix="deaths-"))
    os.environ["SANDBOXLIB_STATE_DIR"] = str(place / "state")
    before = leaks.snapshot()
    found = deaths(options.number, options.seed, place)
    shutil.rmtree(place)
    found["left"] = sorted(leaks.difference(before, leaks.snapshot()))
    print(json.dumps(found))
    return 1 if found["wrong"] or found["left"] else 0


if __name__ == "__main__":
    sys.exit(main())
