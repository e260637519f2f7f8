"""Resource limits as they are planned: for programs that may have less, or more, than sandboxes get."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from sandboxlib.cgroup import CGroup
from sandboxlib.errors import UnsupportedError
from sandboxlib.host import CGroupHost, Host
from sandboxlib.plan import ceilings
from sandboxlib.plan.command import Request, command
from sandboxlib.plan.rlimits import DEFAULTS, NO_CORE, rlimits
from sandboxlib.plan.start import start
from sandboxlib.plan.steps import flatten
from sandboxlib.security import Security
from sandboxlib.spec import SandboxSpec

import hosts
from programs import GROUPS

#: What a container or a service of systemd's may give its program, by resource.
TIGHT = {
    "core": 0, "nofile": 256, "stack": 1 << 20, "memlock": 0, "sigpending": 9, "msgqueue": 0, "nproc": 50,
}  # fmt: skip
REQUEST = Request((b"/bin/true",), (b"true",), (b"PATH=/bin",), "/work")


def with_limits(host: Host, **limits: int) -> Host:
    return attrs.evolve(host, limits=tuple(limits.items()))


def held(host: Host, **spec: Any) -> dict[str, tuple[int, int]]:
    return dict(rlimits(SandboxSpec(**spec), host))


def notes(host: Host, **spec: Any) -> list[str]:
    return list(start(SandboxSpec(**spec), host).notes)


@pytest.mark.parametrize("base", [hosts.ROOT_V1, hosts.ROOT_V2, hosts.USER, hosts.USER_V2])
def test_the_tighter_one_holds_and_is_noted(base: Host) -> None:
    host = with_limits(base, **TIGHT)
    found = held(host)
    for name, limit in TIGHT.items():
        if name in found:
            soft = NO_CORE[0] if name == "core" else DEFAULTS.get(name, (limit,))[0]
            assert found[name] == (min(soft, limit), limit), name
    for name in ("nofile", "stack", "memlock", "sigpending", "msgqueue"):
        assert [note for note in notes(host) if f"RLIMIT_{name.upper()} is {TIGHT[name]} " in note], name
    (core,) = [note for note in notes(host) if "RLIMIT_CORE" in note]
    assert "core_pattern" in core
    # The program's own say nothing of what a sandbox's ceiling is where the cgroup has it.
    assert ("nproc" in found) == (base is hosts.USER)


def test_what_is_far_above_changes_nothing() -> None:
    wide = with_limits(hosts.ROOT_V1, **dict.fromkeys(TIGHT, 1 << 62))
    assert held(wide) == held(hosts.ROOT_V1)
    assert notes(wide) == notes(hosts.ROOT_V1) == []
    assert command(SandboxSpec(), wide, REQUEST, GROUPS[1]) == command(
        SandboxSpec(), hosts.ROOT_V1, REQUEST, GROUPS[1]
    )


def test_whoever_may_raise_limits_keeps_crash_handlers_away_all_the_same() -> None:
    host = attrs.evolve(with_limits(hosts.ROOT_V1, core=0, nofile=256), raises_limits=True)
    assert held(host)["core"] == NO_CORE
    assert not [note for note in notes(host) if "CORE" in note]
    # A sandbox has no more than its program for all that.
    assert held(host)["nofile"] == (256, 256)


def test_what_was_asked_for_is_refused_above_the_programs_own() -> None:
    host = with_limits(hosts.ROOT_V1, nofile=256, core=0)
    for wanted in ({"nofile": 257}, {"nofile": "unlimited"}, {"core": 1}, {"nofile": (1, 1000)}):
        spec = SandboxSpec(security=Security(rlimits=wanted))
        with pytest.raises(UnsupportedError, match=rf"security.rlimits\['{next(iter(wanted))}'\].*ulimit"):
            start(spec, host)
        assert start(spec, attrs.evolve(host, raises_limits=True)).steps
    assert held(host, security=Security(rlimits={"nofile": (10, 256)}))["nofile"] == (10, 256)
    # What was asked for is in force, and so is not noted.
    assert not [n for n in notes(host, security=Security(rlimits={"nofile": 20})) if "NOFILE" in n]


def test_a_commands_own_limit_takes_the_place_of_the_default() -> None:
    def prlimits(host: Host, **limits: tuple[int, int]) -> list[str]:
        request = REQUEST._replace(rlimits=tuple(limits.items()))
        steps = flatten(command(SandboxSpec(), host, request, GROUPS[1]))
        return [str(step) for step in steps if str(step).startswith("prlimit(")]

    # Once: what was lowered cannot be raised again.
    several = [text for text in prlimits(hosts.ROOT_V1, nofile=(9000, 9000)) if "NOFILE" in text]
    assert several == ["prlimit(RLIMIT_NOFILE, (9000, 9000))"]
    tight = with_limits(hosts.ROOT_V1, nofile=256, fsize=1000)
    found = prlimits(tight, nofile=(9000, 9000), fsize=(10, 10))
    assert "prlimit(RLIMIT_NOFILE, (256, 256))" in found
    assert "prlimit(RLIMIT_FSIZE, (10, 10))" in found


def test_switched_off_they_are_the_programs() -> None:
    off = Security(without=["rlimits", "no-core-dumps"])
    assert held(with_limits(hosts.ROOT_V1, nofile=5), security=off) == {}


# --- ceilings without cgroups --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "least"), [(2 << 30, 5 << 30), (64 << 30, 7 << 30), (512 << 30, 21 << 30)]
)
def test_there_is_room_for_stacks_of_threads_and_for_what_runtimes_set_aside(memory: int, least: int) -> None:
    host = attrs.evolve(hosts.USER, memory=memory)
    data = held(host)["data"][1]
    assert data >= least
    # A Java machine begins with a sixty-fourth of the machine's memory, and a thread with 8 MiB.
    assert data >= ceilings.PIDS * (8 << 20) + memory // 64 + (1 << 30) // 2
    assert str(data) in "".join(notes(host))


def test_a_ceiling_above_the_programs_own_limit_is_that() -> None:
    host = with_limits(hosts.USER, data=100 << 20, nproc=50)
    assert (held(host)["data"], held(host)["nproc"]) == ((100 << 20,) * 2, (50, 50))
    said = "\n".join(notes(host))
    assert "RLIMIT_NPROC (50 processes)" in said
    assert f"RLIMIT_DATA ({100 << 20} bytes" in said


# --- groups above that allow less ----------------------------------------------------------------------


def below(host: Host, **limits: int) -> Host:
    return attrs.evolve(host, cgroups=attrs.evolve(host.cgroups, above=tuple(limits.items())))


@pytest.mark.parametrize("base", [hosts.ROOT_V1, hosts.ROOT_V2, hosts.USER_V2])
def test_a_ceiling_above_a_groups_own_limit_is_that(base: Host) -> None:
    host = below(base, memory_max=512 << 20, pids_max=100)
    found = ceilings.limits(SandboxSpec(), host)
    assert (found.memory_max, found.pids_max) == (512 << 20, 100)
    said = "\n".join(notes(host))
    assert f"memory_max is {512 << 20}" in said
    assert "pids_max is 100" in said


def test_what_was_asked_for_is_not_changed_by_a_group_above() -> None:
    # It is refused when the group is made, in the same words as before.
    host = below(hosts.ROOT_V1, memory_max=512 << 20, pids_max=100)
    found = ceilings.limits(SandboxSpec(memory="1G", cgroup=CGroup(pids_max=50)), host)
    assert (found.memory_max, found.pids_max) == (1 << 30, 50)
    assert notes(host, memory="1G", pids=50) == []


def test_a_wide_group_above_changes_nothing() -> None:
    assert notes(below(hosts.ROOT_V1, memory_max=1 << 40, pids_max=1 << 20)) == []
    spec = SandboxSpec()
    assert ceilings.limits(spec, below(hosts.ROOT_V1)) == ceilings.limits(spec, hosts.ROOT_V1)


def test_where_systemd_offers_a_group_its_limits_are_those_of_the_offer() -> None:
    offer = hosts.OFFER.offer
    assert isinstance(offer, CGroupHost)
    groups = attrs.evolve(hosts.OFFER, offer=attrs.evolve(offer, above=(("memory_max", 256 << 20),)))
    host = attrs.evolve(hosts.USER_WITH_SYSTEMD, cgroups=groups)
    assert [note for note in notes(host, pids=9) if f"memory_max is {256 << 20}" in note]


# --- descriptors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", hosts.HOSTS.values(), ids=hosts.HOSTS)
def test_too_few_descriptors_are_told_before_anything_starts(host: Host) -> None:
    with pytest.raises(UnsupportedError, match=r"RLIMIT_NOFILE.*resource\.setrlimit"):
        start(SandboxSpec(), attrs.evolve(host, descriptors=40))
    assert start(SandboxSpec(), attrs.evolve(host, descriptors=64)).steps
