"""Rights, filters, labels and limits as values: what may be asked for."""

from __future__ import annotations

import json
import pickle
import resource
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import SpecError
from sandboxlib.limits import Limits
from sandboxlib.seccomp import Profile, Rule
from sandboxlib.security import CAPABILITIES, RESOURCES, Security

PROFILE = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}
VALUES: list[Security | Limits] = [
    Security(),
    Security(
        user="1000:1000", groups=[5, 4], capabilities=["CAP_NET_BIND_SERVICE"], rlimits={"nofile": 1024}
    ),
    Security(seccomp="unconfined", no_new_privileges=False, keyring="inherit", without=["seccomp"]),
    Security(seccomp="/etc/profile.json", abi=["x32", "i386"]),
    Security(seccomp=PROFILE),
    Security(landlock={"/usr": "xr", "/work": "rw"}, apparmor="docker-default"),
    Security(selinux="system_u:system_r:container_t:s0:c1,c2", masked_paths=[], readonly_paths=["/proc/sys"]),
    Security(devices=["/dev/net/tun", "/dev/kvm"]),
]
LIMITS: list[Security | Limits] = [
    Limits(),
    Limits(cpu_time=2, wall_time=10.5, memory="64M"),
    Limits(pids=5, cpus=0.5, file_size="1M", open_files=16, output="1G"),
]


@pytest.mark.parametrize("value", VALUES + LIMITS, ids=repr)
def test_a_value_reads_back_copies_and_hashes(value: Security | Limits) -> None:
    assert eval(repr(value)) == value
    assert attrs.evolve(value) == value
    assert hash(attrs.evolve(value)) == hash(value)
    assert pickle.loads(pickle.dumps(value)) == value


def test_values_that_differ_are_not_equal() -> None:
    assert len({*VALUES, *LIMITS}) == len(VALUES) + len(LIMITS)


def test_the_default_gives_nothing_and_filters() -> None:
    value = Security()
    assert (value.capabilities, value.groups, value.devices, value.abi, value.without) == ((), (), (), (), ())
    assert value.no_new_privileges
    assert (value.seccomp, value.keyring) == ("default", "new")


def test_capabilities_are_numbered_as_the_kernel_does() -> None:
    # linux/capability.h; the first, the last, and one on each side of the 32 bits of a word.
    known = {"CAP_CHOWN": 0, "CAP_SYS_ADMIN": 21, "CAP_SETFCAP": 31, "CAP_MAC_OVERRIDE": 32}
    assert known.items() <= CAPABILITIES.items()
    assert CAPABILITIES["CAP_CHECKPOINT_RESTORE"] == 40
    assert sorted(CAPABILITIES.values()) == list(range(41))
    assert int(Path("/proc/sys/kernel/cap_last_cap").read_text()) >= 40


def test_resources_are_those_of_python_and_the_kernel() -> None:
    # Python leaves RLIMIT_LOCKS out, which Linux has not enforced since 2.4.25, and has BSD's RLIMIT_OFILE.
    here = {name[7:].lower() for name in dir(resource) if name.startswith("RLIMIT_")}
    assert here - {"ofile"} | {"locks"} == set(RESOURCES)


def test_capabilities_are_kept_by_their_full_names_once() -> None:
    value = Security(capabilities=["net_raw", "CAP_NET_RAW", "cap_chown", "Net_Raw"])
    assert value.capabilities == ("CAP_CHOWN", "CAP_NET_RAW")


@pytest.mark.parametrize("name", ["ALL", "all", "CAP_ALL"])
def test_all_capabilities_are_all_of_them(name: str) -> None:
    assert Security(capabilities=[name, "CAP_CHOWN"]).capabilities == tuple(CAPABILITIES)


def test_an_unknown_capability_is_refused_with_those_like_it() -> None:
    with pytest.raises(SpecError, match="CAP_NET_ADMIN") as caught:
        Security(capabilities=["CAP_NET_ADMN"])
    assert (caught.value.field, caught.value.value) == ("capabilities", "CAP_NET_ADMN")


def test_an_unknown_resource_is_refused_with_those_like_it() -> None:
    with pytest.raises(SpecError, match="did you mean nofile"):
        Security(rlimits={"RLIMIT_NOFILE": 1})


