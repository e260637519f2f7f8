"""Odd images are in a sandbox what they are, and stay so through commit and export."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import oddities
import pytest
from oddities import Tree, difference, expected, of_tar

from sandboxlib import AsyncSandbox, Image, ImageError, Mount, Rootfs, Sandbox, Security, UnsupportedError
from sandboxlib.engine.image import own_store

import layers
import users
from images import put
from layers import base256, file, folder, symlink

pytestmark = [pytest.mark.userns, pytest.mark.overlay, pytest.mark.tool("busybox")]
pytestmark += [pytest.mark.root]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own."""
    place = tmp_path / "state"
    monkeypatch.setenv("SANDBOXLIB_STATE_DIR", str(place))
    return place


def image(entries: bytes = b"", *, etc: bytes = b"", name: str = "odd", **config: Any) -> str:
    """An image of a small system and *entries*."""
    put(
        own_store(),
        f"docker.io/library/{name}:latest",
        [layers.layer(oddities.busybox(etc) + entries)],
        config=config,
    )
    return name


def exported(sb: Sandbox) -> Tree:
    """The tree that a sandbox exports."""
    raw = io.BytesIO()
    sb.export(raw)
    return of_tar(raw.getvalue())


def where(how: str, tmp_path: Path) -> dict[str, Any]:
    """How the layers are laid over each other."""
    if how == "memory":
        return {}
    (tmp_path / "storage").mkdir(exist_ok=True)
    return {"storage": str(tmp_path / "storage"), "driver": "copy" if how == "copy" else "overlay"}


# ---- file by file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["memory", "disk", "copy"])
def test_a_tree_is_the_same_inside_in_changes_and_in_an_export(tmp_path: Path, how: str) -> None:
    put(own_store(), "docker.io/library/odd:latest", oddities.odd_layers(devices=True))
    with Sandbox(rootfs=Rootfs.image("odd", **where(how, tmp_path))) as sb:
        assert sb.changes() == []
        found = exported(sb)
        assert difference(found, expected()) == []
        # The same, by who asks inside.
        for path, (kind, mode, uid, gid, mtime, _, _) in expected().items():
            if kind == "link" or path in ("proc", "bin/busybox"):
                continue
            state = sb.files.stat(f"/{path}")
            seen = (state.st_mode & 0o7777, state.st_uid, state.st_gid, state.st_mtime_ns // 10**9 * 10**9)
            assert seen == (mode, uid, gid, mtime), path
        assert sb.changes() == []


@pytest.mark.parametrize("disk", [False, True])
def test_a_commit_keeps_what_it_does_not_change(tmp_path: Path, disk: bool) -> None:
    put(own_store(), "docker.io/library/odd:latest", oddities.odd_layers())
    with Sandbox(rootfs=Rootfs.image("odd", **where("disk" if disk else "memory", tmp_path))) as sb:
        sb.files.write("/big/new", "x")
        sb.commit("odd:2")

    def changed(tree: Tree) -> None:
        tree["big/new"] = ("file", 0o644, 0, 0, 0, b"x", {})
        tree["big"] = (*tree["big"][:4], 0, *tree["big"][5:])

    with Sandbox(image="odd:2") as sb:
        assert sb.changes() == []
        found = exported(sb)
    for path in ("big/new", "big"):
        found[path] = (*found[path][:4], 0, *found[path][5:])
    assert difference(found, expected(changed)) == []
    # And by way of an export, into an image of one layer.
    with Sandbox(image="odd") as sb:
        raw = io.BytesIO()
        sb.export(raw)
    raw.seek(0)
    Image.from_rootfs(raw, name="again")
    with Sandbox(image="again") as sb:
        assert difference(exported(sb), expected()) == []


def test_what_a_sandbox_changes_of_the_root_is_committed() -> None:
    image()
    with Sandbox(image="odd", security=Security(capabilities=["CAP_CHOWN", "CAP_FOWNER"])) as sb:
        assert sb.sh("chmod 705 / && chown 8:9 /").returncode == 0
        assert [(each.kind, each.path) for each in sb.changes()] == [("modified", "/")]
        sb.commit("odd:2")
    with Sandbox(image="odd:2") as sb:
        state = sb.files.stat("/")
        assert (state.st_mode & 0o7777, state.st_uid, state.st_gid) == (0o705, 8, 9)


def test_files_of_the_sandboxs_own_are_mounted_and_no_part_of_the_tree() -> None:
    own = file(b"etc/hosts", b"the image's\n", mode=0o600, uid=3) + symlink(b"etc/hostname", b"../name")
    image(own + file(b"name", b"of the image"))
    with Sandbox(image="odd", hostname="inside", security=Security(capabilities=["CAP_DAC_OVERRIDE"])) as sb:
        assert b"127.0.0.1 localhost inside" in sb.files.read("/etc/hosts")
        assert sb.files.read("/etc/hostname") == b"inside\n"
        assert sb.sh("echo 10.0.0.1 other >> /etc/hosts; cat /etc/hosts").stdout.endswith(b"10.0.0.1 other\n")
        assert sb.sh("rm /etc/resolv.conf").returncode != 0
        assert sb.sh("echo x > /etc/mine").returncode == 0
        assert [(each.kind, each.path) for each in sb.changes()] == [("added", "/etc/mine")]
        sb.commit("odd:2")
        found = exported(sb)
    assert found["etc/hosts"][:4] == ("file", 0o600, 3, 0)
    assert found["etc/hosts"][5] == b"the image's\n"
    assert found["name"][5] == b"of the image"
    assert not {"etc/resolv.conf", "dev", "sys"} & found.keys()
    with Sandbox(image="odd:2") as sb:
        assert exported(sb) == found
        assert sb.files.read("/etc/mine") == b"x\n"


def test_what_is_made_to_mount_on_changes_no_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "file").write_text("of the host")
    image(folder(b"srv", 0o710, uid=3, mtime=77) + symlink(b"var", b"srv"))
    mounts = [
        Mount.tmpfs("/srv/scratch/deep"),
        Mount.bind(tmp_path / "data", "/var/data"),
        Mount.bind(tmp_path / "file", "/srv/file"),
    ]
    with Sandbox(image="odd", mounts=mounts) as sb:
        assert sb.files.read("/srv/file") == b"of the host"
        state = sb.files.stat("/srv")
        assert (state.st_mode & 0o7777, state.st_uid, state.st_mtime_ns) == (0o710, 3, 77 * 10**9)
        assert sb.files.stat("/").st_mtime_ns == 1111 * 10**9
        assert sb.changes() == []
        sb.commit("odd:2")
        found = exported(sb)
    # Seen as what they are inside: nothing.
    assert found["srv"][:5] == ("folder", 0o710, 3, 0, 77 * 10**9)
    with Sandbox(image="odd:2") as sb:
        assert sb.files.list("/srv") == []


