"""A context is read as it is, and as nothing else: whatever happens in it meanwhile."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from sandboxlib.build import hashes, keys
from sandboxlib.build.context import FolderFiles, MappingFiles
from sandboxlib.build.files import ChangedError, Files, Node
from sandboxlib.build.hashes import Hashes
from sandboxlib.build.patterns import Ignore, rules
from sandboxlib.build.selection import SelectionError, select
from sandboxlib.errors import SpecError


def nothing() -> None:
    """Never give up."""


@contextmanager
def context(folder: Path, ignored: str = "", known: Hashes | None = None) -> Iterator[FolderFiles]:
    """The files of a folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files = FolderFiles(fd, Ignore(rules(ignored)), known or Hashes(None, local=True, cancelled=nothing))
    try:
        yield files
    finally:
        files.close()


def paths(files: Files, source: str = "") -> list[str]:
    """All that a source takes, by where it is."""
    return [item.path for each in select(files, source) for item in each.items]


def content(files: Files, path: str) -> bytes:
    node = files.look(path)
    assert node is not None
    return b"".join(files.read(path, node))


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def settle(folder: Path) -> None:
    """Wait until the clock by which changes are told has gone on."""
    newest = max(os.lstat(Path(top, name)).st_ctime_ns for top, _, files in os.walk(folder) for name in files)
    while time.time_ns() - newest < 150_000_000:
        time.sleep(0.01)


# ---- what is there -----------------------------------------------------------------------------


def test_a_folder_is_what_it_is(tmp_path: Path) -> None:
    make(tmp_path, "a", "d/b", "d/e/c")
    (tmp_path / "d").chmod(0o2750)
    (tmp_path / "a").chmod(0o4711)
    (tmp_path / "link").symlink_to("../../x")
    os.utime(tmp_path / "a", ns=(1, 2_000_000_001))
    with context(tmp_path) as files:
        assert paths(files) == ["a", "d", "d/b", "d/e", "d/e/c", "link"]
        found = files.look("a")
        assert found is not None
        assert (found.kind, found.mode, found.size, found.mtime) == ("file", 0o4711, 1, 2_000_000_001)
        assert [files.look(path) and files.look(path).kind for path in ("d", "link", "none", "a/x")] == [  # type: ignore[union-attr]
            "folder",
            "link",
            None,
            None,
        ]
        assert files.look("link").target == "../../x"  # type: ignore[union-attr]
        assert files.look("d").mode == 0o2750  # type: ignore[union-attr]
        assert content(files, "d/e/c") == b"d/e/c"


def test_hard_links_are_known(tmp_path: Path) -> None:
    make(tmp_path, "a", "b")
    os.link(tmp_path / "a", tmp_path / "c")
    with context(tmp_path) as files:
        nodes = dict(files.children(""))
    assert nodes["a"].same == nodes["c"].same is not None
    assert nodes["b"].same is None


def test_names_may_be_any_bytes(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"a\nb", b" ", b"-x", b"'\"$(x)", "ü".encode(), b"x" * 255, b".", b".."]
    for name in names[:-2]:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    with context(tmp_path) as files:
        assert sorted(map(os.fsencode, paths(files))) == sorted(names[:-2])
        for name in names[:-2]:
            assert content(files, os.fsdecode(name)) == name
        assert len(keys.of_taken(files, select(files, ""), owners=False)) == 64


def test_what_is_left_out_is_not_there(tmp_path: Path) -> None:
    make(tmp_path, "a.log", "b", "d/c", "d/keep", "node_modules/x/y", "e/f/g/h", "e/f/i")
    with context(tmp_path, "*.log\nd/*\n!d/keep\nnode_modules\ne\n!e/f/g\n") as files:
        assert paths(files) == ["b", "d", "d/keep", "e", "e/f", "e/f/g", "e/f/g/h"]
    # Asked for one by one, before anything is listed, it is the same.
    with context(tmp_path, "*.log\nd/*\n!d/keep\nnode_modules\ne\n!e/f/g\n") as files:
        there = ["b", "d", "d/keep", "e", "e/f", "e/f/g", "e/f/g/h"]
        gone = ["a.log", "d/c", "node_modules", "node_modules/x", "node_modules/x/y", "e/f/i"]
        assert [path for path in (*there, *gone) if files.look(path) is not None] == there


