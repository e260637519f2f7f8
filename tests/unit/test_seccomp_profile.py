"""Profiles as values, and as Docker's and OCI's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from sandboxlib.errors import SpecError
from sandboxlib.seccomp import Action, Arg, Op, Profile, Rule, Scope

DOCKER = Path(__file__).parents[1] / "oracle" / "docker.json"


def document(*syscalls: object, **more: object) -> dict[str, object]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(syscalls), **more}


def entry(**more: object) -> dict[str, object]:
    return {"names": ["read"], "action": "SCMP_ACT_ALLOW", **more}


# --- values -----------------------------------------------------------------------------------------------


def test_equal_profiles_are_equal_and_hash_alike() -> None:
    first = Profile(rules=[Rule(names=["read"], comment="one")], architectures=["i386"])
    second = Profile(rules=(Rule(names=("read",), comment="two"),), architectures={"i386", "x86_64"})
    assert first == second
    assert hash(first) == hash(second)


def test_a_profile_cannot_be_changed() -> None:
    profile = Profile()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        profile.default = Action.ALLOW  # type: ignore[misc]


def test_an_error_number_is_eperm_unless_given() -> None:
    assert Rule(names=["read"], action=Action.ERRNO).errno == 1
    assert Rule(names=["read"], action=Action.ERRNO, errno=0).errno == 0
    assert Rule(names=["read"]).errno is None
    assert Profile().default_errno == 1
    assert Profile(default=Action.TRAP).default_errno is None


def test_one_name_may_stand_for_a_list() -> None:
    assert Rule(names="openat").names == ("openat",)


def test_int32_looks_only_at_what_the_kernel_takes() -> None:
    assert Arg.int32(1, 5) == Arg(1, Op.MASKED_EQ, 5, 0xFFFFFFFF)
    assert Arg.int32(1, 5, ~8) == Arg(1, Op.MASKED_EQ, 5, 0xFFFFFFF7)


# Wrong on purpose, so the types must not be looked at.
Arg_: Any = Arg
Rule_: Any = Rule
Scope_: Any = Scope
Profile_: Any = Profile


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: Arg_(6, Op.EQ, 0), "index"),
        (lambda: Arg_(True, Op.EQ, 0), "index"),
        (lambda: Arg_(0, "==", 0), "op"),
        (lambda: Arg_(0, Op.EQ, -1), "value"),
        (lambda: Arg_(0, Op.EQ, 1 << 64), "value"),
        (lambda: Arg_(0, Op.MASKED_EQ, 0, -1), "mask"),
        (lambda: Arg_(0, Op.EQ, 0, 0xFF), "mask"),
        (lambda: Rule_(names=[]), "names"),
        (lambda: Rule_(names=["open at"]), "names"),
        (lambda: Rule_(names=[3]), "names"),
        (lambda: Rule_(names=["reäd"]), "names"),
        (lambda: Rule_(names=["read"], action="SCMP_ACT_ALLOW"), "action"),
        (lambda: Rule_(names=["read"], errno=1), "errno"),
        (lambda: Rule_(names=["read"], action=Action.ERRNO, errno=4096), "errno"),
        (lambda: Scope_(capabilities=["SYS_ADMIN"]), "capabilities"),
        (lambda: Scope_(min_kernel=(5, "1")), "min_kernel"),
        (lambda: Scope_(min_kernel="5.1"), "min_kernel"),
        (lambda: Profile_(default=0), "default"),
        (lambda: Profile_(default=Action.ALLOW, default_errno=1), "default_errno"),
        (lambda: Profile_(architectures=["sparc"]), "architectures"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(make: Any, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


# --- where a rule applies ---------------------------------------------------------------------------------

NOTHING: frozenset[str] = frozenset()


def test_a_rule_includes_only_with_all_of_its_capabilities() -> None:
    rule = Rule(names="read", includes=Scope(capabilities=["CAP_A", "CAP_B"]))
    assert rule.applies("x86_64", frozenset({"CAP_A", "CAP_B"}), (6, 1))
    assert not rule.applies("x86_64", frozenset({"CAP_A"}), (6, 1))


def test_a_rule_is_excluded_by_any_of_its_capabilities() -> None:
    rule = Rule(names="read", excludes=Scope(capabilities=["CAP_A", "CAP_B"]))
    assert rule.applies("x86_64", NOTHING, (6, 1))
    assert not rule.applies("x86_64", frozenset({"CAP_B"}), (6, 1))


def test_a_rule_is_for_its_machines() -> None:
    assert Rule(names="read", includes=Scope(arches=["aarch64"])).applies("aarch64", NOTHING, (6, 1))
    assert not Rule(names="read", includes=Scope(arches=["aarch64"])).applies("x86_64", NOTHING, (6, 1))
    assert not Rule(names="read", excludes=Scope(arches=["x86_64"])).applies("x86_64", NOTHING, (6, 1))


@pytest.mark.parametrize(
    "kernel, at_least", [((4, 7), False), ((4, 8), True), ((4, 19), True), ((5, 0), True)]
)
def test_a_rule_is_for_its_kernels(kernel: tuple[int, int], at_least: bool) -> None:
    assert (
        Rule(names="read", includes=Scope(min_kernel=(4, 8))).applies("x86_64", NOTHING, kernel) is at_least
    )
    assert (
        Rule(names="read", excludes=Scope(min_kernel=(4, 8))).applies("x86_64", NOTHING, kernel)
        is not at_least
    )


# --- JSON -------------------------------------------------------------------------------------------------


def test_every_field_of_docker_is_read() -> None:
    profile = Profile.from_json(
        document(
            entry(
                names=["clone", "fork"],
                action="SCMP_ACT_ERRNO",
                errnoRet=38,
                args=[
                    {"index": 0, "value": 0x7E020000, "valueTwo": 0x20000, "op": "SCMP_CMP_MASKED_EQ"},
                    {"index": 1, "value": 3, "valueTwo": 9, "op": "SCMP_CMP_GE"},
                ],
                comment="why",
                includes={"caps": ["CAP_SYS_ADMIN"], "arches": ["amd64", "s390x"], "minKernel": "5.12"},
                excludes={"caps": ["CAP_NET_RAW"], "arches": ["arm64"], "minKernel": "6.0"},
            ),
            defaultErrnoRet=13,
            archMap=[
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
            ],
        )
    )
    assert profile == Profile(
        default=Action.ERRNO,
        default_errno=13,
        architectures={"i386", "x32"},
        rules=[
            Rule(
                names=["clone", "fork"],
                action=Action.ERRNO,
                errno=38,
                args=[Arg(0, Op.MASKED_EQ, 0x20000, 0x7E020000), Arg(1, Op.GE, 3)],
                includes=Scope(
                    capabilities=["CAP_SYS_ADMIN"], arches=["x86_64", "s390x"], min_kernel=(5, 12)
                ),
                excludes=Scope(capabilities=["CAP_NET_RAW"], arches=["aarch64"], min_kernel=(6, 0)),
            )
        ],
    )
    assert profile.rules[0].comment == "why"


def test_the_oci_form_is_read() -> None:
    profile = Profile.from_json(
        document(
            entry(errnoRet=None, args=None),
            architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_S390X"],
            flags=["SECCOMP_FILTER_FLAG_TSYNC"],
            listenerPath="",
        )
    )
    assert profile == Profile(rules=[Rule(names=["read"])], architectures=["i386"])


@pytest.mark.parametrize("action", ["ALLOW", "LOG", "ERRNO", "TRAP", "KILL_THREAD", "KILL_PROCESS"])
def test_every_action_is_read(action: str) -> None:
    assert Profile.from_json({"defaultAction": f"SCMP_ACT_{action}"}).default is Action[action]


def test_kill_is_of_the_thread() -> None:
    assert Profile.from_json({"defaultAction": "SCMP_ACT_KILL"}).default is Action.KILL_THREAD


@pytest.mark.parametrize("op", list(Op))
def test_every_comparison_is_read(op: Op) -> None:
    arg = {"index": 5, "value": 1, "valueTwo": 1, "op": op.value}
    (rule,) = Profile.from_json(document(entry(args=[arg]))).rules
    assert rule.args[0].op is op


def test_conditions_on_one_argument_are_alternatives() -> None:
    args = [{"index": 0, "value": n, "op": "SCMP_CMP_EQ"} for n in (1, 2)]
    profile = Profile.from_json(document(entry(args=args)))
    assert [rule.args for rule in profile.rules] == [(Arg(0, Op.EQ, 1),), (Arg(0, Op.EQ, 2),)]


def test_the_old_single_name_is_read() -> None:
    assert Profile.from_json(document({"name": "read", "action": "SCMP_ACT_ALLOW"})).rules[0].names == (
        "read",
    )


def test_podmans_names_of_errors_are_read() -> None:
    profile = Profile.from_json(
        document(entry(action="SCMP_ACT_ERRNO", errnoRet=1, errno="EINVAL"), defaultErrno="ENOSYS")
    )
    assert profile.rules[0].errno == 22
    assert profile.default_errno == 38


def test_text_bytes_mappings_and_files_are_the_same(tmp_path: Path) -> None:
    text = DOCKER.read_text()
    profile = Profile.from_json(text)
    assert profile == Profile.from_json(text.encode()) == Profile.from_json(json.loads(text))
    assert profile == Profile.from_file(DOCKER) == Profile.from_file(str(DOCKER))
    assert profile.architectures == {"i386", "x32", "arm"}
    assert len(profile.rules) > 20


@pytest.mark.parametrize(
    "source, field",
    [
        ("{", "seccomp"),
        (b"\xff\xfe{", "seccomp"),
        ("[]", "seccomp"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "defaultAction": "SCMP_ACT_LOG"}', "seccomp"),
        ("[" * 100_000, "seccomp"),
        ({}, "defaultAction"),
        ({"defaultAction": "ALLOW"}, "defaultAction"),
        ({"defaultAction": ["SCMP_ACT_ALLOW"]}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, "defaultErrnoRet"),
        (document(defaultErrnoRet="1"), "defaultErrnoRet"),
        (document(defaultErrno="EWRONG"), "defaultErrno"),
        (document(defaultErrno="errorcode"), "defaultErrno"),
        (document(syscall=[]), "seccomp"),
        (document(listenerPath="/run/listener.sock"), "listenerPath"),
        (document(flags=["SECCOMP_FILTER_FLAG_LOG"]), "flags[0]"),
        (document(architectures="SCMP_ARCH_X86"), "architectures"),
        (document(architectures=["x86"]), "architectures[0]"),
        (document(architectures=[3]), "architectures[0]"),
        (document(architectures=["SCMP_ARCH_VAX"]), "architectures[0]"),
        (document(archMap=[{"architecture": "amd64"}]), "archMap[0].architecture"),
        (document(archMap=[{"architecture": "SCMP_ARCH_X86_64", "subarch": []}]), "archMap[0]"),
        (
            document(archMap=[{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_"]}]),
            "archMap[0].subArchitectures[0]",
        ),
        (
            document(architectures=["SCMP_ARCH_X86"], archMap=[{"architecture": "SCMP_ARCH_X86_64"}]),
            "architectures",
        ),
        (document(entry(), "read"), "syscalls[1]"),
        (document(entry(excldes={})), "syscalls[0]"),
        (document({"action": "SCMP_ACT_ALLOW"}), "syscalls[0].names"),
        (document(entry(names="read")), "syscalls[0].names"),
        (document(entry(names=["read it"])), "syscalls[0].names"),
        (document(entry(name="write")), "syscalls[0].name"),
        (document({"names": ["read"]}), "syscalls[0].action"),
        (document(entry(action="SCMP_ACT_TRACE")), "syscalls[0].action"),
        (document(entry(action="SCMP_ACT_NOTIFY")), "syscalls[0].action"),
        (document(entry(errnoRet=5)), "syscalls[0].errnoRet"),
        (document(entry(action="SCMP_ACT_ERRNO", errnoRet=4096)), "syscalls[0].errnoRet"),
        (document(entry(action="SCMP_ACT_ERRNO", errno=5)), "syscalls[0].errno"),
        (document(entry(args={})), "syscalls[0].args"),
        (document(entry(args=[3])), "syscalls[0].args[0]"),
        (document(entry(args=[{"index": 0, "value": 1}])), "syscalls[0].args[0].op"),
        (document(entry(args=[{"index": 0, "value": 1, "op": ["SCMP_CMP_EQ"]}])), "syscalls[0].args[0].op"),
        (document(entry(args=[{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}])), "syscalls[0].args[0].index"),
        (document(entry(args=[{"value": 1, "op": "SCMP_CMP_EQ"}])), "syscalls[0].args[0].index"),
        (document(entry(args=[{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}])), "syscalls[0].args[0].value"),
        (
            document(entry(args=[{"index": 0, "value": 1.0, "op": "SCMP_CMP_EQ"}])),
            "syscalls[0].args[0].value",
        ),
        (
            document(entry(args=[{"index": 0, "value": 1, "valueTwo": 1 << 64, "op": "SCMP_CMP_MASKED_EQ"}])),
            "syscalls[0].args[0].valueTwo",
        ),
        (document(entry(includes=[])), "syscalls[0].includes"),
        (document(entry(includes={"cap": []})), "syscalls[0].includes"),
        (document(entry(includes={"caps": ["SYS_ADMIN"]})), "syscalls[0].includes.caps"),
        (document(entry(includes={"caps": "CAP_SYS_ADMIN"})), "syscalls[0].includes.caps"),
        (document(entry(excludes={"arches": ["x86_64"]})), "syscalls[0].excludes.arches[0]"),
        (document(entry(excludes={"arches": [["amd64"]]})), "syscalls[0].excludes.arches[0]"),
        (document(entry(excludes={"minKernel": "5"})), "syscalls[0].excludes.minKernel"),
        (document(entry(excludes={"minKernel": 5.1})), "syscalls[0].excludes.minKernel"),
    ],
)
def test_json_that_cannot_be_obeyed_is_refused_by_its_place(source: Any, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Profile.from_json(source)
    assert caught.value.field == field


def test_the_error_for_a_supervised_action_says_why() -> None:
    with pytest.raises(SpecError, match="listening process"):
        Profile.from_json({"defaultAction": "SCMP_ACT_NOTIFY"})
