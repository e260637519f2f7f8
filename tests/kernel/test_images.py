"""A sandbox begins with an image: its files, defaults and owners, and what is made of what it writes."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from sandboxlib import (
    AsyncImage,
    AsyncSandbox,
    Image,
    ImageError,
    Mount,
    Rootfs,
    Sandbox,
    Security,
    SpecError,
    StateError,
    UnsupportedError,
)

BUSYBOX = shutil.which("busybox") or ""
pytestmark = [pytest.mark.userns, pytest.mark.overlay, pytest.mark.tool("busybox")]
WHEN = "2026-01-02T03:04:05Z"
APPLETS = [
    "sh",
    "cat",
    "ls",
    "id",
    "env",
    "stat",
    "touch",
    "rm",
    "mkdir",
    "mv",
    "ln",
    "chmod",
    "sleep",
    "pwd",
    "find",
    "echo",
]
PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1000:\nextra:x:2000:app\n"


def rootfs(path: Path, *more: tuple[str, bytes, dict[str, Any]]) -> Path:
    """Write a tar with busybox, users, and *more* files: name, content, fields of TarInfo."""
    with tarfile.open(path, "w") as tar:

        def put(name: str, content: bytes = b"", **fields: Any) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))

        for folder in ("bin", "etc", "root", "home/app", "data"):
            put(folder, type=tarfile.DIRTYPE, mode=0o755)
        put("tmp", type=tarfile.DIRTYPE, mode=0o1777)
        put("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755)
        for applet in APPLETS:
            put(f"bin/{applet}", type=tarfile.SYMTYPE, linkname="busybox", mode=0o777)
        put("etc/passwd", PASSWD)
        put("etc/group", GROUP)
        put("home/app/own", b"mine", uid=1000, gid=1000, mode=0o600)
        put("etc/kept", b"as it was\n")
        for name, content, fields in more:
            put(name, content, **fields)
    return path


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own."""
    folder = tmp_path / "state"
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(folder))
    return folder


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """Where an overlay can write to: before Linux 6.6 a user's cannot do so in memory."""
    release = tuple(map(int, os.uname().release.split(".")[:2]))
    if os.geteuid() == 0 or release >= (6, 6):
        return "tmpfs"
    (tmp_path / "written").mkdir()
    return str(tmp_path / "written")


@pytest.fixture
def base(state: Path, tmp_path: Path) -> Image:
    """A small image."""
    config = {"Env": ["PATH=/bin", "GREETING=hello"], "Cmd": ["sh", "-c", "echo $GREETING"]}
    return Image.from_rootfs(rootfs(tmp_path / "rootfs.tar"), name="base:1", config=config, created=WHEN)


def derived(base: Image, name: str, **config: Any) -> Image:
    """The same files with another configuration."""
    with Sandbox(image=base) as sb:
        return sb.commit(name, config=config, created=WHEN)


# ---- files and defaults -----------------------------------------------------------------------------


def test_a_sandbox_has_the_files_of_its_image_and_nothing_of_the_host(base: Image) -> None:
    with Sandbox(image="base:1", hostname="inside") as sb:
        assert sb.sh("cat /etc/kept").stdout == b"as it was\n"
        found = set(sb.sh("ls -a /").stdout.decode().split()) - {".", ".."}
        assert found == {"bin", "data", "dev", "etc", "home", "proc", "root", "sys", "tmp"}
        assert set(sb.files.list("/etc")) == {"group", "hostname", "hosts", "kept", "passwd", "resolv.conf"}
        assert sb.files.read("/etc/resolv.conf") == b"# no name servers\n"
        assert sb.files.read("/etc/hostname") == b"inside\n"
        assert b"127.0.0.1 localhost inside" in sb.files.read("/etc/hosts")
        assert sb.changes() == []


def test_its_own_command_runs_where_none_is_given(base: Image) -> None:
    with Sandbox(image=base) as sb:
        assert sb.run().stdout == b"hello\n"
        assert sb.run(env={"GREETING": "other"}).stdout == b"other\n"
        with sb.popen() as process:
            assert process.wait(timeout=60) == 0
    with Sandbox(image=derived(base, "entry", Entrypoint=["echo"], Cmd=["a", "b"])) as sb:
        assert sb.run().stdout == b"a b\n"
    with Sandbox() as sb, pytest.raises(SpecError, match="no image that says what runs"):
        sb.run()


