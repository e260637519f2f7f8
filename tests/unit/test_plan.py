"""What is planned for machines of all kinds, read as printed; nothing here touches this one."""

from __future__ import annotations

import itertools
import re
from typing import Any

import attrs
import pytest

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import UnsupportedError
from sandboxlib.host import Host
from sandboxlib.mount import Mount, Volume
from sandboxlib.namespace import Namespace
from sandboxlib.network import Network
from sandboxlib.plan.command import Request, command, serve
from sandboxlib.plan.protections import PROTECTIONS
from sandboxlib.plan.start import start
from sandboxlib.plan.steps import Clone, Plan, Step, flatten
from sandboxlib.plan.streams import Given
from sandboxlib.rootfs import Rootfs
from sandboxlib.security import Security
from sandboxlib.spec import SandboxSpec

import hosts
from programs import GROUPS

ALL = pytest.mark.parametrize("host", hosts.HOSTS.values(), ids=hosts.HOSTS)
REQUEST = Request((b"/bin/true",), (b"true",), (b"PATH=/bin",), "/work")


def planned(host: Host, **spec: Any) -> Plan:
    return start(SandboxSpec(**spec), host)


def lines(plan: Plan, *who: str) -> list[str]:
    """What is done, by whom if said."""
    return [text for doer, text, _ in plan.lines() if not who or doer in who]


def commanded(host: Host, request: Request = REQUEST, **spec: Any) -> list[str]:
    steps = command(SandboxSpec(**spec), host, request, GROUPS[host.cgroups.version])
    return [text for step in flatten(steps) if (text := str(step))]


def at(texts: list[str], pattern: str) -> int:
    """Where the one line stands that *pattern* is found in."""
    found = [i for i, text in enumerate(texts) if re.search(pattern, text)]
    assert len(found) == 1, f"{pattern!r} is found {len(found)} times in:\n" + "\n".join(texts)
    return found[0]


def in_order(texts: list[str], *patterns: str) -> None:
    """Each pattern is found once, and in this order."""
    places = [at(texts, pattern) for pattern in patterns]
    assert places == sorted(places), "\n".join(
        f"{place}: {pattern}" for place, pattern in zip(places, patterns, strict=True)
    )


def some(texts: list[str], pattern: str) -> list[str]:
    return [text for text in texts if re.search(pattern, text)]


# ---- the start ----------------------------------------------------------------------------------------


@ALL
def test_a_plan_is_a_value(host: Host) -> None:
    assert planned(host) == planned(host)
    assert planned(host, lifetime=9, hostname="a") == planned(host, hostname="a", lifetime=9)
    assert planned(host, hostname="a") != planned(host)


@ALL
def test_every_step_is_printed_as_a_call_with_its_reason(host: Host) -> None:
    for who, text, why in planned(host).lines():
        assert who in ("program", "launcher", "init")
        assert re.match(r"[a-z_0-9]+\(.*\)", text), text
        assert why, text


@ALL
def test_the_hosts_tree_is_cut_off_entered_and_dropped_in_this_order(host: Host) -> None:
    in_order(
        lines(planned(host), "init"),
        r'^mount_setattr\(AT_FDCWD, "/", .*MS_PRIVATE',
        r'^move_mount\(.*AT_FDCWD, "/"',
        r"^pivot_root",
        r"^umount2.*MNT_DETACH",
        r'^chdir\("/"\)',
        "sendmsg.*ready",
        "^ppoll",
    )


@ALL
def test_pid_1_keeps_two_descriptors_and_nothing_follows_it(host: Host) -> None:
    texts = lines(planned(host), "init")
    assert texts[-1].startswith("ppoll(")
    assert [text.split("(")[0] for text in texts[-3:-1]] == ["close_range", "close_range"]


@ALL
def test_the_root_is_read_only_once_it_is_entered(host: Host) -> None:
    in_order(lines(planned(host), "init"), "^pivot_root", r"^mount_setattr\(<root>.*RDONLY")
    assert not some(lines(planned(host, rootfs=Rootfs.empty()), "init"), r"^mount_setattr\(<root>.*RDONLY")


