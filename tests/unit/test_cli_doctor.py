"""What ``doctor`` says of machines that need not exist."""

from __future__ import annotations

import attrs
import pytest

from sandboxlib.doctor import CONTROLLERS, DEFAULT, Finding, attempt, examine
from sandboxlib.errors import KernelError, SpecError, UnsupportedError
from sandboxlib.host import CGroupHost, Host

import hosts


def found(host: Host) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(host)}


def missing(host: Host) -> set[str]:
    return {finding.name for finding in examine(host) if finding.state == "missing"}


@pytest.mark.parametrize("name", hosts.HOSTS)
def test_a_finding_has_a_name_of_its_own_and_a_remedy_where_something_is_missing(name: str) -> None:
    findings = list(examine(hosts.HOSTS[name]))
    assert len({finding.name for finding in findings}) == len(findings)
    assert [finding for finding in findings if finding.state != "ok" and not finding.remedy] == []
    assert {finding.state for finding in findings} <= {"ok", "missing", "note"}


@pytest.mark.parametrize("host", [hosts.ROOT_V1, hosts.ROOT_V2, hosts.ARM])
def test_roots_machine_lacks_nothing(host: Host) -> None:
    assert {finding.state for finding in examine(host)} == {"ok"}


def test_a_user_without_a_cgroup_is_told_how_to_get_one() -> None:
    assert missing(hosts.USER) == {"cgroups", *(f"cgroup {name}" for name in CONTROLLERS)}
    assert found(hosts.USER)["cgroup memory"].remedy == hosts.NONE.hint


def test_a_user_whose_systemd_can_be_asked_is_told_what_would_be_there() -> None:
    findings = found(hosts.USER_WITH_SYSTEMD)
    assert findings["cgroups"].state == "note"
    assert "none yet" in findings["cgroups"].text
    assert findings["cgroup memory"].state == findings["cgroup pids"].state == "ok"
    assert missing(hosts.USER_WITH_SYSTEMD) == {"cgroup cpu", "cgroup cpuset", "cgroup io", "cgroup devices"}
    assert "Delegate" in findings["cgroup cpu"].remedy


def test_a_user_has_no_rules_for_devices_on_v2_but_a_freezer() -> None:
    assert missing(hosts.USER_V2) == {"cgroup cpuset", "cgroup io", "cgroup devices"}
    assert "BPF" in found(hosts.USER_V2)["cgroup devices"].remedy


def test_a_controller_that_is_not_delegated_is_missing_with_its_hint() -> None:
    groups = CGroupHost(version=2, bases={"pids": "/sys/fs/cgroup"}, hint="delegate it")
    host = attrs.evolve(hosts.USER, cgroups=groups)
    assert found(host)["cgroup memory"] == Finding(
        "cgroup memory", "missing", CONTROLLERS["memory"], "delegate it"
    )


def test_forbidden_user_namespaces_are_missing_with_the_hint() -> None:
    assert found(hosts.FORBIDDEN)["namespace user"].state == "missing"
    assert found(hosts.FORBIDDEN)["namespace user"].remedy == hosts.FORBIDDEN.userns_hint


def test_one_user_inside_is_worth_a_note_and_ranges_are_counted() -> None:
    assert found(hosts.USER)["users inside"].state == "note"
    assert "usermod" in found(hosts.USER)["users inside"].remedy
    assert "65536 subordinate users" in found(hosts.USER_SUBIDS)["users inside"].text


def test_what_an_old_kernel_lacks_is_a_note_where_a_sandbox_can_do_without() -> None:
    findings = found(hosts.OLD)
    assert findings["landlock"].state == findings["namespace time"].state == "note"
    assert missing(hosts.OLD) == set()


@pytest.mark.parametrize(
    "kind, config", [("user", "CONFIG_USER_NS"), ("network", "CONFIG_NET_NS"), ("cgroup", "CONFIG_CGROUPS")]
)
def test_a_missing_namespace_names_what_the_kernel_is_built_without(kind: str, config: str) -> None:
    host = attrs.evolve(hosts.ROOT_V1, namespaces=hosts.KINDS - {kind})
    assert missing(host) == {f"namespace {kind}"}
    assert found(host)[f"namespace {kind}"].remedy.endswith(config)


def test_a_kernel_or_a_machine_that_is_not_served_is_missing() -> None:
    host = attrs.evolve(hosts.ROOT_V1, kernel=(5, 13), machine="riscv64")
    assert missing(host) == {"kernel", "machine"}


@pytest.mark.parametrize(
    "error, words",
    [
        (
            UnsupportedError("memory_max", "the memory cgroup controller", "delegate it"),
            ["memory_max", "delegate it"],
        ),
        (KernelError(1, "clone3(CLONE_NEWUSER)", "pid 1"), ["clone3(CLONE_NEWUSER)", "EPERM", "hint"]),
        (SpecError("memory", 0, "more"), ["SpecError", "memory"]),
    ],
)
def test_what_does_not_work_is_told_with_its_error(error: Exception, words: list[str]) -> None:
    def action() -> None:
        raise error

    finding = attempt(DEFAULT, action)
    assert finding.state == "missing"
    assert [word for word in words if word not in str(finding)] == []


def test_what_is_not_of_this_library_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        attempt(DEFAULT, lambda: 1 / 0)


def test_what_works_is_told_with_its_time() -> None:
    finding = attempt("a thing", lambda: None)
    assert finding.state == "ok"
    assert finding.text.endswith(" ms")


@pytest.mark.parametrize(
    "host, state, words",
    [
        (attrs.evolve(hosts.ROOT_V2, nft=""), "note", ["modprobe nf_tables"]),
        (hosts.ROOT_V2, "ok", ["bridge", "nf_tables"]),
        (hosts.USER, "note", ["passt"]),
        (attrs.evolve(hosts.USER, pasta="/usr/bin/pasta"), "note", ["/dev/net/tun", "chmod"]),
        (attrs.evolve(hosts.USER, pasta="/usr/bin/pasta", tun=True), "ok", ["pasta"]),
        (attrs.evolve(hosts.USER, slirp4netns="/usr/bin/slirp4netns", tun=True), "ok", ["slirp4netns"]),
    ],
)
def test_which_network_there_is_and_why(host: Host, state: str, words: list[str]) -> None:
    found = next(finding for finding in examine(host) if finding.name == "network")
    assert found.state == state
    assert [word for word in words if word not in str(found)] == []


def test_ubuntus_restriction_is_named_with_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from sandboxlib.kernel import probe

    switch = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
    monkeypatch.setattr(probe, "_number", lambda path: 1 if path == switch else None)
    hint = probe._userns_hint(privileged=False)
    assert "an AppArmor profile with 'userns,'" in hint
    assert "kernel.apparmor_restrict_unprivileged_userns to 0" in hint
    # Root is not meant.
    assert probe._userns_hint(privileged=True) == ""
