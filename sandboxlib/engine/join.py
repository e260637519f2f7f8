"""Opens namespaces that are there already."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandboxlib.errors import KernelError, SpecError

if TYPE_CHECKING:
    from sandboxlib.namespace import Namespace


def open_namespace(value: Namespace) -> int:
    """
    Open the namespace that *value* names; the caller owns the descriptor.

    Raises:
        SpecError: It is not the one it was when `Namespace.of` was asked: its process has ended.
        KernelError: It cannot be opened.
    """
    assert value.path is not None
    try:
        fd = os.open(value.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(
            error.errno or 0, f'openat("{value.path}")', f"the {value.kind} namespace"
        ) from None
    found = os.fstat(fd)
    if value.identity not in (None, (found.st_dev, found.st_ino)):
        os.close(fd)
        raise SpecError("namespaces", value, "a namespace that still exists: its number is another's by now")
    return fd