@pytest.mark.root
def test_the_configuration_is_honoured(base: Image) -> None:
    image = derived(base, "configured", User="app", WorkingDir="/data", StopSignal="SIGUSR1")
    assert image.config["User"] == "app"
    with Sandbox(image=image) as sb:
        assert sb.sh("id -u; id -g; id -G; pwd; echo $HOME $GREETING").stdout.decode().split() == [
            *("1000", "1000", "1000", "2000", "/data", "/home/app", "hello")
        ]
        script = "trap 'echo usr1; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
        with sb.popen(["sh", "-c", script], stdout=-1) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.terminate()
            assert process.stdout.readline() == b"usr1\n"
            assert process.wait(timeout=60) == 3
    # What the caller says comes first.
    with Sandbox(image=image, cwd="/", env={"GREETING": "bye"}, security=Security(user="0:0")) as sb:
        assert sb.sh("id -u; pwd; echo $GREETING").stdout.decode().split() == ["0", "/", "bye"]


@pytest.mark.root
def test_only_numbers_of_a_user_are_good_without_an_entry(base: Image) -> None:
    with Sandbox(image=derived(base, "numbers", User="1234:77")) as sb:
        assert sb.sh("id -u; id -g").stdout.split() == [b"1234", b"77"]
    with pytest.raises(ImageError, match="no user 'nobody-there'"):
        Sandbox(image=derived(base, "unknown", User="nobody-there")).open()
    with pytest.raises(ImageError, match="no group 'none'"):
        Sandbox(image=derived(base, "ungrouped", User="app:none")).open()


@pytest.mark.root
def test_files_have_their_owners_inside(base: Image) -> None:
    with Sandbox(image=base) as sb:
        found = sb.sh("stat -c '%u:%g %a' /home/app/own /etc/passwd /tmp").stdout.decode().splitlines()
        assert found == ["1000:1000 600", "0:0 644", "0:0 1777"]
        # Root inside has no capability: it is a user like others.
        assert sb.run(["cat", "/home/app/own"]).returncode == 1
    for user, status in (("1000:1000", 0), ("1001:1001", 1)):
        with Sandbox(image=base, security=Security(user=user)) as sb:
            assert sb.run(["cat", "/home/app/own"]).returncode == status


def test_a_volume_of_the_image_can_be_written_in_a_root_that_cannot(base: Image, storage: str) -> None:
    image = derived(base, "volume", Volumes={"/data": {}})
    with Sandbox(rootfs=Rootfs.image(image, readonly=True, storage=storage)) as sb:
        assert sb.sh("touch /data/x").returncode == 0
        assert sb.sh("touch /etc/x").returncode == 1
    with Sandbox(image=image) as sb:
        sb.files.write("/data/x", "in a volume")
        sb.files.write("/root/x", "not in one")
        made = sb.commit("with-volume")
    with Sandbox(image=made) as sb:
        assert not sb.files.exists("/data/x")
        assert sb.files.exists("/root/x")


def test_two_sandboxes_share_the_layers_and_not_what_they_write(base: Image, state: Path) -> None:
    with Sandbox(image=base) as one, Sandbox(image=base) as two:
        one.sh("echo changed > /etc/kept; touch /etc/new")
        assert two.sh("cat /etc/kept").stdout == b"as it was\n"
        assert not two.files.exists("/etc/new")
        changed = [(change.kind, change.path) for change in one.changes()]
        assert changed == [("modified", "/etc/kept"), ("added", "/etc/new")]
    assert len(list((state / "images" / "layers").glob("*/sha256-*"))) == 1
    with Sandbox(image=base) as sb:
        assert sb.sh("cat /etc/kept").stdout == b"as it was\n"


def test_a_plan_neither_pulls_nor_unpacks(base: Image, state: Path) -> None:
    assert "lowerdir" in str(Sandbox(image="base:1").plan())
    assert list((state / "images" / "layers").glob("*/sha256-*")) == []
    with pytest.raises(ImageError, match="pull it first"):
        Sandbox(image="missing:1").plan()
    with pytest.raises(ImageError, match="no such image"):
        Sandbox(image="sha256:" + "0" * 64).open()


