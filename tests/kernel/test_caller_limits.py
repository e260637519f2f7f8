"""Programs with limits of their own, low and high: a sandbox starts within them, or one line says why not"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from kernel.probe.outside import _PRELUDE, TESTS, WHO, program

pytestmark = [pytest.mark.userns]

#: The lowest with which a Python program that starts sandboxes is still one.
LOWEST = {
    "cpu": 20,
    "fsize": 128 << 10,
    "data": 64 << 20,
    "stack": 256 << 10,
    "core": 0,
    "rss": 0,
    "nofile": 64,
    "memlock": 0,
    "as": 512 << 20,
    "locks": 0,
    "sigpending": 0,
    "msgqueue": 0,
    "nice": 0,
    "rtprio": 0,
    "rttime": 1_000_000,
}
#: Of asm-generic/resource.h.
NUMBERS = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8,
    "as": 9, "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip
#: Sets limits of its own, and says what became of a sandbox through both faces, and of what runs in it.
SCRIPT = """
import resource, trio
from sandboxlib import AsyncSandbox, Sandbox, SandboxError
from sandboxlib.engine.current import program
program()
async def on_trio():
    async with AsyncSandbox() as sandbox:
        return (await sandbox.run(["echo", "alive"])).stdout.decode()
def look(limits):
    for name, pair in limits.items():
        resource.setrlimit(facts["numbers"][name], tuple(pair))
    try:
        with Sandbox() as sandbox:
            said = sandbox.run(["echo", "alive"]).stdout.decode()
            sandbox.files.write("/work/x", b"alive\\n")
            said += sandbox.files.read("/work/x").decode()
            inside = sandbox.run(["cat", "/proc/self/limits"]).stdout.decode()
            notes = sandbox.plan().notes
        return [said + trio.run(on_trio), inside, notes]
    except SandboxError as error:
        return [f"{type(error).__name__}: {error}", "", ()]
"""
ONCE = SCRIPT + "print(json.dumps(look(facts['limits'])))"
#: The same for one set of limits after the other, each in a child, since what is lower now stays so.
EACH = (
    SCRIPT
    + """
found = {}
for name, limits in facts["each"].items():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, look(limits)[0].encode())
        os._exit(0)
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0, name
    found[name] = os.read(read, 65536).decode()
    os.close(read)
print(json.dumps(found))
"""
)


def with_limits(who: str, limits: dict[str, Sequence[int]]) -> tuple[str, dict[str, list[str]], list[str]]:
    """What was said, the limits inside as (soft, hard) by what /proc calls them, and the plan's notes."""
    said, inside, notes = program(who, ONCE, limits=limits, numbers=NUMBERS)
    lines = [line for line in inside.splitlines()[1:] if line.startswith("Max ")]
    return said, {line[:26].strip(): line[26:].split()[:2] for line in lines}, notes


@WHO
def test_with_the_lowest_useful_limit_a_sandbox_starts(who: str) -> None:
    each = {name: {name: (value, value)} for name, value in LOWEST.items()}
    assert program(who, EACH, patience=300, each=each, numbers=NUMBERS) == dict.fromkeys(
        LOWEST, "alive\n" * 3
    )


@WHO
def test_with_all_of_them_at_once_a_sandbox_starts_and_the_notes_say_what_holds(who: str) -> None:
    said, inside, notes = with_limits(who, {name: (value, value) for name, value in LOWEST.items()})
    assert said == "alive\n" * 3
    assert inside["Max open files"] == ["64", "64"]
    # Root of a machine may have the one byte all the same that keeps crash handlers away.
    assert inside["Max core file size"] in (["0", "0"], ["1", "1"])
    assert inside["Max stack size"] == [str(256 << 10)] * 2
    assert inside["Max pending signals"] == ["0", "0"]
    assert inside["Max msgqueue size"] == ["0", "0"]
    held = ["NOFILE", "STACK", "MEMLOCK", "SIGPENDING", "MSGQUEUE"]
    for name in held if inside["Max core file size"] == ["1", "1"] else [*held, "CORE"]:
        assert [note for note in notes if f"RLIMIT_{name} is {LOWEST[name.lower()]}" in note], name


