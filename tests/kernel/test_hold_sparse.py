"""Files with holes fill no disk of the host's, and hold nobody who exports or commits them"""

from __future__ import annotations

import pytest
from kernel.probe.outside import WHO, program

pytestmark = [pytest.mark.userns, pytest.mark.overlay, pytest.mark.tool("busybox"), pytest.mark.timeout(180)]

#: A store of its own, and an image of busybox alone.
BEGIN = """
import io, pathlib, shutil, tarfile, tempfile, time
import trio
from sandboxlib import AsyncSandbox, Image, Rootfs, Sandbox
from sandboxlib.errors import SpecError, TimeoutExpired, TooLargeError
made = tempfile.TemporaryDirectory(prefix=f"sandboxlib-test-{os.getpid()}-")
top = pathlib.Path(made.name)
os.environ["SANDBOXLIB_STATE_DIR"] = str(top / "state")
def write_rootfs():
    with tarfile.open(top / "rootfs.tar", "w") as tar:
        for name in ("bin", "data"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        info = tarfile.TarInfo("bin/busybox")
        data = pathlib.Path(shutil.which("busybox")).read_bytes()
        info.size, info.mode = len(data), 0o755
        tar.addfile(info, io.BytesIO(data))
write_rootfs()
(top / "written").mkdir()
base = Image.from_rootfs(top / "rootfs.tar", name="base", config={"Env": ["PATH=/bin"]})
def sandbox(image="base", make=Sandbox):
    # What is written lies on a disk: before Linux 6.6 a user's overlay cannot have it in memory.
    folder = tempfile.mkdtemp(dir=top / "written")
    return make(rootfs=Rootfs.image(image, storage=folder))
def disk():
    return sum(path.lstat().st_blocks for path in top.rglob("*") if not path.is_dir()) * 512
def sh(sb, line):
    return sb.run(["busybox", "sh", "-c", line], check=True).stdout
def taken(function, *errors):
    began = time.monotonic()
    try:
        function()
    except errors as error:
        return type(error).__name__, str(error), time.monotonic() - began
    return "", "", time.monotonic() - began
BIG = "busybox truncate -s 1024G /data/big && echo end >> /data/big"
def end(result):
    made.cleanup()
    print(json.dumps(result))
"""


@WHO
def test_an_export_keeps_holes(who: str) -> None:
    script = (
        BEGIN
        + """
with sandbox() as sb:
    sh(sb, BIG)
    before = disk()
    _, _, seconds = taken(lambda: sb.export(top / "tree.tar"))
    grown = disk() - before
with tarfile.open(top / "tree.tar") as tar:
    member = next(each for each in tar if each.name == "data/big")
    file = tar.extractfile(member)
    file.seek(1 << 40)
    found = [member.size, file.read().decode()]
end([seconds, grown, found])
"""
    )
    seconds, grown, found = program(who, script, patience=120)
    assert found == [(1 << 40) + 4, "end\n"]
    assert seconds < 30
    assert grown < 16 << 20


@WHO
def test_a_commit_of_a_terabyte_is_refused_at_once_and_leaves_nothing(who: str) -> None:
    script = (
        BEGIN
        + """
with sandbox() as sb:
    sh(sb, BIG)
    before = disk()
    found = taken(lambda: sb.commit("big"), TooLargeError)
    grown = disk() - before
    others = [taken(lambda: sb.commit("big", max_size=-1), SpecError)[0]]
    others.append(taken(lambda: sb.commit("big", max_entries=-1), SpecError)[0])
    others.append(taken(lambda: sb.export(top / "x", max_entries=2), TooLargeError)[1])
    # It was paused, and goes on.
    said = sh(sb, "echo on").decode()
end([*found, grown, others, said, len(Image.list()), (top / "x").exists()])
"""
    )
    kind, text, seconds, grown, others, said, images, left = program(who, script, patience=120)
    assert (kind, said, left) == ("TooLargeError", "on\n", False)
    assert text.startswith("data/big: more than 17179869184 bytes of data, which max_size= lets in")
    assert seconds < 30
    assert grown < 1 << 20
    assert others[:2] == ["SpecError", "SpecError"]
    assert "max_entries=" in others[2]
    assert images == 1


@WHO
def test_a_sandbox_of_what_was_committed_has_holes_again(who: str) -> None:
    script = (
        BEGIN
        + """
with sandbox() as sb:
    sh(sb, "busybox truncate -s 20M /data/holes && echo end >> /data/holes")
    before = disk()
    sb.commit("holed")
with sandbox("holed") as sb:
    found = sb.files.stat("/data/holes")
    last = sh(sb, "busybox tail -c 4 /data/holes").decode()
    grown = disk() - before
end([found.st_size, found.st_blocks * 512, last, grown])
"""
    )
    size, blocks, last, grown = program(who, script, patience=120)
    assert (size, last) == ((20 << 20) + 4, "end\n")
    assert blocks < 1 << 20
    assert grown < 8 << 20


@WHO
@pytest.mark.parametrize("verb", ["commit", "export"])
def test_what_takes_long_ends_with_its_timeout_or_when_it_is_cancelled(who: str, verb: str) -> None:
    # Zeros of a layer are counted and compressed; an export writes what comes from urandom.
    script = (
        BEGIN
        + """
class Slow(io.RawIOBase):
    def write(self, data):
        time.sleep(0.2)
        return len(data)
verb, target = facts["verb"], Slow() if facts["verb"] == "export" else "long"
FILL = "busybox dd if=/dev/zero of=/data/f bs=1M count=60"
if verb == "commit":
    FILL = "busybox truncate -s 12G /data/holes"
with sandbox() as sb:
    sh(sb, FILL)
    found = taken(lambda: getattr(sb, verb)(target, timeout=1), TimeoutExpired)
    said = sh(sb, "echo on").decode()
gaps = []
async def watch():
    while True:
        began = time.monotonic()
        await trio.sleep(0.01)
        gaps.append(time.monotonic() - began)
async def main():
    async with sandbox(make=AsyncSandbox) as sb:
        await sb.run(["busybox", "sh", "-c", FILL], check=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            with trio.move_on_after(1) as scope:
                await getattr(sb, verb)(target)
            nursery.cancel_scope.cancel()
        done = await sb.run(["busybox", "echo", "on"])
        return scope.cancelled_caught, done.stdout.decode()
began = time.monotonic()
cancelled = trio.run(main)
end([*found, said, cancelled, time.monotonic() - began, max(gaps)])
"""
    )
    kind, _, seconds, said, cancelled, loop, gap = program(who, script, patience=120, verb=verb)
    assert (kind, said) == ("TimeoutExpired", "on\n")
    assert seconds < 8
    assert cancelled == [True, "on\n"]
    assert loop < 20
    assert gap < 3