def test_the_tree_opens_alone(base: Image, storage: str) -> None:
    with Rootfs.image("base:1", storage=storage).open() as tree:
        assert Path(tree.path, "etc/kept").read_bytes() == b"as it was\n"
        assert tree.changes() == []
        Path(tree.path, "etc/new").write_text("new")
        assert [(change.kind, change.path) for change in tree.changes()] == [("added", "/etc/new")]
        with pytest.raises(StateError, match="use"):
            Image.remove("base:1")
    Image.remove("base:1")


def test_on_the_hosts_network_it_asks_the_hosts_name_servers(base: Image) -> None:
    own = Path("/etc/resolv.conf")
    wanted = own.read_bytes() if own.exists() else b"# no name servers\n"
    for sandbox in (Sandbox(image=base, network="host"), Sandbox(network="host")):
        with sandbox as sb:
            assert sb.files.read("/etc/resolv.conf") == wanted
            assert sb.changes() == []
            assert sb.run(["/bin/sh", "-c", "echo x > /etc/resolv.conf"]).returncode != 0 or not own.exists()
    assert not own.exists() or own.read_bytes() == wanted


@pytest.mark.kernel("6.7")
def test_more_than_a_hundred_layers(state: Path, tmp_path: Path) -> None:
    from sandboxlib.engine.image import own_store

    from images import put
    from layers import file, folder, layer

    plain = [layer(folder(b"d/"), file(b"d/%d" % number, b"%d" % number)) for number in range(129)]
    base = rootfs(tmp_path / "rootfs.tar").read_bytes()
    image = put(own_store(), "docker.io/library/deep:latest", [base, *plain], config={"Env": ["PATH=/bin"]})
    with Sandbox(image="deep") as sb:
        assert sb.sh("ls /d | wc -l").returncode in (0, 127)
        assert len(sb.files.list("/d")) == 129
        assert sb.files.read("/d/128") == b"128"
    assert image.size


def test_many_layers(base: Image) -> None:
    image = base
    for number in range(12):
        with Sandbox(image=image) as sb:
            sb.files.write(f"/data/{number}", str(number))
            image = sb.commit("many")
    assert len(image.layers) == 13
    with Sandbox(image="many") as sb:
        assert sorted(map(int, sb.files.list("/data"))) == list(range(12))


# ---- the store --------------------------------------------------------------------------------------


def test_names_come_and_go(base: Image) -> None:
    assert [image.reference for image in Image.list()] == ["docker.io/library/base:1"]
    again = base.tag("other/name:2")
    assert again == base
    assert Image.get("other/name:2").digest == base.digest
    assert Image.get(base.digest) == Image.get("base:1") == base
    Image.remove("base:1")
    with pytest.raises(ImageError, match="no such image"):
        Image.get("base:1")
    assert Image.get("other/name:2") == base
    Image.remove("other/name:2")
    assert Image.list() == []
    with pytest.raises(ImageError, match="no such image"):
        Image.remove("other/name:2")


def test_what_a_sandbox_uses_is_not_taken_away(base: Image) -> None:
    with Sandbox(image=base) as sb:
        with pytest.raises(StateError, match="use"):
            Image.remove("base:1")
        assert Image.prune(all=True).images == 0
        assert sb.sh("cat /etc/kept").stdout == b"as it was\n"
    gone = Image.prune(all=True)
    assert (gone.images, gone.layers) == (1, 1)
    assert gone.bytes > 100_000
    assert Image.list() == []


def test_what_is_known_of_an_image(base: Image) -> None:
    assert base.created == WHEN
    assert base.config["Cmd"] == ["sh", "-c", "echo $GREETING"]
    assert [step.created_by for step in base.history] == ["from rootfs.tar"]
    assert len(base.layers) == 1
    assert base.size == base.layers[0].size
    with pytest.raises(TypeError):
        base.config["Cmd"] = []  # type: ignore[index]


def test_an_image_is_the_same_to_the_byte_for_the_same_content(base: Image, tmp_path: Path) -> None:
    again = Image.from_rootfs(
        rootfs(tmp_path / "rootfs.tar"),
        name="again",
        config={"Env": ["PATH=/bin", "GREETING=hello"], "Cmd": ["sh", "-c", "echo $GREETING"]},
        created=WHEN,
    )
    assert again.digest == base.digest