@pytest.mark.parametrize("readonly", [False, True])
def test_an_overlay_of_folders_has_the_root_of_the_topmost(tmp_path: Path, readonly: bool) -> None:
    top, below = tmp_path / "top", tmp_path / "below"
    for place, mode, uid in ((top, 0o750, 70), (below, 0o700, 80)):
        (place / "etc").mkdir(parents=True)
        os.chown(place, uid, uid)
        place.chmod(mode)
        os.utime(place, ns=(5, 5_000_000_007))
    with Sandbox(rootfs=Rootfs.overlay([top, below], readonly=readonly)) as sb:
        state = sb.files.stat("/")
        assert (state.st_mode & 0o7777, state.st_uid, state.st_gid) == (0o750, 70, 70)
        assert state.st_mtime_ns == 5_000_000_007
        assert sb.changes() == []
    with Rootfs.overlay([top, below]).open() as tree:
        state = os.stat(tree.path)
        assert (state.st_mode & 0o7777, state.st_uid, state.st_mtime_ns) == (0o750, 70, 5_000_000_007)
        assert sorted(os.listdir(tree.path)) == ["etc"]


# ---- links where folders are expected ---------------------------------------------------------------

ETC = folder(b"usr/etc", 0o701, uid=9, mtime=77) + file(b"usr/etc/passwd", b"app:x:1234:5::/:/bin/sh\n")


