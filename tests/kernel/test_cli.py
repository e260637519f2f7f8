"""``python -m sandboxlib`` as a shell sees it: streams, signals, exit status."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxlib.doctor import DEFAULT

pytestmark = [pytest.mark.userns]

CLI = [sys.executable, "-m", "sandboxlib"]


def cli(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command line with pipes; stdin is empty if nothing is said."""
    options.setdefault("input", "")
    return subprocess.run([*CLI, *words], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    "line, status",
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + signal.SIGTERM),
        ("kill -KILL $$", 128 + signal.SIGKILL),
        ("kill -SEGV $$", 128 + signal.SIGSEGV),
    ],
)
def test_the_exit_status_is_the_commands(line: str, status: int) -> None:
    done = cli("run", "--", "sh", "-c", line)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.parametrize("command, status", [("no-such-command", 127), ("/no/such/path", 127), ("/etc", 126)])
def test_a_command_that_cannot_run_is_told_from_one_that_failed(command: str, status: int) -> None:
    done = cli("run", "--", command)
    assert done.returncode == status
    assert done.stderr.startswith(f"sandboxlib: {command}: ")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--memory", "1"], "'memory' must be"),
        (["--without", "nothing-such"], "security.without"),
        (["--bind", "/no/such/folder:/mnt"], "/no/such/folder"),
    ],
)
def test_a_sandbox_that_cannot_be_made_is_125_and_runs_nothing(words: list[str], said: str) -> None:
    done = cli("run", *words, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_streams_are_the_callers_and_flow_while_it_runs() -> None:
    with subprocess.Popen(
        [*CLI, "run", "--", "sh", "-c", "while read line; do echo got $line; echo err $line >&2; done"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for word in ("one", "two"):
            process.stdin.write(f"{word}\n")
            assert process.stdout.readline() == f"got {word}\n"
            assert process.stderr.readline() == f"err {word}\n"
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.mark.landlock(3)
def test_a_file_can_be_read_and_written_as_in_a_shell(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("b\na\n")
    with open(tmp_path / "in") as given, open(tmp_path / "out", "w") as kept:
        subprocess.run([*CLI, "run", "--", "sort"], stdin=given, stdout=kept, check=True)
    assert (tmp_path / "out").read_text() == "a\nb\n"


@pytest.mark.landlock(3)
def test_the_file_that_it_reads_cannot_be_opened_for_writing(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("mine\n")
    (tmp_path / "in").chmod(0o666)
    with open(tmp_path / "in") as given:
        line = "echo theirs > /proc/self/fd/0"
        done = subprocess.run(
            [*CLI, "run", "--", "sh", "-c", line], stdin=given, capture_output=True, check=False
        )
    assert done.returncode != 0
    assert (tmp_path / "in").read_text() == "mine\n"


def test_options_reach_the_sandbox(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("from the host")
    tmp_path.chmod(0o755)
    script = "hostname; pwd; echo $NAME; cat /mnt/data; echo; touch /mnt/x 2>&1; "
    script += "df -k /scratch | tail -1 | tr -s ' ' | cut -d' ' -f2"
    words = [
        "--hostname",
        "box",
        "--cwd",
        "/tmp",
        "--env",
        "NAME=value",
        "--bind",
        f"{tmp_path}:/mnt:ro",
        "--tmpfs",
        "/scratch:1M",
    ]
    done = cli("run", *words, "--", "sh", "-c", script)
    assert done.stdout.splitlines() == [
        "box",
        "/tmp",
        "value",
        "from the host",
        "touch: cannot touch '/mnt/x': Read-only file system",
        "1024",
    ]


@pytest.mark.cgroup("memory")
def test_what_a_limit_killed_is_137_and_says_so() -> None:
    done = cli("run", "--memory", "64M", "--", sys.executable, "-c", "bytearray(1 << 29)")
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr == "sandboxlib: ended by out of memory\n"


def test_a_timeout_kills_the_whole_tree_and_says_so() -> None:
    done = cli(
        "run", "--timeout", "0.5", "--", "sh", "-c", "sleep 60 & trap '' TERM; while :; do sleep 60; done"
    )
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr == "sandboxlib: killed after 0.5 seconds\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_is_passed_on_to_the_command(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    line = f"trap 'echo caught; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [*CLI, "run", "--", "sh", "-c", line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "caught\n"
        assert process.wait(30) == 7


def test_a_signal_that_the_command_ignores_kills_it_the_second_time() -> None:
    line = "trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [*CLI, "run", "--", "sh", "-c", line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "no\n"
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGKILL


def test_nothing_is_left_of_a_command_in_the_background() -> None:
    done = cli("run", "--", "sh", "-c", "setsid sleep 600 >/dev/null 2>&1 </dev/null & echo started")
    assert (done.returncode, done.stdout) == (0, "started\n")


def test_a_plan_is_printed_and_nothing_is_done(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done = cli("run", "--plan", "--bind", f"{tmp_path}:/mnt", "--", "touch", "/mnt/made")
    assert (done.returncode, done.stderr) == (0, "")
    assert "clone3(" in done.stdout
    assert str(tmp_path) in done.stdout
    assert list(tmp_path.iterdir()) == []


def on_a_terminal(command: list[str], keys: bytes) -> tuple[int, bytes]:
    """Run *command* on a terminal, type *keys* when it is ready; its status and what it wrote."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        timer = threading.Timer(30, process.kill)
        timer.start()
        seen = b""
        try:
            while True:
                try:
                    data = os.read(ours, 4096)
                except OSError:
                    # EIO: the last one who had the terminal open has gone.
                    break
                if not data:
                    break
                seen += data
                if keys and b"ready" in seen:
                    os.write(ours, keys)
                    keys = b""
            return process.wait(), seen
        finally:
            timer.cancel()
            timer.join()
            os.close(ours)


def test_on_a_terminal_the_command_has_one_of_its_own() -> None:
    line = 'test -t 0 && test -t 1 && echo ready; read word; echo "<$word>"; exit 5'
    status, seen = on_a_terminal([*CLI, "run", "--", "sh", "-c", line], b"typed\r")
    assert status == 5
    assert b"<typed>" in seen


def test_on_a_terminal_ctrl_c_is_the_commands() -> None:
    line = "trap 'echo caught; exit 6' INT; echo ready; while :; do sleep 0.05; done"
    status, seen = on_a_terminal([*CLI, "run", "--", "sh", "-c", line], b"\x03")
    assert status == 6
    assert b"caught" in seen


def test_on_a_terminal_a_timeout_holds_too() -> None:
    status, seen = on_a_terminal([*CLI, "run", "--timeout", "0.5", "--", "sleep", "60"], b"")
    assert status == 128 + signal.SIGKILL
    assert b"killed after 0.5 seconds" in seen


def test_doctor_starts_a_sandbox_and_says_so() -> None:
    done = cli("doctor")
    assert done.returncode == 0, done.stdout
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert lines[0] == ["ok", lines[0][1]]
    assert any(state == "ok" and text.startswith(DEFAULT) for state, text in lines)


def test_doctor_speaks_to_programs() -> None:
    done = cli("doctor", "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert {"name": "kernel", "state": "ok"}.items() <= document["findings"][0].items()
    assert all(set(finding) == {"name", "state", "text", "remedy"} for finding in document["findings"])


@pytest.mark.root
@pytest.mark.tool("unshare")
def test_doctor_ends_with_1_where_no_sandbox_can_start() -> None:
    # In this user namespace no other may be made.
    line = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", line, "sh", *CLI, "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "max_user_namespaces" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.unprivileged
def test_a_plain_user_can_run_and_ask_the_doctor(
    as_user: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script = "import sys; from sandboxlib.cli import main; sys.exit(main({}))"
    done = as_user(script.format(["run", "--", "sh", "-c", "id -u; exit 4"]), check=False)
    assert (done.returncode, done.stdout) == (4, "0\n"), done.stderr
    done = as_user(script.format(["doctor"]), check=False)
    assert done.returncode == 0, done.stdout
