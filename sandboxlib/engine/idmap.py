"""ID maps that need newuidmap(1) and newgidmap(1): a user's own and subordinate IDs."""

from __future__ import annotations

import shutil
import subprocess

from sandboxlib.errors import KernelError, UnsupportedError
from sandboxlib.host import Host
from sandboxlib.plan.ids import id_map, more_of
from sandboxlib.plan.start import namespaces
from sandboxlib.spec import SandboxSpec


def write_maps(pid: int, spec: SandboxSpec, host: Host) -> None:
    """
    Write both maps of process *pid*.

    Raises:
        UnsupportedError: The tools are not installed.
        KernelError: A range is not the caller's.
    """
    user = namespaces(spec, host)["user"]
    for which, file in (("uid", "/etc/subuid"), ("gid", "/etc/subgid")):
        tool = shutil.which(f"new{which}map", path="/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin")
        if tool is None:
            raise UnsupportedError(
                "subordinate IDs", f"new{which}map(1)", "install the package uidmap (or shadow-utils)"
            )
        numbers = id_map(host, user, which, more_of(spec).of(which)).split()
        done = subprocess.run([tool, str(pid), *numbers], capture_output=True, text=True, check=False)
        if done.returncode:
            call = f"new{which}map({pid}, {' '.join(numbers)})"
            raise KernelError(1, call, "write the ID maps", f"{done.stderr.strip()}; see {file}")
