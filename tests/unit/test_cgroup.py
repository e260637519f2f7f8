"""The value CGroup: what it takes, what it keeps, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxlib.cgroup import MINIMAL_DEVICES, CGroup, require
from sandboxlib.cgroup_fields import DeviceRule
from sandboxlib.errors import SpecError, UnsupportedError
from sandboxlib.host import CGroupHost

ALL = ("memory", "pids", "cpu", "cpuset", "io", "cpuacct", "freezer", "devices", "hugetlb")
V2 = CGroupHost(version=2, bases=dict.fromkeys(ALL, "/sys/fs/cgroup"), hint="the way out")
V1 = CGroupHost(version=1, bases={name: f"/sys/fs/cgroup/{name}" for name in ALL}, hint="the way out")


def test_the_values_of_the_documentation_are_brought_into_one_form() -> None:
    group = CGroup(
        memory_max="256M",
        memory_high="200M",
        memory_swap_max=0,
        cpu_max=0.5,
        cpu_weight=50,
        cpuset_cpus="0-1",
        pids_max=64,
        io_max=[("8:0", {"rbps": "10M", "wiops": 100})],
        devices=["c 10:200 rwm"],
    )
    assert group.fields == {
        "memory_max": 256 << 20,
        "memory_high": 200 << 20,
        "memory_swap_max": 0,
        "cpu_max": 0.5,
        "cpu_weight": 50,
        "cpuset_cpus": (0, 1),
        "pids_max": 64,
        "io_max": (("8:0", (("rbps", 10 << 20), ("wiops", 100))),),
        "devices": ("c 10:200 rwm",),
    }
    assert group.controllers == {"memory", "cpu", "cpuset", "pids", "io", "devices"}


def test_equal_limits_are_equal_however_they_are_written() -> None:
    one = CGroup(memory_max="1M", cpuset_cpus="1,0", hugetlb_max={"2MB": "4M"}, devices=["c 1:11 wr"])
    other = CGroup(
        memory_max=1 << 20, cpuset_cpus=[0, 1], hugetlb_max={"2MB": 4 << 20}, devices=["c 1:11  rw"]
    )
    assert one == other
    assert hash(one) == hash(other)


def test_nothing_set_is_empty() -> None:
    assert CGroup().fields == {}
    assert CGroup().controllers == frozenset()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_max", 0),
        ("memory_max", 4095),
        ("memory_max", -1),
        ("memory_max", "much"),
        ("memory_max", True),
        ("memory_max", 1.5),
        ("memory_high", 0),
        ("memory_swap_max", -1),
        ("memory_oom_group", 1),
        ("cpu_max", 0),
        ("cpu_max", 0.001),
        ("cpu_max", float("inf")),
        ("cpu_max", float("nan")),
        ("cpu_max", "half"),
        ("cpu_max", (999, 1000)),
        ("cpu_max", (1000, 999)),
        ("cpu_max", (1000, 1_000_001)),
        ("cpu_max", (1000.0, 1000)),
        ("cpu_max", (1000,)),
        ("cpu_weight", 0),
        ("cpu_weight", 10001),
        ("cpu_weight", 1.0),
        ("cpu_idle", "yes"),
        ("cpuset_cpus", ""),
        ("cpuset_cpus", "1-0"),
        ("cpuset_mems", [-1]),
        ("pids_max", 0),
        ("pids_max", (1 << 22) + 1),
        ("pids_max", "64"),
        ("io_weight", 0),
        ("io_max", "8:0"),
        ("io_max", ["8:0"]),
        ("io_max", [("sda", {"rbps": 1})]),
        ("io_max", [("8:0", {})]),
        ("io_max", [("8:0", {"rps": 1})]),
        ("io_max", [("8:0", {"rbps": 1}), ("8:0", {"wbps": 1})]),
        ("io_latency", [("8:0", 0)]),
        ("io_latency", [("8:0", "10ms")]),
        ("io_latency", [("8:0", None)]),
        ("io_latency", [("8:0", 5), ("8:0", 6)]),
        ("cpuset_cpus_partition", "exclusive"),
        ("cpuset_cpus_partition", True),
        ("devices", "c 1:3 rwm"),
        ("devices", ["c 1:3"]),
        ("devices", ["x 1:3 rwm"]),
        ("devices", ["c 1:3 rr"]),
        ("devices", ["c 4096:0 r"]),
        ("devices", ["c 1:1048576 r"]),
        ("devices", [b"c 1:3 r"]),
        ("hugetlb_max", {"2M": "64M"}),
        ("hugetlb_max", {"2MB": None}),
        ("unified", {"memory.max": 1}),
        ("unified", {"../memory.max": "1"}),
        ("unified", {"memory": "1"}),
        ("unified", {"memory.max": ""}),
        ("unified", {"cgroup.procs": "0"}),
        ("unified", {"cgroup.kill": "1"}),
        ("unified", {"cgroup.freeze": "1"}),
    ],
)
def test_nonsense_is_refused_by_name(field: str, value: object) -> None:
    arguments: Any = {field: value}
    with pytest.raises(SpecError) as caught:
        CGroup(**arguments)
    assert caught.value.field.startswith(field)
    assert caught.value.allowed


@pytest.mark.parametrize("key", ["rbps", "wiops"])
def test_an_io_limit_of_zero_is_refused_with_its_key(key: str) -> None:
    with pytest.raises(SpecError) as caught:
        CGroup(io_max=[("8:0", {key: 0})])
    assert caught.value.field == f"io_max['8:0']['{key}']"


def test_an_unknown_field_is_refused() -> None:
    arguments: Any = {"memory_maximum": 1}
    with pytest.raises(TypeError, match="memory_maximum"):
        CGroup(**arguments)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("cpu_weight", {"cpu_idle": True, "cpu_weight": 100}),
        ("memory_min", {"memory_max": "1M", "memory_min": "2M"}),
        ("cpuset_cpus_partition", {"cpuset_mems": "0", "cpuset_cpus_partition": "root"}),
        ("memory_low", {"memory_max": "1M", "memory_low": "max"}),
        ("unified", {"memory_max": "1M", "unified": {"memory.max": "1"}}),
    ],
)
def test_a_contradiction_is_refused(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        CGroup(**fields)
    assert caught.value.field == field


def test_max_lifts_a_limit() -> None:
    lifted = CGroup(memory_max="1M", pids_max=5).merge(CGroup(memory_max="max"))
    assert lifted == CGroup(memory_max="max", pids_max=5)


def test_merging_takes_the_newer_limit_and_keeps_the_others() -> None:
    merged = CGroup(memory_max="1M", io_max=[("8:0", {"rbps": 1})]).merge(CGroup(memory_max="2M", cpu_max=2))
    assert merged == CGroup(memory_max="2M", cpu_max=2, io_max=[("8:0", {"rbps": 1})])
    assert CGroup(pids_max=1).merge(CGroup()) == CGroup(pids_max=1)


def test_a_weight_ends_idleness_and_idleness_a_weight() -> None:
    assert CGroup(cpu_idle=True).merge(CGroup(cpu_weight=10)) == CGroup(cpu_idle=False, cpu_weight=10)
    assert CGroup(cpu_weight=10).merge(CGroup(cpu_idle=True)) == CGroup(cpu_idle=True)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("c 10:200 rwm", DeviceRule("c", 10, 200, "rwm")),
        ("b 8:* mr", DeviceRule("b", 8, None, "rm")),
        ("a *:* rwm", DeviceRule("a", None, None, "rwm")),
        ("a", DeviceRule("a", None, None, "rwm")),
    ],
)
def test_device_rules_are_read_and_written(text: str, rule: DeviceRule) -> None:
    assert DeviceRule.parse(text) == rule
    assert DeviceRule.parse(str(rule)) == rule


def test_no_minimal_device_reaches_hardware_or_memory() -> None:
    dangerous = {(1, 1), (1, 2), (1, 4), (1, 11), (10, 232)}  # mem, kmem, port, kmsg, kvm
    assert not {(rule.major, rule.minor) for rule in MINIMAL_DEVICES} & dangerous
    assert {rule.kind for rule in MINIMAL_DEVICES} == {"c"}
    assert {rule.major for rule in MINIMAL_DEVICES} == {1, 5, 136}


def test_raw_files_need_the_controller_of_their_name() -> None:
    assert CGroup(unified={"memory.zswap.max": "0", "cgroup.max.depth": "1"}).controllers == {"memory"}


@pytest.mark.parametrize(
    "fields",
    [
        {"memory_high": "1M"},
        {"memory_low": "1M"},
        {"memory_min": "1M"},
        {"memory_oom_group": True},
        {"io_latency": [("8:0", 10_000)]},
        {"cpuset_cpus_partition": "root", "cpuset_cpus": "1"},
        {"memory_swap_max": 0},
        {"unified": {"memory.high": "1M"}},
    ],
)
def test_what_v1_cannot_do_is_refused_there_and_not_on_v2(fields: dict[str, Any]) -> None:
    require(CGroup(**fields), V2)
    with pytest.raises(UnsupportedError) as caught:
        require(CGroup(**fields), V1)
    assert next(iter(fields)) in caught.value.feature
    assert caught.value.hint


def test_what_v1_can_do_is_accepted() -> None:
    require(CGroup(memory_max="1M", memory_swap_max=0, memory_oom_group=False, cpu_max=1, devices=[]), V1)


@pytest.mark.parametrize("host", [V1, V2])
def test_a_missing_controller_is_refused_with_the_way_out(host: CGroupHost) -> None:
    bases = {name: path for name, path in host.bases.items() if name != "io"}
    with pytest.raises(UnsupportedError) as caught:
        require(
            CGroup(io_weight=5, io_max=[("8:0", {"rbps": 1})], pids_max=5),
            CGroupHost(version=host.version, bases=bases, hint=host.hint),
        )
    assert (caught.value.feature, caught.value.hint) == ("io_max, io_weight", "the way out")


def test_device_rules_without_root_are_refused_on_v2() -> None:
    bases = {name: path for name, path in V2.bases.items() if name != "devices"}
    with pytest.raises(UnsupportedError, match="BPF"):
        require(CGroup(devices=[]), CGroupHost(version=2, bases=bases))