def test_a_folder_in_which_nothing_is_left_is_not_there(tmp_path: Path) -> None:
    make(tmp_path, "d/a", "e/a")
    with context(tmp_path, "d\n!d/none\ne/*\n") as files:
        assert paths(files) == ["e"]
        assert files.look("d") is None


def test_sockets_are_passed_over_and_fifos_are_not_opened(tmp_path: Path) -> None:
    make(tmp_path, "a")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with context(tmp_path) as files:
            assert paths(files) == ["a", "pipe"]
            assert len(keys.of_taken(files, select(files, ""), owners=False)) == 64


@pytest.mark.root
def test_a_device_is_seen_and_never_opened(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", 0o020666, os.makedev(1, 3))
    with context(tmp_path) as files:
        found = files.look("null")
        assert found is not None
        assert (found.kind, found.device) == ("char", (1, 3))


def test_a_deep_folder_needs_no_more_descriptors_than_a_flat_one(tmp_path: Path) -> None:
    top = os.open(tmp_path, os.O_RDONLY)
    try:
        fd = os.dup(top)
        for _ in range(900):
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
    finally:
        os.close(top)
    before = len(os.listdir("/proc/self/fd"))
    with context(tmp_path) as files:
        found = paths(files)
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert found[-1] == "d/" * 900 + "x"


def test_a_folder_that_is_too_deep_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with context(tmp_path) as files, pytest.raises(SelectionError, match="nested"):
        paths(files)


# ---- what happens meanwhile --------------------------------------------------------------------


def swap_for_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def swap_for_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swap_for_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap_parent_for_link(path: Path) -> None:
    path.parent.rename(path.parent.parent / "moved")
    path.parent.symlink_to("/etc")


def remove(path: Path) -> None:
    path.unlink()


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)


CHANGES = [swap_for_link, swap_for_fifo, swap_for_folder, swap_parent_for_link, remove, append, replace]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["read", "digest", "attributes"])
def test_what_is_changed_after_it_was_seen_is_not_read(
    tmp_path: Path, change: Callable[[Path], None], how: str
) -> None:
    make(tmp_path, "d/passwd")
    with context(tmp_path) as files:
        node = files.look("d/passwd")
        assert node is not None
        change(tmp_path / "d" / "passwd")
        with pytest.raises(ChangedError, match="passwd"):
            _ = list(files.read("d/passwd", node)) if how == "read" else getattr(files, how)("d/passwd", node)


@pytest.mark.parametrize("change", [append, remove, swap_for_link])
def test_what_is_changed_while_it_is_read_is_an_error_or_what_it_was(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(3 << 20))
    with context(tmp_path) as files:
        node = files.look("a")
        assert node is not None
        pieces = files.read("a", node)
        next(pieces)
        change(path)
        with pytest.raises(ChangedError, match="changed while"):
            list(pieces)


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(3 << 20))
    with context(tmp_path) as files:
        node = files.look("a")
        assert node is not None
        pieces = files.read("a", node)
        next(pieces)
        os.truncate(path, 100)
        with pytest.raises(ChangedError, match="changed while"):
            list(pieces)


def test_a_folder_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "d/x")
    with context(tmp_path) as files:
        assert files.look("d") is not None
        (tmp_path / "d").rename(tmp_path / "moved")
        (tmp_path / "d").symlink_to("/etc")
        with pytest.raises(ChangedError, match="was a folder"):
            files.children("d")


