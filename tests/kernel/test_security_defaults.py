"""Who a command is and what it has, when nothing was asked for: as root, and as a plain user."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from kernel.probe.outside import FOLDERS, KERNEL_FILES, WHO, by_default, look_as, make, report, without

from sandboxlib.errors import SpecError
from sandboxlib.plan.protections import PROTECTIONS
from sandboxlib.security import CAPABILITIES

CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def capabilities(status: dict[str, str]) -> dict[str, int]:
    return {name: int(status[name], 16) for name in CAPABILITY_SETS}


# --- namespaces and identity -----------------------------------------------------------------------


@WHO
def test_every_namespace_is_new(who: str) -> None:
    inside = by_default(who)["namespaces"]
    assert {"mnt", "uts", "ipc", "net", "pid", "user", "cgroup"} <= inside.keys()
    shared = {kind for kind, name in inside.items() if name == os.readlink(f"/proc/self/ns/{kind}")}
    assert not shared


@pytest.mark.root
@pytest.mark.parametrize("kind", ["uts", "ipc", "network"])
def test_a_namespace_of_the_host_is_kept_only_when_asked_for(kind: str) -> None:
    inside = look_as("root", "namespaces", arguments=f"namespaces=[Namespace.host({kind!r})]")["namespaces"]
    name = {"network": "net"}.get(kind, kind)
    assert inside[name] == os.readlink(f"/proc/self/ns/{name}")


@pytest.mark.root
def test_root_inside_is_nobody_outside() -> None:
    with make("") as sandbox:
        engine: Any = sandbox._engine
        with sandbox.popen(["sleep", "60"]) as process:
            for pid in (engine.pid, process.pid):
                status = Path(f"/proc/{pid}/status").read_text()
                for field in ("Uid", "Gid"):
                    numbers = re.findall(rf"^{field}:(.*)$", status, re.MULTILINE)[0].split()
                    assert all(int(number) >= 0x50000000 for number in numbers), (pid, field, numbers)
                assert re.search(r"^Groups:\s*$", status, re.MULTILINE), pid
            process.kill()


@pytest.mark.root
def test_the_hosts_root_is_not_in_the_maps() -> None:
    for name in ("uid_map", "gid_map"):
        inside, outside, count = map(int, by_default("root")["maps"][name].split())
        assert (inside, count) == (0, 65536)
        assert outside >= 0x50000000


@pytest.mark.root
def test_two_sandboxes_share_no_id() -> None:
    with make("") as one, make("") as other:
        first, second = (
            int(report(sandbox, "maps")["maps"]["uid_map"].split()[1]) for sandbox in (one, other)
        )
    assert abs(first - second) >= 65536


@pytest.mark.unprivileged
@pytest.mark.userns
def test_a_user_has_no_id_but_his_own() -> None:
    for name in ("uid_map", "gid_map"):
        assert by_default("user")["maps"][name].split()[0:3:2] == ["0", "1"]
    assert by_default("user")["maps"]["setgroups"].strip() in ("deny", "allow")


@WHO
def test_no_group_of_the_callers_remains(who: str) -> None:
    assert by_default(who)["ids"] == [[0, 0, 0], [0, 0, 0], []]


@WHO
def test_all_capability_sets_are_empty(who: str) -> None:
    assert capabilities(by_default(who)["status"]) == dict.fromkeys(CAPABILITY_SETS, 0)


@WHO
def test_without_its_row_the_capabilities_are_there(who: str) -> None:
    found = look_as(who, "status", "refused_twice", arguments=without("no-capabilities", "seccomp"))
    assert capabilities(found["status"])["CapEff"] >> CAPABILITIES["CAP_SYS_ADMIN"] & 1
    # What only rights refuse, once the filter is gone, is not refused to who has them.
    assert found["refused_twice"]["sethostname"] == "ok"
    assert found["refused_twice"]["chroot"] == "ok"


@pytest.mark.root
def test_another_user_has_no_capabilities_either() -> None:
    found = look_as("root", "status", "ids", arguments="security=Security(user='1000:100')")
    assert capabilities(found["status"]) == dict.fromkeys(CAPABILITY_SETS, 0)
    assert found["ids"] == [[1000] * 3, [100] * 3, []]


@pytest.mark.root
@pytest.mark.parametrize("user", [0, 1000])
def test_of_capabilities_only_those_asked_for_are_there(user: int) -> None:
    arguments = f"security=Security(user={user}, capabilities=['CAP_NET_BIND_SERVICE'])"
    found = capabilities(look_as("root", "status", arguments=arguments)["status"])
    bit = 1 << CAPABILITIES["CAP_NET_BIND_SERVICE"]
    assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == bit
    # Only a user other than root needs them to be inherited, and gets them by the ambient set.
    assert found["CapAmb"] == found["CapInh"] == (bit if user else 0)


@WHO
def test_no_new_privileges_is_set(who: str) -> None:
    assert by_default(who)["status"]["NoNewPrivs"] == "1"


@pytest.mark.root
def test_without_its_row_no_new_privileges_is_not_set() -> None:
    # A filter without it takes CAP_SYS_ADMIN at the moment when it is loaded.
    found = look_as("root", "status", arguments=without("no-new-privileges", "seccomp"))
    assert found["status"]["NoNewPrivs"] == "0"


@WHO
def test_there_is_no_user_namespace_within(who: str) -> None:
    assert by_default(who)["nested_user_namespace"] == "EPERM"
    # Each of the two walls holds alone, and without both there is one.
    behind = look_as(who, "nested_user_namespace", arguments=without("seccomp"))
    assert behind["nested_user_namespace"] == "ENOSPC"
    before = look_as(who, "nested_user_namespace", arguments=without("no-nested-userns"))
    assert before["nested_user_namespace"] == "EPERM"
    gone = look_as(who, "nested_user_namespace", arguments=without("no-nested-userns", "seccomp"))
    assert gone["nested_user_namespace"] == "ok"


def test_a_misspelt_protection_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        make(without("typo")).plan()
    assert "without" in caught.value.field
    assert "seccomp" in str(caught.value)


@pytest.mark.parametrize("name", [row.name for row in PROTECTIONS if row.fixed])
def test_a_fixed_protection_cannot_be_switched_off(name: str) -> None:
    with pytest.raises(SpecError):
        make(without(name)).plan()


# --- /proc and /sys --------------------------------------------------------------------------------


@WHO
def test_proc_shows_nothing_but_processes(who: str) -> None:
    found = by_default(who)
    assert found["proc_names"] == ["self", "thread-self"]
    # Interrupts, iomem, diskstats, cmdline, config.gz and the other files that tell of the host.
    assert found["kernel_files"] == {**dict.fromkeys(KERNEL_FILES, "ENOENT"), "/proc/net": "ENOENT"}


@WHO
def test_settings_of_the_kernel_cannot_be_opened(who: str) -> None:
    assert set(by_default(who)["sysctl"].values()) == {"ENOENT"}


@WHO
def test_in_the_whole_of_proc_the_hosts_files_are_masked(who: str) -> None:
    whole = look_as(
        who, "kernel_files", "sysctl", arguments=without("proc-subset"), facts={"kernel_files": KERNEL_FILES}
    )
    # So the row that was taken out is what hid these.
    assert whole["kernel_files"]["/proc/uptime"] == "read"
    masked = (
        "cmdline",
        "diskstats",
        "interrupts",
        "iomem",
        "kallsyms",
        "kcore",
        "keys",
        "softirqs",
        "zoneinfo",
    )
    shown = {name: whole["kernel_files"][f"/proc/{name}"] for name in masked}
    assert set(shown.values()) <= {"empty", "EACCES", "ENOENT", "EPERM"}, shown
    assert shown["interrupts"] == "empty"
    assert set(whole["sysctl"].values()) <= {"EROFS", "EACCES", "ENOENT"}, whole["sysctl"]
    # Who has all capabilities owns this one: only the mount keeps it from being written.
    rights = look_as(who, "sysctl", arguments=without("proc-subset", "no-capabilities"))
    assert rights["sysctl"]["user/max_user_namespaces"] == "EROFS"


@WHO
def test_without_the_masks_the_hosts_files_can_be_read(who: str) -> None:
    files = ("/proc/interrupts", "/proc/softirqs", "/proc/cmdline")
    arguments = without("proc-subset", "masked-paths", "no-capabilities")
    found = look_as(who, "kernel_files", "sysctl", arguments=arguments, facts={"kernel_files": files})
    assert set(found["kernel_files"].values()) == {"read"}
    assert found["sysctl"]["user/max_user_namespaces"] == "ok"


@WHO
def test_pid_1_is_not_in_sight(who: str) -> None:
    assert "1" not in by_default(who)["processes"]
    assert "1" in look_as(who, "processes", arguments=without("hidden-processes"))["processes"]


@WHO
def test_pid_1_in_sight_tells_nothing(who: str) -> None:
    found = look_as(who, "init", arguments=without("hidden-processes"))["init"]
    # Its name and its command line are ours, with no path of the host's in them.
    assert found.pop("comm") == "sandbox-init"
    assert "/" not in found.pop("cmdline")
    assert set(found.values()) <= {"EACCES", "EPERM"}, found


@WHO
def test_pid_1_is_protected_without_the_filter_too(who: str) -> None:
    found = look_as(who, "init", arguments=without("hidden-processes", "seccomp"))["init"]
    assert (found.pop("comm"), "/" in found.pop("cmdline")) == ("sandbox-init", False)
    assert set(found.values()) <= {"EACCES", "EPERM"}, found


@WHO
def test_pid_1_cannot_be_killed_from_inside(who: str) -> None:
    # The kernel drops the signal; were it not so, the sandbox would not answer any more.
    assert look_as(who, "init_signals", "status")["status"]["Seccomp"] == "2"


@WHO
def test_there_is_no_sysfs_and_no_cgroup_file_system(who: str) -> None:
    kinds = {kind for _, _, _, kind in by_default(who)["mounts"]}
    assert not kinds & {
        "sysfs",
        "cgroup",
        "cgroup2",
        "debugfs",
        "tracefs",
        "securityfs",
        "configfs",
        "bpf",
        "devtmpfs",
    } - {
        "devtmpfs"  # single nodes of it, see test_dev_has_nothing_but_the_harmless_nodes
    }


@WHO
def test_its_cgroup_is_the_top_of_what_it_sees(who: str) -> None:
    for names, path in by_default(who)["cgroups"].items():
        # At most the number of the command's own group, told from where pid 1 stands: no name of the host's.
        assert re.fullmatch(r"/(\.\./)?(c\d+)?", path), (names, path)


# --- devices, network ------------------------------------------------------------------------------


@WHO
def test_dev_has_nothing_but_the_harmless_nodes(who: str) -> None:
    nodes = {name: kind for name, kind in by_default(who)["devices"].items() if kind[0] in "cb"}
    assert nodes == {
        "null": "c 1:3",
        "zero": "c 1:5",
        "full": "c 1:7",
        "random": "c 1:8",
        "urandom": "c 1:9",
        "tty": "c 5:0",
    }
    others = by_default(who)["devices"].keys() - nodes.keys()
    assert others == {"fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm", "mqueue"}


@WHO
def test_the_network_is_its_own_loopback(who: str) -> None:
    assert by_default(who)["interfaces"] == ["lo"]
    assert by_default(who)["routes"] == "ENETUNREACH"


@WHO
def test_sockets_of_ordinary_programs_can_be_made(who: str) -> None:
    assert set(by_default(who)["sockets"].values()) == {"ok"}


# --- files -----------------------------------------------------------------------------------------


@WHO
def test_the_root_is_read_only(who: str) -> None:
    written = by_default(who)["written"]
    assert {written[path] for path in ("/", "/etc", "/dev")} == {"EROFS"}
    assert written["/usr"] in ("EROFS", "EACCES")
    assert {written[path] for path in FOLDERS} == {"ok"}
    facts = {"folders": ["/", "/usr"]}
    off = look_as(who, "written", arguments=without("read-only-root"), facts=facts)["written"]
    assert off["/"] == "ok"
    assert off["/usr"] in ("EROFS", "EACCES")


@WHO
def test_writable_folders_have_a_size_and_a_number_of_files(who: str) -> None:
    for folder in ("/", *FOLDERS):
        size, files = by_default(who)["sizes"][folder]
        assert 0 < size <= 256 << 20, folder
        assert 0 < files <= 65536, folder
    assert look_as(who, "filled")["filled"] == "ENOSPC"


@WHO
def test_every_mount_is_nosuid_and_nodev(who: str) -> None:
    mounts = by_default(who)["mounts"]
    assert len(mounts) > 10
    for _, place, options, kind in mounts:
        assert "nosuid" in options.split(","), place
        # A device node is its own mount, and devpts is there for its nodes.
        if kind != "devpts" and not re.fullmatch(r"/dev/(null|zero|full|random|urandom|tty)", place):
            assert "nodev" in options.split(","), place


@WHO
def test_mounts_name_no_path_of_the_hosts_but_what_they_show(who: str) -> None:
    for root, place, _, kind in by_default(who)["mounts"]:
        # What is bound stands at its own path, so nothing is told that is not to be seen anyway; an
        # own file system has its own paths. The host's root may be a mount below its file system's.
        assert root == "/" or place.endswith(root) or root.endswith(place) or kind == "devtmpfs", (
            root,
            place,
        )


@WHO
def test_files_of_the_host_that_nobody_needs_are_not_there(who: str) -> None:
    found = by_default(who)["unseen_paths"]
    # The checkout, or its environment, may lie below one of them, and is shown there.
    shown = {str(top) for path in (sys.prefix, sys.base_prefix, *sys.path) for top in Path(path).parents}
    assert {answer for path, answer in found.items() if path not in shown} == {"ENOENT"}, found


@WHO
def test_no_descriptor_but_the_standard_ones_is_open(who: str) -> None:
    assert by_default(who)["descriptors"] == [0, 1, 2]


@WHO
def test_the_environment_is_a_new_one(who: str) -> None:
    assert by_default(who)["environment"].keys() - {"LC_CTYPE"} == {"PATH", "HOME", "LANG", "TMPDIR"}


@WHO
def test_a_command_leads_a_session_without_a_terminal(who: str) -> None:
    assert by_default(who)["session"] == {"leader": True, "tty": "ENXIO"}
