"""A namespace as a value: what may be asked for, and when two are the same."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from sandboxlib.errors import SpecError, StateError, UnsupportedError
from sandboxlib.namespace import KINDS, MAX_ID, IdRange, Namespace
from sandboxlib.network import Network


@pytest.fixture
def gone() -> int:
    """The number of a process that was, and is not."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


class Engine:
    """As much of a live sandbox as `Namespace.of` sees."""

    def namespace_path(self, kind: str) -> str:
        return f"/proc/{os.getpid()}/ns/{KINDS[kind]}"


class Box:
    def __init__(self, engine: Engine | None) -> None:
        self._engine = engine


def test_the_eight_kinds_are_the_kernels() -> None:
    files = {name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children")}
    assert len(KINDS) == 8
    # A kernel may lack some; it has none that we do not know.
    assert files <= set(KINDS.values())


def test_mode_follows_from_how_it_is_asked_for() -> None:
    assert Namespace("ipc").mode == "new"
    assert Namespace("ipc", path="/run/x").mode == "join"
    assert Namespace("ipc", pid=7).mode == "join"
    assert Namespace.host("ipc").mode == "host"
    assert Namespace("ipc", mode="host") == Namespace.host("ipc")


def test_a_pid_is_short_for_its_path() -> None:
    assert Namespace("network", pid=4242) == Namespace("network", path="/proc/4242/ns/net")
    assert Namespace("mount", pid=1).path == "/proc/1/ns/mnt"


def test_maps_are_kept_in_order_and_as_tuples() -> None:
    value = Namespace("user", uid_map=[[1000, 0, 1], (0, 100000, 1000)], gid_map=iter([(0, 5, 1)]))  # type: ignore[list-item]
    assert value.uid_map == (IdRange(0, 100000, 1000), IdRange(1000, 0, 1))
    assert value == Namespace("user", uid_map=[(0, 100000, 1000), (1000, 0, 1)], gid_map=[(0, 5, 1)])


def test_ranges_may_touch_and_reach_the_last_id() -> None:
    ranges = [(0, 1000, 10), (10, 1010, 10), (MAX_ID, MAX_ID, 1)]
    assert Namespace("user", uid_map=ranges, gid_map=ranges).uid_map[-1].inside == MAX_ID


@pytest.mark.parametrize(
    "value, kept", [(3600, 3600), (1.5, 1.5), (-0.25, -0.25), (2.0, 2), (1.0000000001, 1)]
)
def test_offsets_are_kept_in_nanoseconds(value: float, kept: float) -> None:
    namespace = Namespace("time", monotonic_offset=value)
    assert namespace.monotonic_offset == kept
    assert type(namespace.monotonic_offset) is type(kept)


@pytest.mark.parametrize(
    "arguments, field",
    [
        ({"kind": "mnt"}, "kind"),
        ({"kind": "net"}, "kind"),
        ({"kind": "Network"}, "kind"),
        ({"kind": None}, "kind"),
        ({"kind": []}, "kind"),
        ({"kind": "ipc", "path": "run/x"}, "path"),
        ({"kind": "ipc", "path": "/run/../x"}, "path"),
        ({"kind": "ipc", "path": "/run/\0"}, "path"),
        ({"kind": "ipc", "path": 3}, "path"),
        ({"kind": "ipc", "path": "/x", "pid": 3}, "pid"),
        ({"kind": "ipc", "pid": 0}, "pid"),
        ({"kind": "ipc", "pid": -1}, "pid"),
        ({"kind": "ipc", "pid": True}, "pid"),
        ({"kind": "ipc", "pid": "self"}, "pid"),
        ({"kind": "ipc", "uid_map": [(0, 0, 1)], "gid_map": [(0, 0, 1)]}, "uid_map"),
        ({"kind": "user", "uid_map": [(0, 0, 1)]}, "gid_map"),
        ({"kind": "user", "gid_map": [(0, 0, 1)]}, "uid_map"),
        ({"kind": "user", "path": "/x", "uid_map": [(0, 0, 1)], "gid_map": [(0, 0, 1)]}, "uid_map"),
        ({"kind": "user", "uid_map": "0 0 1"}, "uid_map"),
        ({"kind": "user", "uid_map": [(0, 0)]}, "uid_map"),
        ({"kind": "user", "uid_map": [(0, 0, 0)]}, "uid_map"),
        ({"kind": "user", "uid_map": [(0, 0, -1)]}, "uid_map"),
        ({"kind": "user", "uid_map": [(-1, 0, 1)]}, "uid_map"),
        ({"kind": "user", "uid_map": [(0, 2**32 - 1, 1)]}, "uid_map"),
        ({"kind": "user", "uid_map": [(0, 2**32 - 2, 2)]}, "uid_map"),
        ({"kind": "user", "uid_map": [(0, 100000, 10), (9, 200000, 1)]}, "uid_map"),
        ({"kind": "user", "uid_map": [(0, 100000, 10), (10, 100009, 1)]}, "uid_map"),
        ({"kind": "user", "uid_map": [(5, 100009, 1), (20, 100000, 10)]}, "uid_map"),
        ({"kind": "user", "gid_map": [(0, 100000, 10), (0, 200000, 1)]}, "gid_map"),
        ({"kind": "user", "uid_map": [(n, n, 1) for n in range(341)]}, "uid_map"),
        ({"kind": "uts", "monotonic_offset": 1}, "monotonic_offset"),
        ({"kind": "time", "path": "/x", "boottime_offset": 1}, "boottime_offset"),
        ({"kind": "time", "boottime_offset": True}, "boottime_offset"),
        ({"kind": "time", "boottime_offset": "1"}, "boottime_offset"),
        ({"kind": "time", "boottime_offset": float("nan")}, "boottime_offset"),
        ({"kind": "time", "boottime_offset": float("-inf")}, "boottime_offset"),
        ({"kind": "time", "boottime_offset": 10**400}, "boottime_offset"),
        ({"kind": "time", "boottime_offset": 4611686019}, "boottime_offset"),
        ({"kind": "uts", "mode": "joined"}, "mode"),
        ({"kind": "uts", "mode": "join"}, "mode"),
        ({"kind": "uts", "mode": "new", "path": "/x"}, "mode"),
        ({"kind": "uts", "mode": "host", "path": "/x"}, "mode"),
        ({"kind": "uts", "identity": (1, 2)}, "identity"),
        ({"kind": "uts", "path": "/x", "identity": 2}, "identity"),
        ({"kind": "uts", "path": "/x", "identity": (1, -2)}, "identity"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Namespace(**arguments)
    assert caught.value.field == field
    assert caught.value.allowed in str(caught.value)


@pytest.mark.parametrize("kernel, ours", [("mnt", "mount"), ("net", "network")])
def test_the_kernels_names_are_refused_with_ours(kernel: str, ours: str) -> None:
    with pytest.raises(SpecError, match=f"'{ours}'"):
        Namespace(kernel)


@pytest.fixture
def other_network() -> Iterator[int]:
    """A process with a network namespace of its own."""
    script = (
        "import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.unshare(0x10000000 | 0x40000000): sys.exit(f'unshare: errno {ctypes.get_errno()}')\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield child.pid


@pytest.mark.userns
@pytest.mark.netns
def test_of_is_equal_exactly_when_it_is_the_same_namespace(other_network: int) -> None:
    mine = Namespace.of("self", "network")
    assert mine == Namespace.of(os.getpid(), "network")
    assert hash(mine) == hash(Namespace.of(os.getpid(), "network"))
    assert mine.path != Namespace.of(os.getpid(), "network").path
    assert mine != Namespace.of("self", "ipc")
    assert mine != Namespace.of(other_network, "network")
    assert mine.inode == int(os.readlink("/proc/self/ns/net").strip("net:[]"))


def test_of_a_sandbox_keeps_it_and_compares_by_identity() -> None:
    box = Box(Engine())
    value = Namespace.of(box, "ipc")
    assert value.owner is box
    assert value == Namespace.of("self", "ipc")
    assert value.mode == "join"


def test_of_a_sandbox_that_is_not_open() -> None:
    with pytest.raises(StateError):
        Namespace.of(Box(None), "ipc")


def test_of_a_process_that_is_gone(gone: int) -> None:
    with pytest.raises(SpecError) as caught:
        Namespace.of(gone, "network")
    assert (caught.value.field, caught.value.value) == ("target", gone)


@pytest.mark.parametrize("target", [0, -1, True, "init", None, 1.0, b"self"])
def test_of_something_else(target: object) -> None:
    with pytest.raises(SpecError) as caught:
        Namespace.of(target, "network")
    assert caught.value.field == "target"


def test_of_an_unknown_kind() -> None:
    with pytest.raises(SpecError) as caught:
        Namespace.of("self", "net")
    assert caught.value.field == "kind"


class Without(Engine):
    """A sandbox on a kernel that lacks a kind of namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def namespace_path(self, kind: str) -> str:
        return str(self.folder / kind)


def test_of_a_kind_that_the_kernel_lacks(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="time namespace"):
        Namespace.of(Box(Without(tmp_path)), "time")


@pytest.mark.unprivileged
def test_of_a_process_that_is_someone_elses(as_user: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = """
from sandboxlib.errors import KernelError
from sandboxlib.namespace import Namespace
try:
    Namespace.of(1, "network")
except KernelError as error:
    print(error.errno, error.call)
"""
    assert as_user(script).stdout == f'{errno.EACCES} stat("/proc/1/ns/net")\n'


def test_network_of_is_the_network_of_its_target() -> None:
    value = Network.of(os.getpid())
    assert value == Network.of(Box(Engine())) == Network.of("self")
    assert value.namespace == Namespace.of("self", "network")


@pytest.mark.parametrize(
    "value",
    [
        Namespace("uts"),
        Namespace("network", pid=4242),
        Namespace("user", uid_map=[(0, 100000, 65536)], gid_map=[(0, 100000, 65536)]),
        Namespace("time", monotonic_offset=-1.5, boottime_offset=3600),
        Namespace.host("uts"),
        Namespace.of("self", "ipc"),
    ],
    ids=repr,
)
def test_a_value_reads_back_copies_and_hashes(value: Namespace) -> None:
    assert eval(repr(value)) == value
    assert attrs.evolve(value) == value
    assert hash(attrs.evolve(value)) == hash(value)
    assert pickle.loads(pickle.dumps(value)) == value
    assert value != object()


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Namespace("uts").kind = "ipc"  # type: ignore[misc]


def test_making_and_printing_a_value_does_nothing_else(gone: int) -> None:
    # Nothing is looked up: neither of these exists.
    assert "no-such-file" in repr(Namespace("network", path="/no-such-file"))
    assert str(gone) in repr(Namespace("network", pid=gone))