def test_a_folder_becomes_an_image(state: Path, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    (top / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, top / "bin/busybox")
    (top / "bin/sh").symlink_to("busybox")
    (top / "empty").mkdir()
    os.link(top / "bin/busybox", top / "bin/cat")
    image = Image.from_rootfs(top, name="folder", created=WHEN)
    with Sandbox(image=image) as sb:
        assert sb.sh("echo *").stdout.split() == [b"bin", b"dev", b"empty", b"etc", b"proc", b"sys"]
        assert sb.files.stat("/bin/cat").st_ino == sb.files.stat("/bin/busybox").st_ino
        assert sb.files.stat("/bin").st_uid == 0
    assert Image.from_rootfs(top, name="again", created=WHEN).digest == image.digest


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"name": "UPPER"}, "lower-case"),
        ({"config": {"Comand": []}}, "one of"),
        ({"config": {"Cmd": "sh"}}, "configuration"),
        ({"created": "yesterday"}, "a time such as"),
        ({"platform": "nonsense"}, "platform"),
        ({"source": "/nowhere"}, "a path that exists"),
    ],
)
def test_bad_input_makes_nothing(state: Path, tmp_path: Path, arguments: dict[str, Any], match: str) -> None:
    source = arguments.pop("source", rootfs(tmp_path / "rootfs.tar"))
    with pytest.raises(SpecError, match=match):
        Image.from_rootfs(source, **{"name": "base", **arguments})
    assert not (state / "images" / "blobs").exists() or Image.list() == []