@WHO
def test_with_the_highest_limits_a_sandbox_starts(who: str) -> None:
    hard = {name: resource.getrlimit(number)[1] for name, number in NUMBERS.items()}
    said, inside, notes = with_limits(who, {name: (most, most) for name, most in hard.items()})
    assert said == "alive\n" * 3
    # None of its own is lower than what a sandbox has.
    assert not [note for note in notes if note.startswith("RLIMIT_")]
    assert inside["Max open files"] == ["1024", "4096"]


#: Limits with which none can start, and what says so.
TOO_LOW = {
    "no file": ({"fsize": (0, 0)}, "RLIMIT_FSIZE"),
    "small files": ({"fsize": (1000, 1000)}, "RLIMIT_FSIZE"),
    "few descriptors": ({"nofile": (40, 40)}, "RLIMIT_NOFILE"),
    "a soft limit": ({"nofile": (20, 4096)}, "RLIMIT_NOFILE"),
}


@WHO
def test_where_it_cannot_start_one_line_says_why(who: str) -> None:
    each = {what: limits for what, (limits, _) in TOO_LOW.items()}
    found = program(who, EACH, patience=300, each=each, numbers=NUMBERS)
    for what, (_, name) in TOO_LOW.items():
        assert name in found[what], what
        assert found[what].count("\n") == 0, what


@pytest.mark.unprivileged
def test_a_user_who_may_have_no_process_more_is_told() -> None:
    said, _, _ = with_limits("user", {"nproc": (0, 0)})
    assert "RLIMIT_NPROC" in said
    assert said.count("\n") == 0


@WHO
def test_limits_that_change_between_commands_are_seen(who: str) -> None:
    script = """
import resource
from sandboxlib import Limits, Sandbox
with Sandbox() as sandbox:
    found = [sandbox.sh("ulimit -Hn; ulimit -Hs").stdout.decode().split()]
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))
    found.append(sandbox.sh("ulimit -Hn; ulimit -Hs").stdout.decode().split())
    found.append(sandbox.sh("ulimit -Hn", limits=Limits(open_files=1000)).stdout.decode().split())
with Sandbox() as sandbox:
    found.append(sandbox.sh("ulimit -Hn").stdout.decode().split())
print(json.dumps(found))
"""
    assert program(who, script) == [["4096", str(64 << 10)], ["128", "1024"], ["128"], ["128"]]


@WHO
def test_a_commands_own_limit_may_be_above_the_default(who: str) -> None:
    script = """
import resource
from sandboxlib import Limits, Sandbox
with Sandbox() as sandbox:
    inside = sandbox.sh("ulimit -Hn", limits=Limits(open_files=6000)).stdout.decode()
print(json.dumps([inside, min(6000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])]))
"""
    inside, expected = program(who, script)
    assert inside == f"{expected}\n"


@WHO
def test_a_limit_that_was_asked_for_and_cannot_be_is_refused(who: str) -> None:
    script = """
import resource
from sandboxlib import Sandbox, Security, UnsupportedError
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
try:
    with Sandbox(security=Security(rlimits={"nofile": 8192})) as sandbox:
        print(json.dumps(sandbox.sh("ulimit -n").stdout.decode()))
except UnsupportedError as error:
    print(json.dumps(str(error)))
"""
    said = program(who, script)
    # Whoever has CAP_SYS_RESOURCE on the machine may have more than his program.
    assert said == "8192\n" if said[0].isdigit() else "nofile" in said


# --- surroundings of other engines ----------------------------------------------------------------------

