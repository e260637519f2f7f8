"""
Sandboxes as pytest fixtures; pytest loads this module where sandboxlib is installed.

::

    def test_untrusted(sandbox):
        assert sandbox.run(["id", "-u"]).stdout.strip() == b"0"

    @pytest.mark.sandbox(memory="64M", network="none")
    def test_small(sandbox): ...

Importing it loads pytest alone: the library comes with the first fixture that is used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from sandboxlib.blocking import Sandbox
    from sandboxlib.result import Completed
    from sandboxlib.trio import AsyncSandbox

#: How many commands a failure report shows, the last ones, and how much of each output.
SHOWN = 5
TAIL = 2000

_RUNS = pytest.StashKey["list[str]"]()
_REASON = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Enter what users can set."""
    text = "fail, not skip, tests with a sandbox where this host cannot make it"
    parser.getgroup("sandboxlib").addoption("--sandbox-required", action="store_true", help=text)
    parser.addini("sandbox_required", text, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        "sandbox(**arguments): arguments of sandboxlib.Sandbox for the fixtures sandbox and async_sandbox",
    )


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """
    An open `sandboxlib.Sandbox`, a fresh one for each test.

    Its arguments come from the marks ``sandbox`` of the test, its class and its module, where the
    nearest wins, and from ``parametrize("sandbox", [{...}], indirect=True)``.
    """
    from sandboxlib.blocking import Sandbox

    class Recorded(Sandbox):
        """Keeps what its commands wrote for the report of a failure."""

        def run(self, *args: Any, **options: Any) -> Completed:
            with _recorded(request.node) as record:
                record(done := super().run(*args, **options))
            return done

    opened = _made(request, lambda: Recorded(**_arguments(request)).open())
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
async def async_sandbox(request: pytest.FixtureRequest) -> AsyncIterator[AsyncSandbox]:
    """
    An open `sandboxlib.AsyncSandbox`, a fresh one for each test; needs pytest-trio.

    Arguments as for the fixture `sandbox`.
    """
    from sandboxlib.errors import UnsupportedError
    from sandboxlib.trio import AsyncSandbox

    class Recorded(AsyncSandbox):
        """Keeps what its commands wrote for the report of a failure."""

        async def run(self, *args: Any, **options: Any) -> Completed:
            with _recorded(request.node) as record:
                record(done := await super().run(*args, **options))
            return done

    made = _made(request, lambda: Recorded(**_arguments(request)))
    try:
        await made.open()
    except UnsupportedError as error:
        _cannot(request, error)
    try:
        yield made
    finally:
        await made.close()


def _arguments(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # The farthest first: what is nearer to the test replaces it.
    for mark in reversed(list(request.node.iter_markers("sandbox"))):
        if mark.args:
            _fail(request, "the mark sandbox takes arguments by name, as Sandbox does")
        found |= mark.kwargs
    parameter = getattr(request, "param", {})
    if not isinstance(parameter, dict):
        _fail(request, f"a parameter of {request.fixturename} is a dict of arguments of Sandbox")
    return found | parameter


def _made(request: pytest.FixtureRequest, make: Any) -> Any:
    from sandboxlib.errors import SpecError, UnsupportedError

    try:
        return make()
    except (SpecError, TypeError) as error:
        _fail(request, f"the arguments of the sandbox: {error}")
    except UnsupportedError as error:
        _cannot(request, error)


def _cannot(request: pytest.FixtureRequest, error: Exception) -> NoReturn:
    """Skip the test with the words of the error, which say what this host lacks and how to get it."""
    reason = f"{error}. 'python -m sandboxlib doctor' says more"
    if request.config.getoption("--sandbox-required") or request.config.getini("sandbox_required"):
        _fail(request, reason)
    request.node.stash[_REASON] = reason
    pytest.skip(reason)


def _fail(request: pytest.FixtureRequest, reason: str) -> NoReturn:
    request.node.stash[_REASON] = reason
    pytest.fail(reason, pytrace=False)


class _recorded:  # noqa: N801 - used as a function
    """Notes a command's end, also where it is an error that has output."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def __enter__(self) -> Any:
        return self._note

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if hasattr(error, "stdout"):
            self._note(getattr(error, "completed", None) or error)

    def _note(self, ended: Any) -> None:
        runs = self._node.stash.setdefault(_RUNS, [])
        runs.append(_told(ended))
        del runs[:-SHOWN]


def _told(ended: Any) -> str:
    """What a command was and how it ended, with the ends of what it wrote."""
    command = getattr(ended, "args", None)
    if not isinstance(command, list | tuple | str):
        command = ended.cmd
    outcome = getattr(ended, "outcome", None)
    how = f"{outcome.value}, status {ended.returncode}" if outcome is not None else str(ended)
    lines = [f"$ {command if isinstance(command, str) else ' '.join(map(str, command))}", f"  ({how})"]
    for name in ("stdout", "stderr"):
        text = getattr(ended, name)
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        if text:
            lines += [f"  {name}:", text[-TAIL:].rstrip("\n")]
    return "\n".join(lines)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Show in the report of a failure what the sandbox's commands wrote, and why there was no sandbox."""
    report = yield
    if not report.passed and (reason := item.stash.get(_REASON, None)) is not None:
        # pytest-trio skips again without the words, and wraps a failure in groups of exceptions.
        path, line, _ = item.location
        report.longrepr = (path, (line or 0) + 1, f"Skipped: {reason}") if report.skipped else reason
        del item.stash[_REASON]
    if report.failed and (runs := item.stash.get(_RUNS, [])):
        report.sections.append(("Commands in the sandbox", "\n".join(runs)))
    return report