def test_what_is_no_tar_is_refused(state: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no tar file" * 100)
    with pytest.raises(ImageError, match="no tar file"):
        Image.from_rootfs(tmp_path / "text", name="text")
    assert Image.list() == []


# ---- commit and export ------------------------------------------------------------------------------

CHANGES = """
echo new > /etc/new; echo changed > /etc/kept; rm /home/app/own; chmod 700 /data
rm -r /home/app; mkdir /home/app; echo in > /home/app/fresh
ln /etc/new /etc/linked; ln -s new /etc/pointer; touch '/root/a b'; mkdir -p /root/x/y
"""


def test_a_commit_has_exactly_the_changes(base: Image, state: Path) -> None:
    with Sandbox(image=base, mounts=[Mount.tmpfs("/mounted/here")]) as sb:
        assert sb.sh(CHANGES).returncode == 0
        sb.files.write("/mounted/here/lost", "in a mount")
        image = sb.commit("base:2", message="why", author="who", created=WHEN)
        assert sb.sh("echo still alive").returncode == 0
    assert [step.comment for step in image.history] == ["", "why"]
    assert image.layers[0] == base.layers[0]
    assert image.config == base.config
    blob = state / "images/blobs/sha256" / image.layers[1].digest.partition(":")[2]
    with tarfile.open(blob) as tar:
        found = {member.name: member for member in tar}
    files = {name for name, member in found.items() if not member.isdir()}
    assert files == {
        *("etc/new", "etc/linked", "etc/kept", "etc/pointer", "root/a b"),
        *("home/app/.wh..wh..opq", "home/app/fresh"),
    }
    assert found["data"].mode == 0o700
    assert found["etc/new"].islnk() or found["etc/linked"].islnk()
    assert all((member.uid, member.uname) == (0, "") for member in found.values())
    with Sandbox(image="base:2") as sb:
        assert sb.sh("cat /etc/new /etc/kept /home/app/*").stdout == b"new\nchanged\nin\n"
        assert not sb.files.exists("/home/app/own")
        assert not sb.files.exists("/mounted")
        assert sb.files.stat("/etc/new").st_ino == sb.files.stat("/etc/linked").st_ino
        assert sb.files.stat("/data").st_mode & 0o7777 == 0o700


@pytest.mark.root
def test_owners_of_changes_are_those_inside(base: Image, state: Path, tmp_path: Path) -> None:
    with Sandbox(image=base, security=Security(capabilities=["CAP_CHOWN"])) as sb:
        assert sb.sh("echo x > /etc/new; chown 1000:2000 /etc/new /data").returncode == 0
        image = sb.commit("owned")
        sb.export(tmp_path / "tree.tar")
    blob = state / "images/blobs/sha256" / image.layers[1].digest.partition(":")[2]
    for archive in (blob, tmp_path / "tree.tar"):
        with tarfile.open(archive) as tar:
            owners = {member.name: (member.uid, member.gid) for member in tar}
        assert (owners["etc/new"], owners["data"], owners["etc"]) == ((1000, 2000), (1000, 2000), (0, 0))
    with Sandbox(image=image) as sb:
        assert sb.sh("stat -c %u:%g /etc/new /data").stdout.split() == [b"1000:2000"] * 2


def test_the_same_changes_are_the_same_image(base: Image) -> None:
    made = []
    for name in ("one", "two"):
        with Sandbox(image=base) as sb:
            sb.sh("echo same > /etc/new; rm /etc/kept; touch -d '2026-01-01 00:00:00' /etc/new /etc")
            made.append(sb.commit(name, created=WHEN))
    assert made[0].digest == made[1].digest
    assert made[0].digest != base.digest


def test_what_cannot_be_committed_is_refused(base: Image) -> None:
    with Sandbox() as sb, pytest.raises(UnsupportedError, match="image"):
        sb.commit("from-the-host")
    with Sandbox(image=base) as sb:
        with pytest.raises(SpecError, match="name"):
            sb.commit("UPPER")
        with pytest.raises(SpecError, match="one of"):
            sb.commit("fine", config={"Nonsense": 1})
        with pytest.raises(SpecError, match="created"):
            sb.commit("fine", created="now")
    assert [image.reference for image in Image.list()] == ["docker.io/library/base:1"]


def test_an_export_is_the_whole_tree(base: Image, tmp_path: Path) -> None:
    with Sandbox(image=base, mounts=[Mount.tmpfs("/mounted")]) as sb:
        sb.sh("echo new > /etc/new; rm /etc/kept")
        sb.files.write("/mounted/lost", "in a mount")
        sb.export(tmp_path / "tree.tar")
        whole = io.BytesIO()
        sb.export(whole)
    assert whole.getvalue() == (tmp_path / "tree.tar").read_bytes()
    with tarfile.open(tmp_path / "tree.tar") as tar:
        members = {member.name: member for member in tar}
    names = set(members)
    assert {"etc/new", "bin/busybox", "home/app/own", "mounted"} <= names
    assert not {"etc/kept", "mounted/lost"} & names
    assert not any(name.startswith(("proc/", "dev/", "sys/")) for name in names)
    if os.geteuid() == 0:
        assert (members["home/app/own"].uid, members["home/app/own"].mode) == (1000, 0o600)
    again = Image.from_rootfs(tmp_path / "tree.tar", name="again", config={"Env": ["PATH=/bin"]})
    with Sandbox(image=again) as sb:
        assert sb.sh("cat /etc/new").stdout == b"new\n"


# ---- without root -----------------------------------------------------------------------------------

SCRIPT = """
import os, sys
os.environ["SANDBOXLIB_STATE_DIR"] = sys.argv[2]
from sandboxlib import Image, Sandbox
image = Image.from_rootfs(sys.argv[1], name="base", config={"Env": ["PATH=/bin"]})
with Sandbox(image="base") as sb:
    print(sb.sh("stat -c '%u:%g' /home/app/own /etc/kept").stdout.decode().split())
    assert sb.sh("echo new > /etc/new; rm /etc/kept; rm -r /home/app; mkdir /home/app").returncode == 0
    made = sb.commit("base:2")
    assert [(each.kind, each.path) for each in sb.changes()] == [
        ("deleted", "/etc/kept"), ("added", "/etc/new"), ("deleted", "/home/app/own"),
    ]
    sb.export(os.path.expanduser("~/tree.tar"))
with Sandbox(image=made) as sb:
    assert sb.sh("cat /etc/new").stdout == b"new\\n"
    assert not sb.files.exists("/etc/kept")
    assert sb.sh("ls -a /home/app").stdout.split() == [b".", b".."]
print(Image.prune(all=True).images)
for folder, folders, files in os.walk(sys.argv[2] + "/images/layers"):
    assert files in ([], ["owner.json"]), (folder, files)
"""


@pytest.mark.unprivileged
@pytest.mark.parametrize("subids", [pytest.param(True, marks=pytest.mark.subids), False])
def test_a_plain_user_has_images_too(
    as_user: Callable[..., CompletedProcess[str]], tmp_path: Path, subids: bool
) -> None:
    archive = rootfs(tmp_path / "rootfs.tar")
    for folder in (tmp_path, *tmp_path.parents):
        if os.stat(folder).st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    # Not in the user's home, which may be in memory: old kernels keep no overlay there.
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    done = as_user(SCRIPT, str(archive), str(state), subids=subids, timeout=300)
    owners, pruned = done.stdout.splitlines()
    # Who has but one ID has all files.
    if os.geteuid() == 0:
        assert owners == ("['1000:1000', '0:0']" if subids else "['0:0', '0:0']")
    assert pruned == "2"


# ---- trio -------------------------------------------------------------------------------------------


async def test_images_under_trio(state: Path, tmp_path: Path) -> None:
    image = await AsyncImage.from_rootfs(
        rootfs(tmp_path / "rootfs.tar"), name="base", config={"Env": ["PATH=/bin"], "Cmd": ["echo", "hi"]}
    )
    async with AsyncSandbox(image="base") as sb:
        assert (await sb.run()).stdout == b"hi\n"
        assert sb.image == image
        await sb.sh("echo new > /etc/new")
        made = await sb.commit("base:2")
        assert isinstance(made, AsyncImage)
        await sb.export(tmp_path / "tree.tar")
    assert len(await AsyncImage.list()) == 2
    async with AsyncSandbox(image=made) as sb:
        assert await sb.files.read("/etc/new") == b"new\n"
    assert (await AsyncImage.get("base:2")) == made
    await AsyncImage.remove("base:2")
    assert (await AsyncImage.prune(all=True)).images == 1


# ---- from a shell -----------------------------------------------------------------------------------


@pytest.fixture
def shell(state: Path) -> Callable[..., CompletedProcess[bytes]]:
    """Run the command line with this store."""
    import subprocess

    def run(*words: str, status: int = 0) -> CompletedProcess[bytes]:
        done = subprocess.run([sys.executable, "-m", "sandboxlib", *words], capture_output=True, check=False)
        assert done.returncode == status, done
        return done

    return run


def test_the_command_line(base: Image, shell: Callable[..., CompletedProcess[bytes]], tmp_path: Path) -> None:
    assert shell("run", "--image", "base:1").stdout == b"hello\n"
    assert shell("run", "--image", "base:1", "--", "cat", "/etc/kept").stdout == b"as it was\n"
    assert b"base:1" in shell("images").stdout
    assert json.loads(shell("images", "--json").stdout)[0]["digest"] == base.digest
    assert json.loads(shell("inspect", "base:1").stdout)["config"]["Cmd"] == list(base.config["Cmd"])
    shell("tag", "base:1", "other:2")
    committed = shell("commit", "-m", "why", "base:1", "base:2", "--", "sh", "-c", "echo x > /x").stdout
    assert committed.decode().strip() == Image.get("base:2").digest
    assert b"sandboxlib commit" in shell("history", "base:2").stdout
    shell("commit", "base:1", "base:3", "--", "sh", "-c", "exit 4", status=4)
    shell("rmi", "base:2", "other:2")
    shell("rmi", "base:2", status=125)
    assert shell("run", "--image", "nothing here", status=125).stderr.startswith(
        b"sandboxlib: 'image' must be"
    )
    assert shell("prune", "--all").stdout.startswith(b"removed ")
    assert Image.list() == []


def test_an_entry_point_comes_first_as_in_docker(
    base: Image, shell: Callable[..., CompletedProcess[bytes]]
) -> None:
    derived(base, "entry", Entrypoint=["echo", "entry"], Cmd=["default"])
    assert shell("run", "--image", "entry").stdout == b"entry default\n"
    assert shell("run", "--image", "entry", "given").stdout == b"entry given\n"
    assert shell("run", "--image", "entry", "--entrypoint", "", "echo", "alone").stdout == b"alone\n"
    shell("run", "--entrypoint", "sh", "true", status=125)