@pytest.mark.parametrize("how", ["memory", "copy"])
@pytest.mark.parametrize("target", [b"usr/etc", b"/usr/etc", b"../../usr/etc", b"usr/../usr/etc/"])
def test_an_etc_that_is_a_link_leads_to_the_images_own(tmp_path: Path, target: bytes, how: str) -> None:
    image(etc=ETC + symlink(b"etc", target, mtime=99), User="app")
    with Sandbox(rootfs=Rootfs.image("odd", **where(how, tmp_path)), hostname="inside") as sb:
        assert sb.run(["/bin/id", "-u"]).stdout == b"1234\n"
        assert sb.files.read("/etc/hostname") == sb.files.read("/usr/etc/hostname") == b"inside\n"
        state = sb.files.stat("/usr/etc")
        assert (state.st_mode & 0o7777, state.st_uid, state.st_mtime_ns) == (0o701, 9, 77 * 10**9)
        assert sb.changes() == []
        found = exported(sb)
    assert found["etc"] == ("link", 0o777, 0, 0, 99 * 10**9, target, {})
    assert sorted(path for path in found if path.startswith("usr/")) == ["usr/etc", "usr/etc/passwd"]


@pytest.mark.parametrize("target", [b"nowhere", b"/no/where", b"etc", b"bin/busybox", b"bin/busybox/x"])
def test_an_etc_that_leads_nowhere_hinders_nobody(target: bytes) -> None:
    image(etc=symlink(b"etc", target, mtime=99))
    with Sandbox(image="odd") as sb:
        assert sb.run(["/bin/echo", "hi"]).stdout == b"hi\n"
        assert sb.changes() == []
        found = exported(sb)
    assert found["etc"] == ("link", 0o777, 0, 0, 99 * 10**9, target, {})
    assert set(found) == {".", "bin", "etc", *(path for path in found if path.startswith("bin/"))}


def test_an_etc_that_is_a_file_stays_one() -> None:
    image(etc=file(b"etc", b"a file"))
    with Sandbox(image="odd") as sb:
        assert sb.files.read("/etc") == b"a file"
        assert sorted(sb.files.list("/")) == ["bin", "dev", "etc", "proc", "sys"]
        assert sb.changes() == []


@pytest.mark.parametrize("how", ["memory", "copy"])
@pytest.mark.parametrize("name", ["proc", "dev", "sys"])
def test_a_link_in_place_of_a_file_system_is_kept_where_it_is_exported(
    tmp_path: Path, name: str, how: str
) -> None:
    image(symlink(name.encode(), b"bin", mtime=99, uid=3))
    with Sandbox(rootfs=Rootfs.image("odd", **where(how, tmp_path))) as sb:
        assert sb.sh("echo > /dev/null; ls /proc/self/fd").returncode == 0
        assert sb.changes() == []
        found = exported(sb)
        if how == "memory":
            sb.commit("odd:2")
            with Sandbox(image="odd:2") as again:
                assert exported(again) == found
    assert found[name] == ("link", 0o777, 3, 0, 99 * 10**9, b"bin", {})
    assert set(found) == {".", "bin", "etc", name, *(path for path in found if "/" in path)}


@pytest.mark.parametrize("name", [b"proc", b"dev"])
def test_a_file_in_place_of_a_file_system_is_refused(name: bytes) -> None:
    image(file(name, b"a file"))
    with pytest.raises(ImageError, match=f"/{name.decode()} is neither a folder nor a link"):
        Sandbox(image="odd").open()


# ---- what the configuration asks for ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name, number",
    [
        ("SIGRTMIN+3", 37), ("RTMIN+3", 37), ("sigrtmin", 34), ("SIGRTMAX-2", 62), ("rtmax", 64),
        ("37", 37), ("SIGIO", 29), ("poll", 29), ("SIGCLD", 17), ("IOT", 6), ("SIGSTKFLT", 16),
        ("SIGPWR", 30), ("SIGUNUSED", 31), ("sys", 31), ("64", 64), ("", 15),
    ],
)  # fmt: skip
def test_signals_have_the_names_that_people_write(name: str, number: int) -> None:
    image(StopSignal=name)
    with Sandbox(image="odd") as sb, sb.popen(["/bin/sh", "-c", "while :; do :; done"]) as process:
        process.terminate()
        # What does nothing by itself leaves it running.
        if number == 17:
            assert process.poll() is None
            process.kill()
        else:
            assert process.wait(timeout=60) == -number


@pytest.mark.parametrize(
    "name", ["SIGRTMIN+31", "RTMAX+1", "65", "0", "-1", "SIGNONE", "SIG", "RTMIN-1", "3.5", "\u0663"]
)
def test_what_is_no_signal_is_refused(name: str) -> None:
    image(StopSignal=name)
    with pytest.raises(ImageError, match="StopSignal"):
        Sandbox(image="odd").open()


