"""Programs that end while they have everything: what they own ends with them; the next finds nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from kernel.probe.outside import TESTS, program

#: A program that has a sandbox with a group, a layer on disk and a volume; then *end* comes.
OWNER = """
import os, signal, sys, time
from sandboxlib import Mount, Rootfs, Sandbox, Volume
def have(**more):
    place = os.environ["PLACE"]
    os.makedirs(f"{place}.base", exist_ok=True)
    rootfs = Rootfs.overlay([f"{place}.base"], storage=place, driver="copy")
    host = [Mount.bind(path, path, readonly=True) for path in ("/usr", "/bin", "/lib", "/lib64")]
    return Sandbox(rootfs=rootfs, mounts=[Volume("kept").at("/kept"), *host], **more).open()
"""
#: How it ends. Each says what it is, and the pid of the sandbox's pid 1, before.
ENDS = {
    "killed": """
sandbox = have()
print(sandbox._engine.pid, flush=True)
signal.pause()
""",
    "executes another": """
sandbox = have()
print(sandbox._engine.pid, flush=True)
sys.stdin.readline()
os.execvp("sleep", ["sleep", "1000"])
""",
    "executes another, with threads": """
import threading
sandbox = have()
threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
print(sandbox._engine.pid, flush=True)
def act():
    sys.stdin.readline()
    os.execvp("sleep", ["sleep", "1000"])
threading.Thread(target=act).start()
""",
    "killed, and has a child that forked": """
sandbox = have()
if not os.fork():
    time.sleep(1000)
print(sandbox._engine.pid, flush=True)
signal.pause()
""",
    "killed, and has a child that Python knows nothing of": """
import ctypes
sandbox = have()
if not ctypes.CDLL(None).fork():
    time.sleep(1000)
print(sandbox._engine.pid, flush=True)
signal.pause()
""",
    "executes another, and has a child that forked": """
sandbox = have()
if not os.fork():
    time.sleep(1000)
print(sandbox._engine.pid, flush=True)
sys.stdin.readline()
os.execvp("sleep", ["sleep", "1000"])
""",
    "executes another, and has a child that was started meanwhile": """
import multiprocessing, subprocess
sandbox = have()
other = subprocess.Popen(["sleep", "1000"], close_fds=False)
third = multiprocessing.get_context("spawn").Process(target=time.sleep, args=[1000])
third.start()
print(sandbox._engine.pid, flush=True)
sys.stdin.readline()
os.execvp("sleep", ["sleep", "1000"])
""",
}
#: The next program: has the same, and lets go of it; then it says what is there.
NEXT = """
import os
sandbox = have()
sandbox.run(["sh", "-c", "echo kept > /kept/file"], check=True)
sandbox.close()
"""
#: Starts the one, ends it, and does not ask for its status; then the other.
DRIVER = """
import re, signal, subprocess, time
from pathlib import Path
import leaks
from sandboxlib import Volume
from sandboxlib.kernel.folders import run_folder
place = Path(facts["place"] or os.path.expanduser("~/layers"))
place.mkdir(exist_ok=True)
os.environ["PLACE"] = str(place)
os.environ["SANDBOXLIB_STATE_DIR"] = f"{place}.state"
os.environ["PYTHONPATH"] = os.pathsep.join([sys.argv[1].removesuffix("/tests"), *sys.path])
folder = Path(run_folder(os.geteuid()))
def start(script):
    return subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True, process_group=0)
def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
def until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()
def groups(pid):
    name = re.compile(rf"sandboxlib-\\d+-{pid}-\\d+-\\d+")
    return [entry for root in leaks._cgroup_roots() for entry in os.listdir(root) if name.fullmatch(entry)]
def left():
    found = [path.name for path in folder.iterdir() if path.name != "ids"] if folder.exists() else []
    return sorted([*found, *os.listdir(place)])
before = left()
owner = start(facts["owner"] + facts["ending"])
inside = int(owner.stdout.readline())
had = len(left()) - len(before)
if "stdin" in facts["ending"]:
    print("go", file=owner.stdin, flush=True)
    executed = until(lambda: Path(f"/proc/{owner.pid}/comm").read_text() == "sleep\\n")
else:
    os.kill(owner.pid, signal.SIGKILL)
    executed = False
ended = until(lambda: not alive(inside))
# Nobody has asked for its status yet, or it goes on as another.
there = os.path.exists(f"/proc/{owner.pid}")
after = start(facts["owner"] + facts["next"])
said = after.communicate(timeout=50)
remains = [name for name in left() if name not in before] + groups(owner.pid)
os.killpg(owner.pid, signal.SIGKILL)
owner.wait()
Volume.remove("kept")
import shutil
for path in (place, f"{place}.base", f"{place}.state"):
    shutil.rmtree(path)
print(json.dumps([had, executed, ended, there, after.returncode, remains]))
"""


def outcome(who: str, way: str, tmp_path: Any) -> tuple[Any, ...]:
    place = str(tmp_path / "layers") if who == "root" else ""
    had, executed, *rest = program(who, DRIVER, owner=OWNER, ending=ENDS[way], next=NEXT, place=place)
    # A link to the layer, the layer and the owner's lock were there.
    assert had >= 3
    assert executed == ("executes" in way)
    return tuple(rest)


#: As root each, as a plain user the first two: what differs is where the files are.
WAYS = [pytest.param("root", way, marks=pytest.mark.root) for way in ENDS]
WAYS += [
    pytest.param("user", way, marks=[pytest.mark.unprivileged, pytest.mark.userns]) for way in [*ENDS][:2]
]


@pytest.mark.parametrize(("who", "way"), WAYS)
def test_what_a_program_owned_ends_with_it(who: str, way: str, tmp_path: Any) -> None:
    """Its parent has not asked for its status; or it goes on, as another program with the same pid."""
    ended, there, code, remains = outcome(who, way, tmp_path)
    assert ended
    assert there
    assert code == 0
    assert remains == []


@pytest.mark.root
@pytest.mark.cgroup("memory", "pids")
@pytest.mark.netns
@pytest.mark.bridge
@pytest.mark.timeout(180)
def test_of_programs_that_are_killed_at_any_moment_the_next_finds_nothing() -> None:
    """With groups, layers, volumes, images, networks, ports in use; `tests/deaths.py` does it 300 times."""
    ran = subprocess.run(
        [sys.executable, str(TESTS / "deaths.py"), "20"], capture_output=True, text=True, check=False
    )
    assert ran.stdout, ran.stderr
    found = json.loads(ran.stdout)
    assert found.pop("most") > 0
    assert (found, ran.stderr) == ({"killed": 15, "executed": 5, "wrong": [], "left": []}, "")