@pytest.mark.parametrize(
    "user, kept, ids",
    [
        (1000, "1000", (1000, 1000)),
        ("1000", "1000", (1000, 1000)),
        ("01000:5", "1000:5", (1000, 5)),
        (0, "0", (0, 0)),
        ("0:0", "0:0", (0, 0)),
        (None, None, None),
    ],
)
def test_users_are_numbers(user: str | int | None, kept: str | None, ids: tuple[int, int] | None) -> None:
    value = Security(user=user)
    assert (value.user, value.ids) == (kept, ids)


def test_limits_of_resources_have_two_sides_and_units() -> None:
    value = Security(rlimits={"nofile": 1024, "fsize": "1G", "core": (0, "unlimited"), "as": "unlimited"})
    assert value.rlimits == (
        ("as", ("unlimited", "unlimited")),
        ("core", (0, "unlimited")),
        ("fsize", (1 << 30, 1 << 30)),
        ("nofile", (1024, 1024)),
    )


def test_a_profile_may_be_a_value_a_path_or_its_content() -> None:
    profile = Profile(rules=(Rule(names=("read",)),))
    assert Security(seccomp=profile).seccomp is profile
    assert Security(seccomp=Path("/etc/x.json")).seccomp == "/etc/x.json"
    kept = Security(seccomp=PROFILE).seccomp
    assert isinstance(kept, str)
    assert json.loads(kept) == PROFILE
    assert Profile.from_json(kept) == Profile.from_json(PROFILE)


def test_equal_contents_of_a_profile_are_equal_values() -> None:
    turned = MappingProxyType(dict(reversed(PROFILE.items())))
    assert Security(seccomp=turned) == Security(seccomp=PROFILE)
    assert Security(seccomp={"a": [MappingProxyType({"b": 1})]}) == Security(seccomp={"a": [{"b": 1}]})


def test_devices_that_every_sandbox_has_need_not_be_handed_in() -> None:
    assert Security(devices=["/dev/null", "/dev/ptmx", "/dev/kvm"]).devices == ("/dev/kvm",)


def test_no_masked_paths_are_not_the_default_ones() -> None:
    assert Security(masked_paths=[]).masked_paths == ()
    assert Security().masked_paths is None


