"""Named volumes: they outlive sandboxes, are shared, and cannot be taken away under one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sandboxlib import KernelError, Sandbox, Security, SpecError, StateError, UnsupportedError, Volume

import users

pytestmark = pytest.mark.userns


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Volume]:
    """A volume that nobody else has; root's lie in one place for all programs."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    volume = Volume(f"test-{os.getpid()}-{os.urandom(4).hex()}")
    yield volume
    if Path(volume.path).exists():
        Volume.remove(volume.name)


def mapped(volume: Volume) -> bool:
    """Can the file system that volumes are on be ID-mapped? Where not, a start says so."""
    problem = None
    try:
        with Sandbox(mounts=[volume.at("/v")]):
            pass
    except KernelError as error:
        problem = error
    if problem is not None:
        assert problem.call.startswith("mount_setattr"), problem
        assert "does not support ID-mapped mounts" in problem.hint
    return problem is None


def test_it_outlives_its_sandbox(volume: Volume) -> None:
    assert not Path(volume.path).exists()
    if not mapped(volume):
        return
    with Sandbox(mounts=[volume.at("/v/deep")]) as sb:
        assert sb.sh("echo kept > /v/deep/file").returncode == 0
    with Sandbox(mounts=[volume.at("/other")]) as sb:
        assert sb.run(["cat", "/other/file"]).stdout == b"kept\n"
        # On disk it belongs to whoever made it, not to a number that another sandbox may have tomorrow.
        assert Path(volume.path, "file").stat().st_uid == os.geteuid()
        assert sb.files.stat("/other/file").st_uid == 0


def test_two_sandboxes_share_one(volume: Volume) -> None:
    if not mapped(volume):
        return
    with (
        Sandbox(mounts=[volume.at("/a")]) as first,
        Sandbox(mounts=[volume.at("/b", readonly=True)]) as second,
    ):
        first.sh("echo 1 > /a/x; chmod 600 /a/x")
        assert second.sh("cat /b/x; stat -c %u:%g /b/x").stdout == b"1\n0:0\n"
        assert b"Read-only" in second.sh("echo 2 > /b/x").stderr


@pytest.mark.root
def test_a_new_one_belongs_to_the_sandboxs_user(volume: Volume) -> None:
    if not mapped(volume):
        return
    Volume.remove(volume.name)
    with Sandbox(mounts=[volume.at("/v")], security=Security(user="1000:1001")) as sb:
        assert sb.sh("echo 1 > /v/x; stat -c %u:%g /v /v/x").stdout.split() == [b"1000:1001"] * 2
    with Sandbox(mounts=[volume.at("/v")]) as sb:
        assert sb.sh("stat -c %u:%g /v").stdout == b"1000:1001\n"


def test_nothing_on_it_gains_rights_outside(volume: Volume) -> None:
    if not mapped(volume):
        return
    with Sandbox(mounts=[volume.at("/v")]) as sb:
        lines = sb.run(["sh", "-c", "cat /proc/$$/mounts"], text=True).stdout.splitlines()
        options = next(line.split()[3].split(",") for line in lines if line.split()[1] == "/v")
        assert {"nosuid", "nodev"} <= set(options)
    # Only its owner gets as far as the folders of volumes.
    assert Path(volume.path).parent.stat().st_mode & 0o077 == 0
    assert Path(volume.path).parent.parent.stat().st_mode & 0o077 == 0


def test_one_in_use_is_not_removed(volume: Volume) -> None:
    if not mapped(volume):
        return
    with Sandbox(mounts=[volume.at("/v")]) as sb:
        with pytest.raises(StateError, match="in use"):
            Volume.remove(volume.name)
        sb.sh("echo > /v/x")
        assert volume.name in [found.name for found in Volume.list()]
    Volume.remove(volume.name)
    assert volume.name not in [found.name for found in Volume.list()]
    assert not Path(volume.path).exists()
    with pytest.raises(StateError, match="no volume"):
        Volume.remove(volume.name)


