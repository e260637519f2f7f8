"""Machines that need not exist: `Host` values to plan for."""

from __future__ import annotations

import attrs

from sandboxlib.host import CGroupHost, Entry, Host

KINDS = frozenset({"mount", "uts", "ipc", "network", "pid", "user", "cgroup", "time"})
CONTROLLERS = ("cpu", "cpuset", "devices", "freezer", "io", "memory", "pids")
VIEW = (
    Entry(kind="dir", path="/usr"),
    Entry(kind="link", path="/bin", target="usr/bin"),
    Entry(kind="link", path="/lib64", target="usr/lib64"),
    Entry(kind="file", path="/etc/ld.so.cache"),
    Entry(kind="dir", path="/home/me/venv"),
)
V1 = CGroupHost(version=1, bases={name: f"/sys/fs/cgroup/{name}" for name in CONTROLLERS})
V2 = CGroupHost(version=2, bases=dict.fromkeys(CONTROLLERS, "/sys/fs/cgroup/app.slice"))
NONE = CGroupHost(hint="run it with systemd-run --user --scope -p Delegate=yes")

ROOT_V1 = Host(
    kernel=(6, 8),
    machine="x86_64",
    uid=0,
    gid=0,
    privileged=True,
    namespaces=KINDS,
    landlock=5,
    cgroups=V1,
    view=VIEW,
    search_path=("/usr/bin", "/bin"),
    run_dir="/run/sandboxlib",
    ipv6=True,
)
ROOT_V2 = attrs.evolve(ROOT_V1, cgroups=V2)
USER = attrs.evolve(
    ROOT_V1,
    uid=1000,
    gid=1000,
    privileged=False,
    cgroups=NONE,
    run_dir="/run/user/1000/sandboxlib-1000",
)
DELEGATED = CGroupHost(
    version=2,
    bases=dict.fromkeys(("cpu", "memory", "pids"), "/sys/fs/cgroup/user.slice/app.scope"),
    hint="as root, put `[Service] Delegate=cpu cpuset io memory pids` into `systemctl edit user@.service`",
)
OFFER = CGroupHost(
    hint="give the sandbox a limit, and systemd is asked for one",
    offer=CGroupHost(
        version=2,
        bases=dict.fromkeys(("memory", "pids"), "/sys/fs/cgroup/user.slice/user@1000.service"),
        hint=DELEGATED.hint,
        offered=True,
    ),
)
USER_WITH_SYSTEMD = attrs.evolve(USER, cgroups=OFFER)
USER_V2 = attrs.evolve(USER, cgroups=DELEGATED)
USER_SUBIDS = attrs.evolve(USER, subuids=(100000, 65536), subgids=(200000, 65536))
OLD = attrs.evolve(ROOT_V1, kernel=(5, 14), landlock=0, namespaces=KINDS - {"time"})
FORBIDDEN = attrs.evolve(USER, userns_hint="set user.max_user_namespaces above 0 with sysctl(8)")
ARM = attrs.evolve(ROOT_V2, machine="aarch64")

HOSTS = {
    "root on cgroup v1": ROOT_V1,
    "root on cgroup v2": ROOT_V2,
    "user without cgroups": USER,
    "user who can ask systemd": USER_WITH_SYSTEMD,
    "user with a delegated cgroup": USER_V2,
    "user with subordinate ids": USER_SUBIDS,
    "old kernel without landlock": OLD,
    "aarch64": ARM,
}
