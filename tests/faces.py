"""The same through both faces: what a test asks of a sandbox, blocking and on trio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from sandboxlib import AsyncSandbox, Completed, Sandbox
from sandboxlib.result import Outcome

#: Runs a command in a sandbox of its own: the arguments of `Sandbox.run`, and ``spec=`` for the sandbox's.
Run = Callable[..., Completed]
#: Starts a command by ``popen`` in a sandbox of its own, waits for it, and says how it ended.
Started = Callable[..., "tuple[int | None, Outcome | None]"]


def _blocking(*args: Any, spec: dict[str, Any] | None = None, **options: Any) -> Completed:
    with Sandbox(**(spec or {})) as sandbox:
        return sandbox.run(*args, **options)


def _trio(*args: Any, spec: dict[str, Any] | None = None, **options: Any) -> Completed:
    async def main() -> Completed:
        async with AsyncSandbox(**(spec or {})) as sandbox:
            return await sandbox.run(*args, **options)

    return trio.run(main)


@pytest.fixture(name="run", params=[_blocking, _trio], ids=["blocking", "trio"])
def run_fixture(request: pytest.FixtureRequest) -> Run:
    """See `Run`."""
    return request.param  # type: ignore[no-any-return]


def _popen_blocking(
    *args: Any, spec: dict[str, Any] | None = None, **options: Any
) -> tuple[int | None, Outcome | None]:
    with Sandbox(**(spec or {})) as sandbox, sandbox.popen(*args, **options) as process:
        process.wait()
        return process.returncode, process.outcome


def _popen_trio(
    *args: Any, spec: dict[str, Any] | None = None, **options: Any
) -> tuple[int | None, Outcome | None]:
    async def main() -> tuple[int | None, Outcome | None]:
        async with AsyncSandbox(**(spec or {})) as sandbox, await sandbox.popen(*args, **options) as process:
            await process.wait()
            return process.returncode, process.outcome

    return trio.run(main)


@pytest.fixture(name="started", params=[_popen_blocking, _popen_trio], ids=["blocking", "trio"])
def started_fixture(request: pytest.FixtureRequest) -> Started:
    """See `Started`."""
    return request.param  # type: ignore[no-any-return]
