"""What is inside cannot hold the start of a command, or of a sandbox, by stopping what comes in."""

from __future__ import annotations

import contextlib
import time

import pytest
from kernel.probe.outside import WHO, program

from sandboxlib.blocking import PIPE, Sandbox
from sandboxlib.namespace import Namespace

pytestmark = [pytest.mark.userns, pytest.mark.timeout(180)]

#: Stops all that it may, and goes on. It says "r" when it begins.
STOPPER = """
import os, signal
os.write(1, b"r")
while True:
    try:
        os.kill(-1, signal.SIGSTOP)
    except OSError:
        pass
"""

#: A plain user has the ceilings where no cgroup is his.
BOUND: dict[str, dict[str, int]] = {"root": {"pids": 64}, "user": {}}

BESIDE = """
import time
from sandboxlib.blocking import PIPE, Sandbox
from sandboxlib.errors import KernelError, TimeoutExpired
def python(source):
    return ["python3", "-I", "-S", "-c", source]
def hold(sandbox, source=facts["stopper"]):
    process = sandbox.popen(python(source), stdout=PIPE)
    assert process.stdout.read(1) == b"r"
    return process
def took(function, *arguments, **options):
    began = time.monotonic()
    try:
        found = function(*arguments, **options)
    except (KernelError, TimeoutExpired) as error:
        found = type(error).__name__
    return [time.monotonic() - began, str(found)]
"""


@WHO
def test_a_command_that_is_stopped_on_its_way_in_ends_with_its_timeout(who: str) -> None:
    script = (
        BESIDE
        + """
with Sandbox(**facts["bound"]) as other, Sandbox(**facts["bound"]) as sandbox:
    hold(sandbox)
    found = [took(sandbox.run, ["sleep", "60"], timeout=2) for _ in range(3)]
    beside = took(lambda: other.run(["echo", "on"], timeout=30).stdout)
    # Helpers are not in sight, so files are not held at all.
    sandbox.files.write("/work/x", "x")
    files = took(sandbox.files.read, "/work/x")
    closing = time.monotonic()
print(json.dumps([found, beside, files, time.monotonic() - closing]))
"""
    )
    found, beside, files, closing = program(who, script, stopper=STOPPER, bound=BOUND[who])
    for seconds, error in found:
        assert error == "TimeoutExpired"
        assert 2 <= seconds < 12
    assert beside[1] == "b'on\\n'"
    assert files[1] == "b'x'"
    assert files[0] < 10
    assert closing < 15


@WHO
def test_without_a_timeout_a_start_has_a_bound_of_its_own(who: str) -> None:
    script = (
        BESIDE
        + """
with Sandbox(**facts["bound"]) as sandbox:
    hold(sandbox)
    found = took(sandbox.popen, ["true"])
    tty = took(sandbox.popen, ["true"], tty=True)
    processes = [info.command for info in sandbox.processes()]
print(json.dumps([found, tty, processes]))
"""
    )
    found, tty, processes = program(who, script, stopper=STOPPER, bound=BOUND[who], patience=120)
    for seconds, error in (found, tty):
        # Either it was quicker than the one who stops, or it was stopped, and is said to have been.
        assert error == "KernelTimeoutError" or "Process" in error
        assert seconds < 25
    assert not [command for command in processes if command[0] == "sandbox"]


@WHO
def test_on_trio_the_loop_goes_on_meanwhile(who: str) -> None:
    script = (
        BESIDE
        + """
import trio
from sandboxlib import AsyncSandbox
gaps = []
async def watch():
    while True:
        began = time.monotonic()
        await trio.sleep(0.01)
        gaps.append(time.monotonic() - began)
async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async with AsyncSandbox(**facts["bound"]) as sandbox:
            process = await sandbox.popen(python(facts["stopper"]), stdout=PIPE)
            await process.stdout.receive_some()
            gaps.clear()
            began = time.monotonic()
            try:
                await sandbox.run(["sleep", "60"], timeout=2)
                expired = None
            except TimeoutExpired:
                expired = time.monotonic() - began
            with trio.move_on_after(2) as scope:
                await sandbox.run(["sleep", "60"])
            cancelled = time.monotonic() - began - 2
            process.kill()
            await process.wait()
            await process.stdout.aclose()
            process._process.release()
        nursery.cancel_scope.cancel()
    return expired, cancelled, scope.cancelled_caught, max(gaps)
print(json.dumps(trio.run(main)))
"""
    )
    expired, cancelled, caught, gap = program(who, script, stopper=STOPPER, bound=BOUND[who])
    assert 2 <= expired < 12
    assert caught
    assert 2 <= cancelled < 12
    assert gap < 2


#: Has a lease on a program that is about to be executed, and never gives it up.
LESSOR = """
import fcntl, os, signal, stat, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
with open("/bin/true", "rb") as old, open("/work/leased", "wb") as new:
    new.write(old.read())
os.chmod("/work/leased", 0o755)
fd = os.open("/work/leased", os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK if {write} else fcntl.F_RDLCK)
os.write(1, b"r")
time.sleep(1000)
"""


@WHO
def test_a_lease_on_what_is_executed_holds_no_call(who: str) -> None:
    # The default filter lets nobody have a lease.
    script = (
        BESIDE
        + """
with make("security=Security(seccomp='unconfined')") as sandbox:
    hold(sandbox, facts["lessor"])
    found = took(sandbox.run, ["/work/leased"], timeout=2)
    popen = took(sandbox.popen, ["/work/leased"])
    closing = time.monotonic()
print(json.dumps([found, popen, time.monotonic() - closing]))
"""
    )
    facts = {"stopper": STOPPER, "bound": BOUND[who], "lessor": LESSOR.format(write=True)}
    found, popen, closing = program(who, script, patience=90, **facts)
    assert found[1] == "TimeoutExpired"
    assert 2 <= found[0] < 12
    assert popen[1] == "KernelTimeoutError"
    assert popen[0] < 25
    assert closing < 15


@pytest.mark.root
@pytest.mark.cgroup("pids")
def test_a_sandbox_that_shares_anothers_pid_namespace_opens_or_says_what_holds_it() -> None:
    with Sandbox(pids=64) as one:
        assert one._engine is not None
        folder = f"/proc/{one._engine.pid}/ns"
        shared = [Namespace("user", path=f"{folder}/user"), Namespace("pid", path=f"{folder}/pid")]
        stopper = one.popen(["python3", "-I", "-S", "-c", STOPPER], stdout=PIPE)
        assert stopper.stdout.read(1) == b"r"
        for _ in range(3):
            began = time.monotonic()
            # It may be quicker than the one who stops. Then it is stopped a moment later, and closes.
            with contextlib.suppress(TimeoutError), Sandbox(namespaces=shared):
                pass
            assert time.monotonic() - began < 30
        stopper.kill()
        stopper.wait()
        stopper.stdout.close()
        stopper._process.release()
        # The first one goes on, and so does who comes after.
        assert one.run(["echo", "on"]).stdout == b"on\n"
        with Sandbox(namespaces=shared) as three:
            assert three.run(["echo", "on"]).stdout == b"on\n"
