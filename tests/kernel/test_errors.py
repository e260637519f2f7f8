"""Whatever goes wrong, and wherever, is an error of the library's, which says what it was for."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from kernel.probe.outside import WHO, program

from sandboxlib import (
    AsyncSandbox,
    CGroup,
    Image,
    KernelError,
    Rootfs,
    Sandbox,
    SandboxError,
    StateError,
    Volume,
)

pytestmark = [pytest.mark.userns]

#: Each verb with less and less to open; what comes out is looked at.
SCARCE = """
import io, resource, tempfile, trio
import sandboxlib as s

place = tempfile.mkdtemp(prefix=f"sandboxlib-test-{os.getpid()}-")
os.environ["SANDBOXLIB_STATE_DIR"] = place
os.mkdir(f"{place}/tree")
open(f"{place}/tree/file", "w").close()
s.Image.from_rootfs(f"{place}/tree", name="kept")
s.Image.get("kept").save(f"{place}/archive.tar")

async def begun():
    async with s.AsyncSandbox() as sb:
        await sb.run(["true"])

def popen(sb):
    with sb.popen(["cat"], stdin=s.PIPE, stdout=s.PIPE) as process:
        process.stdin.close()
        process.wait()

def opened(value):
    value.open().close()

def start(_):
    with s.Sandbox() as sb:
        sb.run(["true"])

verbs = {
    "start": start,
    "run": lambda sb: sb.run(["true"]),
    "popen": popen,
    "tty": lambda sb: sb.popen(["true"], tty=True).wait(),
    "write": lambda sb: sb.files.write("/tmp/x", "x"),
    "read": lambda sb: sb.files.read("/tmp/x"),
    "list": lambda sb: sb.files.list("/tmp"),
    "copy_in": lambda sb: sb.files.copy_in(f"{place}/tree", "/tmp/tree"),
    "copy_out": lambda sb: sb.files.copy_out("/tmp/x", f"{place}/x"),
    "stats": lambda sb: sb.stats(),
    "processes": lambda sb: sb.processes(),
    "changes": lambda sb: sb.changes(),
    "plan": lambda sb: sb.plan(),
    "images": lambda _: s.Image.list(),
    "get": lambda _: s.Image.get("kept"),
    "load": lambda _: s.Image.load(f"{place}/archive.tar"),
    "save": lambda _: s.Image.get("kept").save(f"{place}/again.tar"),
    "from_rootfs": lambda _: s.Image.from_rootfs(f"{place}/tree", name="made"),
    "remove": lambda _: s.Image.remove("made"),
    "prune": lambda _: s.Image.prune(),
    "volumes": lambda _: s.Volume.list(),
    "namespace": lambda _: opened(s.Namespace("uts")),
    "rootfs": lambda _: opened(s.Rootfs.host()),
    "of": lambda _: s.Namespace.of(os.getpid(), "network"),
}
wrong, right = [], {}
with s.Sandbox() as live:
    # What is loaded only once is no part of it, but for trio, whose own needs are not ours to tell of.
    for verb in (*verbs.values(), lambda _: trio.run(begun)):
        verb(live)
    first = os.dup(0)
    os.close(first)
    for name, verb in verbs.items():
        if name == "remove":
            continue
        for room in (*range(30), 60, 400):
            resource.setrlimit(resource.RLIMIT_NOFILE, (first + room, 4096))
            try:
                verb(live)
            except s.SandboxError as error:
                right[name] = str(error)
                if isinstance(error, s.KernelError) and not error.step:
                    wrong.append([name, room, str(error)])
            except BaseException as error:
                wrong.append([name, room, repr(error)])
            else:
                break
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
        else:
            wrong.append([name, "never"])
import shutil
shutil.rmtree(place)
print(json.dumps([wrong, right]))
"""


@WHO
@pytest.mark.rlimit("nofile=4096")
def test_without_descriptors_each_verb_says_what_it_was_for(who: str) -> None:
    wrong, right = program(who, SCARCE)
    assert wrong == []
    # So that it was tried: whatever opens anything at all has failed once.
    assert {
        "start",
        "run",
        "popen",
        "write",
        "stats",
        "images",
        "load",
        "save",
        "from_rootfs",
    } <= right.keys()
    assert all("Too many open files" in text or "(RLIMIT_NOFILE)" in text for text in right.values()), right


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library's state would be, and is not."""
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def _started(**options: Any) -> None:
    with Sandbox(**options):
        pass


