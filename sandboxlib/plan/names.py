"""The files of names and name servers that come with a network, in a sandbox's tree."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sandboxlib.plan import network, tree
from sandboxlib.plan.flags import MS_PRIVATE

if TYPE_CHECKING:
    from sandboxlib.plan.root import Builder
    from sandboxlib.rootfs import Rootfs


def of_network(builder: Builder, rootfs: Rootfs) -> None:
    """The names and name servers of its network, which may change while it stands."""
    why = "of its network; it can only be read"
    lacks = rootfs.merged.lacks if rootfs.merged is not None else ()
    for path, source in network.FILES.items():
        if path not in rootfs.paths and path not in lacks:
            fd = builder.source(source, why, network.QUIET, recursive=False)
            if builder.trusted:
                builder.place(path, fd, why, folder=False)
            else:
                builder.build.extend(network.over(path, fd, why))


def of_host(builder: Builder, rootfs: Rootfs) -> None:
    """On the host's network: its name servers, where the root has a place for them."""
    path = "/etc/resolv.conf"
    if rootfs.kind not in ("host", "image") or path in rootfs.paths:
        return
    why = "the host's name servers, as its network"
    fd = builder.number(path)
    steps = builder.early if builder.host.privileged else builder.build
    quiet = network.QUIET
    # A host may have none.
    steps.append(tree.open_tree(path, fd, why, recursive=False, missing=True))
    steps.append(tree.setattr_(fd, why, set_=quiet, propagation=MS_PRIVATE, recursive=False, missing=True))
    if builder.trusted:
        builder.build.append(tree.attach(fd, path, why, missing=True))
    elif rootfs.merged is None or path not in rootfs.merged.lacks:
        builder.build.extend(tree.make_target(path, why, folder=False, follow=True))
        builder.build.append(tree.attach_fd(fd, tree.TARGET, why)._replace(ignore=(errno.EBADF,)))


__all__ = ["of_host", "of_network"]