def test_links_that_come_and_go_never_show_what_is_outside(tmp_path: Path) -> None:
    """Somebody swaps a file and a folder for links to the host's, again and again, while they are read."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "passwd").write_text("outside")
    inside = tmp_path / "context"
    make(inside, "d/passwd")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (inside / "d").rename(inside / "real")
            (inside / "d").symlink_to(secret)
            (inside / "d").unlink()
            (inside / "real").rename(inside / "d")

    thread = threading.Thread(target=swap)
    thread.start()
    read = changed = 0
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end or not read:
            with context(inside) as files:
                try:
                    node = files.look("d/passwd")
                    if node is not None and node.kind == "file":
                        assert b"".join(files.read("d/passwd", node)) == b"d/passwd"
                        read += 1
                except ChangedError:
                    changed += 1
    finally:
        stop.set()
        thread.join()
    assert read


@pytest.mark.unprivileged
def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path, as_user: Callable[..., object]) -> None:
    script = """
import os, sys
from sandboxlib.build.context import FolderFiles
from sandboxlib.build.files import ChangedError
from sandboxlib.build.hashes import Hashes
from sandboxlib.build.patterns import Ignore
import tempfile
top = tempfile.mkdtemp()
open(top + "/a", "w").write("x")
os.chmod(top + "/a", 0)
os.mkdir(top + "/d"); os.chmod(top + "/d", 0)
files = FolderFiles(os.open(top, os.O_RDONLY), Ignore(()), Hashes(None, local=True, cancelled=lambda: None))
for ask in (lambda: files.digest("a", files.look("a")), lambda: files.children("d")):
    try:
        ask()
    except ChangedError as error:
        print(error)
