"""Whatever is given, a value is made or refused; what is made prints, compares and copies as one value."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import SpecError
from sandboxlib.limits import Limits
from sandboxlib.mount import Mount, Volume
from sandboxlib.namespace import KINDS, MAX_ID, IdRange, Namespace
from sandboxlib.network import Network
from sandboxlib.rootfs import Rootfs
from sandboxlib.security import CAPABILITIES, RESOURCES, Security
from sandboxlib.spec import Port, SandboxSpec

#: A machine that is busy is no failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

#: What reprs are read with.
NAMES = {
    kind.__name__: kind
    for kind in (
        CGroup,
        IdRange,
        Limits,
        Mount,
        Namespace,
        Network,
        Port,
        Rootfs,
        SandboxSpec,
        Security,
        Volume,
    )
}

#: Words that mean something somewhere, so that junk comes close to what is right.
SAMPLES = """
    / /a /a/b /dev /dev/shm /dev/kvm /proc/1 /srv // /.. a a/b a:b 0 1 64M 1000:1000 none host max default
    unconfined unlimited tmpfs bind volume overlay empty image new join inherit CAP_CHOWN all i386 nofile
    core seccomp rwx 10.0.0.0/8 10.0.0.1 fd00::/64 [::1]:80 127.0.0.1:80/udp 80/tcp eth0 a.example:443 *.a.b
"""
WORDS = st.sampled_from(SAMPLES.split())
#: Letters, and what paths, numbers, addresses, variables and system calls trip over.
LETTERS = "aZ09/.:=-_*[]{% \n\0\x7fäß١\udc80\ud800"
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.integers()
    | st.sampled_from([4096, 65535, 65536, MAX_ID, MAX_ID + 1, 2**63 - 1, 2**63, 2**64])
    | st.floats()
    | WORDS
    | st.text(LETTERS, max_size=8)
    | st.binary(max_size=4)
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner)
        | st.dictionaries(SCALARS, inner, max_size=3)
        | st.sets(SCALARS, max_size=3)
    ),
    max_leaves=6,
)


def one_value(value: Any) -> None:
    """Check what holds for every value that could be made."""
    assert repr(value) == repr(attrs.evolve(value))
    assert attrs.evolve(value) == value
    assert hash(attrs.evolve(value)) == hash(value)
    assert eval(repr(value), NAMES | {"nan": float("nan"), "inf": float("inf")}) == value
    assert pickle.loads(pickle.dumps(value)) == value


def made(make: Callable[[], Any]) -> Any:
    """What *make* returns, or None when it refuses; any other error is a failure."""
    try:
        value = make()
    except SpecError as error:
        refused = error
    else:
        one_value(value)
        return value
    assert refused.field
    assert refused.allowed in str(refused)
    return None


def arguments(value: type, /, **better: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any arguments of *value*; for some of them, by name, values that are more often right."""
    names = [field.name for field in attrs.fields(value) if field.name not in {"owner", *better}]
    optional = dict.fromkeys(names, JUNK) | {name: JUNK | good for name, good in better.items()}
    return st.fixed_dictionaries({}, optional=optional)


@patient
@given(arguments(Namespace, kind=st.sampled_from([*KINDS])))
def test_a_namespace_is_made_or_refused(asked: dict[str, Any]) -> None:
    made(lambda: Namespace(asked.pop("kind", "user"), **asked))


@patient
@given(arguments(Mount, kind=st.sampled_from(["bind", "tmpfs", "volume"]), destination=st.just("/x")))
def test_a_mount_is_made_or_refused(asked: dict[str, Any]) -> None:
    value = made(lambda: Mount(asked.pop("kind", "bind"), asked.pop("destination", "/x"), **asked))
    if value is not None:
        assert value.destination.startswith("/")
        assert ".." not in value.destination.split("/")
        assert value.destination == "/dev/shm" or value.destination.split("/")[1] not in (
            "",
            "proc",
            "sys",
            "dev",
        )


@patient
@given(JUNK, JUNK)
def test_a_volume_is_made_or_refused(name: Any, size: Any) -> None:
    value = made(lambda: Volume(name, size=size))
    if value is not None:
        # It becomes the name of a folder.
        assert os.path.basename(value.name) == value.name
        assert value.name not in (".", "..")