HOLD = """
import sys
from sandboxlib import Sandbox, Volume
with Sandbox(mounts=[Volume(sys.argv[1]).at("/v")]) as sb:
    sb.sh("echo > /v/x")
    print("open", flush=True)
    sys.stdin.read()
"""


def test_another_programs_use_counts_until_it_is_killed(volume: Volume) -> None:
    if not mapped(volume):
        return
    environment = {**os.environ, "PYTHONPATH": str(users.CHECKOUT)}
    command = [sys.executable, "-c", HOLD, volume.name]
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=environment) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"open\n"
        with pytest.raises(StateError, match="in use"):
            Volume.remove(volume.name)
        program.kill()
    Volume.remove(volume.name)
    # What else it left goes when the next program starts.
    subprocess.run(
        [sys.executable, "-c", "import sandboxlib; sandboxlib.run(['true'])"], env=environment, check=True
    )
    assert not Path(volume.path).exists()


def test_what_a_sandbox_leaves_in_one_is_removed(volume: Volume) -> None:
    if not mapped(volume):
        return
    with Sandbox(mounts=[volume.at("/v")]) as sb:
        sb.sh("cd /v; mkdir -p a/b; seq 300 | xargs touch; ln -s /etc link; mkfifo fifo; chmod 0 a/b a")
        sb.run(
            [
                "python3",
                "-c",
                "import os\nos.chdir('/v')\nfor _ in range(1500): os.mkdir('deep'); os.chdir('deep')",
            ]
        )
    before = set(os.listdir(Path(volume.path).parent))
    Volume.remove(volume.name)
    assert set(os.listdir(Path(volume.path).parent)) == before - {volume.name}


def test_a_link_in_its_place_is_refused(volume: Volume, tmp_path: Path) -> None:
    Path(volume.path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    Path(volume.path).symlink_to(tmp_path)
    try:
        with pytest.raises(KernelError), Sandbox(mounts=[volume.at("/v")]):
            pass
    finally:
        Path(volume.path).unlink()


def test_a_size_that_nobody_holds_is_refused_before_anything_is_made(volume: Volume) -> None:
    with (
        pytest.raises(UnsupportedError, match="size"),
        Sandbox(mounts=[Volume(volume.name, size="1M").at("/v")]),
    ):
        pass
    assert not Path(volume.path).exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a\0b"])
def test_a_name_that_leads_elsewhere_is_none(name: str) -> None:
    with pytest.raises(SpecError, match="name"):
        Volume.remove(name)


USER = """
import os
from sandboxlib import Sandbox, Security, Volume
assert Volume("mine").path == os.environ["HOME"] + "/.local/share/sandboxlib/volumes/mine"
assert Volume.list() == () and Volume.prune() == ()
user = {user!r}
with Sandbox(mounts=[Volume("mine").at("/v"), Volume("other").at("/w")], security=Security(user=user)) as sb:
    done = sb.sh("cd /v; mkdir -p -m 700 a/b; echo 1 > a/b/c; chmod 0 a/b; stat -c %u /v /v/a")
    print(done.stdout, done.stderr)
    print([volume.name for volume in Volume.list()], Volume.prune())
with Sandbox(mounts=[Volume("mine").at("/v")]) as sb:
    print(sb.files.read("/v/a/b/c"), Volume.prune())
print(Volume.prune(), Volume.list(), os.listdir(os.path.dirname(Volume("mine").path)))
"""


@pytest.mark.unprivileged
@pytest.mark.parametrize("user", [None, pytest.param(1000, marks=pytest.mark.subids)])
def test_a_user_has_volumes_too(
    as_user: Callable[..., CompletedProcess[str]], tmp_path: Path, user: int | None
) -> None:
    environment = {"PYTHONPATH": str(users.CHECKOUT)}
    if os.geteuid():
        environment |= {"HOME": str(tmp_path), "XDG_DATA_HOME": ""}
    done = as_user(USER.format(user=user), subids=user is not None, env=environment)
    owner = user or 0
    assert done.stdout.splitlines() == [
        f"b'{owner}\\n{owner}\\n' b''",
        "['mine', 'other'] ()",
        "b'1\\n' ('other',)",
        "('mine',) () []",
    ]
