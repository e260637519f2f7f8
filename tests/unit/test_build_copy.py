"""Which files a COPY takes, where they go, and what that depends on."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from builds import Tree

from sandboxlib.build import keys
from sandboxlib.build.files import FIFO, FILE, FOLDER, LINK, Files, LoopError, Node, resolve
from sandboxlib.build.modes import parse
from sandboxlib.build.operations import Copy, FromContext, FromText, Mount, Run, Source, Workdir
from sandboxlib.build.placement import Owner, Placement, PlacementError
from sandboxlib.build.selection import SelectionError, select

CONTEXT = Tree(
    {
        "a.txt": b"a",
        "b.txt": b"b",
        "arr[0].txt": b"0",
        "d/a.py": b"1",
        "d/b.pyc": b"2",
        "d/e/c.py": b"3",
        "d/e/deep/x.md": b"4",
        "empty": None,
        "home.txt": b"h",
        "homes/x.txt": b"x",
        "homes/y.md": b"y",
        "link": "a.txt",
        "folder": "d",
        "out": "../../../etc/passwd",
        "absolute": "/d/e",
        "dangling": "nowhere",
        "loop": "loop",
        "d/up": "../a.txt",
        "pipe": Node(FIFO),
        "socket": Node("socket"),
    }
)


def taken(path: str, files: Files = CONTEXT, **options: object) -> dict[str, str]:
    """Where each file of a source goes below the destination, with its path in the tree."""
    found = select(files, path, **options)  # type: ignore[arg-type]
    return {
        (item.below or each.name): item.path
        for each in found
        for item in each.items
        if item.node.kind != FOLDER
    }


# ---- links -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, want",
    [
        ("link", "a.txt"),
        ("folder/e", "d/e"),
        ("folder/up", "a.txt"),
        ("absolute/c.py", "d/e/c.py"),
        ("out", "etc/passwd"),
        ("../../x", "x"),
        ("d/../d/./e", "d/e"),
        ("dangling/x", "nowhere/x"),
        ("", ""),
    ],
)
def test_links_lead_nowhere_but_to_what_is_in_the_tree(path: str, want: str) -> None:
    assert resolve(CONTEXT, path) == want


def test_the_last_part_may_stay_a_link() -> None:
    assert resolve(CONTEXT, "folder/up", last=False) == "d/up"


def test_links_in_a_circle_are_refused() -> None:
    with pytest.raises(LoopError, match="circle"):
        resolve(CONTEXT, "loop")
    with pytest.raises(LoopError, match="circle"):
        resolve(Tree({f"l{number}": f"l{number + 1}" for number in range(50)}), "l0")


# ---- sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, options, want",
    [
        ("a.txt", {}, {"a.txt": "a.txt"}),
        ("*.txt", {}, {name: name for name in ("a.txt", "arr[0].txt", "b.txt", "home.txt")}),
        ("?.txt", {}, {"a.txt": "a.txt", "b.txt": "b.txt"}),
        ("arr[[]0].txt", {}, {"arr[0].txt": "arr[0].txt"}),
        ("arr\\[0].txt", {}, {"arr[0].txt": "arr[0].txt"}),
        ("d", {}, {"a.py": "d/a.py", "b.pyc": "d/b.pyc", "up": "d/up", "e/c.py": "d/e/c.py",
                   "e/deep/x.md": "d/e/deep/x.md"}),
        ("d/*/c.py", {}, {"c.py": "d/e/c.py"}),
        ("link", {}, {"link": "a.txt"}),
        ("folder", {"exclude": ["e"]}, {"a.py": "d/a.py", "b.pyc": "d/b.pyc", "up": "d/up"}),
        ("folder/a.py", {}, {"a.py": "d/a.py"}),
        ("absolute", {}, {"c.py": "d/e/c.py", "deep/x.md": "d/e/deep/x.md"}),
        ("pipe", {}, {"pipe": "pipe"}),
        ("empty", {}, {}),
        ("d", {"exclude": ["**/*.py", "up"]}, {"b.pyc": "d/b.pyc", "e/deep/x.md": "d/e/deep/x.md"}),
        ("d", {"exclude": ["e", "!e/deep", "*.p*"]}, {"up": "d/up", "e/deep/x.md": "d/e/deep/x.md"}),
        ("hom*", {"exclude": ["*.txt"]}, {"y.md": "homes/y.md"}),
        ("hom*", {"exclude": ["*.txt", "*.md"]}, {}),
        ("a.txt", {"exclude": ["a.txt"]}, {}),
        ("d/a.py", {"parents": True}, {"d/a.py": "d/a.py"}),
        ("d/e", {"parents": True}, {"d/e/c.py": "d/e/c.py", "d/e/deep/x.md": "d/e/deep/x.md"}),
        ("d/e/*.py", {"parents": True, "pivot": 2}, {"e/c.py": "d/e/c.py"}),
        ("**/*.py", {"parents": True}, {"d/a.py": "d/a.py", "d/e/c.py": "d/e/c.py"}),
        ("d/**/x.md", {"parents": True, "pivot": 2}, {"e/deep/x.md": "d/e/deep/x.md"}),
        ("d", {"parents": True, "exclude": ["d/e", "**/*.pyc"]}, {"d/a.py": "d/a.py", "d/up": "d/up"}),
    ],
)  # fmt: skip
def test_what_a_source_means(path: str, options: dict[str, object], want: dict[str, str]) -> None:
    assert taken(path, **options) == want  # type: ignore[arg-type]


def test_the_whole_context() -> None:
    found = taken("")
    assert found["d/e/deep/x.md"] == "d/e/deep/x.md"
    # Nobody will ever listen there again.
    assert "socket" not in found
    assert "link" in found


@pytest.mark.parametrize(
    "path, message",
    [
        ("none", "there is no 'none'"),
        ("d/none", "there is no 'd/none'"),
        ("a.txt/x", "there is no"),
        ("*.none", "nothing matches"),
        ("out", "there is no 'out'"),
        ("dangl*", "symbolic link to nothing"),
        ("dangling", "there is no"),
        ("socket", "is a socket"),
    ],
)
def test_what_is_not_there_is_an_error(path: str, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        select(CONTEXT, path)


def test_a_circle_of_links_is_an_error() -> None:
    with pytest.raises(ValueError, match="circle"):
        select(CONTEXT, "loop")


def test_a_folder_is_as_deep_as_it_is_and_not_beyond_measure() -> None:
    assert len(taken("", Tree({"a/" * 900 + "x": b""}))) == 1
    with pytest.raises(SelectionError, match="nested more than"):
        select(Tree({"a/" * 1100 + "x": b""}), "")


# ---- destinations ------------------------------------------------------------------------------

STATE = Tree(
    {
        "etc/passwd": b"",
        "usr/bin/x": b"",
        "bin": "usr/bin",
        "tmp": Node(FOLDER, 0o1777, mtime=5),
        "app": Node(FOLDER, 0o750, 7, 8, mtime=6),
        "app/old": b"old",
        "app/sub": Node(FOLDER, 0o711, 9, 9),
        "app/link": "/etc",
        "file": b"f",
        "to_file": "/file",
        "to_nothing": "/new/target",
        "circle": "circle",
    }
)


FILE_0 = "file 644 0:0"
ROOT = Owner(0, 0)


def placed(
    path: str,
    destination: str,
    *,
    state: Files | None = STATE,
    chown: Owner | None = ROOT,
    chmod: str = "",
    more: tuple[str, ...] = (),
    files: Files = CONTEXT,
    time: int | None = None,
) -> dict[str, str]:
    """What is made: its kind, mode and owner, by path."""
    place = Placement(
        state, destination, owner=chown, change=parse(chmod) if chmod else None, now=1, time=time
    )
    for each in (path, *more):
        place.put(files, select(files, each), several=bool(more))
    return {
        entry.path: f"{entry.node.kind} {entry.node.mode:o} {entry.node.uid}:{entry.node.gid}"
        for entry in place.entries()
    }


@pytest.mark.parametrize(
    "path, destination, want",
    [
        ("a.txt", "/x", {"x": FILE_0}),
        ("a.txt", "/x/", {"x": "folder 755 0:0", "x/a.txt": FILE_0}),
        ("a.txt", "/x/y", {"x": "folder 755 0:0", "x/y": FILE_0}),
        ("a.txt", "/", {"a.txt": FILE_0}),
        ("a.txt", "/app", {"app": "folder 750 7:8", "app/a.txt": FILE_0}),
        (
            "a.txt",
            "/app/sub/",
            {"app": "folder 750 7:8", "app/sub": "folder 711 9:9", "app/sub/a.txt": FILE_0},
        ),
        ("a.txt", "/app/old", {"app": "folder 750 7:8", "app/old": FILE_0}),
        ("a.txt", "/tmp/", {"tmp": "folder 1777 0:0", "tmp/a.txt": FILE_0}),
        ("a.txt", "/bin/", {"usr": "folder 755 0:0", "usr/bin": "folder 755 0:0", "usr/bin/a.txt": FILE_0}),
        ("a.txt", "/app/link/", {"etc": "folder 755 0:0", "etc/a.txt": FILE_0}),
        ("a.txt", "/to_file", {"file": FILE_0}),
        ("a.txt", "/to_nothing", {"new": "folder 755 0:0", "new/target": FILE_0}),
        ("link", "/x/", {"x": "folder 755 0:0", "x/link": FILE_0}),
        ("homes", "/x", {"x": "folder 755 0:0", "x/x.txt": FILE_0, "x/y.md": FILE_0}),
        ("homes", "/", {"x.txt": FILE_0, "y.md": FILE_0}),
        ("empty", "/x/y", {"x": "folder 755 0:0", "x/y": "folder 755 0:0"}),
        ("?.txt", "/x/", {"x": "folder 755 0:0", "x/a.txt": FILE_0, "x/b.txt": FILE_0}),
        ("pipe", "/p", {"p": "fifo 755 0:0"}),
    ],
)
def test_where_files_come_to_be(path: str, destination: str, want: dict[str, str]) -> None:
    assert placed(path, destination) == want


def test_a_folder_is_merged_with_what_is_there() -> None:
    tree = Tree(
        {"t/sub": Node(FOLDER, 0o700), "t/sub/new": b"", "t/old": b"", "t/link/z": b"", "t/bin2": "x"}
    )
    assert placed("t", "/app", files=tree) == {
        # What holds it stays as it is, what is copied is as it is copied.
        "app": "folder 750 7:8",
        "app/bin2": "link 777 0:0",
        "app/old": FILE_0,
        "app/sub": "folder 700 0:0",
        "app/sub/new": FILE_0,
        # A link to a folder leads there.
        "etc": "folder 755 0:0",
        "etc/z": FILE_0,
    }


def test_owners_are_root_s_their_own_or_what_is_asked_for() -> None:
    tree = Tree({"d/x": Node(FILE, 0o4755, 3, 4)})
    assert placed("d", "/new/d", files=tree)["new/d/x"] == "file 4755 0:0"
    assert placed("d", "/new/d", files=tree, chown=None) == {
        "new": "folder 755 0:0",
        "new/d": "folder 755 0:0",
        "new/d/x": "file 4755 3:4",
    }
    # Folders that have to be made are the owner's too.
    assert set(placed("d", "/new/d", files=tree, chown=Owner(5, 6)).values()) == {
        "folder 755 5:6",
        "file 4755 5:6",
    }


def test_modes_are_changed_for_what_is_copied_alone() -> None:
    tree = Tree({"d/sub/x": b"", "d/l": "x"})
    assert placed("d", "/new", files=tree, chmod="600") == {
        "new": "folder 755 0:0",
        "new/l": "link 777 0:0",
        "new/sub": "folder 600 0:0",
        "new/sub/x": "file 600 0:0",
    }
    assert placed("d", "/new", files=tree, chmod="go=X")["new/sub"] == "folder 711 0:0"


def test_what_is_linked_looks_at_nothing() -> None:
    assert placed("a.txt", "/bin/", state=None) == {"bin": "folder 755 0:0", "bin/a.txt": FILE_0}


def test_the_same_file_under_two_names_stays_one() -> None:
    one = Node(FILE, 0o644, size=1, same=(1, 2))
    tree = Tree({"d/a": one, "d/b": one, "d/c": Node(FILE, 0o644, size=1, same=(1, 3))})
    place = Placement(None, "/x", owner=Owner(), change=None, now=1)
    place.put(tree, select(tree, "d"), several=False)
    assert {each.path: each.hardlink for each in place.entries()} == {
        "x": "",
        "x/a": "",
        "x/b": "x/a",
        "x/c": "",
    }


def test_a_time_that_is_asked_for_is_that_of_all_that_is_put_in() -> None:
    place = Placement(STATE, "/app/new/", owner=Owner(), change=None, now=9, time=9)
    place.put(CONTEXT, select(CONTEXT, "a.txt"), several=False)
    assert {entry.path: entry.node.mtime for entry in place.entries()} == {
        "app": 6,
        "app/new": 9,
        "app/new/a.txt": 9,
    }


def test_later_sources_win() -> None:
    tree = Tree({"a/x": b"1", "b/x": b"22"})
    place = Placement(STATE, "/d/", owner=Owner(), change=None, now=1)
    for path in ("a", "b"):
        place.put(tree, select(tree, path), several=True)
    assert [(entry.path, entry.source) for entry in place.entries()] == [("d", ""), ("d/x", "b/x")]


@pytest.mark.parametrize(
    "path, destination, options, message",
    [
        ("a.txt", "/file/", {}, "/file is a file, and has to be a folder"),
        ("a.txt", "/file/x", {}, "/file is a file"),
        ("d", "/file", {}, "/file is a file"),
        ("?.txt", "/x", {}, "several files need a folder"),
        ("a.txt", "/x", {"more": ("b.txt",)}, "several files need a folder"),
        ("a.txt", "/circle", {}, "circle"),
        ("a", "/x/", {"files": Tree({"a/.wh.b": b""})}, r"begins with \.wh\."),
        (".wh.b", "/x/", {"files": Tree({".wh.b": b""})}, r"begins with \.wh\."),
        ("a.txt", "/x/.wh..wh..opq", {}, r"begins with \.wh\."),
        ("a", "/app", {"files": Tree({"a/old/x": b""})}, "/app/old is a file"),
        ("a", "/app", {"files": Tree({"a/sub": b""})}, "/app/sub is a folder, and a file cannot"),
        ("a", "/x", {"files": Tree({"a": Node("char", device=(1, 3))})}, "device"),
        ("a.txt", "/" + "y" * 300, {}, "a name of more than"),
        ("a.txt", "/" + "y/" * 2500, {}, "a path of more than"),
    ],
)
def test_files_that_cannot_go_there_are_refused(
    path: str, destination: str, options: Mapping[str, object], message: str
) -> None:
    with pytest.raises(PlacementError, match=message):
        placed(path, destination, **options)  # type: ignore[arg-type]


# ---- keys --------------------------------------------------------------------------------------


def key(given: Mapping[str, bytes | str | Node | None], path: str = "", *, owners: bool = False) -> str:
    files = Tree(given)
    return keys.of_taken(files, select(files, path), owners=owners)


def test_a_key_is_of_what_files_are_and_hold() -> None:
    plain: dict[str, bytes | str | Node | None] = {"a": b"1", "d/b": b"2"}
    others: list[dict[str, bytes | str | Node | None]] = [
        {"a": b"1", "d/b": b"3"},
        {"a": b"1", "d/c": b"2"},
        {"a": b"1", "d": None, "b": b"2"},
        {"a": "1", "d/b": b"2"},
        {"a": b"1", "d/b": b"2", "e": None},
        {"a": Node(FILE, 0o755, size=1), "d/b": b"2"},
    ]
    found = [key(plain), *(key(each) for each in others)]
    assert len(set(found)) == len(found)
    assert key(dict(reversed(plain.items()))) == key(plain)


def test_times_and_owners_of_a_context_do_not_count() -> None:
    first = {"a": Node(FILE, 0o644, 1, 2, mtime=3)}
    other = {"a": Node(FILE, 0o644, 4, 5, mtime=6)}
    assert key(first) == key(other)
    assert key(first, owners=True) != key(other, owners=True)


def test_where_a_context_lies_does_not_count_but_names_in_it_do() -> None:
    assert key({"x/a": b"1"}, "x") == key({"y/a": b"1"}, "y")
    assert key({"x": b"1"}, "x") != key({"y": b"1"}, "y")


def test_names_of_one_file_count() -> None:
    one = Node(FILE, 0o644, size=1, same=(1, 2))
    two = Node(FILE, 0o644, size=1, same=(1, 3))
    assert key({"a": one, "b": one}) != key({"a": one, "b": two})
    assert key({"a": one, "b": one}) == key({"a": two, "b": two})


RUN = Run(argv=("x",), env=(("A", "1"),), user="", cwd="/")


def of_run(
    run: Run = RUN, parent: str = "p", versions: Mapping[str, str] | None = None, epoch: int | None = None
) -> str:
    return keys.of_run(run, parent, ["" for _ in run.mounts], versions or {}, epoch)


def test_all_that_a_command_sees_counts() -> None:
    from msgspec.structs import replace

    others = [
        of_run(replace(RUN, argv=("y",))),
        of_run(replace(RUN, argv=("x", ""))),
        of_run(replace(RUN, env=(("A", "2"),))),
        of_run(replace(RUN, user="u")),
        of_run(replace(RUN, cwd="/x")),
        of_run(replace(RUN, network="none")),
        of_run(replace(RUN, insecure=True)),
        of_run(replace(RUN, script=("a", "b"))),
        of_run(replace(RUN, mounts=(Mount(type="tmpfs", target="/t"),))),
        of_run(parent="q"),
        of_run(epoch=0),
    ]
    assert len({of_run(), *others}) == len(others) + 1


def test_what_decides_nothing_does_not_count() -> None:
    from msgspec.structs import replace

    assert of_run(replace(RUN, proxies=(("HTTP_PROXY", "x"),))) == of_run()
    caches = [
        Mount(type="cache", target="/c", id=name, sharing=how)
        for name, how in (("a", "shared"), ("b", "locked"))
    ]
    assert len({of_run(replace(RUN, mounts=(mount,))) for mount in caches}) == 1


def test_a_secret_counts_by_the_caller_s_word_alone() -> None:
    from msgspec.structs import replace

    run = replace(RUN, mounts=(Mount(type="secret", target="/s", id="s"),))
    assert of_run(run, versions={"s": "1"}) != of_run(run, versions={"s": "2"})
    assert of_run(run, versions={"other": "1"}) == of_run(run)


def test_what_is_bound_counts_by_what_is_in_it() -> None:
    from msgspec.structs import replace

    run = replace(RUN, mounts=(Mount(type="bind", target="/b", origin=FromContext()),))
    assert keys.of_run(run, "p", ["1"], {}, None) != keys.of_run(run, "p", ["2"], {}, None)


def test_a_linked_copy_does_not_look_below() -> None:
    sources = (Source(FromContext(), "a"),)
    plain = Copy(sources=sources, destination="/x")
    linked = Copy(sources=sources, destination="/x", link=True)
    assert keys.of_copy(plain, "p", ["1"], None) != keys.of_copy(plain, "q", ["1"], None)
    assert keys.of_copy(linked, "p", ["1"], None) == keys.of_copy(linked, "q", ["1"], None)
    assert keys.of_copy(linked, "p", ["1"], None) != keys.of_copy(plain, "", ["1"], None)


def test_every_source_counts() -> None:
    copy = Copy(sources=(Source(FromContext(), "a"), Source(FromContext(), "b")), destination="/x")
    found = {tuple(each) for each in (["1", "2"], ["1", "3"], ["3", "2"], ["12", ""])}
    assert len({keys.of_copy(copy, "p", each, None) for each in found}) == len(found)


def test_no_two_values_look_alike() -> None:
    values: list[tuple[object, ...]] = [
        ("a", "b"),
        ("ab",),
        (["a", "b"],),
        ("a", ["b"]),
        ("a", 1),
        ("a", "1"),
        (None,),
        ("",),
    ]
    values += [("\udcff",), ("\\udcff",), ("\xff",)]
    assert len({keys.digest(*each) for each in values}) == len(values)


def test_text_counts_by_what_it_says() -> None:
    assert keys.of_source(Source(FromText("x"), "E"), "") != keys.of_source(Source(FromText("y"), "E"), "")
    assert keys.of_source(Source(FromText("x"), "E"), "") != keys.of_source(Source(FromText("x"), "F"), "")


def test_other_steps_have_other_keys() -> None:
    assert keys.of_workdir(Workdir(path="/a"), "p", None) != keys.of_workdir(Workdir(path="/b"), "p", None)
    assert keys.of_workdir(Workdir(path="/a"), "p", None) != keys.of_workdir(
        Workdir(path="/a", user="u"), "p", None
    )
    assert keys.of_image("sha256:1", "linux/amd64") != keys.of_image("sha256:1", "linux/arm64")
    assert keys.of_nothing("linux/amd64") != keys.of_image("", "linux/amd64")


def test_a_link_s_mode_does_not_count() -> None:
    assert key({"a": Node(LINK, 0o777, target="x")}) == key({"a": Node(LINK, 0o755, target="x")})
