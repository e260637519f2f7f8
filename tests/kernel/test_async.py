"""The trio face: streams, timeouts, cancellation, many at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

import sandboxlib
import sandboxlib.trio
from sandboxlib import (
    DEVNULL,
    PIPE,
    AsyncProcess,
    AsyncSandbox,
    CommandNotFoundError,
    Limits,
    Mount,
    Namespace,
    Network,
    Outcome,
    SpecError,
    StateError,
    TimeoutExpired,
)
from sandboxlib.engine.sandbox import Engine

pytestmark = [pytest.mark.userns]

#: Says what it reads, in upper case, line by line.
SHOUT = "import sys\nfor line in sys.stdin:\n print(line.strip().upper(), flush=True)"


def python(source: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", source, *arguments]


@pytest.fixture
async def sb() -> AsyncIterator[AsyncSandbox]:
    async with AsyncSandbox() as sandbox:
        yield sandbox


async def empty(sandbox: AsyncSandbox) -> bool:
    """Does the sandbox become empty soon?"""
    with trio.move_on_after(10):
        while await sandbox.processes():
            await trio.sleep(0.01)
        return True
    return False


# --- the contract -----------------------------------------------------------------------------------


@pytest.mark.cgroup("memory")
@pytest.mark.root
async def test_the_async_section_of_the_contract() -> None:
    async with AsyncSandbox(memory="256M") as sb:
        done = await sb.run(["sort"], input=b"b\na\n")
        assert done.stdout == b"a\nb\n"
        async with await sb.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(b"x")
            chunk = await process.stdout.receive_some()
            await process.stdin.aclose()
            await process.wait()
        assert chunk == b"x"
        with trio.move_on_after(1):
            await sb.run(["sleep", "60"])
        assert await sb.processes() == []


async def test_a_run_says_what_the_blocking_one_says(sb: AsyncSandbox) -> None:
    with sandboxlib.Sandbox() as other:
        for command in (["echo", "a"], ["sh", "-c", "echo b >&2; exit 3"], ["sh", "-c", "kill -TERM $$"]):
            mine, theirs = await sb.run(command), other.run(command)
            assert (mine.returncode, mine.stdout, mine.stderr, mine.outcome) == (
                theirs.returncode,
                theirs.stdout,
                theirs.stderr,
                theirs.outcome,
            )


async def test_every_verb_is_a_checkpoint(sb: AsyncSandbox) -> None:
    async def verbs() -> AsyncIterator[Callable[[], Awaitable[object]]]:
        yield lambda: sb.run(["true"])
        yield lambda: sb.sh("true")
        yield sb.processes
        yield sb.stats
        yield lambda: sb.files.write("/work/x", b"")
        yield lambda: sb.files.read("/work/x")
        yield lambda: sb.files.exists("/work/y")
        yield sb.changes
        yield lambda: sb.wait_for(path="/work/x")

    async for verb in verbs():
        with trio.testing.assert_checkpoints():
            await verb()
        with trio.CancelScope() as scope:
            scope.cancel()
            await verb()
        assert scope.cancelled_caught
    assert await empty(sb)


async def test_one_command_in_a_sandbox_of_its_own() -> None:
    done = await sandboxlib.trio.run(["echo", "hello"], text=True, timeout=20)
    assert done.stdout == "hello\n"


# --- errors -----------------------------------------------------------------------------------------


async def test_errors_are_those_of_the_blocking_face(sb: AsyncSandbox) -> None:
    with pytest.raises(CommandNotFoundError):
        await sb.run(["no-such-command"])
    with pytest.raises(SpecError, match="overflow"):
        await sb.run(["true"], overflow="drop")
    with pytest.raises(SpecError, match="on_line"):
        await sb.run(["true"], on_line="print")  # type: ignore[arg-type]
    with pytest.raises(StateError, match="open already"):
        await sb.open()
    with pytest.raises(FileNotFoundError):
        await sb.files.read("/work/nothing")


async def test_it_cannot_be_used_unless_it_is_open() -> None:
    sandbox = AsyncSandbox()
    with pytest.raises(StateError):
        await sandbox.run(["true"])
    async with sandbox:
        assert (await sandbox.run(["true"])).returncode == 0
    with pytest.raises(StateError):
        await sandbox.run(["true"])
    async with sandbox:
        assert (await sandbox.run(["true"])).returncode == 0


# --- time and cancellation --------------------------------------------------------------------------


async def test_a_timeout_kills_the_whole_tree_and_keeps_the_output(sb: AsyncSandbox) -> None:
    with pytest.raises(TimeoutExpired) as caught:
        await sb.run(["sh", "-c", "trap '' TERM; echo so far; sleep 1000 & sleep 1000"], timeout=2)
    assert caught.value.stdout == b"so far\n"
    assert await empty(sb)


def children() -> list[str]:
    """The state of each child of this program."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [Path(f"/proc/{pid}/stat").read_text() for pid in pids]


