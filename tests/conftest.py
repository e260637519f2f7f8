"""
What all tests share: needs, namespaces, the check for leaks, a plain user.

A test says by marks what it needs (needs.py); an unmet need skips it with the
reason, or fails it when it is mandatory. Tests in tests/kernel, and others marked
``leaks``, must leave the machine and this process as they found them (leaks.py).
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import leaks
import namespaces
import needs
import users

pytest_plugins = ["pytester"]

KERNEL_TESTS = Path(__file__).parent / "kernel"
MUST_RUN = os.environ.get("SANDBOXLIB_MUST_RUN", "")
PHASES = pytest.StashKey[dict[str, pytest.TestReport]]()
PASSED = pytest.StashKey[set[str]]()
FAILED = pytest.StashKey[set[str]]()
ELSEWHERE = pytest.StashKey[frozenset[str]]()
ALLOWED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks, refuse a misspelt SANDBOXLIB_MUST_RUN, read what passed elsewhere."""
    for usage, _ in needs.NEEDS.values():
        config.addinivalue_line("markers", usage)
    config.addinivalue_line("markers", "leaks: check that nothing is left behind, as in tests/kernel")
    config.addinivalue_line("markers", "qemu: shows what User-mode Linux cannot; the lab runs it in QEMU too")
    _settle()
    if strange := needs.unknown(MUST_RUN):
        raise pytest.UsageError(f"SANDBOXLIB_MUST_RUN names no need: {', '.join(sorted(strange))}")
    records = os.environ.get("SANDBOXLIB_PASSED_ELSEWHERE", "")
    lines = (Path(record).read_text().splitlines() for record in records.split(os.pathsep) if record)
    config.stash[ELSEWHERE] = frozenset(line for record in lines for line in record)
    config.stash[PASSED] = set[str]()
    config.stash[FAILED] = set[str]()
    # Before anybody looks at what is there.
    namespaces.leave()
    leaks.follow()
    if os.environ.get("SANDBOXLIB_LAB") == "scope":
        # Where systemd has to be asked for a cgroup: once for all, before anybody looks where we are.
        from sandboxlib import CGroup

        CGroup().open().close()


#: The places of the lab for all tests, and what only some of them can show.
_ALIKE = ("root", "user", "session")
_SPECIAL = ("cgroup", "cgroup2", "apparmor", "psi", "subids", "lab")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Where the lab's tests are shared out, leave out here what another of its machines runs.

    Tests of limits run in all of them: they hang on what a machine allows. Of the others each runs in one.
    """
    here = os.environ.get("SANDBOXLIB_LAB")
    if here not in _ALIKE or not os.environ.get("SANDBOXLIB_LAB_SHARED"):
        return
    others = [item for item in items if _place(item) not in (None, here)]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def _place(item: pytest.Item) -> str | None:
    """The only one of `_ALIKE` that runs it, if there is one."""
    marks = {mark.name for mark in item.iter_markers()}
    if not marks.isdisjoint(_SPECIAL):
        return None
    # What needs no root is shared by those who are not; the other machine has enough with the rest.
    return _ALIKE[0] if "root" in marks else _ALIKE[1 + zlib.crc32(item.nodeid.encode()) % 2]


#: What may be set for who runs the tests, and would lead them, or the programs that they start, elsewhere.
_STRAY = re.compile(
    r"(?i:\w+_proxy)|REGISTRY_AUTH_FILE|DOCKER_CONFIG|CONTAINERS_\w+|SANDBOXLIB_(STATE_DIR|INSECURE_REGISTRIES)"
    r"|XDG_(DATA|CONFIG|CACHE)_HOME|COLUMNS|LINES|LANGUAGE|LC_\w+"
)


def _settle() -> None:
    """Begin as on any other machine, whatever who runs the tests has inherited."""
    # A shell that starts the tests in the background, or nohup, makes them deaf, and all that they start.
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # those Python itself ignores
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Others read what tests make: plain users, and root of a sandbox.
    os.umask(0o022)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096) if most >= 0 else 4096, most))
    for name in filter(_STRAY.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ["LANG"] = "C.UTF-8"
    if sys.getfilesystemencoding() != "utf-8":
        raise pytest.UsageError("the tests need UTF-8: set PYTHONUTF8=1, or a locale that has it")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail, a test whose needs are not met."""
    unmet = needs.unmet((mark.name, mark.args) for mark in item.iter_markers())
    if not unmet:
        return
    reason = "; ".join(map(str, unmet))
    mandatory = [str(missing) for missing in unmet if needs.is_mandatory(missing, MUST_RUN)]
    if mandatory and item.nodeid not in item.config.stash[ELSEWHERE]:
        pytest.fail(f"SANDBOXLIB_MUST_RUN makes it mandatory, and {'; '.join(mandatory)}", pytrace=False)
    item.stash[ALLOWED] = True
    pytest.skip(f"passed elsewhere; {reason}" if mandatory else reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep each phase's report; where all is mandatory, a skip without an unmet need is a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and not item.stash.get(ALLOWED, False):
        _refuse_skip(report)
    item.stash.setdefault(PHASES, {})[report.when] = report
    if report.failed:
        item.config.stash[FAILED].add(item.nodeid)
    if report.when == "teardown":
        reports = item.stash[PHASES]
        if "call" in reports and all(phase.passed for phase in reports.values()):
            item.config.stash[PASSED].add(item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Treat a file that skips itself as a test that does."""
    report = yield
    if report.skipped:
        _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure where all is mandatory: only a need may excuse a test."""
    if "all" in MUST_RUN.split(","):
        report.outcome = "failed"
        report.longrepr = f"skipped without a mark for what it needs: {report.longrepr}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Record what passed, for a run elsewhere, and what failed, for a second look."""
    for variable, key in (("SANDBOXLIB_RECORD", PASSED), ("SANDBOXLIB_FAILED", FAILED)):
        if record := os.environ.get(variable):
            found: set[str] = session.config.stash[key]
            Path(record).write_text("".join(f"{nodeid}\n" for nodeid in sorted(found)))


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_at_the_end(pytestconfig: pytest.Config) -> Iterator[None]:
    """Check at the end of the run what a check after each test cannot see, and all of it once more."""
    before, processes = leaks.snapshot(), leaks.orphans()
    yield
    left = leaks.since(before) + leaks.orphans_since(processes)
    if left:
        # Of all tests together: none of them alone can show it again.
        pytestconfig.stash[FAILED].add("the run as a whole")
        pytest.fail("the run has not left all as it was:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare the machine and this process after a test of tests/kernel with before."""
    node = request.node
    if not node.path.is_relative_to(KERNEL_TESTS) and node.get_closest_marker("leaks") is None:
        yield
        return
    before = leaks.snapshot()
    yield
    call = node.stash.get(PHASES, {}).get("call")
    # A failed test keeps its frames, and with them what it had open: it has said enough.
    if call is None or not call.passed:
        return
    left = leaks.since(before)
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture
def as_user() -> Callable[..., CompletedProcess[str]]:
    """
    Run a Python script as a plain user: ``as_user(script, *arguments, subids=True)``.

    Mark the test ``unprivileged``. See `users.run`.
    """
    return users.run
