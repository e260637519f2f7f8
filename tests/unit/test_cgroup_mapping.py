"""Which file gets which text, and what the device program decides."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxlib.cgroup import MINIMAL_DEVICES, CGroup
from sandboxlib.cgroup_fields import DeviceRule
from sandboxlib.errors import UnsupportedError
from sandboxlib.kernel.cgroup import mapping
from sandboxlib.kernel.cgroup.devices import emit

DISKS = {"/dev/vda": "254:0", "8:0": "8:0"}


def texts(rows: list[mapping.Write]) -> list[tuple[str, str]]:
    return [(row.file, row.text) for row in rows]


def test_v2_files() -> None:
    spec = CGroup(
        memory_max="1M",
        memory_high="max",
        memory_low=1,
        memory_min=0,
        memory_swap_max=0,
        memory_oom_group=True,
        cpu_max=0.5,
        cpu_weight=10,
        cpuset_cpus="0-3,6",
        cpuset_mems="0",
        cpuset_cpus_partition="isolated",
        pids_max="max",
        io_latency=[("8:0", 500), ("/dev/vda", "max")],
        io_max=[("/dev/vda", {"wiops": 5, "rbps": "max"}), ("8:0", {"wbps": 7})],
        io_weight=200,
        hugetlb_max={"2MB": "4M", "1GB": 0},
        unified={"memory.zswap.max": "0"},
    )
    assert texts(mapping.v2(spec, DISKS)) == [
        ("memory.min", "0"),
        ("memory.low", "1"),
        ("memory.high", "max"),
        ("memory.swap.max", "0"),
        ("memory.max", "1048576"),
        ("memory.oom.group", "1"),
        ("cpu.weight", "10"),
        ("cpu.max", "50000 100000"),
        ("cpuset.mems", "0"),
        ("cpuset.cpus", "0-3,6"),
        ("cpuset.cpus.partition", "isolated"),
        ("pids.max", "max"),
        ("io.max", "254:0 rbps=max wiops=5"),
        ("io.max", "8:0 wbps=7"),
        ("io.latency", "8:0 target=500"),
        ("io.latency", "254:0 target=max"),
        ("io.weight", "default 200"),
        ("hugetlb.1GB.max", "0"),
        ("hugetlb.2MB.max", "4194304"),
        ("memory.zswap.max", "0"),
    ]


def test_v1_files() -> None:
    spec = CGroup(
        memory_max="1M",
        memory_swap_max="1M",
        cpu_max=(5000, 10000),
        cpu_idle=False,
        cpu_weight=100,
        cpuset_cpus="1",
        cpuset_mems="0",
        pids_max=7,
        io_max=[("/dev/vda", {"rbps": 1, "wbps": 2, "riops": 3, "wiops": "max"})],
        io_weight=100,
        hugetlb_max={"2MB": "max"},
    )
    assert texts(mapping.v1(spec, DISKS)) == [
        ("pids.max", "7"),
        ("memory.limit_in_bytes", "1048576"),
        ("memory.memsw.limit_in_bytes", "2097152"),
        ("cpu.idle", "0"),
        ("cpu.shares", "1024"),
        ("cpu.cfs_period_us", "10000"),
        ("cpu.cfs_quota_us", "5000"),
        ("cpuset.mems", "0"),
        ("cpuset.cpus", "1"),
        ("blkio.throttle.read_bps_device", "254:0 1"),
        ("blkio.throttle.read_iops_device", "254:0 3"),
        ("blkio.throttle.write_bps_device", "254:0 2"),
        ("blkio.throttle.write_iops_device", "254:0 0"),
        ("blkio.bfq.weight", "100"),
        ("hugetlb.2MB.limit_in_bytes", "-1"),
    ]


def test_v1_device_rules_deny_all_before_they_allow() -> None:
    rows = texts(mapping.v1(CGroup(devices=["c 10:200 rwm", "c 1:3 rwm"]), {}))
    assert rows[0] == ("devices.deny", "a")
    assert {file for file, _ in rows[1:]} == {"devices.allow"}
    assert [text for _, text in rows[1:]] == [*map(str, MINIMAL_DEVICES), "c 10:200 rwm"]


def test_lifting_on_v1() -> None:
    spec = CGroup(memory_max="max", memory_swap_max="max", cpu_max="max", pids_max="max")
    assert texts(mapping.v1(spec, {})) == [
        ("pids.max", "max"),
        ("memory.limit_in_bytes", "-1"),
        ("memory.memsw.limit_in_bytes", "-1"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "-1"),
    ]


def test_shares_divide_the_cpu_as_weights_do() -> None:
    assert mapping.shares(100) == 1024
    assert mapping.shares(1) == 10
    assert mapping.shares(10000) == 102_400
    every = [mapping.shares(weight) for weight in range(1, 10001)]
    assert all(low < high for low, high in pairwise(every))
    assert all(abs(shares / (weight * 10.24) - 1) < 0.03 for weight, shares in enumerate(every, 1))


def test_a_weight_that_bfq_does_not_have_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="above 1000"):
        mapping.v1(CGroup(io_weight=1001), {})


@given(st.sets(st.integers(0, 300), min_size=1))
def test_lists_are_spelled_as_they_are_read(numbers: set[int]) -> None:
    text = mapping.spelled(numbers)
    assert CGroup(cpuset_cpus=text).cpuset_cpus == tuple(sorted(numbers))


# --- the device program: run by an interpreter of its own, against the rules themselves ----------------

BITS = {"m": 1, "r": 2, "w": 4}
KINDS = {"b": 1, "c": 2}


def run(code: bytes, kind: str, access: str, major: int, minor: int) -> int:
    """Interpret the few instructions that the emitter uses, as <linux/bpf.h> defines them."""
    memory = struct.pack("=III", sum(BITS[letter] for letter in access) << 16 | KINDS[kind], major, minor)
    instructions = list(struct.iter_unpack("=BBhi", code))
    registers: dict[int, int | None] = {1: None}
    at = 0
    while True:
        opcode, both, offset, number = instructions[at]
        target, source = both & 15, both >> 4
        at += 1
        if opcode == 0x61:
            assert registers[source] is None, "only the context may be read"
            registers[target] = struct.unpack_from("=I", memory, offset)[0]
        elif opcode == 0xB4:
            registers[target] = number & 0xFFFFFFFF
        elif opcode == 0xBC:
            registers[target] = registers[source]
        elif opcode in (0x54, 0x74):
            value = registers[target]
            assert value is not None
            registers[target] = value & number if opcode == 0x54 else value >> number
        elif opcode == 0x55:
            assert offset >= 0, "the kernel would have to look for loops"
            at += offset if registers[target] != number else 0
        else:
            assert opcode == 0x95
            result = registers[0]
            assert result is not None
            return result


def allowed(rules: list[DeviceRule], kind: str, access: str, major: int, minor: int) -> bool:
    return any(
        rule.kind in ("a", kind)
        and set(access) <= set(rule.access)
        and rule.major in (None, major)
        and rule.minor in (None, minor)
        for rule in rules
    )


NUMBERS = st.sampled_from([0, 1, 3, 136, 4095])
MINORS = st.sampled_from([0, 1, 3, 200, (1 << 20) - 1])
ACCESS = st.sets(st.sampled_from("rwm"), min_size=1).map(
    lambda found: "".join(sorted(found, key="rwm".index))
)
RULES = st.builds(DeviceRule, st.sampled_from("abc"), st.none() | NUMBERS, st.none() | MINORS, ACCESS)


@given(st.lists(RULES, max_size=6), st.sampled_from("bc"), ACCESS, NUMBERS, MINORS)
def test_the_program_decides_as_the_rules_do(
    rules: list[DeviceRule], kind: str, access: str, major: int, minor: int
) -> None:
    decision = run(emit(rules), kind, access, major, minor)
    assert decision == allowed(rules, kind, access, major, minor)


@given(st.lists(RULES, max_size=6))
def test_no_instruction_is_out_of_reach(rules: list[DeviceRule]) -> None:
    code = list(struct.iter_unpack("=BBhi", emit(rules)))
    reached, todo = set(), [0]
    while todo:
        at = todo.pop()
        if at not in reached:
            reached.add(at)
            opcode, _, offset, _ = code[at]
            if opcode == 0x55:
                todo.append(at + 1 + offset)
            if opcode != 0x95:
                todo.append(at + 1)
    # The verifier refuses a program with a part that cannot be reached.
    assert reached == set(range(len(code)))


def test_an_empty_list_refuses_everything() -> None:
    assert run(emit([]), "c", "r", 1, 3) == 0