@ALL
def test_all_that_is_the_hosts_is_read_only_and_without_set_uid_files_and_devices(host: Host) -> None:
    texts = lines(planned(host))
    opened = some(texts, r'^open_tree\(AT_FDCWD, "/')
    for text in opened:
        name = text.rpartition(" = ")[2]
        (attributes,) = some(texts, rf"^mount_setattr\({re.escape(name)},.*NOSUID")
        assert ("RDONLY" in attributes and "NODEV" in attributes) or name.startswith("</dev/"), attributes
    assert {text.split('"')[1] for text in opened} == {
        *(entry.path for entry in hosts.VIEW if entry.kind != "link"),
        *(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")),
    }


@ALL
def test_every_memory_file_system_has_a_size(host: Host) -> None:
    texts = lines(planned(host, mounts=[Mount.tmpfs("/scratch")]))
    for i, text in enumerate(texts):
        if text.startswith('fsopen("tmpfs"'):
            options = texts[
                i + 1 : i + 1 + next(n for n, t in enumerate(texts[i + 1 :]) if "CMD_CREATE" in t)
            ]
            assert some(options, '"size", "[1-9]'), text
            assert some(options, '"nr_inodes", "[1-9]'), text


@ALL
def test_all_kinds_of_namespaces_are_new(host: Host) -> None:
    (clone,) = some(lines(planned(host)), r"^clone3\(")
    missing = {"USER", "NS", "PID", "NET", "IPC", "UTS", "CGROUP", "TIME"} - set(
        re.findall(r"CLONE_NEW(\w+)", clone)
    )
    # On cgroup v2, and for a user, this one is entered by pid 1 when it is in its group.
    missing -= {
        word
        for text in some(lines(planned(host)), r"^unshare\(")
        for word in re.findall(r"CLONE_NEW(\w+)", text)
    }
    assert missing == ({"TIME"} if host is hosts.OLD else set())


@ALL
def test_no_user_namespace_can_be_made_inside(host: Host) -> None:
    in_order(lines(planned(host), "init"), r"max_user_namespaces, '0'", "^pivot_root")


@pytest.mark.parametrize("host", [hosts.ROOT_V1, hosts.ROOT_V2, hosts.OLD], ids=str)
def test_roots_sandbox_has_ids_that_are_nobodys(host: Host) -> None:
    texts = lines(planned(host))
    assert some(texts, r"^write\(/proc/<child>/uid_map, '0 \{ids\} 65536")
    assert some(texts, r"^fcntl\(.*/ids, F_SETLK")
    assert not some(texts, "/proc/<child>/setgroups")


def test_a_user_maps_himself_alone_and_gives_up_groups() -> None:
    texts = lines(planned(hosts.USER))
    in_order(
        texts,
        r"^write\(/proc/<child>/setgroups, 'deny'\)",
        r"/uid_map, '0 1000 1\\n'",
        r"/gid_map, '0 1000 1\\n'",
    )
    assert not some(texts, "F_SETLK")


def test_a_user_with_subordinate_ids_has_them_written_by_the_tools() -> None:
    assert not some(lines(planned(hosts.USER_SUBIDS)), r"<child>/(uid|gid)_map")


def test_root_opens_sources_before_the_sandbox_exists_and_a_user_in_it() -> None:
    assert some(lines(planned(hosts.ROOT_V1), "launcher"), r'^open_tree\(AT_FDCWD, "/usr"')
    assert not some(lines(planned(hosts.ROOT_V1), "init"), r'^open_tree\(AT_FDCWD, "/usr"')
    assert some(lines(planned(hosts.USER), "init"), r'^open_tree\(AT_FDCWD, "/usr"')


def test_limits_are_set_before_anything_runs() -> None:
    for host in (hosts.ROOT_V1, hosts.ROOT_V2, hosts.USER_V2):
        texts = lines(planned(host, memory="64M", cgroup=CGroup(cpu_weight=50)))
        limits = at(texts, "memory.max = 67108864")
        assert "cpu.weight = 50" in texts[limits]
        assert "pids.max = 512" in texts[limits], "a ceiling where nothing was asked for"


def test_without_cgroups_the_ceilings_are_noted() -> None:
    plan = planned(hosts.USER)
    assert some(list(plan.notes), "RLIMIT_NPROC")
    assert some(list(plan.notes), "RLIMIT_DATA")
    assert some(commanded(hosts.USER), "RLIMIT_NPROC")
    assert planned(hosts.ROOT_V1).notes == ()
    assert not some(commanded(hosts.ROOT_V1), "RLIMIT_NPROC")


@pytest.mark.parametrize(
    "spec",
    [
        {"memory": "64M"},
        {"pids": 9},
        {"cgroup": CGroup()},
        {"cgroup": CGroup(memory_high="1G"), "pids": 9},
    ],
)
def test_where_systemd_can_be_asked_a_limit_asks_it_first_of_all(spec: dict[str, Any]) -> None:
    plan = planned(hosts.USER_WITH_SYSTEMD, **spec)
    in_order(lines(plan), "StartTransientUnit", r"^mkdir\(<cgroup>\)", "vfork", r"^clone3.*CLONE_INTO_CGROUP")
    assert not some(list(plan.notes), "RLIMIT")


@pytest.mark.parametrize("host", [hosts.USER_WITH_SYSTEMD, hosts.USER, hosts.USER_V2, hosts.ROOT_V2])
def test_systemd_is_never_asked_without_a_limit_nor_where_there_is_a_cgroup(host: Host) -> None:
    assert not some(lines(planned(host)), "StartTransientUnit")
    if host.cgroups.version:
        assert not some(lines(planned(host, memory="64M")), "StartTransientUnit")


def test_without_a_limit_the_ceilings_say_how_to_have_systemd_asked() -> None:
    plan = planned(hosts.USER_WITH_SYSTEMD)
    assert some(list(plan.notes), "RLIMIT_NPROC.*systemd is asked")
    assert not some(lines(plan), "cgroup>")


def test_an_old_kernel_is_noted() -> None:
    assert some(list(planned(hosts.OLD).notes), "time namespace")


# ---- roots, mounts, namespaces ------------------------------------------------------------------------


def test_a_directory_of_roots_is_mapped_by_the_sandboxs_ids() -> None:
    root = Rootfs.directory("/srv/base", readonly=False)
    in_order(
        lines(planned(hosts.ROOT_V1, rootfs=root)),
        r'^open_tree\(AT_FDCWD, "/srv/base"',
        "/proc/<child>/uid_map",
        "MOUNT_ATTR_IDMAP",
    )
    assert not some(lines(planned(hosts.USER, rootfs=root)), "IDMAP")


@ALL
def test_in_a_tree_that_is_not_ours_every_path_is_looked_up_from_its_root(host: Host) -> None:
    texts = lines(planned(host, rootfs=Rootfs.directory("/srv/base"), mounts=[Mount.tmpfs("/a/b")]), "init")
    # /proc and /dev have to be folders: no link at all is followed there.
    assert some(
        texts,
        r'^openat2\(<root>, "proc",.*NO_SYMLINKS',
    )
    assert some(texts, r'^openat2\(<root>, "a/b",.*RESOLVE_IN_ROOT')
    assert not some(texts, r'^move_mount\(<mount>, "", <root>, "(proc|dev|a/b)"')


@ALL
def test_an_overlay_is_made_of_a_layer_with_a_size_and_those_below(host: Host) -> None:
    if host is hosts.OLD:
        with pytest.raises(UnsupportedError, match=re.escape("Linux 5.19")):
            planned(host, rootfs=Rootfs.overlay(lower=["/srv/base"]))
        return
    texts = lines(planned(host, rootfs=Rootfs.overlay(lower=["/srv/top", "/srv/base"], size="64M")))
    # Root's launcher sets it up, while the sandbox waits to mount it.
    in_order(texts, r'^open_tree\(.*"/srv/top"', '"upperdir"')
    in_order(texts, r'^open_tree\(.*"/srv/base"', '"upperdir"')
    in_order(texts, r"^fsmount\(<overlay>", r"^pivot_root")
    assert [re.findall('"(/srv/[a-z]+)"', text) for text in some(texts, r'^open_tree.*"/srv')] == [
        ["/srv/top"],
        ["/srv/base"],
    ]
    assert len(some(texts, r'"lowerdir\+"')) == 2
    assert some(texts, '"size", "67108864"')
    assert bool(some(texts, "userxattr")) == (not host.privileged)


@pytest.mark.parametrize(
    "kernel, options", [((6, 7), ['"lowerdir+"', '"lowerdir+"']), ((6, 6), ['"lowerdir"'])]
)
def test_layers_are_named_as_the_kernel_takes_them(kernel: tuple[int, int], options: list[str]) -> None:
    host = attrs.evolve(hosts.ROOT_V1, kernel=kernel)
    texts = lines(planned(host, rootfs=Rootfs.overlay(lower=["/srv/top", "/srv/base"])))
    assert [found for text in texts for found in re.findall(r'"lowerdir\+?"', text)] == options


def test_a_bind_and_a_volume_are_as_asked_for() -> None:
    mounts = [Mount.bind("/data", "/mnt", readonly=True, noexec=True), Volume("models").at("/models")]
    texts = lines(planned(hosts.ROOT_V1, mounts=mounts))
    (attributes,) = some(texts, r"^mount_setattr\(</data>")
    assert "RDONLY" in attributes
    assert "NOEXEC" in attributes
    assert "NOSUID" in attributes
    assert some(texts, r"^open_tree\(AT_FDCWD, .*models")
    assert some(texts, "IDMAP"), "a volume's files belong to whoever is inside"


def test_a_namespace_that_is_joined_is_opened_first_and_entered_before_the_others_are_made() -> None:
    joined = Namespace("network", path="/proc/1/ns/net")
    texts = lines(planned(hosts.ROOT_V1, namespaces=[joined]))
    in_order(texts, r'^openat\(.*"/proc/1/ns/net"', r"^setns\(<network>", r"^clone3\(")
    assert "CLONE_NEWNET" not in texts[at(texts, r"^clone3\(")]
    assert not some(texts, "SIOCSIFFLAGS"), "another's loopback is left alone"


def test_the_hosts_network_is_neither_made_nor_touched() -> None:
    texts = lines(planned(hosts.ROOT_V1, network=Network.host()))
    assert "CLONE_NEWNET" not in texts[at(texts, r"^clone3\(")]
    assert not some(texts, "SIOCSIFFLAGS")


def test_the_clocks_are_set_before_anyone_is_in_the_namespace() -> None:
    texts = lines(planned(hosts.ROOT_V1, namespaces=[Namespace("time", boottime_offset=3600)]), "init")
    in_order(
        texts,
        r"^unshare\(CLONE_NEWTIME",
        r"timens_offsets, 'boottime 3600 0",
        "time_for_children",
        r"^setns\(",
    )


def test_names_are_the_sandboxs_own() -> None:
    texts = lines(planned(hosts.ROOT_V1, hostname="db", domainname="example"))
    assert some(texts, r'^sethostname\("db"\)')
    assert some(texts, r'^setdomainname\("example"\)')
    assert not some(lines(planned(hosts.ROOT_V1, namespaces=[Namespace.host("uts")])), "sethostname")


def test_a_lifetime_is_pid_1s() -> None:
    assert (
        lines(planned(hosts.ROOT_V1, lifetime=1.5))[-1:] == lines(planned(hosts.ROOT_V1, lifetime=1.5))[-1:]
    )
    assert some(lines(planned(hosts.ROOT_V1, lifetime=1.5)), r"^ppoll\(<owner>, <tie>, 1500 ms\)")


# ---- a command ----------------------------------------------------------------------------------------


@ALL
def test_a_command_gives_up_its_rights_in_the_one_order_that_works(host: Host) -> None:
    expected = [r"^setns\(<pid 1>", r"^clone3\(", r"^setsid\(\)", r'^openat2\("/work"', r"^getcwd"]
    expected += ["PR_CAPBSET_DROP", "PR_SET_NO_NEW_PRIVS", r"^setresgid", r"^setresuid", r"^capset\(none\)"]
    expected += ["CLOSE_RANGE_CLOEXEC", "SECCOMP_SET_MODE_FILTER", r"^execve"]
    in_order(commanded(host), *expected)


@ALL
def test_nothing_comes_between_the_filter_and_the_command(host: Host) -> None:
    texts = commanded(host)
    assert at(texts, "^execve") == at(texts, "SECCOMP_SET_MODE_FILTER") + 1


@ALL
def test_the_command_is_a_child_of_the_program_and_shares_no_memory_with_it(host: Host) -> None:
    (clone,) = (
        step
        for step in flatten(command(SandboxSpec(), host, REQUEST, GROUPS[host.cgroups.version]))
        if isinstance(step, Clone)
    )
    # It is the launcher's memory, until execve; and the launcher does not wait for it.
    assert "CLONE_PARENT" in str(clone)
    assert "CLONE_VM" in str(clone)
    assert "CLONE_VFORK" not in str(clone)


def test_a_commands_group_is_opened_outside_and_joined_inside() -> None:
    texts = commanded(hosts.ROOT_V1)
    in_order(
        texts,
        r'^openat\(.*"/a/tasks"',
        r'^openat\(.*"/b/tasks"',
        r"^setns\(<pid 1>",
        r"^clone3\(",
        r"^write\(40",
        r"^write\(41",
        "PR_CAPBSET_DROP",
    )
    texts = commanded(hosts.ROOT_V2)
    in_order(
        texts,
        f'"{GROUPS[2].folder}"',
        r"^setns\(<pid 1>",
        r"^clone3\(.*CLONE_INTO_CGROUP",
        r"^setns\(41, CLONE_NEWCGROUP",
    )


def test_without_cgroups_a_command_has_a_namespace_that_tells_its_processes_from_others() -> None:
    in_order(
        commanded(hosts.USER),
        r"^setns\(<pid 1>",
        r"^unshare\(CLONE_NEWUTS\)",
        "SCM_RIGHTS <mark>",
        r"^clone3\(",
        # With as few descriptors as a command may have, the mark might not be let through.
        r"^prlimit\(RLIMIT_NOFILE",
        r"^execve\(",
    )


@ALL
def test_a_limit_on_descriptors_is_for_the_command_and_not_for_what_makes_it(host: Host) -> None:
    request = REQUEST._replace(rlimits=(("nofile", (3, 3)), ("core", (0, 0))))
    texts = commanded(host, request)
    in_order(
        texts,
        r"^prlimit\(RLIMIT_CORE, \(0, 0\)",
        r"^clone3\(",
        r"^openat2\(",
        r"^prlimit\(RLIMIT_NOFILE, \(3, 3\)",
        r"^execve\(",
    )


@ALL
def test_what_kept_its_time_stays_until_a_command_has_ended(host: Host) -> None:
    texts = commanded(host, REQUEST._replace(wall_time=1_500_000_000))
    in_order(texts, r"^clone3\(", r"^sendmsg\(<program>, 'child'", r"^ppoll\(<child>, 1\.5 s\); .*SIGKILL")
    assert "ppoll" in texts[-1]
    assert not some(commanded(host), "^ppoll")


@ALL
def test_a_command_shares_memory_with_what_starts_it_unless_it_is_to_be_counted_alone(host: Host) -> None:
    assert some(commanded(host), r"^clone3\(.*CLONE_VM")
    assert not some(commanded(host, REQUEST._replace(apart=True)), "CLONE_VM")


@ALL
def test_when_memory_runs_out_commands_go_before_pid_1(host: Host) -> None:
    # A plain user does not have the capability.
    for own, raises in itertools.product((-1000, -500, 0, 400, 1000), {host.privileged, False}):
        host = attrs.evolve(host, oom_score_adj=own, raises_limits=raises)
        texts = [text for text in commanded(host) if "oom_score_adj" in text]
        assert len(texts) == 1
        found = re.search(r"'(-?\d+)'", texts[0])
        assert found is not None
        score = int(found[1])
        inits = [text for text in lines(planned(host)) if "oom_score_adj" in text]
        assert bool(inits) == (raises and own > -1000)
        assert all("-1000" in text for text in inits)
        if inits:
            # Where /proc shows other processes by these numbers the maps are refused first.
            in_order(lines(planned(host)), r"uid_map", r"oom_score_adj")
        assert 0 < score <= 1000
        # Whoever cannot be set is as high as the program, which can be no higher than 1000.
        assert score > own or own == 1000


@pytest.mark.parametrize(
    "host", [hosts.ROOT_V1, hosts.USER_SUBIDS], ids=["root", "user with subordinate ids"]
)
def test_a_user_inside_keeps_what_was_asked_for_and_no_more(host: Host) -> None:
    security = Security(user="1000:1001", groups=[5], capabilities=["CAP_NET_BIND_SERVICE"])
    texts = commanded(host, security=security)
    in_order(
        texts,
        r"^setgroups\(\(5,\)\)",
        r"^setresgid\(1001, 1001, 1001\)",
        "PR_SET_KEEPCAPS",
        r"^setresuid\(1000, 1000, 1000\)",
        r"^capset\(CAP_NET_BIND_SERVICE\)",
        "PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE",
    )


def test_a_file_of_the_callers_is_closed_off_by_landlock() -> None:
    assert some(commanded(hosts.ROOT_V1, REQUEST._replace(foreign=True)), "^landlock_add_rule")
    assert not some(commanded(hosts.ROOT_V1), "^landlock_add_rule")


def test_a_file_of_the_callers_may_be_opened_again_for_what_it_is_open_for() -> None:
    given = (Given(0, "r"), Given(1, "w"), Given(2, "rw"))
    texts = commanded(hosts.ROOT_V1, REQUEST._replace(foreign=True, given=given))
    rules = [text for text in texts if text.startswith("landlock_add_rule") and "<std" in text]
    # include/uapi/linux/landlock.h: reading a file, writing one, truncating one.
    assert [text.rpartition(", ")[2] for text in rules] == ["0x4)", "0x4002)", "0x4006)"]
    old = attrs.evolve(hosts.ROOT_V1, landlock=1)
    texts = commanded(old, REQUEST._replace(foreign=True, given=given))
    assert [text.rpartition(", ")[2] for text in texts if "<stdout>" in text] == ["0x2)"]
    # Without a file of the caller's, and without the protection, nothing is watched.
    request, without = REQUEST._replace(foreign=True, given=given), Security(without=["private-stdio"])
    assert not some(commanded(hosts.ROOT_V1, request, security=without), "landlock")


def test_a_file_that_its_mode_closes_to_a_command_is_mounted_where_it_is_opened_by_name() -> None:
    given = (Given(0, "r", shown=True), Given(1, "w", shown=True))
    texts = commanded(hosts.ROOT_V1, REQUEST._replace(foreign=True, given=given))
    in_order(
        texts,
        r"^open_tree\(0,",
        r"^mount_setattr\(<stdin'>.*MOUNT_ATTR_RDONLY",
        r"^mount_setattr\(<stdin'>.*MOUNT_ATTR_IDMAP",
        r"^open_tree\(1,",
        r"^mount_setattr\(<stdout'>.*MOUNT_ATTR_NOSUID",
        r"^setns\(<pid 1>",
        r"^unshare\(CLONE_NEWNS\)",
        r'^openat.*"/dev/stdin".*O_NOFOLLOW',
        r"^move_mount\(<stdin'>",
        r"^move_mount\(<stdout'>",
        r"^fchdir",
        r"^landlock_restrict_self",
    )
    assert not some(texts, r"<stdout'>.*RDONLY")
    assert not some(commanded(hosts.ROOT_V1, REQUEST._replace(foreign=True)), "unshare|open_tree")


def test_a_terminal_is_taken_only_where_one_was_asked_for() -> None:
    in_order(commanded(hosts.ROOT_V1, REQUEST._replace(tty=True)), r"^setsid", "TIOCSCTTY", "PR_CAPBSET_DROP")
    assert not some(commanded(hosts.ROOT_V1), "TIOCSCTTY")


@ALL
def test_a_helper_has_no_right_outside(host: Host) -> None:
    texts = [str(step) for step in serve(SandboxSpec(), host)]
    in_order(
        texts,
        "PR_SET_DUMPABLE, 0",
        r"^setns\(<pid 1>",
        r"^setresgid\(0",
        r"^setresuid\(-1, 0, -1\)",
        "^recvmsg",
    )


# ---- protections, each by its name --------------------------------------------------------------------

# What its absence takes out: of the start (S), or of a command (C).
SWITCHES = {
    "no-capabilities": ("C", "PR_CAPBSET_DROP"),
    "no-new-privileges": ("C", "PR_SET_NO_NEW_PRIVS"),
    "no-nested-userns": ("S", "max_user_namespaces"),
    "new-keyring": ("C", "KEYCTL_JOIN_SESSION_KEYRING"),
    "read-only-root": ("S", r"^mount_setattr\(<root>.*RDONLY"),
    "proc-subset": ("S", '"subset"'),
    "hidden-processes": ("S", '"hidepid"'),
    "seccomp": ("C", "SECCOMP_SET_MODE_FILTER"),
    "ceilings": ("S", "pids.max"),
    "rlimits": ("C", "RLIMIT_MEMLOCK"),
    "no-core-dumps": ("C", "RLIMIT_CORE"),
}


def steps_of(kind: str, **spec: Any) -> list[str]:
    return lines(planned(hosts.ROOT_V1, **spec)) if kind == "S" else commanded(hosts.ROOT_V1, **spec)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_protection_is_on_until_its_name_is_said(name: str) -> None:
    kind, pattern = SWITCHES[name]
    assert some(steps_of(kind), pattern)
    assert not some(steps_of(kind, security=Security(without=[name])), pattern)


@pytest.mark.parametrize("name", SWITCHES)
def test_switching_one_protection_off_leaves_the_others_on(name: str) -> None:
    for other, (kind, pattern) in SWITCHES.items():
        if other != name:
            assert some(steps_of(kind, security=Security(without=[name])), pattern), other


def test_every_protection_has_a_name_of_its_own_and_a_reason() -> None:
    assert len({row.name for row in PROTECTIONS}) == len(PROTECTIONS)
    assert [row.name for row in PROTECTIONS if not row.reason] == []
    assert SWITCHES.keys() <= {row.name for row in PROTECTIONS if not row.fixed}


def test_with_the_whole_of_proc_its_secrets_are_masked() -> None:
    def reasons(*without: str) -> set[str]:
        return {why for _, _, why in planned(hosts.ROOT_V1, security=Security(without=without)).lines()}

    assert {"/proc/kcore is masked", "/proc/sys can be read only"} <= reasons("proc-subset")
    assert not some(sorted(reasons("proc-subset", "masked-paths")), "is masked|can be read only")
    assert not some(sorted(reasons()), "is masked|can be read only"), "there is nothing to mask"


def test_steps_are_hashable_so_that_plans_can_be_kept() -> None:
    step: Step
    for step in flatten(planned(hosts.ROOT_V1).steps):
        assert isinstance(hash(step), int)
    assert attrs.evolve(hosts.ROOT_V1) != hosts.ROOT_V1, "a Host is told by identity"
