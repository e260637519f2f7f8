"""Every example runs as it stands, says what it promises, and is short."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.userns]

EXAMPLES = Path(__file__).parents[2] / "examples"
#: What each has to say, in this order.
SAID = {
    "main_job.py": [
        "python said 42",
        "the pipeline counted ['2', 'pear', '1', 'apple']",
        "OUT_OF_MEMORY",
        "nothing is left",
    ],
    "judge.py": [
        "right: AC, ",
        "lazy: WA on case 2",
        "slow: TLE on case 1",
        "greedy: MLE on case 1",
        "broken: RE on case 1",
        "misspelt: CE",
    ],
    "interpreter.py": [
        "[1] 5\n",
        "[2] 30\n",
        "[3] ended after 5 seconds",
        "[4] FileNotFoundError",
        "[5] 16 bytes are still there",
        "files: /work/squares",
    ],
    "pool.py": ["12 jobs done by 3 workers"],
    "talk.py": ["stressed -> desserts", "drawer -> reward", "ended by signal 15"],
    "plan.py": ["steps; what pid 1", "close_range(", "exit_group()"],
}
_LIMITS = [pytest.mark.cgroup("memory", "pids")]
#: These need limits, or another user inside.
NEEDS = {
    "main_job.py": _LIMITS,
    "judge.py": _LIMITS,
    "interpreter.py": _LIMITS,
    "pool.py": _LIMITS,
    "plan.py": [pytest.mark.subids],
}
#: These are run in a way of their own, below or in test_network_bridge.py.
OTHERS = {"test_plugins.py", "shell.py", "services.py"}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == SAID.keys() | OTHERS


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=NEEDS.get(name, [])) for name in SAID],
)
def test_an_example_runs_as_it_stands(name: str) -> None:
    path = EXAMPLES / name
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    at = 0
    for text in SAID[name]:
        assert text in done.stdout[at:], done.stdout
        at = done.stdout.index(text, at) + len(text)


@pytest.mark.cgroup("memory")
@pytest.mark.timeout(600)
def test_the_suite_of_plugins_passes_as_it_stands(tmp_path: Path) -> None:
    path = EXAMPLES / "test_plugins.py"
    options = ["-p", "no:cacheprovider", f"--rootdir={tmp_path}", f"--basetemp={tmp_path / 'base'}"]
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, *options, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert " 5 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.tool("tmux")
@pytest.mark.timeout(300)
def test_the_shell_is_left_and_come_back_to_in_a_real_terminal(tmp_path: Path) -> None:
    tmux = ["tmux", "-S", str(tmp_path / "tmux"), "-f", os.devnull]

    def screen(text: str) -> None:
        """Look until the screen shows *text*."""
        deadline = time.monotonic() + 60
        while text not in (shown := subprocess.check_output([*tmux, "capture-pane", "-p", "-J"], text=True)):
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)

    def type_(*keys: str) -> None:
        subprocess.run([*tmux, "send-keys", *keys], check=True)

    # The pane stays for a look after its program has ended.
    command = f"{sys.executable} {EXAMPLES / 'shell.py'}; echo over; exec sleep 100"
    subprocess.run([*tmux, "new-session", "-d", "-x", "120", "-y", "40", command], check=True)
    try:
        screen("# ")
        type_("n=41; hostname", "Enter")
        screen("inside\n")
        type_("C-p", "C-q")
        screen("detached; 1 processes go on inside")
        type_("Enter")
        type_("echo $((n + 1))", "Enter")
        screen("42\n")
        type_("exit 7", "Enter")
        screen("the shell has ended with status 7")
        screen("over")
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