async def test_a_cancelled_run_has_killed_its_tree_before_the_scope_is_left(sb: AsyncSandbox) -> None:
    with trio.move_on_after(0.5) as scope:
        await sb.run(["sh", "-c", "trap '' TERM INT; setsid sleep 1000 & sleep 1000"])
    assert scope.cancelled_caught
    # Killed and reaped by then; a child of its own is the kernel's to reap.
    assert not children()[1:]
    assert await empty(sb)


async def test_a_cancelled_wait_leaves_the_command_and_a_cancelled_block_does_not(sb: AsyncSandbox) -> None:
    async with await sb.popen(["sleep", "1000"]) as process:
        with trio.move_on_after(0.1):
            await process.wait()
        assert process.poll() is None
        with pytest.raises(TimeoutExpired):
            await process.wait(timeout=0.05)
        with trio.move_on_after(10):
            process.terminate()
            assert await process.wait() == -signal.SIGTERM
    with trio.CancelScope() as scope:
        async with await sb.popen(["sleep", "1000"]) as process:
            scope.deadline = trio.current_time() + 0.1
            await process.wait()
    assert scope.cancelled_caught
    assert process.outcome is Outcome.KILLED


async def test_an_error_in_the_block_kills_the_command(sb: AsyncSandbox) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await sb.popen(["sleep", "1000"]) as process:
            raise ZeroDivisionError
    assert process.returncode == -signal.SIGKILL


class _Stop(trio.abc.Instrument):
    """Cancels a scope when the loop comes to its *number*-th step of the task that is looked at."""

    def __init__(self, scope: trio.CancelScope, number: int, task: trio.lowlevel.Task) -> None:
        self.scope, self.left, self.task = scope, number, task

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def _steps(job: Callable[[], Awaitable[object]]) -> int:
    """Cancel *job* at each step that it takes, one by one, until it comes through; how many there were."""
    for number in range(1, 400):
        with trio.CancelScope() as scope:
            stop = _Stop(scope, number, trio.lowlevel.current_task())
            trio.lowlevel.add_instrument(stop)
            try:
                await job()
            finally:
                trio.lowlevel.remove_instrument(stop)
        if stop.left > 0:
            return number
    raise AssertionError("it never comes to an end")


async def test_cancelled_at_every_step_of_start_run_and_close_nothing_is_left() -> None:
    async def job() -> None:
        async with AsyncSandbox() as sandbox:
            await sandbox.run(["sh", "-c", "sleep 0.02; cat"], input=b"x" * 200_000)
            async with await sandbox.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
                assert process.stdin is not None
                await process.stdin.send_all(b"x")
                await process.stdin.aclose()
            await sandbox.files.write("/work/x", "x")

    # That nothing is left the fixture sees, which looks at all that sandboxes make.
    assert await _steps(job) > 10
    assert not children()


async def test_a_start_that_is_cancelled_before_it_begins_makes_nothing() -> None:
    sandbox = AsyncSandbox()
    with trio.CancelScope() as scope:
        scope.cancel()
        await sandbox.open()
    assert scope.cancelled_caught
    assert sandbox._engine is None


