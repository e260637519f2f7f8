"""Mounts, volumes and root file systems as values: what may be asked for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from sandboxlib.errors import SpecError
from sandboxlib.mount import Mount, Volume
from sandboxlib.rootfs import INODES, SIZE, WRITABLE, Rootfs

VALUES = [
    Mount.bind("/data", "/data"),
    Mount.bind("/data", "/data", readonly=True, recursive=False, noexec=True, optional=True),
    Mount.tmpfs("/scratch"),
    Mount.tmpfs("/scratch", size="64M", mode=0o700, nr_inodes=100, noexec=True, readonly=True),
    Volume("models"),
    Volume("models").at("/models"),
    Volume("models", size="1G").at("/models", readonly=True, noexec=True),
    Rootfs.host(),
    Rootfs.host(paths=["/srv/tools", "/opt"], size="1G", nr_inodes=1000),
    Rootfs.directory("/srv/base"),
    Rootfs.directory("/srv/base", readonly=False),
    Rootfs.overlay(lower=["/srv/top", "/srv/base"], size="64M"),
    Rootfs.overlay(lower=["/srv/base"], storage="/var/tmp/x", readonly=True),
    Rootfs.overlay(lower=["/srv/base"], storage="/var/tmp/x", size="1G", nr_inodes=20),
    Rootfs.empty(),
    Rootfs.empty(size="64K", readonly=True),
    Rootfs.image("registry.example:5000/team/app:1.2"),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_reads_back_copies_and_hashes(value: Mount | Volume | Rootfs) -> None:
    assert eval(repr(value)) == value
    assert attrs.evolve(value) == value
    assert hash(attrs.evolve(value)) == hash(value)
    assert pickle.loads(pickle.dumps(value)) == value


def test_values_that_differ_are_not_equal() -> None:
    assert len(set(VALUES)) == len(VALUES)


def test_paths_are_kept_plain() -> None:
    mount = Mount.bind(Path("/data"), "//work//data/./x/")
    assert (mount.source, mount.destination) == ("/data", "/work/data/x")
    assert Rootfs.overlay(lower=[Path("/srv/base/")]) == Rootfs.overlay(lower=("/srv/base",))


def test_a_bind_is_writable_and_takes_what_is_below_along() -> None:
    mount = Mount.bind("/data", "/data")
    assert (mount.readonly, mount.recursive, mount.optional) == (False, True, False)


def test_a_tmpfs_is_everyones_like_tmp() -> None:
    assert Mount.tmpfs("/scratch").mode == 0o1777


def test_more_shared_memory_can_be_asked_for() -> None:
    assert Mount.tmpfs("/dev/shm", size="1G").size == 1 << 30


def test_a_volume_goes_into_its_mount() -> None:
    mount = Volume("models", size="1G").at("/models", readonly=True)
    assert (mount.kind, mount.source, mount.size, mount.readonly) == ("volume", "models", 1 << 30, True)


Refused = tuple[Callable[[], object], str]
MOUNTS: list[Refused] = [
    (lambda: Mount("overlay", "/x"), "kind"),
    (lambda: Mount.bind("data", "/data"), "source"),
    (lambda: Mount.bind("/data/../etc", "/data"), "source"),
    (lambda: Mount.bind("", "/data"), "source"),
    (lambda: Mount.bind("/da\0ta", "/data"), "source"),
    (lambda: Mount.bind("/data", "data"), "destination"),
    (lambda: Mount.bind("/data", "./data"), "destination"),
    (lambda: Mount.bind("/data", "/data/../etc"), "destination"),
    (lambda: Mount.bind("/data", "/da\0ta"), "destination"),
    (lambda: Mount.bind("/data", ""), "destination"),
    (lambda: Mount.bind("/data", None), "destination"),  # type: ignore[arg-type]
    (lambda: Mount.bind("/data", "/"), "destination"),
    (lambda: Mount.bind("/data", "//."), "destination"),
    (lambda: Mount.bind("/data", "/proc"), "destination"),
    (lambda: Mount.bind("/data", "/proc/sys"), "destination"),
    (lambda: Mount.bind("/data", "//proc/./1"), "destination"),
    (lambda: Mount.bind("/data", "/sys"), "destination"),
    (lambda: Mount.bind("/data", "/sys/fs/cgroup"), "destination"),
    (lambda: Mount.bind("/data", "/dev"), "destination"),
    (lambda: Mount.bind("/dev/kvm", "/dev/kvm"), "destination"),
    (lambda: Mount.tmpfs("/dev/shm/x"), "destination"),
    (lambda: Mount.bind("/data", "/data", readonly=1), "readonly"),  # type: ignore[arg-type]
    (lambda: Mount.bind("/data", "/data", noexec="no"), "noexec"),  # type: ignore[arg-type]
    (lambda: Mount.bind("/data", "/data", recursive=None), "recursive"),  # type: ignore[arg-type]
    (lambda: Mount.bind("/data", "/data", optional=0), "optional"),  # type: ignore[arg-type]
    (lambda: Mount.tmpfs("/x", size=0), "size"),
    (lambda: Mount.tmpfs("/x", size=4095), "size"),
    (lambda: Mount.tmpfs("/x", size="lots"), "size"),
    (lambda: Mount.tmpfs("/x", size=-1), "size"),
    (lambda: Mount.tmpfs("/x", nr_inodes=0), "nr_inodes"),
    (lambda: Mount.tmpfs("/x", mode=0o10000), "mode"),
    (lambda: Mount.tmpfs("/x", mode="0700"), "mode"),  # type: ignore[arg-type]
    (lambda: Mount("tmpfs", "/x", source="/y"), "source"),
    (lambda: Mount("tmpfs", "/x", optional=True), "optional"),
    (lambda: Mount("bind", "/x", source="/y", size=4096), "size"),
    (lambda: Mount("bind", "/x", source="/y", mode=0o700), "mode"),
    (lambda: Mount("bind", "/x"), "source"),
    (lambda: Mount("volume", "/x"), "source"),
    (lambda: Mount("volume", "/x", source="/y"), "source"),
    (lambda: Volume("models").at("models"), "destination"),
    (lambda: Volume(""), "name"),
    (lambda: Volume("-x"), "name"),
    (lambda: Volume("../x"), "name"),
    (lambda: Volume("a/b"), "name"),
    (lambda: Volume("a\n"), "name"),
    (lambda: Volume("ä"), "name"),
    (lambda: Volume("a" * 129), "name"),
    (lambda: Volume(b"a"), "name"),  # type: ignore[arg-type]
    (lambda: Volume("a", size=0), "size"),
    (lambda: Volume.remove("../x"), "name"),
]
ROOTS: list[Refused] = [
    (lambda: Rootfs("chroot"), "kind"),
    (lambda: Rootfs.host(paths=["opt"]), "paths"),
    (lambda: Rootfs.host(paths="/opt"), "paths"),
    (lambda: Rootfs.host(paths=["/"]), "paths"),
    (lambda: Rootfs.host(paths=["/proc/sys"]), "paths"),
    (lambda: Rootfs.host(paths=["/dev"]), "paths"),
    (lambda: Rootfs.host(size="63K"), "size"),
    (lambda: Rootfs.host(size=0), "size"),
    (lambda: Rootfs.host(nr_inodes=15), "nr_inodes"),
    (lambda: Rootfs("host", readonly=False), "readonly"),
    (lambda: Rootfs.directory("base"), "path"),
    (lambda: Rootfs.directory("/srv/.."), "path"),
    (lambda: Rootfs.directory(None), "path"),  # type: ignore[arg-type]
    (lambda: Rootfs.directory("/srv", readonly="yes"), "readonly"),  # type: ignore[arg-type]
    (lambda: Rootfs("directory", path="/srv", size="1G"), "size"),
    (lambda: Rootfs("directory", path="/srv", storage="tmpfs"), "storage"),
    (lambda: Rootfs.overlay(lower=[]), "lower"),
    (lambda: Rootfs.overlay(lower="/srv"), "lower"),
    (lambda: Rootfs.overlay(lower=None), "lower"),  # type: ignore[arg-type]
    (lambda: Rootfs.overlay(lower=["srv"]), "lower"),
    (lambda: Rootfs.overlay(lower=["/srv", "/srv"]), "lower"),
    (lambda: Rootfs.overlay(lower=["/srv/base/x", "/other", "/srv/base"]), "lower"),
    (lambda: Rootfs.overlay(lower=["/", "/srv"]), "lower"),
    (lambda: Rootfs.overlay(lower=[f"/{n}" for n in range(501)]), "lower"),
    (lambda: Rootfs.overlay(lower=["/srv"], storage="disk"), "storage"),
    (lambda: Rootfs.overlay(lower=["/srv"], size="10"), "size"),
    (lambda: Rootfs("overlay", lower=["/srv"], path="/srv"), "path"),
    (lambda: Rootfs.empty(size="1K"), "size"),
    (lambda: Rootfs.image(""), "reference"),
    (lambda: Rootfs.image("a b"), "reference"),
    (lambda: Rootfs.image("app:1\n"), "reference"),
    (lambda: Rootfs("empty", reference="app"), "reference"),
]


@pytest.mark.parametrize("make, field", MOUNTS + ROOTS)
def test_a_wrong_argument_is_named(make: Callable[[], object], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field
    assert repr(caught.value.value) in str(caught.value)


def test_a_folder_beside_another_of_similar_name_is_no_layer_within() -> None:
    assert len(Rootfs.overlay(lower=["/srv/base", "/srv/base-2", "/srv/bas"]).lower) == 3


def test_what_lies_in_memory_always_has_a_size() -> None:
    for value in (Rootfs.host(), Rootfs.empty(), Rootfs.overlay(lower=["/srv"]), Rootfs.image("app")):
        assert (value.size, value.nr_inodes) == (SIZE, INODES)


def test_what_lies_on_disk_has_the_size_that_was_asked_for() -> None:
    assert Rootfs.overlay(lower=["/srv"], storage="/var/tmp/x").size is None
    assert Rootfs.overlay(lower=["/srv"], storage="/var/tmp/x", size="1G").size == 1 << 30
    assert Rootfs.directory("/srv").size is None


def test_only_what_the_caller_may_lose_is_writable() -> None:
    assert Rootfs.host().readonly
    assert Rootfs.directory("/srv").readonly
    assert not Rootfs.overlay(lower=["/srv"]).readonly


def test_the_writable_folders_of_the_host_view() -> None:
    assert set(WRITABLE) == {"/tmp", "/home", "/root", "/var/tmp", "/run", "/work"}


def test_layers_keep_their_order() -> None:
    assert Rootfs.overlay(lower=["/z", "/a"]).lower == ("/z", "/a")


def test_a_value_cannot_be_changed() -> None:
    for value, field in ((VALUES[0], "readonly"), (Volume("a"), "name"), (Rootfs.host(), "readonly")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, field, False)
