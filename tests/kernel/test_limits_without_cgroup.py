"""Where a program has no cgroup, a limit that was asked for is refused; none is silently unset."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

pytestmark = [pytest.mark.unprivileged, pytest.mark.userns]

Run = Callable[..., "CompletedProcess[str]"]

# Says what became of a call: the error's feature, or how it ended. Without a cgroup only if there is none.
SCRIPT = """
import sys
from sandboxlib import Limits, Sandbox, UnsupportedError
from sandboxlib.engine.current import program
if program().host.cgroups.version:
    sys.exit("this user has a cgroup")
try:
    with Sandbox({spec}) as sb:
        print(sb.run(["true"], limits={limits}).outcome.value)
except UnsupportedError as error:
    print("refused", error.feature, bool(error.hint))
"""


def said(as_user: Run, spec: str, limits: str) -> str:
    return as_user(SCRIPT.format(spec=spec, limits=limits)).stdout.strip()


@pytest.mark.cgroup1
@pytest.mark.parametrize(
    "spec, feature", [("memory='64M'", "memory_max"), ("cpus=0.5", "cpu_max"), ("pids=9", "pids_max")]
)
def test_a_limit_of_the_sandbox_is_refused(as_user: Run, spec: str, feature: str) -> None:
    assert said(as_user, spec, "None") == f"refused {feature} True"


@pytest.mark.cgroup1
@pytest.mark.parametrize(
    "limit, feature",
    [
        ("memory='64M'", "memory_max"),
        ("pids=9", "pids_max"),
        ("cpus=1", "cpu_max"),
        ("cpu_time=1", "limits.cpu_time"),
    ],
)
def test_a_limit_of_a_command_is_refused(as_user: Run, limit: str, feature: str) -> None:
    assert said(as_user, "", f"Limits({limit})") == f"refused {feature} True"


@pytest.mark.cgroup1
@pytest.mark.parametrize("limit", ["wall_time=9", "file_size='1M'", "open_files=64", "output='1M'"])
def test_what_needs_no_cgroup_is_kept_without_one(as_user: Run, limit: str) -> None:
    assert said(as_user, "", f"Limits({limit})") == "exited"