#: Programs that start another one in surroundings of their own: root there has less than root here.
SURROUNDINGS = {
    "a user namespace": "unshare --user --map-root-user --mount --pid --fork --mount-proc".split(),  # noqa: SIM905
    "a cgroup namespace": ["unshare", "--cgroup"],
    "bubblewrap": ["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--unshare-net", "--unshare-ipc"],
    "no CAP_SYS_RESOURCE": ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"],
    # What Docker gives root, who is no more than a user then.
    "an engine's capabilities": [
        "setpriv",
        "--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+setfcap",
        "--inh-caps=-all",
    ],
    "no new privileges": ["setpriv", "--no-new-privs"],
    "namespaces of an engine's": ["unshare", "--net", "--ipc", "--uts", "--pid", "--fork", "--mount-proc"],
    "no cgroups": ["unshare", "--mount", "sh", "-c", 'umount -l /sys/fs/cgroup && exec "$@"', "sh"],
}
#: Those in which none can start, and what says so.
REFUSED = {
    "a chroot": (
        ["unshare", "--mount", "sh", "-c", 'mount --rbind / /mnt && exec chroot /mnt "$@"', "sh"],
        "this is a chroot",
    ),
    "a user that is not mapped": (["unshare", "--user"], "user namespaces are forbidden here"),
    "no capabilities": (["setpriv", "--bounding-set=-all", "--inh-caps=-all"], "CAP_SETFCAP"),
    "another /proc": (["unshare", "--pid", "--fork"], "/proc is another PID namespace's"),
    "a read-only /proc": (
        ["unshare", "--mount", "sh", "-c", 'mount --bind -o ro /proc /proc && exec "$@"', "sh"],
        "/proc is mounted read-only here",
    ),
}


