"""A test suite for plug-ins that nobody has looked at: each test runs one in a sandbox of its own."""

import sys
from collections.abc import Callable

import pytest

from sandboxlib import Completed, Outcome, Sandbox

Call = Callable[[str, str], Completed]

PLUGINS = {
    "polite": "def transform(text): return text.upper()",
    "nosy": "def transform(text): return open('/etc/shadow').read()",
    "chatty": "import socket\ndef transform(text): socket.create_connection(('192.0.2.1', 80), 1)",
    "messy": "def transform(text): open('/usr/lib/left', 'w'); return text",
}
DRIVER = "import plugin, sys; print(plugin.transform(sys.stdin.read()))"


@pytest.fixture
def call(sandbox: Sandbox) -> Call:
    """Calls a plug-in with a text, inside."""

    def function(name: str, text: str) -> Completed:
        sandbox.files.write("/work/plugin.py", PLUGINS[name])
        return sandbox.run([sys.executable, "-c", DRIVER], input=text, text=True, timeout=60)

    return function


def test_a_polite_one_does_its_work(call: Call) -> None:
    assert call("polite", "hello").stdout == "HELLO\n"


@pytest.mark.parametrize(
    ("name", "error"), [("nosy", "FileNotFoundError"), ("chatty", "unreachable"), ("messy", "Read-only")]
)
def test_the_others_reach_nothing(call: Call, name: str, error: str) -> None:
    done = call(name, "hello")
    assert done.returncode == 1
    assert error in done.stderr


@pytest.mark.sandbox(memory="32M")
def test_a_greedy_one_is_told_from_a_broken_one(sandbox: Sandbox) -> None:
    done = sandbox.run([sys.executable, "-I", "-S", "-c", "bytearray(1 << 30)"])
    assert done.outcome is Outcome.OUT_OF_MEMORY
