"""
The part of a start that networks have: what is refused, what is handed out, which files lie inside.

A bridged sandbox's pid 1 hands a netlink socket of its network namespace to the program, which
makes the pair of interfaces, and by that socket its addresses and routes. So the program needs not
enter the namespace, and what is inside never speaks to the host's network.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sandboxlib.errors import SpecError, UnsupportedError
from sandboxlib.plan import tree
from sandboxlib.plan.flags import (
    AF_NETLINK,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    SOCK_CLOEXEC,
    SOCK_RAW,
    Named,
)
from sandboxlib.plan.steps import Action, Call, Report, Step, Template, Write

if TYPE_CHECKING:
    from sandboxlib.host import Host
    from sandboxlib.spec import SandboxSpec

#: Networks for which something is made outside.
MADE = ("bridge", "user")
NETLINK = Named(15, "<netlink>")
#: Where a network's files lie inside, and by which value of the plan.
FILES = {"/etc/hosts": Template("{hosts}"), "/etc/resolv.conf": Template("{resolv}")}
#: Of the sandbox's own network: what nobody needs a right for where all ports are the sandbox's.
_SETTINGS = (
    ("ipv4/ip_unprivileged_port_start", "0", "any port can be listened on without a capability"),
    ("ipv4/ping_group_range", "0 0", "ping works without a capability"),
    # Where so many groups are mapped.
    ("ipv4/ping_group_range", "0 65535", "also for other users"),
    *(
        (f"{version}/conf/{which}/accept_redirects", "0", "no neighbour says where its packets go")
        for version in ("ipv4", "ipv6")
        for which in ("all", "default")
    ),
    ("ipv6/conf/default/accept_ra", "0", "no neighbour gives it addresses"),
)
QUIET = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC


def is_made(spec: SandboxSpec) -> bool:
    """Is something to be made outside for the sandbox's network?"""
    return spec.network is not None and spec.network.kind in MADE


def check(spec: SandboxSpec, host: Host) -> None:
    """
    Refuse a network that this host cannot make.

    Raises:
        UnsupportedError: With the way out.
        SpecError: It contradicts another part.
    """
    network = spec.network
    if network is None or network.kind in ("none", "host", "of"):
        return
    what = f"a network of kind {network.kind!r}"
    if network.kind not in MADE:
        raise UnsupportedError(what, "a part of sandboxlib that is not there yet")
    own = spec.namespace("network")
    if own is not None and own.mode != "new":
        raise SpecError("namespaces", own, f"left out, or new, with {network!r}")
    if network.kind == "user":
        _check_user(spec, host)
        return
    if not host.privileged:
        raise UnsupportedError(what, "root", "use Network.user(), which needs none, or run this as root")
    if not host.nft:
        hint = "load it with 'modprobe nf_tables', or boot a kernel with CONFIG_NF_TABLES"
        raise UnsupportedError(what, "a kernel with nf_tables", hint)
    wants6 = any(one.ipv6 or ":" in (one.subnet or "") for one in network.every)
    if wants6 and not host.ipv6:
        raise UnsupportedError("IPv6 on a bridge", "a kernel with IPv6", "leave ipv6= out")


def _check_user(spec: SandboxSpec, host: Host) -> None:
    assert spec.network is not None
    what = "a network of kind 'user'"
    if host.privileged:
        raise UnsupportedError(what, "a program without root's rights", "use Network.bridge()")
    if not (host.pasta or host.slirp4netns):
        raise UnsupportedError(what, "pasta(1) or slirp4netns(1)", "install the package passt")
    if not host.tun:
        hint = "load the module tun, and have root run 'chmod 666 /dev/net/tun'"
        raise UnsupportedError(what, "a /dev/net/tun that this user may open", hint)
    if spec.network.allow is not None:
        raise UnsupportedError("Network.user(allow=...)", "a part of sandboxlib that is not there yet")


def announced(spec: SandboxSpec, host: Host) -> Iterator[Step]:
    """What the program does before the start."""
    if spec.network is None or not is_made(spec):
        return
    for network in spec.network.every if spec.network.kind == "bridge" else ():
        yield Action(
            "network",
            f"flock(<book of networks>); bridge {network.name!r} with its rules, and an address",
            "on it are those that name it, and no one else",
        )
    if spec.network.kind == "user":
        helper = "pasta" if host.pasta else "slirp4netns"
        yield Action("helper", f"{helper}(<pid 1>)", "it speaks for the sandbox, by the caller's own sockets")
    for port in spec.ports:
        where = f"{port.address or '*'}:{port.port}/{port.protocol}"
        yield Action("port", f"bind({where})", f"leads to port {port.target} inside, and is nobody else's")


def handed_out(spec: SandboxSpec) -> Iterator[Step]:
    """What pid 1 does once its loopback is up."""
    if not is_made(spec):
        return
    for name, value, why in _SETTINGS:
        # EINVAL: group IDs that are not mapped.
        ignore = (errno.EINVAL, errno.ENOENT)
        yield Write(f"/proc/sys/net/{name}", value, why, ignore=ignore)
    why = "by it the program gives this namespace, and no other, its addresses"
    yield Call("socket", (AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0), why, out=NETLINK)
    yield Report("ready", "the program connects it meanwhile", NETLINK)


def over(path: str, fd: int, why: str) -> Iterator[Step]:
    """Mount the file *fd* over *path* in a tree that we do not trust; a read-only one may lack it."""
    yield Call("close", (tree.TARGET,), why, ignore=(errno.EBADF,))
    for step in tree.make_target(path, why, folder=False, follow=True):
        looked_up = isinstance(step, Call) and step.name == "openat2"
        yield step._replace(ignore=(errno.ENOENT, errno.ENOTDIR)) if looked_up else step  # type: ignore[call-arg]
    args = tree.attach_fd(fd, tree.TARGET, why)
    yield args._replace(ignore=(errno.EBADF,))


__all__ = ["FILES", "MADE", "QUIET", "announced", "check", "handed_out", "is_made", "over"]