STATE: list[Callable[[Path], object]] = [
    lambda _: Image.list(),
    lambda _: Image.get("a"),
    lambda _: Image.remove("a"),
    lambda _: Image.prune(),
    lambda place: Image.load(str(place / "archive.tar")),
    lambda place: Image.from_rootfs(str(place / "tree"), name="a"),
    lambda _: Image.pull("127.0.0.1:1/a"),
    lambda _: _started(image="127.0.0.1:1/a"),
    lambda _: Rootfs.image("a").open(),
    lambda _: Volume.list(),
    lambda _: Volume.prune(),
    lambda _: Volume.remove("v"),
    lambda _: _started(mounts=[Volume("v").at("/tmp/v")]),
]


@pytest.mark.parametrize("verb", STATE)
@pytest.mark.parametrize(
    "in_place", ["a file", "a link to itself", "index.json is a folder", "volumes is a file"]
)
def test_a_place_for_state_that_is_none_is_told(
    place: Path, in_place: str, verb: Callable[[Path], object]
) -> None:
    state = place / "state"
    (place / "tree").mkdir()
    (place / "archive.tar").write_bytes(bytes(10240))
    if in_place == "a file":
        state.write_text("")
    elif in_place == "a link to itself":
        state.symlink_to("state")
    elif in_place == "volumes is a file":
        state.mkdir(0o700)
        (state / "volumes").write_text("")
        (state / "images").write_text("")
    else:
        Image.list()
        (state / "images/index.json").unlink(missing_ok=True)
        (state / "images/index.json").mkdir()
    try:
        verb(place)
        error = None
    except SandboxError as found:
        error = found
    if error is None:
        # Volumes have nothing to do with the index of images.
        assert in_place == "index.json is a folder"
    elif isinstance(error, KernelError):
        assert str(place) in str(error)
        assert error.step


# ---- after the end -----------------------------------------------------------------------------------


def _killed(sb: Sandbox | AsyncSandbox) -> None:
    """Kill its pid 1, and have it be a zombie whose status nobody has asked for."""
    assert sb._engine is not None
    pid = sb._engine.pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("closed", [True, False])
def test_what_a_sandbox_used_is_not_told_after_its_end(closed: bool) -> None:
    with Sandbox() as sb:
        if closed:
            sb.close()
        else:
            _killed(sb)
        with pytest.raises(StateError, match="the sandbox is closed" if closed else "the sandbox has ended"):
            sb.stats()


def test_nor_on_trio() -> None:
    async def main() -> None:
        async with AsyncSandbox() as sb:
            _killed(sb)
            with pytest.raises(StateError, match="the sandbox has ended"):
                await sb.stats()
        with pytest.raises(StateError, match="the sandbox is closed"):
            await sb.stats()

    trio.run(main)


@pytest.mark.cgroup("pids")
def test_a_group_that_is_closed_says_so() -> None:
    group = CGroup(pids_max=10).open()
    group.close()
    verbs: list[Callable[[], object]] = [
        lambda: group.add(os.getpid()),
        group.pids,
        group.stats,
        lambda: group.events,
        lambda: group.update(pids_max=5),
        group.freeze,
        group.thaw,
        group.kill,
    ]
    for verb in verbs:
        with pytest.raises(StateError, match="the cgroup is closed"):
            verb()
    group.close()


# ---- another user ------------------------------------------------------------------------------------

OTHER_USER = """
import sandboxlib as s
sb = s.Sandbox(memory="64M").open()
os.seteuid(1000)
said = []
for verb in (sb.close, lambda: sb.run(["true"]), sb.close):
    try:
        verb()
    except s.SandboxError as error:
        said.append([type(error).__name__, error.step if isinstance(error, s.KernelError) else str(error)])
        said[-1] += [note for note in getattr(error, "__notes__", ()) if "close(): " not in note]
os.seteuid(0)
sb.close()
sb.close()
print(json.dumps(said))
"""


@pytest.mark.root
@pytest.mark.cgroup("memory")
def test_who_is_another_user_by_now_is_told_what_could_not_be_removed_and_can_go_on_as_before() -> None:
    said = program("root", OTHER_USER)
    assert [each[1:] for each in said] == [["close()"], ["the sandbox is closed"], ["close()"]]
    assert {said[0][0], said[2][0]} == {"KernelPermissionError"}


def test_a_file_that_is_open_the_other_way_is_told_as_the_kernel_would(tmp_path: Path) -> None:
    (tmp_path / "read").touch()
    with (tmp_path / "read").open("rb") as target, Sandbox() as sandbox:
        with pytest.raises(KernelError, match="EBADF"):
            sandbox.export(target)
        assert sandbox.run(["true"]).returncode == 0
