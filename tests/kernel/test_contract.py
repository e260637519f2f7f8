"""The library's contract by example: each block as users read it, run as it stands."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxlib.engine.current import program as this_program

import users

SHORT = """
import sandboxlib

done = sandboxlib.run(["python3", "-c", "print(6 * 7)"], memory="256M", timeout=10)
assert (done.returncode, done.stdout) == (0, b"42\\n")
"""

LONG = """
from sandboxlib import Limits, Outcome, Sandbox

with Sandbox(memory="256M", cpus=0.5, pids=64, lifetime=600) as sb:
    sb.files.write("/work/job.py", "import sys; print(sys.stdin.read().upper())")
    done = sb.run(["python3", "/work/job.py"], input=b"hello", cwd="/work", env={"LANG": "C"}, timeout=5, check=True)
    assert done.stdout == b"HELLO\\n"
    assert done.returncode == 0
    assert done.outcome is Outcome.EXITED
    usage = done.usage
    assert usage.wall > 0 and usage.cpu_user >= 0 and usage.cpu_system >= 0
    assert usage.memory_peak > 1 << 20 and usage.pids_peak >= 1
    assert usage.io_read >= 0 and usage.io_written >= 0
    assert not done.stdout_truncated and not done.stderr_truncated
    sb.files.copy_in("solution", "/work/solution")
    done = sb.run(["./solution"], limits=Limits(cpu_time=2, wall_time=10, memory="64M"), max_output="1M")
    assert done.outcome is Outcome.EXITED and done.stdout == b"solved\\n"
    sb.files.write("in", "b\\na\\nb\\n")
    sb.sh("sort < in | uniq -c > out")
    assert sb.files.read_text("out").split() == ["1", "a", "2", "b"]
    sb.files.read("/work/job.py"); sb.files.read_text("/work/job.py"); sb.files.list("/work"); sb.files.stat("/work/out")
    sb.files.mkdir("/work/new"); sb.files.rename("/work/new", "/work/newer"); assert sb.files.exists("/work/newer")
    sb.files.remove("/work/newer"); assert not sb.files.exists("/work/newer")
    sb.files.copy_in("src/", "/work/src"); sb.files.copy_out("/work/src", "copied/")
    assert pathlib.Path("copied/a.txt").read_text() == "a"
    assert ("added", "/work/job.py") in sb.changes()
    stats = sb.stats()
    assert stats.memory.current > 0 and stats.cpu.usage > 0 and stats.pids.current >= 1 and "lo" in stats.network
    server = sb.popen(["python3", "-m", "http.server", "8080"])
    sb.wait_for(port=8080, timeout=20)
    assert any("http.server" in process.command for process in sb.processes())
    with sb.connect(8080) as connection:
        connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        assert connection.recv(100).startswith(b"HTTP/1.0 200")
    sb.pause(); sb.resume(); sb.update(memory="512M")
    assert sb.stats().memory.max == 512 << 20
    sb.kill()
"""

HANDLES = """
import sandboxlib
from sandboxlib import Sandbox

with Sandbox() as sb:
    with sb.popen(["cat"], stdin=sandboxlib.PIPE, stdout=sandboxlib.PIPE) as process:
        process.stdin.write(b"ping\\n"); process.stdin.close()
        lines = [line for line in process.stdout]
        process.pid, process.poll(), process.wait(timeout=5), process.returncode, process.usage
        process.send_signal(15); process.terminate(); process.kill()
    assert lines == [b"ping\\n"] and process.returncode == 0
    with sb.popen(["sh"], tty=True) as shell:
        shell.resize(rows=40, columns=120)
        shell.tty.write(b"stty size; exit\\n")
        shown = b""
        while chunk := shell.tty.read(1000):
            shown += chunk
    assert b"40 120" in shown
"""

PARTS = """
import os
from sandboxlib import CGroup, Mount, Namespace, Network, Rootfs, Sandbox, Security, Volume

sandbox = Sandbox(
    namespaces=[Namespace("time", boottime_offset=3600)] if os.path.exists("/proc/self/ns/time") else [],
    cgroup=CGroup(memory_max="256M", memory_swap_max=0, cpu_max=0.5, cpu_weight=50, pids_max=64),
    rootfs=Rootfs.host(),
    mounts=[Mount.bind(os.path.abspath("src"), "/data", readonly=True),
            Mount.tmpfs("/scratch", size="64M")],
    network=Network.none(), hostname="db",
    security=Security(capabilities=["CAP_NET_BIND_SERVICE"], seccomp="default", rlimits={"nofile": 1024}),
)
plan = str(sandbox.plan())
assert "pivot_root" in plan and "clone3" in plan
with sandbox as sb:
    done = sb.run(["sh", "-c", "hostname; cat /data/a.txt; ulimit -n; grep CapEff /proc/self/status"], text=True, check=True)
    assert done.stdout.split() == ["db", "a1024", "CapEff:", "0000000000000400"], done.stdout
