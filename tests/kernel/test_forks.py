"""Children that a program forks: they have and end nothing of their parent's, and use the library."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from kernel.probe.outside import OWN_NETWORK, TESTS, WHO, program

import users

#: A fork while another thread is in the middle of loading *module*; the child then does the same as that.
LOADING = """
import importlib.abc, json, os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
facts = json.loads(sys.argv[2])
loading, go_on = threading.Event(), threading.Event()
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == facts["module"] and not loading.is_set():
            loading.set()
            go_on.wait(20)
sys.meta_path.insert(0, Slow())
def use():
    from sandboxlib import Sandbox
    with Sandbox() as sandbox:
        sandbox.run(["true"])
        sandbox.changes()
first = threading.Thread(target=use)
first.start()
assert loading.wait(20)
threading.Timer(0.3, go_on.set).start()
child = os.fork()
if child == 0:
    signal.alarm(20)
    use()
    os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
first.join()
print(json.dumps(status))
"""


@WHO
@pytest.mark.parametrize("module", ["sandboxlib.engine.process", "msgspec"])
def test_a_fork_while_another_thread_loads_the_library_does_not_hang(who: str, module: str) -> None:
    arguments = [LOADING, str(TESTS.parent), json.dumps({"module": module})]
    if who == "root":
        ran = subprocess.run(
            [sys.executable, "-c", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    else:
        ran = users.run(*arguments, timeout=60)
    assert (ran.stdout, ran.stderr) == ("0\n", "")


#: What a program can have, as source: how it is had, and what is true as long as it is there.
HAVE = {
    "a sandbox": ("Sandbox() as s", "s.run(['echo', 'x']).stdout == b'x\\n'"),
    "a command": ("Sandbox() as s, s.popen(['cat'], stdin=-1, stdout=-1) as p", "said(p.stdin, p.stdout)"),
    "a command on a terminal": ("Sandbox() as s, s.popen(['cat'], tty=True) as p", "said(p.tty, p.tty)"),
    "a namespace": ("Namespace('user').open() as n", "os.fstat(n.fileno()).st_ino == n.inode"),
    "a pid namespace": ("Namespace('pid').open() as n", "n.launch.lives and n.launch.ended is None"),
    "a tree": ("Rootfs.overlay(['/usr']).open() as r", "'bin' in os.listdir(r.path)"),
    "a tree on disk": ("Rootfs.overlay(['/usr'], storage=folder).open() as r", "'bin' in os.listdir(r.path)"),
}
#: The same that root alone can have.
ROOT = {
    "a group": ("CGroup(pids_max=9).open() as g", "holds(g)"),
    "a network": ("Network.bridge('forks').open() as b", "socket.if_nametoindex(b.interface) > 0"),
}
FORKED = """
import socket, subprocess, tempfile
from sandboxlib import CGroup, Namespace, Network, Rootfs, Sandbox
def said(into, out):
    into.write(b"there\\n")
    into.flush()
    return b"there" in out.readline()
def holds(g):
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        g.add(sleeper.pid)
        found = sleeper.pid in g.pids()
        sleeper.kill()
    return found
folder = tempfile.mkdtemp()
found = []
def main():
    with HAVE:
        # It exits, raises, comes to the end of the block, or returns out of it.
        for way in range(4):
            read, write = os.pipe()
            child = os.fork()
            if not child:
                os.dup2(write, 2)
                if way == 0:
                    sys.exit(0)
                if way == 1:
                    raise KeyError(0)
                if way == 2:
                    break
                return
            os.close(write)
            with open(read) as file:
                words = file.read()
            found.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words[-12:], SHOWS])
mine = os.getpid()
main()
if os.getpid() == mine:
    os.rmdir(folder)
    print(json.dumps(found))
"""
#: What has to come: the child's status, what it says of that, and that the parent has what it had.
FOUND = [[0, "", True], [1, "KeyError: 0\n", True], [0, "", True], [0, "", True]]


@WHO
@pytest.mark.parametrize(
    "what",
    # Before 6.6 a plain user has no overlay in memory.
    [pytest.param(what, marks=[pytest.mark.kernel("6.6")] if what == "a tree" else []) for what in HAVE],
)
def test_a_forked_child_that_ends_ends_nothing_of_its_parents(who: str, what: str) -> None:
    have, shows = HAVE[what]
    assert program(who, FORKED.replace("HAVE", have).replace("SHOWS", shows)) == FOUND


@pytest.mark.root
@pytest.mark.cgroup("pids")
@pytest.mark.netns
@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[pytest.mark.bridge] if "network" in what else []) for what in ROOT]
)
def test_a_forked_child_ends_no_group_and_no_network(what: str) -> None:
    have, shows = ROOT[what]
    assert program("root", OWN_NETWORK + FORKED.replace("HAVE", have).replace("SHOWS", shows)) == FOUND


#: What a forked child asks of its parent's command.
ASKED: dict[str, str] = {
    "poll": "p.poll()",
    "wait": "p.wait()",
    "kill": "p.kill()",
    "terminate": "p.terminate()",
    "send_signal": "p.send_signal(15)",
}


@WHO
def test_a_forked_child_has_no_say_over_its_parents_command(who: str) -> None:
    script = """
from sandboxlib import Sandbox, StateError
with Sandbox() as sandbox, sandbox.popen(["cat"], stdin=-1, stdout=-1) as p:
    read, write = os.pipe()
    if not os.fork():
        for ask in facts["asked"].values():
            try:
                eval(ask)
            except StateError as error:
                os.write(write, str(error).encode() + b"\\n")
        os._exit(0)
    os.close(write)
    with open(read) as file:
        said = file.read().splitlines()
    os.wait()
    p.stdin.write(b"there")
    p.stdin.close()
    print(json.dumps([said, p.stdout.read().decode()]))
"""
    said, there = program(who, script, asked=ASKED)
    assert said == ["the command belongs to the process that this one was forked from"] * len(ASKED)
    assert there == "there"


@WHO
@pytest.mark.kernel("6.3")  # from then on a tmpfs, as /tmp is in the lab, can be ID-mapped
def test_a_forked_child_does_not_keep_its_parents_volumes(who: str) -> None:
    script = """
import time
from sandboxlib import Sandbox, Volume
with Sandbox(mounts=[Volume("forked").at("/kept")]) as sandbox:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
Volume.remove("forked")
os.close(write)
os.waitpid(child, 0)
print(json.dumps([volume.name for volume in Volume.list()]))
"""
    assert "forked" not in program(who, script)


@WHO
def test_a_fork_in_the_middle_of_a_run_leaves_the_command_to_the_parent(who: str) -> None:
    """A function that is called for each line forks, and the child exits out of `run`."""
    script = """
from sandboxlib import Sandbox
def on_line(stream, line):
    if line == b"fork\\n" and not os.fork():
        sys.exit(7)
with Sandbox() as sandbox:
    line = "echo fork; sleep 0.3; echo there"
    done = sandbox.run(["sh", "-c", line], on_line=on_line)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    print(json.dumps([done.returncode, done.stdout.decode(), status]))
"""
    assert program(who, script) == [0, "fork\nthere\n", 7]