@pytest.mark.parametrize("verb", ["run", "sh", "popen", "write", "mkdir", "copy_in", "copy_out", "export"])
async def test_in_a_scope_that_is_cancelled_already_nothing_is_done(verb: str, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o777)
    async with AsyncSandbox(mounts=[Mount.bind(str(tmp_path / "mine"), "/mine")]) as sandbox:
        target = str(tmp_path / "mine/done")
        verbs: dict[str, Callable[[], Awaitable[object]]] = {
            "run": lambda: sandbox.run(["mkdir", "/mine/done"]),
            "sh": lambda: sandbox.sh("echo >/mine/done"),
            "popen": lambda: sandbox.popen(["mkdir", "/mine/done"]),
            "write": lambda: sandbox.files.write("/mine/done", "x"),
            "mkdir": lambda: sandbox.files.mkdir("/mine/done"),
            "copy_in": lambda: sandbox.files.copy_in(tmp_path / "given", "/mine/done"),
            "copy_out": lambda: sandbox.files.copy_out("/etc/hostname", target),
            "export": lambda: sandbox.export(target),
        }
        for _ in range(20):
            with trio.CancelScope() as scope:
                scope.cancel()
                await verbs[verb]()
            assert scope.cancelled_caught
            assert not os.path.lexists(target)
        assert await sandbox.processes() == []
        # It does what it does where nobody cancels it.
        await verbs[verb]()
        assert await appears(target)


async def appears(path: str) -> bool:
    with trio.move_on_after(10):
        while not os.path.lexists(path):
            await trio.sleep(0.01)
    return os.path.lexists(path)