def said_within(surroundings: list[str]) -> dict[str, str]:
    """What is said of sandboxes of programs with low and with high limits within *surroundings*."""
    highest = {name: resource.getrlimit(number)[1] for name, number in NUMBERS.items()}
    each = {"low": LOWEST, "high": highest}
    pairs = {what: {name: (value, value) for name, value in limits.items()} for what, limits in each.items()}
    facts = json.dumps({"each": pairs, "numbers": NUMBERS})
    command = [*surroundings, sys.executable, "-c", _PRELUDE + EACH, str(TESTS), facts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.root
@pytest.mark.tool("bwrap")
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_within_others_a_sandbox_starts(surroundings: str) -> None:
    assert said_within(SURROUNDINGS[surroundings]) == dict.fromkeys(("low", "high"), "alive\n" * 3)


@pytest.mark.root
@pytest.mark.parametrize("surroundings", REFUSED)
def test_within_what_lets_none_start_one_line_says_why(surroundings: str) -> None:
    command, reason = REFUSED[surroundings]
    for said in said_within(command).values():
        assert reason in said
        assert said.count("\n") == 0


@pytest.mark.root
@pytest.mark.tool("bwrap")
def test_within_one_that_hides_a_part_of_proc_one_line_says_why_not() -> None:
    command = ["bwrap", "--dev-bind", "/", "/", "--proc", "/proc", "--unshare-all", sys.executable, "-c"]
    arguments = [str(TESTS), json.dumps({"limits": {}, "numbers": NUMBERS})]
    done = subprocess.run(
        [*command, _PRELUDE + ONCE, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said, _, _ = json.loads(done.stdout)
    # Older kernels let it be mounted all the same.
    assert said == "alive\n" * 3 or ("partly masked" in said and said.count("\n") == 0)


@pytest.mark.root
@pytest.mark.cgroup1("memory", "pids")
def test_in_a_container_with_less_than_the_ceilings_a_sandbox_has_what_there_is(tmp_path: Path) -> None:
    # As containers have it: a group of their own on top, with a limit.
    script = """
import os, subprocess, sys
for controller in ("memory", "pids"):
    own = f"/sys/fs/cgroup/{controller}/{sys.argv[1]}"
    open(f"{own}/cgroup.procs", "w").write("0")
    subprocess.run(["mount", "--bind", own, f"/sys/fs/cgroup/{controller}"], check=True)
from sandboxlib import Sandbox, SpecError
with Sandbox() as sandbox:
    stats = sandbox.stats()
    print(stats.memory.max, stats.pids.max, len(sandbox.plan().notes))
try:
    Sandbox(memory="1G").open()
except SpecError as error:
    print("memory_max" in str(error))
"""
    name = f"sandboxlib-test-{os.getpid()}"
    own = {"memory": ("memory.limit_in_bytes", 512 << 20), "pids": ("pids.max", 100)}
    try:
        for controller, (file, limit) in own.items():
            folder = Path("/sys/fs/cgroup", controller, name)
            folder.mkdir()
            (folder / file).write_text(str(limit))
        command = ["unshare", "--mount", sys.executable, "-c", script, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == (f"{512 << 20} 100 2\nTrue\n", "")
    finally:
        for controller in own:
            Path("/sys/fs/cgroup", controller, name).rmdir()


@pytest.mark.root
@pytest.mark.cgroup2("memory", "pids")
def test_below_a_group_with_less_than_the_ceilings_a_sandbox_has_what_there_is() -> None:
    script = """
import os, sys
own = [line.split("::")[1].strip() for line in open("/proc/self/cgroup") if line.startswith("0::")][0]
top = "/sys/fs/cgroup" + own
folder = f"{top}/limited"
os.mkdir(f"{top}/aside")
for pid in open(f"{top}/cgroup.procs").read().split():
    open(f"{top}/aside/cgroup.procs", "w").write(pid)
open(f"{top}/cgroup.subtree_control", "w").write("+memory +pids")
os.mkdir(folder)
open(f"{folder}/memory.max", "w").write(str(512 << 20))
open(f"{folder}/pids.max", "w").write("100")
os.environ["SANDBOXLIB_CGROUP"] = folder
from sandboxlib import Sandbox
with Sandbox() as sandbox:
    stats = sandbox.stats()
    print(json.dumps([stats.memory.max, stats.pids.max, len(sandbox.plan().notes)]))
open(f"{top}/cgroup.subtree_control", "w").write("-memory -pids")
os.rmdir(folder)
"""
    # In a group of its own, which goes with it.
    top = Path("/sys/fs/cgroup", f"sandboxlib-test-{os.getpid()}")
    top.mkdir()
    try:
        Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+memory +pids")
        enter = f'echo 0 > {top}/cgroup.procs; exec "$@"'
        command = ["sh", "-c", enter, "sh", sys.executable, "-c", _PRELUDE + script, str(TESTS), "{}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        memory, pids, notes = json.loads(done.stdout)
        assert (memory, pids) == (512 << 20, 100)
        assert notes >= 2
    finally:
        if (top / "aside").exists():
            (top / "aside").rmdir()
        top.rmdir()


# --- the ceiling without cgroups -------------------------------------------------------------------------

THREADS = """
import threading
go = threading.Event()
started = 0
try:
    while started < 600:
        thread = threading.Thread(target=go.wait, daemon=True)
        thread.start()
        started += 1
except RuntimeError:
    pass
go.set()
print(started)
"""


@pytest.mark.unprivileged
def test_without_a_cgroup_there_can_be_as_many_threads_as_processes() -> None:
    script = """
from sandboxlib import Sandbox
with Sandbox() as sandbox:
    done = sandbox.run([os.path.realpath(sys.executable), "-I", "-S", "-c", facts["threads"]])
    print(json.dumps([done.stdout.decode(), done.stderr.decode()[-500:], sandbox.plan().notes]))
"""
    started, said, _ = program("user", script, threads=THREADS)
    assert 450 <= int(started or 0) <= 512, said


@pytest.mark.unprivileged
def test_without_a_cgroup_a_memory_bomb_meets_a_ceiling_all_the_same() -> None:
    script = """
from sandboxlib import Sandbox
from sandboxlib.engine.current import program
bomb = "import mmap\\nb = []\\nwhile True: b.append(mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE))"
with Sandbox() as sandbox:
    done = sandbox.run([os.path.realpath(sys.executable), "-I", "-S", "-c", bomb], timeout=60)
    print(json.dumps([done.returncode, "ENOMEM" in done.stderr.decode() or "memory" in done.stderr.decode()]))
"""
    assert program("user", script) == [1, True]


@pytest.mark.unprivileged
@pytest.mark.tool("java")
def test_without_a_cgroup_java_starts_as_it_would_on_a_large_machine() -> None:
    # With 96 GiB a Java machine begins with a heap of 1.5 GiB.
    java = os.path.realpath(shutil.which("java") or "")
    home = str(Path(java).parents[1])
    script = """
from sandboxlib import Mount, Sandbox
with Sandbox() as sandbox:
    done = sandbox.run([facts["java"], "-Xms1536m", "-version"])
    print(json.dumps([done.returncode, done.stderr.decode()]))
"""
    code, said = program("user", script, java=java, home=home)
    assert code == 0, said
    assert "version" in said
