"""The pytest plugin as a project that uses it has it: each test runs a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.userns, pytest.mark.timeout(300)]


def outcome(folder: Path, source: str, *options: str, ini: str = "", before: tuple[str, ...] = ()) -> str:
    """What pytest says of a file of tests, the whole of it; the plugin is loaded by its entry point."""
    (folder / "test_it.py").write_text(source)
    (folder / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{ini}\n")
    base = f"--basetemp={folder / 'base'}"
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", base, *options]
    done = subprocess.run([*before, *command], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


CONTRACT = """
import pytest

def test_untrusted(sandbox):
    assert sandbox.run(["id", "-u"]).stdout.strip() == b"0"

@pytest.mark.sandbox(hostname="small", network="none")
def test_small(sandbox):
    assert sandbox.run(["hostname"]).stdout == b"small\\n"

def test_fresh(sandbox):
    assert not sandbox.files.exists("/work/left")
    sandbox.files.write("/work/left", b"")

def test_fresh_again(sandbox):
    assert not sandbox.files.exists("/work/left")
"""


def test_the_section_of_the_contract(tmp_path: Path) -> None:
    assert " 4 passed" in outcome(tmp_path, CONTRACT)


def test_beside_xdist(tmp_path: Path) -> None:
    assert " 4 passed" in outcome(tmp_path, CONTRACT, "-n", "2")


def test_beside_pytest_trio_and_without_it(tmp_path: Path) -> None:
    source = """
import pytest

@pytest.mark.trio
@pytest.mark.sandbox(hostname="other")
async def test_async(async_sandbox):
    assert (await async_sandbox.run(["hostname"])).stdout == b"other\\n"
"""
    assert " 1 passed" in outcome(tmp_path, source)
    assert " 4 passed" in outcome(tmp_path, CONTRACT, "-p", "no:trio")


def test_the_nearest_mark_wins_and_parameters_win_over_marks(tmp_path: Path) -> None:
    source = """
import pytest
pytestmark = pytest.mark.sandbox(hostname="module", domainname="module")

@pytest.mark.sandbox(hostname="class")
class TestIt:
    def test_class(self, sandbox):
        assert (sandbox.spec.hostname, sandbox.spec.domainname) == ("class", "module")

    @pytest.mark.sandbox(hostname="test")
    def test_test(self, sandbox):
        assert (sandbox.spec.hostname, sandbox.spec.domainname) == ("test", "module")

    @pytest.mark.parametrize("sandbox", [{"hostname": "a"}, {"hostname": "b"}], indirect=True)
    def test_parameter(self, sandbox):
        assert sandbox.spec.hostname in ("a", "b")
        assert sandbox.spec.domainname == "module"
"""
    assert " 4 passed" in outcome(tmp_path, source)


def test_arguments_that_make_no_sense_fail_the_test_and_are_named(tmp_path: Path) -> None:
    source = """
import pytest

@pytest.mark.sandbox(memory="lots")
def test_value(sandbox): raise AssertionError("ran")

@pytest.mark.sandbox(memroy="64M")
def test_name(sandbox): raise AssertionError("ran")

@pytest.mark.sandbox("64M")
def test_position(sandbox): raise AssertionError("ran")

@pytest.mark.parametrize("sandbox", ["64M"], indirect=True)
def test_parameter(sandbox): raise AssertionError("ran")
"""
    said = outcome(tmp_path, source)
    assert " 4 errors" in said
    assert "'memory' must be a size" in said
    assert "unexpected keyword argument 'memroy'" in said
    assert "takes arguments by name" in said
    assert "is a dict of arguments of Sandbox" in said
    assert "AssertionError: ran" not in said


def test_the_async_fixture_names_what_makes_no_sense(tmp_path: Path) -> None:
    source = """
import pytest

@pytest.mark.trio
@pytest.mark.sandbox(memory="lots")
async def test_value(async_sandbox): raise AssertionError("ran")

@pytest.mark.trio
@pytest.mark.sandbox("64M")
async def test_position(async_sandbox): raise AssertionError("ran")
"""
    said = outcome(tmp_path, source)
    assert " 2 failed" in said
    assert "'memory' must be a size" in said
    assert "takes arguments by name" in said
    assert "ExceptionGroup" not in said
    assert "AssertionError: ran" not in said


def test_a_failure_shows_what_the_commands_wrote(tmp_path: Path) -> None:
    source = """
import pytest

def test_failing(sandbox):
    sandbox.run(["echo", "early words"])
    sandbox.sh("echo to the end >&2; exit 3")
    with pytest.raises(Exception):
        sandbox.run(["sh", "-c", "echo before; sleep 60"], timeout=3)
    assert not "here"

def test_passing(sandbox):
    sandbox.run(["echo", "not shown"])

@pytest.mark.trio
async def test_async(async_sandbox):
    await async_sandbox.run(["echo", "async words"], check=True)
    await async_sandbox.run(["sh", "-c", "echo checked; exit 4"], check=True)
"""
    said = outcome(tmp_path, source)
    assert " 2 failed, 1 passed" in said
    assert "Commands in the sandbox" in said
    for text in (
        "$ echo early words",
        "to the end",
        "exited, status 3",
        "before",
        "timed out",
        "async words",
    ):
        assert text in said, said
    assert "exited, status 4" in said
    assert "not shown" not in said


#: A user namespace in which no other can be made, as on a host that forbids them.
FORBIDDEN = (
    "unshare",
    "--user",
    "--map-root-user",
    "sh",
    "-c",
    'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"',
    "sh",
)


@pytest.mark.root
@pytest.mark.tool("unshare")
def test_a_host_that_cannot_skips_with_the_doctors_words_unless_it_must(tmp_path: Path) -> None:
    said = outcome(tmp_path, CONTRACT, before=FORBIDDEN)
    assert " 4 skipped" in said
    assert "user.max_user_namespaces above 0" in said
    assert "sandboxlib doctor" in said
    assert " 4 errors" in outcome(tmp_path, CONTRACT, "--sandbox-required", before=FORBIDDEN)
    assert " 4 errors" in outcome(tmp_path, CONTRACT, ini="sandbox_required = true", before=FORBIDDEN)


ASYNC = """
import pytest

@pytest.mark.trio
async def test_async(async_sandbox): raise AssertionError("ran")
"""


@pytest.mark.root
@pytest.mark.tool("unshare")
def test_the_async_fixture_skips_with_the_same_words(tmp_path: Path) -> None:
    said = outcome(tmp_path, ASYNC, before=FORBIDDEN)
    assert " 1 skipped" in said
    assert "user.max_user_namespaces above 0" in said
    said = outcome(tmp_path, ASYNC, "--sandbox-required", before=FORBIDDEN)
    assert " 1 failed" in said
    assert "user.max_user_namespaces above 0" in said
    assert "ExceptionGroup" not in said


def test_the_plugin_costs_a_project_that_does_not_use_it_nothing() -> None:
    script = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport sandboxlib.pytest_plugin\n"
        "print(sorted(name for name in set(sys.modules) - before if 'sandboxlib' in name or name == 'trio'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['sandboxlib', 'sandboxlib.pytest_plugin']"