files.close()
"""
    found = as_user(script).stdout  # type: ignore[attr-defined]
    assert found.splitlines() == [
        "'a' cannot be read: Permission denied",
        "'d' cannot be listed: Permission denied",
    ]


# ---- attributes --------------------------------------------------------------------------------


def test_extended_attributes_come_along_and_count(tmp_path: Path) -> None:
    make(tmp_path, "a", "d/b")
    with context(tmp_path) as files:
        before = keys.of_taken(files, select(files, ""), owners=False)
    os.setxattr(tmp_path / "a", "user.x", b"1")
    with context(tmp_path) as files:
        node = files.look("a")
        assert node is not None
        assert files.attributes("a", node) == {b"user.x": b"1"}
        changed = keys.of_taken(files, select(files, ""), owners=False)
    os.setxattr(tmp_path / "d", "user.y", b"2")
    with context(tmp_path) as files:
        folder = files.look("d")
        assert folder is not None
        assert files.attributes("d", folder) == {b"user.y": b"2"}
        again = keys.of_taken(files, select(files, ""), owners=False)
    assert len({before, changed, again}) == 3


@pytest.mark.root
def test_attributes_of_this_machine_stay_here(tmp_path: Path) -> None:
    make(tmp_path, "a")
    os.setxattr(tmp_path / "a", "trusted.x", b"1")
    with context(tmp_path) as files:
        node = files.look("a")
        assert node is not None
        assert files.attributes("a", node) == {}


# ---- what is remembered ------------------------------------------------------------------------


def key_of(folder: Path, memory: Path, *, local: bool = True) -> tuple[str, int]:
    """The key of a context, and how many bytes had to be read for it."""
    known = Hashes(str(memory), local=local, cancelled=nothing)
    with context(folder, known=known) as files:
        found = keys.of_taken(files, select(files, ""), owners=False)
    known.save()
    return found, known.read


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    folder, memory = tmp_path / "context", tmp_path / "memory"
    make(folder, *(f"d{number % 7}/{number}" for number in range(100)))
    settle(folder)
    first, read = key_of(folder, memory)
    assert read == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert key_of(folder, memory) == (first, 0)
    folder.rename(tmp_path / "elsewhere")
    assert key_of(tmp_path / "elsewhere", memory) == (first, 0)


def test_what_has_changed_is_read_again_whatever_its_times_say(tmp_path: Path) -> None:
    folder, memory = tmp_path / "context", tmp_path / "memory"
    make(folder, "a", "b")
    settle(folder)
    first, _ = key_of(folder, memory)
    times = (folder / "a").stat()
    (folder / "a").write_text("A")
    os.utime(folder / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    second, read = key_of(folder, memory)
    assert (second != first, read) == (True, 1)


def test_a_file_is_not_remembered_before_a_change_of_it_could_be_seen(tmp_path: Path) -> None:
    folder, memory = tmp_path / "context", tmp_path / "memory"
    make(folder, "a")
    # As if the clock were so slow that all changes until now had the same time.
    assert key_of(folder, memory, local=False)[1] == 1
    assert key_of(folder, memory, local=False)[1] == 1


def test_many_quick_changes_are_all_seen(tmp_path: Path) -> None:
    folder, memory = tmp_path / "context", tmp_path / "memory"
    make(folder, "a")
    path = folder / "a"
    for number in range(300):
        path.write_bytes(b"%03d" % number)
        want = hashlib.sha256(path.read_bytes()).hexdigest()
        known = Hashes(str(memory), local=True, cancelled=nothing)
        with context(folder, known=known) as files:
            node = files.look("a")
            assert node is not None
            assert files.digest("a", node) == want
        known.save()


@pytest.mark.parametrize("raw", [b"", b"\xff", b"nonsense" * 100, msgspec.msgpack.encode([99, {}]), None])
def test_a_memory_that_cannot_be_read_is_none(tmp_path: Path, raw: bytes | None) -> None:
    folder, memory = tmp_path / "context", tmp_path / "memory"
    make(folder, "a")
    settle(folder)
    if raw is not None:
        memory.write_bytes(raw)
    assert key_of(folder, memory)[1] == 1
    assert key_of(folder, memory)[1] == 0


def test_other_builds_of_one_context_do_not_forget_each_other_s_files(tmp_path: Path) -> None:
    folder, memory = tmp_path / "context", tmp_path / "memory"
    make(folder, "a", "b")
    settle(folder)
    for source, want in (("a", 1), ("b", 1), ("a", 0), ("b", 0)):
        known = Hashes(str(memory), local=True, cancelled=nothing)
        with context(folder, known=known) as files:
            keys.of_taken(files, select(files, source), owners=False)
        known.save()
        assert known.read == want


def test_reading_can_be_given_up(tmp_path: Path) -> None:
    make(tmp_path, "a")

    class GivenUpError(Exception):
        pass

    def cancelled() -> None:
        raise GivenUpError

    with (
        context(tmp_path, known=Hashes(None, local=True, cancelled=cancelled)) as files,
        pytest.raises(GivenUpError),
    ):
        keys.of_taken(files, select(files, ""), owners=False)


def test_old_memories_are_forgotten(tmp_path: Path) -> None:
    make(tmp_path, "old", "new")
    os.utime(tmp_path / "old", (0, 0))
    assert hashes.forget(str(tmp_path)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert hashes.forget(str(tmp_path / "none")) == 0


# ---- mappings ----------------------------------------------------------------------------------


def test_a_mapping_is_a_context() -> None:
    files = MappingFiles(
        {"a": b"1", "d/e/b": "ü", "empty/": b"", "x.log": b""}, Ignore(rules("*.log")), now=7
    )
    assert paths(files) == ["a", "d", "d/e", "d/e/b", "empty"]
    assert content(files, "d/e/b") == "ü".encode()
    assert files.look("a") == Node("file", 0o644, size=1, mtime=7)


def test_a_mapping_and_a_folder_with_the_same_files_are_the_same(tmp_path: Path) -> None:
    make(tmp_path, "a", "d/b")
    for path in tmp_path.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    mapping = MappingFiles({"a": "a", "d/b": "d/b"}, Ignore(()))
    with context(tmp_path) as files:
        assert keys.of_taken(files, select(files, ""), owners=False) == keys.of_taken(
            mapping, select(mapping, ""), owners=False
        )


@pytest.mark.parametrize(
    "given",
    [{"/a": b""}, {"../a": b""}, {"a/../../b": b""}, {"": b""}, {".": b""}, {"a\0": b""}, {"a": 1}, {1: b""},
     {"a": b"", "a/b": b""}, {"a": b"", "a/": b""}],
)  # fmt: skip
def test_a_mapping_that_makes_no_sense_is_refused(given: dict[str, bytes]) -> None:
    with pytest.raises(SpecError, match="context"):
        MappingFiles(given, Ignore(()))
