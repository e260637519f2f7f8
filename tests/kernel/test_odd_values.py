"""Odd values of callers: long times, long arguments, names of any bytes, files that do not keep still."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from faces import Run, run_fixture

import sandboxlib
from sandboxlib import AsyncSandbox, Limits, Mount, Sandbox
from sandboxlib.errors import KernelError, SpecError

pytestmark = [pytest.mark.userns]
__all__ = ["run_fixture"]

DAY = 86_400.0
#: Of half a pair: no name and no text of the kernel's can have it.
LONE = "a\ud800b"
#: Stands for a byte that is no UTF-8, as `os.fsdecode` has it.
BYTE = os.fsdecode(b"a\xffb")


# --- times beyond the 24.8 days that poll(2) knows ----------------------------------------------------


def test_patience_of_a_year_is_taken(run: Run) -> None:
    limits = Limits(wall_time=400 * DAY)
    done = run(["true"], timeout=365 * DAY, limits=limits, spec={"lifetime": 500 * DAY})
    assert done.returncode == 0


def test_waiting_for_a_year_ends_with_what_is_waited_for(tmp_path: Path) -> None:
    with Sandbox() as sandbox:
        with sandbox.popen(["sleep", "0.1"]) as process:
            assert process.wait(timeout=365 * DAY) == 0
        sandbox.wait_for(command=["true"], timeout=365 * DAY)
        sandbox.wait_for(path="/work", timeout=365 * DAY)
        server = "import socket, time; s = socket.create_server(('127.0.0.1', 8080)); time.sleep(60)"
        with sandbox.popen([sys.executable, "-I", "-S", "-c", server]) as process:
            sandbox.connect(8080, timeout=365 * DAY).close()
            process.kill()

    async def on_trio() -> None:
        async with AsyncSandbox() as other, await other.popen(["sleep", "0.1"]) as process:
            assert await process.wait(timeout=365 * DAY) == 0
            await other.wait_for(command=["true"], timeout=365 * DAY)

    trio.run(on_trio)


def test_a_year_on_the_command_line() -> None:
    assert on_command_line("--timeout", 365 * DAY, "--", "true") == (0, "")


def on_command_line(*arguments: object) -> tuple[int, str]:
    """The status of ``run``, and what it says to stderr."""
    line = f"import sys\nfrom sandboxlib.cli import main\nsys.exit(main({['run', *map(str, arguments)]!r}))"
    command = [sys.executable, "-c", line]
    done = subprocess.run(command, stdin=subprocess.PIPE, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_time_that_no_clock_has_is_refused(run: Run) -> None:
    for timeout in (1e300, float("inf"), float("nan"), 0, -1):
        with pytest.raises(SpecError, match="timeout"):
            run(["true"], timeout=timeout)


# --- arguments beyond what the kernel takes -----------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["x" * (128 << 10)], {}),
        (["x" * 1000] * 3000, {}),
        (["x"] * 1_000_000, {}),
        (["x" * 100_000] * 200, {}),
        ([], {f"A{i}": "x" * 100_000 for i in range(200)}),
    ],
    ids=["one too long", "too long together", "too many", "more than 16 MiB", "variables"],
)
def test_arguments_that_the_kernel_does_not_take_are_told_by_name(
    run: Run, args: list[str], env: dict[str, str]
) -> None:
    with pytest.raises(KernelError, match=r"execve\(.*E2BIG.*128 KiB each") as caught:
        run(["true", *args], env=env)
    assert caught.value.errno == 7


def test_arguments_just_below_that_are_taken(run: Run) -> None:
    assert run(["true", "x" * ((128 << 10) - 1)]).returncode == 0
    assert run(["true", *["x" * 100_000] * 20]).returncode == 0


# --- names that are no text ---------------------------------------------------------------------------


@pytest.mark.parametrize("env", [{"A": LONE}, {LONE: "a"}])
def test_half_a_character_in_a_variable_is_refused(run: Run, env: dict[str, str]) -> None:
    with pytest.raises(SpecError, match="env"):
        run(["true"], env=env)
    with pytest.raises(SpecError, match="env"):
        run(["true"], spec={"env": env})


def test_half_a_character_is_refused_wherever_text_is_given(run: Run) -> None:
    with pytest.raises(SpecError, match="args"):
        run(["true", LONE])
    with pytest.raises(SpecError, match="cwd"):
        run(["true"], cwd=f"/{LONE}")
    with pytest.raises(SpecError, match="input"):
        run(["true"], input=LONE, text=True)
    with Sandbox() as sandbox:
        with pytest.raises(SpecError, match="data"):
            sandbox.files.write("/work/x", LONE)
        with pytest.raises(SpecError, match="path"):
            sandbox.files.read(f"/work/{LONE}")
        with pytest.raises(SpecError, match="line"):
            sandbox.sh(LONE)


@pytest.mark.parametrize("options", [{"encoding": "no-such"}, {"encoding": "base64"}, {"errors": "no-such"}])
def test_an_encoding_that_there_is_not_is_refused_before_anything_runs(
    run: Run, options: dict[str, str], tmp_path: Path
) -> None:
    marked = {"mounts": [Mount.bind(tmp_path, "/made", readonly=False)]}
    with pytest.raises(SpecError, match=next(iter(options))):
        run(["touch", "/made/ran"], spec=marked, **options)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_utf_8_are_shown_and_used(run: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = tmp_path / BYTE
    folder.mkdir()
    (folder / "file").write_text("found")
    spec = {"mounts": [Mount.bind(folder, f"/data/{BYTE}")], "env": {"WHERE": BYTE}}
    assert run(["cat", f"/data/{BYTE}/file"], spec=spec).stdout == b"found"
    done = run(["sh", "-c", 'printf %s "$WHERE"; pwd'], cwd=f"/data/{BYTE}", spec=spec)
    assert done.stdout == os.fsencode(BYTE) + os.fsencode(f"/data/{BYTE}\n")


@pytest.mark.root
def test_a_mount_of_the_hosts_whose_name_is_no_text_is_in_nobodys_way() -> None:
    # In a mount namespace, for mountinfo shows names as they are.
    script = """