@pytest.mark.parametrize("how", ["memory", "disk", "copy"])
@pytest.mark.parametrize(
    "path, found",
    [
        ("/missing/dir", "/missing/dir"), ("rel/dir", "/rel/dir"), ("/bin/../x/./y", "/x/y"),
        ("/link/below", "/srv/below"), ("/", "/"), ("/tmp/x", "/tmp/x"),
    ],
)  # fmt: skip
def test_a_working_directory_that_is_missing_is_made(tmp_path: Path, how: str, path: str, found: str) -> None:
    image(folder(b"srv", mtime=5) + symlink(b"link", b"srv"), WorkingDir=path, User="app")
    with Sandbox(rootfs=Rootfs.image("odd", **where(how, tmp_path))) as sb:
        assert sb.sh("/bin/pwd").stdout.decode().strip() == found
        assert sb.changes() == []
        if found == "/":
            return
        # As podman: it is the user's who works there.
        assert sb.sh("touch mine && stat -c '%u:%g %a' . mine").stdout.split() == [
            *(b"1000:1001", b"755", b"1000:1001", b"644")
        ]
        assert [(each.kind, each.path) for each in sb.changes()] == [("added", f"{found}/mine")]
        if how == "copy":
            return
        sb.commit("odd:2")
    with Sandbox(image="odd:2") as sb:
        assert sb.files.stat(f"{found}/mine").st_uid == sb.files.stat(found).st_uid == 1000


def test_a_working_directory_in_a_mount_is_made_there(tmp_path: Path) -> None:
    image(WorkingDir="/data/in/it")
    with Sandbox(image="odd", mounts=[Mount.tmpfs("/data")]) as sb:
        assert sb.sh("pwd").stdout == b"/data/in/it\n"
    # And one that the caller names is the caller's business.
    with Sandbox(image="odd", cwd="/other") as sb, pytest.raises(Exception, match="/other"):
        sb.sh("pwd")


def test_volumes_that_are_missing_are_made() -> None:
    image(folder(b"there", 0o700, uid=3), Volumes={"/v/one": {}, "two": {}, "/there": {}}, User="app")
    for readonly in (False, True):
        with Sandbox(rootfs=Rootfs.image("odd", readonly=readonly)) as sb:
            if not readonly:
                assert sb.sh("touch /v/one/x /two/x").returncode == 0
                assert sb.files.stat("/there").st_uid == 3
                sb.commit("odd:2")
            else:
                assert sb.files.list("/v") == ["one"]
    with Sandbox(image="odd:2") as sb:
        # What is in a volume stays out of a commit.
        assert sb.files.list("/v/one") == sb.files.list("/two") == []


@pytest.mark.parametrize(
    "user, seen",
    [
        ("", "0 0 0"), (":", "0 0 0"), (":5", "0 5 5"), (":extra", "0 2000 2000"),
        ("app", "1000 1001 1001 2000 90000"),
        ("1000", "1000 1001 1001 2000 90000"), ("1000:5", "1000 5 5"), ("app:large", "1000 90000 90000"),
        ("1234:77", "1234 77 77"), ("70000", "70000 80000 80000"), ("big", "70000 80000 80000"),
        ("3000000000:4000000000", "3000000000 4000000000 4000000000"), ("4294967294", "4294967294 0 0"),
        ("65535:65536", "65535 65536 65536"),
    ],
)  # fmt: skip
def test_users_are_those_that_podman_takes(user: str, seen: str) -> None:
    image(User=user)
    with Sandbox(image="odd") as sb:
        assert " ".join(sb.sh("id -u; id -g; id -G").stdout.decode().split()) == seen


@pytest.mark.parametrize("user", ["4294967295", "-1", "nobody-there", "app:none", "99999999999", "\u0663"])
def test_users_that_are_none_are_refused(user: str) -> None:
    image(User=user)
    with pytest.raises(ImageError, match=r"it has no (user|group)"):
        Sandbox(image="odd").open()


def test_a_variable_without_a_value_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "secret")
    image(Env=["SECRET_OF_THE_HOST", "", "EMPTY=", "A=b", "A=c", "B C=d=e", "PATH"])
    with Sandbox(image="odd") as sb:
        found = dict(line.split("=", 1) for line in sb.run(["/bin/env"]).stdout.decode().splitlines())
        assert "SECRET_OF_THE_HOST" not in found
        assert (found["EMPTY"], found["A"], found["B C"]) == ("", "c", "d=e")
        assert found["PATH"].startswith("/usr/local/sbin")
    for bad in ("=x", "A\0=b"):
        image(Env=[bad])
        with pytest.raises(ImageError, match="variable"):
            Sandbox(image="odd").open()


