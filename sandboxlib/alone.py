"""The blocking face of parts that are opened alone."""

from sandboxlib.engine.alone import (
    OpenNamespace,
    OpenNetwork,
    open_namespace,
    open_network,
)
from sandboxlib.engine.mounted import OpenRootfs, open_rootfs

__all__ = [
    "OpenNamespace",
    "OpenNetwork",
    "OpenRootfs",
    "open_namespace",
    "open_network",
    "open_rootfs",
]