@pytest.mark.parametrize(
    "arguments, field",
    [
        ({"user": "root"}, "user"),
        ({"user": ""}, "user"),
        ({"user": "1000:"}, "user"),
        ({"user": ":1000"}, "user"),
        ({"user": -1}, "user"),
        ({"user": True}, "user"),
        ({"user": 2**32 - 1}, "user"),
        ({"user": "0:4294967295"}, "user"),
        ({"user": "1000\n"}, "user"),
        ({"user": "١"}, "user"),
        ({"groups": 5}, "groups"),
        ({"groups": ["5"]}, "groups"),
        ({"groups": [-1]}, "groups"),
        ({"groups": [2**32 - 1]}, "groups"),
        ({"groups": range(65537)}, "groups"),
        ({"capabilities": "CAP_CHOWN"}, "capabilities"),
        ({"capabilities": {"CAP_CHOWN": True}}, "capabilities"),
        ({"capabilities": ["CAP_"]}, "capabilities"),
        ({"capabilities": [""]}, "capabilities"),
        ({"capabilities": [12]}, "capabilities"),
        ({"capabilities": ["CAP_CHOWN\0"]}, "capabilities"),
        ({"no_new_privileges": None}, "no_new_privileges"),
        ({"seccomp": "Default"}, "seccomp"),
        ({"seccomp": "profile.json"}, "seccomp"),
        ({"seccomp": "/etc/../x"}, "seccomp"),
        ({"seccomp": None}, "seccomp"),
        ({"seccomp": {1: 2}}, "seccomp"),
        ({"seccomp": {"a": {"b"}}}, "seccomp"),
        ({"seccomp": {"a": 0.5}}, "seccomp"),
        ({"abi": "i386"}, "abi"),
        ({"abi": ["mips"]}, "abi"),
        ({"abi": ["i386"], "seccomp": "unconfined"}, "abi"),
        ({"rlimits": "nofile=5"}, "rlimits"),
        ({"rlimits": ["nofile"]}, "rlimits"),
        ({"rlimits": {"files": 5}}, "rlimits"),
        ({"rlimits": {5: 5}}, "rlimits"),
        ({"rlimits": [("nofile", 5), ("nofile", 6)]}, "rlimits"),
        ({"rlimits": {"nofile": -1}}, "rlimits['nofile']"),
        ({"rlimits": {"nofile": "1K"}}, "rlimits['nofile']"),
        ({"rlimits": {"nofile": None}}, "rlimits['nofile']"),
        ({"rlimits": {"nofile": (1, 2, 3)}}, "rlimits['nofile']"),
        ({"rlimits": {"nofile": (3, 2)}}, "rlimits['nofile']"),
        ({"rlimits": {"nofile": ("unlimited", 2)}}, "rlimits['nofile']"),
        ({"rlimits": {"nofile": ((1, 1), 2)}}, "rlimits['nofile']"),
        ({"rlimits": {"fsize": "much"}}, "rlimits['fsize']"),
        ({"landlock": "/usr"}, "landlock"),
        ({"landlock": {"usr": "r"}}, "landlock"),
        ({"landlock": {"/usr": ""}}, "landlock"),
        ({"landlock": {"/usr": "rz"}}, "landlock"),
        ({"landlock": {"/usr": None}}, "landlock"),
        ({"landlock": [("/usr", "r"), ("//usr", "w")]}, "landlock"),
        ({"apparmor": ""}, "apparmor"),
        ({"apparmor": "a b"}, "apparmor"),
        ({"apparmor": "a\0"}, "apparmor"),
        ({"selinux": 5}, "selinux"),
        ({"masked_paths": "/proc/x"}, "masked_paths"),
        ({"masked_paths": ["proc/x"]}, "masked_paths"),
        ({"masked_paths": ["/"]}, "masked_paths"),
        ({"readonly_paths": [None]}, "readonly_paths"),
        ({"devices": "/dev/kvm"}, "devices"),
        ({"devices": ["kvm"]}, "devices"),
        ({"devices": ["/dev"]}, "devices"),
        ({"devices": ["/dev/../etc/shadow"]}, "devices"),
        ({"devices": ["/etc/shadow"]}, "devices"),
        ({"devices": ["/dev/pts/3"]}, "devices"),
        ({"devices": ["/dev/shm"]}, "devices"),
        ({"devices": ["/dev/console"]}, "devices"),
        ({"devices": ["/dev/net", "/dev/net/tun"]}, "devices"),
        ({"keyring": "old"}, "keyring"),
        ({"keyring": []}, "keyring"),
        ({"without": "seccomp"}, "without"),
        ({"without": [""]}, "without"),
        ({"without": ["no such thing"]}, "without"),
        ({"without": [5]}, "without"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Security(**arguments)
    assert caught.value.field == field
    assert caught.value.allowed in str(caught.value)


def test_a_profile_that_contains_itself_is_refused() -> None:
    profile: dict[str, object] = {}
    profile["self"] = profile
    with pytest.raises(SpecError, match="'seccomp'"):
        Security(seccomp=profile)


@pytest.mark.parametrize("field", ["cpu_time", "wall_time", "memory", "pids", "cpus", "open_files"])
@pytest.mark.parametrize("value", [0, -1, "x", True, [], float("nan")])
def test_a_limit_of_nothing_is_refused(field: str, value: object) -> None:
    with pytest.raises(SpecError) as caught:
        Limits(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["file_size", "output"])
@pytest.mark.parametrize("value", [-1, "x", True, [], 0.5])
def test_no_output_and_no_files_are_limits_too(field: str, value: object) -> None:
    assert getattr(Limits(**{field: 0}), field) == 0
    with pytest.raises(SpecError) as caught:
        Limits(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_what_the_group_of_a_command_limits() -> None:
    assert Limits(wall_time=5, output=1).cgroup() is None
    assert Limits(memory="64M", cpus=0.5, pids=3).cgroup() == CGroup(
        memory_max="64M", cpu_max=0.5, pids_max=3
    )


def test_a_value_cannot_be_changed() -> None:
    for value, field in ((Security(), "seccomp"), (Limits(), "memory")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, field, "unconfined")