@patient
@given(arguments(Rootfs, kind=st.sampled_from(["host", "directory", "overlay", "empty", "image"])))
def test_a_rootfs_is_made_or_refused(asked: dict[str, Any]) -> None:
    value = made(lambda: Rootfs(asked.pop("kind", "host"), **asked))
    if value is not None and value.kind != "directory" and value.storage in (None, "tmpfs"):
        assert value.size >= 65536
        assert value.nr_inodes


NETWORKS = st.sampled_from(["none", "host", "bridge", "user", "macvlan", "vxlan", "of"])


@patient
@given(arguments(Network, kind=NETWORKS, name=st.just("n"), namespace=st.just(Namespace("network", pid=1))))
def test_a_network_is_made_or_refused(asked: dict[str, Any]) -> None:
    made(lambda: Network(asked.pop("kind", "bridge"), **asked))


RLIMITS = st.dictionaries(st.sampled_from([*RESOURCES]), SCALARS, max_size=2)


@patient
@given(arguments(Security, capabilities=st.lists(st.sampled_from([*CAPABILITIES])), rlimits=RLIMITS))
def test_security_is_made_or_refused(asked: dict[str, Any]) -> None:
    value = made(lambda: Security(**asked))
    if value is not None:
        assert set(value.capabilities) <= set(CAPABILITIES)
        assert len(set(value.capabilities)) == len(value.capabilities)


@patient
@given(arguments(Limits))
def test_limits_are_made_or_refused(asked: dict[str, Any]) -> None:
    made(lambda: Limits(**asked))


PARTS: dict[str, st.SearchStrategy[Any]] = {
    "namespaces": st.lists(st.builds(Namespace, st.sampled_from([*KINDS])), max_size=4),
    "rootfs": st.sampled_from([Rootfs.host(), Rootfs.empty()]),
    "cgroup": st.sampled_from([CGroup(), CGroup(memory_max="64M"), CGroup(pids_max="max")]),
    "mounts": st.lists(
        st.sampled_from([Mount.tmpfs("/a"), Mount.tmpfs("/a/b"), Mount.bind("/s", "/b")]), max_size=3
    ),
    "network": st.sampled_from([Network.none(), Network.host(), Network.bridge("b")]),
    "ports": st.dictionaries(
        st.integers(0, 65535) | st.just("127.0.0.1:80/udp"), st.integers(1, 65535), max_size=3
    ),
    "security": st.sampled_from([Security(), Security(user=1000), Security(masked_paths=[])]),
    "env": st.dictionaries(st.text(LETTERS, max_size=3), st.text(LETTERS, max_size=3), max_size=3),
}


@patient
@given(arguments(SandboxSpec, **PARTS))
def test_a_sandbox_is_asked_for_or_refused(asked: dict[str, Any]) -> None:
    value = made(lambda: SandboxSpec.of(**asked))
    if value is not None:
        assert not (value.image and value.rootfs)
        kinds = [namespace.kind for namespace in value.namespaces]
        assert len(set(kinds)) == len(kinds)


RANGES = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 10))


@patient
@given(st.lists(RANGES, min_size=1, max_size=4))
def test_id_maps_are_taken_exactly_when_no_id_is_mapped_twice(ranges: list[tuple[int, int, int]]) -> None:
    def twice(side: int) -> bool:
        ids = [line[side] + n for line in ranges for n in range(line[2])]
        return len(set(ids)) < len(ids)

    value = made(lambda: Namespace("user", uid_map=ranges, gid_map=ranges))
    assert (value is None) == (twice(0) or twice(1))


@patient
@given(st.lists(st.sampled_from(["/a", "/a/b", "/a/b/c", "/ab", "/b", "/b/a", "/"]), min_size=1, max_size=5))
def test_layers_are_taken_exactly_when_none_contains_another(lower: list[str]) -> None:
    def contains(outer: str, inner: str) -> bool:
        return os.path.commonpath([outer, inner]) == outer

    pairs = [(a, b) for i, a in enumerate(lower) for j, b in enumerate(lower) if i != j]
    assert (made(lambda: Rootfs.overlay(lower=lower)) is None) == any(contains(a, b) for a, b in pairs)


@patient
@given(st.floats(-4e9, 4e9) | st.integers(-(4 * 10**9), 4 * 10**9))
def test_an_offset_is_a_number_of_nanoseconds(seconds: float) -> None:
    kept = Namespace("time", boottime_offset=seconds).boottime_offset
    whole = int(kept // 1)
    # What the kernel takes: a second that may be negative, and nanoseconds that are none of both.
    assert 0 <= round((kept - whole) * 1e9) < 10**9
    assert abs(kept - seconds) <= 1e-9
