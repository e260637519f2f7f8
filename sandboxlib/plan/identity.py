"""Who a sandbox's users are, and the files of /etc that name them."""

from __future__ import annotations

from sandboxlib.errors import UnsupportedError
from sandboxlib.host import Host
from sandboxlib.spec import SandboxSpec

#: Where commands begin in the host view, and the home of a user who is not root.
WORK = "/work"
#: Those of the files of `identity` that an image does not bring itself.
OF_IMAGES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


def check_user(spec: SandboxSpec, host: Host) -> None:
    """Raises: UnsupportedError: There is no number outside for the user that commands are to run as."""
    user = spec.namespace("user")
    fixed = user is not None and (user.mode != "new" or user.uid_map)
    if any(user_of(spec)) and not (host.privileged or (host.subuids and host.subgids) or fixed):
        hint = "add the calling user to /etc/subuid and /etc/subgid, and install uidmap (or shadow-utils)"
        needs = "subordinate user and group IDs"
        raise UnsupportedError("another user than root inside", needs, host.subids_fault or hint)


def identity(spec: SandboxSpec) -> dict[str, str]:
    """Small files of /etc that name the sandbox's own users and host."""
    users, groups = "root:x:0:0:root:/root:/bin/sh\n", "root:x:0:\n"
    user, group = user_of(spec)
    if user:
        users += f"user:x:{user}:{group}:user:{WORK}:/bin/sh\n"
    if group:
        groups += f"user:x:{group}:\n"
    hostname = spec.hostname or "sandbox"
    return {
        "/etc/resolv.conf": "# no name servers\n",
        "/etc/passwd": users + "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "/etc/group": groups + "tty:x:5:\nnogroup:x:65534:\n",
        "/etc/hosts": f"127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost\n",
        "/etc/hostname": hostname + "\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    }


def user_of(spec: SandboxSpec) -> tuple[int, int]:
    """The numbers of the user and group that commands run as."""
    return (spec.security.ids if spec.security else None) or (0, 0)
