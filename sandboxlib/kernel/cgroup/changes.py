"""
Limits of a group that lives are changed all together, or none is.

A group's files are written one by one, and any may be refused. What each held before is read first,
and put back then: the group's spec always says what its files hold.
"""

from __future__ import annotations

import os

from sandboxlib.errors import KernelError
from sandboxlib.kernel.cgroup import files

#: What lifts the limits of one disk, in files that hold a line for each disk that has some.
_LIFTED = {"io.max": "rbps=max wbps=max riops=max wiops=max", "io.latency": "target=0"}
_THROTTLE = "blkio.throttle."


class Changes:
    """Writes that can be taken back."""

    def __init__(self) -> None:
        self._undo: list[tuple[str, str]] = []

    def write(self, path: str, text: str) -> None:
        """Write a file, and remember what it held. Raises: KernelError: refused; it holds what it did."""
        before = former(path, text)
        files.write(path, text)
        self._undo[:0] = before

    def take_back(self, error: BaseException) -> None:
        """Write what was there; *error*, the reason for it, gets a note of what could not be."""
        left, refusals = self._undo, list[KernelError]()
        # What one file may hold can depend on another: what was refused is tried again after the others.
        for _ in range(2):
            again, refusals = [], []
            for path, text in left:
                try:
                    files.write(path, text)
                except KernelError as problem:
                    again.append((path, text))
                    refusals.append(problem)
            left = again
        for refusal in refusals:
            error.add_note(f"and it could not be set back: {refusal}")


def former(path: str, text: str) -> list[tuple[str, str]]:
    """
    What to write, and where, in the place of *text*, to have what *path* holds now.

    Nothing for a file that cannot be read, such as memory.reclaim: it holds nothing.
    """
    folder, name = os.path.split(path)
    if name == "devices.allow":
        # It was emptied before, and is filled again.
        return []
    if name == "devices.deny":
        allowed = files.read(f"{folder}/devices.list").splitlines()
        lines = ["a"] if allowed == ["a *:* rwm"] else allowed
        return [(path, "a"), *((f"{folder}/devices.allow", line) for line in lines)]
    try:
        found = files.read(path).splitlines()
    except KernelError:
        return []
    key = text.partition(" ")[0]
    if name in _LIFTED or name.startswith(_THROTTLE):
        same = [line for line in found if line.startswith(f"{key} ")]
        return [(path, same[0] if same else f"{key} {_LIFTED.get(name, '0')}")]
    if name == "cpuset.cpus.partition":
        # "root invalid (why)" was asked for as "root".
        return [(path, found[0].split()[0])]
    if len(found) > 1:
        # "default 100", and disks of their own; or a line for each name.
        found = [line for line in found if line.split()[0] == key] or found[:1]
    return [(path, found[0] if found and found[0] else "\n")]


__all__ = ["Changes", "former"]