class _Rounds(trio.abc.Instrument):
    """How far a count goes between two rounds of the loop, at most."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count, self.last, self.most = count, count(), 0

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's signature
        now = self._count()
        self.most, self.last = max(self.most, now - self.last), now


async def _cancelled(
    number: int, counts: Callable[[Engine], bool], enough: int
) -> tuple[list[Engine], int, int]:
    """
    Begin to open *number* sandboxes, and cancel them all when *enough* of them count.

    Returns:
        Those that began to be made; how many of them began, and how many groups were removed, in one round
        of the loop at most.
    """
    sandboxes = [AsyncSandbox() for _ in range(number)]

    def begun() -> list[Engine]:
        return [sandbox._engine for sandbox in sandboxes if sandbox._engine is not None]

    def removed() -> int:
        # What it knows of its folders: to look for them would take longer than a round.
        return sum(getattr(engine.group, "folders", None) == {} for engine in begun() if engine.closed)

    async def one(sandbox: AsyncSandbox) -> None:
        async with sandbox:
            await trio.sleep_forever()

    rounds = _Rounds(lambda: len(begun())), _Rounds(removed)
    for instrument in rounds:
        trio.lowlevel.add_instrument(instrument)
    async with trio.open_nursery() as nursery:
        for sandbox in sandboxes:
            nursery.start_soon(one, sandbox)
        while sum(map(counts, begun())) < enough:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    for instrument in rounds:
        trio.lowlevel.remove_instrument(instrument)
    return begun(), rounds[0].most, rounds[1].most


async def test_of_a_thousand_starts_that_are_cancelled_the_loop_goes_on_in_between() -> None:
    made, begun, _ = await _cancelled(1000, lambda engine: not engine.closed, 100)
    assert begun <= 16
    # Those that were in the queue have made nothing.
    assert len(made) < 150
    assert all(engine.finished for engine in made)


@pytest.mark.cgroup
async def test_of_many_sandboxes_that_end_at_once_the_loop_goes_on_in_between() -> None:
    made, begun, removed = await _cancelled(100, lambda engine: engine.pid > 0, 100)
    assert len(made) == 100
    assert begun <= 16
    assert removed <= 16
    assert all(engine.finished for engine in made)


async def test_close_is_complete_also_when_it_is_cancelled() -> None:
    sandbox = AsyncSandbox()
    await sandbox.open()
    engine = sandbox._engine
    assert engine is not None
    process = await sandbox.popen(["sleep", "1000"])
    with trio.CancelScope() as scope:
        scope.cancel()
        await sandbox.close()
    assert scope.cancelled_caught
    assert engine.closed
    assert not Path(f"/proc/{engine.pid}").exists()
    assert process.returncode == -signal.SIGKILL
    process._process.release()


async def test_who_waits_for_a_command_hears_its_end_also_when_another_task_was_first(
    sb: AsyncSandbox,
) -> None:
    process = await sb.popen(["sleep", "1000"])
    found: list[int] = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            found.append(await process.wait())

        async def ended() -> None:
            # As close() waits for the commands that other tasks run.
            found.append(await process._process.ended())

        nursery.start_soon(wait)
        nursery.start_soon(ended)
        await trio.testing.wait_all_tasks_blocked(0.01)
        # In one step of the loop, as a task does that happens to be told first: see it end, let go of it.
        process.kill()
        while process.poll() is None:
            time.sleep(0.001)  # noqa: ASYNC251 - the loop must not come between
        process._process.release()
        nursery.cancel_scope.deadline = trio.current_time() + 10
    assert found == [-signal.SIGKILL] * 2


async def test_a_sandbox_is_closed_while_another_task_runs_a_command() -> None:
    for _ in range(5):
        sb = await AsyncSandbox().open()
        found: list[int] = []
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:

                async def run(sb: AsyncSandbox = sb, found: list[int] = found) -> None:
                    found.append((await sb.run(["sleep", "1000"])).returncode)

                nursery.start_soon(run)
                await trio.testing.wait_all_tasks_blocked(0.01)
                await sb.close()
        assert found == [-signal.SIGKILL]


async def test_who_closes_while_another_task_closes_waits_for_the_end() -> None:
    sb = await AsyncSandbox().open()
    process = await sb.popen(["sleep", "1000"])
    assert sb._engine is not None
    pid = sb._engine.pid
    found: list[bool] = []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def close() -> None:
                await sb.close()
                found.append(Path(f"/proc/{pid}").exists())

            for _ in range(3):
                nursery.start_soon(close)
    assert found == [False] * 3
    process._process.release()


# --- streams ----------------------------------------------------------------------------------------


async def _relay(process: AsyncProcess, rounds: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    for number in range(rounds):
        await process.stdin.send_all(b"line %d\n" % number)
        answer = b""
        while not answer.endswith(b"\n"):
            answer += await process.stdout.receive_some()
        assert answer == b"LINE %d\n" % number


async def test_hundreds_of_round_trips_lose_nothing(sb: AsyncSandbox) -> None:
    async with await sb.popen(python(SHOUT), stdin=PIPE, stdout=PIPE) as process:
        await _relay(process, 300)


#: A real one: it says what it is told to say, and its prompts elsewhere.
REPL = [sys.executable, "-I", "-S", "-u", "-i", "-q"]


async def test_a_repl_keeps_its_state_from_line_to_line(sb: AsyncSandbox) -> None:
    async with await sb.popen(REPL, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        await process.stdin.send_all(b"total = 0\n")
        lines = process.lines()
        for number in range(1, 101):
            await process.stdin.send_all(b"total += %d; print(total)\n" % number)
            assert await anext(lines) == b"%d\n" % (number * (number + 1) // 2)
        await process.stdin.send_all(b"1 / 0\nprint('alive')\nraise SystemExit(3)\n")
        assert await anext(lines) == b"alive\n"
        assert await process.wait() == 3


def test_a_repl_is_spoken_to_by_the_blocking_face_too() -> None:
    with sandboxlib.Sandbox() as sandbox, sandbox.popen(REPL, stdin=PIPE, stdout=PIPE) as process:
        for number in range(100):
            process.stdin.write(b"print(%d * 2)\n" % number)
            process.stdin.flush()
            assert process.stdout.readline() == b"%d\n" % (number * 2)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_round_trips_with_a_repl_lose_nothing(sb: AsyncSandbox) -> None:
    async with await sb.popen(REPL, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        lines = process.lines()
        for number in range(10_000):
            await process.stdin.send_all(b"print(%d * 2)\n" % number)
            assert await anext(lines) == b"%d\n" % (number * 2)
        await process.stdin.aclose()
        assert await process.wait() == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_round_trips_with_a_repl_lose_nothing_on_the_blocking_face() -> None:
    with sandboxlib.Sandbox() as sandbox, sandbox.popen(REPL, stdin=PIPE, stdout=PIPE) as process:
        for number in range(10_000):
            process.stdin.write(b"print(%d * 2)\n" % number)
            process.stdin.flush()
            assert process.stdout.readline() == b"%d\n" % (number * 2)


async def test_much_goes_through_both_ways_at_once(sb: AsyncSandbox) -> None:
    data = os.urandom(1 << 20) * 4
    async with await sb.popen(["cat"], stdin=PIPE, stdout=PIPE) as process, trio.open_nursery() as nursery:

        async def feed() -> None:
            assert process.stdin is not None
            async with process.stdin:
                await process.stdin.send_all(data)

        nursery.start_soon(feed)
        assert process.stdout is not None
        assert b"".join([chunk async for chunk in process.stdout]) == data


async def test_a_slow_reader_holds_the_command_back(sb: AsyncSandbox) -> None:
    source = (
        "import os\nn = 0\nwhile True:\n n += os.write(1, b'x' * 4096)\n print(n, file=open('/work/n', 'w'))"
    )
    async with await sb.popen(python(source), stdout=PIPE) as process:
        await sb.wait_for(path="/work/n", timeout=50)
        await trio.sleep(0.5)
        written = int((await sb.files.read("/work/n")) or b"0")
        # A pipe's worth, and not a byte that nobody has asked for.
        assert written <= 1 << 16
        assert process.stdout is not None
        for _ in range(64):
            assert await process.stdout.receive_some(1000)
        process.kill()


async def test_lines_come_as_they_are_written_and_whole(sb: AsyncSandbox) -> None:
    source = (
        "import os, time\ndata = 'žluť\\nkůň\\nkonec'.encode()\n"
        "for n in range(len(data)): os.write(1, data[n:n+1]); time.sleep(0.002)"
    )
    async with await sb.popen(python(source), stdout=PIPE) as process:
        found = [line async for line in process.lines(encoding="utf-8")]
    assert found == ["žluť\n", "kůň\n", "konec"]
    async with await sb.popen(["printf", "a\\nb\\n"], stdout=PIPE) as process:
        assert [line async for line in process.lines()] == [b"a\n", b"b\n"]
        with pytest.raises(SpecError, match="stream"):
            process.lines("stdin")


async def test_a_closed_stream_says_so_and_wakes_who_waits(sb: AsyncSandbox) -> None:
    async with await sb.popen(["sleep", "1000"], stdout=PIPE) as process:
        output = process.stdout
        assert output is not None
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await output.receive_some()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
            with pytest.raises(trio.BusyResourceError):
                await output.receive_some()
            await output.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await output.receive_some()
        process.kill()


async def test_a_command_that_does_not_read_breaks_the_stream(sb: AsyncSandbox) -> None:
    async with await sb.popen(["true"], stdin=PIPE, stdout=DEVNULL) as process:
        assert process.stdin is not None
        await process.wait()
        with pytest.raises(trio.BrokenResourceError):
            await process.stdin.send_all(b"x" * (1 << 20))


async def test_a_terminal_is_spoken_to_and_hung_up(sb: AsyncSandbox) -> None:
    async with await sb.popen(["sh"], tty=True) as shell:
        assert shell.tty is not None
        shell.resize(rows=40, columns=120)
        await shell.tty.send_all(b"stty size; exit\n")
        seen = b""
        while data := await shell.tty.receive_some():
            seen += data
        assert b"40 120\r\n" in seen
        assert await shell.wait() == 0
    async with await sb.popen(["cat"], tty=True) as process:
        await process.tty.aclose()  # type: ignore[union-attr]
        assert await process.wait() == -signal.SIGHUP


async def test_several_tasks_may_wait_for_one_command_and_use_one_sandbox(sb: AsyncSandbox) -> None:
    process = await sb.popen(["sleep", "0.2"])
    found: list[object] = []

    async def wait() -> None:
        found.append(await process.wait())

    async def work(number: int) -> None:
        found.append((await sb.run(["echo", str(number)])).stdout)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(wait)
            nursery.start_soon(work, number)
    assert sorted(map(str, found)) == sorted([*["0"] * 5, *(str(b"%d\n" % n) for n in range(5))])
    process._process.release()


# --- the other verbs --------------------------------------------------------------------------------


async def test_waiting_connecting_and_sharing(sb: AsyncSandbox) -> None:
    serve = (
        "import socket\ns = socket.create_server(('127.0.0.1', 8080))\n"
        "c, _ = s.accept()\nc.sendall(c.recv(9)[::-1])"
    )
    async with await sb.popen(python(serve)) as process:
        await sb.wait_for(port=8080, timeout=20)
        stream = await sb.connect(8080, timeout=10)
        assert isinstance(stream, trio.SocketStream)
        async with stream:
            await stream.send_all(b"abc")
            assert await stream.receive_some() == b"cba"
        await process.wait()
    async with await sb.popen(["sh", "-c", "echo starting; echo ready; sleep 1000"], stdout=PIPE) as process:
        await sb.wait_for(output=(process, "ready"), timeout=20)
        # What was looked at is still to be received.
        assert process.stdout is not None
        assert await process.stdout.receive_some() == b"starting\nready\n"
        with pytest.raises(TimeoutExpired):
            await sb.wait_for(path="/work/never", timeout=0.1)
        process.kill()
    async with AsyncSandbox(network=Network.of(sb)) as other:
        assert Namespace.of(other, "network") == Namespace.of(sb, "network")


async def test_files_go_in_and_out(sb: AsyncSandbox, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("a")
    await sb.files.copy_in(tmp_path / "in", "/work/in")
    assert await sb.files.list("/work/in") == ["a"]
    await sb.files.mkdir("/work/made/deep", parents=True)
    await sb.files.rename("/work/in/a", "/work/made/b")
    assert (await sb.files.stat("/work/made/b")).st_size == 1
    await sb.files.copy_out("/work/made", tmp_path / "out")
    assert (tmp_path / "out" / "b").read_text() == "a"
    await sb.files.remove("/work/made", recursive=True)
    assert not await sb.files.exists("/work/made")
    assert await sb.files.read_text("/etc/hostname") == "sandbox\n"
    await sb.run(["ln", "-s", "/etc/passwd", "/work/link"])
    assert b"root" in await sb.files.read("/work/link")
    assert b"/root:/bin/sh" in await sb.files.read("/work/link")


@pytest.mark.root
@pytest.mark.cgroup("memory", "pids")
async def test_limits_pausing_and_updating() -> None:
    async with AsyncSandbox(memory="64M") as sandbox:
        await sandbox.update(memory="128M")
        assert (await sandbox.stats()).memory.max == 128 << 20  # type: ignore[union-attr]
        done = await sandbox.run(python("b = bytearray(1 << 30)"), limits=Limits(memory="16M"))
        assert done.outcome is Outcome.OUT_OF_MEMORY
        assert (await sandbox.run(["sleep", "60"], limits=Limits(wall_time=0.1))).outcome is Outcome.WALL_TIME
        async with await sandbox.popen(["sleep", "2"]) as process:
            await sandbox.pause()
            with pytest.raises(TimeoutExpired):
                await process.wait(timeout=2.5)
            await sandbox.resume()
            assert await process.wait(timeout=30) == 0
        await sandbox.kill()
        with pytest.raises(StateError):
            await sandbox.run(["true"])


async def test_the_lifetime_ends_what_runs() -> None:
    async with AsyncSandbox(lifetime=1) as sandbox:
        done = await sandbox.run(["sleep", "1000"])
        assert (done.outcome, done.returncode) == (Outcome.LIFETIME, -9)


async def test_a_mount_that_does_not_exist_is_refused_before_anything_is_made() -> None:
    with pytest.raises(SpecError, match="/no/such"):
        async with AsyncSandbox(mounts=[Mount.bind("/no/such", "/mnt")]):
            raise AssertionError


# --- many -------------------------------------------------------------------------------------------


async def _at_once(number: int) -> list[float]:
    """Open so many at once, run a command in each, close them; the times that starts took."""
    times: list[float] = []
    begin = trio.Event()
    limit = trio.CapacityLimiter(8)

    async def one() -> None:
        async with limit:
            started = time.monotonic()
            sandbox = AsyncSandbox()
            await sandbox.open()
            times.append(time.monotonic() - started)
        async with sandbox_closed(sandbox):
            if len(times) == number:
                begin.set()
            await begin.wait()
            async with limit:
                assert (await sandbox.run(["echo", "x"])).stdout == b"x\n"

    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(one)
    return times


class sandbox_closed:  # noqa: N801 - used as a function
    """Closes an open sandbox at the end of a block."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._sandbox = sandbox

    async def __aenter__(self) -> AsyncSandbox:
        return self._sandbox

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            await self._sandbox.close()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_dozens_at_once_from_one_program() -> None:
    await _at_once(24)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.rlimit("nofile=4096")
async def test_five_hundred_at_once_cost_no_memory_that_stays() -> None:
    await _at_once(500)
    before = _resident()
    await _at_once(500)
    assert _resident() - before < 4 << 20
