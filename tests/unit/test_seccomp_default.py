"""The default profile: nothing forgotten, nothing open that has to be shut, nothing shut that is needed."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from sandboxlib.errors import UnsupportedError
from sandboxlib.seccomp import Profile, compile, default, default_program  # noqa: A004
from sandboxlib.seccomp.abi import ABIS, FOREIGN, table
from sandboxlib.seccomp.allowed import ALLOWED, CHECKED, REFUSED
from sandboxlib.seccomp.denied import DENIED
from sandboxlib.seccomp.programs import OPENING, PROGRAMS

from oracle.classes import argument_lists
from oracle.machine import Machine

DOCKER = Path(__file__).parents[1] / "oracle" / "docker.json"
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
MACHINES = sorted(FOREIGN)
#: Above the 32 bits that the kernel reads of an int.
HIGH = [0, 1 << 32, 1 << 63, 0xFFFFFFFF << 32]


def answer(name: str, *args: int, capabilities: tuple[str, ...] = (), machine: str = "x86_64") -> int:
    program = Machine(compile(default(capabilities), arch=machine))
    return program.run(ABIS[machine].audit, table(machine)[name], args)


# --- the tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abi", ABIS)
def test_every_call_is_allowed_checked_or_denied_with_a_reason(abi: str) -> None:
    reasons = {name: row.reason for row in (*ALLOWED, *CHECKED, *DENIED) for name in row.names.split()}
    missing = {name for name in table(abi) if len(reasons.get(name, "")) < 5}
    assert not missing


def test_no_call_is_in_two_halves() -> None:
    allowed = Counter(name for row in ALLOWED for name in row.names.split())
    denied = Counter(name for row in DENIED for name in row.names.split())
    checked = {name for row in CHECKED for name in row.names.split()}
    assert {name for name, count in (allowed + denied).items() if count > 1} == set()
    assert checked.isdisjoint(allowed)
    assert checked.isdisjoint(denied)
    assert {name for row in REFUSED for name in row.names.split()} <= set(allowed)


def test_no_name_in_the_tables_is_made_up() -> None:
    known = {name for abi in ABIS for name in table(abi)}
    named = {name for row in (*ALLOWED, *CHECKED, *REFUSED, *DENIED) for name in row.names.split()}
    assert named - known == set()


@pytest.mark.parametrize("machine", MACHINES)
def test_each_denied_call_is_denied(machine: str) -> None:
    program = Machine(compile(default(), arch=machine))
    for row in DENIED:
        for name in set(row.names.split()) & set(table(machine)):
            got = program.run(ABIS[machine].audit, table(machine)[name])
            assert got == 0x50000 | row.errno, name


@pytest.mark.parametrize("machine", MACHINES)
def test_each_allowed_call_is_allowed(machine: str) -> None:
    program = Machine(compile(default(), arch=machine))
    for row in ALLOWED:
        for name in set(row.names.split()) & set(table(machine)):
            assert program.run(ABIS[machine].audit, table(machine)[name]) == ALLOW, name


def test_each_capability_opens_its_calls_and_no_others() -> None:
    plain = {name for name in table("x86_64") if answer(name) == ALLOW}
    for capability in sorted(OPENING):
        own = {name for row in DENIED if capability in row.opened_by for name in row.names.split()}
        opened = {name for name in table("x86_64") if answer(name, capabilities=(capability,)) == ALLOW}
        extra = {"openat2"} if capability == "CAP_FSETID" else set()
        assert opened - plain == (own | extra) & set(table("x86_64")) - plain, capability


def test_a_capability_that_opens_nothing_changes_nothing() -> None:
    for capability in ("CAP_NET_BIND_SERVICE", "CAP_CHOWN", "CAP_KILL"):
        assert compile(default([capability]), arch="x86_64") == compile(default(), arch="x86_64")


# --- what has to be shut ----------------------------------------------------------------------------------


DANGEROUS = """
mount umount2 fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr mount_setattr pivot_root
chroot unshare setns bpf perf_event_open keyctl add_key request_key userfaultfd io_uring_setup
io_uring_enter io_uring_register name_to_handle_at open_by_handle_at quotactl quotactl_fd acct swapon
swapoff reboot kexec_load kexec_file_load init_module finit_module delete_module settimeofday clock_settime
adjtimex clock_adjtime iopl ioperm modify_ldt mbind set_mempolicy get_mempolicy move_pages migrate_pages
set_mempolicy_home_node vmsplice pidfd_getfd process_madvise kcmp syslog fanotify_init ptrace
process_vm_readv process_vm_writev sysfs ustat uselib statmount listmount listns openat2 clone3
lookup_dcookie vhangup memfd_secret cachestat nfsservctl _sysctl create_module
"""


@pytest.mark.parametrize("name", DANGEROUS.split())
def test_a_dangerous_call_is_refused_whatever_its_arguments(name: str) -> None:
    for args in ([0] * 6, [1] * 6, [(1 << 64) - 1] * 6):
        assert answer(name, *args) in (EPERM, ENOSYS)


@pytest.mark.parametrize("name", ["clone3", "openat2", "statmount", "listmount"])
def test_a_call_that_programs_replace_is_said_not_to_exist(name: str) -> None:
    assert answer(name) == ENOSYS


@pytest.mark.parametrize("high", HIGH)
@pytest.mark.parametrize("request_", [0x5412, 0x541C, 0x5423])
def test_a_terminal_cannot_be_typed_into(request_: int, high: int) -> None:
    assert answer("ioctl", 0, request_ | high) == EPERM
    assert answer("ioctl", 0, (request_ ^ 1) | high) == ALLOW


@pytest.mark.parametrize("flag", [1 << bit for bit in (17, 25, 26, 27, 28, 29, 30)])
def test_clone_makes_no_namespace(flag: int) -> None:
    for other in (0, 17, 0x11, 0x3D0F00, 0x1200011):
        assert answer("clone", flag | other) == EPERM
        assert answer("clone", flag | other, capabilities=("CAP_SYS_ADMIN",)) == ALLOW


@pytest.mark.parametrize("flags", [17, 0x3D0F00, 0x4111, 0x1200011, 0x7D0F00])
def test_clone_makes_processes_and_threads(flags: int) -> None:
    assert answer("clone", flags) == ALLOW


@pytest.mark.parametrize("persona", [8, 0x40000, 0x20000, 0x400000, 0x20008, 0x100000000 | 8])
def test_another_personality_is_refused(persona: int) -> None:
    assert answer("personality", persona) == EPERM


def test_the_personality_can_be_asked_for() -> None:
    assert answer("personality", 0) == answer("personality", 0xFFFFFFFF) == ALLOW


SOCKET_FLAGS = [0, 0o2000000, 0o4000, 0o2004000]


@pytest.mark.parametrize("flags", SOCKET_FLAGS)
@pytest.mark.parametrize(
    "domain, kind, protocol",
    [
        *[(1, kind, protocol) for kind in (1, 2, 5) for protocol in (0, 1)],
        *[(domain, 1, protocol) for domain in (2, 10) for protocol in (0, 6, 262)],
        *[(domain, 2, protocol) for domain in (2, 10) for protocol in (0, 17, 1, 58)],
        (16, 3, 0),
        (16, 2, 0),
    ],
)
def test_ordinary_sockets_are_made(domain: int, kind: int, protocol: int, flags: int) -> None:
    assert answer("socket", domain, kind | flags, protocol) == ALLOW


@pytest.mark.parametrize("high", HIGH)
@pytest.mark.parametrize("flags", SOCKET_FLAGS)
@pytest.mark.parametrize(
    "domain, kind, protocol",
    [
        *[
            (domain, kind, 0)
            for domain in (3, 4, 5, 9, 15, 17, 21, 29, 30, 31, 38, 40, 44, 45)
            for kind in (1, 2, 3)
        ],
        (2, 3, 0),
        (2, 3, 1),
        (2, 10, 0),
        (10, 3, 58),
        (2, 5, 132),
        (2, 1, 132),
        (2, 6, 33),
        (10, 1, 132),
        (2, 2, 136),
        (2, 2, 132),
        *[(16, kind, protocol) for kind in (2, 3) for protocol in (4, 6, 9, 12, 15, 16, 21)],
        (16, 1, 0),
        (1, 3, 0),
    ],
)
def test_other_sockets_are_refused(domain: int, kind: int, protocol: int, flags: int, high: int) -> None:
    assert answer("socket", domain | high, kind | flags | high, protocol | high) == EPERM


def test_high_bits_do_not_change_what_a_socket_is() -> None:
    for high in HIGH:
        assert answer("socket", 2 | high, 1 | high, 0 | high) == ALLOW


def test_capabilities_open_their_sockets() -> None:
    assert answer("socket", 2, 3, 1, capabilities=("CAP_NET_RAW",)) == ALLOW
    assert answer("socket", 17, 3, 0x300, capabilities=("CAP_NET_RAW",)) == ALLOW
    assert answer("socket", 16, 3, 12, capabilities=("CAP_NET_RAW",)) == EPERM
    assert answer("socket", 16, 3, 12, capabilities=("CAP_NET_ADMIN",)) == ALLOW
    assert answer("socket", 17, 3, 0, capabilities=("CAP_NET_ADMIN",)) == EPERM
    assert answer("socket", 16, 3, 9, capabilities=("CAP_AUDIT_WRITE",)) == ALLOW
    assert answer("socket", 40, 1, 0, capabilities=tuple(OPENING)) == EPERM


def test_socket_pairs_are_of_unix() -> None:
    assert answer("socketpair", 1, 1) == answer("socketpair", 1, 2 | 0o2000000) == ALLOW
    assert answer("socketpair", 30, 1) == answer("socketpair", 2, 1) == answer("socketpair", 1, 3) == EPERM


# The calls that give a file its mode, with the place of the mode, and arguments before it that make a file.
MODES = [
    ("chmod", [0]),
    ("fchmod", [0]),
    ("fchmodat", [0, 0]),
    ("fchmodat2", [0, 0]),
    ("mkdir", [0]),
    ("mkdirat", [0, 0]),
    ("creat", [0]),
    ("mknod", [0]),
    ("mknodat", [0, 0]),
    ("open", [0, 0o100]),
    ("open", [0, 0o20200000]),
    ("open", [0, 0o101 | 1 << 40]),
    ("openat", [0, 0, 0o1101]),
    ("openat", [0, 0, 0o20200002]),
]


@pytest.mark.parametrize("name, before", MODES)
def test_no_set_id_file_is_made(name: str, before: list[int]) -> None:
    for bits in (0o4000, 0o2000, 0o6000):
        for mode in (bits, bits | 0o777, bits | 0o1777, bits | 0o100644, bits | 0o755 | 1 << 33):
            assert answer(name, *before, mode) == EPERM
    for mode in (0, 0o644, 0o1777, 0o755 | 0o6000 << 32):
        assert answer(name, *before, mode) == ALLOW


@pytest.mark.parametrize("name, before", MODES)
def test_set_id_files_are_made_by_those_who_may(name: str, before: list[int]) -> None:
    assert answer(name, *before, 0o4755, capabilities=("CAP_FSETID",)) == ALLOW


def test_the_mode_does_not_count_where_no_file_is_made() -> None:
    for flags in (0, 1, 2, 0o2000000, 0o200000, 0o3001):
        assert answer("open", 0, flags, 0o6777) == ALLOW
        assert answer("openat", 0, 0, flags, 0o6777) == ALLOW


@pytest.mark.parametrize("kind", [0o020000, 0o060000, 0o040000, 0o120000])
def test_no_device_is_made(kind: int) -> None:
    assert answer("mknod", 0, kind | 0o644) == EPERM
    assert answer("mknodat", 0, 0, kind | 0o644) == EPERM
    assert answer("mknod", 0, kind | 0o644, capabilities=("CAP_MKNOD",)) == ALLOW
    assert answer("mknod", 0, kind | 0o4644, capabilities=("CAP_MKNOD",)) == EPERM
    assert answer("mknod", 0, kind | 0o4644, capabilities=("CAP_FSETID",)) == EPERM
    assert answer("mknod", 0, kind | 0o4644, capabilities=("CAP_MKNOD", "CAP_FSETID")) == ALLOW


@pytest.mark.parametrize("kind", [0, 0o100000, 0o010000, 0o140000])
def test_files_pipes_and_sockets_are_made(kind: int) -> None:
    assert answer("mknod", 0, kind | 0o600) == answer("mknodat", 0, 0, kind | 0o600) == ALLOW


def test_i386_cannot_make_sockets_unseen() -> None:
    program = Machine(compile(default(architectures=["i386"]), arch="x86_64"))
    for call in range(1, 21):
        assert program.run(ABIS["i386"].audit, table("i386")["socketcall"], [call]) == EPERM
    assert program.run(ABIS["i386"].audit, table("i386")["socket"], [2, 1, 0]) == ALLOW
    assert program.run(ABIS["i386"].audit, table("i386")["socket"], [2, 3, 0]) == EPERM


# --- against Docker's -------------------------------------------------------------------------------------

# Newer than the copy of Docker's profile, and harmless: a call that has an older twin which Docker allows, or
# that works on the caller alone.
NEWER = {
    "fchmodat2": "fchmodat",
    "futex_wake": "futex",
    "futex_wait": "futex",
    "futex_requeue": "futex",
    "setxattrat": "setxattr",
    "getxattrat": "getxattr",
    "listxattrat": "listxattr",
    "removexattrat": "removexattr",
    "mseal": "mprotect",
    "map_shadow_stack": "mmap",
    "uretprobe": "rt_sigreturn",
    "uprobe": "rt_sigreturn",
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("capabilities", [(), *[(name,) for name in sorted(OPENING)], tuple(OPENING)])
def test_nothing_is_open_that_docker_shuts(machine: str, capabilities: tuple[str, ...]) -> None:
    docker = Profile.from_json(json.loads(DOCKER.read_text()))
    theirs = Machine(compile(docker, arch=machine, capabilities=capabilities, kernel=(6, 1)))
    ours = Machine(compile(default(capabilities), arch=machine))
    audit, calls = ABIS[machine].audit, table(machine)
    profile = default(capabilities)
    for name, number in calls.items():
        conditions = [
            (arg.index, arg.value, arg.mask)
            for rule in (*profile.rules, *docker.rules)
            if name in rule.names
            for arg in rule.args
        ]
        for args in argument_lists(conditions, 100):
            if ours.run(audit, number, args) == ALLOW:
                twin = calls.get(NEWER.get(name, name), number)
                # What stands above the 32 bits of a persona or a socket's family is dropped by the kernel;
                # Docker's profile compares it and so takes such a call for another.
                plain = [value & 0xFFFFFFFF for value in args]
                assert theirs.run(audit, twin, plain) == ALLOW, (name, args)


# --- kept as bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
def test_the_programs_kept_as_bytes_are_those_of_the_compiler(machine: str) -> None:
    # Where this fails, run tools/seccomp_programs.py.
    assert bytes.fromhex(PROGRAMS[machine]) == compile(default(), arch=machine)
    assert default_program(arch=machine) == compile(default(), arch=machine)


def test_the_capabilities_that_open_something_are_known() -> None:
    every = {"CAP_SYS_ADMIN"}.union(
        *(row.needs for row in CHECKED), *(row.opened_by for row in (*REFUSED, *DENIED))
    )
    assert every == OPENING
    text = (Path(compile.__code__.co_filename).parent / "defaults.py").read_text()
    assert set(re.findall(r'"(CAP_\w+)"', text)) <= OPENING


def test_capabilities_reach_the_program() -> None:
    assert default_program(arch="x86_64", capabilities=["CAP_CHOWN"]) == default_program(arch="x86_64")
    opened = default_program(arch="x86_64", capabilities=["CAP_SYS_PTRACE"])
    assert opened == compile(default(["CAP_SYS_PTRACE"]), arch="x86_64")
    assert Machine(opened).run(ABIS["x86_64"].audit, table("x86_64")["ptrace"]) == ALLOW


def test_foreign_abis_reach_the_program() -> None:
    opened = default_program(arch="x86_64", architectures=["i386"])
    assert opened == compile(default(architectures=["i386"]), arch="x86_64")
    assert Machine(opened).run(ABIS["i386"].audit, table("i386")["getpid"]) == ALLOW


def test_a_machine_without_a_program_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        default_program(arch="sparc64")


def test_the_default_is_short() -> None:
    # Each instruction is loaded, checked and translated at every start.
    assert len(default_program(arch="x86_64")) // 8 <= 172
