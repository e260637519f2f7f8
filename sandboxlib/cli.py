"""
From a shell, for looking and debugging: ``python -m sandboxlib run``, ``doctor``, ``images`` and more.

The exit status of ``run`` is the command's, as a shell would tell it: 128 and the signal's
number if a signal ended it, which is 137 for whatever a limit or ``--timeout`` killed (stderr
says which); 127 or 126 if it was not found or cannot be executed; 125 if the sandbox itself
could not be made or an option makes no sense.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from sandboxlib import quantity
from sandboxlib.errors import CommandNotExecutableError, CommandNotFoundError, SandboxError, SpecError

if TYPE_CHECKING:
    from sandboxlib.blocking import Process, Sandbox
    from sandboxlib.mount import Mount
    from sandboxlib.network import Network
    from sandboxlib.rootfs import Rootfs

FAILED, NOT_EXECUTABLE, NOT_FOUND, SIGNALED = 125, 126, 127, 128
#: Passed on to the command the first time; the second time everything is killed.
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class _Parser(argparse.ArgumentParser):
    """Exits with 125 instead of 2, which may be the command's own."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(FAILED, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = _Parser(prog="python -m sandboxlib", description="Containers without a daemon.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    run = verbs.add_parser(
        "run",
        help="run a command in a sandbox",
        description="Run a command in a sandbox with all default protections.",
        epilog="Exit status: the command's; 128+N if signal N ended it; 127 not found; 126 not executable; "
        "125 if sandboxlib failed.",
    )
    run.add_argument("--memory", metavar="SIZE", help="such as 256M")
    run.add_argument("--cpus", type=float, metavar="N", help="such as 0.5")
    run.add_argument("--pids", type=int, metavar="N", help="processes and threads")
    run.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="kill everything then; the status is 137"
    )
    run.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="none|host|user|bridge[:NAME]",
        help="a loopback alone, the caller's, a helper's, or one of this host's",
    )
    run.add_argument(
        "--publish", action="append", default=[], metavar="[ADDRESS:]PORT:INSIDE[/udp]", help="a port inside"
    )
    run.add_argument("--hostname", metavar="NAME")
    run.add_argument("--user", metavar="UID[:GID]", help="numbers inside; root of the sandbox otherwise")
    run.add_argument("--cap", action="append", default=[], metavar="NAME", help="a capability to keep")
    run.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="a protection to go without"
    )
    run.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="without a value: the caller's"
    )
    run.add_argument("--cwd", metavar="PATH", help="where it begins, inside")
    run.add_argument(
        "--bind", action="append", default=[], metavar="SRC:DST[:ro]", help="a folder or file of the host"
    )
    run.add_argument(
        "--tmpfs", action="append", default=[], metavar="DST[:SIZE]", help="an empty folder in memory"
    )
    tree = run.add_mutually_exclusive_group()
    tree.add_argument("--image", metavar="NAME", help="its files and defaults; pulled if it is missing")
    tree.add_argument("--rootfs", metavar="DIR[:rw]", help="this folder as root, read-only unless :rw")
    tree.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="DIR",
        help="as root, writes kept apart; the topmost first",
    )
    run.add_argument(
        "--entrypoint", metavar="LINE", help='instead of the image\'s: words, such as "/bin/sh -c" or ""'
    )
    run.add_argument("--plan", action="store_true", help="print each step instead of taking it")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="[--] COMMAND")
    doctor = verbs.add_parser(
        "doctor",
        help="what this host supports, what is missing, and how to get it",
        description="Say what this host supports. Exit status 1: not even the default sandbox can start.",
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    from sandboxlib import cli_images

    cli_images.add(verbs)
    return top


def main(argv: Sequence[str]) -> int:
    """Carry out a command line, without the program's name; returns the exit status."""
    options = parser().parse_args(argv)
    try:
        if options.verb == "doctor":
            from sandboxlib.doctor import main as doctor

            return doctor(as_json=options.json)
        if options.verb != "run":
            carry_out: Callable[[argparse.Namespace], int] = options.carry_out
            return carry_out(options)
        return run(options)
    except CommandNotFoundError as error:
        return _complain(error, NOT_FOUND)
    except CommandNotExecutableError as error:
        return _complain(error, NOT_EXECUTABLE)
    except SandboxError as error:
        return _complain(error, FAILED)
    except BrokenPipeError:
        # Whoever read our own output has gone. Nothing more is to be said, not at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGNALED + signal.SIGPIPE


def _complain(error: object, status: int) -> int:
    sys.stderr.write(f"sandboxlib: {error}\n")
    return status


def run(options: argparse.Namespace) -> int:
    """
    Carry out ``run``.

    Raises:
        SandboxError: The sandbox cannot be made, or the command cannot be started.
    """
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    sandbox = sandbox_of(options)
    timeout = None if options.timeout is None else quantity.seconds("--timeout", options.timeout)
    if options.plan:
        sys.stdout.write(f"{sandbox.plan()}\n")
        sys.stdout.flush()
        return 0
    if not command and not options.image:
        raise SpecError("command", command, "a command and its arguments")
    if options.entrypoint is not None and not options.image:
        raise SpecError("--entrypoint", options.entrypoint, "left out without --image")
    deadline = None if timeout is None else time.monotonic() + timeout
    if os.isatty(0) and os.isatty(1):
        return _attach(sandbox, command, timeout, options.entrypoint)
    with _blocked(), sandbox:
        command = words(sandbox, command, options.entrypoint)
        # Its own descriptors, so that what it reads and writes flows while it runs.
        with sandbox.popen(command, stdin=None, stdout=None, stderr=None) as process:
            expired = wait(process, deadline)
        return _status(process, timeout if expired else None)


def words(sandbox: Sandbox, command: list[str], entrypoint: str | None) -> list[str]:
    """
    Put a command together as Docker does: the image's entry point, then what was given or its Cmd.

    Raises:
        SpecError: There is nothing to run.
    """
    image = sandbox.image
    if image is None:
        return command
    if entrypoint is None:
        first, default = image.config.get("Entrypoint") or [], image.config.get("Cmd") or []
    else:
        import shlex

        first, default = shlex.split(entrypoint), []
    found = [*first, *(command or default)]
    if not found:
        raise SpecError("command", command, "a command: the image does not say what runs")
    return found


def _status(process: Process, expired: float | None) -> int:
    """The exit status for a command that has ended; says on stderr what a status cannot."""
    from sandboxlib.result import Outcome

    if expired is not None:
        _complain(f"killed after {expired:g} seconds", 0)
    elif process.outcome not in (Outcome.EXITED, Outcome.SIGNALED, Outcome.KILLED, None):
        _complain(f"ended by {process.outcome.value.replace('_', ' ')}", 0)
    code = process.returncode
    assert code is not None
    return code if code >= 0 else SIGNALED - code


@contextmanager
def _blocked() -> Iterator[None]:
    """
    Keep signals waiting for `wait`, which takes them one by one.

    No handler, so none can run in the middle of a start or of a clean-up.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    try:
        yield
    finally:
        # What came too late must not end us before all is said and done.
        while signal.sigtimedwait({*PASSED_ON, signal.SIGCHLD}, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait(process: Process, deadline: float | None) -> bool:
    """
    Wait for a command's end, with the signals of `PASSED_ON` and SIGCHLD blocked.

    Returns:
        Whether *deadline* came first, and the command was killed for it.
    """
    seen = expired = False
    # The command is a child of ours: its end is a SIGCHLD.
    while process.poll() is None:
        number = _next_signal(deadline)
        if number is None:
            expired, deadline = True, None
            process.kill()
        elif number != signal.SIGCHLD:
            process.kill() if seen else process.send_signal(number)
            seen = True
    return expired


def _next_signal(deadline: float | None) -> int | None:
    """The next signal that was blocked, or None at the deadline."""
    awaited = {*PASSED_ON, signal.SIGCHLD}
    if deadline is None:
        return signal.sigwaitinfo(awaited).si_signo
    found = signal.sigtimedwait(awaited, max(0, deadline - time.monotonic()))
    return None if found is None else found.si_signo


class _Stopped(BaseException):
    """A signal that ends us; not an error of anybody's."""

    def __init__(self, number: int) -> None:
        self.number = number


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise _Stopped(number)


def _attach(sandbox: Sandbox, command: list[str], timeout: float | None, entrypoint: str | None) -> int:
    """Run on a terminal of the sandbox's own that this one shows; keys are the command's, Ctrl-C too."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, _stop)
    try:
        with sandbox:
            signal.setitimer(signal.ITIMER_REAL, timeout or 0)
            try:
                # There is nothing to come back to: the sandbox ends with this program.
                process = sandbox.attach(words(sandbox, command, entrypoint), detach_keys=b"")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            return _status(process, None)
    except _Stopped as stopped:
        if stopped.number == signal.SIGALRM:
            return _complain(f"killed after {timeout:g} seconds", SIGNALED + signal.SIGKILL)
        return SIGNALED + stopped.number


# ---- from options to values ---------------------------------------------------------------------------


def sandbox_of(options: argparse.Namespace) -> Sandbox:
    """
    Make the sandbox that the options of ``run`` ask for; nothing starts.

    Raises:
        SpecError: One of them makes no sense.
    """
    from sandboxlib.blocking import Sandbox

    given: dict[str, Any] = {
        name: getattr(options, name) for name in ("image", "memory", "cpus", "pids", "hostname", "cwd")
    }
    given["network"] = network_of(options.network)
    given["ports"] = dict(map(published, options.publish))
    given["rootfs"] = rootfs_of(options)
    given["mounts"] = [*map(bind, options.bind), *map(tmpfs, options.tmpfs)]
    given["env"] = dict(map(variable, options.env))
    if options.user is not None or options.cap or options.without:
        from sandboxlib.security import Security

        given["security"] = Security(user=options.user, capabilities=options.cap, without=options.without)
    return Sandbox(**{name: value for name, value in given.items() if value not in (None, [], {})})


def network_of(texts: list[str]) -> Network | None:
    """What ``--network`` asks for; several are bridges. Raises: SpecError."""
    from sandboxlib.network import Network

    found = []
    for text in texts:
        kind, colon, name = text.partition(":")
        if kind not in ("none", "host", "user", "bridge") or (colon and kind != "bridge"):
            raise SpecError("--network", text, "none, host, user, bridge or bridge:NAME")
        found.append(Network(kind, name=(name if colon else "default") if kind == "bridge" else None))
    return Network.several(found) if found else None


def published(text: str) -> tuple[str, int | str]:
    """Read ``[ADDRESS:]PORT:INSIDE[/udp]``, with ranges too. Raises: SpecError."""
    places, slash, protocol = text.partition("/")
    outside, colon, inside = places.rpartition(":")
    if not colon:
        raise SpecError("--publish", text, "PORT:INSIDE, or ADDRESS:PORT:INSIDE, also with /udp")
    return outside + slash + protocol, int(inside) if inside.isdigit() else inside


def rootfs_of(options: argparse.Namespace) -> Rootfs | None:
    """The root that ``--rootfs`` or ``--overlay`` asks for."""
    from sandboxlib.rootfs import Rootfs

    if options.overlay:
        return Rootfs.overlay(lower=[os.path.abspath(path) for path in options.overlay])
    if options.rootfs is None:
        return None
    path, writable = _ending(options.rootfs, {"rw": True, "ro": False}, default=False)
    return Rootfs.directory(os.path.abspath(path), readonly=not writable)


def _ending(text: str, endings: dict[str, bool], *, default: bool) -> tuple[str, bool]:
    head, colon, tail = text.rpartition(":")
    return (head, endings[tail]) if colon and tail in endings else (text, default)


def bind(text: str) -> Mount:
    """Read ``SRC:DST[:ro]``; a relative source is the caller's. Raises: SpecError."""
    from sandboxlib.mount import Mount

    places, readonly = _ending(text, {"ro": True, "rw": False}, default=False)
    # The last colon: a folder of the host may have one in its name sooner than one inside.
    source, colon, destination = places.rpartition(":")
    if not colon or not source:
        raise SpecError("--bind", text, "SRC:DST, or SRC:DST:ro")
    return Mount.bind(os.path.abspath(source), destination, readonly=readonly)


def tmpfs(text: str) -> Mount:
    """Read ``DST[:SIZE]``. Raises: SpecError."""
    from sandboxlib.mount import Mount

    destination, colon, size = text.partition(":")
    return Mount.tmpfs(destination, size=size if colon else None)


def variable(text: str) -> tuple[str, str]:
    """Read ``NAME=VALUE``, or ``NAME`` for the caller's own value. Raises: SpecError."""
    name, equals, value = text.partition("=")
    if not equals:
        if name not in os.environ:
            raise SpecError("--env", text, "NAME=VALUE, or the name of a variable that is set")
        value = os.environ[name]
    return name, value
