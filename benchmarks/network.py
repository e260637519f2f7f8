"""
What a bridge costs: at the start of a sandbox, and in bytes a second.

All of it in a network namespace of its own, so that this host's network stays as it is. Needs root,
unshare(1), ip(8) and iperf3(1).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks import measure
from benchmarks.measure import Bar, Times
from sandboxlib import Network, Sandbox

NONE, HELD, FIRST, PORT = "no network", "on a bridge that is there", "the first on a bridge", "with a port"
CLOSE = ", its end"
PLAIN, BRIDGED = "a plain veth pair", "two sandboxes on a bridge"
SERVER, CLIENT = ["iperf3", "--server", "--one-off"], ["iperf3", "--json", "--client"]


def sh(*command: str) -> None:
    """Run a command."""
    subprocess.run(command, check=True, capture_output=True)


def started(**spec: object) -> tuple[Callable[[], float], Callable[[], float]]:
    """Two actions: a start, and the end of what it started."""
    held: list[Sandbox] = []

    def begin() -> float:
        began = time.perf_counter()
        held.append(Sandbox(**spec).open())
        return time.perf_counter() - began

    def end() -> float:
        began = time.perf_counter()
        held.pop().close()
        return time.perf_counter() - began

    return begin, end


def starts(rounds: int) -> dict[str, Times]:
    """Measure starts and ends."""
    pairs = {
        NONE: started(),
        HELD: started(network=Network.bridge("held")),
        PORT: started(network=Network.bridge("held"), ports={0: 80}),
        FIRST: started(network=Network.bridge("first")),
    }
    found: dict[str, list[float]] = {}
    with Network.bridge("held").open():
        names = list(pairs)
        for number in range(-3, rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                for what, action in zip((name, name + CLOSE), pairs[name], strict=True):
                    took = action()
                    if number >= 0:
                        found.setdefault(what, []).append(took)
    return {name: Times(tuple(found[name])) for name in sorted(found, key=lambda name: CLOSE in name)}


def speed(answer: bytes) -> float:
    """Bits a second that arrived."""
    return float(json.loads(answer)["end"]["sum_received"]["bits_per_second"])


@contextmanager
def plain() -> Iterator[Callable[[int], float]]:
    """Two network namespaces with nothing but a veth pair between them."""
    for name in ("left", "right"):
        sh("ip", "netns", "add", name)
    sh("ip", "-n", "left", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", "right")
    for name, address in (("left", "10.250.0.1/24"), ("right", "10.250.0.2/24")):
        sh("ip", "-n", name, "address", "add", address, "dev", "eth0")
        sh("ip", "-n", name, "link", "set", "eth0", "up")

    def measured(seconds: int) -> float:
        inside = ["ip", "netns", "exec"]
        with subprocess.Popen([*inside, "right", *SERVER], stdout=subprocess.DEVNULL) as server:
            time.sleep(0.3)
            command = [*inside, "left", *CLIENT, "10.250.0.2", "--time", str(seconds)]
            done = subprocess.run(command, capture_output=True, check=True)
            server.wait(10)
        return speed(done.stdout)

    yield measured
    for name in ("left", "right"):
        sh("ip", "netns", "delete", name)


def bridged(seconds: int) -> float:
    """Two sandboxes on one bridge."""
    network = Network.bridge("speed")
    with Sandbox(network=network, hostname="right") as right, Sandbox(network=network) as left:
        with right.popen(SERVER) as server:
            right.wait_for(port=5201, timeout=10)
            done = left.run([*CLIENT, "right", "--time", str(seconds)], check=True)
            server.wait(10)
        return speed(done.stdout)


def throughput(rounds: int, seconds: int) -> dict[str, list[float]]:
    """Measure both, in turn."""
    found: dict[str, list[float]] = {PLAIN: [], BRIDGED: []}
    with plain() as measured:
        for number in range(rounds):
            for name in (PLAIN, BRIDGED) if number % 2 else (BRIDGED, PLAIN):
                found[name].append((measured if name == PLAIN else bridged)(seconds))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if absent := [name for name in ("unshare", "ip", "iperf3") if shutil.which(name) is None]:
        print(f"## Network\n\nNot measured: {', '.join(absent)} is not installed.\n")
        return
    if not options.inside:
        # Where br_netfilter is loaded it is switched off here: a bridge is to be compared, not the rules
        # that all frames of the host's bridges have to pass by then.
        prepared = (
            "mount --make-rprivate / && mount -t tmpfs tmpfs /run && ip link set lo up && "
            "for file in /proc/sys/net/bridge/bridge-nf-call-*; do "
            'test ! -e "$file" || echo 0 > "$file"; done && exec "$@"'
        )
        command = [sys.executable, "-m", "benchmarks.network", "--inside", *sys.argv[1:]]
        subprocess.run(["unshare", "--net", "--mount", "sh", "-c", prepared, "sh", *command], check=True)
        return
    times = starts(options.rounds)
    speeds = throughput(5, options.seconds)
    print(f"## Network\n\n{measure.machine()}; {options.rounds} rounds\n")
    measure.show_times(times)
    best = {name: max(found) / 1e9 for name, found in speeds.items()}
    more = {name: 1000 * (times[name].median - times[NONE].median) for name in (HELD, PORT, FIRST)}
    measure.show_bars(
        [
            Bar("a start on a bridge, over one without a network", more[HELD], 5, unit="ms"),
            Bar("the same, with a published port", more[PORT], 5, unit="ms"),
            Bar("the same, the first that makes the bridge and its rules", more[FIRST], 5, unit="ms"),
            Bar(f"Gbit/s over a bridge ({best[BRIDGED]:.1f}), to {PLAIN} ({best[PLAIN]:.1f})",
                best[BRIDGED] / best[PLAIN], 0.9, at_least=True),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
