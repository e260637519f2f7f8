"""Opens namespaces that are there already."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandboxlib.errors import SpecError
from sandboxlib.kernel.descriptor import Fd, openat

if TYPE_CHECKING:
    from sandboxlib.namespace import Namespace


def open_namespace(value: Namespace) -> Fd:
    """
    Open the namespace that *value* names.

    Raises:
        SpecError: It is not the one it was when `Namespace.of` was asked: its process has ended.
        KernelError: It cannot be opened.
    """
    assert value.path is not None
    fd = openat(value.path, os.O_RDONLY, why=f"the {value.kind} namespace")
    found = os.fstat(fd.fileno())
    if value.identity not in (None, (found.st_dev, found.st_ino)):
        raise SpecError("namespaces", value, "a namespace that still exists: its number is another's by now")
    return fd