"""

ALONE = """
import os, subprocess
from sandboxlib import CGroup, Namespace, Network, Rootfs, Sandbox

pid = os.getpid()
with Namespace("network").open() as ns:
    assert ns.inode and ns.fileno() >= 0
assert Namespace.of(pid, "network") == Namespace.of("self", "network")
with Network.none().open() as net:
    assert net
with Sandbox() as other:
    sleeper = other.popen(["sleep", "100"])
    with Sandbox(network=Network.of(other)) as sb:
        assert Namespace.of(sb, "network") == Namespace.of(other, "network")
    with Sandbox(namespaces=[Namespace.of(other, "ipc"), Namespace.of(other, "pid")]) as sb:
        assert "sleep" in sb.run(["ps", "-e"], text=True).stdout
"""

GROUP = """
import subprocess
from sandboxlib import CGroup

child = subprocess.Popen(["sleep", "100"])
try:
    with CGroup(memory_max="64M").open() as group:
        group.add(child.pid); group.stats(); group.update(memory_max="128M"); group.freeze(); group.thaw(); group.kill()
        assert child.wait(10) == -9
finally:
    child.kill()
    child.wait()
"""

OVERLAY = """
import os
from sandboxlib import Rootfs

with Rootfs.overlay(lower=[os.path.abspath("src")]).open() as tree:
    open(os.path.join(tree.path, "new"), "w").close()
    assert [tuple(change) for change in tree.changes()] == [("added", "/new")]
"""

#: Those that run without limits; one asks ps for the processes that it shares.
UNLIMITED = [
    pytest.param(HANDLES, id="handles"),
    pytest.param(ALONE, marks=pytest.mark.tool("ps"), id="alone"),
]

PREPARE = """
import os, pathlib
os.makedirs("src", exist_ok=True)
pathlib.Path("src/a.txt").write_text("a")
pathlib.Path("solution").write_text("#!/bin/sh\\necho solved\\n")
os.chmod("solution", 0o755)
"""


@pytest.fixture
def run_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def run(block: str) -> None:
        monkeypatch.chdir(tmp_path)
        # A source of a mount has to be reachable for whoever the sandbox runs as.
        tmp_path.chmod(0o755)
        exec(compile(PREPARE + block, "<contract>", "exec"), {"__name__": "contract"})

    return run


@pytest.mark.userns
@pytest.mark.cgroup("memory", "cpu", "pids")
@pytest.mark.parametrize(
    "block",
    [SHORT, LONG, pytest.param(PARTS, marks=pytest.mark.rlimit("nofile=1024")), GROUP],
    ids=["short", "long", "parts", "group"],
)
def test_with_limits(block: str, run_block: Callable[[str], None]) -> None:
    run_block(block)


@pytest.mark.userns
@pytest.mark.parametrize("block", UNLIMITED)
def test_without_limits(block: str, run_block: Callable[[str], None]) -> None:
    run_block(block)


@pytest.mark.root
@pytest.mark.overlay
def test_an_overlay_alone(run_block: Callable[[str], None]) -> None:
    run_block(OVERLAY)


@pytest.mark.unprivileged
@pytest.mark.userns
@pytest.mark.parametrize("block", UNLIMITED)
def test_as_a_plain_user(block: str) -> None:
    # A plain user's home, or whoever runs the tests without root: anywhere that can be written.
    place = "import os, tempfile\nplace = tempfile.TemporaryDirectory()\nos.chdir(place.name)\n"
    users.run(place + textwrap.dedent(PREPARE + block) + "\nos.chdir('/')\nplace.cleanup()\n", timeout=120)


@pytest.mark.unprivileged
@pytest.mark.userns
def test_a_plain_user_without_a_cgroup_is_refused_a_limit() -> None:
    if os.geteuid() != 0 and this_program().host.cgroups.version:
        # Where one is delegated, the blocks with limits above have run.
        return
    script = """
from sandboxlib import Sandbox, UnsupportedError
try:
    Sandbox(memory="64M").open().close()
except UnsupportedError as error:
    assert error.hint, error
else:
    raise AssertionError("a limit that nobody applies was accepted")
"""
    # Where systemd could give one it is not asked.
    users.run(script, env={"SANDBOXLIB_CGROUP": "found"})