# ---- numbers of more than 16 bits -------------------------------------------------------------------


def many(count: int, step: int) -> bytes:
    """As many files, each of somebody else."""
    return b"".join(file(b"f%d" % n, uid=base256(70_000 + n * step, 8), gid=70_000 + n) for n in range(count))


@pytest.mark.parametrize("how", ["memory", "disk", "copy"])
def test_files_of_large_numbers_are_theirs_and_can_be_changed(tmp_path: Path, how: str) -> None:
    entries = folder(b"big", 0o700, uid=70_000, gid=base256(4_000_000_000, 8))
    image(
        entries + file(b"big/f", b"x", uid=base256(3_000_000_000, 8), gid=70_001, mode=0o600),
        User="70000:70001",
    )
    security = Security(user="70000:70001", capabilities=["CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE"])
    with Sandbox(rootfs=Rootfs.image("odd", **where(how, tmp_path))) as sb:
        assert sb.sh("touch /big/mine && ls -n /big").returncode == 0
    with Sandbox(rootfs=Rootfs.image("odd", **where(how, tmp_path)), security=security) as sb:
        assert sb.sh("stat -c %u:%g /big /big/f").stdout.split() == [b"70000:4000000000", b"3000000000:70001"]
        assert sb.sh("chown 70000:4000000000 /big/f && chmod 711 /big/f").returncode == 0
        assert sb.files.stat("/big/f").st_uid == 70_000
        found = exported(sb)
        assert found["big/f"][:4] == ("file", 0o711, 70_000, 4_000_000_000)
        assert found["big"][:4] == ("folder", 0o700, 70_000, 4_000_000_000)


def test_as_many_large_numbers_as_a_map_has_room_for() -> None:
    # Runs of neighbours take a line each, and those that are near to each other share one.
    image(many(600, 3), name="near")
    image(many(90, 1_000_000), name="far")
    image(many(600, 1_000_000), name="too-far")
    for name, count in (("near", 600), ("far", 90)):
        with Sandbox(image=name) as sb:
            assert len({sb.files.stat(f"/f{n}").st_uid for n in range(0, count, 7)}) == len(
                range(0, count, 7)
            )
    with pytest.raises(UnsupportedError, match="users with 600 numbers above 65535"):
        Sandbox(image="too-far").open()


def test_a_user_of_a_large_number_needs_no_image() -> None:
    with Sandbox(security=Security(user="100000:200000", groups=[300_000])) as sb:
        assert sb.sh("id -u; id -g; id -G").stdout.split() == [b"100000", b"200000", b"200000", b"300000"]
        assert sb.sh("echo x > /work/mine && stat -c %u /work/mine").stdout == b"100000\n"


def test_a_map_of_the_callers_own_that_lacks_an_owner_is_told_when_it_is_lost() -> None:
    from sandboxlib import Namespace

    image(file(b"f", b"x", uid=70_000) + file(b"g", b"x", uid=5000))
    own = Namespace("user", uid_map=[(0, 1_900_000_000, 65_536)], gid_map=[(0, 1_900_000_000, 65_536)])
    with Sandbox(image="odd", namespaces=[own]) as sb:
        assert sb.files.stat("/g").st_uid == 5000
        with pytest.raises(ImageError, match=r"f: its owner, .* has no number in the sandbox"):
            sb.export(io.BytesIO())


def test_two_sandboxes_with_large_numbers_share_none() -> None:
    image(file(b"f", b"x", uid=70_000))
    with Sandbox(image="odd") as one, Sandbox(image="odd") as two, Sandbox() as three:
        seen: set[int] = set()
        for sb in (one, two, three):
            for line in sb.sh("cat /proc/self/uid_map").stdout.decode().splitlines():
                _, outside, count = map(int, line.split())
                numbers = {outside, outside + count - 1}
                assert not numbers & seen
                seen |= numbers


# ---- without root -----------------------------------------------------------------------------------

