"""
A scope of systemd's for a plain user's program that may write no group: asked for over the user bus.

A login session's group is root's, and no process gets from there into a group of the user's by his own
write, nor by CLONE_INTO_CGROUP: the kernel wants write access to the nearest group above both, which is
root's, too. Only systemd can move it; it moves this program, once, so that all that it starts is born where
it may make groups. The scope goes with the last process in it.

Kernel: cgroup-v2.rst, Delegation Containment. systemd: org.freedesktop.systemd1(5), StartTransientUnit;
systemd.scope(5).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from sandboxlib.errors import UnsupportedError
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup.probe import SCOPE_HINT, bus_address, probe
from sandboxlib.kernel.owner import PREFIX, owner_token

#: Seconds for the whole request, which takes 0.4 in the lab's User-mode Linux.
PATIENCE = 5.0

_FEATURE = "a cgroup"
_MANAGER = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager")
_MATCH = (
    f"type='signal',member='JobRemoved',sender='{_MANAGER[1]}',path='{_MANAGER[0]}',interface='{_MANAGER[2]}'"
)


class _Turn:
    """Who asks, one at a time; and what became of the last one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.failed = 0.0
        self.why: UnsupportedError | None = None


# By process: after a fork the lock may be held by a thread that is not there.
_turns: dict[int, _Turn] = {}


def acquire(check: Callable[[], None] = lambda: None) -> CGroupHost:
    """
    Where groups can be made now; where none can but systemd can be asked, ask it.

    May take `PATIENCE`. Several threads ask once, and all hear the one answer. A program that has been
    moved stays where it is, and finds its scope from then on as any delegated group.

    Args:
        check: Called every now and then; it may raise, to give up.

    Raises:
        UnsupportedError: systemd cannot be reached, refuses, or takes too long.
        SpecError: As `probe`.
    """
    came, turn = time.monotonic(), _turns.setdefault(os.getpid(), _Turn())
    while not turn.lock.acquire(timeout=0.1):
        check()
    try:
        host = probe()
        if host.offer is None:
            return host
        if turn.why is not None and came < turn.failed:
            # Asked for all that were waiting: a bus that is silent would keep each of them in its turn.
            raise UnsupportedError(turn.why.feature, turn.why.needs, turn.why.hint)
        try:
            _ask(check)
        except UnsupportedError as problem:
            turn.why, turn.failed = problem, time.monotonic()
            raise
        host = probe()
        if not host.version:
            needs = "to be moved into the scope that systemd started; it says that it did"
            raise UnsupportedError(_FEATURE, needs, host.hint)
        return host
    finally:
        turn.lock.release()


def scope_name() -> str:
    """The scope that is asked for, which no other program has."""
    return f"{PREFIX}{owner_token()}.scope"


def _ask(check: Callable[[], None]) -> None:
    # Loaded for this alone.
    from sandboxlib.kernel.bus import BUS, Bus, RefusedError

    address = bus_address()
    pid = os.getpid()
    properties: list[tuple[str, tuple[str, object]]] = [
        ("Description", ("s", f"Program {pid} and its sandboxes")),
        # Zero is who asks: in a PID namespace our own number would be another process's.
        ("PIDs", ("au", [0])),
        ("Delegate", ("b", True)),
        # Nothing of it stays to be looked at, however it ends.
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    try:
        with Bus(address, PATIENCE, check) as bus:
            bus.call(BUS, "AddMatch", "s", _MATCH)
            bus.call(_MANAGER, "Subscribe")
            call, signature = "StartTransientUnit", "ssa(sv)a(sa(sv))"
            (job,) = bus.call(_MANAGER, call, signature, scope_name(), "fail", properties, [])
            result = next(body[3] for body in bus.signals("JobRemoved") if body[1] == job)
    except TimeoutError:
        needs = f"an answer of systemd's at {address} within {PATIENCE:g} seconds"
        raise UnsupportedError(_FEATURE, needs, f"try again, or {SCOPE_HINT}") from None
    except (OSError, ValueError) as problem:
        needs = f"the user bus, and at {address!r} is none ({getattr(problem, 'strerror', '') or problem})"
        place = f"/run/user/{os.geteuid()}/bus"
        hint = f"have DBUS_SESSION_BUS_ADDRESS or XDG_RUNTIME_DIR lead to it, which is {place} as a rule"
        raise UnsupportedError(_FEATURE, needs, hint) from None
    except RefusedError as problem:
        needs = f"a scope that systemd gives at {address}, and it refuses: {problem}"
        raise UnsupportedError(_FEATURE, needs, SCOPE_HINT) from None
    if result != "done":
        needs = f"a scope that systemd starts; its job ended as {result}"
        raise UnsupportedError(_FEATURE, needs, f"see `journalctl --user -u {scope_name()}`")


__all__ = ["acquire", "scope_name"]
