"""What a machine cannot do is refused while planning, by name and with the way out; and nothing else is."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxlib.cgroup import CGroup
from sandboxlib.engine.encode import encode, encode_command
from sandboxlib.errors import ImageError, SpecError, UnsupportedError
from sandboxlib.host import Host
from sandboxlib.mount import Mount, Volume
from sandboxlib.namespace import Namespace
from sandboxlib.network import Network
from sandboxlib.plan.command import Group, Request, command, serve
from sandboxlib.plan.start import start
from sandboxlib.plan.steps import Plan
from sandboxlib.rootfs import Rootfs
from sandboxlib.security import Security
from sandboxlib.spec import SandboxSpec

import hosts
from programs import VALUES

REQUEST = Request((b"/bin/true",), (b"true",), (b"PATH=/bin",), "/work")


def without(kind: str) -> Host:
    return attrs.evolve(hosts.ROOT_V1, namespaces=hosts.KINDS - {kind})


@pytest.mark.parametrize(
    "host, spec, words",
    [
        (hosts.FORBIDDEN, {}, ["user namespace", "max_user_namespaces"]),
        (without("network"), {}, ["network namespace"]),
        (without("pid"), {}, ["pid namespace"]),
        (without("user"), {}, ["user namespace"]),
        (without("time"), {"namespaces": [Namespace("time", boottime_offset=1)]}, ["time namespace"]),
        (hosts.USER, {"memory": "64M"}, ["memory", "systemd-run"]),
        (hosts.USER, {"cpus": 0.5}, ["cpu", "systemd-run"]),
        (hosts.USER, {"cgroup": CGroup(io_weight=50)}, ["io_weight", "systemd-run"]),
        (hosts.USER_V2, {"cgroup": CGroup(cpuset_cpus="0")}, ["cpuset", "Delegate"]),
        (hosts.USER_WITH_SYSTEMD, {"cpus": 0.5}, ["cpu", "Delegate"]),
        (
            hosts.USER_WITH_SYSTEMD,
            {"memory": "1G", "cgroup": CGroup(io_weight=50)},
            ["io_weight", "Delegate"],
        ),
        (hosts.ROOT_V1, {"cgroup": CGroup(memory_high="64M")}, ["memory_high", "cgroup v2"]),
        (hosts.USER, {"namespaces": [Namespace.host("user")]}, ["host's user namespace", "root"]),
        (attrs.evolve(hosts.ROOT_V1, nft=""), {"network": "bridge"}, ["bridge", "modprobe nf_tables"]),
        (attrs.evolve(hosts.ROOT_V1, ipv6=False), {"network": Network.bridge(ipv6=True)}, ["IPv6"]),
        (hosts.ROOT_V1, {"network": "user"}, ["without root", "Network.bridge()"]),
        (hosts.ROOT_V1, {"network": Network.macvlan("eth0")}, ["macvlan"]),
        (hosts.USER, {"network": "bridge"}, ["root", "Network.user()"]),
        (hosts.USER, {"network": "user"}, ["pasta", "passt"]),
        (attrs.evolve(hosts.USER, pasta="/usr/bin/pasta"), {"network": "user"}, ["/dev/net/tun"]),
    ],
)
def test_what_this_host_cannot_do_is_refused_with_the_way_out(
    host: Host, spec: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        start(SandboxSpec(**spec), host)  # type: ignore[arg-type]
    assert [word for word in words if word not in str(caught.value)] == []
    assert caught.value.feature
    assert caught.value.needs


def test_a_file_as_standard_input_needs_landlock_or_a_word() -> None:
    request = REQUEST._replace(foreign=True)
    with pytest.raises(UnsupportedError, match="Landlock") as caught:
        command(SandboxSpec(), hosts.OLD, request, Group())
    assert "private-stdio" in caught.value.hint
    security = Security(without=["private-stdio"])
    assert command(SandboxSpec(security=security), hosts.OLD, request, Group())


@pytest.mark.parametrize("name", ["namespaces", "pivot-root", "no-such", "SECCOMP"[:3].lower()])
def test_a_protection_that_cannot_be_switched_off_is_refused_with_those_that_can(name: str) -> None:
    with pytest.raises(SpecError, match="seccomp") as caught:
        start(SandboxSpec(security=Security(without=[name])), hosts.ROOT_V1)
    assert caught.value.field == "security.without"
    assert caught.value.value == name


# ---- the plan is total --------------------------------------------------------------------------------

CONTROLLERS = st.sets(st.sampled_from(hosts.CONTROLLERS))
MACHINES = st.builds(
    attrs.evolve,
    st.sampled_from(list(hosts.HOSTS.values())),
    kernel=st.tuples(st.integers(5, 7), st.integers(0, 20)).filter(lambda version: version >= (5, 14)),
    landlock=st.integers(0, 7),
    namespaces=st.sets(st.sampled_from(sorted(hosts.KINDS)), max_size=2).map(lambda gone: hosts.KINDS - gone),
    userns_hint=st.sampled_from(["", "", "", "set a sysctl"]),
    cgroups=st.builds(
        lambda base, names: attrs.evolve(
            base, bases={name: base.bases[name] for name in names} if base.version else {}
        ),
        st.sampled_from([hosts.V1, hosts.V2, hosts.NONE, hosts.OFFER]),
        CONTROLLERS,
    ),
)


def test_an_image_that_nobody_has_looked_up_cannot_be_planned() -> None:
    with pytest.raises(ImageError, match="looked up"):
        start(SandboxSpec(rootfs=Rootfs.image("app:1")), hosts.ROOT_V1)


ROOTS = st.sampled_from(
    [
        None,
        Rootfs.host(paths=["/opt"]),
        Rootfs.directory("/srv/base"),
        Rootfs.directory("/srv/base", readonly=False),
        Rootfs.overlay(lower=["/srv/top", "/srv/base"]),
        Rootfs.overlay(lower=["/srv/base"], storage="/var/lib/x"),
        Rootfs.empty(size="1M"),
        Rootfs("image", reference="app:1", lower=["/srv/layer", "/srv/base"]),
    ]
)
SPACES = st.lists(
    st.sampled_from(
        [
            Namespace.host("uts"),
            Namespace.host("user"),
            Namespace.host("ipc"),
            Namespace("network", path="/proc/1/ns/net"),
            Namespace("pid", path="/proc/1/ns/pid"),
            Namespace("time", boottime_offset=3600),
            Namespace("user", uid_map=[(0, 100000, 65536)], gid_map=[(0, 100000, 65536)]),
        ]
    ),
    max_size=3,
    unique_by=lambda value: value.kind,
)
PROTECTIONS = (
    "seccomp",
    "ceilings",
    "proc-subset",
    "rlimits",
    "private-stdio",
    "no-capabilities",
    "read-only-root",
)
RIGHTS = st.builds(
    Security,
    user=st.sampled_from([None, "1000", "1000:1001"]),
    groups=st.sampled_from([(), (5, 6)]),
    capabilities=st.sampled_from([(), ("CAP_NET_RAW",), ("ALL",)]),
    rlimits=st.sampled_from([{}, {"nofile": 64, "core": "unlimited"}]),
    without=st.lists(st.sampled_from(PROTECTIONS), unique=True),
)
WISHES: dict[str, st.SearchStrategy[object]] = {
    "rootfs": ROOTS,
    "memory": st.sampled_from([None, "64M"]),
    "cpus": st.sampled_from([None, 0.5]),
    "pids": st.sampled_from([None, 10]),
    "lifetime": st.sampled_from([None, 1.5]),
    "namespaces": SPACES,
    "network": st.sampled_from([None, Network.none(), Network.host(), Network.bridge("b")]),
    "mounts": st.sampled_from(
        [(), (Mount.bind("/data", "/mnt"), Mount.tmpfs("/mnt/a"), Volume("v").at("/v"))]
    ),
    "security": st.none() | RIGHTS,
}


# On a busy machine one of them may take long.
@settings(deadline=None)
@given(
    host=MACHINES, wishes=st.fixed_dictionaries({}, optional=WISHES), foreign=st.booleans(), tty=st.booleans()
)
def test_a_plan_or_a_refusal_and_nothing_between(
    host: Host, wishes: dict[str, object], foreign: bool, tty: bool
) -> None:
    try:
        spec = SandboxSpec(**wishes)  # type: ignore[arg-type]
        plan = start(spec, host)
        request = REQUEST._replace(foreign=foreign, tty=tty)
        code = encode_command(spec, host, request, Group(files=("/a/tasks",)))
        helper = serve(spec, host)
    except (SpecError, UnsupportedError):
        return
    assert isinstance(plan, Plan)
    assert str(plan)
    # What can be planned can be said to the launcher.
    assert encode(plan.steps, VALUES)
    assert code
    assert encode(helper, VALUES)
    assert start(spec, host) == plan
