"""Without a cgroup: processes that show nothing of themselves are listed and killed all the same"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel.probe.outside import WHO, program

pytestmark = [pytest.mark.userns, pytest.mark.timeout(180)]


@pytest.fixture
def secret() -> Iterator[str]:
    """A folder with ``sleep``, which others than root may execute and not read."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        shutil.copyfile(os.path.realpath(shutil.which("sleep") or ""), folder / "sleep")
        (folder / "sleep").chmod(0o711)
        yield str(folder)
    finally:
        shutil.rmtree(folder)


#: `alive` counts the processes of the machine that were called with a number of seconds.
BEGIN = """
import time
from sandboxlib import Mount
from sandboxlib.blocking import PIPE, Sandbox
from sandboxlib.errors import TimeoutExpired
from sandboxlib.namespace import Namespace
def alive(seconds):
    found = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                line = file.read().split(b"\\0")
            with open(f"/proc/{name}/stat", "rb") as file:
                found += line[-2:-1] == [seconds.encode()] and b") Z" not in file.read()
        except OSError:
            pass
    return found
def until(wanted, *arguments):
    for _ in range(200):
        if (found := alive(*arguments)) == wanted:
            break
        time.sleep(0.02)
    return found
def sandbox(**options):
    return Sandbox(mounts=[Mount.bind(facts["secret"], "/opt/secret")], **options)
def shown(sandbox):
    return sorted(" ".join(info.command) for info in sandbox.processes())
"""


@pytest.mark.root
@pytest.mark.unprivileged
def test_children_and_orphans_end_with_the_timeout_and_are_listed(secret: str) -> None:
    script = (
        BEGIN
        + """
LINE = "(/opt/secret/sleep 100.01 &); /opt/secret/sleep 100.01 & exec sleep 100.02"
with sandbox() as one:
    process = one.popen(["sh", "-c", LINE])
    until(2, "100.01")
    listed = shown(one)
    process.kill()
    killed = [until(0, "100.01"), until(0, "100.02")]
    try:
        one.run(["sh", "-c", LINE], timeout=1)
    except TimeoutExpired:
        pass
    expired = [until(0, "100.01"), until(0, "100.02")]
    # The command itself is such a one.
    try:
        one.run(["/opt/secret/sleep", "100.03"], timeout=1)
    except TimeoutExpired:
        pass
    itself = until(0, "100.03")
print(json.dumps([listed, killed, expired, itself]))
"""
    )
    listed, killed, expired, itself = program("user", script, secret=secret)
    assert listed == ["/opt/secret/sleep 100.01"] * 2 + ["sleep 100.02"]
    assert killed == expired == [0, 0]
    assert itself == 0


@pytest.mark.root
@pytest.mark.unprivileged
def test_those_of_another_command_go_on(secret: str) -> None:
    script = (
        BEGIN
        + """
LINE = "(/opt/secret/sleep {0} &); /opt/secret/sleep {0} & exec sleep {0}"
with sandbox() as one:
    first = one.popen(["sh", "-c", LINE.format("100.11")])
    # One that has ended, and left its orphan behind.
    one.run(["sh", "-c", "/opt/secret/sleep 100.12 > /dev/null 2>&1 &"])
    until(3, "100.11")
    until(1, "100.12")
    second = one.popen(["sh", "-c", LINE.format("100.13")])
    until(3, "100.13")
    listed = len(shown(one))
    second.kill()
    found = [until(0, "100.13"), alive("100.11"), alive("100.12"), len(shown(one))]
    first.kill()
    found += [until(0, "100.11"), alive("100.12"), shown(one)]
found.append(until(0, "100.12"))
print(json.dumps([listed, *found]))
"""
    )
    found = program("user", script, secret=secret)
    assert found == [7, 0, 3, 1, 4, 0, 1, ["/opt/secret/sleep 100.12"], 0]


#: Gives itself lower limits, as a mark would have them, and becomes an orphan that shows nothing.
EVADER = """
import os, resource
for limit in (5, 10):
    hard = resource.getrlimit(limit)[1]
    try:
        resource.setrlimit(limit, ({lower}, {lower}))
    except (ValueError, OSError):
        pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/opt/secret/sleep", ["sleep", "{seconds}"])
    os._exit(0)
os.wait()
os.execv("/bin/sleep", ["sleep", "{seconds}"])
"""


@pytest.mark.root
@pytest.mark.unprivileged
@pytest.mark.parametrize("lower", ["0", "hard - 1", "min(hard - 1, (1 << 61) + 5)"])
def test_who_lowers_its_limits_is_found_all_the_same(secret: str, lower: str) -> None:
    script = (
        BEGIN
        + """
with sandbox() as one:
    other = one.popen(["sh", "-c", "/opt/secret/sleep 100.22 & exec sleep 100.22"])
    until(2, "100.22")
    try:
        one.run(["python3", "-I", "-S", "-c", facts["evader"]], timeout=1)
    except TimeoutExpired:
        pass
    found = [until(0, "100.21"), alive("100.22")]
    other.kill()
    found.append(until(0, "100.22"))
print(json.dumps(found))
"""
    )
    evader = EVADER.format(lower=lower, seconds="100.21")
    assert program("user", script, secret=secret, evader=evader) == [0, 2, 0]


@WHO
def test_who_goes_on_without_its_first_thread_is_found(who: str) -> None:
    script = (
        BEGIN
        + """
SOURCE = '''
import ctypes, os, threading, time
if os.fork() == 0:
    threading.Thread(target=time.sleep, args=(1000,)).start()
    print("on", flush=True)
    ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
time.sleep(1000)
'''
with Sandbox() as one:
    process = one.popen(["python3", "-c", SOURCE, "100.31"], stdout=PIPE)
    process.stdout.readline()
    time.sleep(0.2)
    pids = [info.host_pid for info in one.processes()]
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(200):
        left = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
        if not left:
            break
        time.sleep(0.02)
    listed = len(one.processes())
print(json.dumps([len(pids), left, listed]))
"""
    )
    assert program(who, script) == [2, [], 0]


@pytest.mark.root
@pytest.mark.unprivileged
def test_in_a_shared_pid_namespace_nothing_is_left_of_who_closes(secret: str) -> None:
    script = (
        BEGIN
        + """
LINE = "(/opt/secret/sleep {0} &); (sleep {0} > /dev/null 2>&1 &)"
with sandbox() as one:
    folder = f"/proc/{one._engine.pid}/ns"
    shared = [Namespace("user", path=f"{folder}/user"), Namespace("pid", path=f"{folder}/pid")]
    one.run(["sh", "-c", LINE.format("100.41")], stdout=None, stderr=None)
    with sandbox(namespaces=shared) as two:
        two.run(["sh", "-c", LINE.format("100.42")], stdout=None, stderr=None)
        found = [until(2, "100.41"), until(2, "100.42"), shown(one), shown(two)]
    found += [until(0, "100.42"), alive("100.41")]
found.append(until(0, "100.41"))
print(json.dumps(found))
"""
    )
    *alive, one, two, gone, others, last = program("user", script, secret=secret)
    assert alive == [2, 2]
    assert one == ["/opt/secret/sleep 100.41", "sleep 100.41"]
    assert two == ["/opt/secret/sleep 100.42", "sleep 100.42"]
    assert [gone, others, last] == [0, 2, 0]
