"""What this host supports, what is missing, and how to get it: ``python -m sandboxlib doctor``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sandboxlib.errors import KernelError, SandboxError, UnsupportedError
from sandboxlib.host import Host

OLDEST = (5, 14)
MACHINES = ("x86_64", "aarch64")

#: What each controller is for; names are cgroup v2's.
CONTROLLERS = {
    "memory": "memory= and the outcome OUT_OF_MEMORY",
    "cpu": "cpus=, quota and weight",
    "pids": "pids=, the ceiling on processes",
    "cpuset": "pinning to CPUs and memory nodes",
    "io": "limits on block devices",
    "devices": "lists of allowed devices",
    "freezer": "pause() and resume()",
}
#: On v2 these two are part of every cgroup: no controller has to be enabled for them.
_BUILT_IN = ("devices", "freezer")
#: What each kind of namespace keeps apart.
NAMESPACES = {
    "user": "root inside is nobody outside",
    "mount": "a file tree of its own",
    "pid": "no process of the host in sight",
    "network": "a loopback of its own",
    "ipc": "shared memory and message queues",
    "uts": "a hostname of its own",
    "cgroup": "the host's groups out of sight",
    "time": "clocks of its own",
}


class Finding(NamedTuple):
    """
    One line of the report.

    Attributes:
        name: What it is about.
        state: ``ok``, ``missing``, or ``note`` for what works less well without.
        text: What was found.
        remedy: How to get it, as an instruction; may be empty.
    """

    name: str
    state: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.state:7}  {self.name:22}  {self.text}"
        return f"{line}; {self.remedy}" if self.remedy else line


def examine(host: Host) -> Iterator[Finding]:
    """Say what *host* has and lacks; looks at nothing but the value."""
    kernel = ".".join(map(str, host.kernel))
    new_enough = host.kernel >= OLDEST
    yield Finding(
        "kernel",
        "ok" if new_enough else "missing",
        f"Linux {kernel}",
        "" if new_enough else "use Linux 5.14 or newer",
    )
    known = host.machine in MACHINES
    yield Finding(
        "machine",
        "ok" if known else "missing",
        host.machine,
        "" if known else f"use one of {', '.join(MACHINES)}",
    )
    if host.hidden:
        text = f"not to be had: {', '.join(sorted(host.hidden))}"
        remedy = (
            "use Linux 5.14 or newer; inside a container, start that with a seccomp profile that allows them"
        )
        yield Finding("system calls", "note" if host.hidden == {"clone3"} else "missing", text, remedy)
    yield from _namespaces(host)
    yield _ids(host)
    yield from _cgroups(host)
    yield _network(host)
    if host.labels:
        yield Finding("labels", "ok", " and ".join(f"Security({module}=)" for module in sorted(host.labels)))
    if host.landlock:
        yield Finding("landlock", "ok", f"ABI {host.landlock}")
    else:
        text = "not there: no file of the caller's can be stdin or stdout"
        yield Finding(
            "landlock", "note", text, "boot a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in lsm="
        )


def _namespaces(host: Host) -> Iterator[Finding]:
    for kind, use in NAMESPACES.items():
        name = f"namespace {kind}"
        if kind not in host.namespaces:
            state = "note" if kind == "time" else "missing"
            option = {"network": "NET", "mount": "NAMESPACES"}.get(kind, kind.upper())
            suffix = "" if option == "NAMESPACES" else "_NS"
            config = "CONFIG_CGROUPS" if kind == "cgroup" else f"CONFIG_{option}{suffix}"
            yield Finding(name, state, f"not there: {use}", f"boot a kernel with {config}")
        elif kind == "user" and host.userns_hint:
            yield Finding(name, "missing", "forbidden", host.userns_hint)
        else:
            yield Finding(name, "ok", use)


def _ids(host: Host) -> Finding:
    if host.privileged:
        number = sum(count // 65536 for _, count in host.ids.free)
        if not number:
            return Finding("users inside", "missing", "no range of IDs for sandboxes", host.ids.fault)
        shown = ", ".join(f"{start} to {start + count - 1}" for start, count in host.ids.free[:3])
        text = f"65536 for each of {number} sandboxes, none of them anybody outside"
        return Finding("users inside", "ok", f"{text}: from {shown}, {host.ids.source}")
    if host.subuids is not None and host.subgids is not None:
        users, groups = host.subuids[1], host.subgids[1]
        return Finding("users inside", "ok", f"your own and {users} subordinate users, {groups} groups")
    if host.subids_fault:
        return Finding("users inside", "note", f"one alone, your own ({host.uid})", host.subids_fault)
    remedy = (
        "install newuidmap(1) (package uidmap or shadow-utils) and have "
        "'usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME' run"
    )
    return Finding("users inside", "note", f"one alone, your own ({host.uid})", remedy)


def _network(host: Host) -> Finding:
    if host.privileged:
        if host.nft:
            return Finding("network", "ok", "Network.bridge(), with rules by the kernel's nf_tables")
        remedy = "load it with 'modprobe nf_tables'"
        return Finding("network", "note", "no Network.bridge(): no nf_tables", remedy)
    if not (host.pasta or host.slirp4netns):
        return Finding("network", "note", "no Network.user()", "install the package passt (or slirp4netns)")
    if not host.tun:
        remedy = "load the module tun, and have root run 'chmod 666 /dev/net/tun'"
        return Finding("network", "note", "no Network.user(): /dev/net/tun cannot be opened", remedy)
    chosen = "pasta" if host.pasta else "slirp4netns, for there is no pasta"
    return Finding("network", "ok", f"Network.user(), by {chosen}")


def _cgroups(host: Host) -> Iterator[Finding]:
    groups = host.cgroups
    version = {0: "none that this program may write", 1: "version 1"}.get(groups.version, "version 2")
    if groups.offer is not None:
        text = "none yet: for a sandbox with limits systemd is asked for a scope, and moves the program there"
        yield Finding("cgroups", "note", text, groups.hint)
        groups = groups.offer
    else:
        state, remedy = ("ok", "") if groups.version else ("missing", groups.hint)
        yield Finding("cgroups", state, version, remedy)
    for name, use in CONTROLLERS.items():
        if name in groups.bases or (
            groups.version == 2 and name in _BUILT_IN and (name != "devices" or host.privileged)
        ):
            yield Finding(f"cgroup {name}", "ok", use)
        else:
            hint = (
                "as root only: device rules are a BPF program"
                if groups.version == 2 and name == "devices"
                else groups.hint
            )
            yield Finding(f"cgroup {name}", "missing", use, hint)


def attempt(name: str, action: Callable[[], Any]) -> Finding:
    """Do it, and say whether it worked."""
    began = time.monotonic()
    try:
        action()
    except UnsupportedError as error:
        return Finding(name, "missing", f"{error.feature} needs {error.needs}", error.hint)
    except KernelError as error:
        return Finding(name, "missing", str(error))
    except SandboxError as error:
        return Finding(name, "missing", f"{type(error).__name__}: {error}")
    return Finding(name, "ok", f"works, in {1000 * (time.monotonic() - began):.1f} ms")


DEFAULT = "default sandbox"


def attempts(host: Host) -> Iterator[Finding]:
    """Start real sandboxes, from the default one on."""
    import tempfile

    from sandboxlib.blocking import Sandbox
    from sandboxlib.rootfs import Rootfs
    from sandboxlib.security import Security

    def command(**spec: Any) -> Callable[[], object]:
        def action() -> None:
            with Sandbox(**spec) as sandbox:
                sandbox.run([sys.executable, "-c", ""], check=True)

        return action

    first = attempt(DEFAULT, command())
    yield first
    if first.state != "ok":
        return
    if host.cgroups.offer is None:
        yield attempt("limits", command(memory="256M", pids=64, cpus=1))
    else:
        remedy = "start one to see: python -m sandboxlib run --memory 256M -- true"
        yield Finding("limits", "note", "not tried, for systemd would have to be asked", remedy)
    yield attempt("another user inside", command(security=Security(user="1000:1000")))
    with tempfile.TemporaryDirectory(prefix="sandboxlib-doctor-") as folder:

        def overlay() -> None:
            with Sandbox(rootfs=Rootfs.overlay(lower=[folder])):
                pass

        yield attempt("overlay root", overlay)
    yield from (Finding(DEFAULT, "note", note) for note in Sandbox().plan().notes)


def others() -> Iterator[Finding]:
    """What other firewalls of this machine do to networks."""
    from sandboxlib.kernel.nftables import dropping

    try:
        chains = dropping()
    except KernelError:
        return  # without nftables there is no bridge, which has been said
    if chains:
        yield Finding(
            "forwarding",
            "note",
            f"dropped by others unless they allow it: {', '.join(chains)}",
            "for Network.bridge() allow it there for the interfaces sbx-*, with Docker as "
            "'iptables -I DOCKER-USER -i sbx-+ -j ACCEPT' and the same with -o",
        )


def put_right(host: Host) -> Iterator[Finding]:
    """What dead programs left of networks, and what others did to those that stand; it is put right."""
    if host.privileged:
        from sandboxlib.engine.bridges import look_after
    else:
        from sandboxlib.engine.usernet import look_after
    try:
        found = look_after(host)
    except SandboxError as error:
        yield Finding("networks", "missing", str(error))
        return
    if found:
        yield Finding("networks", "note", f"put right: {'; '.join(dict.fromkeys(found))}")


def around(*, works: bool) -> Iterator[Finding]:
    """What this program runs inside of, as far as it takes something away."""
    from sandboxlib.surroundings import surroundings

    for found in surroundings(restricted=not works):
        yield Finding(f"inside {found.name}" if found.name[0] != "/" else found.name, "note", *found[1:])


def findings() -> Iterator[Finding]:
    """All that there is to say about this machine."""
    from sandboxlib.engine.current import program

    try:
        host = program().host
    except SandboxError as error:
        # Without a Host nothing can be said, nor done.
        yield Finding(DEFAULT, "missing", str(error))
        return
    yield from examine(host)
    yield from put_right(host)
    if host.privileged:
        yield from others()
    tried = list(attempts(host))
    yield from around(works=all(each.state != "missing" for each in tried))
    yield from tried


def main(*, as_json: bool = False) -> int:
    """Print the report; returns 1 if the default sandbox cannot start, else 0."""
    found = []
    for finding in findings():
        found.append(finding)
        if not as_json:
            sys.stdout.write(f"{finding}\n")
            # What is tried may take a moment, or the machine down.
            sys.stdout.flush()
    works = any(finding.name == DEFAULT and finding.state == "ok" for finding in found)
    if as_json:
        import json

        document = {"ok": works, "findings": [finding._asdict() for finding in found]}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return 0 if works else 1
