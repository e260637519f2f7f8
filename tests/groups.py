"""What the tests of cgroups share: groups that are closed, and processes that join them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest

from sandboxlib.cgroup import CGroup
from sandboxlib.host import CGroupHost
from sandboxlib.kernel.cgroup import Group, Leaf, create, probe
from sandboxlib.kernel.folders import run_folder
from sandboxlib.kernel.owner import PREFIX, Owner

# A shell joins with all that it has, one process, before it becomes the command.
_JOIN = 'n=$1; shift; while [ $n -gt 0 ]; do echo 0 > "$1" || exit 99; shift; n=$((n-1)); done; exec "$@"'

#: Python source that fills so many MiB.
HOG = "import sys; b = bytearray(int(sys.argv[1]) << 20); print('filled', flush=True)"
#: Python source that uses so many CPU seconds, once formatted.
SPIN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"


RUN_FOLDER = run_folder(os.geteuid())


def fresh_name() -> str:
    """A name for a group of this process, which has no lock of an owner's all the time."""
    owner = Owner(RUN_FOLDER)
    owner.hold(owner)
    try:
        return owner.name()
    finally:
        owner.drop(owner)


class Make(Protocol):
    """Make a group with these limits, which is closed after the test."""

    def __call__(self, **fields: Any) -> Group: ...


def start(place: Group | Leaf, *command: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command in a group or a leaf, as the launcher does."""
    files = place.join_files()
    return subprocess.Popen(["/bin/sh", "-c", _JOIN, "sh", str(len(files)), *files, *command], **options)


def run(place: Group | Leaf, *command: str, timeout: float = 30) -> tuple[int, bytes]:
    """Run a command in a group or a leaf: its status and output."""
    with start(place, *command, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=timeout)
    return process.returncode, out


def python(source: str, *arguments: object) -> Sequence[str]:
    """The command that runs Python source."""
    return [sys.executable, "-I", "-S", "-c", source, *map(str, arguments)]


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    """Look until it is so, and fail if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def found_groups(host: CGroupHost, owner: int = 0) -> set[str]:
    """The folders of all groups of one program, this one unless said otherwise; others may come and go."""
    found = set()
    for base in set(host.bases.values()):
        for entry in os.scandir(base):
            if entry.name.startswith(PREFIX) and entry.name.split("-")[2] == str(owner or os.getpid()):
                found.add(entry.path)
    return found


@pytest.fixture(name="host")
def host_fixture() -> CGroupHost:
    """Where groups can be made."""
    return probe()


@pytest.fixture(name="make")
def make_fixture(host: CGroupHost) -> Iterator[Make]:
    """See `Make`."""
    made: list[Group] = []

    def function(**fields: Any) -> Group:
        made.append(create(host, CGroup(**fields), fresh_name()))
        return made[-1]

    yield function
    for group in made:
        group.close()


@pytest.fixture(name="_no_group_is_left", autouse=True)
def leak_fixture(host: CGroupHost) -> Iterator[None]:
    """Fail if a test leaves a group behind."""
    before = found_groups(host)
    yield
    assert found_groups(host) - before == set()