import os, subprocess, sys
odd = b"/mnt/sandboxlib-\\xff\\xe2\\x80\\xa8\\xc2\\xa0"
os.makedirs(odd)
subprocess.run([b"mount", b"-t", b"tmpfs", b"tmpfs", odd], check=True)
import sandboxlib
print(sandboxlib.run(["echo", "alive"]).stdout.decode(), end="")
"""
    command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /mnt; exec "$@"', "sh", sys.executable]
    done = subprocess.run([*command, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("alive\n", "")


# --- files of the host that are replaced --------------------------------------------------------------

#: In a mount namespace: nobody else sees what is done to this /etc.
_OWN_ETC = """
import os, shutil, subprocess, sys
own = "mount -t tmpfs tmpfs /mnt && cp -a /etc/. /mnt/ && mount --bind /mnt /etc"
subprocess.run(own, shell=True, check=True)
"""
_REPLACED = """
from sandboxlib import AsyncSandbox, Mount, Sandbox
import trio
replacing = subprocess.Popen([sys.executable, "-I", "-S", "-c", '''
import os, time
while True:
    with open("/etc/ld.so.cache", "rb") as file:
        data = file.read()
    with open("/etc/ld.so.cache~", "wb") as file:
        file.write(data)
    {0}
    os.rename("/etc/ld.so.cache~", "/etc/ld.so.cache")
'''])
async def on_trio():
    async with AsyncSandbox() as sandbox:
        return (await sandbox.run(["echo", "alive"])).stdout
try:
    for _ in range(10):
        with Sandbox() as sandbox:
            assert sandbox.run(["echo", "alive"]).stdout == b"alive\\n"
        assert trio.run(on_trio) == b"alive\\n"
finally:
    replacing.kill()
    replacing.wait()
print("alive")
"""


def in_an_etc_of_its_own(script: str) -> str:
    command = ["unshare", "--mount", sys.executable, "-c", _OWN_ETC + script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.root
@pytest.mark.parametrize("between", ["", 'os.unlink("/etc/ld.so.cache")'], ids=["by another", "later"])
def test_a_file_of_the_view_may_be_replaced_while_a_sandbox_starts(between: str) -> None:
    assert in_an_etc_of_its_own(_REPLACED.format(between)) == "alive\n"


@pytest.mark.root
def test_what_the_host_no_longer_has_is_not_missed() -> None:
    script = """
from sandboxlib import Sandbox
with Sandbox() as sandbox:
    before = sandbox.files.exists("/etc/services"), sandbox.files.exists("/etc/alternatives")
os.unlink("/etc/services")
shutil.rmtree("/etc/alternatives")
with Sandbox() as sandbox:
    print(before, sandbox.files.exists("/etc/services"), sandbox.files.exists("/etc/alternatives"))
"""
    assert in_an_etc_of_its_own(script) == "(True, True) False False\n"


def test_a_source_that_is_gone_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a source that exists"):
        Sandbox(mounts=[Mount.bind(tmp_path / "none", "/x")]).open()


def test_the_command_line_says_in_one_line_what_is_odd() -> None:
    for arguments, name in (
        (["--", "true", *["x" * 50] * 2000], ""),
        (["--timeout", "inf", "--", "true"], "--timeout"),
        (["--env", f"A={LONE}", "--", "true"], "env"),
    ):
        status, said = on_command_line(*arguments)
        assert (status, said.count("\n")) == ((125, 1) if name else (0, 0)), said
        assert name in said


def test_one_command_without_a_sandbox_takes_the_same() -> None:
    assert sandboxlib.run(["true"], timeout=365 * DAY).returncode == 0
    with pytest.raises(SpecError, match="env"):
        sandboxlib.run(["true"], env={"A": LONE})