AS_USER = """
import io, os, sys
sys.path.insert(0, sys.argv[1])
os.environ["SANDBOXLIB_STATE_DIR"] = sys.argv[2]
import oddities
from images import put
from oddities import difference, expected, of_tar
from sandboxlib import Rootfs, Sandbox
from sandboxlib.engine.image import own_store

def alone(tree):
    # Who has but one ID has all files.
    if sys.argv[3] == "single":
        for path, (kind, mode, _, _, *rest) in list(tree.items()):
            tree[path] = (kind, mode, 0, 0, *rest)
        tree["able"] = (*tree["able"][:6], {})

def exported(sb):
    raw = io.BytesIO()
    sb.export(raw)
    return of_tar(raw.getvalue())

config = {"WorkingDir": "/w", "StopSignal": "RTMIN+3"}
put(own_store(), "docker.io/library/odd:latest", oddities.odd_layers(), config=config)
places = [Rootfs.image("odd", storage=sys.argv[2])]
if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 6):
    places.append(Rootfs.image("odd"))
places.append(Rootfs.image("odd", storage=sys.argv[2], driver="copy"))
for rootfs in places:
    with Sandbox(rootfs=rootfs) as sb:
        # Of what is copied all is compared, also what its owner may not read.
        assert sb.changes() == [], sb.changes()
        found = exported(sb)
        assert found.pop("w")[:4] == ("folder", 0o755, 0, 0)
        assert difference(found, expected(alone)) == [], "\\n".join(difference(found, expected(alone)))
        with sb.popen(["/bin/sh", "-c", "while :; do :; done"]) as process:
            process.terminate()
            assert process.wait(timeout=60) == -37
        if rootfs.driver != "copy":
            sb.files.write("/etc/new", "x")
            sb.commit("odd:2")
            with Sandbox(rootfs=Rootfs.image("odd:2", storage=sys.argv[2])) as again:
                state = again.files.stat("/etc")
                assert (state.st_mode & 0o777, state.st_uid) == (0o755, 0 if sys.argv[3] == "single" else 7)
                assert again.files.stat("/").st_mode & 0o777 == 0o711
print("fine")
"""


@pytest.mark.unprivileged
@pytest.mark.parametrize("subids", [pytest.param(True, marks=pytest.mark.subids), False])
def test_a_plain_user_has_them_too(
    as_user: Callable[..., CompletedProcess[str]], tmp_path: Path, subids: bool
) -> None:
    for place in (tmp_path, *tmp_path.parents):
        if os.stat(place).st_uid == os.geteuid() and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o055)
    mine = tmp_path / "mine"
    mine.mkdir()
    mine.chmod(0o777)
    words = (str(users.CHECKOUT / "tests"), str(mine), "range" if subids else "single")
    assert as_user(AS_USER, *words, subids=subids, timeout=300).stdout == "fine\n"


# ---- many layers ------------------------------------------------------------------------------------


@pytest.mark.kernel("6.7")
def test_more_layers_than_an_overlay_takes_are_refused_before_they_are_unpacked(
    state: Path, tmp_path: Path
) -> None:
    base = layers.layer(oddities.busybox() + folder(b"dev") + folder(b"proc") + folder(b"sys"))
    more = [layers.layer(file(b"d/%d" % number, b"%d" % number)) for number in range(500)]
    put(own_store(), "docker.io/library/odd:latest", [base, *more])
    for sandbox in (Sandbox(image="odd"), Sandbox(rootfs=Rootfs.image("odd", driver="overlay"))):
        with pytest.raises(UnsupportedError, match="an overlay of 501 layers"):
            sandbox.open()
    assert list((state / "images/layers").glob("*/sha256-*")) == []
    # A copy has no such limit.
    with Sandbox(rootfs=Rootfs.image("odd", **where("copy", tmp_path))) as sb:
        assert len(sb.files.list("/d")) == 500


# ---- trio -------------------------------------------------------------------------------------------


async def test_under_trio_it_is_the_same() -> None:
    put(own_store(), "docker.io/library/odd:latest", oddities.odd_layers())
    async with AsyncSandbox(image="odd") as sb:
        assert await sb.changes() == []
        raw = io.BytesIO()
        await sb.export(raw)
        assert difference(of_tar(raw.getvalue()), expected()) == []
        await sb.commit("odd:2")
    async with AsyncSandbox(image="odd:2") as sb:
        raw = io.BytesIO()
        await sb.export(raw)
        assert difference(of_tar(raw.getvalue()), expected()) == []
